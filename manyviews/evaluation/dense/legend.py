"""What the values of masks mean: which class each value or color stands for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from manyviews.data.decode import PLUGINS, BadImage
from manyviews.data.left import listed as some
from manyviews.data.reading import MAX_PIXELS
from manyviews.data.room import ROOM
from manyviews.errors import UserError
from manyviews.evaluation.dense.files import read_json

IGNORED = -1
"""Class of pixels that do not count."""

_IGNORE = 255
_TOPS = (255, 65535)  # white, which programs write for "object"
_LISTS = ("classes.txt", "labelmap.txt", "class_dict.csv", "label_colors.txt")

# "sky 70 130 180", "sky,70,130,180", CVAT's "sky:70,130,180::", and "70 130 180 sky".
_NAME_FIRST = re.compile(r"(.*\S)[\s,:;]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,:;]*")
_COLOR_FIRST = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,:;]+(.*\S)")


@dataclass(frozen=True)
class Legend:
    """What the values of masks mean.

    Attributes:
        classes: names of the classes.
        values: class of each value in the files; `IGNORED` for values that do not count.
        colors: value of each color (red * 65536 + green * 256 + blue), if the masks are in color.
        notes: sentences about what was assumed.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int]
    colors: Mapping[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Listed:
    """What a folder says about its masks.

    Attributes:
        where: the file that says it.
        names: names of the classes, including those that do not count.
        ignored: values that do not count.
        values: value of each name, if it is not its position.
        colors: color of each name.
    """

    where: str = "classes.txt"
    names: list[str] = field(default_factory=list)
    ignored: set[int] = field(default_factory=set)
    values: list[int] = field(default_factory=list)
    colors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """What one mask holds.

    Attributes:
        kind: "index", "palette", "gray" (a copy in color), "color" or "bad".
        values: its values, or its colors if it is in color.
        palette: color of each value that it has, if it has a palette.
        reason: why it is bad.
    """

    kind: str
    values: frozenset[int] = frozenset()
    palette: Mapping[int, int] = field(default_factory=dict)
    reason: str = ""


def read_mask(path: Path, colors: Mapping[int, int] | None = None) -> np.ndarray:
    """The values of a mask in its file, without the colors of its palette: int32 `h w`.

    Args:
        path: the file. It may also be a gray picture in color, whose channels are the same.
        colors: value of each color, for masks in color.

    Raises:
        BadImage: it cannot be used, with the reason.
    """
    with _opened(path) as image:
        if colors is not None:
            return _of_colors(_packed(image), colors)
        values = _values(image)
        if values is None:
            raise BadImage("its mask is in color: it must have one channel, whose values are the classes")
        return values


def look(path: Path) -> Look:
    """What a mask holds."""
    try:
        with _opened(path) as image:
            values = _values(image)
            if values is None:
                return Look("color", frozenset(np.unique(_packed(image)).tolist()))
            found = frozenset(np.unique(values).tolist())
            if image.mode in ("P", "PA"):
                palette = image.getpalette("RGB") or []
                whole = {v: palette[3 * v : 3 * v + 3] for v in found}
                return Look("palette", found, {v: _pack(*rgb) for v, rgb in whole.items() if len(rgb) == 3})
            return Look("gray" if image.mode in ("RGB", "RGBA") else "index", found)
    except BadImage as error:
        return Look("bad", reason=error.reason)


class _opened:
    """A mask's picture; errors while it is used are reasons."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = ExitStack()

    def __enter__(self) -> Image.Image:
        try:
            self._turn.enter_context(ROOM.turn())
            self._image = Image.open(self._path, formats=PLUGINS)
            if self._image.width * self._image.height > MAX_PIXELS:
                raise BadImage(f"its mask is over {MAX_PIXELS:,} pixels")
            if self._image.format == "JPEG":
                raise BadImage("its mask is a JPEG, which changes values: save masks as PNG, from the original ones")
            ROOM.claim(16 * self._image.width * self._image.height, "mask")
            self._image.load()
        except BadImage:
            self._turn.close()
            raise
        except FileNotFoundError:
            self._turn.close()
            raise BadImage("its mask is gone") from None
        except Exception as error:  # Pillow raises nearly everything on corrupt files
            self._turn.close()
            raise BadImage(f"its mask cannot be read ({str(error) or type(error).__name__})") from None
        return self._image

    def __exit__(self, *_: object) -> None:
        self._image.close()
        self._turn.close()


def _values(image: Image.Image) -> np.ndarray | None:
    """int32 `h w`; None for a mask in color."""
    values = np.asarray(image)
    if values.ndim == 3 and image.mode in ("LA", "PA", "RGBA"):
        if values[..., -1].min() < 255:
            raise BadImage("its mask has transparent pixels: write values without alpha, and one for what is left out")
        values = values[..., :-1]
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim == 3:
        return None
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise BadImage("its mask has fractions: values must be the numbers of classes")
    elif values.dtype.kind not in "uib":
        raise BadImage(f"its mask is of the kind {image.mode}, which has no numbers of classes")
    if values.size and abs(int(values.max())) >= 2**31:
        raise BadImage("its mask has values over 2 billion")
    return values.astype(np.int32)


def _pack(red: int, green: int, blue: int) -> int:
    return (red << 16) | (green << 8) | blue


def _packed(image: Image.Image) -> np.ndarray:
    rgb = np.asarray(image.convert("RGB")).astype(np.int32)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _of_colors(packed: np.ndarray, colors: Mapping[int, int]) -> np.ndarray:
    found, positions = np.unique(packed, return_inverse=True)
    strange = [int(c) for c in found if int(c) not in colors]
    if strange:
        raise BadImage(f"its mask has the color {_shown(strange[0])}, which stands for no class")
    table = np.array([colors[int(c)] for c in found], dtype=np.int32)
    return table[positions.reshape(packed.shape)]


def _shown(color: int) -> str:
    return f"({color >> 16}, {color >> 8 & 255}, {color & 255})"


def read_list(root: Path) -> Listed:
    """What the folder says about its masks, in `dataset.json` or a list of names.

    Raises:
        UserError: it cannot be read.
    """
    described = root / "dataset.json"
    if described.is_file():
        found = read_json(described)
        facts = found if isinstance(found, dict) else {}
        names, extra, values = facts.get("classes", []), facts.get("ignore", []), facts.get("values", [])
        extra = extra if isinstance(extra, list) else [extra]
        good = names and isinstance(names, list) and all(isinstance(v, int) for v in extra)
        good = good and isinstance(values, list) and all(isinstance(v, int) for v in values)
        colors = facts.get("colors", [])
        if not good or (values and len(values) != len(names)) or not _are_colors(colors, len(names)):
            raise UserError(
                f'{described} must be as {{"classes": ["sky", "road"], "ignore": 255}}, with numbers, and may have '
                '"values": [0, 128] or "colors": [[70, 130, 180], [128, 64, 128]], one for each class.'
            )
        packed = [_pack(*color) for color in colors]
        return Listed("dataset.json", [str(n) for n in names], set(extra), values, packed)
    file = next((root / name for name in _LISTS if (root / name).is_file()), None)
    if file is None:
        return Listed()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file} cannot be read ({e}): it needs the name of a class in each line.") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if file.suffix == ".csv":
        lines = lines[1:]
    colored = [_colored(line) for line in lines]
    if lines and all(colored):
        return _with_ignored(Listed(file.name, [c[0] for c in colored if c], colors=[c[1] for c in colored if c]))
    return _with_ignored(Listed(file.name, lines))


def _are_colors(colors: object, count: int) -> bool:
    if not isinstance(colors, list) or (colors and len(colors) != count):
        return False
    return all(
        isinstance(c, list) and len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colors
    )


def _colored(line: str) -> tuple[str, int] | None:
    """A name and its color."""
    if match := _COLOR_FIRST.fullmatch(line):
        *rgb, name = match.groups()
    elif match := _NAME_FIRST.fullmatch(line):
        name, *rgb = match.groups()
    else:
        return None
    numbers = [int(v) for v in rgb]
    return (name.rstrip(",:; "), _pack(*numbers)) if max(numbers) <= 255 else None


def _with_ignored(found: Listed) -> Listed:
    found.ignored = {k for k, n in enumerate(found.names) if n.lower().replace(" ", "").endswith("(ignore)")}
    return found


def legend(root: Path, listed: Listed, ignore: int | None, looks: Sequence[Look]) -> Legend:
    """What the values mean, from the folder's list and a look at masks; without a list, their values are the names.

    Raises:
        UserError: the values do not fit the list, with the cure.
    """
    good = [one for one in looks if one.kind != "bad"]
    for reason, count in Counter(one.reason for one in looks if one.kind == "bad").items():
        if 2 * count > len(looks):
            raise UserError(f"{count} of {len(looks)} masks in {root} cannot be used. Of each, {reason}.")
    notes: list[str] = []
    copies = sum(one.kind == "gray" for one in good)
    if copies:
        notes.append(f"{copies} masks are gray pictures in color: they are read as gray.")
    in_color = [one for one in good if one.kind == "color"]
    if listed.colors and (2 * len(in_color) > len(good) or _mixed_palettes(good) or _grays(good, listed)):
        return _by_color(root, listed, ignore, notes)
    if 2 * len(in_color) > len(good):
        colors = sorted(Counter(c for one in in_color for c in one.values).items(), key=lambda c: -c[1])
        there = some(_shown(c) for c, _ in colors)
        raise UserError(
            f"The masks in {root} are in color ({there}), and nothing says what the colors mean: write each class "
            "with its color into classes.txt, such as 'sky 70 130 180'."
        )
    if _mixed_palettes(good):
        raise UserError(
            f"The masks in {root} have palettes that differ, so a value is another class in each: write each class "
            "with its color into classes.txt, such as 'sky 70 130 180'."
        )
    found = Counter(v for one in good if one.kind != "color" for v in one.values)
    explicit = listed.ignored | (set() if ignore is None else {ignore})
    return _by_value(root, listed, explicit, found, len(good), notes)


def _mixed_palettes(looks: Collection[Look]) -> bool:
    """Whether a value has another color in another mask."""
    known: dict[int, int] = {}
    return any(known.setdefault(v, c) != c for one in looks for v, c in one.palette.items())


def _grays(looks: Collection[Look], listed: Listed) -> bool:
    """Whether the values are gray levels that the list names as colors, and not the classes' numbers."""
    values = {v for one in looks if one.kind in ("index", "gray") for v in one.values}
    grays = {_pack(v, v, v) for v in values if 0 <= v <= 255}
    return bool(values) and max(values) >= len(listed.names) and grays <= set(listed.colors)


def _by_color(root: Path, listed: Listed, ignore: int | None, notes: list[str]) -> Legend:
    twice = [c for c, n in Counter(listed.colors).items() if n > 1]
    if twice:
        raise UserError(f"{root / listed.where} gives the color {_shown(twice[0])} to several classes.")
    counted = [k for k in range(len(listed.names)) if k not in listed.ignored and k != ignore]
    _enough(root, counted)
    values = {k: counted.index(k) if k in counted else IGNORED for k in range(len(listed.names))}
    notes.append(f"The masks are read by the colors in {listed.where}.")
    colors = {color: k for k, color in enumerate(listed.colors)}
    return Legend(tuple(listed.names[k] for k in counted), values, colors, tuple(notes))


def _by_value(
    root: Path, listed: Listed, explicit: set[int], found: Counter[int], masks: int, notes: list[str]
) -> Legend:
    names, places = listed.names, listed.values or list(range(len(listed.names)))
    top = next((top for top in _TOPS if set(found) == {0, top} and top not in places), None)
    if top is not None:
        if len(names) == 2 and top not in explicit and not explicit & {0, 1}:
            notes.append(f"The masks hold 0 and {top} only: {top} is taken for '{names[1]}'.")
            return Legend(tuple(names), {0: 0, top: 1}, None, tuple(notes))
        raise UserError(
            f"The masks in {root} hold 0 and {top} only, and {top} usually marks pixels that do not count: if {top} is "
            "the object, write 'background' and 'object' into classes.txt, in two lines, and do not ignore it."
        )
    ignored = set(explicit)
    if _IGNORE not in places:
        ignored.add(_IGNORE)
    counted_values = {v: n for v, n in found.items() if v not in ignored}
    if not names:
        places = sorted(v for v in counted_values if v >= 0)
        names = [str(v) for v in places]
    elif not listed.values and counted_values and min(counted_values) == 1 and max(counted_values) == len(names):
        places = [k + 1 for k in range(len(names))]
        ignored = {v + 1 for v in listed.ignored} | (explicit - listed.ignored) | ({_IGNORE} - set(places))
        notes.append(f"The masks hold 1 to {len(names)} and never 0: the classes are counted from 1.")
    else:
        _check_known(root, listed, counted_values, places, masks)
    counted = [k for k, value in enumerate(places) if value not in ignored]
    _enough(root, counted)
    values = dict.fromkeys(ignored, IGNORED) | {places[k]: i for i, k in enumerate(counted)}
    return Legend(tuple(names[k] for k in counted), values, None, tuple(notes))


def _enough(root: Path, counted: Sequence[int]) -> None:
    if len(counted) < 2:
        raise UserError(f"The masks in {root} have {len(counted)} classes: there must be two or more to tell apart.")


def _check_known(root: Path, listed: Listed, found: Mapping[int, int], places: Sequence[int], masks: int) -> None:
    """Raises UserError if most masks have a value that the list does not have."""
    strange = {value: count for value, count in found.items() if value not in places}
    if not strange or 2 * max(strange.values()) <= masks:
        return  # named image by image
    value, count = max(strange.items(), key=lambda item: item[1])
    there, names = sorted(found), listed.names
    cure = f'list more names, or say in dataset.json which values count, with "values" and "ignore": {value}'
    if len(there) == len(names):
        as_they_are = json.dumps({"classes": names, "values": there})
        cure = f"if these are the classes in this order, write dataset.json: {as_they_are}"
    elif there[0] == 0 and there[-1] == len(names) and not listed.values:
        cure = f"if the names begin at 1, put 'background' or 'unlabeled (ignore)' as the first line of {listed.where}"
    raise UserError(
        f"{count} of {masks} masks in {root} have the value {value}, and {root / listed.where} has {len(names)} names, "
        f"for {places[0]} to {places[-1]} (the values are {some(map(str, there), 8)}): {cure}."
    )
