"""Views: crops and colors of canvases, made in batches, on the device, when asked for."""

from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD, Views
from manyviews.views.draws import Draws
from manyviews.views.kinds import Color, Cutout, Global, Local, View
from manyviews.views.presets import BYOL_PAIR, DINO_LOCAL, DINO_PAIR, MOCO_V2, MULAN, SIMCLR, SIMSIAM, SWAV
from manyviews.views.recompute import frozen_statistics, recomputed

__all__ = [
    "BYOL_PAIR",
    "DINO_LOCAL",
    "DINO_PAIR",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOCO_V2",
    "MULAN",
    "SIMCLR",
    "SIMSIAM",
    "SWAV",
    "Color",
    "Cutout",
    "Draws",
    "Global",
    "Local",
    "View",
    "Views",
    "frozen_statistics",
    "recomputed",
]
