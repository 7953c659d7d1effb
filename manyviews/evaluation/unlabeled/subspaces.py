"""MAST's subspaces for its augmentations (Huang et al. 2023, figures 3 to 7): masks, invariances, uncertainties.

Embeddings are the means of the images' Gaussians, `n d`; a subspace is one times a column of the masks, `d k`. Other
methods with projections, such as VICReg, are looked at as one subspace "all", whose mask is one everywhere.
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
from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.features import Features, extract, frozen, normalize, test_images
from manyviews.evaluation.linear import Standardizer
from manyviews.methods import Method
from manyviews.methods.mast import MAST
from manyviews.views import MAST_5, Composed, Draws
from manyviews.views.augmentations import Augmentation, ColorJitter, GaussianBlur, ResizedCrop

_TINY = 1e-12


LayOut = Callable[[Tensor], tuple[np.ndarray, str]]
"""Features `n d` to positions on a map, `n 2`, and the name of the algorithm."""


def analyze(
    method: Method,
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
    lay_out: LayOut | None = None,
    mapped: int = 1_000,
) -> dict[str, Any]:
    """All numbers about the subspaces of a trained method, from some images, as JSON can hold them.

    Args:
        method: trained method with projections. It is moved to `device`; its mode stays as it is.
        source: images. With labels of two or more classes, 80 % of them, by a stable hash, train a classifier.
        test_size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder.
        seed: seed of the augmentations whose strength is varied.
        images: largest number of images, from all over the source.
        swept: largest number of images that are augmented, 20 times each.
        batch_size: images at a time.
        lay_out: makes maps of two subspaces; none are made without it.
        mapped: largest number of images on a map.

    Returns:
        Numbers by name; None or missing where labels, variances or augmentations are:

        - "subspaces": their names, in the order of all that follows.
        - "masks": for each subspace the d entries of its mask, to four digits.
        - "correlation": for each two masks; see `correlation`.
        - "order": the subspaces' names, the most diverse first, but MAST-5's before others; see `diverse`.
        - "bad": (where, reason) for each image that could not be read and was left out.
        - "uncertainty": "images" (where they are) and "values"; see `uncertainty`.
        - "invariance": by augmentation: "strength" (its meaning), its "values", "subspaces" (for each, one number per
          value; see `invariance`), "all" (the same without masks), and "trace" (the variance's, mean over images).
        - "accuracy": accuracy of linear classifiers on the "embedding" and on the "ensemble"; see `ensemble`.
        - "predictions": for each subspace; see `predictions`.
        - "maps": "subspaces" (two names, see `pictured`), "positions" (of each, `n 2`), "algorithm", and the images'
          "labels" (figure 3b).
        - "classes": by name, "accuracy" on the embedding, and "mean" and "std" of the uncertainty.

    Raises:
        UserError: no image could be read, or the method has no projections.
    """
    chosen = source.subset(spread_out(len(source), images))
    seen = extract(
        _Gaussian(method), chosen, test_size=test_size, mean=mean, std=std, device=device, batch_size=batch_size
    )
    mu, var = seen.x.chunk(2, 1)
    masks, names = _masks(method, mu.shape[1]), subspaces_of(method)
    unsure = uncertainty(var) if _is_unsure(method) else None
    alike = correlation(masks)
    numbers: dict[str, Any] = {
        "subspaces": list(names),
        "masks": [[round(v, 4) for v in column] for column in masks.T.tolist()],
        "correlation": alike.tolist(),
        "order": order(names, alike),
        "bad": [list(bad) for bad in seen.bad],
        "uncertainty": None,
        "invariance": invariances(
            method,
            chosen,
            test_size=test_size,
            mean=mean,
            std=std,
            device=device,
            seed=seed,
            swept=swept,
            batch_size=batch_size,
        ),
        **_classified(seen, chosen, mu, masks, unsure),
        "maps": None if lay_out is None else _maps(seen, mu, masks, names, alike, lay_out, mapped),
    }
    if unsure is not None:
        numbers["uncertainty"] = {
            "images": [chosen.where(i) for i in seen.index.tolist()],
            "values": unsure.tolist(),
        }
    return numbers


# -- masks -------------------------------------------------------------------------------------------------------


def subspaces_of(method: Method) -> tuple[str, ...]:
    """The names of the subspaces: of their augmentations, or "all"."""
    return method.subspaces if isinstance(method, MAST) else ("all",)


def _masks(method: Method, dim: int) -> Tensor:
    with torch.no_grad():
        return method.masks().float().cpu() if isinstance(method, MAST) else torch.ones(dim, 1)


def _is_unsure(method: Method) -> bool:
    return isinstance(method, MAST) and method.uncertainty


def _embed(method: Method, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of views, `b d` each; ones where there are none."""
    if method.online is None:
        raise UserError("This method has no projections to look at: take a run of mast or vicreg.")
    z = method.online(x)
    return z if isinstance(z, tuple) else (z, torch.ones_like(z))


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


def order(names: Sequence[str], alike: Tensor) -> list[str]:
    """The names in the order of `diverse`: MAST-5's five first where there are more, as in figure 4b."""
    five = [a.name for a in MAST_5]
    first = [names.index(name) for name in five] if len(names) > 5 and set(five) <= set(names) else []
    return [names[k] for k in diverse(alike, first)]


def pictured(names: Sequence[str], alike: Tensor) -> list[int]:
    """The two subspaces of figure 3b, resized crops and grayscale; without them, the two that are least alike."""
    if {"resized_crop", "grayscale"} <= set(names):
        return [names.index("resized_crop"), names.index("grayscale")]
    if len(names) < 2:
        return [0]
    a, b = divmod(int(alike.argmin()), len(names))
    return [a, b]


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


def swept_of(method: Method) -> tuple[Augmentation, ...]:
    """The method's augmentations that have a strength; MAST-5's if its views are not composed."""
    view = method.views[0]
    return tuple(a for a in (view.augmentations if isinstance(view, Composed) else MAST_5) if type(a) in _SWEEPS)


def invariances(
    method: Method,
    source: Source,
    *,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    seed: int = 0,
    swept: int = 1_000,
    batch_size: int = 256,
    augmentations: Sequence[Augmentation] | None = None,
) -> dict[str, Any]:
    """Invariances and traces by strength: "invariance" in `analyze`, whose arguments these are.

    Args:
        augmentations: those to vary, of `swept_of`; the method's own if None.
    """
    source = source.subset(spread_out(len(source), swept))
    chosen = swept_of(method) if augmentations is None else augmentations
    kinds = {k.name: (k, *_SWEEPS[type(k)]) for k in chosen}
    sums: dict[str, Tensor] = {}
    count = 0

    def embed(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, var = _embed(method, normalize(255 * x, mean, std))
        return mu.cpu(), var.sum(1).cpu()

    for pixels, good, _ in test_images(source, test_size, batch_size):
        if not good:
            continue
        x, draws = pixels.to(device) / 255, Draws(seed, 0, torch.tensor(good, device=device))
        with frozen(method):
            original, _ = embed(x)
            masks = _masks(method, original.shape[1])
            with_all = torch.cat([masks, torch.ones(len(masks), 1)], 1)
            for name, (kind, _, values, at) in kinds.items():
                sums.setdefault(name, torch.zeros(len(values), with_all.shape[1] + 1))
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
            "trace": (sums[name][:, -1] / count).tolist() if _is_unsure(method) else None,
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


# -- maps --------------------------------------------------------------------------------------------------------


def _maps(
    seen: Features, mu: Tensor, masks: Tensor, names: Sequence[str], alike: Tensor, lay_out: LayOut, most: int
) -> dict[str, Any]:
    """Two subspaces in two dimensions (figure 3b)."""
    rows, which = spread_out(len(mu), most), pictured(names, alike)
    laid = [lay_out(mu[rows] * masks[:, k]) for k in which]
    return {
        "subspaces": [names[k] for k in which],
        "algorithm": laid[0][1],
        "positions": [np.round(positions.astype(float), 3).tolist() for positions, _ in laid],
        "labels": None if seen.labels is None else seen.labels[rows].tolist(),
    }


class _Gaussian(nn.Module):
    """Means and variances side by side, `b 2*d`, as features are extracted."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(_embed(self.method, x), 1)
