"""Optimizers against their equations, written out one weight at a time."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.recipes import get
from manyviews.schedules import Constant, Cosine, WarmupCosine
from manyviews.settings import Optimizer
from manyviews.types import Progress


def lars_by_hand(weights, gradients, lr, momentum, decay, trust, adapt):
    """You et al. 2017, in scalars."""
    velocity = [0.0] * len(weights)
    for g in gradients:
        g = [gi + decay * w for gi, w in zip(g, weights, strict=True)]
        w_norm, g_norm = sum(w * w for w in weights) ** 0.5, sum(gi * gi for gi in g) ** 0.5
        ratio = trust * w_norm / g_norm if adapt and w_norm > 0 and g_norm > 0 else 1.0
        velocity = [momentum * v + ratio * gi for v, gi in zip(velocity, g, strict=True)]
        weights = [w - lr * v for w, v in zip(weights, velocity, strict=True)]
    return weights


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("start", [[0.3, -1.2, 2.0], [0.0, 0.0, 0.0]])
def test_lars_is_its_equation(adapt: bool, start: list[float]):
    gradients = torch.randn(5, 3, dtype=torch.float64).tolist()
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = optim.LARS([{"params": [w], "adapt": adapt}], lr=0.5, momentum=0.9, weight_decay=0.01, trust=0.02)
    for g in gradients:
        w.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    assert w.tolist() == pytest.approx(lars_by_hand(start, gradients, 0.5, 0.9, 0.01, 0.02, adapt), rel=1e-12)


def test_lars_scales_layer_by_layer():
    layers = [nn.Parameter(torch.full((4,), v)) for v in (1.0, 10.0)]
    for p in layers:
        p.grad = torch.ones(4)
    before = [p.detach().clone() for p in layers]
    optim.LARS(layers, lr=1.0, momentum=0.0, trust=0.1).step()
    moved = [((b - p).norm() / b.norm()).item() for b, p in zip(before, layers, strict=True)]
    assert moved[0] == pytest.approx(0.1) and moved[1] == pytest.approx(0.1)  # the same fraction of each layer


def test_biases_norms_and_tokens_do_not_decay_and_are_not_adapted():
    method = build_method(get("mae_tiny"))
    names = {id(p): n for n, p in method.named_parameters()}
    for group in optim.groups(method):
        for p in group["params"]:
            plain = p.ndim > 1 and p.squeeze().ndim > 1 and "pos_embed" not in names[id(p)]
            assert group["decays"] == group["adapt"] == plain, names[id(p)]
    grouped = [id(p) for g in optim.groups(method) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)


def test_simsiams_predictor_keeps_the_peak_rate():
    method = build_method(get("simsiam_tiny"))
    settings = Optimizer("sgd", lr=1.0, lr_scaling="constant", schedule=Cosine(1.0, 0.0), weight_decay=0.5)
    optimizer = optim.build(method, settings, torch.device("cpu"))
    optim.schedule(optimizer, settings, 256, Progress(75, 100, 10))
    predictor = {id(p) for n, p in method.named_parameters() if n.startswith("predictors")}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(1.0 if id(p) in predictor else Cosine(1.0, 0.0)(Progress(75, 100, 10)))
        assert group["weight_decay"] == (0.5 if group["decays"] else 0.0)


@pytest.mark.parametrize(("scaling", "rate"), [("linear", 0.4), ("sqrt", 0.2), ("constant", 0.1)])
def test_the_rate_is_scaled_to_the_batch(scaling: str, rate: float):
    assert optim.peak_lr(Optimizer(lr=0.1, lr_scaling=scaling), 1024) == pytest.approx(rate)  # type: ignore[arg-type]


def test_the_schedule_is_a_factor_on_the_peak():
    method = build_method(get("simclr_tiny"))
    settings = Optimizer("lars", lr=0.1, schedule=WarmupCosine(warmup=0), weight_decay=Constant(0.3))
    optimizer = optim.build(method, settings, torch.device("cpu"))
    assert optim.schedule(optimizer, settings, 512, Progress(0, 100, 10)) == pytest.approx(0.2)
    assert optim.schedule(optimizer, settings, 512, Progress(50, 100, 10)) == pytest.approx(0.1)


def test_clipping_returns_the_norm_before_and_scales_to_the_limit():
    method = build_method(get("simclr_tiny"))
    for p in method.parameters():
        p.grad = torch.randn_like(p)
    flat = torch.cat([p.grad.flatten() for p in method.parameters()])
    assert optim.clip(method, None) == pytest.approx(flat.norm().item(), rel=1e-5)
    assert optim.clip(method, 1.5) == pytest.approx(flat.norm().item(), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in method.parameters()])
    torch.testing.assert_close(clipped, flat * 1.5 / flat.norm())
    optim.clip(method, 1e9)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in method.parameters()]), clipped)


def test_frozen_parameters_are_left_out():
    recipe = dataclasses.replace(get("mae_tiny"))
    method = build_method(recipe)
    method.encoder.requires_grad_(False)
    kept = {id(p) for g in optim.groups(method) for p in g["params"]}
    assert not kept & {id(p) for p in method.encoder.parameters()}


def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values():
    for shape in [(8, 30), (30, 8), (5, 5)]:
        x = torch.randn(shape, dtype=torch.float64)
        u, s, vt = torch.linalg.svd(optim.orthogonal(x), full_matrices=False)
        assert s.min() > 0.5 and s.max() < 1.35
        want_u, _, want_vt = torch.linalg.svd(x, full_matrices=False)
        torch.testing.assert_close(u @ vt, want_u @ want_vt, atol=1e-6, rtol=0)


def test_orthogonal_is_five_newton_schulz_steps():
    for shape in [(8, 30), (30, 8), (64, 64)]:
        x = torch.randn(shape, dtype=torch.float64) * torch.logspace(
            0, -4, shape[1]
        )  # of very different singular values
        y = x / x.norm()
        for _ in range(5):
            a = y @ y.T
            y = 3.4445 * y - 4.7750 * a @ y + 2.0315 * a @ a @ y
        torch.testing.assert_close(optim.orthogonal(x), y, atol=1e-7, rtol=0)
        torch.testing.assert_close(optim.orthogonal(x.float()), y.float(), atol=1e-3, rtol=0)


def test_muon_moves_a_matrix_as_far_as_adamw_would_and_a_bias_exactly_so():
    weight, bias = nn.Parameter(torch.randn(16, 4, 3, 3)), nn.Parameter(torch.randn(16))
    theirs = nn.Parameter(bias.detach().clone())
    optimizer = optim.Muon(
        [{"params": [weight]}, {"params": [bias], "adapt": False}], lr=0.1, betas=(0.8, 0.95), weight_decay=0.01
    )
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.95), weight_decay=0.01)
    for _ in range(5):
        before = weight.detach().clone() * (1 - 0.1 * 0.01)
        weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
        theirs.grad = bias.grad.clone()
        optimizer.step()
        reference.step()
        rms = (weight - before).square().mean().sqrt().item()
        assert 0.6 < rms / (0.1 * 0.2) < 1.3  # Liu et al. 2025, section 2.2
        torch.testing.assert_close(bias, theirs)


def test_muon_accumulates_momentum():
    w = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = optim.Muon([w], lr=1.0, momentum=0.5)
    gradients = torch.randn(3, 3, 4, dtype=torch.float64)
    m, expected = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    for g in gradients:
        w.grad = g
        optimizer.step()
        m = 0.5 * m + 0.5 * g
        expected -= 0.2 * 4**0.5 * optim.orthogonal(0.5 * m + 0.5 * g)
    torch.testing.assert_close(w.detach(), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "muon"])
def test_what_is_frozen_at_first_learns_later(name):
    """SwAV's prototypes and DINO's last layer get no gradient in the first epoch."""
    settings = dataclasses.replace(get("swav_tiny").optimizer, name=name)

    def step(method, optimizer, frozen):
        for i, p in enumerate(method.parameters()):
            p.grad = None if frozen and i >= 2 else torch.ones_like(p)
        optimizer.step()

    method = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    method.constant_lr = ()
    plain, late = copy.deepcopy(method), copy.deepcopy(method)
    for model, frozen in ((plain, False), (late, True)):
        optimizer = optim.build(model, settings, torch.device("cpu"))
        if frozen:
            step(model, optimizer, frozen=True)
        step(model, optimizer, frozen=False)
        step(model, optimizer, frozen=False)
    for i, (a, b) in enumerate(zip(plain.parameters(), late.parameters(), strict=True)):
        assert torch.equal(a, b) == (i >= 2)  # what was frozen took the same two steps
