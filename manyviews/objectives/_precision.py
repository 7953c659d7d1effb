"""Losses in float32, whatever precision the network has."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Call `loss` with half-precision tensors widened to float32, and autocast off.

    Widening alone is not enough: under autocast a product of two float32 matrices is computed in half precision, and
    exponentials of such similarities over a temperature of 0.05 have errors of several percent.
    """

    def widen(x: Any) -> Any:
        half = isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)
        return x.float() if half else x

    @wraps(loss)
    def widened(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(widen, args), **{k: widen(v) for k, v in kwargs.items()})

    return widened
