"""Semantic segmentation by a linear layer on frozen patch features (Oquab et al. 2024, "DINOv2", section 7.4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.backbones.encoder import Encoder
from manyviews.data.canvas import in_threads
from manyviews.data.decode import BadImage
from manyviews.data.left import listed
from manyviews.errors import UserError
from manyviews.evaluation.dense.files import Bad, check_counts, check_rates
from manyviews.evaluation.dense.legend import IGNORED
from manyviews.evaluation.dense.maps import Maps, encode_all, resized
from manyviews.evaluation.dense.masks import Masked, Masks, open_masks
from manyviews.evaluation.dense.report import Dense
from manyviews.evaluation.descent import descend, stepping
from manyviews.evaluation.linear import Standardizer
from manyviews.evaluation.metrics import LEVEL, Interval
from manyviews.progress import Update

LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

_WARMUP = 0.04  # share of the steps: DINOv2's 1,500 of 40,000
_DECAY = 1e-4
_MEMORY = 4 * 2**30  # bytes of features and masks of a split that are held; more are extracted again
_AT_ONCE = 16  # images that are decoded and encoded together
_RESAMPLES = 2000


def segment(
    encoder: Encoder,
    data: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    test_size: int | None = None,
    stages: Sequence[int] | None = None,
    ignore: int | None = None,
    epochs: int = 50,
    lrs: Sequence[float] = LRS,
    batch: int = 16,
    pixels: int | None = 4096,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Update | None = None,
) -> Dense:
    """Linear segmentation on frozen patch features: mIoU on the test images.

    A linear layer learns from the standardized features of each position, its logits bilinearly upsampled to the mask.
    Cross-entropy by AdamW (weight decay 1e-4), 4 % warm-up, then linear to zero, in batches of 16 like DINOv2's. The
    learning rate is the first best by mIoU on the validation images; its layer predicts the test images once. The same
    seed gives the same result.

    Our choices, where DINOv2 differs or is silent: images are seen whole, without augmentation, so features are
    extracted once; features are standardized by those of all training images instead of by BatchNorm; epochs replace
    40,000 steps; and the loss of a step is over `pixels` random pixels of each image, which equals that over all pixels
    on average.

    mIoU is the mean over classes that are in any test mask or prediction, with intersections and unions summed over all
    test images. Its interval is a bootstrap over the images.

    Args:
        encoder: encoder to judge. It is moved to `device`, and stays as it is.
        data: folder of images with masks: see `masks.open_masks`.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        test_size: short side of the encoder's input in pixels; None: the image's own, at most 512.
        stages: stages of the network whose maps are used: see `maps.Maps`. None: the last one.
        ignore: value of the masks that does not count, in addition to those that the data names.
        epochs: passes over the training images.
        lrs: learning rates to try, all at once.
        batch: images per step.
        pixels: pixels of each image in the loss of a step, drawn with replacement; None: all.
        device: device to compute on.
        seed: seed of the order, the pixels and the interval.
        progress: called after every batch of images or features.

    Raises:
        UserError: data in no known layout, or without a usable image.
    """
    return fit(
        encoder,
        data,
        mean=mean,
        std=std,
        test_size=test_size,
        stages=stages,
        ignore=ignore,
        epochs=epochs,
        lrs=lrs,
        batch=batch,
        pixels=pixels,
        device=device,
        seed=seed,
        progress=progress,
    )[0]


def fit(
    encoder: Encoder,
    data: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    test_size: int | None = None,
    stages: Sequence[int] | None = None,
    ignore: int | None = None,
    epochs: int = 50,
    lrs: Sequence[float] = LRS,
    batch: int = 16,
    pixels: int | None = 4096,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Update | None = None,
) -> tuple[Dense, Head, Masks]:
    """`segment`, with the layer that was chosen and the images."""
    check_counts(epochs=epochs, batch=batch, lrs=len(lrs), pixels=pixels or 1, test_size=test_size or 1)
    check_rates(*lrs)
    start, device = time.monotonic(), torch.device(device)
    found = open_masks(Path(data), ignore)
    maps = Maps(encoder.to(device), stages)
    bad: Bad = list(found.bad)

    def encoded(name: str, pairs: list[Masked]) -> Iterator[_Example]:
        return _encoded(found, pairs, maps, mean, std, test_size, device, bad, name, progress)

    def usable(name: str, images: int, of: list[Masked]) -> None:
        if not images:
            reason = f" (the last: {bad[-1][1]})" if bad else ""
            raise UserError(f"None of the {len(of)} {name} images of {data} can be used{reason}.")

    classes = len(found.classes)
    train = _Train(partial(encoded, "train"), found.train)
    usable("train", len(train), found.train)
    statistics = _statistics(train, classes, maps.dim)
    notes = [*found.notes, *_absent(found.classes, statistics.counts, data)]
    heads = _train(train, statistics, lrs, epochs, batch, pixels, seed, device, progress)
    tried = _tallies(encoded("validation", found.val), heads)
    usable("validation", len(tried[0]), found.val)
    scores = [miou(t) for t in tried]
    best = scores.index(max(scores))
    tallies, constant = _tallies(encoded("test", found.test), [heads[best], _constant(statistics, device)])
    usable("test", len(tallies), found.test)
    right, _, true = tallies.sum(0).double()
    judged = Dense(
        task="segmentation",
        metric="mIoU",
        value=miou(tallies),
        interval=interval(tallies, seed),
        details={
            "pixel accuracy": (right.sum() / true.sum()).item(),
            "mean class accuracy": (right / true)[true > 0].mean().item(),
        },
        per_class=dict(zip(found.classes, ious(tallies), strict=True)),
        baselines={"always the most frequent class": miou(constant)},
        setting={"lr": lrs[best], "epochs": epochs},
        validation={f"lr {lr:g}": score for lr, score in zip(lrs, scores, strict=True)},
        images={"train": len(train), "validation": len(tried[0]), "test": len(tallies)},
        bad=tuple(dict.fromkeys(bad)),
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )
    return judged, heads[best], found


def _absent(classes: Sequence[str], counts: Tensor, data: str | Path) -> list[str]:
    """A sentence about classes without a training pixel.

    Raises:
        UserError: only one class has pixels.
    """
    absent = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if not absent:
        return []
    said = f"No training mask has a pixel of {listed(absent)}"
    if len(classes) - len(absent) < 2:
        raise UserError(
            f"{said} in {data}, so there is nothing to tell apart: check the values of the masks, which are the "
            "numbers of the classes in the list, from 0."
        )
    return [f"{said}: nothing is learned about it. Check that the list of classes fits the values of the masks."]


# -- measures ----------------------------------------------------------------------------------------------------


def tally(predicted: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Pixels of each class that are predicted correctly, that are predicted, and that exist, without ignored ones.

    Int64 `3 classes`. It suffices for mIoU, and is smaller than a confusion matrix for each image.
    """
    found, true = predicted[mask != IGNORED], mask[mask != IGNORED]
    return torch.stack([torch.bincount(v, minlength=classes) for v in (true[found == true], found, true)])


