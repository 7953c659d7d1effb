"""What is watched while training: the encoder on clean images it does not train on, and signs of collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manyviews.data import Source, load_canvases, split
from manyviews.evaluation import alignment, encode, knn, rankme, spread, test_images, uniformity
from manyviews.methods import Method
from manyviews.recipe import Recipe
from manyviews.types import Canvases
from manyviews.views import Views

MOST = 1000
"""Images that are held out, and training images with which their labels are predicted, at most."""

COLLAPSED = 0.05
"""The spread of features below which all images look the same to the encoder."""

_FEW = 16  # held-out images below which a spectrum says nothing
_PAIRS = 256  # held-out images of which two views are compared


def hold_out(source: Source, fraction: float) -> tuple[Source, Source]:
    """The images to train on, and those to watch: a stable hash of each image's name decides, the same everywhere."""
    share = min(fraction, MOST / len(source))
    if share * len(source) < _FEW:  # would say nothing, and be missing from training
        return source, source.subset([])
    parts = split(source.ids, {"train": 1 - share, "watch": share}, salt="watch")
    return source.subset(parts["train"]), source.subset(parts["watch"][:MOST])


@dataclass(frozen=True)
class Watch:
    """Images in memory to look at again and again.

    Attributes:
        held: uint8, `n 3 s s`, held out of training, under the test-time transform.
        held_labels: int64, `n`, or None without labels.
        known: uint8, `m 3 s s`, training images whose labels vote on the held-out ones; none without labels.
        known_labels: int64, `m`.
        canvases: up to 256 held-out images of which views are made.
    """

    held: Tensor
    held_labels: Tensor | None
    known: Tensor
    known_labels: Tensor
    canvases: Canvases


def prepare(train: Source, held: Source, recipe: Recipe) -> Watch | None:
    """Read the images to watch; None when there are too few."""
    if len(held) < _FEW:
        return None
    pixels, labels = _read(held, recipe.test_size)
    if len(pixels) < _FEW:
        return None
    known, known_labels = pixels[:0], None
    if labels is not None and len(labels.unique()) > 1:
        known, known_labels = _read(train.subset(_spread_out(len(train), MOST)), recipe.test_size)
    canvases, _ = load_canvases(held.subset(_spread_out(len(held), _PAIRS)), recipe.data.canvas)
    empty = torch.empty(0, dtype=torch.int64)
    return Watch(
        pixels, labels if len(known) else None, known, empty if known_labels is None else known_labels, canvases
    )


def _spread_out(n: int, most: int) -> np.ndarray:
    """Up to `most` of n indices, from all over: the order of a set is often that of its classes."""
    return np.linspace(0, n - 1, min(most, n)).astype(int)


def _read(source: Source, size: int) -> tuple[Tensor, Tensor | None]:
    pixels, index = [], []
    for batch, good, _ in test_images(source, size):
        if good:
            pixels.append(batch)
            index += good
    labels = None if source.labels is None else torch.from_numpy(source.labels[index])
    return torch.cat(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8), labels


def observe(method: Method, watch: Watch, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Numbers on the encoder as it is now, evaluated (`eval()`) on clean images.

    Returns:
        rankme: effective rank of the held-out features (Garrido et al. 2023).
        spread: standard deviation of the normalized features over images, averaged over dimensions and scaled so that
            1 is uniform on the sphere and 0 is collapse.
        alignment, uniformity: of two views of each image (Wang and Isola 2020).
        knn, linear: with labels, accuracies on held-out images; the linear probe is a ridge regression, in closed form.
    """
    encoder = method.keep

    def features(pixels: Tensor) -> Tensor:
        return encode(encoder, pixels, mean=recipe.data.mean, std=recipe.data.std, device=device).cpu()

    x = features(watch.held)
    a, b = (_views(method, watch, recipe, device, epoch) for epoch in (0, 1))
    numbers = {
        "rankme": rankme(x),
        "spread": spread(x),
        "alignment": alignment(a, b),
        "uniformity": uniformity(a),
    }
    if watch.held_labels is not None:
        known = features(watch.known)
        k = min(20, len(known))
        numbers["knn"] = knn(known, watch.known_labels, x, watch.held_labels, ks=[k]).weighted[k]
        numbers["linear"] = _ridge(known, watch.known_labels, x, watch.held_labels)
    return {k: float(v) for k, v in numbers.items()}


def _views(method: Method, watch: Watch, recipe: Recipe, device: torch.device, epoch: int) -> Tensor:
    """Features of the first view of the method's first kind; the same images and draws at every observation."""
    kind, data, encoder = method.looks[0], recipe.data, method.keep
    views = Views(watch.canvases.to(device), (kind,), recipe.seed, epoch, data.mean, data.std)
    modes = [(m, m.training) for m in encoder.modules()]
    encoder.eval()
    with torch.inference_mode():
        x = encoder(views[kind.name, 0]).float().cpu()
    for module, training in modes:
        module.training = training
    return x


def _ridge(known: Tensor, known_labels: Tensor, x: Tensor, labels: Tensor) -> float:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(known.shape[1])))
    return float(probe.fit(known.numpy(), known_labels.numpy()).score(x.numpy(), labels.numpy()))


def warn(numbers: dict[str, float], step: int, say: Callable[[str], None]) -> None:
    """Say in plain words when the features have collapsed. What an untrained encoder has is no collapse."""
    if step == 0:
        return
    if numbers["spread"] < COLLAPSED:
        say(
            f"Warning: the features have collapsed: all images look nearly the same to the encoder (spread "
            f"{numbers['spread']:.3f} of 1). A lower learning rate or a larger batch may help."
        )
    elif numbers["rankme"] < 3:
        say(
            f"Warning: the features are collapsing: they use about {numbers['rankme']:.1f} dimensions. "
            "A lower learning rate or a larger batch may help."
        )
