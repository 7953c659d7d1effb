"""Images by their embeddings: a map, nearest neighbors, and the mistakes of k-NN."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from manyviews.data import Source, spread_out
from manyviews.data.canvas import in_threads
from manyviews.errors import printable
from manyviews.evaluation.features import Features
from manyviews.evaluation.knn import TEMPERATURE, neighbors
from manyviews.progress import Update
from manyviews.reporting.embedding_map import along_a_curve, clusters, lay_out, turned
from manyviews.reporting.page.pictures import Pictures, label, thumbnail

Facts = dict[str, Any]

K = 20
"""Neighbors that vote."""

_SHOWN = 8  # neighbors in a gallery
_KEPT = 6  # neighbors of every image on the map
_EXAMPLES = 8  # queries from the images themselves, if the user gave none
_WORST = 12  # mistakes of one run; half as many for each of several runs
_CLUSTERS = 8  # there are eight colors that everybody can tell apart
_COLUMNS = 32  # columns of thumbnails in a sheet, and as many rows


@dataclass(frozen=True)
class Atlas:
    """Images, their features under several encoders, and their neighbors.

    Attributes:
        source: the images, all readable.
        x: features for each run, `n d`.
        near: for each run, numbers of the `K` nearest other images, int64 `n k`, nearest first.
        similarity: for each run, their cosine similarities, `n k`.
    """

    source: Source
    x: list[Tensor]
    near: list[Tensor]
    similarity: list[Tensor]


def atlas(source: Source, seen: Sequence[Features], device: torch.device | str) -> Atlas:
    """The atlas of the images whose features all encoders have; `seen` holds each encoder's features."""
    common = sorted(set.intersection(*(set(f.index.tolist()) for f in seen)))
    rows = [torch.from_numpy(np.searchsorted(f.index.numpy(), common)) for f in seen]
    x = [f.x[r] for f, r in zip(seen, rows, strict=True)]
    found = [others(part.to(device), min(K, len(common) - 1)) for part in x]
    return Atlas(source.subset(common), x, [i for _, i in found], [s for s, _ in found])


