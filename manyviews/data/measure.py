"""What a sample of a data set's files holds, and black, white, mean and standard deviation for all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from manyviews.data.canvas import Progress, in_threads
from manyviews.data.decode import BadImage, Frame, Raw, count_frames, decode, examine
from manyviews.data.formats import HEAD, sniff
from manyviews.data.raster import Raster
from manyviews.data.reading import Reading
from manyviews.data.source import Source

_FILES = 64  # looked at for black and white
_PIXELS = 2**14  # of each of them
_IMAGES = 512  # for mean and standard deviation
_TAILS = (0.1, 99.9)  # percentiles that become black and white
_CHUNK = 64
_DARK = 8  # a sample that uses less than this part of the range is reported
_PLAIN = ("JPEG", "BMP", "HEIC, HEIF")  # always 8 bits, and one picture


@dataclass(frozen=True)
class Survey:
    """What a sample of a data set's files holds.

    Attributes:
        files: how many could be read.
        narrow: how many have 8 bits or fewer.
        types: how many of the others have which type, such as "uint16".
        whole: the range of their types; None if one of them says nothing about black and white.
        values: a sample of the others' values, without those that mean nothing.
        nothing: the share of values that mean nothing: "no data", not finite.
        stacks: how many hold several pictures.
        most: the most pictures of one.
    """

    files: int
    narrow: int
    types: dict[str, int]
    whole: tuple[float, float] | None
    values: np.ndarray
    nothing: float
    stacks: int
    most: int


def survey(source: Source, reading: Reading) -> Survey:
    """Look at some of a source's files, spread over it. The same files and pixels each time.

    Raises:
        Unreachable: a disk or a server fails.
    """
    chosen = np.linspace(0, len(source) - 1, min(_FILES, len(source))).astype(int).tolist()
    found = [x for part in in_threads(partial(_look, source, reading), [chosen]) for x in part if x is not None]
    wide = [x for x in found if x.type]
    wholes = [x.whole for x in wide if x.whole is not None]
    values = np.concatenate([x.values for x in wide]) if wide else np.empty(0)
    return Survey(
        files=len(found),
        narrow=len(found) - len(wide),
        types=dict(Counter(x.type for x in wide)),
        whole=(0.0, max(top for _, top in wholes)) if wholes and len(wholes) == len(wide) else None,
        values=values,
        nothing=1 - len(values) / max(1, sum(x.asked for x in wide)),
        stacks=sum(x.frames > 1 for x in found),
        most=max((x.frames for x in found), default=1),
    )


@dataclass(frozen=True)
class _Look:
    """What one file holds: its pictures, and if it has more than 8 bits its type, and some of the `asked` values."""

    frames: int
    type: str = ""
    whole: tuple[float, float] | None = None
    asked: int = 0
    values: np.ndarray = field(default_factory=lambda: np.empty(0))


def _look(source: Source, reading: Reading, i: int) -> _Look | None:
    try:
        raw = source.read(i)
        if _plain(raw):
            return _Look(1)
        raster = examine(raw, replace(reading, range=None))
    except BadImage:
        return None
    bands = _bands(raster, reading)
    if raster.narrow or not bands:
        return _Look(raster.frames)
    height, width = raster.values.shape[:2]
    places = np.arange(height * width)
    if len(places) > _PIXELS:
        places = np.sort(np.random.default_rng(i).choice(len(places), _PIXELS, replace=False))
    values = raster.values[places // width, places % width][:, bands].ravel()
    good = values[raster.holds_something(values)].astype(np.float64)
    return _Look(raster.frames, str(raster.values.dtype), raster.whole, values.size, good)


def _plain(raw: Raw) -> bool:
    """Whether a file has 8 bits and one picture, by its first bytes."""
    if isinstance(raw, Path):
        try:
            with raw.open("rb") as file:
                head = file.read(HEAD)
        except OSError:
            return False  # reading it whole will say what is wrong
    elif isinstance(raw, bytes):
        head = raw[:HEAD]
    else:
        return False
    kind = sniff(head)
    return kind is not None and kind.name in _PLAIN


def _bands(raster: Raster, reading: Reading) -> list[int]:
    """The bands of a raster that count: those that are read, or all of them but opacity."""
    if isinstance(reading.channels, tuple):
        return [band for band in reading.channels if band < raster.values.shape[2]]
    return list(range(raster.bands if reading.channels in (1, 3) else raster.values.shape[2]))


def measured(
    source: Source, reading: Reading, wanted: Literal["type", "auto"] = "type", cure: str = ""
) -> tuple[Reading, list[str]]:
    """How to read a data set: with black and white where its types do not say them, and what to tell people.

    A reading with a range keeps it. Otherwise "type" measures the range only if the type of some files has none, and
    "auto" for all files of more than 8 bits. Black and white are then percentiles of a sample.

    Args:
        source: the images.
        reading: what is asked for.
        wanted: when to measure.
        cure: how the user changes the range, with {} for it, such as "--set data.range={}".

    Returns:
        The reading, and sentences: the range, what it clips, a range that is hardly used, stacks of which one picture
        is taken.
    """
    if source.canvases is not None:
        return reading, []
    seen, notes = survey(source, reading), []
    if seen.stacks and reading.frames != "all":
        notes.append(
            f"{seen.stacks} of {seen.files} files looked at in {source.name} hold several pictures, up to {seen.most}: "
            f"only the {reading.frames} one of each is read. data.frames takes first, middle or all."
        )
    if not seen.types:
        if reading.range is not None and seen.files:
            notes.append(f"The images of {source.name} have 8 bits: they keep 0 and 255 as black and white.")
        return reading, notes
    kinds = ", ".join(f"{count} of {name}" for name, count in seen.types.items())
    looked = f"{sum(seen.types.values())} files of {source.name} ({kinds})"
    values, holes = _without_sentinels(seen.values)
    if not len(values):
        return reading, [*notes, f"{looked} hold no values."]
    low, high = (_rounded(v) for v in np.percentile(values, _TAILS))
    chosen, how = reading.range, "given"
    if chosen is None and (seen.whole is None or wanted == "auto"):
        chosen, how = (low, high if high > low else low + 1), "measured"
    if chosen is not None:
        clipped = float(((values < chosen[0]) | (values > chosen[1])).mean())
        nothing = seen.nothing + holes * (1 - seen.nothing)
        sentences = [
            f"Black is {chosen[0]:g} and white {chosen[1]:g} ({how}): {_percent(clipped)} of the values in {looked} "
            "lie outside and are clipped",
            f"{_percent(nothing)} hold no data and become 0" if nothing > 0 else "",
            f"the {seen.narrow} files of 8 bits keep 0 and 255" if seen.narrow else "",
            f"change it with {cure.format('LOW,HIGH')}" if cure else "",
        ]
        notes.append("; ".join(filter(None, sentences)) + ".")
    elif seen.whole is not None and high - low < (seen.whole[1] - seen.whole[0]) / _DARK:
        top = float(values.max())
        bits = next((b for b in range(1, 33) if top <= 2**b - 1), 32)
        advice = f": use {cure.format('auto')}, or {cure.format(f'0,{2**bits - 1}')}" if cure else ""
        notes.append(
            f"The values in {looked} lie between {_rounded(values.min()):g} and {_rounded(top):g} of "
            f"{seen.whole[1]:g}, so the images have little contrast{advice}."
        )
    return replace(reading, range=chosen), notes


def _percent(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:.2g} %"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _without_sentinels(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values without an extreme one that stands for no data, such as -9999, and its share.

    Such a value occurs often, and lies farther from all others than these are apart.
    """
    total = len(values)
    for _ in range(2):
        for extreme, others in ((values.min, values.max), (values.max, values.min)) if len(values) else ():
            end = extreme()
            rest = values[values != end]
            if not len(rest) or len(values) - len(rest) < max(2, 0.001 * len(values)):
                continue
            near = rest.min() if end < others() else rest.max()
            if abs(near - end) > max(np.ptp(rest), 1.0):
                values = rest
                break
    return values, 1 - len(values) / max(1, total)


