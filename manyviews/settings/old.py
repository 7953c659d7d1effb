"""Names of settings in older versions, and what they are called now. Old files and commands are read, with a sentence.

Up to commit 93ea1ef: `Choice`, `Observe`, `observe`, `trackers`, `step.memory`, `rescue` and MAE's `mask_ratio`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from manyviews.errors import say

TYPES = {"Choice": "Component", "Observe": "Monitor"}
"""Old name of a type: its present one."""

FIELDS = {
    ("Recipe", "observe"): "monitor",
    ("Recipe", "rescue"): "regularizers",
    ("Monitor", "trackers"): "loggers",
    ("Step", "memory"): "backward",
}
"""Present type and old name of a field: its present name."""

VALUES: dict[tuple[str, str], Mapping[str, str]] = {
    ("Step", "memory"): {"views": "per_view", "constant": "recompute", "all": "joint"},
}
"""Present type and old name of a field: its old values, and their present ones."""

PATHS = {"method.mask_ratio": "method.masking.ratio"}
"""Old paths of settings that are parts of another one now."""

_PARTS = {"monitor": "Monitor", "step": "Step"}


def renamed(saved: Any, where: str) -> Any:
    """The parsed JSON of a recipe under its present names.

    Args:
        saved: what `json.loads` gave.
        where: the file, for the one sentence on standard error that lists what was translated.
    """
    found: dict[str, str] = {}

    def new(x: Any) -> Any:
        if isinstance(x, list):
            return [new(v) for v in x]
        if not isinstance(x, dict):
            return x
        if "is" not in x:
            return {k: new(v) for k, v in x.items()}
        kind = _named(found, TYPES, x["is"], x["is"])
        fields = {}
        for key, value in x.items():
            if key != "is":
                name = _named(found, FIELDS, (kind, key), key)
                fields[name] = _value(found, kind, key, new(value))
        if kind == "Component" and "mask_ratio" in fields.get("settings", {}):
            found["mask_ratio"] = "masking"
            fields["settings"]["masking"] = {"is": "Random", "ratio": fields["settings"].pop("mask_ratio")}
        return {"is": kind} | fields

    result = new(saved)
    if found:
        _say_once(f"{where} has names of an older version, read as {_list(found)}.")
    return result


def renamed_path(path: str, value: Any) -> tuple[str, Any]:
    """The present path and value of a setting, as `--set` gives them, with a sentence if they were old."""
    found: dict[str, str] = {}
    kind, keys = "Recipe", PATHS.get(path, path).split(".")
    if keys[0] == "rescue" and len(keys) > 1:
        keys.insert(1, "rescue")  # the regularizer of that name
    for at, key in enumerate(keys):
        if (kind, key) in FIELDS:
            keys[at] = FIELDS[kind, key]
            value = value if keys[at + 1 :] else _value(found, kind, key, value)
        kind = _PARTS.get(keys[at], "")
    now = ".".join(keys)
    if now != path:
        _say_once(f"Setting {path} is read as {_list({path: now} | found)}.")
    return now, value


def _named(found: dict[str, str], table: Mapping[Any, str], key: Any, name: str) -> str:
    if key not in table:
        return name
    found[name] = table[key]
    return table[key]


def _value(found: dict[str, str], kind: str, key: str, value: Any) -> Any:
    if (kind, key) == ("Recipe", "rescue"):  # one regularizer or none, where a tuple stands now
        if isinstance(value, str):
            return "()" if value.lower() == "none" else f"({value},)"
        return () if value is None else (value,)
    values = VALUES.get((kind, key), {})
    if isinstance(value, str) and value in values:
        found[value] = values[value]
        return values[value]
    return value


def _list(found: Mapping[str, str]) -> str:
    return ", ".join(f"{new} (was {old})" for old, new in found.items())


@cache
def _say_once(text: str) -> None:
    say(text)
