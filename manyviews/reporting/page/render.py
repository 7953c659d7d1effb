"""The page's HTML. Everything from people's data is escaped, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from manyviews.reporting.words import capital

HERE = Path(__file__).parent


def render(facts: dict[str, Any]) -> str:
    """The HTML of a page.

    The page contains its style and its script. A policy allows only these and the files beside the page: a name or a
    label could neither run nor load anything, even if it were not escaped.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": "{:.1f}".format,
        "two": "{:.2f}".format,
        "thousands": "{:,}".format,
        "capital": capital,
    }
    policy = {
        "default-src": "'none'",
        # In some browsers, pages from disk have no origin: there, file: works and 'self' does not.
        "script-src": f"{_hash(script)} 'self' file:",
        "style-src": _hash(style),
        "img-src": "'self' file:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return environment.get_template("page.html").render(
        **facts,
        policy=Markup("; ".join(f"{k} {v}" for k, v in policy.items())),
        style=Markup(style),
        script=Markup(script),
        json=Markup(embedded(_for_script(facts))),
    )


def embedded(content: Any) -> str:
    """JSON for a script element of an HTML page. Nothing in it can end the element or begin a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _for_script(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that the script draws; the rest is in the HTML."""
    runs = [{k: run[k] for k in ("name", "steps_per_epoch", "spectra")} for run in facts["runs"]]
    images = {k: facts["images"][k] for k in ("map", "subspaces")}
    return {"runs": runs, "curves": facts["curves"], "accuracy": facts["accuracy"], **images}


def _hash(text: str) -> str:
    """The name of a style or script with this text in a policy."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
