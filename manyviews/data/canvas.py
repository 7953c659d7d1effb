"""Images of any shape as canvases of one shape, in one tensor in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from manyviews.data.decode import BadImage, decode
from manyviews.data.source import Source
from manyviews.machine import cores
from manyviews.types import Batch

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_CHUNK = 16
_AHEAD = 8  # blocks on their way

T = TypeVar("T")
R = TypeVar("R")


def to_canvas(image: Image.Image, size: int) -> np.ndarray:
    """The whole RGB image squashed onto a square: antialiased bicubic, uint8 `3 size size`.

    Uses PyTorch's resampling of bytes: three times as fast as Pillow's, and within two gray levels of it.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if image.size != (size, size):
        pixels = interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0]
    return pixels.contiguous().numpy()


def load_canvas(source: Source, i: int, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Image `i` as a canvas (uint8 `3 size size`), and its true (height, width).

    Raises:
        BadImage: the image cannot be used; the reason says why.
    """
    # Twice the size leaves the resampling enough to average. It costs little: 44 ms instead of 36 for 12 megapixels.
    image, extent = decode(source.read(i), at_least=2 * size)
    return to_canvas(image, size), extent


def load_canvases(source: Source, size: int, progress: Progress | None = None) -> tuple[Batch, list[tuple[str, str]]]:
    """All good images of a source in memory, in its order, and (name, reason) for each bad one.

    `index` numbers the images in the source, so it has gaps at bad images. An image takes 3 * size**2 bytes.
    """
    total = len(source)
    if source.canvases is not None and source.side == size:
        return source.canvases(np.arange(total)), []
    pixels = torch.empty(total, 3, size, size, dtype=torch.uint8)
    extent = torch.zeros(total, 2, dtype=torch.int64)
    into_pixels, into_extent = pixels.numpy(), extent.numpy()

    def fill(start: int) -> list[tuple[int, str]]:
        bad = []
        for i in range(start, min(start + _CHUNK, total)):
            reached(i)
            try:
                into_pixels[i], into_extent[i] = load_canvas(source, i, size)
            except BadImage as error:
                bad.append((i, error.reason))
        return bad

    # Threads suffice, because Pillow decodes without the interpreter lock. Each takes a chunk of neighbors, for sources
    # that read in blocks, and a small one, because the blocks of all threads must fit into memory together.
    bad: list[tuple[int, str]] = []
    with reading_ahead(source, np.arange(total)) as reached, ThreadPoolExecutor(cores()) as pool:
        for start, found in zip(range(0, total, _CHUNK), pool.map(fill, range(0, total, _CHUNK)), strict=True):
            bad += found
            if progress is not None:
                progress(min(start + _CHUNK, total), total)

    index = torch.arange(total)
    if bad:
        good = np.setdiff1d(np.arange(total), [i for i, _ in bad])
        for row, i in enumerate(good):  # in place, as there may be no memory for a second copy
            into_pixels[row], into_extent[row] = into_pixels[i], into_extent[i]
        pixels, extent, index = pixels[: len(good)], extent[: len(good)], torch.from_numpy(good)
    return Batch.of(pixels, extent, index), [(source.where(i), reason) for i, reason in bad]


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
