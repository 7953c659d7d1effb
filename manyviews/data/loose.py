"""Images that a program holds or names: arrays, tensors, PIL images, paths, and lists of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manyviews.data.decode import Raw
from manyviews.data.left import listed
from manyviews.data.memory import is_array
from manyviews.data.source import Labels, Source, as_labels, unlabeled
from manyviews.errors import UserError

SOME = 5
"""Names of images in a message."""


def open_paths(paths: Sequence[str | os.PathLike[str]], labels: Any = None) -> Source:
    """Image files, in this order, under the names that they were given by.

    Args:
        paths: the files.
        labels: one integer or string for each, if they have labels.

    Raises:
        UserError: no files, files that do not exist, or another number of labels.
    """
    names = [os.fspath(path) for path in paths]
    files = [Path(name).expanduser() for name in names]
    if not names:
        raise UserError("The list of images is empty.")
    gone = [name for name, file in zip(names, files, strict=True) if not os.path.isfile(file)]
    if gone:
        raise UserError(f"{len(gone)} of {len(names)} paths are no files: {listed(gone, SOME)}.")
    annotate: Callable[[], Labels | None] = unlabeled
    if labels is not None:
        labels = np.asarray(labels).ravel()
        if len(labels) != len(names):
            raise UserError(f"There are {len(names)} paths and {len(labels)} labels; give one label for each image.")
        annotate = partial(as_labels, labels)
    return Source("list of paths", len(files), files.__getitem__, partial(list, names), annotate, names.__getitem__)


def are_paths(x: Any) -> bool:
    """Whether `x` is a list of paths, or an array or column of them."""
    return bool(isinstance(x, (list, tuple)) and x and all(isinstance(path, str | os.PathLike) for path in x))


def open_images(images: Any, channels: int = 3) -> Source | None:
    """Images that a program holds or names, one row for each; None for anything else, such as a folder.

    Args:
        images: an array, `h w`, `h w c`, `n h w` or `n h w c`; a tensor, `h w`, `c h w`, `n h w` or `n c h w`; a PIL
            image; the path of one image; or a list of these, or a NumPy array or pandas column of paths. Numbers are
            uint8, or floats in [0, 1], which are rounded to 8 bits as those of files.
        channels: channels of the encoder, which tell one image of three axes from several.

    Raises:
        UserError: something else in a list, another type or shape, or floats out of [0, 1].
    """
    if is_array(images) and getattr(images.dtype, "kind", "") in ("O", "U", "S"):
        images = np.asarray(images).ravel().tolist()  # a column of paths or of images
    if are_paths(images):
        return open_paths(images)
    if isinstance(images, (list, tuple)):
        if not images:
            raise UserError("The list of images is empty.")
        found = [_one(x, f"images[{i}]", channels) for i, x in enumerate(images)]
    elif isinstance(images, (Image.Image, bytes)):
        found = [_one(images, "image", channels)]
    elif is_array(images):
        found = _several(images, channels)
    elif isinstance(images, str | os.PathLike) and Path(images).suffix and _is_image(Path(images).expanduser()):
        return open_paths([images])
    else:
        return None
    names = ["image"] if len(found) == 1 else [f"images[{i}]" for i in range(len(found))]
    return Source("images", len(found), found.__getitem__, partial(list, names), locate=names.__getitem__)


def _is_image(file: Path) -> bool:
    """Whether a path is one image, and not a Parquet file, an archive or a folder."""
    from manyviews.data.formats import HEAD, sniff

    try:
        with file.open("rb") as opened:
            return sniff(opened.read(HEAD)) is not None
    except OSError:
        return False


def _one(x: Any, where: str, channels: int) -> Raw:
    """One image of a list."""
    if isinstance(x, (Image.Image, bytes)):
        return x
    if isinstance(x, str | os.PathLike):
        file = Path(x).expanduser()
        if not os.path.isfile(file):
            raise UserError(f"{where} is no file: {os.fspath(x)}.")
        return file
    if is_array(x):
        found = _several(x, channels, where)
        if len(found) == 1:
            return found[0]
        raise UserError(f"{where} has the shape {tuple(x.shape)}, which is {len(found)} images: give one, h w c.")
    raise UserError(f"{where} is of type {type(x).__name__}: give a path, a PIL image or an array.")


def _several(x: Any, channels: int, where: str = "The array") -> list[Raw]:
    """The images of an array or tensor: uint8, `h w` or `h w c` each."""
    tensor, shape = hasattr(x, "detach"), tuple(x.shape)
    pixels = _bytes(x, where)
    possible = sorted({1, 3, 4, channels})
    axis = 0 if tensor else -1
    kind = "c h w" if tensor else "h w c"
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3:
        one, other = pixels.shape[axis] in possible, pixels.shape[-1 - axis] in possible
        if other and not one:
            raise UserError(
                f"{where} has the shape {shape}, which is one image with its channels at the other end, or several "
                f"gray ones: give one image as {kind}, or gray ones as n {kind} with one channel."
            )
        pixels = np.moveaxis(pixels, axis, -1)[None] if one else pixels
    elif pixels.ndim == 4:
        pixels = np.moveaxis(pixels, 1, -1) if tensor else pixels
        if pixels.shape[-1] not in possible:
            wanted = " or ".join(map(str, possible))
            raise UserError(f"{where} has the shape {shape}: give n {kind} with {wanted} channels.")
    else:
        raise UserError(f"{where} has the shape {shape}: give n {kind}, or one image, {kind}.")
    if not len(pixels):
        raise UserError(f"{where} holds no images: its shape is {shape}.")
    return [_raw(one, channels) for one in pixels]


def _raw(pixels: np.ndarray, channels: int) -> Raw:
    """One image as `decode` reads it: colors of files with transparency, unless the encoder takes four channels."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1 and channels != 1:
        return pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels)) if pixels.shape[-1] == 4 != channels else pixels


def _bytes(x: Any, where: str) -> np.ndarray:
    """Numbers of an image as uint8. Floats are in [0, 1], and are rounded to the nearest of 256 values."""
    tensor = hasattr(x, "detach")
    if tensor and x.is_floating_point():
        x = x.detach().float().cpu()
    pixels = np.asarray(x.detach().cpu() if tensor else x)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise UserError(f"{where} is of {pixels.dtype}: give uint8, or floats in [0, 1].")
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # not a number is neither
        raise UserError(
            f"{where} holds floats from {low:g} to {high:g}, and images are floats in [0, 1]: divide by 255 what "
            "is from 0 to 255, and leave out your own normalization."
        )
    found = np.empty(pixels.shape, np.uint8)
    for i, row in enumerate(pixels):  # one at a time: all of them in floats are much larger
        found[i] = np.rint(row * 255)
    return found
