"""Images with index masks, for semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from manyviews.data.decode import BadImage, as_rgb, decode
from manyviews.data.reading import MAX_PIXELS
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation.dense.files import SPLITS, Bad, check_folder, images_in, read_json

IGNORED = -1
"""Class of pixels that do not count."""

_IGNORE = 255
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
    """

    classes: tuple[str, ...]
    values: Mapping[int, int]
    train: list[Masked]
    val: list[Masked]
    test: list[Masked]
    bad: Bad

    def read(self, one: Masked) -> tuple[Image.Image, np.ndarray]:
        """The image, and its mask: int64 `h w`, classes and `IGNORED`.

        Raises:
            BadImage: one of the two cannot be read, their sizes differ, or the mask has an unknown value or marks
                nothing.
        """
        picture, (h, w) = decode(one.image)
        found = read_mask(one.mask)
        if found.shape != (h, w):
            raise BadImage(f"its mask is {found.shape[1]}x{found.shape[0]}, and the image {w}x{h}")
        values, positions = np.unique(found, return_inverse=True)
        unknown = [int(v) for v in values if int(v) not in self.values]
        if unknown:
            raise BadImage(f"its mask has the value {unknown[0]}, which stands for none of {len(self.classes)} classes")
        mask = np.array([self.values[int(v)] for v in values])[positions.reshape(found.shape)]
        if (mask == IGNORED).all():
            raise BadImage("its mask marks nothing")
        return as_rgb(picture), mask


def read_mask(path: Path) -> np.ndarray:
    """The values of a mask in its file, without the colors of its palette: int32 `h w`.

    Raises:
        BadImage: it cannot be used, with the reason.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"its mask is over {MAX_PIXELS:,} pixels")
            values = np.asarray(image)
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("its mask is gone") from None
    except Exception as error:  # Pillow raises nearly everything on corrupt files
        raise BadImage(f"its mask cannot be read ({str(error) or type(error).__name__})") from None
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise BadImage("its mask is in color: it must have one channel, whose values are the classes")
    return values.astype(np.int32)


def open_masks(root: Path, ignore: int | None = None) -> Masks:
    """Images and index masks: `images/<split>/x.jpg` with `masks/<split>/x.png`, or `<split>/images` and `/masks`.

    Splits are train, val and test. Without val, a fifth of train by a stable hash chooses; without test, val is the
    test and a fifth of train chooses. The meaning of the values is in `dataset.json`, as
    `{"classes": ["sky", ...], "ignore": 255}`, or in `classes.txt`, a name in each line, where names that end with
    "(ignore)" do not count. Without either, the values are the classes' names. 255 never counts, unless it is a class
    in the list.

    Args:
        root: the folder.
        ignore: another value that does not count.

    Raises:
        UserError: another layout, or a list of classes that cannot be read.
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
    classes, values = _classes(root, ignore, [one for part in parts.values() for one in part])
    return Masks(classes, values, bad=bad, **parts)


def _pairs(root: Path, name: str, bad: Bad) -> list[Masked]:
    for split_name in SPLITS[name]:
        for images, masks in (
            (root / split_name / "images", root / split_name / "masks"),
            (root / "images" / split_name, root / "masks" / split_name),
        ):
            if images.is_dir() and masks.is_dir():
                theirs = {p.stem: p for p in images_in(masks)}
                ours = {p.stem: p for p in images_in(images)}
                bad += [(str(p), "it has no mask") for stem, p in ours.items() if stem not in theirs]
                bad += [(str(p), "the mask has no image") for stem, p in theirs.items() if stem not in ours]
                return [Masked(p, theirs[stem]) for stem, p in ours.items() if stem in theirs]
    return []


def _classes(root: Path, ignore: int | None, everything: list[Masked]) -> tuple[tuple[str, ...], dict[int, int]]:
    names, ignored = list[str](), set[int]() if ignore is None else {ignore}
    listed, described = root / "classes.txt", root / "dataset.json"
    if described.is_file():
        found = read_json(described)
        names = found.get("classes", []) if isinstance(found, dict) else []
        extra = found.get("ignore", []) if isinstance(found, dict) else []
        extra = extra if isinstance(extra, list) else [extra]
        if not names or not isinstance(names, list) or not all(isinstance(v, int) for v in extra):
            raise UserError(f'{described} must be as {{"classes": ["sky", "road"], "ignore": 255}}, with numbers.')
        names = [str(n) for n in names]
        ignored |= set(extra)
    elif listed.is_file():
        try:
            names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{listed} cannot be read ({e}): it needs the name of a class in each line.") from None
        ignored |= {k for k, n in enumerate(names) if n.lower().replace(" ", "").endswith("(ignore)")}
    if len(names) <= _IGNORE:
        ignored.add(_IGNORE)
    if not names:
        most = -1
        for one in everything:
            try:
                there = np.unique(read_mask(one.mask)).tolist()
            except BadImage:
                continue  # reported when it is read again
            most = max([most, *(v for v in there if v not in ignored)])
        names = [str(k) for k in range(most + 1)]
    counted = [k for k in range(len(names)) if k not in ignored]
    if len(counted) < 2:
        raise UserError(f"The masks in {root} have {len(counted)} classes: there must be two or more to tell apart.")
    values = dict.fromkeys(ignored, IGNORED) | {k: i for i, k in enumerate(counted)}
    return tuple(names[k] for k in counted), values