def mean_and_std(
    source: Source, reading: Reading, progress: Progress | None = None
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation of each channel in [0, 1], over all pixels of some images, and how many images.

    Exact: pixels are bytes, and their sums are whole numbers. A channel that is the same everywhere has 1 as its
    standard deviation. Images of which none can be read have mean 0.5.
    """
    chosen = np.linspace(0, len(source) - 1, min(_IMAGES, len(source))).astype(int).tolist()
    parts = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    counts, images, done = np.zeros((reading.count, 256), dtype=np.int64), 0, 0
    for part in in_threads(partial(_histogram, source, reading), parts):
        for found in part:
            if found is not None:
                counts += found
                images += 1
        done += len(part)
        if progress is not None:
            progress(done, len(chosen))
    if not images:
        return (0.5,) * reading.count, (0.5,) * reading.count, 0
    levels, pixels = np.arange(256, dtype=np.float64), counts.sum(1)
    mean = counts @ levels / pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / pixels
    std = np.where(variance > 0, np.sqrt(variance) / 255, 1.0)
    return tuple(round(float(m) / 255, 6) for m in mean), tuple(max(1e-6, round(float(s), 6)) for s in std), images


def _histogram(source: Source, reading: Reading, i: int) -> np.ndarray | None:
    try:
        pixels = np.atleast_3d(np.asarray(decode(source.read(i), 512, source.stored(reading))[0]))
    except BadImage:
        return None
    return np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[2])])


def with_reading(source: Source, reading: Reading) -> Source:
    """The source with its files read in this way, one picture of each. Ready-made canvases stay as they are."""
    frames = "first" if reading.frames == "all" else reading.frames
    return source if source.canvases is not None else replace(source, reading=replace(reading, frames=frames))


def read_as(source: Source, reading: Reading) -> Source:
    """The source with its files read in this way. With `frames="all"`, each picture of a file is an image of its own.

    These are named after the file and the picture: `scan.tif#0`. Files are opened once to count their pictures.
    """
    source = with_reading(source, reading)
    if reading.frames != "all" or source.canvases is not None:
        return source
    parts = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    counts = np.array([n for part in in_threads(partial(_frames, source), parts) for n in part], dtype=np.int64)
    if (counts == 1).all():
        return source
    items = np.repeat(np.arange(len(source)), counts)
    numbers = np.concatenate([np.arange(n) for n in counts])
    every = source.subset(items)
    return replace(
        every,
        read=partial(_frame, source, items, numbers, counts),
        identify=partial(_frame_ids, source, items, numbers, counts),
        locate=partial(_frame_place, source, items, numbers, counts),
    )


def _frames(source: Source, i: int) -> int:
    try:
        raw = source.read(i)
    except BadImage:
        return 1
    return count_frames(raw, source.reading) if isinstance(raw, (bytes, Path)) and not _plain(raw) else 1


def _frame(source: Source, items: np.ndarray, numbers: np.ndarray, counts: np.ndarray, i: int) -> Raw:
    item = int(items[i])
    raw = source.read(item)
    return Frame(raw, int(numbers[i])) if counts[item] > 1 and isinstance(raw, (bytes, Path)) else raw


def _frame_ids(source: Source, items: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> list[str]:
    ids = source.ids
    return [f"{ids[i]}#{k}" if counts[i] > 1 else ids[i] for i, k in zip(items.tolist(), numbers.tolist(), strict=True)]


def _frame_place(source: Source, items: np.ndarray, numbers: np.ndarray, counts: np.ndarray, i: int) -> str:
    item = int(items[i])
    return f"{source.where(item)}#{numbers[i]}" if counts[item] > 1 else source.where(item)
