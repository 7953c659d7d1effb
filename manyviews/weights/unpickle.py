"""Pickled checkpoints, read without running anything that they hold."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manyviews.errors import UserError, printable
from manyviews.machine import free_memory

_PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt", ".torch", ".pyth", ".pkl")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle: by its first bytes, or by its name if they do not tell."""
    with contextlib.suppress(OSError), path.open("rb") as file:  # whoever reads it explains the error
        head = file.read(9)
        if head[8:] == b"{":  # safetensors: the header's length, and JSON
            return False
        if head[:2] == b"PK" or head[:1] == b"\x80":  # a zip file, as `torch.save` makes it, or a bare pickle
            return True
    return path.suffix.lower() in _PICKLES


_PACKED, _SPARE = 10, 2**26  # a zip may unpack to so many times its size, and so many bytes more


class _Nothing:
    """Stands for everything in a file that is neither a tensor nor a plain container. It keeps nothing."""

    def __new__(cls, *args: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _no_items(*args: object) -> dict[object, object]:
    return {}


_INERT: list[tuple[Callable[..., Any], str]] = [
    *((_Nothing, f"builtins.{name}") for name in ("bool", "dict", "float", "int", "list", "str")),
    *((_Nothing, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (_Nothing, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *((_Nothing, f"pathlib{part}.{name}") for part in ("", "._local") for name in ("PosixPath", "WindowsPath")),
    *((_Nothing, f"omegaconf.base.{name}") for name in ("ContainerMetadata", "Metadata")),
    *((_Nothing, f"omegaconf.{name}") for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *((_Nothing, name) for name in ("argparse.Namespace", "types.SimpleNamespace", "typing.Any")),
    (_no_items, "collections.defaultdict"),
    *((dict, f"{library}.utilities.data.AttributeDict") for library in ("lightning_fabric", "lightning.fabric")),
]
"""(stand-in, name of the class that trainers store settings and scores in, next to the weights)."""


def _check_sizes(path: Path) -> None:
    """Raise UserError for a zip that promises far more than it can hold. `torch.save` does not compress."""
    try:
        with zipfile.ZipFile(path) as file:
            promised = sum(member.file_size for member in file.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # not a zip, or PyTorch says what is wrong with it
    there, free = path.stat().st_size, free_memory()
    if promised > _PACKED * there + _SPARE or promised > free:
        raise UserError(
            f"{path} has {there / 1e6:.1f} MB and would unpack to {promised / 1e9:.1f} GB, where {free / 1e9:.1f} GB "
            "are free: it is no file that torch.save wrote, or needs more memory."
        )


def unpickle(path: Path) -> object:
    """Tensors and plain containers that `torch.save` wrote. Nothing that the file names is called.

    Raises:
        UserError: there is no such file, or it is damaged, or it names anything but tensors and known containers.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    _check_sizes(path)
    try:
        # An open file, because PyTorch judges a path by its name.
        with torch.serialization.safe_globals(list(_INERT)), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # damaged bytes make the unpickler raise anything
        foreign = re.search(r"GLOBAL (\S+)", str(e))
        reason = f"it holds {foreign[1]}" if foreign else str(e).partition("\n")[0]
        raise UserError(
            f"{path} cannot be loaded safely: it is damaged, or holds more than tensors, which could run code "
            f"({printable(reason, 160)}); if you trust it, save its weights alone in a new file, with "
            "torch.save(model.state_dict(), 'weights.pth')."
        ) from None
