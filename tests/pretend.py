"""A device that is not here: an Apple GPU, played by the processor, which refuses what such a GPU refuses.

It knows nothing of which operations PyTorch lacks there. It finds float64, tensors of two devices in one operation,
pinned memory, and numbers that are read where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from manyviews import machine

MPS = torch.device("mps")
NEVER = (torch.float64, torch.complex128)


class There(Tensor):
    """A tensor that Python finds on an Apple GPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        assert here.dtype not in NEVER, f"an Apple GPU has no {here.dtype}"
        found = torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype
        )
        found.here = here
        return found

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        strangers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, There)]
        # Single numbers may be anywhere, and so may rows to pick.
        assert "index" in str(op) or all(x.ndim == 0 for x in strangers), f"{op} of two devices"
        here = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
        found = tree_map(lambda x: There(x) if isinstance(x, Tensor) else x, op(*here[0], **here[1]))
        return return_and_correct_aliasing(op, args, kwargs, found)


class _Python(TorchFunctionMode):
    """What Python asks a tensor, and where it makes and moves one."""

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = bool(args) and isinstance(args[0], There)
        name = getattr(f, "__name__", "")
        if there and f == torch.Tensor.device.__get__:
            return MPS
        if there and name in ("cpu", "tolist", "numpy"):
            assert name != "numpy", "numpy cannot read an Apple GPU's memory"
            found = args[0].detach().here
            return found.clone() if name == "cpu" else found.tolist()
        if there and name in ("one_hot", "new_tensor"):  # they make tensors of the device that C++ sees
            return There(f(args[0].here, *args[1:], **kwargs))
        if name == "pin_memory" or kwargs.get("pin_memory"):
            raise AssertionError("only NVIDIA's GPUs have pinned memory")
        if f is torch.Tensor.to and not (len(args) > 1 and isinstance(args[1], Tensor)):
            x = args[0]
            kwargs.pop("copy", None)
            to, dtype, _, layout = torch._C._nn._parse_to(*args[1:], **kwargs)
            if to is not None and (to.type == "mps") != there:
                moved = x.detach().here if there else x.detach()
                x = moved.to(dtype or x.dtype, copy=True) if there else There(moved.to(dtype or x.dtype, copy=True))
            elif dtype is not None:
                x = f(x, dtype)
            return x if layout is None else x.contiguous(memory_format=layout)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "mps":
            assert not any(isinstance(x, There) for x in tree_leaves(args)) or name.startswith("new_"), name
            found = f(*args, **kwargs | {"device": "cpu"})
            return found if isinstance(found, There) else There(found).requires_grad_(found.requires_grad)
        return f(*args, **kwargs)


@contextmanager
def apple(monkeypatch: Any) -> Iterator[None]:
    """On a machine with an Apple GPU."""
    monkeypatch.setattr(machine, "available", lambda kind: kind in ("mps", "cpu"))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.zeros(1))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    for name in ("set_rng_state", "manual_seed"):
        monkeypatch.setattr(torch.mps, name, lambda state: None)
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Python():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
