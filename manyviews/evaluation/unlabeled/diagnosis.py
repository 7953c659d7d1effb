"""Whether an encoder's features have collapsed, and the numbers that tell without labels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.data import Source, load_canvases, spread_out
from manyviews.errors import UserError, printable
from manyviews.evaluation.baselines import untrained
from manyviews.evaluation.features import SMALL, check_finite, extract_all, frozen
from manyviews.evaluation.unlabeled.spectrum import (
    COLLAPSED,
    alignment,
    describe,
    deviations,
    lidar,
    singular_values,
    uniformity,
)
from manyviews.progress import Update
from manyviews.types import Batch
from manyviews.views import SIMCLR, Color, Global, Strong, View, Views, resolution

FEWEST = 16
"""Fewest images for a spectrum that says anything."""

HEALTHY, FEW, POINT = "healthy", "dimensional collapse", "collapse"
"""Outcomes of a diagnosis."""

_SMALL_COLOR = Color(0.4, 0.4, 0.4, 0.1, blur=0.0)  # SimCLR, appendix B.9
_CHUNK = 64  # images whose views are made at a time
_KEYS = ("rankme", "participation", "auc", "correlation", "constant", "spread")


@dataclass(frozen=True)
class Diagnosis:
    """Numbers about the features of some images.

    Attributes:
        source: name of the data.
        images: number of readable images.
        viewed: number of images that were encoded in several views, and number of views, for `lidar`, `alignment` and
            `uniformity`.
        test_size: side of the encoder's input in pixels.
        dim: dimensions of the features.
        rankme: effective rank, in [1, dim].
        participation: participation ratio of the covariance's eigenvalues, in [1, dim].
        alpha_req: exponent of their power law, best near 1; None where there are too few to fit.
        lidar: effective rank of the linear discriminant matrix, in [1, dim].
        auc: area under the cumulative explained-variance curve, in (0.5, 1], lower is better.
        correlation: mean squared correlation of two dimensions, in [0, 1], lower is less redundant.
        constant: number of dimensions that do not vary.
        spread: 1 when features are uniform on the sphere, 0 when they are one point.
        alignment: distance of two views of an image, in [0, 4]: twice one minus their cosine.
        uniformity: in [-8, 0], lower is more uniform.
        singular_values: singular values of the features, descending.
        deviations: standard deviation of each dimension, descending.
        untrained: rankme and spread of an encoder of the same architecture with fresh weights; None if there is none.
        bad: (where, reason) for each image that could not be read and was left out.
        strong: mean cosine of a view and of the image under RandAugment and a hole (`Strong`), in [-1, 1]; None in
            files of earlier versions.
    """

    source: str
    images: int
    viewed: tuple[int, int]
    test_size: int
    dim: int
    rankme: float
    participation: float
    alpha_req: float | None
    lidar: float
    auc: float
    correlation: float
    constant: int
    spread: float
    alignment: float
    uniformity: float
    singular_values: tuple[float, ...]
    deviations: tuple[float, ...]
    untrained: dict[str, float] | None
    bad: tuple[tuple[str, str], ...]
    strong: float | None = None

    @property
    def cosine(self) -> float:
        """Mean cosine of two views of an image, in [-1, 1]. "Rescuing easy samples" has 0.7069, and `strong` 0.6690."""
        return 1 - self.alignment / 2

    @property
    def state(self) -> str:
        """ "healthy", "dimensional collapse" or "collapse".

        Collapse is a spread below 0.05 and that of the untrained encoder, or below 0.005. Dimensional collapse is an
        effective rank below an eighth of the possible rank and half of the untrained encoder's, or below a fiftieth of
        the possible rank.
        """
        before = self.untrained or {"spread": math.inf, "rankme": 0.0}
        possible = min(self.dim, self.images)
        if self.spread < max(min(COLLAPSED, before["spread"]), COLLAPSED / 10):
            return POINT
        few = max(min(possible / 8, before["rankme"] / 2), possible / 50)
        return FEW if self.rankme < max(few, 1.1) and self.dim > 1 else HEALTHY

    @property
    def verdict(self) -> str:
        """The meaning of the state, in a few sentences."""
        used = f"about {self.rankme:.0f} of {self.dim} dimensions"
        before = "" if self.untrained is None else f" (an untrained encoder: {self.untrained['rankme']:.0f})"
        if self.state == POINT:
            return (
                f"Collapse: all images look nearly the same to the encoder (spread {self.spread:.3f} of 1). "
                "Train again with a lower learning rate or a larger batch."
            )
        if self.state == FEW:
            return (
                f"Dimensional collapse: the features use {used}{before}, and say little of an image. "
                "Train again with a lower learning rate or a larger batch."
            )
        limit = "" if self.images >= self.dim else f" Of {self.images} images no more than {self.images} can be seen."
        return (
            f"Healthy: the features use {used}{before}, and {self.lidar:.0f} tell images apart in spite of the "
            f"augmentations.{limit} This is no measure of accuracy: compare it with other runs of the same method only."
        )

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON can hold it, with the state and the verdict."""
        return dataclasses.asdict(self) | {"state": self.state, "verdict": self.verdict}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """The diagnosis that `to_json` wrote.

        Raises:
            UserError: the text is not a diagnosis.
        """
        try:
            facts = {k: v for k, v in json.loads(text).items() if k not in ("state", "verdict")}
            tuples = {k: tuple(facts[k]) for k in ("viewed", "singular_values", "deviations")}
            return cls(**facts | tuples | {"bad": tuple((where, reason) for where, reason in facts["bad"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"This is not a diagnosis ({type(error).__name__}: {error}).") from None

    def text(self) -> str:
        """All numbers and the verdict, as lines to print."""
        alpha = "-" if self.alpha_req is None else f"{self.alpha_req:.2f}"
        before = self.untrained or {}
        rows = [
            ("RankMe", f"{self.rankme:.1f}", "effective rank", before.get("rankme")),
            ("LiDAR", f"{self.lidar:.1f}", "effective rank of what tells images apart", None),
            ("participation", f"{self.participation:.1f}", "dimensions that hold most of the variance", None),
            ("alpha", alpha, "decay of the spectrum: best near 1", None),
            ("AUC", f"{self.auc:.3f}", "of the spectrum: 0.5 all dimensions alike, 1 only one", None),
            ("correlation", f"{self.correlation:.3f}", "of two dimensions, squared: 0 no redundancy", None),
            ("constant", f"{self.constant}", f"of {self.dim} dimensions do not vary", None),
            ("spread", f"{self.spread:.3f}", "1 evenly over the sphere, 0 one point", before.get("spread")),
            ("alignment", f"{self.alignment:.3f}", "distance of two views of an image, 0 to 4", None),
            ("uniformity", f"{self.uniformity:.2f}", "-4 is even, 0 one point", None),
            ("cosine", f"{self.cosine:.4f}", "of two views of an image", None),
        ]
        if self.strong is not None:
            rows.append(("strong", f"{self.strong:.4f}", "cosine of a view and a strongly augmented one", None))
        lines = [
            f"{name:13} {value:>8}  {words}" + ("" if old is None else f" (untrained: {old:.3g})")
            for name, value, words, old in rows
        ]
        if self.bad:
            where, reason = (printable(text, 80) for text in self.bad[0])
            lines.append(f"{len(self.bad)} images could not be read and were left out (the first: {where}: {reason}).")
        lines.append(f"Of {self.images} images at {self.test_size} pixels; {self.viewed[0]} in {self.viewed[1]} views.")
        return "\n".join([*lines, "", self.verdict])


def diagnose(
    encoder: nn.Module,
    source: Source,
    *,
    view: View | None = None,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    seed: int = 0,
    images: int = 10_000,
    viewed: int = 1_000,
    views: int = 10,
    baseline: bool = True,
    batch_size: int = 256,
    cache: Path | None = None,
    progress: Update | None = None,
) -> Diagnosis:
    """Describe an encoder's features of unlabeled images.

    Spectrum and spread come from images under the test-time transform; LiDAR, alignment and uniformity from random
    views. Unless given, the views are the same for all encoders: SimCLR's, at the encoder's size, and up to 64 pixels
    with half the color and no blur (Chen et al. 2020, appendix B.9). Each image is encoded once more under strong
    augmentations, as "Rescuing easy samples" (Wang et al.) compares them under a supervised ResNet-50.

    Args:
        encoder: `b 3 test_size test_size` to `b d`. It is moved to `device`; its mode stays as it is.
        source: images; labels are ignored.
        view: type of the views; their number is `views`.
        test_size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder.
        seed: seed of the views and of the untrained encoder.
        images: largest number of images, from all over the source. RankMe grows with them, up to several times
            `d`.
        viewed: number of images that are encoded in several views; 1,000 in LiDAR's paper.
        views: number of views of each; 50 in LiDAR's paper, and 10 come within a percent of that.
        baseline: whether to compare with an untrained encoder of the same architecture, if it is an `Encoder`.
        batch_size: images at a time.
        cache: folder for features on disk.
        progress: called now and then.

    Raises:
        UserError: fewer than 16 images can be read, fewer than two views, or features that are not finite.
    """
    if views < 2 or min(images, viewed) < FEWEST:
        raise UserError(f"A diagnosis takes {FEWEST} images and 2 views of each, or more.")
    device = torch.device(device)
    chosen = source.subset(spread_out(len(source), images))
    looked = chosen.subset(spread_out(len(chosen), viewed))
    total = len(chosen) + len(looked) * (views + 1)
    encoders: dict[str, nn.Module] = {"trained": encoder}
    if baseline and isinstance(encoder, Encoder | ExternalEncoder):
        with contextlib.suppress(UserError):  # some modules cannot be initialized again
            encoders["untrained"] = untrained(encoder, seed)
    seen = extract_all(
        encoders,
        chosen,
        test_size=test_size,
        mean=mean,
        std=std,
        device=device,
        batch_size=batch_size,
        cache=cache,
        progress=None if progress is None else lambda done, _: progress(done, total, "reading images"),
    )
    x = seen["trained"].x
    if len(x) < FEWEST:
        raise UserError(f"{source.name} has {len(x)} images that can be read: a diagnosis takes {FEWEST} or more.")
    check_finite(x)
    shown = view or default_view(test_size)
    canvases, _ = load_canvases(looked, resolution([shown]))
    if len(canvases) < 2:
        raise UserError(f"{source.name} has too few images that can be read: a diagnosis takes {FEWEST} or more.")
    encoder.to(device)  # where it is not yet, if its features were kept on disk
    z = _of_views(encoder, canvases, shown, views, seed, mean, std, device, progress, total - len(canvases))
    strong = Strong(1, size=test_size)
    (other,) = _of_views(encoder, canvases, strong, 1, seed, mean, std, device, progress, total).unbind(1)
    numbers = describe(x)
    return Diagnosis(
        source=source.name,
        images=len(x),
        viewed=(len(z), views),
        test_size=test_size,
        dim=x.shape[1],
        alpha_req=numbers.get("alpha_req"),
        lidar=lidar(z),
        alignment=alignment(z[:, 0], z[:, 1]),
        uniformity=uniformity(z[:, 0]),
        singular_values=tuple(singular_values(x).tolist()),
        deviations=tuple(deviations(x).sort(descending=True)[0].tolist()),
        untrained=_compared(seen["untrained"].x) if "untrained" in seen else None,
        bad=tuple(seen["trained"].bad),
        strong=float(cosine_similarity(z[:, 0], other).double().mean()),
        **{k: numbers[k] for k in _KEYS},  # type: ignore[arg-type]
    )


def default_view(size: int) -> View:
    """SimCLR's view at a size in pixels: see `diagnose`."""
    return Global(1, size=size, color=_SMALL_COLOR if size <= SMALL else SIMCLR)


def _compared(x: Tensor) -> dict[str, float]:
    numbers = describe(x)
    return {k: numbers[k] for k in ("rankme", "spread")}


def _of_views(
    encoder: nn.Module,
    canvases: Batch,
    view: View,
    count: int,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    progress: Update | None,
    total: int,
) -> Tensor:
    """Features of `count` views of each canvas, float32 `n count d`; a few images at a time, as views are large."""
    parts, done = [], total - len(canvases) * count
    for rows in torch.arange(len(canvases)).split(_CHUNK):
        chunk, found = canvases[rows].to(device), list[Tensor]()
        for epoch in range(math.ceil(count / view.count)):
            made = Views(chunk, (view,), seed, epoch, tuple(mean), tuple(std))
            for i in range(min(view.count, count - len(found))):
                x = made[view.name, i]
                with frozen(encoder):
                    found.append(encoder(x).float().cpu())
                done += len(chunk)
                if progress is not None:
                    progress(done, total, "looking at views")
        parts.append(torch.stack(found, 1))
    return torch.cat(parts)
