import math

import pytest
import torch
from torch.nn import functional as F

from manyviews.evaluation import alignment, rankme, singular_values, spread, uniformity


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_singular_values_are_those_of_a_decomposition(shape):
    x = torch.randn(shape) @ torch.diag(torch.logspace(0, -3, shape[1]))
    torch.testing.assert_close(singular_values(x), torch.linalg.svdvals(x.double()), rtol=1e-6, atol=1e-7)


def test_rankme_in_closed_form():
    q, _ = torch.linalg.qr(torch.randn(300, 64))
    assert rankme(torch.eye(64)) == pytest.approx(64, abs=0.01)
    assert rankme(torch.outer(torch.randn(100), torch.randn(50))) == pytest.approx(1, abs=0.01)
    assert rankme(q[:, :10] @ torch.randn(10, 10).svd()[0] @ torch.eye(10, 80)) == pytest.approx(10, abs=0.01)
    assert rankme(torch.randn(2048, 256)) == pytest.approx(251.8, abs=0.3)
    assert rankme(torch.zeros(20, 5)) == 1
    p = torch.tensor([0.5, 0.25, 0.25])
    assert rankme(torch.diag(7 * p)) == pytest.approx(2**1.5, abs=0.01)  # an entropy of 1.5 bits


def test_rankme_does_not_depend_on_scale_rotation_or_order():
    x = torch.randn(100, 30) @ torch.diag(torch.logspace(0, -2, 30))
    q, _ = torch.linalg.qr(torch.randn(30, 30))
    assert rankme(1000 * x.flip(0) @ q) == pytest.approx(rankme(x), rel=1e-4)


def test_spread_is_1_on_the_sphere_and_0_at_a_point():
    assert spread(torch.randn(4000, 64)) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(50, 8) * torch.rand(50, 1)) == pytest.approx(0, abs=1e-6)
    z = F.normalize(torch.randn(100, 5), dim=1)
    wanted = sum(z[:, j].std(correction=0).item() for j in range(5)) / 5 * math.sqrt(5)
    assert spread(3 * z) == pytest.approx(wanted, rel=1e-5)


def test_alignment_and_uniformity_are_the_papers_sums():
    a, b = torch.randn(20, 6), torch.randn(20, 6)
    za, zb = F.normalize(a, dim=1), F.normalize(b, dim=1)
    distances = [float(((x - y) ** 2).sum()) for x, y in zip(za, zb, strict=True)]
    assert alignment(a, b) == pytest.approx(sum(distances) / 20, rel=1e-5)
    potentials = [math.exp(-2 * float(((za[i] - za[j]) ** 2).sum())) for i in range(20) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)


def test_alignment_and_uniformity_in_closed_form():
    x = torch.randn(30, 8)
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-6)
    assert alignment(x, -x) == pytest.approx(4, rel=1e-6)
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(12)) == pytest.approx(-4, rel=1e-6)  # all at squared distance 2
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=3) == pytest.approx(-12, rel=1e-6)
