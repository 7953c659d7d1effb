"""Images with boxes and masks of objects, in Pascal VOC's and COCO's layouts, for detection."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from manyviews.data.decode import PLUGINS, BadImage, as_rgb, decode
from manyviews.data.left import listed
from manyviews.errors import UserError, printable
from manyviews.evaluation.dense.files import (
    SPLITS,
    Bad,
    by_stem,
    check_folder,
    images_in,
    is_file,
    only_folder,
    read_json,
)

_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Thing:
    """An object in an image.

    Attributes:
        box: left, top, right and bottom edge in pixels; the first column is from 0 to 1.
        label: class, from 0.
        area: area in pixels, which makes it small, medium or large.
        crowd: whether it is a group, or too difficult: nothing learns from it, and finding it is neither right nor
            wrong.
        segmentation: COCO's polygons or run-length encoding; None where there are boxes only.
    """

    box: tuple[float, float, float, float]
    label: int
    area: float
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True)
class Picture:
    """An image and its objects.

    Attributes:
        path: the file.
        size: height and width in pixels, according to the annotations.
        things: objects in it.
    """

    path: Path
    size: tuple[int, int]
    things: tuple[Thing, ...]

    def read(self) -> Image.Image:
        """The image. Raises BadImage: it cannot be read, or its size is not that of the annotations."""
        picture, found = decode(self.path)
        if found != self.size:
            raise BadImage(f"it is {found[1]}x{found[0]}, and its annotations are for {self.size[1]}x{self.size[0]}")
        return as_rgb(picture)


@dataclass(frozen=True)
class Pictures:
    """A set for object detection.

    Attributes:
        classes: names of the classes.
        train, test: images to learn from, and to test on.
        bad: annotations and images that were left out, such as boxes without an area.
        notes: sentences about what was assumed.
    """

    classes: tuple[str, ...]
    train: list[Picture]
    test: list[Picture]
    bad: Bad = field(default_factory=list)
    notes: tuple[str, ...] = ()


def open_pictures(root: str | Path | Sequence[str | Path], masks: bool = False) -> Pictures:
    """Images with boxes: Pascal VOC's XML or COCO's JSON.

    VOC: `Annotations/x.xml`, `JPEGImages/x.jpg` and `ImageSets/Main/<split>.txt`, in the folder or in its only
    subfolder. The first pixel is 1 there and 0 here, and "difficult" objects are crowds.

    COCO: `annotations/instances_<split>*.json`, `annotations/<split>.json`, `<split>.json` or
    `<split>/_annotations.coco.json`, with the images in a folder named as the split, in `images/<split>` or `images`,
    or next to the file.

    With a test split, val is learned from too, because nothing is chosen with it; without, val is the test. Test
    images are never learned from, whatever other splits they are in.

    Several folders are one set, as VOC 2007 and 2012 are for detection: train and val of all of them are learned from,
    and the test images are those of the folders that have a test split.

    Boxes and masks are for images as they are shown. If the width and height of an annotation are those of the pixels
    as they are stored, and the image's EXIF orientation turns it, boxes and polygons are turned too.

    Args:
        root: the folder, or several.
        masks: whether every object must have a mask.

    Raises:
        UserError: neither layout, annotations that cannot be read, or no masks.
    """
    folders = [Path(root)] if isinstance(root, str | Path) else [Path(folder) for folder in root]
    where = " and ".join(map(str, folders))
    found = _turned(_together([_open(folder, masks, len(folders) == 1) for folder in folders], folders))
    if len(folders) > 1 and not found.test:
        raise UserError(f"Neither of {where} has a test split: one of several folders must have one.")
    tested = {picture.path for picture in found.test}
    train = [p for p in found.train if p.path not in tested]
    if len(train) < len(found.train):
        twice = f"{len(found.train) - len(train)} images to train are test images too"
        if not train:
            raise UserError(f"{where} has no images to train but those to test: give others in one of the lists.")
        found = replace(found, train=train, bad=[*found.bad, (where, f"{twice}, and are not learned from")])
    for name, part in (("train", found.train), ("test", found.test)):
        if not any(not thing.crowd for picture in part for thing in picture.things):
            raise UserError(f"{where} has no objects in its images to {name}.")
    return found


def is_voc(folder: Path) -> bool:
    """Whether a folder is in Pascal VOC's layout."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _open(root: Path, masks: bool, alone: bool) -> Pictures:
    """One folder. Unless it is alone, it may have no test images, and its validation images are learned from."""
    check_folder(root)
    voc = [f for f in (root, *only_folder(root)) if is_voc(f)]
    if voc and masks:
        raise UserError(f"{root} is in Pascal VOC's format, which has no masks of objects: give annotations as COCO's.")
    return _open_voc(voc[0], alone) if voc else _open_coco(root, masks, alone)


