"""Monitoring: the encoder on clean images that it does not train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from manyviews.backbones import Encoder
from manyviews.data import Source, load_canvases, split
from manyviews.data.left import listed
from manyviews.errors import UserError
from manyviews.evaluation import alignment, encode, knn, rankme, spread, test_images, uniformity
from manyviews.evaluation.features import frozen, normalize
from manyviews.evaluation.unlabeled.kept import cosine, layers, linear_cka, moved
from manyviews.evaluation.unlabeled.spectrum import describe
from manyviews.methods import Method
from manyviews.methods.method import Branch
from manyviews.settings import Recipe
from manyviews.targets import Balance, Center
from manyviews.types import Batch
from manyviews.views import Crop, Views

MOST = 1000
"""The most images that are held out, and the most training images whose labels vote on them."""

FEWEST = 16
"""The fewest held-out images whose spectrum means something."""

_COMPARED = 512  # held-out images whose features are compared with those at the start
_PAIRS = 256  # held-out images of which two views are compared
_PATCHES = 4096  # features of patches whose spectrum is measured


def hold_out(source: Source, fraction: float) -> tuple[Source, Source]:
    """The images to train on and the images to hold out, chosen by a stable hash of each image's name."""
    share = min(fraction, MOST / len(source))
    if share * len(source) < FEWEST:  # too few to learn anything from, and missing from training
        return source, source.subset([])
    parts = split(source.ids, {"train": 1 - share, "watch": share}, salt="watch")
    return source.subset(parts["train"]), source.subset(parts["watch"][:MOST])


def uses_classes(source: Source, recipe: Recipe) -> bool:
    """Whether labels are measured with, if there are any: not where folders are probably no classes."""
    wanted = recipe.monitor.classes
    return not source.by_folder or wanted == "yes" or (wanted == "auto" and not source.doubt)


def classes_note(source: Source, recipe: Recipe) -> str:
    """A sentence about folders that are, or are not, taken as classes, and how to change it; empty without folders."""
    names = source.classes
    if not source.by_folder or names is None or len(names) < 2:
        return ""
    if uses_classes(source, recipe):
        shown = f"its {len(names)} folders ({listed(names)}) are classes for the accuracy while training"
        return f"{source.name}: {shown}; --set monitor.classes=no leaves it out."
    if not source.doubt:
        return ""
    return (
        f"{source.name}: its folders are not taken as classes while training, because {source.doubt}. If they are "
        "classes: --set monitor.classes=yes."
    )


@dataclass(frozen=True)
class HeldOut:
    """The images on which a run is monitored, in memory.

    Attributes:
        pixels: uint8, `n 3 s s`, held-out images under the test-time transform.
        labels: int64, `n`, or None without labels.
        train_pixels: uint8, `m 3 s s`, training images whose labels vote on the held-out ones; none without labels.
        train_labels: int64, `m`.
        batch: up to 256 held-out images of which views are made.
        old: labeled images of the domain that the weights come from, if they were given.
    """

    pixels: Tensor
    labels: Tensor | None
    train_pixels: Tensor
    train_labels: Tensor
    batch: Batch
    old: Old | None = None


class Old(NamedTuple):
    """Labeled images of the old domain, under the test-time transform: uint8 `n c s s` and int64 `n`."""

    train_pixels: Tensor
    train_labels: Tensor
    pixels: Tensor
    labels: Tensor


def prepare(train: Source, held: Source, recipe: Recipe, canvas: int, old: Source | None = None) -> HeldOut | None:
    """Read the images to monitor with, views from canvases of that size; None when there are too few."""
    if len(held) < FEWEST:
        return None
    pixels, labels = _read(held, recipe.test_size)
    if len(pixels) < FEWEST:
        return None
    train_pixels, train_labels = pixels[:0], None
    if labels is not None and len(labels.unique()) > 1 and uses_classes(held, recipe):
        train_pixels, train_labels = _read(train.subset(_spread_out(len(train), MOST)), recipe.test_size)
    batch, _ = load_canvases(held.subset(_spread_out(len(held), _PAIRS)), canvas)
    if train_labels is None:
        train_labels = torch.empty(0, dtype=torch.int64)
    remembered = None if old is None else _old(old, recipe.test_size)
    return HeldOut(pixels, labels if len(train_pixels) else None, train_pixels, train_labels, batch, remembered)


