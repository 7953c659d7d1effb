"""Images with index masks, for semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from manyviews.data.decode import BadImage, as_rgb, decode
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation.dense.files import SPLITS, Bad, by_stem, check_folder, images_in, orientation, upright
from manyviews.evaluation.dense.legend import IGNORED, legend, look, read_list, read_mask

_LOOKED = 500  # masks that are looked at before anything else; without a list of classes, all
_HELD_OUT = 0.2  # share of the training images that choose, where there are no validation images


@dataclass(frozen=True)
class Masked:
    """An image and the file of its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Masks:
    """A set for semantic segmentation.

    Attributes:
        classes: names of the classes.
        values: class of each value in the files; `IGNORED` for values that do not count.
        train, val, test: images to learn from, to choose with, and to test on.
        bad: images without a mask, and masks without an image.
        colors: value of each color, if the masks are in color: see `Legend`.
        notes: sentences about what was assumed.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int]
    train: list[Masked]
    val: list[Masked]
    test: list[Masked]
    bad: Bad
    colors: Mapping[int, int] | None = None
    notes: tuple[str, ...] = ()

    def read(self, one: Masked) -> tuple[Image.Image, np.ndarray]:
        """The image, and its mask: int64 `h w`, classes and `IGNORED`.

        Raises:
            BadImage: one of the two cannot be read, their sizes differ, or the mask has an unknown value or marks
                nothing.
        """
        picture, (h, w) = decode(one.image)
        found = read_mask(one.mask, self.colors)
        if found.shape != (h, w):
            if found.shape != (w, h) or (turned := orientation(one.image)) < 5:
                cure = "" if found.shape[0] * w != found.shape[1] * h else ": resize it by the nearest pixel"
                raise BadImage(f"its mask is {found.shape[1]}x{found.shape[0]}, and the image {w}x{h}{cure}")
            found = upright(found, turned)  # made for the pixels as they are stored
        values, positions = np.unique(found, return_inverse=True)
        unknown = [int(v) for v in values if int(v) not in self.values]
        if unknown:
            raise BadImage(f"its mask has the value {unknown[0]}, which stands for none of {len(self.classes)} classes")
        mask = np.array([self.values[int(v)] for v in values])[positions.reshape(found.shape)]
        if (mask == IGNORED).all():
            raise BadImage("its mask marks nothing")
        return as_rgb(picture), mask


def open_masks(root: Path, ignore: int | None = None) -> Masks:
    """Images and index masks: `images/<split>/x.jpg` with `masks/<split>/x.png`, or `<split>/images` and `/masks`.

    Splits are train, val and test. Without val, a fifth of train by a stable hash chooses; without test, val is the
    test and a fifth of train chooses. The meaning of the values is in `dataset.json`, as
    `{"classes": ["sky", ...], "ignore": 255}`, or in `classes.txt`, a name in each line, where names that end with
    "(ignore)" do not count. Without either, the values are the classes' names. 255 never counts, unless it is a class
    in the list, or the only value next to 0 where two classes are listed. Masks in color need their colors in the
    list: `sky 70 130 180`, or `"colors"` in `dataset.json`; values that are not 0, 1, 2, ... need `"values"` there.

    Args:
        root: the folder.
        ignore: another value that does not count.

    Raises:
        UserError: another layout, a list of classes that cannot be read, or values that do not fit it.
    """
    check_folder(root)
    bad: Bad = []
    parts = {name: _pairs(root, name, bad) for name in SPLITS}
    if not parts["train"] or not (parts["val"] or parts["test"]):
        missing = "train" if not parts["train"] else "val or test"
        raise UserError(
            f"{root} has no images with masks to {missing}: it needs images/train and masks/train (or train/images and "
            "train/masks), the same for test, and if there are any for val, with a mask named as its image for each."
        )
    if not parts["test"]:
        parts["test"], parts["val"] = parts["val"], []
    if not parts["val"]:
        names = [one.image.stem for one in parts["train"]]
        rows = split(names, {"train": 1 - _HELD_OUT, "val": _HELD_OUT}, salt="segmentation")
        if not all(map(len, rows.values())):
            raise UserError(f"{root} has too few training images to choose with a fifth of them: add a val split.")
        parts |= {k: [parts["train"][i] for i in found] for k, found in rows.items()}
    listed = read_list(root)
    masks = [one.mask for part in parts.values() for one in part]
    if listed.names and len(masks) > _LOOKED:
        masks = [masks[i] for i in np.linspace(0, len(masks) - 1, _LOOKED).astype(int)]
    with ThreadPoolExecutor() as pool:
        found = legend(root, listed, ignore, list(pool.map(look, masks)))
    return Masks(found.classes, found.values, bad=bad, colors=found.colors, notes=found.notes, **parts)


def _pairs(root: Path, name: str, bad: Bad) -> list[Masked]:
    for split_name in SPLITS[name]:
        for images, masks in (
            (root / split_name / "images", root / split_name / "masks"),
            (root / "images" / split_name, root / "masks" / split_name),
        ):
            if images.is_dir() and masks.is_dir():
                theirs, ours = by_stem(images_in(masks), bad), by_stem(images_in(images), bad)
                bad += [(str(p), "it has no mask") for stem, p in ours.items() if stem not in theirs]
                bad += [(str(p), "the mask has no image") for stem, p in theirs.items() if stem not in ours]
                return [Masked(p, theirs[stem]) for stem, p in ours.items() if stem in theirs]
    return []
