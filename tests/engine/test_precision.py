"""bfloat16 and float16, on every machine: forced, and emulated where the processor lacks them.

A bfloat16 number has 8 significant bits, so rounding to it errs by at most 2^-9 of the number; a float16 number has 11,
if it is neither tiny nor large.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.precision import SWITCH, Scaling, autocast, bfloat16_is_faster, explain, resolve
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.recipes import get
from manyviews.settings import override
from manyviews.targets import Center, Queue
from manyviews.types import Progress
from manyviews.views import Views
from tests.methods.conftest import canvases

ROUNDING = {"bfloat16": 2**-9, "float16": 2**-12}
AT = Progress(0, 10, 5)
CPU = torch.device("cpu")


def test_auto_is_the_switch_or_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert resolve("auto", CPU) == ("bfloat16" if bfloat16_is_faster(CPU) else "float32")
    for word, other in (("bfloat16", "float32"), ("float32", "float16"), ("float16", "bfloat16")):
        monkeypatch.setenv(SWITCH, word)
        assert resolve("auto", CPU) == word
        assert resolve(other, CPU) == other  # a recipe that asks is given what it asks for
    monkeypatch.setenv(SWITCH, "bfloat")
    with pytest.raises(UserError, match=r"MANYVIEWS_PRECISION.*Did you mean 'bfloat16'"):
        resolve("auto", CPU)


@pytest.mark.parametrize(
    ("gpu", "capability", "bfloat16", "precision"),
    [("H200", (9, 0), True, "bfloat16"), ("Tesla T4", (7, 5), False, "float16"), ("P40", (6, 1), False, "float32")],
)
def test_a_gpu_computes_in_what_it_multiplies_fastest_and_says_so(gpu, capability, bfloat16, precision, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    device = torch.device("cuda")
    assert resolve("auto", device) == precision
    assert explain("auto", device).startswith(f"Precision: {precision}") and gpu in explain("auto", device)


@pytest.mark.parametrize("low", ROUNDING)
def test_a_product_errs_by_its_roundings(low: str):
    """Both factors and the result are rounded; the sum of n products is taken in float32."""
    n, rounding = 300, ROUNDING[low]
    x, w = torch.randn(40, n), torch.randn(50, n)
    with autocast(CPU, low):
        found = nn.functional.linear(x, w)
    exact = x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    allowed = ((1 + rounding) ** 2 - 1 + n * 2**-24) * size + rounding * (exact.abs() + 3 * rounding * size)
    off = (found.double() - exact).abs()
    assert found.dtype == getattr(torch, low) and (off <= allowed).all() and off.max() > 0
    with autocast(CPU, "float32"):
        assert nn.functional.linear(x, w).dtype == torch.float32


class Rounded(torch.autograd.Function):
    """Errs like a rounding to bfloat16 or float16, uniformly, in both directions; computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: float, draw: torch.Generator) -> Tensor:
        ctx.rounding, ctx.draw = rounding, draw
        return Rounded.err(x, rounding, draw)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return Rounded.err(g, ctx.rounding, ctx.draw), None, None

    @staticmethod
    def err(x: Tensor, rounding: float, draw: torch.Generator) -> Tensor:
        return x * (1 + rounding * (2 * torch.rand(x.shape, generator=draw) - 1))


def gradient(name: str, precision: str, *, noise: int | None = None, rounding: float = 0.0) -> dict[str, Tensor]:
    """Gradients of one step; with noise, the weights, inputs and outputs of every layer err like low precision."""
    method = build_method(get(f"{name}_tiny")).train()
    draw = torch.Generator().manual_seed(noise or 0)
    for m in method.modules() if noise is not None else ():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.weight.data = Rounded.err(m.weight.data, rounding, draw)
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm)):
            m.register_forward_pre_hook(lambda m, x: (Rounded.apply(x[0], rounding, draw), *x[1:]))
            m.register_forward_hook(lambda m, x, y: Rounded.apply(y, rounding, draw))
    batch, scale = canvases(8), 2.0**6 if precision == "float16" else 1.0
    backpropagate(method, [lambda: Views(batch, method.views)], AT, precision=precision, scale=lambda x: x * scale)
    return {k: p.grad / scale for k, p in method.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return torch.cat([(a[k] - b[k]).flatten() for k in b]).norm().item()


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])  # ResNets and transformers, with teachers and without
@pytest.mark.parametrize("word", ROUNDING)
def test_gradients_are_as_exact_as_their_roundings_allow(name: str, word: str):
    """Losses, targets and updates are computed in float32: only the layers round."""
    exact, low = gradient(name, "float32"), gradient(name, word)
    assert all(g.dtype == torch.float32 for g in low.values())
    noisy = max(distance(gradient(name, "float32", noise=i, rounding=ROUNDING[word]), exact) for i in range(2))
    assert 0 < distance(low, exact) < 3 * noisy  # two draws of a norm that varies by a factor of about two


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw", "muon"])
def test_a_step_whose_gradient_overflows_moves_nothing_and_is_scaled_less(name: str):
    """And one that does not is the step of an optimizer whose loss was never scaled: scales are powers of two."""
    recipe = override(get("dino_tiny"), "optimizer.name", name)
    plain, scaled = (build_method(recipe).train() for _ in range(2))
    optimizers = [optim.build(m, recipe.optimizer, CPU) for m in (plain, scaled)]
    scaling, nothing = Scaling(CPU, "float16"), Scaling(CPU, "float32")
    draw = torch.Generator().manual_seed(0)
    for step, overflows in enumerate((True, False, True, False)):
        before = {k: v.clone() for k, v in scaled.state_dict().items()}
        for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
            if a.requires_grad:
                a.grad = torch.randn(a.shape, generator=draw)
                b.grad = a.grad * scaling.factor
        if overflows:
            next(p for p in scaled.parameters() if p.requires_grad).grad.flatten()[0] = torch.inf
        scaling.unscale(optimizers[1])
        assert scaling.step(optimizers[1]) != overflows
        if overflows:
            assert all(torch.equal(v, before[k]) for k, v in scaled.state_dict().items())
        else:
            assert nothing.step(optimizers[0])
            theirs = plain.state_dict()
            assert all(torch.equal(v, theirs[k]) for k, v in scaled.state_dict().items())
        assert scaling.factor == 2.0**16 / 2 ** (step // 2 + 1) and nothing.factor == 1
    assert scaling.skipped == 2


def test_what_a_skipped_step_collected_is_dropped():
    """DINO's center would average the outputs of two steps, and a queue would hold keys that were not finite."""
    center, queue = Center(2, 0.5), Queue(2, 2)
    rows = queue.rows.clone()
    for part in (center, queue):
        part.forget()  # nothing yet
    center.targets([torch.full((1, 2), torch.nan)], 1.0)
    queue.push(torch.full((1, 2), torch.nan))
    for part in (center, queue):
        part.forget()
    center.targets([torch.ones(1, 2)], 1.0)
    center.move(AT)
    assert torch.equal(center.value, torch.full((2,), 0.5)) and torch.equal(queue.rows, rows) and not queue._fresh
