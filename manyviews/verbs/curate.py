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
from manyviews.evaluation.features import Features, check_finite, extract, extract_all
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.unlabeled import copies, curation
from manyviews.evaluation.unlabeled import duplicates as same
from manyviews.progress import progress
from manyviews.reporting import curated as pages
from manyviews.verbs._common import loaded, new_file, opened, preprocessing, say_once, seen_by
from manyviews.verbs.duplicates import SEED, to_copy
from manyviews.verbs.pretrain import address
from manyviews.verbs.search import index_folder
from manyviews.weights import Pretrained

_GRAY = 65  # numbers of a small gray picture: see `duplicates.Gray`
_AS_LARGE = 0.9  # share of the most pixels from which a copy is as large
_FRAME = 10.0  # deviation of gray values up to which a row or column at the border is a frame
_ROWS = 65536  # features that are compared with the images to be like at a time


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


def curate(
    data: Any,
    weights: str | Path | Pretrained,
    out: str | Path,
    *,
    duplicates: Literal["auto", "off"] | float = "auto",
    outliers: float = 0.0,
    like: Any = None,
    by: Literal["images", "clusters"] = "images",
    near: int = 32,
    similarity: float | None = None,
    most: int | None = None,
    balance: int | None = None,
    seed: int = 0,
) -> Path:
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

    Returns:
        The path of the list.

    Raises:
        UserError: bad input, `out` or the page exists, or no image is left.
    """
    return write(
        data,
        weights,
        out,
        duplicates=duplicates,
        outliers=outliers,
        like=like,
        by=by,
        near=near,
        similarity=similarity,
        most=most,
        balance=balance,
        seed=seed,
    ).path


def write(
    data: Any,
    weights: str | Path | Pretrained,
    out: str | Path,
    *,
    duplicates: Literal["auto", "off"] | float = "auto",
    outliers: float = 0.0,
    like: Any = None,
    by: Literal["images", "clusters"] = "images",
    near: int = 32,
    similarity: float | None = None,
    most: int | None = None,
    balance: int | None = None,
    seed: int = 0,
) -> Curated:
    """`curate`, and what it wrote."""
    out = new_file(out)
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"A list is written as {' or '.join(ENDINGS)}, by the ending of --out, not to {out}.")
    page = new_file(out.with_suffix(".html"))
    if out.suffix.lower() == ".csv":
        new_file(out.with_name(f"{out.name}.json"))
    _check(duplicates, outliers, like, by, near, similarity, most, balance)
    known = loaded(weights)
    if known.note:
        say_once(known.note)
    asked = None if like is None else open_images(like, len(known.mean)) or opened(like, split=ALL)
    files = opened(data)
    source, *seeds = seen_by(known, files, *([] if asked is None else [asked]))
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

    n = len(source)
    reason = ["unreadable"] * n
    for i in rows.tolist():
        reason[i] = ""
    unknown = np.full(n, np.nan, np.float32)
    choice = curation.Choice(reason, np.full(n, -1), unknown, unknown.copy(), np.full(n, -1))
    if made.bad:
        choice.notes.append(f"{len(made.bad):,} of {n:,} images cannot be read.")
    left = torch.ones(len(rows), dtype=torch.bool)

    def drop(those: Tensor, why: str) -> None:
        left[those] = False
        for i in rows[those].tolist():
            reason[i] = why
        if not left.any():
            raise UserError(
                f"None of the {n:,} images is left, and the last were dropped as '{why}': use milder settings."
            )

    if duplicates != "off":
        with progress("cells", quiet=len(x) <= curation.EXACT):
            where = curation.cells(x, seed)
        limit = None if duplicates == "auto" else float(duplicates)
        features = Features(x, None, rows, [source.ids[i] for i in rows.tolist()], made.bad)
        groups, words = _copies(known.encoder, source, features, grays, how, where, limit)
        place = {int(i): row for row, i in enumerate(rows.tolist())}
        gone = []
        for group in groups:
            best = keep_of(source, group.index)
            others = [i for i in group.index if i != best]
            choice.duplicate_of[others] = best
            gone += [place[i] for i in others]
        drop(torch.tensor(gone, dtype=torch.int64), "duplicate")
        choice.notes.append(
            f"{len(gone):,} duplicates are dropped, from {len(groups):,} groups. The largest of a group is kept, "
            f"of equally large ones that of the most bytes. {words}"
        )
    if outliers:
        some = left.nonzero()[:, 0]
        alone = curation.isolation(x[some], curation.cells(x[some], seed))
        choice.isolation[rows[some]] = alone.numpy()
        far = alone.argsort(descending=True, stable=True)[: round(outliers * len(some))]
        drop(some[far], "outlier")
        border = f", those whose distance is {float(alone[far].min()):.3f} or more" if len(far) else ""
        choice.notes.append(f"{len(far):,} outliers are dropped, {100 * outliers:g} %{border}.")
    if wanted is not None:
        some = left.nonzero()[:, 0]
        found, closest, home = alike(x[some], wanted, by, near, similarity, most, seed)
        choice.similarity[rows[some]] = closest.numpy()
        if home is not None:
            choice.cluster[rows[some]] = home.numpy()
        drop(some[~found], "unlike")
        choice.notes.append(
            f"{int((~found).sum()):,} images are unlike the {len(wanted):,} images of --like, and are dropped."
        )
    if balance is not None:
        some = left.nonzero()[:, 0]
        with progress("clusters") as update:
            levels = curation.tree(x[some], seed, update)
        found = curation.balanced(levels.parents, balance, seed)
        choice.cluster[rows[some]] = levels.parents[0].numpy()
        drop(some[~found], "balance")
        counts = " and ".join(f"{int(parent.max()) + 1:,}" for parent in levels.parents)
        choice.notes.append(f"{int((~found).sum()):,} images are dropped for balance among {counts} clusters.")
    kept = reason.count("")
    settings = {
        "duplicates": duplicates,
        "outliers": outliers,
        "like": None if like is None else address(like) if isinstance(like, str | Path) else "images in memory",
        "by": by,
        "near": near,
        "similarity": similarity,
        "most": most,
        "balance": balance,
        "seed": seed,
    }
    dropped = {why: count for why in curation.REASONS if (count := Counter(reason)[why])}
    checkpoint.write_text(page, pages.render(source, choice, choice.notes, kept))
    write_list(
        out,
        _columns(source, choice),
        address(data),
        {"weights": known.name, "settings": settings, "notes": choice.notes},
    )
    return Curated(out, page, n, kept, dropped, choice.notes)


def alike(
    x: Tensor,
    wanted: Tensor,
    by: Literal["images", "clusters"],
    near: int,
    similarity: float | None = None,
    most: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which images are like some wanted ones.

    Args:
        x: float, `n d`, features of length one.
        wanted: float, `m d`, those of the wanted images.
        by: as in `curate`; so are the others.

    Returns:
        Whether an image is like them, bool `n`; its cosine similarity to the nearest of them, float32 `n`; and its
        cluster, int64 `n`, if `by` is "clusters".
    """
    closest = torch.cat([neighbors(wanted, part, 1)[0][:, 0] for part in x.split(_ROWS)])
    home = None
    if by == "clusters":
        levels = curation.tree(x, seed)
        home = levels.parents[0]
        held = curation.nearest_centers(wanted, levels.centers, 1)[:, 0]
        found = torch.isin(home, held)
    else:
        found = torch.zeros(len(x), dtype=torch.bool)
        found[neighbors(x, wanted, min(near, len(x)))[1].flatten()] = True
    if similarity is not None:
        found &= closest >= similarity
    if most is not None and int(found.sum()) > most:
        order = torch.where(found, closest, -2).argsort(descending=True, stable=True)
        found = torch.zeros_like(found).index_fill_(0, order[:most], True)
    return found, closest, home


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


