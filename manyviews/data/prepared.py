"""Canvases on disk: large pictures are decoded once, and read again quickly.

A folder of shards. Each is a safetensors file: canvases one after the other, where each begins, its height and width,
and its checksum, which is compared when the canvas is first read. Its header holds names, labels, captions and the
checksums of all the rest, which are compared when the shard is opened. A shard is written whole or not at all.
`canvases.json` comes last: a folder without it is unfinished.

Small canvases are stored as they are, and read without decoding. Large ones would fill the disk: they are JPEGs, of a
quality that views cannot tell from the original, and a picture that is a JPEG of the right size already is kept as it
is.
"""

from __future__ import annotations

import io
import json
import time
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from manyviews.checkpoint import checksums, load_tensors, save_tensors, split, write_text
from manyviews.data.canvas import (
    Progress,
    decoded,
    in_threads,
    largest,
    load_canvas,
    load_canvases,
    reading_ahead,
    sample,
    to_canvas,
)
from manyviews.data.decode import BadImage, decode, translated, whole
from manyviews.data.reading import Reading
from manyviews.data.source import Captions, Labels, Source, as_captions, uncaptioned
from manyviews.errors import UserError, from_json, printable
from manyviews.types import Batch, Canvases

MANIFEST = "canvases.json"
_JPEG, _ORIENTATION = b"\xff\xd8\xff", 0x0112
_PLAN = "plan.json"
_SHARD = 2**27  # bytes of pixels in a shard: a crash loses little, and files are few
_VERSION = 5
_SUMS = "crc32"  # the tensor of the canvases' checksums; shards of before 2026-12 have none
_AT_ONCE = 2**31  # bytes that canvases may ask for at a time
_RAW = 2**18  # bytes of a canvas, on average, from which on canvases are stored as JPEGs
_QUALITY = 95


def prepare(source: Source, out: Path, size: int = 800, progress: Progress | None = None) -> Path:
    """Decode a source's images to canvases in a folder, which `open_source` then opens.

    You may call it again after an interruption, and from several processes at once: finished shards stay, and each
    process takes shards that no other is writing. Unreadable images are left out and named in the manifest.

    Args:
        source: the images.
        out: a new folder, or one that was begun with the same source and size.
        size: longest short side of the canvases, pixels: see `to_canvas`.
        progress: called with (done, total) images as this process passes their shards.

    Raises:
        UserError: the folder holds something else, or no image can be read.
    """
    plan: dict[str, Any] = {
        "version": _VERSION,
        "size": size,
        "images": len(source),
        "names": source.naming,
        "content": source.sample(),
        "labels": source.labeling,
        "reading": source.reading.to_dict(),
    }
    if source.captions is not None:
        plan["captions"] = blake2b(json.dumps(source.captions).encode(), digest_size=16).hexdigest()
    plan = _begin(out, plan, source)
    per, encoding = plan["shard"], plan["encoding"]
    starts = range(0, len(source), per)
    files = [out / f"shard-{k:05}.safetensors" for k in range(len(starts))]
    with FileLock(out / f".{_PLAN}.lock"):
        if (out / MANIFEST).exists() and not all(file.exists() for file in files):
            (out / MANIFEST).unlink()  # someone removed a damaged shard, to write it again

    stopped = Event()

    def going_on(done: int, total: int) -> None:
        if stopped.is_set():
            raise CancelledError

    def there(file: Path, start: int) -> bool:
        """Whether a shard is complete. This process writes it unless another one is at it."""
        try:
            if not file.exists():
                with FileLock(out / f".{file.name}.lock", blocking=False):
                    if not file.exists():
                        rows = range(start, min(start + per, len(source)))
                        _write(source, rows, size, encoding, file, going_on)
        except Timeout:
            return False
        return True

    # Two shards at a time: one is decoded while the other goes to disk. Sources that read in blocks get one, because
    # only a few blocks stay in memory.
    with ThreadPoolExecutor(2 if source.blocks is None else 1) as pool:
        try:
            while not (out / MANIFEST).exists():
                waiting = False
                for start, done in zip(starts, pool.map(there, files, starts), strict=True):
                    waiting = waiting or not done
                    if progress is not None:
                        progress(min(start + per, len(source)), len(source))
                if waiting:
                    time.sleep(0.2)  # another process is at the last ones
                else:
                    _finish(source, out, plan, files)
        finally:  # Ctrl-C must not wait for all shards
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return out


