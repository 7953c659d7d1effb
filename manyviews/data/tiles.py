"""Scenes, slides and panoramas cut into images of their own, without holding a scene in memory where its file allows.

Tiles are files in a folder that `open_source` opens like any other. They hold the scene's own values: 8 bits as PNG
or, where the scene is one, JPEG; others as 16-bit PNG or TIFF. `tiles.json` comes last: a folder
without it is unfinished.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from manyviews.checkpoint import write_atomically, write_text
from manyviews.data import raster as rasters
from manyviews.data.canvas import Progress, in_threads
from manyviews.data.decode import BadImage, Frame, Raw, examine, pillow_picture, translated
from manyviews.data.formats import HEAD, install, installed, sniff
from manyviews.data.raster import Raster
from manyviews.data.reading import Reading
from manyviews.data.source import Source
from manyviews.errors import UserError

MANIFEST = "tiles.json"
PLAN = ".tiles.json"
"""What is being made in a folder. It is there from the start, and the manifest only at the end."""

MOST = 2**31
"""Pixels of a scene that must be decoded whole, by default: it is asked for, so it is no decompression bomb."""

_AT_ONCE = 32  # tiles in a batch; two batches are in memory
_BYTES = 2**26  # of the tiles in a batch, and of decoded tiles of a TIFF that are kept for its neighbors
_LOSSY = 4  # a tile of a lossy scene with no more different levels than this is empty
_QUALITY = 95
_TICKS = 1000  # of a scene's progress


@dataclass(frozen=True)
class Cut:
    """What became of one scene.

    Attributes:
        scene: its name.
        tiles: the tiles that were written.
        empty: tiles that hold nothing: one value, or no data. They were left out.
        small: whether the scene is smaller than a tile.
        reason: why the scene could not be used; empty if it could.
    """

    scene: str
    tiles: int = 0
    empty: int = 0
    small: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Scene:
    """A large picture that is read in parts.

    Attributes:
        shape: height and width in pixels.
        lossy: whether it was compressed with loss.
        read: the part at (top, left) of (height, width).
    """

    shape: tuple[int, int]
    lossy: bool
    read: Callable[[int, int, int, int], Raster]


def places(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis. The last one ends with the axis, so it may overlap its neighbor more."""
    if length <= size:
        return [0]
    step = size - overlap
    return [*range(0, length - size, step), length - size]


def tile(
    source: Source,
    out: Path,
    size: int = 512,
    overlap: int = 0,
    max_pixels: int = MOST,
    progress: Progress | None = None,
) -> list[Cut]:
    """Cut each image of a source into square tiles, as files in a folder.

    Tiles are named after the scene and their place in it: `north/scene.tif_y000512_x001024.png`. Folders stay, so that
    first-level folders remain the labels. Tiles at the lower and right edge are shifted inwards, so that all pixels are
    in a tile of full size. You may call it again after an interruption: finished scenes stay.

    Tiled and striped TIFFs, and so pyramids of slides (their largest level), are read part by part. Other files are
    decoded whole.

    Args:
        source: the scenes. Its reading says which pictures of a stack count.
        out: a new folder, or one that was begun with the same scenes and settings.
        size: side of the tiles, pixels.
        overlap: pixels that neighbors share.
        max_pixels: scenes of more pixels are left out if they must be decoded whole.
        progress: called with (done, total).

    Raises:
        UserError: the settings are impossible, the folder holds something else, another process is writing to it, or no
            scene can be used.
    """
    if size < 16 or not 0 <= overlap < size:
        raise UserError(
            f"Tiles need a side of 16 pixels or more, and an overlap of less than that, not {size} and {overlap}."
        )
    plan = {
        "version": 1,
        "tile": size,
        "overlap": overlap,
        "scenes": len(source),
        "names": source.naming,
        "content": _stamps(source),
        "frames": source.reading.frames,
    }
    _begin(out, plan)
    names = _names(source.ids)
    reading = replace(source.reading, max_pixels=max_pixels)
    cuts = []
    try:
        with FileLock(out / f"{PLAN}.lock", blocking=False):
            for i in range(len(source)):
                done = _done_file(out, source.ids[i])
                if done.exists():
                    cut = Cut(**json.loads(done.read_text(encoding="utf-8")))
                else:
                    cut = _cut(source, i, out / names[i], out, size, overlap, reading, progress)
                    done.parent.mkdir(exist_ok=True)
                    write_text(done, json.dumps(asdict(cut)))
                cuts.append(cut)
                if progress is not None:
                    progress((i + 1) * _TICKS, len(source) * _TICKS)
            if not any(cut.tiles for cut in cuts):
                bad = next((cut for cut in cuts if cut.reason), None)
                why = f"{bad.scene}: {bad.reason}" if bad else "all tiles are empty"
                raise UserError(f"None of the {len(source)} images of {source.name} gives a tile; {why}.")
            write_text(out / MANIFEST, json.dumps(plan | {"cuts": [asdict(cut) for cut in cuts]}, indent=1))
    except Timeout:
        raise UserError(f"Another process is writing tiles to {out}: wait for it.") from None
    return cuts


