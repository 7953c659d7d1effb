"""Sets of images with masks, boxes or moving objects: folders in the layouts that are common."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manyviews.data.decode import MAX_PIXELS, BadImage, decode
from manyviews.data.folder import is_image
from manyviews.data.split import split
from manyviews.errors import UserError

Bad = list[tuple[str, str]]
"""(where, reason) of what was left out."""

IGNORED = -1
"""What a mask says of pixels that do not count."""

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_IGNORE = 255
_HELD_OUT = 0.2  # of the training images choose, where there are no validation images


def check_counts(least: int = 1, **settings: int) -> None:
    """Raises UserError unless all of them are `least` or more."""
    for name, value in settings.items():
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}.")


def check_rates(*rates: float) -> None:
    """Raises UserError unless all learning rates are positive and finite."""
    for rate in rates:
        if not 0 < rate < float("inf"):
            raise UserError(f"A learning rate must be positive and finite, not {rate:g}.")


# -- masks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masked:
    """An image and the file of its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Masks:
    """A set for semantic segmentation.

    Attributes:
        classes: their names.
        values: class by the value that it has in the files, `IGNORED` for what does not count.
        train, val, test: what to learn from, to choose with, and to be asked.
        bad: images without a mask, masks without an image.
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
            BadImage: one of the two cannot be read, they are not of one size, the mask has values that mean nothing,
                or it marks nothing at all.
        """
        image, (h, w) = decode(one.image)
        found = read_mask(one.mask)
        if found.shape != (h, w):
            raise BadImage(f"its mask is {found.shape[1]}x{found.shape[0]}, and the image {w}x{h}")
        values, places = np.unique(found, return_inverse=True)
        unknown = [int(v) for v in values if int(v) not in self.values]
        if unknown:
            raise BadImage(f"its mask has the value {unknown[0]}, which stands for none of {len(self.classes)} classes")
        mask = np.array([self.values[int(v)] for v in values])[places.reshape(found.shape)]
        if (mask == IGNORED).all():
            raise BadImage("its mask marks nothing")
        return image, mask


def read_mask(path: Path) -> np.ndarray:
    """The values of a mask as they are in the file, without the colors of its palette: int32 `h w`.

    Raises:
        BadImage: with the reason why it cannot be used.
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

    Splits are train, val and test. Without val, a fifth of train by a stable hash; without test, val is asked and a
    fifth of train chooses. What the values mean is in `dataset.json`, as `{"classes": ["sky", ...], "ignore": 255}`,
    or in `classes.txt`, a name in each line, where names that end with "(ignore)" do not count. Without either, the
    values are the classes' names. 255 never counts, unless it is a class in the list.

    Args:
        root: the folder.
        ignore: a further value that does not count.

    Raises:
        UserError: another layout, or a list of classes that cannot be read.
    """
    _check_folder(root)
    bad: Bad = []
    parts = {name: _pairs(root, name, bad) for name in _SPLITS}
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
    for split_name in _SPLITS[name]:
        for images, masks in (
            (root / split_name / "images", root / split_name / "masks"),
            (root / "images" / split_name, root / "masks" / split_name),
        ):
            if images.is_dir() and masks.is_dir():
                theirs = {p.stem: p for p in _images(masks)}
                ours = {p.stem: p for p in _images(images)}
                bad += [(str(p), "it has no mask") for stem, p in ours.items() if stem not in theirs]
                bad += [(str(p), "the mask has no image") for stem, p in theirs.items() if stem not in ours]
                return [Masked(p, theirs[stem]) for stem, p in ours.items() if stem in theirs]
    return []


def _classes(root: Path, ignore: int | None, everything: list[Masked]) -> tuple[tuple[str, ...], dict[int, int]]:
    names, ignored = list[str](), set[int]() if ignore is None else {ignore}
    listed, described = root / "classes.txt", root / "dataset.json"
    if described.is_file():
        found = _json(described)
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
                continue  # whoever reads it again will say so
            most = max([most, *(v for v in there if v not in ignored)])
        names = [str(k) for k in range(most + 1)]
    counted = [k for k in range(len(names)) if k not in ignored]
    if len(counted) < 2:
        raise UserError(f"The masks in {root} have {len(counted)} classes: there must be two or more to tell apart.")
    values = dict.fromkeys(ignored, IGNORED) | {k: place for place, k in enumerate(counted)}
    return tuple(names[k] for k in counted), values


