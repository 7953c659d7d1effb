"""Inputs for which the value is known in closed form, to the digits published with the equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from manyviews.objectives import (
    covariance,
    cross_correlation,
    cross_entropy,
    cross_info_nce,
    info_nce,
    invariance,
    masked_mse,
    negative_cosine,
    nt_xent,
    sharpen,
    sinkhorn,
    squared_distance,
    swapped_prediction,
    variance,
)
from manyviews.views import Draws, Random


def value(x: Tensor) -> float:
    return round(x.item(), 6)


@pytest.mark.parametrize(("n", "expected"), [(4, 1.945910), (256, 6.236370), (4096, 9.010791)])
def test_nt_xent_of_equal_projections_is_the_logarithm_of_the_choices(n: int, expected: float):
    z = torch.ones(n, 1)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(("n", "temperature", "expected"), [(4, 0.5, 0.594438), (256, 0.1, 0.022890)])
def test_nt_xent_of_equal_views_of_orthogonal_images(n: int, temperature: float, expected: float):
    assert value(nt_xent(torch.eye(n), 3 * torch.eye(n), temperature)) == expected


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_moco_of_equal_keys(temperature: float):
    q, queue = torch.ones(2, 1), torch.ones(65536, 1)
    assert info_nce(q, q, queue, temperature).item() == pytest.approx(11.090370, abs=2e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 0.040135), (0.2, 6.092617)])
def test_moco_of_equal_views_and_an_orthogonal_queue(temperature: float, expected: float):
    q, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]).expand(65536, 2)
    assert info_nce(q, 5 * q, queue, temperature).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.2, 3.327106), (1.0, 16.635532)])
def test_moco_v3_of_equal_projections(temperature: float, expected: float):
    z = torch.ones(4096, 1)
    assert cross_info_nce(z, z, temperature).item() == pytest.approx(expected, abs=5e-6)


def test_moco_v3_is_the_unified_contrastive_loss_at_twice_the_temperature():
    """Cookbook eq. 16: mean of t log(1 + sum over j != i of exp((|z_i - z'_i|^2 - |z_i - z'_j|^2) / t))."""
    q, k = (torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64)) for _ in range(2))
    t, total = 0.3, 0.0
    for i in range(6):
        d = [(q[i] - k[j]).square().sum().item() for j in range(6)]
        total += t * math.log(1 + sum(math.exp((d[i] - d[j]) / t) for j in range(6) if j != i)) / 6
    assert cross_info_nce(q, k, t / 2).item() == pytest.approx(total, abs=1e-10)


def test_alignment_of_equal_orthogonal_and_opposite_vectors():
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert [value(squared_distance(x, t)) for t in (7 * x, y, -x)] == [0, 2, 4]
    assert [value(negative_cosine(x, t)) for t in (7 * x, y, -x)] == [-1, 0, 1]


def test_simsiam_gradient_is_the_papers():
    p, z = (torch.randn(1, 5, dtype=torch.float64) for _ in range(2))
    p.requires_grad_()
    negative_cosine(p, z).backward()
    with torch.no_grad():
        expected = -(z / (p.norm() * z.norm()) - (p @ z.T) * p / (p.norm() ** 3 * z.norm()))
    torch.testing.assert_close(p.grad, expected)


@pytest.mark.parametrize(
    ("k", "expected"), [(3000, 8.006368), (8192, 9.010913), (65536, 11.090355), (131072, 11.783502)]
)
def test_uniform_distributions_cost_the_logarithm_of_their_size(k: int, expected: float):
    zeros = torch.zeros(2, k, dtype=torch.float64)
    assert cross_entropy(sharpen(zeros, zeros[0], 0.04), zeros, 0.1).item() == pytest.approx(expected, abs=1e-6)
    assert swapped_prediction(zeros, sinkhorn(zeros, 0.05, 3), 0.1).item() == pytest.approx(expected, abs=1e-6)


def test_dino_of_a_student_that_agrees_costs_the_entropy():
    logits, center = torch.randn(4, 9), torch.zeros(9)
    p = sharpen(logits, center, 0.1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(cross_entropy(p, logits, 0.1), entropy)
    assert cross_entropy(p, torch.randn(4, 9), 0.1) > entropy


def test_a_constant_added_to_the_teacher_and_to_its_center_changes_nothing():
    logits, center, shift = torch.randn(4, 9), torch.randn(9), torch.randn(9)
    torch.testing.assert_close(sharpen(logits + shift, center + shift, 0.04), sharpen(logits, center, 0.04))
    torch.testing.assert_close(sharpen(logits + 3, center, 0.04), sharpen(logits, center, 0.04))


def test_sinkhorn_of_a_known_matrix_at_convergence():
    """Four images, three prototypes: one matrix only has these sums and the scores' cross-ratios."""
    limit = torch.tensor([[0.565, 0.040, 0.217, 0.512], [0.098, 0.688, 0.450, 0.098], [0.338, 0.272, 0.334, 0.389]]).T
    # Scaling its rows and columns by anything keeps the cross-ratios.
    scores = (limit * torch.tensor([3.0, 1.0, 0.2]) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])).log()
    codes = sinkhorn(scores, 1.0, 50)
    torch.testing.assert_close(codes, limit, atol=2e-3, rtol=0)
    torch.testing.assert_close(codes.sum(0), torch.full((3,), 4 / 3))


def test_vicreg_of_constant_embeddings():
    z = torch.full((8, 16), 3.0)
    assert 25 * invariance(z, z) + 25 * (variance(z) + variance(z)) / 2 + covariance(z) == pytest.approx(24.75)


def test_vicreg_of_dimensions_that_are_copies():
    column = torch.tensor([-1.0, 1.0]).repeat(50)[:, None]
    z = (column / column.std()).expand(100, 128) + 7
    assert (covariance(z) + covariance(z)).item() == pytest.approx(254, rel=1e-5)


def test_vicreg_of_white_embeddings_is_zero():
    z = torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64))[0]
    z = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=torch.float64), z], 1))[0][:, 1:] * math.sqrt(63)
    assert invariance(z, z) + variance(z) + covariance(z) == pytest.approx(0, abs=1e-12)


def barlow_twins(za, zb):
    c = cross_correlation(za, zb)
    off = c - c.diagonal().diag()
    return ((1 - c.diagonal()).square().sum() + 0.005 * off.square().sum()).item()


def test_barlow_twins_of_white_copied_and_independent_embeddings():
    z = torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64))[0]
    z = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=torch.float64), z], 1))[0][:, 1:]
    assert barlow_twins(1e3 * z, 1e3 * z) == pytest.approx(0, abs=1e-9)
    column = torch.tensor([-1.0, 1.0]).repeat(50)[:, None].expand(100, 128)
    assert barlow_twins(column + 7, column) == pytest.approx(0.005 * 128 * 127, rel=1e-3)
    a, b = torch.randn(2, 512, 128)
    assert barlow_twins(a, b) == pytest.approx(128 + 128 / 512 + 0.005 * 128 * 127 / 512, rel=0.04)
    constant = torch.full((8, 16), 3.0)
    assert barlow_twins(constant, constant) == 16


def test_mae_at_its_own_size():
    mask = Random(0.75).draw((14, 14), Draws(0, 0, torch.arange(2))).hidden
    assert mask.sum(1).tolist() == [147, 147]
    zero, pixels = torch.zeros(2, 196, 768), 5 + 100 * torch.randn(2, 196, 768)
    assert masked_mse(zero, pixels, mask).item() == pytest.approx(767 / 768, abs=1e-6)
