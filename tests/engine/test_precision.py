"""bfloat16, on every machine: forced, and emulated where the processor lacks it.

A bfloat16 number has 8 significant bits, so rounding to it errs by at most `ROUNDING` = 2^-9 of the number.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyviews.engine.build import build_method
from manyviews.engine.precision import SWITCH, autocast, bfloat16_is_faster, resolve
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.recipes import get
from manyviews.types import Progress
from manyviews.views import Views
from tests.methods.conftest import canvases

ROUNDING = 2**-9
AT = Progress(0, 10, 5)
CPU = torch.device("cpu")


def test_auto_is_the_switch_or_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert resolve("auto", CPU) == ("bfloat16" if bfloat16_is_faster(CPU) else "float32")
    for word, other in (("bfloat16", "float32"), ("float32", "bfloat16")):
        monkeypatch.setenv(SWITCH, word)
        assert resolve("auto", CPU) == word
        assert resolve(other, CPU) == other  # a recipe that asks is given what it asks for
    monkeypatch.setenv(SWITCH, "bfloat")
    with pytest.raises(UserError, match=r"MANYVIEWS_PRECISION.*Did you mean 'bfloat16'"):
        resolve("auto", CPU)


def test_a_product_errs_by_its_roundings():
    """Both factors and the result are rounded; the sum of n products is taken in float32."""
    n = 300
    x, w = torch.randn(40, n), torch.randn(50, n)
    with autocast(CPU, "bfloat16"):
        found = nn.functional.linear(x, w)
    exact = x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    allowed = ((1 + ROUNDING) ** 2 - 1 + n * 2**-24) * size + ROUNDING * (exact.abs() + 3 * ROUNDING * size)
    off = (found.double() - exact).abs()
    assert found.dtype == torch.bfloat16 and (off <= allowed).all() and off.max() > 0
    with autocast(CPU, "float32"):
        assert nn.functional.linear(x, w).dtype == torch.float32


class Rounded(torch.autograd.Function):
    """Errs like a rounding to bfloat16, uniformly, in both directions; computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: torch.Generator) -> Tensor:
        ctx.draw = draw
        return Rounded.err(x, draw)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Rounded.err(g, ctx.draw), None

    @staticmethod
    def err(x: Tensor, draw: torch.Generator) -> Tensor:
        return x * (1 + ROUNDING * (2 * torch.rand(x.shape, generator=draw) - 1))


def gradient(name: str, precision: str, *, noise: int | None = None) -> dict[str, Tensor]:
    """Gradients of one step; with noise, the weights, inputs and outputs of every layer err like bfloat16."""
    method = build_method(get(f"{name}_tiny")).train()
    draw = torch.Generator().manual_seed(noise or 0)
    for m in method.modules() if noise is not None else ():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.weight.data = Rounded.err(m.weight.data, draw)
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm)):
            m.register_forward_pre_hook(lambda m, x: (Rounded.apply(x[0], draw), *x[1:]))
            m.register_forward_hook(lambda m, x, y: Rounded.apply(y, draw))
    batch = canvases(8)
    backpropagate(method, [lambda: Views(batch, method.views)], AT, precision=precision)
    return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return torch.cat([(a[k] - b[k]).flatten() for k in b]).norm().item()


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])  # ResNets and transformers, with teachers and without
def test_gradients_are_as_exact_as_their_roundings_allow(name: str):
    """Losses, targets and updates are computed in float32: only the layers round."""
    exact, low = gradient(name, "float32"), gradient(name, "bfloat16")
    assert all(g.dtype == torch.float32 for g in low.values())
    noisy = max(distance(gradient(name, "float32", noise=i), exact) for i in range(2))
    assert 0 < distance(low, exact) < 3 * noisy  # two draws of a norm that varies by a factor of about two
