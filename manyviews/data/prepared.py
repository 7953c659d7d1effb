"""Canvases on disk: decoded once, mapped into memory, and read without decoding.

A folder of shards. Each is a safetensors file of pixels and true extents, whose header holds names, labels, captions
and a checksum. A shard is written whole or not at all. `canvases.json` comes last: a folder without it is unfinished.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from manyviews.checkpoint import load_tensors, save_tensors, write_text
from manyviews.data.canvas import Progress, load_canvases
from manyviews.data.source import Captions, Labels, Source, uncaptioned
from manyviews.errors import UserError
from manyviews.types import Batch

MANIFEST = "canvases.json"
_PLAN = "plan.json"
_SHARD = 2**27  # bytes of pixels in a shard: a crash loses little, and files are few
_VERSION = 4


def prepare(source: Source, out: Path, size: int = 256, progress: Progress | None = None) -> Path:
    """Decode a source's images to canvases in a folder, which `open_source` then opens.

    You may call it again after an interruption, and from several processes at once: finished shards stay, and each
    process takes shards that no other is writing. Unreadable images are left out and named in the manifest.

    Args:
        source: the images.
        out: a new folder, or one that was begun with the same source and size.
        size: side of the canvases, pixels.
        progress: called with (done, total) images as this process passes their shards.

    Raises:
        UserError: the folder holds something else, or no image can be read.
    """
    per = max(1, _SHARD // (3 * size**2))
    plan = {
        "version": _VERSION,
        "size": size,
        "images": len(source),
        "shard": per,
        "names": source.naming,
        "content": source.sample(),
        "labels": source.labeling,
    }
    if source.captions is not None:
        plan["captions"] = blake2b(json.dumps(source.captions).encode(), digest_size=16).hexdigest()
    _begin(out, plan)
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
                        _write(source, range(start, min(start + per, len(source))), size, file, going_on)
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


def _begin(out: Path, plan: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {out} cannot be made: {e.strerror}.") from None
    with FileLock(out / f".{_PLAN}.lock"):
        if not (out / _PLAN).exists():
            if any(not p.name.startswith(".") for p in out.iterdir()):
                raise UserError(f"{out} exists and is not an empty folder: give another --out.")
            write_text(out / _PLAN, json.dumps(plan))
    if json.loads((out / _PLAN).read_text(encoding="utf-8")) != plan:
        raise UserError(f"{out} holds canvases of other images, labels, captions or sizes: give another --out.")


def _write(source: Source, rows: range, size: int, file: Path, progress: Progress) -> None:
    for part in file.parent.glob(f".{file.name}.*"):
        if part.suffix != ".lock":
            part.unlink()  # of a killed process, as no other is at this shard
    found, bad = load_canvases(source.subset(rows), size, progress)
    good = found.index.numpy() + rows.start
    tensors = {"pixels": found.pixels, "extent": found.extent}
    facts = {"ids": [source.ids[i] for i in good], "labels": _packed(source, good), "bad": bad}
    if source.captions is not None:
        facts["captions"] = [source.captions[i] for i in good]
    save_tensors(file, tensors, facts | {"checksum": _checksum(tensors, facts)})


def _packed(source: Source, rows: np.ndarray) -> list[Any] | None:
    """Numbers of classes: one for each image, or a list for each where images may have several."""
    if source.several and source.targets is not None:
        return [np.flatnonzero(target).tolist() for target in source.targets[rows]]
    return None if source.labels is None else source.labels[rows].tolist()


def _checksum(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    """A hash of everything in a shard."""
    found = blake2b(digest_size=16)
    for name in ("pixels", "extent"):
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
    return count, json.loads(header["__metadata__"]["manyviews"])


def _count(file: Path) -> tuple[int, dict[str, Any]]:
    """How many images a shard holds, and its header, whose facts are one unparsed string."""
    offset, shape, header = _layout(file, "pixels")
    if file.stat().st_size < offset + int(np.prod(shape)):
        raise UserError(f"{file} is cut short: remove it, and prepare the images again.")
    return int(shape[0]), header


def _layout(file: Path, name: str) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """The offset of a tensor in a safetensors file, its shape, and the file's header."""
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is damaged")
            header = json.loads(f.read(length))
        return 8 + length + header[name]["data_offsets"][0], tuple(header[name]["shape"]), header
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{file} is not a readable shard of canvases ({e}): remove it, and prepare the images again."
        ) from e


