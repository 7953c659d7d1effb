"""Views on a CPU, one image at a time from the canvas to the finished view, compiled.

The same views as the batched operations of `geometry`, `color` and `filters` make, which run on all devices and which
the tests hold this against, up to the last bits of float32. What is faster here: an image stays in the core's cache
from its crop to its normalization, the crop's weights are not multiplied with zeros, and only images that drew a
change go through it. Numba compiles at the first use and keeps the result on disk.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Timer
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manyviews.views.hashing import jit

if TYPE_CHECKING:
    from manyviews.types import Canvases
    from manyviews.views.distort import Distorting

# Compiled code takes a plain 1.0 for a float64, and with it everything it touches.
_f = np.float32
_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX = (_f(x) for x in (0, 1, 2, 3, 4, 6))
_RED, _GREEN, _BLUE = _f(0.2989), _f(0.587), _f(0.114)  # torchvision's luma
_TINY = _f(np.finfo(np.float32).tiny)
_SIXTH = _f(1 / 6)
_BRIGHTNESS, _CONTRAST, _SATURATION = 0, 1, 2
_REACH = 5.3  # sigmas of a Gaussian: 1e-7 of it lies beyond
_TILE = 2048  # pixels that go through several operations before the next ones do: 24 KiB


def render(
    canvases: Canvases,
    boxes: Tensor,
    flip: Tensor,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    paint: Distorting | None = None,
    holes: Tensor | None = None,
) -> Tensor:
    """Crop, resize, distort and normalize each image, in as many threads as PyTorch uses.

    Args:
        canvases: `b` images, on the CPU.
        boxes: int64, `b 4`: top, left, height, width.
        flip: bool, `b`.
        size: height and width of the views.
        mean, std: of the channels in [0, 1].
        paint: the photometric settings and what was drawn of them; None to leave the colors alone.
        holes: int64, `b 4`: a box of each view (top, left, height, width) that gets the mean color before colors
            change; None for none.

    Returns:
        float32, `b c size size`, channels last in memory.

    Raises:
        ValueError: arguments for which the loops would read outside of their arrays.
    """
    _check(canvases, boxes, flip)
    b, c = len(canvases), canvases.channels
    if not len(mean) == len(std) == c:
        raise ValueError(f"Images of {c} channels need as many means and stds, not {len(mean)} and {len(std)}.")
    out = torch.empty(b, size, size, c)
    if paint is None:
        on, threshold, kernel = torch.zeros(b, 4, dtype=torch.bool), 0.0, 0
        factors, order, sigma = torch.ones(b, 4), torch.zeros(b, 4, dtype=torch.int64), torch.ones(b)
    else:
        color, drawn = paint.color, paint.drawn
        on = torch.stack([drawn.jitter, drawn.gray, drawn.blur, drawn.solarize], 1)
        on &= torch.tensor([p > 0 for p in (color.jitter, color.gray, color.blur, color.solarize)])
        threshold, kernel = color.threshold, color.kernel_at(size)
        factors, order, sigma = drawn.factors, drawn.order, drawn.sigma
        if bool(on[:, 2].any()) and kernel // 2 >= size:
            raise ValueError(f"A blur of {kernel} pixels is too wide for a view of {size}.")
        if len(on) != b or not bool(((order >= 0) & (order < 4)).all()):
            raise ValueError("A distortion must be drawn for each image, and its order be of the numbers from 0 to 3.")
    if holes is None:
        holes = torch.zeros(b, 4, dtype=torch.int64)
    elif len(holes) != b or not bool(((holes >= 0) & (holes[:, :2] + holes[:, 2:] <= size).repeat(1, 2)).all()):
        raise ValueError("A view's hole must be a box within it, one for each image.")
    scale = [1 / s for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    do = partial(
        _render,
        *_arrays(canvases),
        *(np.ascontiguousarray(x.numpy()) for x in (boxes, flip, holes, on, factors, order, sigma)),
        kernel,
        _f(threshold),
        np.array([mean, scale, shift], np.float32),
        out.numpy(),
    )
    _share(b, c * size**2, do)
    return out.permute(0, 3, 1, 2)


def crop(canvases: Canvases, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    """`geometry.crop_resize` of canvases on the CPU: float32, `b c size size`, in [0, 1]."""
    _check(canvases, boxes, flip)
    b, c = len(canvases), canvases.channels
    out = torch.empty(b, c, size, size)
    do = partial(
        _crops, *_arrays(canvases), *(np.ascontiguousarray(x.numpy()) for x in (boxes, flip)), out.flatten(2).numpy()
    )
    _share(b, c * size**2, do)
    return out


def _arrays(canvases: Canvases) -> tuple[np.ndarray, ...]:
    """The bytes of the canvases, where each begins, and how far apart its channels and its rows are."""
    return tuple(np.ascontiguousarray(x.numpy()) for x in (canvases.pool, canvases.start, canvases.pitch))


def _check(canvases: Canvases, boxes: Tensor, flip: Tensor) -> None:
    """Compiled code reads where it is told to."""
    if canvases.pool.dtype != torch.uint8 or not len(canvases) == len(boxes) == len(flip):
        raise ValueError("Canvases must be uint8, with a box and a flip for each.")
    corner, size = boxes.chunk(2, 1)
    if not bool(((corner >= 0) & (size > 0) & (corner + size <= canvases.extent)).all()):
        raise ValueError("A view's crop must be boxes of a pixel or more within the canvas.")
    (tall, wide), (plane, row, pixel) = (canvases.extent - 1).unbind(1), canvases.pitch.unbind(1)
    last = canvases.start + (canvases.channels - 1) * plane + tall * row + wide * pixel
    if not bool(((canvases.start >= 0) & (last < len(canvases.pool))).all()):
        raise ValueError("A canvas lies outside of the bytes that hold it.")


def _share(n: int, values: int, do: Callable[[int, int], None]) -> None:
    """`do(begin, end)` for parts of `n` images of so many values, in threads if there is enough for them to do."""
    _compile_all()
    threads = min(torch.get_num_threads(), n * values // 2**15)
    if threads < 2:
        do(0, n)
        return
    parts = min(n, 4 * threads)  # more than threads, for one image takes longer than another
    ends = [n * i // parts for i in range(parts + 1)]
    list(_threads(os.getpid(), torch.get_num_threads()).map(do, ends[:-1], ends[1:]))


@cache
def _compile_all() -> None:
    """Compile for this machine, or load what was compiled; say so if it takes a while."""
    words = "Compiling what makes the views, once on this machine: about ten seconds."
    say = Timer(2.0, partial(print, words, file=sys.stderr, flush=True))
    if os.environ.get("RANK", "0") == "0":  # as torchrun says
        say.start()
    try:
        no, one = np.zeros(1, bool), np.ones(1, np.float32)
        boxes = np.array([[0, 0, 1, 1]])
        canvas = (np.zeros(3, np.uint8), np.zeros(1, np.int64), np.ones((1, 3), np.int64))
        _crops(*canvas, boxes, no, np.empty((1, 3, 1), np.float32), 0, 1)
        drawn = (np.zeros((1, 4), bool), np.ones((1, 4), np.float32), np.zeros((1, 4), np.int64), one)
        norm, found = np.ones((3, 3), np.float32), np.empty((1, 1, 1, 3), np.float32)
        _render(*canvas, boxes, no, boxes, *drawn, 1, _ONE, norm, found, 0, 1)
    finally:
        say.cancel()


@cache
def _threads(process: int, n: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(n, "views")


@jit
def _render(
    pool, start, pitch, boxes, flip, holes, on, factors, order, sigma, kernel, threshold, norm, out, begin, end
):
    size, channels = out.shape[1], out.shape[3]
    image, spare = np.empty((channels, size * size), np.float32), np.empty((channels, size * size), np.float32)
    for i in range(begin, end):
        _crop(pool, start[i], pitch[i], boxes[i], flip[i], image)
        _fill(image, size, holes[i], norm[0])
        if on[i, 0]:
            if channels == 3:
                _jitter(image, factors[i], order[i])
            else:
                _jitter_bands(image, factors[i], order[i])
        if on[i, 1] and channels == 3:
            _grayscale(image)
        if on[i, 2]:
            _blur(image, spare, sigma[i], kernel)
        if on[i, 3]:
            _solarize(image, threshold)
        _normalize(image, norm[1], norm[2], out[i].reshape(size * size, channels))


@jit
def _crops(pool, start, pitch, boxes, flip, out, begin, end):
    for i in range(begin, end):
        _crop(pool, start[i], pitch[i], boxes[i], flip[i], out[i])


@jit
def _fill(image, size, box, color):
    top, left, height, width = box
    for c in range(len(image)):
        for y in range(top, top + height):
            image[c, y * size + left : y * size + left + width] = color[c]


@jit
def _cut(x):
    return min(max(x, _ZERO), _ONE)


@jit
def _weights(length, size):
    """Of `geometry.crop_resize`: for each place in the result the first pixel in the box, and the pixels' weights."""
    scale = length / size
    stretch = max(scale, 1.0)
    narrow = 1 / stretch
    taps = min(math.ceil(4 * stretch), length)
    first, weights = np.empty(size, np.int64), np.zeros((size, taps), np.float32)
    found = np.empty(taps)
    for i in range(size):
        center = (i + 0.5) * scale
        start = math.floor(center - 2 * stretch + 0.5)
        start = min(max(start, 0), length - taps)
        total = 0.0
        for t in range(taps):
            x = abs(start + t + 0.5 - center) * narrow
            found[t] = 0.0
            if x < 1:
                found[t] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2:
                found[t] = ((-0.5 * x + 2.5) * x - 4) * x + 2
            total += found[t]
        first[i] = start
        total = 1 / total
        for t in range(taps):
            weights[i, t] = found[t] * total
    return first, weights


