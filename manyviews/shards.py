"""Tensors that are spread over the ranks, in a folder to which each rank writes its part: PyTorch's checkpoints.

`torch.distributed.checkpoint` cuts and joins the tensors, so that another number of processes can read them. Its own
format holds a pickle. Its format of Hugging Face does not: each file is safetensors, and its header says which part of
each tensor it has.
"""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.errors import UserError

_NAME = "shards-"


def save(parent: Path, tensors: Mapping[str, Tensor], step: int) -> dict[str, Any]:
    """Write tensors to a new folder in `parent`. All ranks call it; of those that are not spread, the first's are kept.

    Returns:
        the folder's name and the checksums of its files, for `load`. Without these the folder means nothing: it is
        complete once they are written elsewhere.

    Raises:
        OSError: a rank could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as write

    folder = parent / distributed.share(_free(parent, step) if distributed.rank() == 0 else "")
    try:
        write(
            {k: x if distributed.spread(x) else x.detach().contiguous() for k, x in tensors.items()},
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        )
    except CheckpointException as e:
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        rank, (error, _) = next(iter(e.failures.items()))
        raise OSError(f"Process {rank} could not write to {folder}: {error}") from e
    files = sorted(path.name for path in folder.iterdir())
    own = files[distributed.rank() :: distributed.world_size()]
    sums = {
        name: crc for part in distributed.collect({f: _checksum(folder / f) for f in own}) for name, crc in part.items()
    }
    return {"folder": folder.name, "files": sums}


def load(parent: Path, shards: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read all that `save` wrote, whole, on the CPU of this process alone.

    Raises:
        UserError: files are missing, or their content does not match its checksums.
    """
    folder = check(parent, shards)
    found = {k: torch.empty(size, dtype=dtype) for k, (size, dtype) in sizes(parent, shards).items()}
    _read(folder, found, alone=True)
    return found


def load_into(parent: Path, shards: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Overwrite tensors, of which some are spread, with what `save` wrote under their names. All ranks call it.

    Each rank reads its parts, however many wrote them.
    """
    _read(check(parent, shards, shared=True), tensors, alone=False)


def sizes(parent: Path, shards: Mapping[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor that `save` wrote."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found: dict[str, Any] = HuggingFaceStorageReader(str(parent / _named(shards))).read_metadata().state_dict_metadata
    return {k: (m.size, m.properties.dtype) for k, m in found.items()}


def clean(parent: Path, keep: Iterable[Mapping[str, Any]]) -> None:
    """Remove the folders of `save` in `parent` but those to keep, by what `save` returned."""
    names = {_named(shards) for shards in keep}
    for folder in parent.glob(f"{_NAME}*"):
        if folder.name not in names and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def check(parent: Path, shards: Mapping[str, Any], shared: bool = False) -> Path:
    """The folder, if its files are as `save` wrote them. With `shared`, all ranks call it and check a part each.

    Raises:
        UserError: they are not.
    """
    folder, files = parent / _named(shards), sorted(dict(shards["files"]).items())
    mine = files[distributed.rank() :: distributed.world_size()] if shared else files
    wrong = next((name for name, crc in mine if _safe(name) and _checksum(folder / name) != crc), None)
    if shared:
        wrong = next((w for w in distributed.collect(wrong) if w is not None), None)
    if wrong is not None:
        raise UserError(f"{folder / wrong} is damaged or missing: copy the run's folder again from where it is whole.")
    return folder


def _named(shards: Mapping[str, Any]) -> str:
    name = str(shards["folder"])
    if not name.startswith(_NAME) or not _safe(name):
        raise UserError("The checkpoint names shards that are not in its folder: it is not one of this library.")
    return name


def _safe(name: str) -> bool:
    """Whether a name leads nowhere else."""
    if Path(name).name != name:
        raise UserError("The checkpoint names files that are not in its folder: it is not one of this library.")
    return True


def _free(parent: Path, step: int) -> str:
    names = [f"{_NAME}{step}", *(f"{_NAME}{step}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not (parent / name).exists())


def _checksum(path: Path) -> int | None:
    crc = 0
    try:
        with path.open("rb") as file:
            while block := file.read(2**24):
                crc = zlib.crc32(block, crc)
    except OSError:
        return None
    return crc


def _read(folder: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as read

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no mistake
        read(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
