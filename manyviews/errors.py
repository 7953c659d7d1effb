"""The error for bad input, the nearest valid name, and text that is safe to print."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Unreachable(UserError):
    """What lies on the network, which cannot be reached."""


class Unwritten(UserError, OSError):
    """A file that could not be written, or a disk or network that failed a run. An `OSError` too, with its number."""

    def __init__(self, text: str, error: OSError | None = None) -> None:
        OSError.__init__(self, *(() if error is None else (error.errno, error.strerror)))
        self.text = text

    def __str__(self) -> str:
        return self.text


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("method", "simclear", ["simclr", "byol"]))
    "There is no method 'simclear'. Did you mean 'simclr'? Known: byol, simclr."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    if len(names) > _MANY and kind in _LISTED:
        return UserError(f"There is no {kind} '{name}'.{hint} `manyviews list {kind}s` lists all {len(names)}.")
    return UserError(f"There is no {kind} '{name}'.{hint} Known: {', '.join(names)}.")


_MANY = 40  # names, more than which are no help in a sentence
_LISTED = ("backbone", "method", "protocol", "recipe", "view")  # kinds that `manyviews list` lists


def printable(text: object, most: int | None = None) -> str:
    """The text on one line, cut after `most` characters, without control characters, line breaks and broken Unicode.

    File names and labels come from anywhere. They may hold escape sequences, which a terminal obeys, and bytes that
    are not valid text, which cannot be printed.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return clean if most is None or len(clean) <= most else clean[: most - 3] + "..."


def from_json(text: str | bytes) -> Any:
    """`json.loads` of text that anybody may have written.

    Raises:
        ValueError: it is no JSON, or is nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require(good: bool, settings: object, name: str, wanted: str) -> None:
    """Raise UserError unless `good`: the attribute `name` of `settings` must be as `wanted`."""
    if not good:
        raise UserError(f"{type(settings).__name__}.{name} must be {wanted}, not {getattr(settings, name)}.")


def say(text: str) -> None:
    """Print one line on standard error. The text may hold names that others chose."""
    print(printable(text), file=sys.stderr, flush=True)