def _check(
    duplicates: Any,
    outliers: float,
    like: Any,
    by: str,
    near: int,
    similarity: float | None,
    most: int | None,
    balance: int | None,
) -> None:
    if duplicates not in ("auto", "off") and (isinstance(duplicates, str) or not 0 < duplicates < 1):
        raise UserError(f"--duplicates is auto, off, or a similarity above 0 and below 1, not {duplicates}.")
    if not 0 <= outliers < 1:
        raise UserError(f"--outliers is a share of the images, at least 0 and below 1, not {outliers:g}.")
    if by not in ("images", "clusters"):
        raise UserError(f"--by is images or clusters, not {by}.")
    if like is None and (by, near, similarity, most) != ("images", 32, None, None):
        raise UserError("--by, --near, --similarity and --most say how to be like other images: give them as --like.")
    for name, value in (("near", near), ("most", most), ("balance", balance)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is 1 image or more, not {value}.")
    if similarity is not None and not -1 <= similarity <= 1:
        raise UserError(f"--similarity is a cosine, from -1 to 1, not {similarity:g}.")


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
    where: curation.Cells,
    threshold: float | None,
) -> tuple[list[same.Group], str]:
    """Groups of copies, and how they were found: see `manyviews.verbs.duplicates`."""
    both = {"features": encoder, "grays": same.Gray()}
    rows = to_copy(len(features))
    copied = copies.copies_of(source, features.index[rows].tolist(), SEED)
    with progress("planted copies") as update:
        planted = extract_all(both, copied, progress=update, **how)
    gray = Features(grays, None, features.index, features.ids, features.bad)
    calibration = same.calibrate(
        source,
        features,
        gray,
        copied,
        planted["features"],
        planted["grays"],
        rows,
        threshold,
        how["device"],
    )
    words = calibration.words
    if len(where) > 1:
        mine = where.near(unit(planted["features"].x.float(), dim=1))
        theirs = where.probes[rows[planted["features"].index]]
        meet = (mine == theirs[:, :1]).any(1) | (theirs == mine[:, :1]).any(1)
        words += (
            f" Images are compared with those in near ones of {len(where):,} cells, where "
            f"{100 * meet.double().mean().item():.1f} % of the copies meet their originals."
        )
    with progress("pairs"):
        pairs = curation.pairs(features.x, grays, calibration.limits, where, how["device"])
    with progress("second look") as update:
        pairs = same.confirmed(pairs, source, features.index, update)
    return same.grouped(features, pairs)[0], words


def _columns(source: Source, choice: curation.Choice) -> dict[str, list[Any]]:
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
