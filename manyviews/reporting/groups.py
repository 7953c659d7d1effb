"""A page of groups of images that look like copies of one image, in one file, to look through."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from manyviews.data.decode import BadImage
from manyviews.data.source import Source
from manyviews.errors import printable
from manyviews.evaluation.unlabeled.duplicates import Group, Pair

HERE = Path(__file__).parent

MOST = 2000
"""Pictures on a page, at most: one of about 5 kB each."""

SHOWN = 24
"""Pictures of one group, at most."""

_SIDE = 160
_QUALITY = 80
_WRITTEN = 10  # pairs of one group that are written out, the least alike first


def render(source: Source, groups: Sequence[Group], between: Sequence[tuple[int, int]], images: int, how: str) -> str:
    """The HTML of a page. It holds its style and its pictures, has no script, and loads nothing.

    Args:
        source: the images.
        groups: the groups, in the order in which they are shown.
        between: positions of pairs that are the same but not in one group.
        images: number of images that were looked at.
        how: how similarity was judged, for people.
    """
    room = MOST
    shown: list[dict[str, Any]] = []
    for number, group in enumerate(groups, 1):
        count = min(len(group.ids), SHOWN)
        if count > room:
            break
        room -= count
        shown.append(_facts(source, number, group, count))
    bridges = [
        {"images": [_image(source, i), _image(source, j)]} for i, j in between[: min(len(between), room // 2, 100)]
    ]
    style = "".join((HERE / name).read_text(encoding="utf-8") for name in ("page/page.css", "groups.css"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"two": "{:.2f}".format, "thousands": "{:,}".format}
    policy = f"default-src 'none'; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    return environment.get_template("groups.html").render(
        name=printable(source.name, 200),
        groups=shown,
        left=len(groups) - len(shown),
        total=len(groups),
        copies=sum(len(group.ids) for group in groups),
        bridges=bridges,
        between=len(between),
        images=images,
        how=printable(how),
        policy=Markup(policy),
        style=Markup(style),
    )


def _facts(source: Source, number: int, group: Group, count: int) -> dict[str, Any]:
    pairs = sorted(group.pairs, key=lambda pair: (pair.pixels, pair.similarity))
    columns = (group.index[:count], group.mirrored, group.identical)
    marked = zip(*columns, strict=False)
    return {
        "number": number,
        "count": len(group.ids),
        "images": [
            _image(source, i) | {"mirrored": mirrored, "identical": identical} for i, mirrored, identical in marked
        ],
        "pixels": pairs[0].pixels,
        "similarity": min(pair.similarity for pair in pairs),
        "pairs": [_pair(pair) for pair in pairs[:_WRITTEN]],
        "more": len(pairs) - _WRITTEN,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"first": pair.first + 1, "second": pair.second + 1, "pixels": pair.pixels, "similarity": pair.similarity}


def _image(source: Source, i: int) -> dict[str, Any]:
    """The whole picture of image `i`, small, with its name; gray if it can no longer be read."""
    try:
        image = source.show(i, at_least=_SIDE).copy()
        size = image.size
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    except BadImage:
        image, size = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128)), (0, 0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    src = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    width, height = image.size
    return {"src": Markup(src), "width": width, "height": height, "name": printable(source.where(i), 300), "size": size}


def _hash(text: str) -> str:
    """The name of a style with this text in a policy."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