def _begin(out: Path, plan: dict[str, Any], source: Source) -> dict[str, Any]:
    """The plan of a folder, with how its canvases are stored, which the first process that comes decides."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {out} cannot be made: {e.strerror}.") from None
    with FileLock(out / f".{_PLAN}.lock"):
        if not (out / _PLAN).exists():
            if any(not p.name.startswith(".") for p in out.iterdir()):
                raise UserError(f"{out} exists and is not an empty folder: give another --out.")
            write_text(out / _PLAN, json.dumps(plan | _storage(source, plan["size"])))
    found: dict[str, Any] = json.loads((out / _PLAN).read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(plan))
    if {k: v for k, v in found.items() if k not in ("shard", "encoding")} != wanted:
        raise UserError(
            f"{out} holds canvases of other images, labels, captions, sizes or channels, or of another version: give "
            "another --out."
        )
    return found


def _storage(source: Source, size: int) -> dict[str, Any]:
    """How canvases are stored, and how many make a shard, by the size of a few of them."""
    sizes, encoded = [], []
    for i in sample(source):
        with suppress(BadImage):
            canvas = load_canvas(source, i, size)
            sizes.append(canvas.size)
            encoded.append(len(_encode(source, i, size)) if source.reading.count in (1, 3) else canvas.size)
    raw = source.reading.count not in (1, 3) or np.mean(sizes or [0]) <= _RAW
    each = float(np.mean((sizes if raw else encoded) or [1]))
    return {"encoding": "raw" if raw else "jpeg", "shard": max(1, round(_SHARD / max(1.0, each)))}


def _encode(source: Source, i: int, size: int) -> bytes:
    """Image `i` as a JPEG of its canvas.

    Raises:
        BadImage: the image cannot be used; the reason says why.
    """
    raw = source.read(i)
    if isinstance(raw, Path):
        with translated(raw, source.stored()):
            raw = whole(raw, source.stored())
    canvas = decoded(raw, size, source.stored())
    if isinstance(raw, bytes) and raw.startswith(_JPEG):
        file = Image.open(io.BytesIO(raw), formats=("JPEG",))
        there = (file.height, file.width) == canvas.shape[:2] and file.getexif().get(_ORIENTATION, 1) == 1
        if there and file.mode == {1: "L", 3: "RGB"}[canvas.shape[2]]:
            return raw
    stream = io.BytesIO()
    Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else np.ascontiguousarray(canvas)).save(
        stream, "JPEG", quality=_QUALITY, subsampling=0
    )
    return stream.getvalue()


def _write(source: Source, rows: range, size: int, encoding: str, file: Path, progress: Progress) -> None:
    for part in file.parent.glob(f".{file.name}.*"):
        if part.suffix != ".lock":
            part.unlink()  # of a killed process, as no other is at this shard
    some = source.subset(rows)
    if encoding == "raw":
        data, start, extent, index, bad = _raw(some, size, progress)
    else:
        data, start, extent, index, bad = _encoded(some, size, progress)
    good = index + rows.start
    start = torch.cat([start, torch.tensor([len(data)])])
    ends = zip(start.tolist(), start[1:].tolist(), strict=False)
    sums = torch.tensor([zlib.crc32(data[a:b].numpy().data) for a, b in ends], dtype=torch.int64)
    tensors = {"data": data, "start": start, "extent": extent, _SUMS: sums}
    facts = {"ids": [source.ids[i] for i in good], "labels": _packed(source, good), "bad": bad}
    if source.captions is not None:
        facts["captions"] = [source.captions[i] for i in good]
    save_tensors(file, tensors, facts | {"checksum": _checksum(tensors, facts)})


_Stored = tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray, list[tuple[str, str]]]
"""Bytes of a source's good images, where each begins, its extent and number; and the bad ones."""


