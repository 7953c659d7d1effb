"""Optimizers against their equations, written out one weight at a time."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.optimizers import LARS, Muon, orthogonal
from manyviews.recipes import get
from manyviews.schedules import Constant, Cosine
from manyviews.settings import Optimizer
from manyviews.types import Progress

CPU = torch.device("cpu")


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
def test_lars_is_its_equation_layer_by_layer(adapt: bool):
    starts = [[0.3, -1.2, 2.0], [0.0, 0.0, 0.0], [30.0, 10.0, -5.0]]
    gradients = torch.randn(5, 3, 3, dtype=torch.float64).tolist()
    layers = [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
    optimizer = LARS([{"params": layers, "adapt": adapt}], lr=0.5, momentum=0.9, weight_decay=0.01, trust=0.02)
    for g in gradients:
        for layer, its in zip(layers, g, strict=True):
            layer.grad = torch.tensor(its, dtype=torch.float64)
        optimizer.step()
    for i, (layer, start) in enumerate(zip(layers, starts, strict=True)):
        expected = lars_by_hand(start, [g[i] for g in gradients], 0.5, 0.9, 0.01, 0.02, adapt)
        assert layer.tolist() == pytest.approx(expected, rel=1e-12)


def test_biases_norms_and_tokens_do_not_decay_and_are_not_adapted_and_frozen_parameters_are_left_out():
    method = build_method(get("mae_tiny"))
    frozen = next(method.kept_encoder.parameters()).requires_grad_(False)
    names = {id(p): n for n, p in method.named_parameters()}
    for group in optim.groups(method):
        for p in group["params"]:
            matrix = p.squeeze().ndim > 1 and "pos_embed" not in names[id(p)]
            assert group["decays"] == group["adapt"] == matrix, names[id(p)]
    grouped = [id(p) for g in optim.groups(method) for p in g["params"]]
    assert id(frozen) not in grouped
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(("scaling", "peak"), [("linear", 0.4), ("sqrt", 0.2), ("constant", 0.1)])
def test_the_schedule_is_a_factor_on_the_peak_of_the_batch_which_simsiams_predictor_keeps(scaling: str, peak: float):
    method, at = build_method(get("simsiam_tiny")), Progress(75, 100, 10)
    settings = Optimizer("lars", 0.1, scaling, Cosine(1.0, 0.0), Constant(0.5))  # type: ignore[arg-type]
    optimizer = optim.build(method, settings, CPU)
    rate = peak * Cosine(1.0, 0.0)(at)
    assert optim.schedule(optimizer, settings, 1024, at) == pytest.approx(rate)
    predictor = {id(p) for n, p in method.named_parameters() if n.startswith("predictors")}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(peak if id(p) in predictor else rate)
        assert group["weight_decay"] == (0.5 if group["decays"] else 0.0)


def test_clipping_returns_the_norm_before_and_scales_to_the_limit():
    method = build_method(get("simclr_tiny"))
    for p in method.parameters():
        p.grad = torch.randn_like(p)
    flat = torch.cat([p.grad.flatten() for p in method.parameters()])
    for limit in (None, 1e9, 1.5):
        assert optim.clip(method, limit) == pytest.approx(flat.norm().item(), rel=1e-5)
        clipped = torch.cat([p.grad.flatten() for p in method.parameters()])
        torch.testing.assert_close(clipped, flat * 1.5 / flat.norm() if limit == 1.5 else flat)


def test_orthogonal_is_five_newton_schulz_steps_towards_the_singular_vectors():
    for shape in [(8, 30), (30, 8), (64, 64)]:
        x = torch.randn(shape, dtype=torch.float64)
        u, s, vt = torch.linalg.svd(orthogonal(x), full_matrices=False)
        assert s.max() < 1.35 and (shape == (64, 64) or s.min() > 0.5)
        if shape != (64, 64):
            want_u, _, want_vt = torch.linalg.svd(x, full_matrices=False)
            torch.testing.assert_close(u @ vt, want_u @ want_vt, atol=1e-6, rtol=0)
        x = x * torch.logspace(0, -4, shape[1])  # singular values that differ widely
        y = x / x.norm()
        for _ in range(5):
            a = y @ y.T
            y = 3.4445 * y - 4.7750 * a @ y + 2.0315 * a @ a @ y
        torch.testing.assert_close(orthogonal(x), y, atol=1e-7, rtol=0)
        torch.testing.assert_close(orthogonal(x.float()), y.float(), atol=1e-3, rtol=0)


def test_muon_moves_a_matrix_as_far_as_adamw_would_and_a_bias_exactly_so():
    weight, bias = nn.Parameter(torch.randn(16, 4, 3, 3)), nn.Parameter(torch.randn(16))
    theirs = nn.Parameter(bias.detach().clone())
    optimizer = Muon(
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
    optimizer = Muon([w], lr=1.0, momentum=0.5)
    m, expected = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    for g in torch.randn(3, 3, 4, dtype=torch.float64):
        w.grad = g
        optimizer.step()
        m = 0.5 * m + 0.5 * g
        expected -= 0.2 * 4**0.5 * orthogonal(0.5 * m + 0.5 * g)
    torch.testing.assert_close(w.detach(), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "muon"])
def test_parameters_that_are_frozen_at_first_learn_later(name):
    """SwAV's prototypes and DINO's last layer get no gradient in the first epoch."""
    settings = dataclasses.replace(get("swav_tiny").optimizer, name=name)

    def step(method, optimizer, frozen):
        for i, p in enumerate(method.parameters()):
            p.grad = None if frozen and i >= 2 else torch.ones_like(p)
        optimizer.step()

    method = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    method.constant_lr, method.lr_scales = (), {}
    plain, late = copy.deepcopy(method), copy.deepcopy(method)
    for model, frozen in ((plain, False), (late, True)):
        optimizer = optim.build(model, settings, CPU)
        if frozen:
            step(model, optimizer, frozen=True)
        step(model, optimizer, frozen=False)
        step(model, optimizer, frozen=False)
    for i, (a, b) in enumerate(zip(plain.parameters(), late.parameters(), strict=True)):
        assert torch.equal(a, b) == (i >= 2)  # what was frozen took the same two steps