def _together(parts: Sequence[Pictures], folders: Sequence[Path]) -> Pictures:
    """Several sets as one, whose classes are known by their names."""
    if len(parts) == 1:
        return parts[0]
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    notes = [note for part in parts for note in part.notes]
    for part, folder in zip(parts, folders, strict=True):
        lacks = [name for name in classes if name not in part.classes]
        if lacks:
            notes.append(f"{folder} has no {listed(lacks)}: where its images show some, they are taken for background.")

    def numbered(part: Pictures, pictures: list[Picture]) -> list[Picture]:
        number = [classes.index(name) for name in part.classes]
        return [replace(p, things=tuple(replace(t, label=number[t.label]) for t in p.things)) for p in pictures]

    train = [p for part in parts for p in numbered(part, part.train)]
    test = [p for part in parts for p in numbered(part, part.test)]
    return Pictures(classes, train, test, [one for part in parts for one in part.bad], tuple(notes))


def _open_voc(root: Path, alone: bool) -> Pictures:
    lists = {}
    for name in ("train", "val", "trainval", "test"):
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        if file.is_file():
            lists[name] = _names(file)
    train = lists.get("train", lists.get("trainval"))
    if "test" in lists and train is not None:
        train, test = list(dict.fromkeys([*train, *lists.get("val", [])])), lists["test"]
    elif train is not None and not alone:
        train, test = list(dict.fromkeys([*train, *lists.get("val", [])])), []
    elif train is not None and "train" in lists and "val" in lists:
        test = lists["val"]
    else:
        raise UserError(
            f"{root / 'ImageSets' / 'Main'} needs train.txt, and test.txt or val.txt, with an image's name in "
            "each line."
        )
    bad: Bad = []
    images = by_stem(images_in(root / "JPEGImages"), bad)
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