def _raw(source: Source, size: int, progress: Progress) -> _Stored:
    """The pixels of canvases. Of so many at a time that memory for the largest could be had: most are far smaller."""
    parts, bad, before = [], list[tuple[str, str]](), 0
    at_once = max(1, _AT_ONCE // largest(source, size))
    for first in range(0, len(source), at_once):
        found, wrong = load_canvases(source.subset(range(first, min(first + at_once, len(source)))), size, progress)
        canvases = found.canvases.alone()  # in the images' order, and not as threads were done with them
        parts.append((canvases.pool, canvases.start + before, canvases.extent, found.index + first))
        before, bad = before + len(canvases.pool), bad + wrong
    data, start, extent, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return data, start, extent, index.numpy(), bad


def _encoded(source: Source, size: int, progress: Progress) -> _Stored:
    """Images as JPEGs."""

    def encode(i: int) -> bytes | str:
        reached(i)
        try:
            return _encode(source, i, size)
        except BadImage as error:
            return error.reason

    found: list[bytes | str] = []
    chunks = (range(i, min(i + 16, len(source))) for i in range(0, len(source), 16))
    with reading_ahead(source, np.arange(len(source))) as reached, closing(in_threads(encode, chunks)) as parts:
        for part in parts:
            found += part
            progress(len(found), len(source))
    good = [i for i, x in enumerate(found) if isinstance(x, bytes)]
    files = [x for x in found if isinstance(x, bytes)]
    sizes = [Image.open(io.BytesIO(x), formats=("JPEG",)).size for x in files]
    extent = torch.tensor([(h, w) for w, h in sizes], dtype=torch.int64).view(-1, 2)
    start = torch.tensor([0, *accumulate(map(len, files))][:-1], dtype=torch.int64)
    data = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8) if files else torch.empty(0).byte()
    bad = [(source.where(i), x) for i, x in enumerate(found) if isinstance(x, str)]
    return data, start, extent, np.array(good, dtype=np.int64), bad


def _packed(source: Source, rows: np.ndarray) -> list[Any] | None:
    """Numbers of classes: one for each image, or a list for each where images may have several."""
    if source.several and source.targets is not None:
        return [np.flatnonzero(target).tolist() for target in source.targets[rows]]
    return None if source.labels is None else source.labels[rows].tolist()


def _checksum(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    """A hash of everything in a shard."""
    found = blake2b(digest_size=16)
    for name in ("data", "start", "extent"):  # the others follow from these
        found.update(tensors[name].contiguous().numpy().data)
    found.update(json.dumps([facts["ids"], facts["labels"], facts["bad"]]).encode())
    if "captions" in facts:
        found.update(json.dumps(facts["captions"]).encode())
    return found.hexdigest()


def _finish(source: Source, out: Path, plan: dict[str, Any], files: list[Path]) -> None:
    with FileLock(out / f".{_PLAN}.lock"):
        if (out / MANIFEST).exists():
            return
        shards, bad = [], []
        for file in files:
            count, facts = _header(file)
            shards.append({"file": file.name, "images": count, "checksum": facts["checksum"]})
            bad += facts["bad"]
        if not sum(s["images"] for s in shards):
            where, reason = bad[0]
            raise UserError(f"None of the {len(source)} images of {source.name} can be used; {where}: {reason}.")
        manifest = {**plan, "name": source.name, "classes": source.classes, "shards": shards, "bad": bad}
        write_text(out / MANIFEST, json.dumps(manifest, indent=1))
        for lock in out.glob(".shard-*.lock"):
            lock.unlink(missing_ok=True)


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """How many images a shard holds, and its facts."""
    count, header = _count(file)
    return count, _facts(file, header)[0]


def _facts(file: Path, header: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int] | None]:
    """A shard's facts, and the checksums of its tensors; None for a shard of before there were any."""
    try:
        facts, sums = split(header["__metadata__"]["manyviews"])
    except (ValueError, KeyError, TypeError):
        raise _other(file, "its names and labels") from None
    return facts, sums


def _count(file: Path) -> tuple[int, dict[str, Any]]:
    """How many images a shard holds, and its header, whose facts are one unparsed string."""
    _, header = _layout(file)
    return int(header["extent"]["shape"][0]), header


