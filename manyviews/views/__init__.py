"""Views: crops and colors of canvases, made in batches, on the device, when asked for."""

from manyviews.views import augmentations
from manyviews.views.augmentations import MAST_5, MAST_15, MAST_19, RANDAUGMENT, Augmentation
from manyviews.views.caption import Caption
from manyviews.views.compose import Composed, Copied, Strong
from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD, Terms, Views, total
from manyviews.views.distort import Color
from manyviews.views.draws import Draws
from manyviews.views.kinds import Crop, CutMix, Cutout, Global, Local, Rotation, Shuffle, resolution
from manyviews.views.masking import Blocks, Grid, InverseBlocks, Mask, Masking, MultiBlock, Random, Scattered, Uniform
from manyviews.views.presets import BYOL_PAIR, DATA2VEC, DINO_LOCAL, DINO_PAIR, MOCO_V2, MULAN, SIMCLR, SIMSIAM, SWAV
from manyviews.views.recompute import frozen_statistics, recomputed
from manyviews.views.relation import relation_dim
from manyviews.views.tampering import COPIED
from manyviews.views.view import View, distinct

__all__ = [
    "BYOL_PAIR",
    "COPIED",
    "DATA2VEC",
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
    "Blocks",
    "Caption",
    "Color",
    "Composed",
    "Copied",
    "Crop",
    "CutMix",
    "Cutout",
    "Draws",
    "Global",
    "Grid",
    "InverseBlocks",
    "Local",
    "Mask",
    "Masking",
    "MultiBlock",
    "Random",
    "Rotation",
    "Scattered",
    "Shuffle",
    "Strong",
    "Terms",
    "Uniform",
    "View",
    "Views",
    "augmentations",
    "distinct",
    "frozen_statistics",
    "recomputed",
    "relation_dim",
    "resolution",
    "total",
]
