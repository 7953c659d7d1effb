"""Views: crops and colors of canvases, made in batches, on the device, when asked for."""

from manyviews.views import augmentations
from manyviews.views.augmentations import MAST_5, MAST_15, MAST_19, RANDAUGMENT, Augmentation
from manyviews.views.compose import Composed, Strong
from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD, Views
from manyviews.views.distort import Color
from manyviews.views.draws import Draws
from manyviews.views.kinds import CutMix, Cutout, Global, Local, Rotation, Shuffle, View
from manyviews.views.make import relation_dim
from manyviews.views.presets import BYOL_PAIR, DINO_LOCAL, DINO_PAIR, MOCO_V2, MULAN, SIMCLR, SIMSIAM, SWAV
from manyviews.views.recompute import frozen_statistics, recomputed

__all__ = [
    "BYOL_PAIR",
    "DINO_LOCAL",
    "DINO_PAIR",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAST_5",
    "MAST_15",
    "MAST_19",
    "MOCO_V2",
    "MULAN",
    "RANDAUGMENT",
    "SIMCLR",
    "SIMSIAM",
    "SWAV",
    "Augmentation",
    "Color",
    "Composed",
    "CutMix",
    "Cutout",
    "Draws",
    "Global",
    "Local",
    "Rotation",
    "Shuffle",
    "Strong",
    "View",
    "Views",
    "augmentations",
    "frozen_statistics",
    "recomputed",
    "relation_dim",
]
