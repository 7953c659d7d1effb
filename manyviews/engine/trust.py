"""Which runs may contact servers: those that this user began. Somebody else's run names servers of its choice.

A run is signed when it begins, with a key that stays in the user's own folder, so that it goes on without a question,
also where a cluster starts it again. A run folder that was copied from elsewhere, or edited, is not signed with it: it
contacts no server unless the user says so.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from manyviews.data.files import shown
from manyviews.errors import printable
from manyviews.settings import Recipe, parts
from manyviews.settings.recipe import leaves

SIGNED = "signed"
_PLACES = ("data", "captions", "old")
_LOCAL = ("file://", "local://")


def servers(facts: Mapping[str, Any], recipe: Recipe, begun: bool) -> list[str]:
    """The servers that a run contacts when it goes on, in words.

    Args:
        facts: the run's facts, or those of its places that are read.
        recipe: every setting of the run.
        begun: whether it has a checkpoint, which replaces weights that are downloaded.
    """
    found = [shown(place) for name in _PLACES if _remote(place := facts.get(name))]
    loggers = {name for part in parts(recipe) for name in part.recipe.monitor.loggers} & {"wandb", "mlflow"}
    found += [f"{name}'s server (its log)" for name in sorted(loggers)]
    if not begun and any(value is True for path, value in leaves(recipe) if path.split(".")[-1] == "pretrained"):
        found.append("huggingface.co (weights to start from)")
    return [printable(text, 200) for text in found]


def signature(facts: Mapping[str, Any], recipe: Any) -> dict[str, str]:
    """The signature of a run as a part of its facts; empty if there is no place for a key.

    Args:
        facts: the run's facts.
        recipe: the parsed JSON of its recipe.
    """
    key = _key(make=True)
    return {} if key is None else {SIGNED: _sign(key, facts, recipe)}


def is_signed(facts: Mapping[str, Any], recipe: Any) -> bool:
    """Whether this user began the run with these facts and this parsed recipe."""
    key, given = _key(), facts.get(SIGNED)
    return key is not None and isinstance(given, str) and hmac.compare_digest(given, _sign(key, facts, recipe))


def _remote(place: Any) -> bool:
    """Whether `open_source` may contact a server for this address. Any chain of protocols may."""
    return isinstance(place, str) and "://" in place and ("::" in place or not place.startswith(_LOCAL))


def _sign(key: bytes, facts: Mapping[str, Any], recipe: Any) -> str:
    told = {name: facts.get(name) for name in (*_PLACES, "id")}
    return hmac.digest(key, json.dumps([told, recipe], sort_keys=True).encode(), "sha256").hex()


def _key(make: bool = False) -> bytes | None:
    """The user's key; None if there is none, or no place for one."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "manyviews"
    path = folder / "key"
    with suppress(OSError):
        if make and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process was faster
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                os.write(handle, secrets.token_bytes(32))
                os.close(handle)
        found = path.read_bytes()
        return found if len(found) == 32 else None
    return None
