"""Find the images that are nearest to a picture or a text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyviews import checkpoint, machine
from manyviews.data import Source
from manyviews.data.layout import ALL
from manyviews.data.loose import open_images
from manyviews.engine.folder import RECIPE
from manyviews.errors import UserError, say
from manyviews.evaluation import index as indices
from manyviews.evaluation.features import check_finite, extract, fingerprint, stamps, weights_digest
from manyviews.progress import progress
from manyviews.verbs._common import claim, loaded, new_file, opened, preprocessing, seen_by
from manyviews.weights import Pretrained

if TYPE_CHECKING:
    from manyviews.methods.clip import CLIP

_PLAN = "plan.json"
MOST = 20 * 10**9
"""Bytes that the indices in the user's cache may take."""


@dataclass(frozen=True)
class Found:
    """The nearest images to one query.

    Attributes:
        query: the name of the picture, or the text.
        ids: names of the images, the nearest first.
        index: their positions in the source.
        similarity: cosine similarity of their features and the query's, in [-1, 1], descending.
    """

    query: str
    ids: list[str]
    index: list[int]
    similarity: list[float]


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        found: for each query, the nearest images.
        images: number of images that were searched.
        folder: where the index is kept.
        page: the page with the pictures, if one was asked for.
    """

    found: list[Found]
    images: int
    folder: Path
    page: Path | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "queries": [{"query": f.query, "ids": f.ids, "similarity": f.similarity} for f in self.found],
            "images": self.images,
            "index": str(self.folder),
            "page": None if self.page is None else str(self.page),
        }


def search(
    weights: str | Path | Pretrained,
    query: Any,
    images: Any,
    *,
    k: int = 20,
    text: str | Sequence[str] = (),
    index: str | Path | None = None,
    out: str | Path | None = None,
) -> Search:
    """Find the images that are nearest to pictures, or to texts, by the cosine similarity of their features.

    The features of the images are an index on disk: it is made once, an interrupted one is continued, and a further
    search of the same images decodes the queries alone. Parts of it are searched exactly, one after the other, so that
    any number of images fits into memory.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        query: pictures to look for, such as a path, a list of paths, an array or a folder: see `Pretrained.embed`; None
            with texts.
        images: where to look: see `manyviews.data.open_source`.
        k: images for each query.
        text: texts to look for, for the folder of a run of the method clip.
        index: folder of the index; in the user's cache if None.
        out: a new HTML page with the pictures.

    Returns:
        For each query, the nearest images. A picture that is itself among the images finds itself first.

    Raises:
        UserError: bad input, `out` exists, or `index` is of other images or weights.
    """
    from manyviews.reporting import found as pages

    texts = [text] if isinstance(text, str) else list(text)
    if (query is None) == (not texts):
        raise UserError("A search is for pictures or for texts: give either a query or --text.")
    if k < 1:
        raise UserError(f"A search finds 1 image or more, not {k}.")
    page = None if out is None else new_file(out)
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is a page to look at: give a name that ends in .html, not {page}.")
    known = loaded(weights)
    if known.note:
        say(known.note)
    clip = _clip(weights) if texts else None
    encoder: nn.Module = known.encoder if clip is None else clip.online
    asked = None if query is None else open_images(query, len(known.mean)) or opened(query, split=ALL)
    sources = seen_by(known, opened(images, split=ALL), *([] if asked is None else [asked]))
    how = preprocessing(known)
    if clip is None:
        assert asked is not None
        seen = extract(encoder, sources[1], **how)
        for where, reason in seen.bad:
            say(f"Skipped the query {where}: {reason}")
        check_finite(seen.x)
        queries, names = seen.x, seen.ids
    else:
        queries, names = _written(clip, texts, how["device"]), texts
    folder = index_folder(encoder, sources[0], how, None if index is None else Path(index))
    with progress("index") as update:
        made = indices.build(encoder, sources[0], folder, progress=update, **how)
    for where, reason in made.bad:
        say(f"Skipped {where}: {reason}")
    near, positions = made.search(queries, k, how["device"])
    ids = sources[0].ids
    found = [
        Found(name, [ids[i] for i in row], row, [round(v, 6) for v in values])
        for name, row, values in zip(names, positions.tolist(), near.tolist(), strict=True)
    ]
    if page is not None:
        shown = None if clip is not None else (sources[1], seen.index.tolist())
        checkpoint.write_text(page, pages.render(sources[0], found, len(sources[0]) - len(made.bad), shown))
    return Search(found, len(sources[0]) - len(made.bad), folder, page)


def index_folder(
    encoder: nn.Module, source: Source, how: dict[str, Any], folder: Path | None = None, also: str = ""
) -> Path:
    """The folder of an index, which says what it is of; in the user's cache if none is given.

    Args:
        encoder: whose features it holds.
        source: the images.
        how: how the encoder is shown them: see `preprocessing`.
        folder: its path.
        also: what it holds besides features.
    """
    shown = [how["test_size"], list(how["mean"]), list(how["std"]), str(source.reading)]
    images = f"{fingerprint(source)} {stamps(source)}"
    facts = {"weights": weights_digest(encoder), "images": images, "shown": shown}
    plan = json.dumps(facts | ({"also": also} if also else {}), indent=2)
    cached = folder is None
    if folder is None:
        folder = machine.cache_folder("indices") / blake2b(plan.encode(), digest_size=16).hexdigest()
    claim(folder, _PLAN, plan, "an index of other images or of another encoder", option="--index")
    if cached:
        os.utime(folder)  # used now
        if gone := bounded(folder.parent, folder):
            say(f"Removed {gone} indices from {folder.parent} that were not used for longest, to keep it below 20 GB.")
    return folder


def bounded(cache: Path, kept: Path, most: int = MOST) -> int:
    """Remove folders of a cache until it is small enough, those that were not used for longest first.

    Args:
        cache: holds folders of files; the time of a folder is that of its last use.
        kept: stays, however large it is.
        most: bytes that the folders may take together.

    Returns:
        How many were removed.
    """
    sizes = {}
    for path in cache.iterdir():
        with suppress(OSError):  # another process may remove it
            sizes[path] = path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir())
    total, gone = sum(size for _, size in sizes.values()), 0
    for path in sorted(sizes, key=lambda path: sizes[path]):
        if total > most and path != kept:
            shutil.rmtree(path, ignore_errors=True)
            total, gone = total - sizes[path][1], gone + 1
    return gone


def _clip(weights: str | Path | Pretrained) -> CLIP:
    """The method of a run that has learned from captions."""
    from manyviews.methods.clip import CLIP
    from manyviews.regularizers import inner
    from manyviews.verbs.run import Run

    where = None if isinstance(weights, Pretrained) else Path(weights)
    method = inner(Run(where).method) if where is not None and (where / RECIPE).is_file() else None
    if isinstance(method, CLIP):
        return method
    raise UserError("Texts are found by the folder of a run of the method clip, which has learned from captions.")


@torch.no_grad()
def _written(clip: CLIP, texts: Sequence[str], device: torch.device) -> Tensor:
    """The features of texts, `m d`."""
    length = clip.views[1].length  # type: ignore[attr-defined]
    rows = [torch.tensor(list(text.encode("utf-8")[:length]) or [0]) for text in texts]
    written = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    found: Tensor = clip.text.to(device)(written)
    return found.float().cpu()