def _names(file: Path) -> list[str]:
    """The images' names in a list of VOC, one in each line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file} cannot be read ({e}).") from None
    names = [line.split()[0] for line in lines if line.strip()]
    strange = next((name for name in names if len(name) > 200 or not name.isprintable() or {*name} & {*"/\\"}), None)
    if strange is not None:
        raise UserError(f"{file} has '{printable(strange, 60)}', which is no name of an image in JPEGImages.")
    return names


_Box = tuple[float, float, float, float]


def _read_voc(path: Path, bad: Bad) -> tuple[tuple[int, int], list[tuple[str, _Box, bool]]]:
    """Height and width, and for each object its class, its box, and whether it is difficult."""
    try:
        top = ElementTree.parse(path).getroot()
        w, h = int(_text(top, "size/width")), int(_text(top, "size/height"))
        found: list[tuple[str, _Box, bool]] = []
        for thing in top.iter("object"):
            left, upper, right, lower = (_finite(_text(thing, f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            box = _inside((left - 1, upper - 1, right, lower), h, w)
            if right <= left or lower <= upper or box is None:
                bad.append((str(path), f"a box without an area ({left:g}, {upper:g}, {right:g}, {lower:g})"))
                continue
            found.append((_text(thing, "name"), box, thing.findtext("difficult", "0").strip() == "1"))
    except FileNotFoundError:
        raise UserError(f"There is no {path}, for an image that a split names.") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as e:
        raise UserError(f"{path} is not an annotation in Pascal VOC's format ({e}).") from None
    return (h, w), found


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if not found or not found.strip():
        raise ValueError(f"it has no {path}")
    return found.strip()


def _open_coco(root: Path, masks: bool, alone: bool) -> Pictures:
    files = {name: _coco_file(root, name) for name in SPLITS}
    if files["train"] is None or (alone and (files["val"] or files["test"]) is None):
        raise UserError(
            f"{root} needs annotations in COCO's format for train, and for test or val, such as "
            "annotations/instances_train.json, or in Pascal VOC's: Annotations, JPEGImages and ImageSets/Main."
        )
    bad: Bad = []
    known: dict[int, str] = {}
    parts = {name: _read_coco(root, file, masks, known, bad) for name, file in files.items() if file is not None}
    position = {k: i for i, k in enumerate(sorted(known))}
    labeled = {
        name: [replace(p, things=tuple(replace(t, label=position[t.label]) for t in p.things)) for p in pictures]
        for name, pictures in parts.items()
    }
    classes = tuple(known[k] for k in sorted(known))
    if "test" not in labeled and alone:
        return Pictures(classes, labeled["train"], labeled["val"], bad)
    return Pictures(classes, labeled["train"] + labeled.get("val", []), labeled.get("test", []), bad)


def _coco_file(root: Path, name: str) -> Path | None:
    for split_name in SPLITS[name]:
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
    found = read_json(file)
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
            x, y, w, h = (_finite(v) for v in a["bbox"])
            size = int(image["height"]), int(image["width"])
            box = _inside((x, y, x + w, y + h), *size)
            if box is None:
                bad.append((str(file), f"annotation {a.get('id')} has a box without an area"))
                continue
            shape = a.get("segmentation") if masks else None
            if masks and not _is_segmentation(shape, size):
                raise ValueError(f"annotation {a.get('id')} has no mask that could be read")
            area = _finite(a.get("area", w * h))
            things[int(image["id"])].append(Thing(box, int(a["category_id"]), area, bool(a.get("iscrowd", 0)), shape))
        sizes = {k: (int(i["height"]), int(i["width"])) for k, i in images.items()}
        names = {k: _tails(root, str(i["file_name"])) for k, i in images.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        why = f"{e} is missing" if isinstance(e, KeyError) else e
        raise UserError(f"{file} is not an annotation in COCO's format: {printable(why, 200)}.") from None
    split_name = file.parent.name if file.name.startswith("_") else file.stem.removeprefix("instances_")
    folders = (root / split_name, root / "images" / split_name, root / "images", file.parent, root)
    places = {k: next((f / t for f in folders for t in tails if is_file(f / t)), None) for k, tails in names.items()}
    missing = [names[k][0] for k, place in places.items() if place is None]
    if len(missing) == len(names) > 0:
        raise UserError(f"{file} is about {missing[0]}, which is in none of {', '.join(str(f) for f in folders)}.")
    bad += [(str(file), f"there is no image {name}") for name in missing]
    return [Picture(place, sizes[k], tuple(things[k])) for k, place in places.items() if place is not None]


def _finite(value: Any) -> float:
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value} is no length")
    return found


def _is_segmentation(shape: Any, size: tuple[int, int]) -> bool:
    """Whether it is polygons of three points or more near the image, or run lengths that cover it exactly.

    The C code that draws them checks neither, and would write beyond the mask.
    """
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if isinstance(counts, str):
            counts = _run_lengths(counts)
        if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
            return False
        return sum(counts) == size[0] * size[1] and list(shape.get("size", ())) == list(size)
    if not isinstance(shape, list) or not shape or not all(isinstance(p, list) and len(p) >= 6 for p in shape):
        return False
    far = 10 * max(size)
    return all(isinstance(v, int | float) and -far <= v <= far for p in shape for v in p)


def _run_lengths(text: str) -> list[int] | None:
    """The run lengths in COCO's text: groups of five bits, the lowest first, as differences to the last but one."""
    found: list[int] = []
    value = shift = 0
    for c in map(ord, text):
        if not 48 <= c < 112 or shift > 60:
            return None
        value |= (c - 48 & 31) << shift
        shift += 5
        if c - 48 & 32:  # more of it follows
            continue
        if c - 48 & 16:  # negative
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return None if shift else found


