"""Verbs that find and choose images: search, duplicates, curate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import manyviews as mv
from manyviews.cli._options import (
    NO_HINTS,
    Count,
    DataSet,
    Hints,
    Images,
    Json,
    NewFile,
    Weights,
    load,
    write_json,
    wrote,
)
from manyviews.cli._parser import Arg
from manyviews.errors import UserError, printable


def search(
    weights: Weights,
    query: Annotated[tuple[str, ...], Arg("PICTURE")] = (),
    /,
    *,
    in_: Images,
    k: Count = 20,
    text: Annotated[tuple[str, ...], Arg("TEXT", repeat=True)] = (),
    index: Annotated[Path | None, Arg("FOLDER")] = None,
    out: Annotated[Path | None, Arg("FILE")] = None,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Find the images that are nearest to a picture or a text, with a page of them.

    The images' features are kept, so that a further search of them decodes the query alone; any number of images fits.

    For example:
      manyviews search runs/first query.jpg --in photos/ --out found.html
      manyviews search timm:resnet18 queries/*.jpg --in photos/ --k 5 --json found.json
      manyviews search runs/clip --text "a red dress" --in photos/ --out found.html

    Args:
        in_: Where to look: a folder of images, or Parquet or tar files.
        k: Images for each query.
        text: What to look for in words, for a run of the method clip; several with --text again.
        index: The folder of the features; by default one in the user's cache.
        out: A new page with the pictures, such as found.html.
    """
    asked = (query[0] if len(query) == 1 else list(query)) if query else None
    found = mv.search(load(weights, hints), asked, in_, k=k, text=text, index=index, out=out)
    for one in found.found:
        print(printable(one.query))
        for similarity, name in zip(one.similarity, one.ids, strict=True):
            print(f"  {similarity:.3f}  {printable(name)}")
    print(f"Searched {found.images:,} images, whose features are kept in {printable(str(found.folder))}.")
    if found.page is not None:
        wrote(found.page)
    write_json(json, found.to_dict())


def duplicates(
    weights: Weights,
    data: Images,
    /,
    out: NewFile,
    threshold: float | None = None,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """List groups of images that look like copies of one image, with a page of their pictures.

    Features propose pairs and a second look at pixels confirms them. Every two images of a group were found to be the
    same. Nothing is deleted or moved.

    For example:
      manyviews duplicates runs/first photos/ --out duplicates.csv

    Args:
        out: A new CSV file, with the columns group, id, similarity, pixels, mirrored and identical. The page is beside
            it: duplicates.html.
        threshold: Cosine similarity of features from which pixels are compared. By default planted copies of the images
            choose it.
    """
    found = mv.duplicates(load(weights, hints), data, out, threshold)
    images, count = sum(len(g.ids) for g in found.groups), len(found.groups)
    if count:
        groups = "1 group" if count == 1 else f"{count:,} groups"
        print(f"{images:,} of {found.images:,} images look like copies of one another, in {groups}. Look at these:")
    else:
        print(f"No two of {found.images:,} images look like copies of one another.")
    if found.between:
        pairs = "1 more pair is" if len(found.between) == 1 else f"{len(found.between):,} more pairs are"
        print(f"{pairs} the same, but not the same as the other images of a group: see the end of the page.")
    wrote(found.page)
    wrote(found.table)
    write_json(json, found.to_dict())


def curate(
    data: Images,
    /,
    *,
    with_: Weights,
    out: NewFile,
    duplicates: Annotated[str, Arg("auto|off|COSINE")] = "auto",
    outliers: Annotated[float, Arg("SHARE")] = 0.0,
    like: DataSet = None,
    by: Literal["images", "clusters"] = "images",
    near: Count = 32,
    similarity: Annotated[float | None, Arg("COSINE")] = None,
    most: Annotated[int | None, Arg("N")] = None,
    balance: Annotated[int | None, Arg("N")] = None,
    seed: int = 0,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Choose the images to learn from: drop copies and outliers, keep those like a curated set, and balance.

    The list says of every image whether it is kept, and why not; a page shows dropped ones. Your files are not touched.
    `pretrain`, `prepare` and `embed` take the list as their data.

    For example:
      manyviews curate photos/ --with runs/first --out list.parquet
      manyviews curate photos/ --with timm:resnet18 --outliers 0.01 --balance 20000 --out list.parquet
      manyviews curate crawl/ --with runs/first --like seeds/ --near 16 --out list.parquet
      manyviews pretrain list.parquet --out runs/second

    Args:
        out: A new file that ends in .parquet or .csv. The page is beside it: list.html.
        duplicates: auto: planted copies of the images choose how alike copies are; a cosine similarity from which
            pixels are compared; off: keep copies.
        outliers: Share of the images to drop, such as 0.01: the farthest from their ten nearest.
        like: Images to be like: a folder, or Parquet or tar files.
        by: images: keep the nearest to each image of --like. clusters: keep clusters that hold one of them.
        near: Images to keep for each image of --like.
        similarity: Keep only images that are at least so similar to an image of --like.
        most: Of the images like them, keep at most so many, the most similar.
        balance: Images of a sample that is balanced by hierarchical k-means.
        seed: Seed of clusters and samples.
    """
    from manyviews.verbs.curate import write

    asked: Any = duplicates
    if duplicates not in ("auto", "off"):
        try:
            asked = float(duplicates)
        except ValueError:
            raise UserError(f"--duplicates is auto, off, or a similarity such as 0.9, not '{duplicates}'.") from None
    found = write(
        data,
        load(with_, hints),
        out,
        duplicates=asked,
        outliers=outliers,
        like=like,
        by=by,
        near=near,
        similarity=similarity,
        most=most,
        balance=balance,
        seed=seed,
    )
    for note in found.notes:
        print(printable(note))
    print(f"Kept {found.kept:,} of {found.images:,} images. Look at those that were dropped.")
    wrote(found.page)
    wrote(found.path)
    write_json(json, found.to_dict())