def others(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (`n k`, descending) and numbers (int64, `n k`) of the nearest other rows, on the CPU."""
    similarity, index = neighbors(x, x, k + 1)
    similarity, index = similarity.cpu(), index.cpu()
    other = index != torch.arange(len(index))[:, None]
    # Of many copies of an image, the nearest ones need not include the image itself.
    other[other.all(1), -1] = False
    return similarity[other].view(len(x), k), index[other].view(len(x), k)


def votes(similarity: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Count k-NN's weighted votes.

    Args:
        similarity: cosine similarities of the neighbors, `n k`.
        labels: labels of the neighbors, int64 `n k`.
        classes: number of classes.

    Returns:
        The class with the most votes, int64 `n`, and its share of the votes, `n`, in [0, 1].
    """
    weights = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()
    cast = weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
    most, predicted = cast.max(1)
    return predicted, most / weights.sum(1)


# -- the map -----------------------------------------------------------------------------------------------------


def draw_map(known: Atlas, names: Sequence[str], page: Path, seed: int, progress: Update | None) -> Facts:
    """Write the map's files: `map/*.js` and sheets of thumbnails.

    The data are scripts, because a page that is opened from disk may fetch nothing else. Images are in the order of
    a curve through the first map: neighbors share a sheet, and a part of the map needs few sheets.

    Returns:
        "count", "classes", "clusters" (how many), "images" (the script with names and labels), "runs" ("name", "how",
        "src"), "sheets" (files), "side" (of a thumbnail, pixels) and "columns" (of a sheet).
    """
    source, n = known.source, len(known.source)
    (page / "map").mkdir()
    found = []
    for i, x in enumerate(known.x):
        if progress is not None:
            progress(i, len(known.x), f"map of {names[i]}")
        found.append(lay_out(x, seed))
    order = along_a_curve(found[0][0])
    place = np.argsort(order)
    labels = source.labels
    runs = []
    for i, (positions, how) in enumerate(found):
        if i:
            positions = turned(positions, found[0][0])
        near = place[known.near[i][:, :_KEPT].numpy()][order]
        content: Facts = {
            "positions": _packed(positions[order], "<f4"),
            "clusters": _packed(clusters(known.x[i], _CLUSTERS, seed)[order], "u1"),
            "near": _packed(near, "<u4"),
            "kept": near.shape[1],
        }
        if labels is not None and near.shape[1]:
            predicted, share = votes(
                known.similarity[i], torch.from_numpy(labels)[known.near[i]], len(source.classes or [])
            )
            content["predicted"] = _packed(predicted.numpy()[order], "<u2")
            content["share"] = _packed((255 * share.numpy()[order]).round(), "u1")
        runs.append({"name": names[i], "how": how, "src": _script(page, f"run-{i}", content)})
    chosen = source.subset(order)
    content = {"names": "\n".join(printable(chosen.where(i), 200) for i in range(n))}
    if labels is not None:
        content["labels"] = _packed(labels[order], "<u2")
    # Few images get sharp thumbnails, many images small ones.
    side = 64 if n <= 2_000 else 48 if n <= 20_000 else 32
    return {
        "count": n,
        "classes": None if labels is None else [printable(c, 80) for c in source.classes or []],
        "clusters": min(_CLUSTERS, n),
        "images": _script(page, "images", content),
        "runs": runs,
        "sheets": sheets(chosen, side, page, progress),
        "side": side,
        "columns": _COLUMNS,
    }


def sheets(source: Source, side: int, page: Path, progress: Update | None = None) -> list[str]:
    """Write thumbnails to square sheets, row by row; the last sheet may be lower. Returns the names of WebP files."""
    per, files = _COLUMNS**2, []
    starts = range(0, len(source), per)
    batches = (range(start, min(start + per, len(source))) for start in starts)
    for k, thumbnails in enumerate(in_threads(lambda i: thumbnail(source, i, side), batches)):
        if progress is not None:
            progress(starts[k], len(source), "thumbnails")
        rows = -(-len(thumbnails) // _COLUMNS)
        sheet = np.zeros((rows * side, _COLUMNS * side, 3), dtype=np.uint8)
        for j, picture in enumerate(thumbnails):
            top, left = side * (j // _COLUMNS), side * (j % _COLUMNS)
            sheet[top : top + side, left : left + side] = picture
        files.append(f"map/sheet-{k}.webp")
        Image.fromarray(sheet).save(page / files[-1], "WEBP", quality=70, method=2)
    return files


def _script(page: Path, name: str, content: Mapping[str, Any]) -> str:
    """Write a script that hands some JSON to the page under a name. Returns its path relative to the page."""
    text = json.dumps(content).replace("<", "\\u003c")
    src = f"map/{name}.js"
    (page / src).write_text(f'(window.manyviews ??= {{}})["{name}"] = {text};\n', encoding="utf-8")
    return src


def _packed(values: np.ndarray, kind: str) -> str:
    """The bytes of an array of this kind in base64, which a browser reads many times faster than decimal numbers."""
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


# -- galleries ---------------------------------------------------------------------------------------------------


def gallery(known: Atlas, own: tuple[Source, Sequence[Features]] | None, pictures: Pictures) -> list[Facts]:
    """Query images, each with its nearest images under every encoder.

    Args:
        known: the images to search in.
        own: the user's own images and their features under each encoder; None to query some of the images themselves.
        pictures: writes the pictures.

    Returns:
        For each query "query", its picture, and "rows", for each run the nearest pictures. These have a "similarity"
        and "right", whether their class is the query's (None without labels).
    """
    found: list[tuple[Source, int, list[tuple[Tensor, Tensor]]]] = []
    if own is None:
        for i in spread_out(len(known.source), _EXAMPLES).tolist():
            found.append((known.source, i, [(s[i], j[i]) for s, j in zip(known.similarity, known.near, strict=True)]))
    else:
        source, seen = own
        common = sorted(set.intersection(*(set(f.index.tolist()) for f in seen)))
        near = []
        for x, f in zip(known.x, seen, strict=True):
            rows = torch.from_numpy(np.searchsorted(f.index.numpy(), common))
            near.append(neighbors(x, f.x[rows], min(_SHOWN, len(x))))
        found += [(source, i, [(s[row], j[row]) for s, j in near]) for row, i in enumerate(common)]
    return [
        {"query": pictures.of(source, i), "rows": [_row(known.source, *r, label(source, i), pictures) for r in near_by]}
        for source, i, near_by in found
    ]


def _row(source: Source, similarity: Tensor, index: Tensor, truth: str | None, pictures: Pictures) -> list[Facts]:
    row = []
    for s, j in list(zip(similarity.tolist(), index.tolist(), strict=True))[:_SHOWN]:
        picture = pictures.of(source, j)
        known = truth is not None and picture["label"] is not None
        row.append(picture | {"similarity": s, "right": picture["label"] == truth if known else None})
    return row


def mistakes(known: Atlas, pictures: Pictures) -> list[Facts] | None:
    """For each run, the images whose neighbors agree most on another class; None without labels.

    Neighbors vote by k-NN (k = 20, temperature 0.1) among all other images; nothing was trained with the labels.
    Images with the same vote are sorted by their similarity to the neighbors.

    Returns:
        "asked" and "wrong" (numbers of images), and "items": pictures with the "predicted" class, its "share" of the
        votes, and the "nearest" pictures.
    """
    source = known.source
    if source.labels is None or source.classes is None or not known.near[0].shape[1]:
        return None
    y, found = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)), []
    for similarity, near in zip(known.similarity, known.near, strict=True):
        predicted, share = votes(similarity, y[near], len(source.classes))
        wrong = (predicted != y).nonzero()[:, 0].tolist()
        alike = similarity.mean(1)
        worst = sorted(wrong, key=lambda i: (-round(share[i].item(), 3), -alike[i].item()))[
            : _WORST if len(known.x) == 1 else _WORST // 2
        ]
        items = [
            pictures.of(source, i)
            | {
                "predicted": printable(source.classes[int(predicted[i])], 80),
                "share": share[i].item(),
                "nearest": _row(source, similarity[i], near[i], label(source, i), pictures)[:5],
            }
            for i in worst
        ]
        found.append({"asked": len(y), "wrong": len(wrong), "items": items})
    return found