def _old(source: Source, size: int) -> Old:
    """Up to 1,000 images whose labels vote, and up to 1,000 on which they do, chosen by a stable hash."""
    parts = split(source.ids, {"vote": 0.5, "judge": 0.5}, salt="old")
    found: list[Tensor] = []
    for part in parts.values():
        chosen = np.asarray(part)[_spread_out(len(part), MOST)]
        pixels, labels = _read(source.subset(chosen), size)
        if labels is None or len(pixels) < FEWEST or len(labels.unique()) < 2:
            raise UserError(
                f"{source.name} has too few images with labels to measure forgetting on: give some dozens, of two "
                "classes or more, or leave --old out."
            )
        found += [pixels, labels]
    return Old(*found)


class Kept:
    """How far an encoder is from where it started, on held-out images.

    Args:
        start: the encoder at the start, plain, on the CPU.
        held: held-out images.
        recipe: how they are normalized, and how the encoder is adapted.
        device: where to compute.
    """

    def __init__(self, start: Encoder, held: HeldOut, recipe: Recipe, device: torch.device) -> None:
        self._pixels = held.pixels[_spread_out(len(held.pixels), _COMPARED)]
        self._recipe, self._device = recipe, device
        self._weights = start.model.state_dict()
        self._features = self._layers(start.to(device))
        start.cpu()

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Linear CKA and cosine with the features at the start, and how far the weights moved.

        Returns:
            cka, cosine: of the pooled features.
            moved: distance of all weights from those at the start, relative to their norm.
            cka/LAYER, moved/LAYER: the same for each layer.
        """
        plain = self._recipe.adaptation.finish(encoder)
        now, weights = self._layers(plain), plain.model.state_dict()
        found = {"cosine": cosine(self._features[""], now[""])}
        found |= {f"cka/{name}".rstrip("/"): linear_cka(x, now[name]) for name, x in self._features.items()}
        return found | {f"moved/{name}".rstrip("/"): far for name, far in moved(self._weights, weights).items()}

    def _layers(self, encoder: Encoder) -> dict[str, Tensor]:
        data = self._recipe.data
        return layers(encoder, self._pixels, mean=data.mean, std=data.std, device=self._device)


def _spread_out(n: int, most: int) -> np.ndarray:
    """Up to `most` of n indices, evenly spaced: sets are often in the order of their classes."""
    return np.linspace(0, n - 1, min(most, n)).astype(int)


def _read(source: Source, size: int) -> tuple[Tensor, Tensor | None]:
    pixels, index = [], []
    for batch, good, _ in test_images(source, size):
        if good:
            pixels.append(batch)
            index += good
    labels = None if source.labels is None else torch.from_numpy(source.labels[index])
    return torch.cat(pixels) if pixels else torch.empty(0, source.reading.count, size, size, dtype=torch.uint8), labels


def measure(
    method: Method, held: HeldOut, recipe: Recipe, device: torch.device, kept: Kept | None = None
) -> dict[str, float]:
    """Measure the encoder as it is now, in `eval()` mode.

    Returns:
        dim: dimensions of the features.
        rankme: effective rank of the held-out features (Garrido et al. 2023).
        participation, alpha_req, auc, correlation, constant: see `manyviews.evaluation.unlabeled.spectrum.describe`.
        spread: standard deviation of the normalized features over images, averaged over dimensions and scaled so that
            1 is uniform on the sphere and 0 is collapse.
        alignment, uniformity: of two views of each image (Wang and Isola 2020).
        patch_dim, patch_rankme, patch_spread: the same numbers of patches of up to 256 images, for transformers.
        patch_cosine: mean cosine of a patch and the class token, or the image's mean patch where there is none. Patch
            features that decay along a run become like it (Simeoni et al. 2025).
        projection_dim, projection_rankme, projection_spread: the same numbers of the projections of one view of up to
            256 images, for methods with an `online` network. Methods that center what they compare (DINO) have none:
            all their projections share a direction, which is no collapse.
        knn, linear: with labels, accuracies on held-out images; the linear probe is a ridge regression, in closed form.
        old_knn: with images of the old domain, the accuracy there.
        what `Kept` measures, with it.
    """
    encoder, branch = method.kept_encoder, _branch(method)

    def features(pixels: Tensor) -> Tensor:
        return encode(encoder, pixels, mean=recipe.data.mean, std=recipe.data.std, device=device).cpu()

    x = features(held.pixels)
    numbers = {"dim": x.shape[1]} | describe(x)
    if encoder.is_transformer:
        numbers |= _of_patches(encoder, held.pixels[_spread_out(len(held.pixels), _PAIRS)], recipe, device)
    kind = next((kind for kind in method.views if isinstance(kind, Crop)), None)
    if kind is not None:
        a, b = (_of_view(encoder, kind, held, recipe, device, epoch) for epoch in (0, 1))
        numbers |= {"alignment": alignment(a, b), "uniformity": uniformity(a)}
    if kind is not None and branch is not None:
        z = _of_view(branch, kind, held, recipe, device, 0)
        numbers |= {"projection_dim": z.shape[1], "projection_rankme": rankme(z), "projection_spread": spread(z)}
    if held.labels is not None:
        train = features(held.train_pixels)
        k = min(20, len(train))
        numbers["knn"] = knn(train, held.train_labels, x, held.labels, ks=[k]).weighted[k]
        numbers["linear"] = _ridge(train, held.train_labels, x, held.labels)
    if held.old is not None:
        old = held.old
        voters, k = features(old.train_pixels), min(20, len(old.train_pixels))
        numbers["old_knn"] = knn(voters, old.train_labels, features(old.pixels), old.labels, ks=[k]).weighted[k]
    if kept is not None:
        numbers |= kept.measure(encoder)
    return {k: float(v) for k, v in numbers.items()}


def _branch(method: Method) -> Branch | None:
    """The trained network with its projector, if its projections are meaningful by themselves."""
    return None if any(isinstance(m, Center | Balance) for m in method.modules()) else method.online


def _of_patches(encoder: Encoder, pixels: Tensor, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """The numbers of the features of patches."""
    patches, cosines = [], []
    with frozen(encoder):
        for part in pixels.split(64):
            found = encoder.features(normalize(part.to(device), recipe.data.mean, recipe.data.std))
            x = found.patches.float()
            against = found.prefix[:, :1].float() if found.prefix.shape[1] else x.mean(1, keepdim=True)
            cosines.append(cosine_similarity(x, against, dim=2).mean(1))
            every = len(pixels) * x.shape[1] // _PATCHES | 1  # odd: other columns in each row
            patches.append(x.flatten(0, 1)[::every].cpu())
    z = torch.cat(patches)
    numbers: dict[str, float] = {"patch_dim": z.shape[1], "patch_rankme": rankme(z), "patch_spread": spread(z)}
    return numbers | {"patch_cosine": float(torch.cat(cosines).mean())}


def _of_view(module: nn.Module, kind: Crop, held: HeldOut, recipe: Recipe, device: torch.device, epoch: int) -> Tensor:
    """The module's output for the first view of a kind: the same images and draws every time."""
    data = recipe.data
    views = Views(held.batch.to(device), (kind,), recipe.seed, epoch, data.mean, data.std)
    x = views[kind.name, 0]  # outside `frozen`: on a GPU, the code that is compiled for it serves the steps too
    with frozen(module):
        found = module(x)
    first: Tensor = found[0] if isinstance(found, tuple) else found  # the mean of a Gaussian
    return first.float().cpu()


def _ridge(train: Tensor, train_labels: Tensor, x: Tensor, labels: Tensor) -> float:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(train.shape[1])))
    return float(probe.fit(train.numpy(), train_labels.numpy()).score(x.numpy(), labels.numpy()))


def measurements(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The measurements among the lines of a log, in their order."""
    found = [
        {k.removeprefix("monitor/"): v for k, v in row.items() if k.startswith("monitor/") and not isinstance(v, str)}
        for row in rows
    ]
    return [numbers for numbers in found if numbers]