# -- boxes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """An object in an image.

    Attributes:
        box: left, top, right and bottom edge in pixels, of which the first column is from 0 to 1.
        label: its class, from 0.
        area: pixels, by which it is small, medium or large.
        crowd: whether it is a group, or too difficult: nothing learns from it, and to find it is neither right nor
            wrong.
        segmentation: as COCO has it: polygons, or a run-length encoding; None where there are boxes only.
    """

    box: tuple[float, float, float, float]
    label: int
    area: float
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True)
class Picture:
    """An image and what is in it.

    Attributes:
        path: the file.
        size: height and width in pixels, as the annotations have it.
        things: the objects.
    """

    path: Path
    size: tuple[int, int]
    things: tuple[Thing, ...]

    def read(self) -> Image.Image:
        """Raises BadImage when it cannot be read, or is of another size than the annotations are for."""
        image, found = decode(self.path)
        if found != self.size:
            raise BadImage(f"it is {found[1]}x{found[0]}, and its annotations are for {self.size[1]}x{self.size[0]}")
        return image


@dataclass(frozen=True)
class Pictures:
    """A set for object detection.

    Attributes:
        classes: their names.
        train, test: what to learn from, and to be asked.
        bad: what was left out, such as boxes without an area.
    """

    classes: tuple[str, ...]
    train: list[Picture]
    test: list[Picture]
    bad: Bad = field(default_factory=list)


def open_pictures(root: Path, masks: bool = False) -> Pictures:
    """Images with boxes: Pascal VOC's XML or COCO's JSON.

    VOC: `Annotations/x.xml`, `JPEGImages/x.jpg` and `ImageSets/Main/<split>.txt`, in the folder or in its only
    subfolder. The first pixel is 1 there and 0 here, and "difficult" objects are crowds.

    COCO: `annotations/instances_<split>*.json`, `annotations/<split>.json`, `<split>.json` or
    `<split>/_annotations.coco.json`, with the images in a folder named as the split, in `images/<split>` or `images`,
    or beside the file.

    With a test split, val is learned from too, for nothing is chosen with it; without, val is the test. Test images
    are never learned from, whatever other splits they are in.

    Args:
        root: the folder.
        masks: whether every object must have a mask.

    Raises:
        UserError: neither layout, annotations that cannot be read, or no masks.
    """
    _check_folder(root)
    voc = [f for f in (root, *_only_folder(root)) if (f / "Annotations").is_dir() and (f / "JPEGImages").is_dir()]
    if voc and masks:
        raise UserError(f"{root} is in Pascal VOC's format, which has no masks of objects: give annotations as COCO's.")
    found = _open_voc(voc[0]) if voc else _open_coco(root, masks)
    asked = {picture.path for picture in found.test}
    train = [p for p in found.train if p.path not in asked]
    if len(train) < len(found.train):
        twice = f"{len(found.train) - len(train)} images to train are test images too"
        if not train:
            raise UserError(f"{root} has no images to train but those to test: give others in one of the lists.")
        found = replace(found, train=train, bad=[*found.bad, (str(root), f"{twice}, and are not learned from")])
    for name, part in (("train", found.train), ("test", found.test)):
        if not any(not thing.crowd for picture in part for thing in picture.things):
            raise UserError(f"{root} has no objects in its images to {name}.")
    return found


def _open_voc(root: Path) -> Pictures:
    lists = {}
    for name in ("train", "val", "trainval", "test"):
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            lists[name] = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    train = lists.get("train", lists.get("trainval"))
    if "test" in lists and train is not None:
        train, test = list(dict.fromkeys([*train, *lists.get("val", [])])), lists["test"]
    elif train is not None and "train" in lists and "val" in lists:
        test = lists["val"]
    else:
        raise UserError(
            f"{root / 'ImageSets' / 'Main'} needs train.txt, and test.txt or val.txt, with an image's name in "
            "each line."
        )
    images = {p.stem: p for p in _images(root / "JPEGImages")}
    bad: Bad = []
    read = {name: _read_voc(root / "Annotations" / f"{name}.xml", bad) for name in dict.fromkeys([*train, *test])}
    classes = tuple(sorted({name for _, found in read.values() for name, *_ in found}))

    def pictures(names: list[str]) -> list[Picture]:
        found = []
        for name in names:
            if name not in images:
                bad.append((name, f"there is no image of this name in {root / 'JPEGImages'}"))
                continue
            size, boxes = read[name]
            things = tuple(Thing(b, classes.index(c), (b[2] - b[0]) * (b[3] - b[1]), hard) for c, b, hard in boxes)
            found.append(Picture(images[name], size, things))
        return found

    return Pictures(classes, pictures(train), pictures(test), bad)


_Box = tuple[float, float, float, float]


def _read_voc(path: Path, bad: Bad) -> tuple[tuple[int, int], list[tuple[str, _Box, bool]]]:
    """Height and width, and for each object its class, its box, and whether it is difficult."""
    try:
        top = ElementTree.parse(path).getroot()
        w, h = int(_text(top, "size/width")), int(_text(top, "size/height"))
        found: list[tuple[str, _Box, bool]] = []
        for thing in top.iter("object"):
            left, upper, right, lower = (float(_text(thing, f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            box = _inside((left - 1, upper - 1, right, lower), h, w)
            if right <= left or lower <= upper or box is None:
                bad.append((str(path), f"a box without an area ({left:g}, {upper:g}, {right:g}, {lower:g})"))
                continue
            found.append((_text(thing, "name"), box, thing.findtext("difficult", "0").strip() == "1"))
    except FileNotFoundError:
        raise UserError(f"There is no {path}, for an image that a split names.") from None
    except (OSError, ElementTree.ParseError, ValueError) as e:
        raise UserError(f"{path} is not an annotation in Pascal VOC's format ({e}).") from None
    return (h, w), found


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if not found or not found.strip():
        raise ValueError(f"it has no {path}")
    return found.strip()


def _open_coco(root: Path, masks: bool) -> Pictures:
    files = {name: _coco_file(root, name) for name in _SPLITS}
    if files["train"] is None or (files["val"] or files["test"]) is None:
        raise UserError(
            f"{root} needs annotations in COCO's format for train, and for test or val, such as "
            "annotations/instances_train.json, or in Pascal VOC's: Annotations, JPEGImages and ImageSets/Main."
        )
    bad: Bad = []
    known: dict[int, str] = {}
    parts = {name: _read_coco(root, file, masks, known, bad) for name, file in files.items() if file is not None}
    place = {k: i for i, k in enumerate(sorted(known))}
    labeled = {
        name: [replace(p, things=tuple(replace(t, label=place[t.label]) for t in p.things)) for p in pictures]
        for name, pictures in parts.items()
    }
    classes = tuple(known[k] for k in sorted(known))
    if "test" not in labeled:
        return Pictures(classes, labeled["train"], labeled["val"], bad)
    return Pictures(classes, labeled["train"] + labeled.get("val", []), labeled["test"], bad)


def _coco_file(root: Path, name: str) -> Path | None:
    for split_name in _SPLITS[name]:
        for pattern in (
            f"annotations/instances_{split_name}*.json",
            f"annotations/{split_name}.json",
            f"{split_name}.json",
            f"{split_name}/_annotations.coco.json",
        ):
            found = sorted(root.glob(pattern))
            if len(found) > 1:
                raise UserError(
                    f"{root} has several annotations to {name}, {found[0].name} and {found[1].name}: keep one."
                )
            if found:
                return found[0]
    return None


def _read_coco(root: Path, file: Path, masks: bool, known: dict[int, str], bad: Bad) -> list[Picture]:
    """Pictures whose labels are COCO's category ids, which are added to `known`."""
    found = _json(file)
    try:
        for category in found["categories"]:
            if known.setdefault(int(category["id"]), str(category["name"])) != str(category["name"]):
                raise ValueError(f"category {category['id']} has another name in another split")
        images = {int(i["id"]): i for i in found["images"]}
        things: dict[int, list[Thing]] = {k: [] for k in images}
        for a in found["annotations"]:
            image = images[int(a["image_id"])]
            if int(a["category_id"]) not in known:
                raise ValueError(f"annotation {a.get('id')} is of category {a['category_id']}, which is not listed")
            x, y, w, h = (float(v) for v in a["bbox"])
            size = int(image["height"]), int(image["width"])
            box = _inside((x, y, x + w, y + h), *size)
            if box is None:
                bad.append((str(file), f"annotation {a.get('id')} has a box without an area"))
                continue
            shape = a.get("segmentation") if masks else None
            if masks and not _is_segmentation(shape, size):
                raise ValueError(f"annotation {a.get('id')} has no mask that could be read")
            area = float(a.get("area", w * h))
            things[int(image["id"])].append(Thing(box, int(a["category_id"]), area, bool(a.get("iscrowd", 0)), shape))
        named = [(k, _within(str(i["file_name"])), (int(i["height"]), int(i["width"]))) for k, i in images.items()]
    except (KeyError, TypeError, ValueError) as e:
        why = f"{e} is missing" if isinstance(e, KeyError) else e
        raise UserError(f"{file} is not an annotation in COCO's format: {why}.") from None
    split_name = file.parent.name if file.name.startswith("_") else file.stem.removeprefix("instances_")
    folders = (root / split_name, root / "images" / split_name, root / "images", file.parent, root)
    base = next((f for f in folders for _, name, _ in named[:1] if (f / name).is_file()), None)
    if named and base is None:
        raise UserError(f"{file} is about {named[0][1]}, which is in none of {', '.join(str(f) for f in folders)}.")
    return [Picture((base or root) / name, size, tuple(things[k])) for k, name, size in named]