def _tails(root: Path, name: str) -> list[PurePosixPath]:
    """The paths at which an image may be. Absolute ones are of another machine: their ends may be right here."""
    clean = name.replace("\\", "/")
    path = PurePosixPath(clean)
    if ".." in path.parts:
        raise ValueError(f"the image {name} is outside of its folder")
    if not path.is_absolute() and not _DRIVE.match(clean):
        return [path]
    parts = path.parts[1:]
    return [PurePosixPath(*parts[k:]) for k in range(len(parts))]


def _turned(found: Pictures) -> Pictures:
    """The pictures with things where they are seen, if annotations are for the pixels as they are stored."""
    pictures = {p.path: p for p in (*found.train, *found.test)}
    with ThreadPoolExecutor() as pool:
        known = dict(zip(pictures, pool.map(_header, pictures), strict=True))
    # With another width than height the size tells which pixels an annotation means; that of others follows.
    telling = [p for p in pictures.values() if known[p.path][1] >= 5 and p.size[0] != p.size[1]]
    stored = [p for p in telling if known[p.path][0] == p.size]
    turn = {p.path for p in stored}
    unsure = [p for p in pictures.values() if known[p.path][1] > 1 and p not in telling and known[p.path][0] == p.size]
    if 2 * len(stored) > len(telling):
        turn |= {p.path for p in unsure}
    notes, bad = list(found.notes), list(found.bad)
    if turn:
        notes.append(
            f"{len(turn)} images are turned by their EXIF orientation, and their annotations are for the pixels as "
            "they are stored: boxes are turned with them."
        )
    left = len(unsure) if unsure and not turn else 0
    if left:
        notes.append(f"{left} images are turned by their EXIF orientation: boxes are taken to be for the turned image.")

    def one(picture: Picture) -> list[Picture]:
        if picture.path not in turn:
            return [picture]
        if any(isinstance(t.segmentation, dict) for t in picture.things):
            bad.append((str(picture.path), "its masks are run lengths of the pixels before they are turned upright"))
            return []
        return [_upright(picture, known[picture.path][1])]

    train, test = ([q for p in part for q in one(p)] for part in (found.train, found.test))
    return replace(found, train=train, test=test, bad=bad, notes=tuple(notes))


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width as they are stored, and the EXIF orientation; zeros and 1 if the file cannot be read."""
    try:
        with Image.open(path, formats=PLUGINS) as image:
            size = image.height, image.width
            return size, int(image.getexif().get(0x0112, 1)) if "exif" in image.info else 1
    except Exception:  # said when the image is read
        return (0, 0), 1


def _upright(picture: Picture, turned: int) -> Picture:
    h, w = picture.size

    def point(x: float, y: float) -> tuple[float, float]:
        x, y = (w - x if turned in (2, 3, 7, 8) else x), (h - y if turned in (3, 4, 6, 7) else y)
        return (y, x) if turned >= 5 else (x, y)

    def thing(one: Thing) -> Thing:
        (x, y), (p, q) = point(*one.box[:2]), point(*one.box[2:])
        shape = one.segmentation
        if isinstance(shape, list):
            shape = [[v for k in range(0, len(s) - 1, 2) for v in point(s[k], s[k + 1])] for s in shape]
        return replace(one, box=(min(x, p), min(y, q), max(x, p), max(y, q)), segmentation=shape)

    return Picture(picture.path, (w, h) if turned >= 5 else (h, w), tuple(map(thing, picture.things)))


def _inside(box: _Box, h: int, w: int) -> _Box | None:
    """The part of a box within the image, None if there is none."""
    left, top, right, bottom = max(0.0, box[0]), max(0.0, box[1]), min(float(w), box[2]), min(float(h), box[3])
    return (left, top, right, bottom) if left < right and top < bottom else None
