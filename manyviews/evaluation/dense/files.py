"""Folders of images with annotations: the checks and readings that all layouts share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manyviews.data.decode import PLUGINS
from manyviews.data.folder import is_image
from manyviews.data.layout import SPLITS as SPLITS
from manyviews.errors import UserError, from_json

Bad = list[tuple[str, str]]
"""(where, reason) of everything that was left out."""


def check_counts(least: int = 1, **settings: int) -> None:
    """Raises UserError unless all settings are `least` or more."""
    for name, value in settings.items():
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}.")


def check_rates(*rates: float) -> None:
    """Raises UserError unless all learning rates are positive and finite."""
    for rate in rates:
        if not 0 < rate < float("inf"):
            raise UserError(f"A learning rate must be positive and finite, not {rate:g}.")


def check_folder(root: Path) -> None:
    if not root.is_dir():
        advice = "unpack it first" if root.is_file() else "look for a typing error in it"
        raise UserError(f"{root} is not a folder: {advice}.")


def images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_image(p.name) and not p.name.startswith("."))


def by_stem(paths: Iterable[Path], bad: Bad) -> dict[str, Path]:
    """Files by their names without endings. Further ones of the same name go to `bad`."""
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(path.stem, path) != path:
            bad.append((str(path), f"{found[path.stem].name} has the same name"))
    return found


_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[:, ::-1],
    7: lambda a: a.T[::-1, ::-1],
    8: lambda a: a.T[::-1],
}


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if it has none. 5 and more exchange width and height."""
    try:
        with Image.open(path, formats=PLUGINS) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF around sound pixels counts as no EXIF
        return 1


def upright(pixels: np.ndarray, turned: int) -> np.ndarray:
    """Pixels `h w` as they are stored in a file with this EXIF orientation, turned upright."""
    return np.ascontiguousarray(_UPRIGHT[turned](pixels)) if turned in _UPRIGHT else pixels


def only_folder(root: Path) -> Iterable[Path]:
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return folders if len(folders) == 1 else []


def is_file(path: Path) -> bool:
    """Whether a path that an annotation names is a file; also for names that no file system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_json(path: Path) -> Any:
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as JSON ({e}).") from None