def _is_segmentation(shape: Any, size: tuple[int, int]) -> bool:
    """Whether it is polygons of three points or more, or a run-length encoding of that size."""
    if isinstance(shape, dict):
        return isinstance(shape.get("counts"), str | list) and list(shape.get("size", ())) == list(size)
    return isinstance(shape, list) and bool(shape) and all(isinstance(p, list) and len(p) >= 6 for p in shape)


def _within(name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the image {name} is outside of its folder")
    return path


def _inside(box: _Box, h: int, w: int) -> _Box | None:
    """The part of a box within the image, None if there is none."""
    left, top, right, bottom = max(0.0, box[0]), max(0.0, box[1]), min(float(w), box[2]), min(float(h), box[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


# -- sequences ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """A sequence of frames, in order, with the masks of some of them, the first one's among them.

    Attributes:
        name: of its folder.
        frames: the files.
        masks: by the frame's place.
    """

    name: str
    frames: list[Path]
    masks: dict[int, Path]


def open_videos(root: Path) -> tuple[list[Video], Bad]:
    """Sequences: `frames/<name>/*.jpg` with `masks/<name>/*.png`, or DAVIS's `JPEGImages` and `Annotations`.

    DAVIS's folders may have `480p` in between, and if there is `ImageSets/2017/val.txt` (or 2016), its sequences are
    taken. A mask is named as its frame. Sequences of less than three frames, and those without a mask of the first
    frame, are left out.

    Raises:
        UserError: another layout, or no sequence that can be used.
    """
    _check_folder(root)
    homes = [
        (root / a / size, root / b / size)
        for a, b in (("frames", "masks"), ("JPEGImages", "Annotations"))
        for size in ("480p", "")
    ]
    home = next(((a, b) for a, b in homes if a.is_dir() and b.is_dir()), None)
    if home is None:
        raise UserError(
            f"{root} needs sequences as frames/<name>/*.jpg and masks/<name>/*.png, or as DAVIS has them: "
            "JPEGImages/480p and Annotations/480p."
        )
    names = sorted(p.name for p in home[0].iterdir() if p.is_dir() and not p.name.startswith("."))
    for year in ("2017", "2016"):
        listed = root / "ImageSets" / year / "val.txt"
        if listed.is_file() and home[0].parent.name == "JPEGImages":
            names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            break
    found, bad = [], list[tuple[str, str]]()
    for name in names:
        frames = _images(home[0] / name) if (home[0] / name).is_dir() else []
        masks = {p.stem: p for p in _images(home[1] / name)} if (home[1] / name).is_dir() else {}
        marked = {i: masks[p.stem] for i, p in enumerate(frames) if p.stem in masks}
        if len(frames) < 3:
            bad.append((name, f"the sequence has {len(frames)} frames: it needs three"))
        elif 0 not in marked:
            bad.append((name, f"the first frame, {frames[0].name}, has no mask"))
        elif not marked.keys() & set(range(1, len(frames) - 1)):
            bad.append((name, "no frame between the first and the last has a mask"))
        else:
            found.append(Video(name, frames, marked))
    if not found:
        reason = f" ({bad[0][0]}: {bad[0][1]})" if bad else ""
        raise UserError(f"{root} has no sequence with masks that could be used{reason}.")
    return found, bad


# -- files -------------------------------------------------------------------------------------------------------


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        advice = "unpack it first" if root.is_file() else "look for a typing error in it"
        raise UserError(f"{root} is not a folder: {advice}.")


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_image(p.name) and not p.name.startswith("."))


def _only_folder(root: Path) -> Iterable[Path]:
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return folders if len(folders) == 1 else []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as JSON ({e}).") from None