@jit
def _crop(pool, start, pitch, box, flip, image):
    """From left to right and then from top to bottom, as PIL does it."""
    channels, n = image.shape
    size = round(math.sqrt(n))
    top, left, height, width = box
    first, weights = _weights(width, size)
    if flip:
        first, weights = first[::-1].copy(), weights[::-1].copy()
    weights /= _f(255)
    lines, narrow = np.empty((channels, width), np.float32), np.empty((channels, height, size), np.float32)
    for y in range(height):
        at = start + (top + y) * pitch[1] + left * pitch[2]
        if channels == 3 and pitch[0] == 1 and pitch[2] == 3:
            _deinterleave(pool[at : at + 3 * width], lines[0], lines[1], lines[2])
        else:
            for c in range(channels):
                there, line = np.uint64(at + c * pitch[0]), lines[c]
                for x in range(np.uint64(width)):
                    line[x] = pool[there + x * np.uint64(pitch[2])]
        if channels == 3:
            _three_columns(lines[0], lines[1], lines[2], first, weights, narrow[0, y], narrow[1, y], narrow[2, y])
        else:
            for c in range(channels):
                _columns(lines[c], first, weights, narrow[c, y])
    first, weights = _weights(height, size)
    taps = weights.shape[1]
    for c in range(channels):
        for y in range(size):
            out, s = image[c, y * size : (y + 1) * size], first[y]
            if taps == 4:
                p, q, r, t = narrow[c, s], narrow[c, s + 1], narrow[c, s + 2], narrow[c, s + 3]
                i, j, k, m = weights[y, 0], weights[y, 1], weights[y, 2], weights[y, 3]
                for x in range(size):
                    out[x] = _cut(i * p[x] + j * q[x] + k * r[x] + m * t[x])
            else:
                _rows(narrow[c, s : s + taps], weights[y], out)


