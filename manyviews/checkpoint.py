"""Checkpoints: one file of tensors and JSON, written whole or not at all, safe to load from anywhere.

safetensors holds the tensors, and a JSON string in the file's own header holds everything else. No pickle. The string
also holds a checksum of each tensor, which is compared whenever the file is loaded: disks flip bits. Files of others
have none, and load all the same.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manyviews import distributed, machine, shards
from manyviews.errors import Unwritten, UserError, printable

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    errno.EIO: "look at the disk",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "give a place where files may be written"),
}
_RUST = re.compile(r"\(os error (\d+)\)")  # errors of the system, as safetensors words them


class Damaged(UserError):
    """A file whose content is not what was written: cut short, or with other bytes."""


def write_atomically(path: Path, write: Callable[[Path], object], before: Path | None = None) -> None:
    """Call `write` with a temporary path next to `path`, then move the result into place.

    After a crash or on a full disk, the file that was at `path` before is still there. A link stays, and its target is
    replaced.

    Args:
        path: the file.
        write: writes it.
        before: where the file that is replaced stays, in the same folder.
    """
    if path.exists() and not path.is_file():  # a device or a pipe, such as /dev/stdout, must not become a file
        write(path)
        return
    path = path.resolve() if path.is_symlink() else path
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise unwritten(path, error) from error
    part = Path(name)
    try:
        write(part)
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.chmod(0o666 & ~_umask())  # a temporary file is private, a new file is not
        if before is not None and path.exists():
            _keep(path, before)
        part.replace(path)
        # The rename itself must survive a power cut.
        with contextlib.suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except Exception as error:
        if (found := _of_system(error)) is None:
            raise
        raise unwritten(path, found, "the file that was there is unharmed" if path.exists() else "") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_buffered(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write what `save` gives to a buffer. PyTorch's own writers abort the process on a full disk."""
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getbuffer())


def unwritten(path: Path, error: OSError, more: str = "") -> Unwritten:
    """The error for a file or folder that could not be written: which one, why, and what to do."""
    text = f"{path} could not be written ({error.strerror or error})"
    advice = "; ".join(part for part in (_ADVICE.get(error.errno or 0, ""), more) if part)
    return Unwritten(f"{text}: {advice}." if advice else f"{text}.", error)


def _of_system(error: Exception) -> OSError | None:
    """The system's error behind one that was raised while a file was written; None if it is another."""
    if isinstance(error, OSError):
        return None if isinstance(error, Unwritten) else error
    if isinstance(error, SafetensorError) and (found := _RUST.search(str(error))):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return None


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, without copying it. There is a file of its first name all the time."""
    spare = path.with_name(f".{before.name}.spare")
    spare.unlink(missing_ok=True)
    try:
        spare.hardlink_to(path)
    except OSError:  # a file system without hard links: for a moment there is only the second name
        path.replace(before)
        return
    spare.replace(before)
    spare.unlink(missing_ok=True)  # of two names of one file, a rename leaves both


def is_temporary(name: str, of: Collection[str]) -> bool:
    """Whether a file's name is one that `write_atomically` gives while it writes one of the files `of`."""
    return any(name.startswith(f".{file}.") for file in of)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end of the block.

    `out` may be an empty folder. If the block fails, nothing is left of it. Everything in it gets the permissions of
    new files and folders, whatever the libraries that wrote it gave.
    """
    out = out.resolve() if out.is_symlink() else out
    try:
        part = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    except OSError as error:
        raise unwritten(out, error) from error
    try:
        yield part
        _share(part)
        if out.exists():  # it may be a mount or the working directory, so it stays
            for found in sorted(part.iterdir()):
                shutil.move(found, out / found.name)
        else:
            part.rename(out)
    except Exception as error:
        failed = error if isinstance(error, Unwritten) else _of_system(error)
        if failed is None:
            raise
        raise unwritten(out, failed, "nothing is left of it") from error
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


_FACTS = "manyviews"
"""The facts' name in a header."""
_SUMS = "crc32"
"""The checksums' name among the facts: CRC-32, which the standard library computes at 1 to 3 GB/s."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], before: Path | None = None
) -> None:
    """Write tensors and JSON-able facts to one safetensors file, atomically; `before`: see `write_atomically`."""
    # The format refuses shared or strided storage, so each tensor gets storage of its own.
    own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    sums = {"facts": _checksum_of(facts), "tensors": checksums(own)}
    # One entry: safetensors writes several in any order, and equal content should be equal files.
    header = {_FACTS: json.dumps({**facts, _SUMS: sums})}
    write_atomically(path, lambda p: save_file(own, p, metadata=header), before)


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """CRC-32 of each tensor on the CPU: its bytes, name, type and shape."""
    with ThreadPoolExecutor(machine.cores()) as pool:  # zlib lets other threads run
        return dict(zip(tensors, pool.map(_checksum, tensors, tensors.values()), strict=True))


def _checksum(name: str, tensor: Tensor) -> int:
    start = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass"))
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, start)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, or any safetensors file (whose facts are then empty).

    Raises:
        UserError: there is no such file.
        Damaged: it is cut short, is not a safetensors file, or its content does not match its checksums.
    """
    tensors, facts = _own(path)
    if "shards" in facts:
        tensors |= shards.load(path.parent, facts["shards"])
    return tensors, facts