def _stamps(source: Source) -> str:
    """A hash of the scenes' sizes and times: their content may be terabytes."""
    digest = blake2b(digest_size=16)
    for i in range(len(source)):
        try:
            raw = source.read(i)
        except BadImage:
            continue
        raw = raw.raw if isinstance(raw, Frame) else raw
        if not isinstance(raw, Path):
            return source.sample()
        with suppress(OSError):
            digest.update(f"{raw.stat().st_size} {raw.stat().st_mtime_ns} ".encode())
    return digest.hexdigest()


def _begin(out: Path, plan: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {out} cannot be made: {e.strerror}.") from None
    if not (out / PLAN).exists():
        if any(out.iterdir()):
            raise UserError(f"{out} exists and is not an empty folder: give another --out.")
        write_text(out / PLAN, json.dumps(plan))
    if json.loads((out / PLAN).read_text(encoding="utf-8")) != plan:
        raise UserError(f"{out} holds tiles of other images or sizes: give another --out.")


def _done_file(out: Path, name: str) -> Path:
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return out / ".done" / f"{digest}.json"


def _names(ids: Sequence[str]) -> list[str]:
    """What the tiles of each scene are named after: its id, or of scenes from anywhere the path below all of them."""
    if ids and all(map(os.path.isabs, ids)):
        above = os.path.commonpath([os.path.dirname(name) for name in ids])
        return [os.path.relpath(name, above) for name in ids]
    return list(ids)


def _cut(
    source: Source, i: int, place: Path, out: Path, size: int, overlap: int, reading: Reading, progress: Progress | None
) -> Cut:
    """Cut an image into tiles whose names begin with `place`, if that is inside the folder."""
    name = source.ids[i]
    tiles = empty = 0
    try:
        if not place.is_relative_to(out) or ".." in place.relative_to(out).parts:
            raise BadImage("its name leads out of the folder of tiles")
        raw = source.read(i)
        with ExitStack() as stack:
            scene = open_scene(raw, reading, size, stack)
            height, width = scene.shape
            if min(height, width) < rasters.MIN_SIDE:
                raise BadImage(f"{width}x{height} is too small")
            tall, wide = min(size, height), min(size, width)
            at = [(y, x) for y in places(height, size, overlap) for x in places(width, size, overlap)]
            place.parent.mkdir(parents=True, exist_ok=True)

            def read() -> Iterator[list[tuple[int, int, Raster]]]:
                batch: list[tuple[int, int, Raster]] = []
                for y, x in at:
                    with translated(raw, reading):
                        batch.append((y, x, scene.read(y, x, tall, wide)))
                    if len(batch) == _AT_ONCE or sum(part.values.nbytes for _, _, part in batch) > _BYTES:
                        yield batch
                        batch = []
                yield batch

            def write(one: tuple[int, int, Raster]) -> bool:
                y, x, part = one
                if _nothing(part, scene.lossy):
                    return False
                ending, content = encode_tile(part, scene.lossy)
                file = place.with_name(f"{place.name}_y{y:06}_x{x:06}{ending}")
                write_atomically(file, lambda path: path.write_bytes(content))
                return True

            for written in in_threads(write, read(), ahead=1):
                tiles, empty = tiles + sum(written), empty + len(written) - sum(written)
                if progress is not None:
                    progress(i * _TICKS + _TICKS * (tiles + empty) // len(at), len(source) * _TICKS)
            return Cut(name, tiles, empty, height < size or width < size)
    except BadImage as error:
        return Cut(name, tiles, empty, reason=error.reason)


def _nothing(part: Raster, lossy: bool) -> bool:
    """Whether a tile holds one value in each band, or no data."""
    values = part.values
    if part.alpha is not None and not values[..., -1].any():
        return True
    if part.nodata is None and values.dtype.kind != "f":
        lowest, highest = values.min((0, 1)), values.max((0, 1))
        return bool((highest.astype(np.int64) - lowest.astype(np.int64) <= (_LOSSY if lossy else 0)).all())
    good = part.holds_something(values)
    for band in range(values.shape[2]):
        some = values[..., band][good[..., band]]
        if some.size and some.min() != some.max():
            return False
    return True


def encode_tile(part: Raster, lossy: bool) -> tuple[str, bytes]:
    """A tile as a file that is read again with the same values: its ending and its bytes.

    A type whose bits are not all used, such as 12 bits in 16, is spread over its whole range: the file cannot say it.
    """
    stream = io.BytesIO()
    values, whole = part.values, part.whole
    if part.inks:
        color = Image.frombytes("CMYK", values.shape[1::-1], np.ascontiguousarray(values).tobytes()).convert("RGB")
        return encode_tile(Raster(np.asarray(color), part.format, (0.0, 255.0)), lossy)
    if whole is not None and values.dtype.kind == "u" and whole[1] < np.iinfo(values.dtype).max:
        top = np.iinfo(values.dtype).max
        values = np.rint(values.astype(np.float64) * (top / whole[1])).astype(values.dtype)
    elif values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint8 and part.bands in (1, 3) and part.alpha != "multiplied":
        values = 255 - values if part.inverted else values
        image = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
        if lossy and part.alpha is None:
            image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
            return ".jpg", stream.getvalue()
        image.save(stream, "PNG", compress_level=3)
        return ".png", stream.getvalue()
    if values.dtype == np.uint16 and values.shape[2] == 1 and part.nodata is None and not part.inverted:
        Image.fromarray(np.ascontiguousarray(values[..., 0])).save(stream, "PNG", compress_level=3)
        return ".png", stream.getvalue()
    if not installed("tifffile") or not installed("imagecodecs"):
        raise BadImage(f"its tiles are {part.words}, which needs a package: run `{install('tiff')}`")
    import tifffile

    extra = {"straight": ["unassalpha"], "multiplied": ["assocalpha"], None: []}[part.alpha]
    in_color = part.bands == 3 and not part.inverted
    tifffile.imwrite(
        stream,
        np.ascontiguousarray(values if values.shape[2] > 1 else values[..., 0]),
        photometric="rgb" if in_color else "miniswhite" if part.inverted else "minisblack",
        planarconfig="contig" if values.shape[2] > 1 else None,
        extrasamples=[*["unspecified"] * (part.bands - (3 if in_color else 1)), *extra] or None,
        compression="deflate",
        predictor=values.dtype.itemsize <= 4,
        metadata=None,
        extratags=[] if part.nodata is None else [(42113, "s", 0, f"{part.nodata!r}", True)],
    )
    return ".tif", stream.getvalue()


def open_scene(raw: Raw, reading: Reading, size: int, stack: ExitStack) -> Scene:
    """A picture that is read in squares of `size` pixels, row by row; the stack closes its file.

    Raises:
        Unreachable, BadImage: as `decode`.
    """
    number = raw.number if isinstance(raw, Frame) else None
    file = raw.raw if isinstance(raw, Frame) else raw
    with translated(raw, reading):
        if isinstance(file, (Path, bytes)):
            opened = stack.enter_context(file.open("rb") if isinstance(file, Path) else io.BytesIO(file))
            head = opened.read(HEAD)
            kind = sniff(head)
            if kind is not None and kind.name == "TIFF" and installed("tifffile") and installed("imagecodecs"):
                scene = _tiff_scene(opened, file if isinstance(file, Path) else None, reading, number, size, stack)
                if scene is not None:
                    return scene
            image = pillow_picture(raw, reading)
            if image is not None:
                lossy = kind is not None and kind.name in ("JPEG", "WebP", "AVIF", "HEIC, HEIF", "JPEG 2000")

                def crop(y: int, x: int, h: int, w: int) -> Raster:
                    part = image.crop((x, y, x + w, y + h))  # copies nothing but the part
                    part.info = {k: v for k, v in image.info.items() if k == "transparency"}
                    part.format = image.format
                    return rasters.as_raster(part)

                return Scene((image.height, image.width), lossy, crop)
        whole = examine(raw, reading)
        return Scene(
            whole.values.shape[:2], False, lambda y, x, h, w: replace(whole, values=whole.values[y : y + h, x : x + w])
        )


def _tiff_scene(
    opened: Any, path: Path | None, reading: Reading, number: int | None, size: int, stack: ExitStack
) -> Scene | None:
    """A TIFF whose tiles or strips are read as they are needed; None if it must be decoded whole."""
    opened.seek(0)
    file = stack.enter_context(rasters.open_tiff(opened))
    layout = rasters.tiff_layout(file, reading)
    if layout.pages is None or rasters.tiff_orientation(layout.page) != 1:
        return None
    pages = layout.pages(rasters.chosen_frame(layout.frames, reading, number))
    height, width, _ = layout.shape
    first = layout.page
    # Neighbors in a row of tiles share strips, which are as wide as the picture.
    strips = 0 if first.is_tiled else width * int(first.shaped[4]) * first.dtype.itemsize
    memory = max(_BYTES, strips * (size + 2 * first.rowsperstrip)) // len(pages)
    readers = [rasters.TiffParts(page, path, memory) for page in pages]
    if (
        any(r.mapped is None for r in readers)
        and not first.is_tiled
        and strips * first.rowsperstrip > 4 * reading.max_pixels
    ):
        return None  # one strip is as large as the picture

    def read(y: int, x: int, h: int, w: int) -> Raster:
        parts = [reader.read(y, x, h, w) for reader in readers]
        return rasters.described_tiff(first, np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0])

    lossy = int(first.compression) in (6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002, 52546)
    return Scene((height, width), lossy, read)