@jit
def _deinterleave(pixels, red, green, blue):
    for x in range(len(red)):
        red[x], green[x], blue[x] = pixels[3 * x], pixels[3 * x + 1], pixels[3 * x + 2]


# Unsigned places: a negative one would count from the end, which to check for costs half of the time.


@jit
def _columns(line, first, weights, out):
    """Weighted sums of neighbors, cut to [0, 1]."""
    for x in range(len(out)):
        s, total = np.uint64(first[x]), _ZERO
        for t in range(np.uint64(weights.shape[1])):
            total += weights[x, t] * line[s + t]
        out[x] = _cut(total)


@jit
def _three_columns(red, green, blue, first, weights, out_red, out_green, out_blue):
    """`_columns` of three channels, which read their weights once."""
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    taps = np.uint64(weights.shape[1])
    if taps == 4:  # as nearly all crops that are not shrunk have
        for x in range(len(first)):
            s = np.uint64(first[x])
            a, b, c, d = weights[x, 0], weights[x, 1], weights[x, 2], weights[x, 3]
            out_red[x] = _cut(a * red[s] + b * red[s + one] + c * red[s + two] + d * red[s + three])
            out_green[x] = _cut(a * green[s] + b * green[s + one] + c * green[s + two] + d * green[s + three])
            out_blue[x] = _cut(a * blue[s] + b * blue[s + one] + c * blue[s + two] + d * blue[s + three])
        return
    for x in range(len(first)):
        s = np.uint64(first[x])
        w = weights[x]
        r, g, b = _ZERO, _ZERO, _ZERO
        for t in range(taps):
            r += w[t] * red[s + t]
            g += w[t] * green[s + t]
            b += w[t] * blue[s + t]
        out_red[x], out_green[x], out_blue[x] = _cut(r), _cut(g), _cut(b)


