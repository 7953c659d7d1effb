"""The number format of the forward pass, and the scaling of the loss that float16 needs."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from manyviews import machine
from manyviews.errors import unknown

Precision = Literal["float32", "bfloat16", "float16"]

Asked = Literal["auto", "float32", "bfloat16", "float16"]

SWITCH = "MANYVIEWS_PRECISION"
"""Environment variable: a `Precision` for every run whose recipe leaves it to the device. Tests run with each."""


def resolve(precision: Asked, device: torch.device) -> Precision:
    """The precision that a recipe's setting means on a device.

    "auto" is the environment variable `MANYVIEWS_PRECISION` if there is one. Otherwise it is bfloat16 where the device
    multiplies it faster than float32, float16 on other NVIDIA GPUs with tensor cores (V100, T4, RTX 20), and float32
    elsewhere.

    Raises:
        UserError: The variable holds another word.
    """
    return _chosen(precision, device)[0]


def explain(precision: Asked, device: torch.device) -> str:
    """One line that says which precision is taken, and why."""
    chosen, why = _chosen(precision, device)
    scaled = " with loss scaling" if chosen == "float16" else ""
    return f"Precision: {chosen}{scaled}, {why}."


def _chosen(precision: Asked, device: torch.device) -> tuple[Precision, str]:
    if precision != "auto":
        return precision, f"as step.precision asks, on {machine.name(device)}"
    asked = os.environ.get(SWITCH)
    if asked:
        if asked not in get_args(Precision):
            raise unknown(f"precision in the environment variable {SWITCH}", asked, get_args(Precision))
        return cast(Precision, asked), f"as {SWITCH} asks, on {machine.name(device)}"
    if bfloat16_is_faster(device):
        return "bfloat16", f"which {machine.name(device)} multiplies in hardware"
    if float16_is_faster(device):
        return "float16", f"because {machine.name(device)} has no bfloat16 in hardware"
    lower = "bfloat16 or float16 " if device.type == "cuda" else "bfloat16 "
    if device.type == "mps":
        return "float32", f"because nobody has measured others on {machine.name(device)}: see step.precision"
    return "float32", f"because {machine.name(device)} is not known to multiply {lower}faster"


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware.

    Most CPUs before AMX or AVX512-BF16 emulate it, ten times slower.
    """
    found = False
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "xpu":
        found = torch.xpu.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        found = any(getattr(torch.cpu, c, lambda: False)() for c in checks)
    return found


def float16_is_faster(device: torch.device) -> bool:
    """Whether the device is an NVIDIA GPU with tensor cores. Those before Volta multiply float16 up to 64 times slower.

    AMD's GPUs, which PyTorch calls "cuda" too, have bfloat16.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A context in which the forward pass computes in the given precision; parameters stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision])


class Scaling:
    """The loss is multiplied by a scale before each backward pass, and the gradient divided by it afterwards.

    A gradient below 6e-8 is zero in float16, one above 65,504 infinite. A step whose gradient has values that are not
    finite is skipped, and the scale is halved; after 2,000 good steps in a row it is doubled (Micikevicius et al.
    2018). It does nothing in other precisions. All ranks decide alike, because the gradient is averaged over them
    before it is looked at.

    Attributes:
        skipped: number of skipped steps.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._scaler.scale(torch.zeros((), device=device))  # makes the scale, which a checkpoint may have to replace
        self.skipped = 0

    @property
    def active(self) -> bool:
        """Whether the loss is scaled."""
        return self._scaler.is_enabled()

    @property
    def factor(self) -> float:
        """The scale: a power of two, 1 in other precisions than float16."""
        return self._scaler.get_scale()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss, or a term of it, as it is to be backpropagated."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of the optimizer's parameters by the scale, once they are complete."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let the optimizer move the parameters unless the gradient is not finite, and say whether it did.

        Under float16, the host waits for the device.
        """
        if not self.active:
            optimizer.step()
            return True
        before = self.factor
        self._scaler.step(optimizer)
        self._scaler.update()
        moved = self.factor >= before
        self.skipped += not moved
        return moved

    def state(self) -> dict[str, Any]:
        """Everything from which it continues exactly, as JSON can hold it; empty in other precisions than float16."""
        return self._scaler.state_dict() | {"skipped": self.skipped} if self.active else {}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`. A run that continues in another precision begins anew."""
        if self.active and state:
            self._scaler.load_state_dict(state)
            self.skipped = int(state["skipped"])