@dataclass(frozen=True)
class Prepared:
    """The canvases of a folder, by number, read from mapped memory.

    Attributes:
        folder: the folder that `prepare` made.
        size: side of the canvases, pixels.
        ends: the number of images up to the end of each shard.
        files: the shards' names.
    """

    folder: Path
    size: int
    ends: tuple[int, ...]
    files: tuple[str, ...]

    def __call__(self, items: np.ndarray) -> Batch:
        """The canvases of these images, with their numbers as the index. Pixels are copied once."""
        items = np.asarray(items, dtype=np.int64)
        pixels = np.empty((len(items), 3, self.size, self.size), dtype=np.uint8)
        extent = np.empty((len(items), 2), dtype=np.int64)
        for k, rows, places in self._shards(items):
            file = self.folder / self.files[k]
            mapped, extents = _mapped(file, file.stat().st_mtime_ns)
            pixels[places], extent[places] = mapped[rows], extents[rows]
        return Batch.of(torch.from_numpy(pixels), torch.from_numpy(extent), torch.from_numpy(items))

    def _shards(self, items: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number, rows in the shard, their positions among the items) for each shard that holds some of the items."""
        shard = np.searchsorted(self.ends, items, side="right")
        first = np.concatenate([[0], self.ends])
        for k in np.unique(shard):
            places = np.flatnonzero(shard == k)
            yield int(k), items[places] - first[k], places

    def read(self, i: int) -> Image.Image:
        """A canvas stretched back to the image's own proportions; its short side is that of the canvas."""
        found = self(np.array([i]))
        height, width = found.extent[0].tolist()
        scale = self.size / min(height, width)
        image = Image.fromarray(found.pixels[0].permute(1, 2, 0).contiguous().numpy())
        return image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)

    def ids(self) -> list[str]:
        return [name for file in self.files for name in _header(self.folder / file)[1]["ids"]]

    def captions(self) -> Captions:
        return [tuple(item) for file in self.files for item in _header(self.folder / file)[1]["captions"]]


@cache
def _mapped(file: Path, stamp: int) -> tuple[np.ndarray, np.ndarray]:
    """A shard's pixels, mapped but not read, and its extents. `stamp` tells a file from one that it replaced."""
    offset, shape, header = _layout(file, "pixels")
    begin, end = header["extent"]["data_offsets"]
    start = offset - header["pixels"]["data_offsets"][0]
    extents = np.fromfile(file, dtype="<i8", count=(end - begin) // 8, offset=start + begin).reshape(-1, 2)
    # NumPy's maps each keep a file open, and a large set has more shards than a process may open files.
    whole = torch.from_file(str(file), shared=False, size=offset + math.prod(shape), dtype=torch.uint8).numpy()
    return whole[offset:].reshape(shape), extents


def open_prepared(folder: Path) -> Source:
    """The canvases that `prepare` wrote, as a source whose canvases need no decoding.

    Raises:
        UserError: shards are missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{folder / MANIFEST} is damaged ({e}): remove it, and prepare the images again.") from e
    if manifest["version"] != _VERSION:
        raise UserError(
            f"{folder} was prepared by another version of manyviews: prepare the images again, in a new folder."
        )
    for shard in manifest["shards"]:
        if _count(folder / shard["file"])[0] != shard["images"]:
            raise UserError(
                f"{folder / shard['file']} is not the shard that was prepared: remove it, and prepare the images again."
            )
    counts = [s["images"] for s in manifest["shards"]]
    ends = tuple(np.cumsum(counts).tolist())
    ready = Prepared(folder, manifest["size"], ends, tuple(s["file"] for s in manifest["shards"]))
    source = Source(manifest["name"], sum(counts), ready.read, ready.ids, canvases=ready, side=ready.size)
    describe = ready.captions if "captions" in manifest else uncaptioned
    return replace(source, annotate=partial(_labels, ready, manifest["classes"]), describe=describe)


def _labels(ready: Prepared, classes: list[str] | None) -> Labels | None:
    if classes is None:
        return None
    labels = [y for file in ready.files for y in _header(ready.folder / file)[1]["labels"]]
    if not any(isinstance(y, list) for y in labels):
        return np.array(labels, dtype=np.int64), classes
    targets = np.zeros((len(labels), len(classes)), dtype=bool)
    for target, numbers in zip(targets, labels, strict=True):
        target[numbers] = True
    return targets, classes


def verify(folder: Path, progress: Progress | None = None) -> list[Path]:
    """The damaged shards: reads every shard and compares its checksum."""
    shards = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
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
