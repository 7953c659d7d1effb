"""MAST's subspaces for its augmentations (Huang et al. 2023, figures 3 to 7): masks, invariances, uncertainties.

Embeddings are the means of the images' Gaussians, `n d`; a subspace is one times a column of the masks, `d k`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.data.source import Source
from manyviews.data.split import split, spread_out
from manyviews.evaluation import metrics
from manyviews.evaluation.features import Features, extract, frozen, normalize, test_images
from manyviews.evaluation.linear import Standardizer
from manyviews.methods.mast import MAST
from manyviews.views import Draws
from manyviews.views.augmentations import Augmentation, ColorJitter, GaussianBlur, ResizedCrop

_TINY = 1e-12


def analyze(
    method: MAST,
    source: Source,
    *,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    seed: int = 0,
    images: int = 5_000,
    swept: int = 1_000,
    batch_size: int = 256,
) -> dict[str, Any]:
    """All numbers about the subspaces of a trained method, from some images, as JSON can hold them.

    Args:
        method: trained method. It is moved to `device`; its mode stays as it is.
        source: images. With labels of two or more classes, 80 % of them, by a stable hash, train a classifier.
        test_size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder.
        seed: seed of the augmentations whose strength is varied.
        images: largest number of images, from all over the source.
        swept: largest number of images that are augmented, 20 times each.
        batch_size: images at a time.

    Returns:
        Numbers by name; None or missing where labels, variances or augmentations are:

        - "subspaces": their names, in the order of all that follows.
        - "masks": for each subspace the d entries of its mask, to four digits.
        - "correlation": for each two masks; see `correlation`.
        - "order": the subspaces' names, the most diverse first; see `diverse`.
        - "bad": (where, reason) for each image that could not be read and was left out.
        - "uncertainty": "images" (where they are) and "values"; see `uncertainty`.
        - "invariance": by augmentation: "strength" (its meaning), its "values", "subspaces" (for each, one number per
          value; see `invariance`), "all" (the same without masks), and "trace" (the variance's, mean over images).
        - "accuracy": accuracy of linear classifiers on the "embedding" and on the "ensemble"; see `ensemble`.
        - "predictions": for each subspace; see `predictions`.
        - "classes": by name, "accuracy" on the embedding, and "mean" and "std" of the uncertainty.

    Raises:
        UserError: no image could be read.
    """
    chosen = source.subset(spread_out(len(source), images))
    seen = extract(
        _Gaussian(method), chosen, test_size=test_size, mean=mean, std=std, device=device, batch_size=batch_size
    )
    mu, var = seen.x.chunk(2, 1)
    with torch.no_grad():
        masks = method.masks().float().cpu()
    unsure = uncertainty(var) if method.uncertainty else None
    alike = correlation(masks)
    numbers: dict[str, Any] = {
        "subspaces": list(method.subspaces),
        "masks": [[round(v, 4) for v in column] for column in masks.T.tolist()],
        "correlation": alike.tolist(),
        "order": [method.subspaces[k] for k in diverse(alike)],
        "bad": [list(bad) for bad in seen.bad],
        "uncertainty": None,
        "invariance": _sweeps(
            method, chosen.subset(spread_out(len(chosen), swept)), masks, test_size, mean, std, device, seed, batch_size
        ),
        **_classified(seen, chosen, mu, masks, unsure),
    }
    if unsure is not None:
        numbers["uncertainty"] = {
            "images": [chosen.where(i) for i in seen.index.tolist()],
            "values": unsure.tolist(),
        }
    return numbers


# -- masks -------------------------------------------------------------------------------------------------------


def correlation(masks: Tensor) -> Tensor:
    """Similarity of augmentations: the cosine similarity of their masks (figure 4a), `d k` to `k k`, in [0, 1].

    A mask of zeros is similar to none, not even to itself.
    """
    columns = F.normalize(masks.double(), dim=0)
    return (columns.T @ columns).clamp(0, 1)


def diverse(alike: Tensor, first: Sequence[int] = ()) -> list[int]:
    """An order of the augmentations that adds the most different first (figure 4b), by their correlation, `k k`.

    The next is the one with the lowest mean correlation with those before. The paper starts from MAST-5,
    `first=range(5)`; from none, the first is the one with the lowest mean correlation with all others.
    """
    order, rest = list(first), [k for k in range(len(alike)) if k not in first]
    while rest:
        found = {k: alike[k, order or [j for j in rest if j != k]] for k in rest}
        best = min(rest, key=lambda k: found[k].mean().item() if len(found[k]) else 0.0)
        order.append(best)
        rest.remove(best)
    return order


def ensemble(mu: Tensor, masks: Tensor) -> Tensor:
    """All subspaces next to each other, `n k*d` (table 3, "MAST-5 (ensemble)"), the first subspace first.

    The paper's ensemble has 2048 x 5 dimensions, although masks have 4096, and leaves open which features were masked;
    here it is the embedding. A linear classifier can weigh a dimension as it weighs a masked one, so an ensemble
    differs from the embedding only by its penalty and by dimensions that are in no mask.
    """
    return (mu[:, None] * masks.T).flatten(1)


# -- images ------------------------------------------------------------------------------------------------------


def invariance(mu: Tensor, changed: Tensor, masks: Tensor) -> Tensor:
    """Cosine similarity of images and augmented images in every subspace, mean over images (figure 7): `k`, in [-1, 1].

    Args:
        mu: embeddings of the images, `n d`.
        changed: embeddings of the same images, augmented, `n d`.
        masks: `d k`.
    """
    squares = masks.double().square()
    a, b = mu.double(), changed.double()
    lengths = (a.square() @ squares).sqrt() * (b.square() @ squares).sqrt()
    return ((a * b) @ squares / lengths.clamp(min=_TINY)).mean(0)


def uncertainty(var: Tensor) -> Tensor:
    """One number for each image: the trace of its covariance, rescaled so that these images' are from 0 to 1.

    Appendix B. Variances `n d` to `n`; zeros when all have the same.
    """
    trace = var.double().sum(1)
    low, high = trace.min(), trace.max()
    # A range within rounding is none: dividing by it would make noise.
    return (trace - low) / (high - low) if high - low > 1e-6 * high else torch.zeros_like(trace)


def predictions(mu: Tensor, labels: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Support of each subspace for an image's own class: its logit minus the bias, mean over images (figure 6), `k`.

    Args:
        mu: embeddings of images that are classified correctly, as the classifier sees them, `n d`.
        labels: their classes, int64, `n`.
        masks: `d k`.
        weight: weights of a linear classifier on whole embeddings, `classes d`.
    """
    return ((mu.double() * weight.double()[labels]) @ masks.double()).mean(0)


Sweep = tuple[str, tuple[float, ...], Callable[[Any, float], Augmentation]]
"""Meaning of a strength, the strengths, weakest first, and a function that gives an augmentation one strength."""


def _jitter(kind: ColorJitter, factor: float) -> ColorJitter:
    scaled = {k: factor * getattr(kind, k) for k in ("brightness", "contrast", "saturation")}
    return replace(kind, hue=min(0.5, factor * kind.hue), **scaled)


# Figure 7's three; the values are ours, from no change to stronger than in training.
_SWEEPS: dict[type[Augmentation], Sweep] = {
    ColorJitter: ("factor on the strength in training", (0.0, 0.5, 1.0, 1.5, 2.0, 2.5), _jitter),
    GaussianBlur: (
        "standard deviation, pixels",
        (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
        lambda kind, sigma: replace(kind, sigma=(sigma, sigma)),
    ),
    ResizedCrop: (
        "area of the crop",
        (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05),
        lambda kind, area: replace(kind, area=(area, area), ratio=(1.0, 1.0)),
    ),
}


def _sweeps(
    method: MAST,
    source: Source,
    masks: Tensor,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Invariances and traces by strength, for those of the method's augmentations that have one."""
    with_all = torch.cat([masks, torch.ones(len(masks), 1)], 1)
    kinds = {k.name: (k, *_SWEEPS[type(k)]) for k in method.view.augmentations if type(k) in _SWEEPS}
    sums = {name: torch.zeros(len(values), with_all.shape[1] + 1) for name, (_, _, values, _) in kinds.items()}
    count = 0

    def embed(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, var = method.embed(normalize(255 * x, mean, std))
        return mu.cpu(), var.sum(1).cpu()

    for pixels, good, _ in test_images(source, test_size, batch_size):
        if not good:
            continue
        x, draws = pixels.to(device) / 255, Draws(seed, 0, torch.tensor(good, device=device))
        with frozen(method):
            original, _ = embed(x)
            for name, (kind, _, values, at) in kinds.items():
                for row, value in zip(sums[name], values, strict=True):
                    # The same draws at every strength: two differ by the strength alone.
                    changed, trace = embed(at(kind, value)(x, draws.at(name)))
                    row += len(good) * torch.cat([invariance(original, changed, with_all), trace.mean()[None]])
        count += len(good)
    return {
        name: {
            "strength": what,
            "values": list(values),
            "subspaces": (sums[name][:, :-2] / count).T.tolist(),
            "all": (sums[name][:, -2] / count).tolist(),
            "trace": (sums[name][:, -1] / count).tolist() if method.uncertainty else None,
        }
        for name, (_, what, values, _) in kinds.items()
    }


# -- classes -----------------------------------------------------------------------------------------------------


def _classified(seen: Features, source: Source, mu: Tensor, masks: Tensor, unsure: Tensor | None) -> dict[str, Any]:
    """Numbers from labels, by a logistic regression on 80 % of the standardized embeddings, tested on the others."""
    nothing = {"accuracy": None, "predictions": None, "classes": None}
    if seen.labels is None or source.classes is None:
        return nothing
    y, names = seen.labels, source.classes
    train, test = map(torch.from_numpy, split(seen.ids, {"train": 0.8, "test": 0.2}, salt="subspaces").values())
    if len(y[train].unique()) < 2 or not len(test):
        return nothing
    x = Standardizer.of(mu[train])(mu)
    guessed, weight = _logistic(x[train], y[train], x[test], len(names))
    together, _ = _logistic(ensemble(x[train], masks), y[train], ensemble(x[test], masks), len(names))
    right = guessed == y[test]
    by_class = metrics.per_class(right, y[test], len(names))
    rows = {k: y == k for k in range(len(names)) if (y == k).any()}
    return {
        "accuracy": {
            "embedding": right.double().mean().item(),
            "ensemble": (together == y[test]).double().mean().item(),
        },
        "predictions": predictions(x[test][right], y[test][right], masks, weight).tolist() if right.any() else None,
        "classes": {
            names[k]: {
                "accuracy": by_class[k],
                "mean": None if unsure is None else unsure[mine].mean().item(),
                "std": None if unsure is None else unsure[mine].std(correction=0).item(),
            }
            for k, mine in rows.items()
        },
    }


def _logistic(x: Tensor, y: Tensor, test_x: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Predicted classes, int64, `m`, and a logistic regression's weights, `classes d`, zero for unseen classes."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    # With two classes it keeps the second's weights only.
    rows = np.concatenate([-found.coef_, found.coef_]) if len(found.classes_) == 2 else found.coef_
    weight[torch.from_numpy(found.classes_)] = torch.from_numpy(rows).double()
    return torch.from_numpy(found.predict(test_x.numpy())), weight


class _Gaussian(nn.Module):
    """Means and variances side by side, `b 2*d`, as features are extracted."""

    def __init__(self, method: MAST) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        mu, var = self.method.embed(x)
        return torch.cat([mu, var], 1)