def ious(tallies: Tensor) -> list[float | None]:
    """Intersection over union of each class, from the images' tallies, `m 3 c`; None where both are empty."""
    both, either = _overlaps(tallies).sum(0)
    return [b / e if e else None for b, e in zip(both.tolist(), either.tolist(), strict=True)]


def miou(tallies: Tensor) -> float:
    """Mean of `ious` without None."""
    there = [v for v in ious(tallies) if v is not None]
    return sum(there) / len(there)


def interval(tallies: Tensor, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """Percentile bootstrap interval of `miou` over the images."""
    m, classes = len(tallies), tallies.shape[2]
    overlaps = _overlaps(tallies).double().numpy().reshape(m, -1)
    counts = np.random.default_rng(seed).multinomial(m, np.full(m, 1 / m), size=resamples)
    both, either = np.moveaxis((counts @ overlaps).reshape(resamples, 2, classes), 1, 0)
    each = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
    low, high = np.percentile(np.nanmean(each, 1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _overlaps(tallies: Tensor) -> Tensor:
    """Intersections and unions, `m 2 c`."""
    both, predicted, true = tallies.unbind(1)
    return torch.stack([both, predicted + true - both], 1)


# -- examples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Example:
    """Features of an image, float32 `d h w`, and its mask, int16 `H W` of classes and IGNORED, both on the CPU."""

    files: Masked
    features: Tensor
    mask: Tensor


def _encoded(
    found: Masks,
    pairs: list[Masked],
    maps: Maps,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None,
    device: torch.device,
    bad: Bad,
    name: str,
    progress: Update | None,
) -> Iterator[_Example]:
    """The good images, in order; the others go to `bad`."""

    def read(one: Masked) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            image, mask = found.read(one)
            return resized(image, size, maps.stride), mask
        except BadImage as error:
            return error.reason

    starts = range(0, len(pairs), _AT_ONCE)
    for begin, results in zip(starts, in_threads(read, (pairs[i : i + _AT_ONCE] for i in starts)), strict=True):
        some = dict(zip(pairs[begin : begin + _AT_ONCE], results, strict=True))
        bad += [(str(one.image), r) for one, r in some.items() if isinstance(r, str)]
        good = {one: r for one, r in some.items() if not isinstance(r, str)}
        features = encode_all(maps, [image for image, _ in good.values()], mean, std, device)
        for one, x, (_, mask) in zip(good, features, good.values(), strict=True):
            yield _Example(one, x.cpu(), torch.from_numpy(mask.astype(np.int16)))
        if progress is not None:
            progress(min(begin + _AT_ONCE, len(pairs)), len(pairs), f"features of {name} images")


class _Train:
    """The good training images in any order, again and again: from memory, if it holds them."""

    def __init__(self, read: Callable[[list[Masked]], Iterable[_Example]], pairs: list[Masked]) -> None:
        self._read = read
        self._good: list[Masked] = []
        self._held: list[_Example] = []
        taken = 0
        for one in read(pairs):
            self._good.append(one.files)
            taken += one.features.nbytes + one.mask.nbytes
            if taken <= _MEMORY:
                self._held.append(one)
        if taken > _MEMORY:
            self._held.clear()

    def __len__(self) -> int:
        return len(self._good)

    def __call__(self, order: Sequence[int]) -> Iterable[_Example]:
        return (self._held[i] for i in order) if self._held else self._read([self._good[i] for i in order])


@dataclass(frozen=True)
class _Statistics:
    """Standardization of the training images' features, and pixels of each class, int64 `c`."""

    standard: Standardizer
    counts: Tensor


def _statistics(train: _Train, classes: int, dim: int) -> _Statistics:
    positions = 0
    total, squares = torch.zeros(2, dim, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.int64)
    for one in train(range(len(train))):
        x = one.features.flatten(1).double()
        positions += x.shape[1]
        total += x.sum(1)
        squares += x.square().sum(1)
        counts += torch.bincount(one.mask[one.mask != IGNORED].long(), minlength=classes)
    mean = total / positions
    std = (squares / positions - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6 * (mean.abs() + std.max()), std, 1.0)  # see `Standardizer.of`
    return _Statistics(Standardizer(mean.float(), std.float()), counts)


# -- layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A linear layer on unstandardized features: `c d` and `c`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """`d h w` to `c h w`."""
        return torch.einsum("cd,dhw->chw", self.weight, features) + self.bias[:, None, None]


def _constant(statistics: _Statistics, device: torch.device) -> Head:
    """A layer that always predicts the most frequent class."""
    counts = statistics.counts.float().to(device)
    return Head(torch.zeros(len(counts), len(statistics.standard.mean), device=device), counts)


def _train(
    train: _Train,
    statistics: _Statistics,
    lrs: Sequence[float],
    epochs: int,
    batch: int,
    pixels: int | None,
    seed: int,
    device: torch.device,
    progress: Update | None,
) -> list[Head]:
    """A layer for each learning rate. They share every batch, and each learns as it would alone."""
    classes, d = len(statistics.counts), len(statistics.standard.mean)
    mean, std = statistics.standard.mean.to(device), statistics.standard.std.to(device)
    weights = [torch.zeros(classes, d, device=device, requires_grad=True) for _ in lrs]
    biases = [torch.zeros(classes, device=device, requires_grad=True) for _ in lrs]
    optimizer = torch.optim.AdamW(
        [{"params": [w, b], "lr_scale": lr} for w, b, lr in zip(weights, biases, lrs, strict=True)], weight_decay=_DECAY
    )
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order and pixels on every device

    def batches() -> Iterator[list[_Example]]:
        for _ in range(epochs):
            examples = iter(train(torch.randperm(len(train), generator=generator).tolist()))
            while some := list(islice(examples, batch)):
                yield some

    def backward(some: list[_Example]) -> None:
        for one in some:
            x = (one.features.to(device) - mean[:, None, None]) / std[:, None, None]
            mask = one.mask.to(device).long()
            logits = Head(torch.cat(weights), torch.cat(biases))(x)
            found, wanted = _at_random(logits, mask, pixels, generator) if pixels else _at_all(logits, mask)
            each = F.cross_entropy(found.view(len(lrs), classes, -1), wanted.expand(len(lrs), -1), reduction="none")
            # The mean over the image's pixels and the batch's images, summed over the layers, which share nothing.
            (each.mean(1).sum() / len(some)).backward()

    per_epoch = math.ceil(len(train) / batch)
    steps = epochs * per_epoch
    for step in descend(batches(), stepping(optimizer, backward), partial(_rate, steps=steps)):
        if progress is not None:
            progress(step, steps, f"epoch {1 + (step - 1) // per_epoch} of {epochs}")
    heads = []
    for w, b in zip(weights, biases, strict=True):
        scaled = (w / std).detach()
        heads.append(Head(scaled, b.detach() - scaled @ mean))
    return heads


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: up from zero in 4 % of the steps, then down to zero."""
    warm = max(1.0, _WARMUP * steps)
    return min((step + 1) / warm, (steps - step) / max(1.0, steps - warm + 1))


def _at_all(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinearly upsampled logits and classes of all pixels that count: `c n` and `n`."""
    sized = F.interpolate(logits[None], size=mask.shape, mode="bilinear")[0]
    counted = mask != IGNORED
    return sized[:, counted], mask[counted]


def _at_random(logits: Tensor, mask: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same for n random pixels, drawn with replacement."""
    counted = (mask.flatten() != IGNORED).nonzero().flatten()
    chosen = counted[torch.randint(len(counted), (n,), generator=generator).to(mask.device)]
    h, w = mask.shape
    # Pixel centers from -1 to 1, x before y.
    grid = torch.stack([(2 * (chosen % w) + 1) / w - 1, (2 * (chosen // w) + 1) / h - 1], 1)
    found = F.grid_sample(logits[None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0], mask.flatten()[chosen]


def _tallies(examples: Iterable[_Example], heads: Sequence[Head]) -> list[Tensor]:
    """Tallies of the images for each layer, int64 `m 3 c`. A layer that diverged predicts the first class."""
    classes = len(heads[0].bias)
    found: list[list[Tensor]] = [[] for _ in heads]
    for one in examples:
        for head, rows in zip(heads, found, strict=True):
            logits = head(one.features.to(head.bias.device))
            sized = F.interpolate(logits[None], size=one.mask.shape, mode="bilinear")[0]
            rows.append(tally(sized.nan_to_num().argmax(0).cpu(), one.mask.long(), classes))
    empty = torch.zeros(0, 3, classes, dtype=torch.int64)
    return [torch.stack(rows) if rows else empty for rows in found]