@jit
def _rows(lines, weights, out):
    """The weighted sum of as many lines as there are weights, cut to [0, 1]."""
    taps, k = len(weights), 0
    if taps < 3:
        out[:] = _ZERO
    else:
        a, b, c = weights[0], weights[1], weights[2]
        p, q, r = lines[0], lines[1], lines[2]
        for x in range(len(out)):
            out[x] = a * p[x] + b * q[x] + c * r[x]
        k = 3
    while k + 4 < taps:
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        p, q, r, t = lines[k], lines[k + 1], lines[k + 2], lines[k + 3]
        for x in range(len(out)):
            out[x] += a * p[x] + b * q[x] + c * r[x] + d * t[x]
        k += 4
    while k + 1 < taps:
        a, p = weights[k], lines[k]
        for x in range(len(out)):
            out[x] += a * p[x]
        k += 1
    if k < taps:
        a, p = weights[k], lines[k]
        for x in range(len(out)):
            out[x] = _cut(out[x] + a * p[x])
    else:
        for x in range(len(out)):
            out[x] = _cut(out[x])


@jit
def _luma(r, g, b):
    return _RED * r + _GREEN * g + _BLUE * b


@jit
def _jitter(image, factors, order):
    """Two rounds over tiles: contrast needs the mean gray of what comes before it."""
    n = image.shape[1]
    contrast = 0
    for k in range(4):
        if order[k] == _CONTRAST:
            contrast = k
    total = 0.0
    for start in range(0, n, _TILE):
        r, g, b = image[0, start : start + _TILE], image[1, start : start + _TILE], image[2, start : start + _TILE]
        for k in range(contrast):
            _adjust(r, g, b, order[k], factors[order[k]])
        part: Any = _ZERO
        for i in range(len(r)):
            part += _luma(r[i], g[i], b[i])
        total += part
    mean, factor = _f(total / n), factors[_CONTRAST]
    for start in range(0, n, _TILE):
        r, g, b = image[0, start : start + _TILE], image[1, start : start + _TILE], image[2, start : start + _TILE]
        _toward(r, mean, factor)
        _toward(g, mean, factor)
        _toward(b, mean, factor)
        for k in range(contrast + 1, 4):
            _adjust(r, g, b, order[k], factors[order[k]])


@jit
def _jitter_bands(image, factors, order):
    """Brightness and contrast, each channel's own: what other channels than RGB have of the four."""
    for c in range(len(image)):
        line = image[c]
        for k in range(4):
            if order[k] == _BRIGHTNESS:
                _toward(line, _ZERO, factors[_BRIGHTNESS])
            elif order[k] == _CONTRAST:
                total = 0.0
                for x in line:
                    total += x
                _toward(line, _f(total / len(line)), factors[_CONTRAST])


