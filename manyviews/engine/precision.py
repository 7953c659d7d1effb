"""The number format of the forward pass."""

from __future__ import annotations

import contextlib
import os
from typing import Literal, cast, get_args

import torch

from manyviews.errors import unknown

Precision = Literal["float32", "bfloat16"]

SWITCH = "MANYVIEWS_PRECISION"
"""Environment variable: a `Precision` for every run whose recipe leaves it to the device. Tests run with both."""


def resolve(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """The precision that a recipe's setting means on a device.

    "auto" is the environment variable `MANYVIEWS_PRECISION` if there is one. Otherwise it is bfloat16 where the device
    multiplies it faster than float32, and float32 elsewhere.

    Raises:
        UserError: The variable holds another word.
    """
    if precision != "auto":
        return precision
    asked = os.environ.get(SWITCH)
    for known in get_args(Precision):
        if asked == known:
            return cast(Literal["float32", "bfloat16"], known)
    if asked:
        raise unknown(f"precision in the environment variable {SWITCH}", asked, get_args(Precision))
    return "bfloat16" if bfloat16_is_faster(device) else "float32"


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware.

    Most CPUs before AMX or AVX512-BF16 emulate it, ten times slower.
    """
    if device.type == "cuda":
        found: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return found
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, c, lambda: False)() for c in checks)
    return False


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A context in which the forward pass computes in the given precision; parameters stay float32."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