def _layout(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and its header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > size:
                raise ValueError("its header is damaged")
            header = from_json(f.read(length))
        sums = (_SUMS,) if _SUMS in header else ()  # older shards have none
        places = {name: header[name]["data_offsets"] for name in ("data", "start", "extent", *sums)}
        count, two = header["extent"]["shape"]
        sizes = {name: stop - start for name, (start, stop) in places.items()}
        if any(type(at) is not int or at < 0 for place in places.values() for at in place):
            raise ValueError("its header is damaged")
        wanted = {"extent": 16 * count, "start": 8 * count + 8, **dict.fromkeys(sums, 8 * count)}
        if two != 2 or sizes["data"] < 0 or any(sizes[name] != size for name, size in wanted.items()):
            raise ValueError("its sizes do not agree")
        ends = [stop for _, stop in places.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{file} is not a readable shard of canvases ({e}): remove it, and prepare the images again."
        ) from e
    if size < 8 + length + max(ends):
        raise UserError(f"{file} is cut short: remove it, and prepare the images again.")
    return 8 + length, header


@dataclass(frozen=True)
class Prepared:
    """The canvases of a folder, by number, read from mapped memory.

    Attributes:
        folder: the folder that `prepare` made.
        encoding: "raw" or "jpeg".
        reading: how the images were read.
        ends: the number of images up to the end of each shard.
        files: the shards' names.
    """

    folder: Path
    encoding: str
    reading: Reading
    ends: tuple[int, ...]
    files: tuple[str, ...]

    def __call__(self, items: np.ndarray) -> Batch:
        """The canvases of these images, with their numbers as the index. Pixels are copied once."""
        items = np.asarray(items, dtype=np.int64)
        images = [self._canvas(i) for i in items.tolist()]
        return Batch(torch.from_numpy(items), Canvases.packed(images, channels=self.reading.count))

    def _canvas(self, i: int) -> np.ndarray:
        content, (height, width) = self._content(i)
        if self.encoding == "raw":
            return self._shaped(content, height, width)
        try:
            return to_canvas(decode(content.tobytes(), None, Reading(self.reading.count))[0], max(height, width))
        except BadImage as e:
            raise _damaged(self.folder, e) from None

    def _content(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The bytes of a canvas, and its height and width."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        file, row = self.folder / self.files[shard], i - (self.ends[shard - 1] if shard else 0)
        data, start, extent, sums, seen = _mapped(file, file.stat().st_mtime_ns)
        height, width = extent[row].tolist()
        content = data[start[row] : start[row + 1]]
        if not seen[row]:
            if zlib.crc32(content.data) != sums[row]:
                raise _other(file, f"the pixels of {_header(file)[1]['ids'][row]}")
            seen[row] = True
        return content, (height, width)

    def _shaped(self, content: np.ndarray, height: int, width: int) -> np.ndarray:
        if min(height, width) < 1 or content.size != height * width * self.reading.count:
            raise _damaged(self.folder, ValueError(f"a canvas of {height}x{width} has {content.size} bytes"))
        return content.reshape(height, width, -1)

    def read(self, i: int) -> bytes | np.ndarray:
        """A canvas as an image: its file, or its pixels, `h w c`."""
        content, (height, width) = self._content(i)
        if self.encoding == "jpeg":
            return content.tobytes()
        pixels = self._shaped(content, height, width)
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels

    def ids(self) -> list[str]:
        return [name for file in self.files for name in self._facts(file)["ids"]]

    def _facts(self, file: str) -> dict[str, Any]:
        """The names, labels and captions in a shard, a value for each image."""
        try:
            count, facts = _header(self.folder / file)
            if not _are_texts(facts["ids"]):
                raise ValueError("its names are no texts")
            if any(len(facts[k]) != count for k in ("ids", "labels", "captions") if facts.get(k) is not None):
                raise ValueError(f"it has values for another number of images than {count}")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise _damaged(self.folder / file, e) from None
        return facts

    def captions(self) -> Captions:
        found = as_captions([item for file in self.files for item in self._facts(file).get("captions") or ()])
        if found is None or (self.ends and len(found) != self.ends[-1]):
            raise _damaged(self.folder, ValueError("its captions are no texts"))
        return found


def _other(file: Path, what: str) -> UserError:
    return UserError(
        f"{file} is damaged: {printable(what, 120)} are not those that were written. Remove it, and prepare the images "
        "again; `manyviews prepare --verify` looks at all shards."
    )


@cache
def _mapped(file: Path, stamp: int) -> tuple[np.ndarray, ...]:
    """A shard's bytes, mapped but not read, where each image begins, its extent, checksum, and whether it is right.

    `stamp` tells a file from one that it replaced.
    """
    offset, header = _layout(file)

    def small(name: str) -> np.ndarray:
        begin, end = header[name]["data_offsets"]
        found: np.ndarray = np.fromfile(file, dtype="<i8", count=(end - begin) // 8, offset=offset + begin)
        return found

    begin, end = (offset + at for at in header["data"]["data_offsets"])
    # NumPy's maps each keep a file open, and a large set has more shards than a process may open files.
    whole = torch.from_file(str(file), shared=False, size=end, dtype=torch.uint8).numpy()
    start, extent = small("start"), small("extent").reshape(-1, 2)
    wanted = _facts(file, header)[1]
    if wanted is None:
        return whole[begin:], start, extent, start, np.ones(len(extent), dtype=bool)
    read = {"start": start, "extent": extent, _SUMS: small(_SUMS)} if _SUMS in header else {}
    if not read or any(wanted.get(k) != v for k, v in _sums_of(read).items()):
        raise _other(file, "the places and sizes of its images")
    return whole[begin:], start, extent, read[_SUMS], np.zeros(len(extent), dtype=bool)


def _sums_of(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    return checksums({k: torch.from_numpy(v) for k, v in arrays.items()})


def _manifest(folder: Path) -> dict[str, Any]:
    """What `canvases.json` says, with its `Reading`. Anybody may have edited it."""
    file = folder / MANIFEST
    try:
        found: dict[str, Any] = from_json(file.read_text(encoding="utf-8"))
        if found["version"] != _VERSION:
            raise UserError(
                f"{folder} was prepared by another version of manyviews: prepare the images again, in a new folder."
            )
        found["reading"] = Reading.from_dict(found["reading"])
        names = [shard["file"] for shard in found["shards"]]
        good = {
            "name": isinstance(found["name"], str),
            "size": type(found["size"]) is int and found["size"] > 0,
            "encoding": found["encoding"] in ("raw", "jpeg"),
            "classes": _are_texts(found["classes"]) or found["classes"] is None,
            "shards": _are_texts(names)
            and all(Path(name).name == name for name in names)
            and all(type(shard["images"]) is int and shard["images"] >= 0 for shard in found["shards"])
            and any(shard["images"] for shard in found["shards"]),
        }
        wrong = next((name for name, fits in good.items() if not fits), None)
        if wrong is not None:
            raise ValueError(f"its {wrong} cannot be right")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as e:
        why = f"it lacks {e}" if isinstance(e, KeyError) else str(e)
        raise UserError(
            f"{file} is damaged ({printable(why, 120)}): remove it, and prepare the images again."
        ) from None
    return found


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def open_prepared(folder: Path) -> Source:
    """The canvases that `prepare` wrote, as a source whose canvases need no decoding.

    Raises:
        UserError: shards are missing or damaged.
    """
    manifest = _manifest(folder)
    for shard in manifest["shards"]:
        if _count(folder / shard["file"])[0] != shard["images"]:
            raise UserError(
                f"{folder / shard['file']} is not the shard that was prepared: remove it, and prepare the images again."
            )
    counts = [s["images"] for s in manifest["shards"]]
    ends = tuple(np.cumsum(counts).tolist())
    reading: Reading = manifest["reading"]
    ready = Prepared(folder, manifest["encoding"], reading, ends, tuple(s["file"] for s in manifest["shards"]))
    source = Source(manifest["name"], sum(counts), ready.read, ready.ids, canvases=ready, side=manifest["size"])
    source = replace(source, reading=reading)
    describe = ready.captions if "captions" in manifest else uncaptioned
    return replace(source, annotate=partial(_labels, ready, manifest["classes"]), describe=describe)


def _labels(ready: Prepared, classes: list[str] | None) -> Labels | None:
    if classes is None:
        return None
    labels = [y for file in ready.files for y in ready._facts(file).get("labels") or ()]
    several = any(isinstance(y, list) for y in labels)
    numbers = [k for y in labels for k in (y if isinstance(y, list) else [y])]
    if len(labels) != (ready.ends or (0,))[-1] or not all(type(k) is int and 0 <= k < len(classes) for k in numbers):
        raise _damaged(ready.folder, ValueError("its labels are not those of its classes"))
    if not several:
        return np.array(labels, dtype=np.int64), classes
    targets = np.zeros((len(labels), len(classes)), dtype=bool)
    for target, own in zip(targets, labels, strict=True):
        target[own] = True
    return targets, classes


def _damaged(where: Path, error: Exception) -> UserError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return UserError(f"{where} is damaged ({printable(why, 120)}): remove it, and prepare the images again.")


def verify(folder: Path, progress: Progress | None = None) -> list[Path]:
    """The damaged shards: reads every shard and compares its checksum."""
    shards = _manifest(folder)["shards"]
    damaged = []
    for k, shard in enumerate(shards):
        file = folder / shard["file"]
        try:
            right = _checksum(*load_tensors(file)) == shard["checksum"]
        except (UserError, KeyError):
            right = False
        if not right:
            damaged.append(file)
        if progress is not None:
            progress(k + 1, len(shards))
    return damaged
