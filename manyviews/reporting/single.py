"""Pages in one file, to look at from disk: they hold their style and pictures, have no script, and load nothing."""

from __future__ import annotations

import base64
import io
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from manyviews.data.decode import BadImage
from manyviews.data.source import Source
from manyviews.errors import printable

HERE = Path(__file__).parent

MOST = 2000
"""Pictures on a page, at most: one of about 5 kB each."""

_SIDE = 160
_QUALITY = 80


def render(template: str, **facts: Any) -> str:
    """The HTML of a template beside this module, with the facts that it takes."""
    style = "".join((HERE / name).read_text(encoding="utf-8") for name in ("page/page.css", "groups.css"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"two": "{:.2f}".format, "thousands": "{:,}".format}
    policy = f"default-src 'none'; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    return environment.get_template(template).render(policy=Markup(policy), style=Markup(style), **facts)


def picture(source: Source, i: int) -> dict[str, Any]:
    """The whole picture of image `i`, small, with its name; gray if it can no longer be read."""
    name = printable(source.where(i), 300)
    try:
        image = source.show(i, at_least=_SIDE).copy()
    except BadImage:
        return small(Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128)), name) | {"size": (0, 0)}
    return small(image, name)


def small(image: Image.Image, name: str) -> dict[str, Any]:
    """A picture of any size, made small, with its name."""
    size = image.size
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    src = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    width, height = image.size
    return {"src": Markup(src), "width": width, "height": height, "name": name, "size": size}


def _hash(text: str) -> str:
    """The name of a style with this text in a policy."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
