"""Images in memory, and data sets as in torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from manyviews.data.decode import BadImage, Raw
from manyviews.data.source import Captions, Labels, Source, as_captions, as_labels, content_ids, unlabeled
from manyviews.errors import UserError


def open_arrays(images: Any, labels: Any = None) -> Source:
    """uint8 arrays or tensors, `n h w 3`, `n 3 h w` or `n h w`, and `n` labels, integers or strings.

    Raises:
        UserError: another type or shape, no images, or another number of labels.
    """
    if not is_array(images) or len(images.shape) not in (3, 4) or not _is_uint8(images):
        got = f"{images.dtype} {tuple(images.shape)}" if is_array(images) else type(images).__name__
        raise UserError(f"Images in memory must be uint8, n h w 3, n 3 h w or n h w, not {got}.")
    pixels = _to_numpy(images)
    if pixels.ndim == 4:
        pixels = _channels_last(pixels)
    if not len(pixels):
        raise UserError("The array of images is empty.")
    annotate: Callable[[], Labels | None] = unlabeled
    if labels is not None:
        labels = _to_numpy(labels).ravel()
        if len(labels) != len(pixels):
            raise UserError(f"There are {len(pixels)} images and {len(labels)} labels; give one label for each image.")
        annotate = partial(as_labels, labels)
    read = pixels.__getitem__
    return Source("array", len(pixels), read, partial(content_ids, read, len(pixels)), annotate, "array[{}]".format)


def open_dataset(dataset: Any) -> Source:
    """Anything with `__len__` and `__getitem__` that gives a PIL image or uint8 array, or (image, label).

    The labels are its `targets` or `labels`, as in torchvision, else the items' own, for which all items are read once.
    Items are read one at a time, because a data set may share a file handle. torchvision's are read in parallel.

    Raises:
        UserError: it is empty, none of its items can be read, or its images went through a transform.
    """
    name = type(dataset).__name__
    if not len(dataset):
        raise UserError(f"The data set {name} is empty.")
    first = _first_image(dataset, name)
    if not isinstance(first, Image.Image) and not (is_array(first) and _is_uint8(first)):
        raise UserError(
            f"The data set {name} gives a {type(first).__name__} where a PIL image or a uint8 array is needed; "
            "make it without a transform, because views are made later."
        )
    read = _Reader(dataset)
    identify, annotate, describe = (
        partial(_identify, dataset, read),
        partial(_annotate, dataset),
        partial(_describe, dataset),
    )
    return Source(name, len(dataset), read, identify, annotate, (name + "[{}]").format, describe=describe)


def _image(item: Any) -> Any:
    return item[0] if isinstance(item, tuple) else item


def _first_image(dataset: Any, name: str) -> Any:
    error: Exception | None = None
    for i in range(len(dataset)):
        try:
            return _image(dataset[i])
        except Exception as e:  # it may raise anything, and the other items may be good
            error = error or e
    raise UserError(f"None of the items of the data set {name} can be read; the first raised {error!r}.")


class _Reader:
    """The images of a data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.__setstate__({"dataset": dataset})

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from torchvision.datasets import VisionDataset

        self.dataset = state["dataset"]
        self.lock = nullcontext() if isinstance(self.dataset, VisionDataset) else Lock()

    def __call__(self, i: int) -> Raw:
        try:
            with self.lock:
                image = _image(self.dataset[i])
        except Exception as error:  # it may raise anything, and the other items may be good
            raise BadImage(f"the data set raised {type(error).__name__}: {error}") from None
        return image if isinstance(image, Image.Image) else _channels_last(_to_numpy(image))


def _identify(dataset: Any, read: Any) -> list[str]:
    samples = getattr(dataset, "samples", None)  # as torchvision's ImageFolder: (path, label)
    if samples and getattr(dataset, "root", None):
        return [Path(os.path.relpath(path, dataset.root)).as_posix() for path, _ in samples]
    return content_ids(read, len(dataset))


def _annotate(dataset: Any) -> Labels | None:
    given = [getattr(dataset, name, None) for name in ("targets", "labels", "_labels")]
    targets = next((t for t in given if t is not None), None)
    if targets is None:
        targets = []
        for i in range(len(dataset)):
            try:
                item = dataset[i]
            except Exception:  # its image is bad, so any label will do
                targets.append(targets[-1] if targets else None)
                continue
            if not isinstance(item, tuple) or len(item) < 2:
                return None
            targets.append(item[1])
        first = next((t for t in targets if t is not None), None)
        targets = [first if t is None else t for t in targets]
    return as_labels(_to_numpy(targets) if hasattr(targets, "detach") else targets, getattr(dataset, "classes", None))


def _describe(dataset: Any) -> Captions | None:
    """The items' own texts, for which all are read once."""
    texts: list[Any] = []
    for i in range(len(dataset)):
        try:
            item = dataset[i]
        except Exception:  # its image is left out, with or without a caption
            texts.append(None)
            continue
        if not isinstance(item, tuple) or len(item) < 2:
            return None
        texts.append(item[1])
    return as_captions(texts)


def is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_uint8(x: Any) -> bool:
    return str(x.dtype) in ("uint8", "torch.uint8")


def _to_numpy(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """`... 3 h w` or `... h w 3` to the latter, and one channel to none; two axes are a gray image already."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[-1] not in (1, 3) and pixels.shape[-3] in (1, 3):
        pixels = np.moveaxis(pixels, -3, -1)
    if pixels.shape[-1] not in (1, 3):
        raise UserError(f"Images in memory need 1 or 3 channels, first or last, not the shape {pixels.shape}.")
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
