"""In which number format the step computes."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware.

    Without such instructions (most CPUs before AMX or AVX512-BF16) it is emulated, and ten times slower.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, c, lambda: False)() for c in checks)
    return False


def autocast(
    device: torch.device, precision: Literal["auto", "float32", "bfloat16"] = "auto"
) -> contextlib.AbstractContextManager[object]:
    """A context in which the forward pass computes in the given precision; parameters stay float32."""
    if precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
