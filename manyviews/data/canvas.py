"""Decoded images in their own proportions, no larger than needed, one after the other in memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from manyviews.data.decode import BadImage, Raw, opened, translated
from manyviews.data.reading import Reading
from manyviews.data.room import ROOM
from manyviews.data.slow import READS
from manyviews.data.source import Source
from manyviews.machine import cores
from manyviews.types import Batch, Canvases

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_CHUNK = 16
_SAMPLE = 32
_AHEAD = 8  # blocks on their way

T = TypeVar("T")
R = TypeVar("R")


MOST = 4
"""The most pixels of a canvas, in squares of its longest short side: longer images shrink to that."""


_LARGE = 2**24  # pixels of pictures that shrink by rows
_CLOSE = (0.9, 1.3)  # of the wanted size: at which JPEGs may be decoded, and what is not worth resampling


def to_canvas(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """An image in its own proportions with a short side of about `size` pixels at the most: uint8 `h w c`.

    It is never enlarged. Up to 1.3 times the size it stays as it is, because to resample it takes longer than crops of
    some more pixels, and softens them. An image of more than `MOST` times `size**2` pixels shrinks to that. What
    shrinks is resampled antialiased and bicubic, by PyTorch's resampling of bytes: three times as fast as Pillow's, and
    within two gray levels of it.
    """
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    shape = canvas_shape(pixels.shape[0], pixels.shape[1], size)
    return _resampled(pixels, shape)


def _resampled(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if shape == pixels.shape[:2]:
        return pixels
    # A copy, because Pillow's array is read-only, of which PyTorch warns.
    found = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return interpolate(found, shape, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def canvas_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the canvas of an image: see `to_canvas`."""
    short = min(height, width)
    scale = min(1.0 if short <= _CLOSE[1] * size else size / short, math.sqrt(MOST * size**2 / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def load_canvas(source: Source, i: int, size: int) -> np.ndarray:
    """Image `i` as a canvas, uint8 `h w c`: see `to_canvas`.

    Raises:
        BadImage: the image cannot be used; the reason says why.
    """
    with ROOM.turn(), READS.one(source.where, i):
        return decoded(source.read(i), size, source.stored())


def decoded(raw: Raw, size: int, reading: Reading) -> np.ndarray:
    """An image before decoding as a canvas: see `load_canvas`.

    A large picture takes the memory of its pixels as the codec gives them, and no copy: some of its rows at a time
    become narrower. PyTorch's resampling goes first along rows and then along columns, with bytes in between, so the
    canvas is that of `to_canvas`, bit for bit if no EXIF orientation exchanges rows and columns.
    """
    with translated(raw, reading):
        found = opened(raw, math.ceil(_CLOSE[0] * size), reading)
        height, width = found.shape
        if height * width <= _LARGE:
            return to_canvas(found.picture(), size)
        shape = canvas_shape(height, width, size)
        narrow = np.concatenate([_resampled(part, (len(part), shape[1])) for part in found.rows()])
        return found.upright(_resampled(narrow, shape))


def sample(source: Source) -> list[int]:
    """A few images, spread over the source, that tell how large all of them are."""
    found: list[int] = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int).tolist()
    return found


def largest(source: Source, size: int) -> int:
    """The most bytes that a canvas of the source can take."""
    return source.reading.count * MOST * size**2


def load_canvases(source: Source, size: int, progress: Progress | None = None) -> tuple[Batch, list[tuple[str, str]]]:
    """All good images of a source in memory, in its order, and (name, reason) for each bad one.

    `index` numbers the images in the source, so it has gaps at bad images. `size` is that of `to_canvas`.
    """
    found = hold_canvases(source, size, len(source) * largest(source, size), progress)
    assert found is not None
    return found


def hold_canvases(
    source: Source, size: int, most: int, progress: Progress | None = None
) -> tuple[Batch, list[tuple[str, str]]] | None:
    """`load_canvases`, or None as soon as they take more than `most` bytes."""
    total, channels = len(source), source.reading.count
    if source.canvases is not None and source.side is not None and source.side <= size:
        return source.canvases(np.arange(total)), []
    # The system gives the memory when it is written to.
    pool = torch.empty(min(most, total * largest(source, size)), dtype=torch.uint8)
    into = pool.numpy()
    starts, shapes = [0] * total, [(0, 0)] * total
    lock, held, full = Lock(), 0, False

    def fill(start: int) -> list[tuple[int, str]]:
        nonlocal held, full
        bad = []
        for i in range(start, min(start + _CHUNK, total)):
            if full:
                break
            reached(i)
            try:
                canvas = load_canvas(source, i, size)
            except BadImage as error:
                bad.append((i, error.reason))
                continue
            with lock:
                at, held = held, held + canvas.size
                full = held > len(pool)
            if not full:
                into[at : at + canvas.size].reshape(canvas.shape)[:] = canvas
                starts[i], shapes[i] = at, (canvas.shape[0], canvas.shape[1])
        return bad

    # Threads suffice, because Pillow decodes without the interpreter lock. Each takes a chunk of neighbors, for sources
    # that read in blocks, and a small one, because the blocks of all threads must fit into memory together.
    bad: list[tuple[int, str]] = []
    with reading_ahead(source, np.arange(total)) as reached, ThreadPoolExecutor(cores()) as threads:
        for start, found in zip(range(0, total, _CHUNK), threads.map(fill, range(0, total, _CHUNK)), strict=True):
            bad += found
            if progress is not None and not full:
                progress(min(start + _CHUNK, total), total)
    if full:
        return None
    good = np.setdiff1d(np.arange(total), [i for i, _ in bad])
    canvases = Canvases.tight(pool[:held], [starts[i] for i in good], [shapes[i] for i in good], channels=channels)
    return Batch(torch.from_numpy(good), canvases), [(source.where(i), reason) for i, reason in bad]


@contextmanager
def reading_ahead(source: Source, items: np.ndarray) -> Iterator[Callable[[int], None]]:
    """Read the next blocks of the source in the background while others are in use.

    Yields a function to call with each position in `items` as it is reached. At each new block a thread begins to read
    a later one. So many blocks are on their way together that their latency is waited for only once.
    """
    if source.blocks is None:
        yield lambda place: None
        return
    ahead = max(1, min(_AHEAD, source.window // 2))
    _, places = np.unique(np.searchsorted(source.blocks, items, side="right"), return_index=True)
    places.sort()
    later = dict(zip(places[:-ahead].tolist(), items[places[ahead:]].tolist(), strict=True))

    def read(i: int) -> None:
        with suppress(BadImage):  # whoever needs the image will raise it again
            source.read(i)

    with ThreadPoolExecutor(ahead) as pool:

        def reached(place: int) -> None:
            if place in later:
                pool.submit(read, later.pop(place))

        try:
            for i in items[places[:ahead]].tolist():
                pool.submit(read, i)
            yield reached
        finally:
            pool.shutdown(cancel_futures=True)


def in_threads(
    do: Callable[[T], R], batches: Iterable[Iterable[T]], threads: int | None = None, ahead: int = 2
) -> Generator[list[R], None, None]:
    """`[do(x) for x in batch]` for each batch in order, in `threads` (one for each core), `ahead` batches at a time.

    Threads suffice, because Pillow decodes without the interpreter lock. Unlike processes they need no shared memory,
    which containers have little of, and a signal to the process group does not kill them.
    """
    with ThreadPoolExecutor(max(1, cores() if threads is None else threads)) as pool:
        under_way: deque[list[Future[R]]] = deque()
        rest = iter(batches)
        try:
            while True:
                while len(under_way) < ahead and (batch := next(rest, None)) is not None:
                    under_way.append([pool.submit(do, x) for x in batch])
                if not under_way:
                    return
                yield [future.result() for future in under_way.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
