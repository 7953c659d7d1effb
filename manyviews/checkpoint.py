"""Checkpoints: one file of tensors and JSON, written whole or not at all, safe to load from anywhere.

safetensors holds the tensors, and a JSON string in the file's own header holds everything else. No pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manyviews import distributed, shards
from manyviews.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path next to `path`, then move the result into place.

    After a crash or on a full disk, the file that was at `path` before is still there. A link stays, and its target is
    replaced.
    """
    if path.exists() and not path.is_file():  # a device or a pipe, such as /dev/stdout, must not become a file
        write(path)
        return
    path = path.resolve() if path.is_symlink() else path
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.chmod(0o666 & ~_umask())  # a temporary file is private, a new file is not
        part.replace(path)
        # The rename itself must survive a power cut.
        with contextlib.suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end of the block.

    `out` may be an empty folder. If the block fails, nothing is left of it. Everything in it gets the permissions of
    new files and folders, whatever the libraries that wrote it gave.
    """
    out = out.resolve() if out.is_symlink() else out
    part = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        yield part
        _share(part)
        if out.exists():  # it may be a mount or the working directory, so it stays
            for found in sorted(part.iterdir()):
                shutil.move(found, out / found.name)
        else:
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give a folder and its content the permissions that the umask leaves: temporary ones are private."""
    umask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


_ASKING = threading.Lock()


def _umask() -> int:
    with _ASKING:  # it cannot be read without being set
        umask = os.umask(0)
        os.umask(umask)
    return umask


def check_writable(path: Path) -> None:
    """Raise UserError if no file can be made at `path`. Call it before the work, not after it."""
    if path.is_symlink() and not path.resolve().parent.is_dir():
        raise UserError(f"{path} is a link that leads nowhere: make its target, or give another place.")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"There is no folder {parent} for {path.name}.")
    if not path.exists() and not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"There is no permission to write in {parent}: give another place.")


def check_new(out: Path, or_empty: bool = False) -> None:
    """Raise UserError unless a new file or folder can be made at `out`; `or_empty` also allows an empty folder."""
    if or_empty and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already and is not an empty folder: give another --out.")
    if not or_empty and out.exists():
        raise UserError(f"{out} exists already: give another --out.")
    check_writable(out)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts to one safetensors file, atomically."""
    # The format refuses shared or strided storage, so each tensor gets storage of its own.
    own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(own, p, metadata={"manyviews": json.dumps(facts)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, or any safetensors file (whose facts are then empty).

    Raises:
        UserError: the file is missing, cut short or not a safetensors file.
    """
    with _opened(path) as f:
        tensors, facts = {k: f.get_tensor(k) for k in f.keys()}, _facts(f)  # noqa: SIM118
    if "shards" in facts:
        tensors |= shards.load(path.parent, facts["shards"])
    return tensors, facts


def facts_of(path: Path) -> dict[str, Any]:
    """The facts that `save_tensors` wrote, without the tensors. Raises UserError as `load_tensors` does."""
    with _opened(path) as f:
        return _facts(f)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. What fails while it is read becomes a UserError."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is not a readable safetensors file ({e}).") from e


def _facts(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((file.metadata() or {}).get("manyviews", "{}"))
    return found


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
    """Write everything from which training continues exactly: module, optimizer state, and facts such as the step.

    If parameters are spread over the ranks, all ranks call it. Each writes its part to a folder beside, which `path`
    names once it is complete; else the caller is the only one.
    """
    tensors = {f"method.{k}": v for k, v in method.state_dict().items()}
    weights = _weights(optimizer)
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{i}.{k}": _of(weights[i], torch.as_tensor(v)) for k, v in state.items() if v is not None
        }
    if any(map(distributed.spread, tensors.values())):
        facts = {**facts, "shards": shards.save(path.parent, tensors, int(facts["step"]))}
        tensors = {}
    if distributed.rank() == 0:
        save_tensors(path, tensors, facts)
        shards.clean(path.parent, _named_beside(path))


def _named_beside(path: Path) -> Iterator[dict[str, Any]]:
    """The shards that this checkpoint, and those of names like its own beside it, are made of."""
    for other in path.parent.glob(f"{path.stem}*{path.suffix}"):
        with contextlib.suppress(UserError):  # nothing can be made of a damaged one
            found = facts_of(other)
            if "shards" in found:
                yield found["shards"]


def load(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore in place what `save` wrote, and return its facts. Without an optimizer, restore the method alone.

    The parameters may be spread over the ranks, whether or not they were when the checkpoint was written.

    Raises:
        UserError: the file does not fit this method and encoder.
    """
    if any(map(distributed.spread, method.state_dict().values())):
        return _load_spread(path, method, optimizer)
    tensors, facts = load_tensors(path)
    try:
        method.load_state_dict({k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")})
    except RuntimeError as e:
        raise UserError(f"The checkpoint {path} does not fit the recipe beside it: {e}") from e
    if optimizer is None:
        return facts
    weights = _weights(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            weight = weights[int(i)]
            # Fused optimizers require the memory layout of the weight.
            same = tensor.shape == weight.shape
            state.setdefault(int(i), {})[name] = torch.empty_like(weight).copy_(tensor) if same else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts


def _load_spread(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """`load`, for parameters that are spread over the ranks."""
    facts = facts_of(path)
    written = "shards" in facts
    whole: dict[str, Tensor] = {} if written else load_tensors(path)[0]
    names = shards.sizes(path.parent, facts["shards"]) if written else {k: (x.shape, x.dtype) for k, x in whole.items()}
    targets = {f"method.{k}": x for k, x in method.state_dict().items()}
    wrong = [
        k
        for k in {**targets, **names}
        if k.startswith("method.") and (k not in targets or k not in names or targets[k].shape != names[k][0])
    ]
    if wrong:
        raise UserError(f"The checkpoint {path} does not fit the recipe beside it: {wrong[0]} is of another shape.")
    state: dict[int, dict[str, Tensor]] = {}
    weights = [] if optimizer is None else _weights(optimizer)
    for key, (shape, dtype) in names.items() if optimizer is not None else ():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            weight = weights[int(i)]
            full = getattr(weight, "whole", weight)
            held = torch.zeros_like(weight) if shape == full.shape else torch.zeros(shape, dtype=dtype)
            state.setdefault(int(i), {})[name] = held
            targets[key] = _of(weight, held)
    if written:
        shards.load_into(path.parent, facts["shards"], targets)
    else:
        for key, target in targets.items():
            distributed.cut(whole[key], target)
    if optimizer is not None:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts


def _weights(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _of(weight: Any, held: Tensor) -> Tensor:
    """What an optimizer holds for a weight, spread over the ranks if the weight is."""
    return distributed.like(held, weight.whole) if hasattr(weight, "whole") and held.shape == weight.shape else held
