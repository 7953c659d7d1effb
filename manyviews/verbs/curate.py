"""Choose the images to learn from: without copies and outliers, like a curated set, and balanced."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit

from manyviews import checkpoint, machine
from manyviews.checkpoint import load_tensors
from manyviews.data import Source
from manyviews.data.decode import BadImage
from manyviews.data.layout import ALL
from manyviews.data.lists import ENDINGS, write_list
from manyviews.data.loose import open_images
from manyviews.errors import UserError, say
from manyviews.evaluation import index as indices
from manyviews.evaluation.features import Features, check_finite, extract
from manyviews.evaluation.unlabeled import curation, stages
from manyviews.evaluation.unlabeled import duplicates as same
from manyviews.progress import progress
from manyviews.reporting import curated as pages
from manyviews.verbs._common import loaded, new_file, opened, preprocessing, say_once, seen_by
from manyviews.verbs.duplicates import measured
from manyviews.verbs.pretrain import address
from manyviews.verbs.search import index_folder
from manyviews.weights import Pretrained

_GRAY = 65  # numbers of a small gray picture: see `duplicates.Gray`
_AS_LARGE = 0.9  # share of the most pixels from which a copy is as large
_FRAME = 10.0  # deviation of gray values up to which a row or column at the border is a frame


@dataclass(frozen=True)
class Settings:
    """How images are chosen.

    Attributes:
        duplicates: "auto": planted copies of the images choose how alike copies are; a cosine similarity in (0, 1)
            from which pixels are compared; "off": keep all copies.
        outliers: share of the images to drop, in [0, 1).
        like: images to be like, such as a folder or a list of paths: see `Pretrained.embed`.
        by: "images": keep the `near` nearest images to each image of `like`; "clusters": keep the clusters of k-means
            that hold one of them.
        near: images to keep for each image of `like`.
        similarity: keep only images whose cosine similarity to the nearest image of `like` is at least this.
        most: of the images that are like them, keep at most so many, the most similar.
        balance: number of images of a balanced sample.
        seed: seed of clusters and samples.

    Raises:
        UserError: a value out of its range.
    """

    duplicates: Literal["auto", "off"] | float = "auto"
    outliers: float = 0.0
    like: Any = None
    by: Literal["images", "clusters"] = "images"
    near: int = 32
    similarity: float | None = None
    most: int | None = None
    balance: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        copied = self.duplicates
        if copied not in ("auto", "off") and (isinstance(copied, str) or not 0 < copied < 1):
            raise UserError(f"--duplicates is auto, off, or a similarity above 0 and below 1, not {copied}.")
        if not 0 <= self.outliers < 1:
            raise UserError(f"--outliers is a share of the images, at least 0 and below 1, not {self.outliers:g}.")
        if self.by not in ("images", "clusters"):
            raise UserError(f"--by is images or clusters, not {self.by}.")
        if self.like is None and (self.by, self.near, self.similarity, self.most) != ("images", 32, None, None):
            raise UserError(
                "--by, --near, --similarity and --most say how to be like other images: give them as --like."
            )
        for name in ("near", "most", "balance"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is 1 image or more, not {value}.")
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise UserError(f"--similarity is a cosine, from -1 to 1, not {self.similarity:g}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        named = isinstance(self.like, str | Path)
        like = None if self.like is None else address(self.like) if named else "images in memory"
        return {**vars(self), "like": like}


@dataclass(frozen=True)
class Curated:
    """What was written.

    Attributes:
        path: the list.
        page: the page of dropped images.
        images: number of images of the source.
        kept: how many of them the list keeps.
        dropped: how many were dropped, by reason.
        notes: what each stage did, in sentences.
    """

    path: Path
    page: Path
    images: int
    kept: int
    dropped: dict[str, int]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "path": str(self.path), "page": str(self.page)}


def curate(data: Any, weights: str | Path | Pretrained, out: str | Path, **settings: Any) -> Path:
    """Choose the images of a collection to learn from, and write which, and why not the others, to a list and a page.

    No image is changed, moved or deleted. Other verbs take the list as their data. The stages, in this order:

    1. Of images that look like copies of one another one is kept: of the largest that of
       the most bytes. See `manyviews.evaluation.unlabeled.duplicates`.
    2. The images that are farthest from their ten nearest neighbors are dropped.
    3. Images like a curated set are kept, the others dropped.
    4. A balanced sample is drawn: see `manyviews.evaluation.unlabeled.curation.balanced`.

    The columns of the list are `id`; `path`, where the image is, for people; `position` in the collection; `kept`;
    `reason` ("unreadable", "duplicate", "outlier", "unlike" or "balance"); `duplicate_of`, the id of the kept copy;
    `isolation`, mean cosine distance to the ten nearest; `similarity` to the nearest image of `like`; and `cluster`.
    They are empty where a stage did not look.

    Args:
        data: images: see `manyviews.data.open_source`. Of data in splits the training images are taken.
        weights: a run folder or weights: see `manyviews.load`.
        out: a new file that ends in .parquet or .csv. The page is beside it, with the ending .html.
        settings: `duplicates`, `outliers`, `like`, `by`, `near`, `similarity`, `most`, `balance` and `seed`: see
            `Settings`.

    Returns:
        The path of the list.

    Raises:
        UserError: bad input, `out` or the page exists, or no image is left.
    """
    return write(data, weights, out, **settings).path


def write(data: Any, weights: str | Path | Pretrained, out: str | Path, **settings: Any) -> Curated:
    """`curate`, and what it wrote."""
    out = new_file(out)
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"A list is written as {' or '.join(ENDINGS)}, by the ending of --out, not to {out}.")
    page = new_file(out.with_suffix(".html"))
    if out.suffix.lower() == ".csv":
        new_file(out.with_name(f"{out.name}.json"))
    asked = Settings(**settings)
    known = loaded(weights)
    if known.note:
        say_once(known.note)
    like = None if asked.like is None else open_images(asked.like, len(known.mean)) or opened(asked.like, split=ALL)
    files = opened(data)
    source, *seeds = seen_by(known, files, *([] if like is None else [like]))
    if len(source) != len(files):
        raise UserError(
            f"{known.name} sees each picture of a file as an image, and a list is of files: prepare them first."
        )
    how = preprocessing(known)
    folder = index_folder(known.encoder, source, how, also="small gray pictures")
    with progress("features") as update:
        made = indices.build(_Both(known.encoder), source, folder, progress=update, **how)
    for file, why in made.bad:
        say(f"Skipped {file}: {why}")
    x, grays, rows = _gathered(made)
    wanted = _seeds(known.encoder, seeds[0], how) if seeds else None

    choice = stages.Choice(len(source), rows)
    if asked.duplicates != "off":
        features = Features(x, None, rows, [source.ids[i] for i in rows.tolist()], made.bad)
        groups, words = _copies(known.encoder, source, features, grays, how, asked)
        stages.drop_copies(choice, groups, lambda group: keep_of(source, group), words)
    if asked.outliers:
        stages.drop_outliers(choice, x, asked.outliers, asked.seed)
    if wanted is not None:
        stages.keep_alike(
            choice,
            x,
            wanted,
            by=asked.by,
            near=asked.near,
            similarity=asked.similarity,
            most=asked.most,
            seed=asked.seed,
        )
    if asked.balance is not None:
        with progress("clusters") as update:
            stages.keep_balanced(choice, x, asked.balance, asked.seed, update)
    kept = choice.reason.count("")
    dropped = {why: count for why in stages.REASONS if (count := Counter(choice.reason)[why])}
    checkpoint.write_text(page, pages.render(source, choice, choice.notes, kept))
    facts = {"weights": known.name, "settings": asked.to_dict(), "notes": choice.notes}
    write_list(out, _columns(source, choice), address(data), facts)
    return Curated(out, page, len(source), kept, dropped, choice.notes)


def keep_of(source: Source, group: Sequence[int]) -> int:
    """Which image of a group of copies to keep: of the largest that of the most bytes, and the first of equals.

    Images of 90 % of the most pixels are as large; a frame of one color does not count. Bytes tell compressed copies
    where images are files; sharpness does not, because compression adds edges.
    """
    pixels, size = np.array([_quality(source, i) for i in group]).T
    large = np.flatnonzero(pixels >= _AS_LARGE * pixels.max()).tolist()
    return group[max(large, key=lambda k: size[k])]


def _quality(source: Source, i: int) -> tuple[int, int]:
    """Number of pixels within a frame, and of bytes where it is known; none of an image that cannot be read."""
    try:
        raw = source.read(i)
        size = raw.stat().st_size if isinstance(raw, Path) else len(raw) if isinstance(raw, bytes) else 0
        gray = np.atleast_3d(np.asarray(source.load(i), dtype=np.float32)).mean(2)
    except (BadImage, OSError):
        return 0, 0
    spans = [np.flatnonzero(gray.std(axis) > _FRAME) for axis in (1, 0)]
    return int(np.prod([span[-1] - span[0] + 1 if len(span) else 1 for span in spans])), size


class _Both(nn.Module):
    """Features of length one, then the small gray pictures by which copies are found."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.gray = encoder, same.Gray()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([unit(self.encoder(x).float(), dim=1), unit(self.gray(x.float()), dim=1)], 1)