@jit
def _adjust(r, g, b, which, factor):
    if which == _BRIGHTNESS:
        _toward(r, _ZERO, factor)
        _toward(g, _ZERO, factor)
        _toward(b, _ZERO, factor)
    elif which == _SATURATION:
        _saturation(r, g, b, factor)
    else:
        _hue(r, g, b, factor)


@jit
def _toward(x, gray, factor):
    """Blend with one gray level."""
    for i in range(len(x)):
        x[i] = _cut(gray + factor * (x[i] - gray))


@jit
def _saturation(r, g, b, factor):
    for i in range(len(r)):
        gray = _luma(r[i], g[i], b[i])
        r[i] = _cut(gray + factor * (r[i] - gray))
        g[i] = _cut(gray + factor * (g[i] - gray))
        b[i] = _cut(gray + factor * (b[i] - gray))


@jit
def _hue(r, g, b, factor):
    """As `color.adjust_hue` does it, without branches."""
    turn = _SIX * factor
    for i in range(len(r)):
        x, y, z = r[i], g[i], b[i]
        high, low = max(max(x, y), z), min(min(x, y), z)
        chroma = high - low
        hue = x - y + _FOUR * chroma
        hue = z - x + _TWO * chroma if high == y else hue
        hue = y - z if high == x else hue
        hue = hue / max(chroma, _TINY) + turn
        hue -= _SIX * np.floor(hue * _SIXTH)
        r[i] = low + chroma * _cut(abs(hue - _THREE) - _ONE)
        g[i] = low + chroma * _cut(_TWO - abs(hue - _TWO))
        b[i] = low + chroma * _cut(_TWO - abs(hue - _FOUR))


@jit
def _grayscale(image):
    r, g, b = image[0], image[1], image[2]
    for i in range(len(r)):
        gray = _luma(r[i], g[i], b[i])
        r[i], g[i], b[i] = gray, gray, gray


@jit
def _blur(image, spare, sigma, kernel):
    """As `filters.gaussian_blur`; taps too light to change a float32, beyond 5.3 sigma, are left out."""
    n = image.shape[1]
    size = round(math.sqrt(n))
    radius = min(kernel // 2, int(_REACH * sigma))
    weights = np.empty(radius + 1, np.float32)
    for t in range(radius + 1):
        weights[t] = math.exp(-0.5 * (t / sigma) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    padded = np.empty(size + 2 * radius, np.float32)
    for c in range(len(image)):
        source, target = image[c], spare[c]
        for y in range(size):
            line, out = source[y * size : (y + 1) * size], target[y * size : (y + 1) * size]
            padded[radius : radius + size] = line
            for t in range(1, radius + 1):
                padded[radius - t], padded[radius + size - 1 + t] = line[t], line[size - 1 - t]
            _scaled(weights[0], line, out)
            for t in range(1, radius + 1):
                _add_both(weights[t], padded[radius - t :], padded[radius + t :], out)
        source, target = target, source
        for y in range(size):
            out = target[y * size : (y + 1) * size]
            _scaled(weights[0], source[y * size : (y + 1) * size], out)
            for t in range(1, radius + 1):
                up, down = abs(y - t), size - 1 - abs(size - 1 - y - t)
                _add_both(weights[t], source[up * size : (up + 1) * size], source[down * size : (down + 1) * size], out)


@jit
def _scaled(w, x, out):
    for i in range(len(out)):
        out[i] = w * x[i]


@jit
def _add_both(w, x, y, out):
    for i in range(len(out)):
        out[i] += w * (x[i] + y[i])


@jit
def _solarize(image, threshold):
    for c in range(len(image)):
        line = image[c]
        for i in range(len(line)):
            line[i] = _ONE - line[i] if line[i] >= threshold else line[i]


@jit
def _normalize(image, scale, shift, out):
    if len(image) == 3:  # written in order
        r, g, b = image[0], image[1], image[2]
        for i in range(len(r)):
            out[i, 0] = r[i] * scale[0] + shift[0]
            out[i, 1] = g[i] * scale[1] + shift[1]
            out[i, 2] = b[i] * scale[2] + shift[2]
        return
    for c in range(len(image)):
        line = image[c]
        for i in range(len(line)):
            out[i, c] = line[i] * scale[c] + shift[c]
