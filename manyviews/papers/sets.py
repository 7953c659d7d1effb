"""The sets of images of the papers: how many images, how large, where to get them, and how their folder looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_CLASSES = "NAME/train/CLASS and NAME/test/CLASS"
_IMAGENET = _CLASSES.replace("test", "val")
_LISTED = "https://github.com/google-research/simclr, imagenet_subsets"
SUITE = ("aircraft", "caltech101", "cifar10", "cifar100", "dtd", "flowers", "food101", "pets", "sun397")
"""The folders of a suite, SimCLR's sets of one label an image."""

SEVERAL = "voc2007"
"""The folder of the suite whose images have several labels."""


@dataclass(frozen=True)
class DataSet:
    """A set of images.

    Attributes:
        title: its name for people.
        images: training images.
        tests: test images, or validation images where the papers test on those.
        width: typical width of an image in pixels.
        height: its height.
        classes: number of classes.
        where: where to get it.
        layout: how its folder looks; NAME is the folder.
        kind: images by class; images with several labels; images with boxes, or with masks too; several sets.
        folders: folders in NAME that are one set together; none if it is NAME itself.
    """

    title: str
    images: int
    tests: int
    classes: int
    where: str
    width: int = 500
    height: int = 375
    layout: str = _CLASSES
    kind: Literal["classes", "several", "boxes", "masks", "suite"] = "classes"
    folders: tuple[str, ...] = ()

    @property
    def tested(self) -> str:
        """Name of the folder of the images to test on."""
        return "val" if "NAME/val/" in self.layout else "test"


SETS = {
    "imagenet": DataSet(
        "ImageNet-1k",
        1_281_167,
        50_000,
        1000,
        "https://image-net.org",
        layout=f"{_IMAGENET}; for 1 and 10 % of the labels also SimCLR's lists ({_LISTED}), NAME/1percent.txt and "
        "NAME/10percent.txt",
    ),
    "imagenet100": DataSet(
        "ImageNet-100",
        126_689,
        5_000,
        100,
        "the 100 classes of ImageNet-1k that Tian et al. list (https://github.com/HobbitLong/CMC)",
        layout=_IMAGENET,
    ),
    "coco": DataSet(
        "COCO 2017",
        118_287,
        5_000,
        80,
        "https://cocodataset.org",
        640,
        480,
        "NAME/train2017, NAME/val2017 and NAME/annotations/instances_{train,val}2017.json",
        "masks",
    ),
    "voc0712": DataSet(
        "VOC 2007 and 2012",
        16_551,
        4_952,
        20,
        "http://host.robots.ox.ac.uk/pascal/VOC",
        layout="NAME/VOC2007 and NAME/VOC2012 in Pascal VOC's layout: trainval of both, and test of 2007",
        folders=("VOC2007", "VOC2012"),
        kind="boxes",
    ),
    "voc07": DataSet(
        "VOC 2007",
        5_011,
        4_952,
        20,
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
        layout="NAME/train.csv and NAME/test.csv, which hold a line `path,label` for each label of each image",
        kind="several",
    ),
    "suite": DataSet(
        "ten sets of SimCLR's transfer suite",
        253_000,
        101_000,
        820,
        "torchvision.datasets downloads them",
        layout=f"the folders {', '.join(SUITE)} in NAME, each with train/CLASS and test/CLASS, and NAME/{SEVERAL} in "
        "Pascal VOC's layout",
        kind="suite",
    ),
    "places205": DataSet("Places205", 2_448_873, 20_500, 205, "http://places.csail.mit.edu", 256, 256),
    "inat18": DataSet("iNaturalist 2018", 437_513, 24_426, 8142, "https://github.com/visipedia/inat_comp", 800, 600),
    "inat1k": DataSet(
        "iNaturalist 2019, iNat-1k", 265_213, 3_030, 1010, "https://github.com/visipedia/inat_comp", 800, 600
    ),
    "cub200": DataSet("CUB-200-2011", 5_994, 5_794, 200, "https://www.vision.caltech.edu/datasets/cub_200_2011"),
    "flowers102": DataSet(
        "Flowers-102", 2_040, 6_149, 102, "https://www.robots.ox.ac.uk/~vgg/data/flowers/102", 667, 500
    ),
    "flowers17": DataSet("Flowers-17", 1_020, 340, 17, "https://www.robots.ox.ac.uk/~vgg/data/flowers/17", 667, 500),
    "cars": DataSet("Stanford Cars", 8_144, 8_041, 196, "https://pytorch.org/vision (StanfordCars)", 700, 480),
    "sun397": DataSet("SUN397", 19_850, 19_850, 397, "https://vision.princeton.edu/projects/2010/SUN", 1000, 750),
    "stl10": DataSet(
        "STL-10",
        105_000,
        8_000,
        10,
        "https://cs.stanford.edu/~acoates/stl10",
        96,
        96,
        f"{_CLASSES}, and the unlabeled images in one more folder of NAME/train",
    ),
}
"""Every set by the name that `--data NAME=PATH` takes."""
