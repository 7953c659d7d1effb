"""List groups of images that look like copies of one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyviews import checkpoint, machine
from manyviews.data import Source
from manyviews.data.layout import ALL
from manyviews.errors import UserError, say
from manyviews.evaluation.features import Features, check_finite, extract_all
from manyviews.evaluation.unlabeled import copies
from manyviews.evaluation.unlabeled import duplicates as same
from manyviews.evaluation.unlabeled.whitening import Whitening
from manyviews.progress import progress
from manyviews.reporting import groups as pages
from manyviews.verbs._common import loaded, new_file, opened, preprocessing, seen_by
from manyviews.weights import Pretrained

_COPIES = 512
SEED = 0


@dataclass(frozen=True)
class Duplicates:
    """Images that look like copies of one image.

    Attributes:
        groups: groups of images of which every two are the same, the largest first.
        between: positions of pairs that are the same but not in one group.
        calibration: what planted copies tell.
        images: number of images that were looked at.
        table: the CSV file.
        page: the page to look at.
    """

    groups: list[same.Group]
    between: list[tuple[int, int]]
    calibration: same.Calibration
    images: int
    table: Path
    page: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "file": str(self.table),
            "page": str(self.page),
            "images": self.images,
            "groups": [
                {"ids": g.ids, "similarity": g.similarity, "pixels": g.pixels, "pairs": [asdict(p) for p in g.pairs]}
                for g in self.groups
            ],
            "pairs_between_groups": len(self.between),
            "calibration": asdict(self.calibration),
        }


def duplicates(
    weights: str | Path | Pretrained, data: Any, out: str | Path, threshold: float | None = None
) -> Duplicates:
    """List groups of images that look like copies of one image, in a CSV file and on a page with their pictures.

    Features propose pairs and pixels confirm them. Every two images of a group were found to be the same. Nothing is
    deleted or moved.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        out: a new file; the page is beside it, with the ending .html.
        threshold: cosine similarity of features above which pixels are compared, in (0, 1); None to choose it by
            planted copies of the images.

    Returns:
        The groups, and how they were found.

    Raises:
        UserError: bad input, `out` or the page exists, or there are too many pairs to look at.
    """
    out = new_file(out)
    if out.suffix.lower() in (".html", ".htm"):
        raise UserError(f"--out names the table, and the page is beside it: give {out.with_suffix('.csv')}.")
    page = new_file(out.with_suffix(".html"))
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"The threshold of near-duplicates must be above 0 and below 1, not {threshold:g}.")
    encoder = loaded(weights)
    if encoder.note:
        say(encoder.note)
    (source,) = seen_by(encoder, opened(data, split=ALL))
    how = preprocessing(encoder)
    with progress("duplicates") as update:
        seen = extract_all({"features": encoder.encoder, "grays": same.Gray()}, source, progress=update, **how)
    for where, reason in seen["features"].bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen["features"].x)
    known = measured(encoder.encoder, source, seen["features"], seen["grays"], how, threshold)
    say(known.words)
    pairs = same.proposed(known.features, seen["grays"], known.calibration.limits, machine.device())
    with progress("second look") as update:
        pairs = same.confirmed(pairs, source, known.features.index, update)
    groups, between = same.grouped(known.features, pairs, source)
    found = Duplicates(groups, between, known.calibration, len(known.features), out, page)
    checkpoint.write_text(page, pages.render(source, groups, between, len(known.features), known.words))
    checkpoint.write_text(out, same.to_csv(groups))
    return found


@dataclass(frozen=True)
class Measured:
    """How alike copies are to an encoder.

    Attributes:
        features: features to compare: whitened if they are copy descriptors, of four images or more for each dimension.
        copies: those of the planted copies.
        originals: int64: the row in `features` of the original of each copy.
        calibration: the limits.
        words: what was found, in sentences.
    """

    features: Features
    copies: Features
    originals: torch.Tensor
    calibration: same.Calibration
    words: str


def measured(
    encoder: nn.Module,
    source: Source,
    features: Features,
    grays: Features,
    how: dict[str, Any],
    threshold: float | None,
) -> Measured:
    """Plant copies of the images, and find how alike they are to the encoder.

    Args:
        encoder: the encoder.
        source: the images.
        features: their features.
        grays: their small gray pictures.
        how: how images come to the encoder: see `preprocessing`.
        threshold: similarity of features; None to choose it.
    """
    rows = to_copy(len(features))
    copied = copies.copies_of(source, features.index[rows].tolist(), SEED)
    with progress("planted copies") as update:
        planted = extract_all({"features": encoder, "grays": same.Gray()}, copied, progress=update, **how)
    found, said = planted["features"], ""
    if "descriptor" in getattr(encoder, "spec", {}) and (whiten := Whitening.of(features.x)) is not None:
        features, found = (replace(f, x=whiten(f.x)) for f in (features, found))
        said = " The descriptors are whitened."
    calibration = same.calibrate(
        source, features, grays, copied, found, planted["grays"], rows, threshold, how["device"]
    )
    return Measured(features, found, rows[found.index], calibration, calibration.words + said)


def to_copy(n: int) -> torch.Tensor:
    """Rows to copy: int64, at most 512; each of few images several times, so that all kinds of copies occur."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    times = min(len(copies.KINDS), -(-_COPIES // n))
    return order.repeat_interleave(times)[:_COPIES]