def _own(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file itself holds, without the shards that it may name."""
    with _opened(path) as f:
        facts, sums = _facts(path, f)
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        if sums is not None:
            found = checksums(tensors)
            if found.keys() != sums.keys():
                raise _other(path, "names of tensors")
            wrong = [k for k in found if found[k] != sums[k]]
            if wrong:
                raise _other(path, f"bytes in {printable(wrong[0], 80)}")
        return tensors, facts


def facts_of(path: Path) -> dict[str, Any]:
    """The facts that `save_tensors` wrote, without the tensors. Raises as `load_tensors` does."""
    with _opened(path) as f:
        return _facts(path, f)[0]


def damage(path: Path) -> str | None:
    """Why a file of `save_tensors` cannot be used, in a sentence; None if all of it is as it was written.

    A file is read again only when it has changed.
    """
    try:
        found = path.stat()
        return _damage(path, (found.st_ino, found.st_size, found.st_mtime_ns))
    except OSError as e:
        return f"{path} cannot be read ({e.strerror})."


@lru_cache(maxsize=64)
def _damage(path: Path, stamp: tuple[int, ...]) -> str | None:
    try:
        facts = _own(path)[1]
        if "shards" in facts:
            shards.check(path.parent, facts["shards"])
    except UserError as e:
        return str(e)
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. What fails while it is read becomes a UserError."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except (SafetensorError, OSError, ValueError) as e:
        raise Damaged(f"{path} is not a readable safetensors file ({e}).") from e


def _facts(path: Path, file: Any) -> tuple[dict[str, Any], dict[str, int] | None]:
    """The facts in a header, and the checksums of the tensors."""
    header: dict[str, str] = file.metadata() or {}
    try:
        if _FACTS not in header and any(f'"{_SUMS}": {{"facts":' in text for text in header.values()):
            raise ValueError("the facts have another name")
        return split(header.get(_FACTS, "{}"))
    except ValueError as e:
        raise _other(path, "facts") from e


def split(text: str) -> tuple[dict[str, Any], dict[str, int] | None]:
    """The facts that `save_tensors` wrote into a header, and the checksums of the tensors, if there are any.

    Raises:
        ValueError: the text is not as it was written.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        sums = found.pop(_SUMS, None)
        if sums is None:
            if any(isinstance(v, dict) and v.keys() == {"facts", "tensors"} for v in found.values()):
                raise ValueError("the checksums have another name")
            return found, None
        if sums["facts"] == _checksum_of(found):
            return found, dict(sums["tensors"])
    except (TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ValueError("the header holds no facts") from e
    raise ValueError("the facts do not match their checksum")


def _checksum_of(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts).encode())


def _other(path: Path, what: str) -> Damaged:
    return Damaged(f"{path} is damaged: it has other {what} than were written. Copy it again from where it is whole.")


def save(
    path: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    before: Path | None = None,
) -> None:
    """Write everything from which training continues exactly: module, optimizer state, and facts such as the step.

    The checkpoint that was there stays as `before`. If parameters are spread over the ranks, all ranks call it: each
    writes its part to a folder beside, which `path` names once it is complete. Else the caller is the only one.
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
        save_tensors(path, tensors, facts, before)
        tidy(path)


def tidy(path: Path) -> None:
    """Remove the shards beside a checkpoint that neither it nor others of names like its own are made of."""
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
            i, name = _place(path, key, len(weights))
            weight = weights[i]
            # Fused optimizers require the memory layout of the weight.
            same = tensor.shape == weight.shape
            state.setdefault(i, {})[name] = torch.empty_like(weight).copy_(tensor) if same else tensor
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
            i, name = _place(path, key, len(weights))
            weight = weights[i]
            full = getattr(weight, "whole", weight)
            held = torch.zeros_like(weight) if shape == full.shape else torch.zeros(shape, dtype=dtype)
            state.setdefault(i, {})[name] = held
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


def _place(path: Path, key: str, weights: int) -> tuple[int, str]:
    """The number of the weight that an optimizer's tensor belongs to, and its name there: of "optimizer.3.step"."""
    _, number, name = (*key.split(".", 2), "", "")[:3]
    if not (number.isascii() and number.isdecimal() and len(number) < 10 and int(number) < weights and name):
        raise UserError(f"The checkpoint {path} does not fit the recipe beside it: it has {printable(key, 100)}.")
    return int(number), name


def _of(weight: Any, held: Tensor) -> Tensor:
    """What an optimizer holds for a weight, spread over the ranks if the weight is."""
    return distributed.like(held, weight.whole) if hasattr(weight, "whole") and held.shape == weight.shape else held