def _gathered(made: indices.Index) -> tuple[Tensor, Tensor, Tensor]:
    """Features, small gray pictures (both float16), and positions in the source.

    Features lie in a temporary file if they would take more than a quarter of the free memory.
    """
    positions = torch.cat([load_tensors(part)[0]["index"] for part in made.parts])
    first = next(x for part in made.parts if len(x := load_tensors(part)[0]["x"]))
    shape = len(positions), first.shape[1] - _GRAY
    if 2 * shape[0] * shape[1] <= machine.free_memory() // 4:
        x = torch.empty(shape, dtype=torch.float16)
    else:
        with tempfile.TemporaryFile() as file:
            x = torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))
    grays, done = torch.empty(shape[0], _GRAY, dtype=torch.float16), 0
    for part in made.parts:
        found = load_tensors(part)[0]["x"]
        if len(found):
            x[done : done + len(found)] = unit(found[:, :-_GRAY].float(), dim=1)
            grays[done : done + len(found)] = found[:, -_GRAY:]
            done += len(found)
    return x, grays, positions


def _seeds(encoder: nn.Module, source: Source, how: dict[str, Any]) -> Tensor:
    """Features of the images to be like, of length one."""
    with progress("like") as update:
        seen = extract(encoder, source, progress=update, **how)
    for where, reason in seen.bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen.x)
    return unit(seen.x.float(), dim=1)


