"""Features of images that a program holds, as an array."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from manyviews.data import Source, open_source
from manyviews.data.layout import ALL
from manyviews.data.left import listed
from manyviews.data.loose import SOME, open_images
from manyviews.errors import UserError, printable, say, unknown
from manyviews.evaluation.features import check_finite, extract
from manyviews.progress import progress
from manyviews.weights.load import Pretrained
from manyviews.weights.showing import preprocessing, say_once, seen_by, tell


def given(weights: Pretrained, images: Any) -> Source:
    """Images that a program holds or names, read as the encoder learned to see them. What there is to say is said."""
    source = open_images(images, len(weights.mean))
    if source is None:
        source = open_source(images, split=ALL)
        tell(source, [f"{source.name.partition(':')[0]}: {note}" for note in source.notes])
    if weights.note:
        say_once(weights.note)
    (source,) = seen_by(weights, source)
    return source


def embed(weights: Pretrained, images: Any, unreadable: Literal["refuse", "nan"] = "refuse") -> np.ndarray:
    """See `Pretrained.embed`."""
    if unreadable not in ("refuse", "nan"):
        raise unknown("way with unreadable images", unreadable, ("refuse", "nan"))
    source = given(weights, images)
    with progress("embed") as update:
        found = extract(weights.encoder, source, progress=update, **preprocessing(weights))
    check_finite(found.x)
    if not found.bad:
        return found.x.numpy()
    count = f"{len(found.bad)} of {len(source)} images cannot be read: "
    reasons = listed([printable(f"{where} ({reason})", 200) for where, reason in found.bad], SOME)
    if unreadable == "refuse":
        raise UserError(f'{count}{reasons}. Leave them out, or give unreadable="nan" for rows of NaN.')
    say(f"{count}{reasons}. Their rows are NaN.")
    rows = np.full((len(source), found.x.shape[1]), np.nan, np.float32)
    rows[found.index.numpy()] = found.x.numpy()
    return rows
