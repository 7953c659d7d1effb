"""Images in memory, and data sets as in torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from manyviews.data.decode import BadImage, Raw
from manyviews.data.folder import CAPTION_NAMES, LABEL_NAMES
from manyviews.data.source import Captions, Labels, Source, as_captions, as_labels, content_ids, unlabeled
from manyviews.errors import UserError, say

_IMAGE_NAMES = ("image", "img")


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
    """Anything with `__len__` and `__getitem__` that gives a PIL image or uint8 array, or (image, label), or a dict.

    A dict, as Hugging Face's data sets give it, has the image as `image` or `img` or as its only image, and perhaps
    `label` and `caption`, or another usual name of these. The labels are the data set's `targets` or `labels`, as in
    torchvision, or its column, as in Hugging Face, else the items' own, for which all items are read once. Items are
    read one at a time, because a data set may share a file handle. torchvision's are read in parallel.

    Raises:
        UserError: it is empty, none of its items can be read, or its images went through a transform.
    """
    name = type(dataset).__name__
    if not len(dataset):
        raise UserError(f"The data set {name} is empty.")
    item = _first_item(dataset, name)
    key = None
    if isinstance(item, Mapping):
        key = _image_key(item)
        if key is None:
            raise UserError(
                f"The items of the data set {name} are dicts of {', '.join(map(str, item))}, without an image: call it "
                "'image', for example with `rename_column`."
            )
    first = _image(item, key)
    if not isinstance(first, Image.Image | bytes | Path) and not (is_array(first) and _is_uint8(first)):
        cure = "make it without a transform" if key is None else "take off its transform or format, `with_format(None)`"
        raise UserError(
            f"The data set {name} gives a {type(first).__name__} where a PIL image or a uint8 array is needed; {cure}, "
            "because views are made later."
        )
    read = _Reader(dataset, key)
    identify, annotate, describe = (
        partial(_identify, dataset, read),
        partial(_annotate, dataset),
        partial(_describe, dataset),
    )
    return Source(name, len(dataset), read, identify, annotate, (name + "[{}]").format, describe=describe)


def _image(item: Any, key: str | None) -> Any:
    if key is not None:
        found = item[key]
        # Hugging Face's images that are not decoded.
        return (found.get("bytes") or Path(found["path"])) if isinstance(found, Mapping) else found
    return item[0] if isinstance(item, tuple) else item


def _image_key(item: Mapping[str, Any]) -> str | None:
    """The field of a dict that is the image: by its name, else the only one that can be."""
    named = next((key for key in _IMAGE_NAMES if item.get(key) is not None), None)
    found = [key for key, value in item.items() if isinstance(value, Image.Image)]
    return named if named is not None else found[0] if len(found) == 1 else None


def _beside(item: Any, names: Sequence[str]) -> Any:
    """The label or text in an item; None if there is none."""
    if isinstance(item, Mapping):
        return next((item[name] for name in names if name in item), None)
    return item[1] if isinstance(item, tuple) and len(item) > 1 else None


def _column(dataset: Any, names: Sequence[str]) -> tuple[str, list[Any]] | None:
    """The first of these columns of a data set of Hugging Face, read without its images."""
    columns = getattr(dataset, "column_names", None)
    name = next((name for name in names if name in columns), None) if isinstance(columns, list) else None
    return None if name is None else (name, list(dataset[name]))


def _first_item(dataset: Any, name: str) -> Any:
    error: Exception | None = None
    for i in range(len(dataset)):
        try:
            return dataset[i]
        except Exception as e:  # it may raise anything, and the other items may be good
            error = error or e
    raise UserError(f"None of the items of the data set {name} can be read; the first raised {error!r}.")


class _Reader:
    """The images of a data set."""

    def __init__(self, dataset: Any, key: str | None) -> None:
        self.__setstate__({"dataset": dataset, "key": key})

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from torchvision.datasets import VisionDataset

        self.dataset, self.key = state["dataset"], state["key"]
        self.lock = nullcontext() if isinstance(self.dataset, VisionDataset) else Lock()

    def __call__(self, i: int) -> Raw:
        try:
            with self.lock:
                image = _image(self.dataset[i], self.key)
        except Exception as error:  # it may raise anything, and the other items may be good
            raise BadImage(f"the data set raised {type(error).__name__}: {error}") from None
        return image if isinstance(image, Image.Image | bytes | Path) else _channels_last(_to_numpy(image))


def _identify(dataset: Any, read: Any) -> list[str]:
    samples = getattr(dataset, "samples", None)  # as torchvision's ImageFolder: (path, label)
    if samples and getattr(dataset, "root", None):
        return [Path(os.path.relpath(path, dataset.root)).as_posix() for path, _ in samples]
    return content_ids(read, len(dataset))


def _annotate(dataset: Any) -> Labels | None:
    given = [getattr(dataset, name, None) for name in ("targets", "labels", "_labels")]
    targets = next((t for t in given if t is not None), None)
    if (column := _column(dataset, LABEL_NAMES)) is not None:
        name, targets = column
        names = getattr(getattr(dataset, "features", {}).get(name), "names", None)
        if lacking := sum(t is None for t in targets):
            if lacking < len(targets):
                say(f"{lacking:,} of {len(targets):,} items have no {name}: none of the labels are used.")
            return None
        return as_labels(targets, names)
    if targets is None:
        targets = []
        for i in range(len(dataset)):
            try:
                item = dataset[i]
            except Exception:  # its image is bad, so any label will do
                targets.append(targets[-1] if targets else None)
                continue
            if (target := _beside(item, LABEL_NAMES)) is None:
                return None
            targets.append(target)
        first = next((t for t in targets if t is not None), None)
        targets = [first if t is None else t for t in targets]
    return as_labels(_to_numpy(targets) if hasattr(targets, "detach") else targets, getattr(dataset, "classes", None))


def _describe(dataset: Any) -> Captions | None:
    """The data set's column of texts, else the items' own, for which all are read once."""
    if isinstance(getattr(dataset, "column_names", None), list):
        column = _column(dataset, CAPTION_NAMES)
        return None if column is None else as_captions(column[1])
    texts: list[Any] = []
    for i in range(len(dataset)):
        try:
            item = dataset[i]
        except Exception:  # its image is left out, with or without a caption
            texts.append(None)
            continue
        if (text := _beside(item, CAPTION_NAMES)) is None:
            return None
        texts.append(text)
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