def _copies(
    encoder: nn.Module,
    source: Source,
    features: Features,
    grays: Tensor,
    how: dict[str, Any],
    asked: Settings,
) -> tuple[list[same.Group], str]:
    """Groups of copies, and how they were found: see `manyviews.verbs.duplicates`."""
    gray = Features(grays, None, features.index, features.ids, features.bad)
    threshold = None if asked.duplicates == "auto" else float(asked.duplicates)
    known = measured(encoder, source, features, gray, how, threshold)
    features, words = known.features, known.words
    with progress("cells", quiet=len(features) <= curation.EXACT):
        where = curation.cells(features.x, asked.seed)
    if len(where) > 1:
        where, met = where.meeting(unit(known.copies.x.float(), dim=1), known.originals)
        words += (
            f" Images are compared with those in {where.probes.shape[1]} near ones of {len(where):,} cells, where "
            f"{100 * met:.1f} % of the copies meet their originals."
        )
    with progress("pairs"):
        pairs = curation.pairs(features.x, grays, known.calibration.limits, where, how["device"])
    with progress("second look") as update:
        pairs = same.confirmed(pairs, source, features.index, update)
    return same.grouped(features, pairs)[0], words


def _columns(source: Source, choice: stages.Choice) -> dict[str, list[Any]]:
    ids, n = source.ids, len(source)

    def numbers(values: np.ndarray) -> list[Any]:
        missing = np.isnan(values) if values.dtype.kind == "f" else values < 0
        return [None if m else v for v, m in zip(values.tolist(), missing.tolist(), strict=True)]

    return {
        "id": list(ids),
        "path": [source.where(i) for i in range(n)],
        "position": list(range(n)),
        "kept": [not why for why in choice.reason],
        "reason": [why or None for why in choice.reason],
        "duplicate_of": [None if i < 0 else ids[i] for i in choice.duplicate_of.tolist()],
        "isolation": numbers(choice.isolation),
        "similarity": numbers(choice.similarity),
        "cluster": numbers(choice.cluster),
    }
