import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional as F

from manyviews.evaluation import alignment, rankme, singular_values, spread, uniformity
from manyviews.evaluation.unlabeled.spectrum import (
    alpha_req,
    correlation,
    describe,
    deviations,
    eigenvalues,
    lidar,
    participation,
    spectrum_auc,
)

OF_FEATURES = (rankme, participation, alpha_req, spectrum_auc, correlation, spread)


def orthonormal(n: int, d: int) -> torch.Tensor:
    """`d` orthonormal columns whose entries sum to 0: features of them have exactly the covariance one gives them."""
    x = torch.randn(n, d, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), x], 1))
    return q[:, 1:]


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]


def power_law(n: int, d: int, alpha: float) -> torch.Tensor:
    """Features whose covariance has the eigenvalues i^-alpha / n, along directions of no importance."""
    return orthonormal(n, d) * torch.arange(1, d + 1, dtype=torch.float64) ** (-alpha / 2) @ rotation(d)


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_singular_values_are_those_of_a_decomposition(shape):
    x = torch.randn(shape) @ torch.diag(torch.logspace(0, -3, shape[1]))
    torch.testing.assert_close(singular_values(x), torch.linalg.svdvals(x.double()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_eigenvalues_are_those_of_the_covariance(shape):
    x = 3 + torch.randn(shape, dtype=torch.float64) * torch.logspace(0, -2, shape[1])
    wanted = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1][: min(shape)]
    np.testing.assert_allclose(eigenvalues(x), np.maximum(wanted, 0), rtol=1e-9, atol=1e-12)


def test_what_varies_by_rounding_alone_does_not_vary():
    x = torch.full((50, 6), 0.1) + 3e-9 * torch.randn(50, 6)
    assert eigenvalues(x).tolist() == [0] * 6
    assert (participation(x), spectrum_auc(x), correlation(x)) == (1, 1, 0)
    assert math.isnan(alpha_req(x))
    assert lidar(x.view(10, 5, 6)) == 1


def test_rankme_in_closed_form():
    q, _ = torch.linalg.qr(torch.randn(300, 64))
    assert rankme(torch.eye(64)) == pytest.approx(64, abs=0.01)
    assert rankme(torch.outer(torch.randn(100), torch.randn(50))) == pytest.approx(1, abs=0.01)
    assert rankme(q[:, :10] @ torch.randn(10, 10).svd()[0] @ torch.eye(10, 80)) == pytest.approx(10, abs=0.01)
    assert rankme(torch.randn(2048, 256)) == pytest.approx(251.8, abs=0.3)
    assert rankme(torch.zeros(20, 5)) == 1
    p = torch.tensor([0.5, 0.25, 0.25])
    assert rankme(torch.diag(7 * p)) == pytest.approx(2**1.5, abs=0.01)  # an entropy of 1.5 bits


@pytest.mark.parametrize("measure", OF_FEATURES)
def test_scale_and_order_of_the_images_are_of_no_importance(measure):
    x = torch.randn(100, 30) @ torch.diag(torch.logspace(0, -2, 30)) + 0.1
    assert measure(1000 * x.flip(0)) == pytest.approx(measure(x), rel=1e-4)


@pytest.mark.parametrize("measure", [rankme, participation, alpha_req, spectrum_auc])
def test_a_rotation_leaves_the_spectrum_alone(measure):
    x = torch.randn(100, 30) @ torch.diag(torch.logspace(0, -2, 30)) + 0.1
    assert measure(x.double() @ rotation(30)) == pytest.approx(measure(x), rel=1e-4)


@pytest.mark.parametrize("measure", [participation, alpha_req, spectrum_auc, correlation])
def test_a_shift_leaves_the_covariance_alone(measure):
    x = power_law(200, 40, 1.2)
    assert measure(x + torch.randn(40)) == pytest.approx(measure(x), rel=1e-6)


def test_participation_in_closed_form():
    assert participation(orthonormal(80, 20) @ rotation(20)) == pytest.approx(20)
    assert participation(torch.outer(torch.randn(50), torch.randn(8))) == pytest.approx(1)
    variances = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert participation(orthonormal(60, 4) * variances.sqrt() @ rotation(4)) == pytest.approx(64 / 22)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.3])
@pytest.mark.parametrize(("n", "d"), [(400, 150), (200, 12)])
def test_the_exponent_of_a_power_law_is_found(alpha, n, d):
    assert alpha_req(power_law(n, d, alpha)) == pytest.approx(alpha, abs=1e-6)


def test_the_exponent_is_a_weighted_fit_over_the_middle_of_the_spectrum():
    variances = torch.rand(160, dtype=torch.float64).sort(descending=True)[0] + 0.01
    x = orthonormal(400, 160) * variances.sqrt() @ rotation(160)
    i = np.arange(4, 101)
    # numpy's weights multiply the residuals, not their squares.
    wanted = -np.polyfit(np.log(i), np.log(variances.numpy()[3:100]), 1, w=i**-0.5)[0]
    assert alpha_req(x) == pytest.approx(wanted, rel=1e-6)
    narrow = -np.polyfit(np.log(i[6:17]), np.log(variances.numpy()[9:20]), 1, w=i[6:17] ** -0.5)[0]
    assert alpha_req(x, fit=(10, 20)) == pytest.approx(narrow, rel=1e-6)


def test_the_exponent_ignores_the_first_and_last_eigenvalues_and_those_that_are_zero():
    law = torch.arange(1, 61, dtype=torch.float64) ** -1.5
    law[:3] *= torch.tensor([100.0, 50.0, 20.0])
    law[54:] *= 1e-4
    x = orthonormal(300, 60) * law.sqrt() @ rotation(60)
    assert alpha_req(torch.cat([x, torch.zeros(300, 200)], 1)) == pytest.approx(1.5, abs=1e-4)
    assert math.isnan(alpha_req(torch.outer(torch.randn(50), torch.randn(9))))


def test_the_area_under_the_spectrum_in_closed_form():
    assert spectrum_auc(orthonormal(80, 20) @ rotation(20)) == pytest.approx(0.5 + 1 / 40)
    assert spectrum_auc(torch.outer(torch.randn(50), torch.randn(8))) == pytest.approx(1)
    # Singular values in the proportions 3, 2, 1: shares of 1/2, 5/6 and 1.
    x = orthonormal(50, 3) * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) @ rotation(3)
    assert spectrum_auc(x) == pytest.approx((1 / 2 + 5 / 6 + 1) / 3)
    # As many directions in twice the width: what is not used is at a share of 1.
    wide = torch.cat([x, torch.zeros(50, 3)], 1)
    assert spectrum_auc(wide) == pytest.approx((1 / 2 + 5 / 6 + 1 + 3) / 6)
    assert spectrum_auc(wide[:2]) == pytest.approx(1)  # two images differ in one direction


def naive_lidar(views: np.ndarray, ridge: float, eps: float) -> float:
    """The paper's sums, term by term."""
    n, q, d = views.shape
    centers = [views[i].mean(0) for i in range(n)]
    center = sum(centers) / n
    between, within = np.zeros((d, d)), ridge * np.eye(d)
    for i in range(n):
        between += np.outer(centers[i] - center, centers[i] - center) / (n - 1)
        for j in range(q):
            within += np.outer(views[i, j] - centers[i], views[i, j] - centers[i]) / (n * (q - 1))
    root = scipy.linalg.inv(scipy.linalg.sqrtm(within))
    values = scipy.linalg.eigvalsh(root @ between @ root).clip(min=0)
    entropy = 0.0
    for value in sorted(values)[-min(n, d) :]:
        p = value / values.sum() + eps
        entropy -= p * math.log(p)
    return math.exp(entropy)


@pytest.mark.parametrize(("n", "q", "d"), [(30, 4, 7), (6, 3, 10)])
@pytest.mark.parametrize("ridge", [1e-4, 0.5])
def test_lidar_is_the_papers_sum(n, q, d, ridge):
    centers = torch.randn(n, 1, d, dtype=torch.float64) * torch.logspace(0, -1, d)
    views = 2 + centers + 0.3 * torch.randn(n, q, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    wanted = naive_lidar(views.numpy(), ridge, 1e-7)
    assert lidar(views, ridge) == pytest.approx(wanted, rel=1e-6)


def test_lidar_in_closed_form():
    """Views at fixed distances on both sides of centers in orthogonal directions, so that nothing is left to chance."""

    def views(between, within):
        k = len(between)
        centers = orthonormal(40, k) * between
        offsets = torch.eye(k, dtype=torch.float64)[None] * within
        return torch.cat([centers[:, None] + offsets, centers[:, None] - offsets], 1)

    same = torch.ones(8, dtype=torch.float64)
    assert lidar(views(same, same)) == pytest.approx(8, abs=1e-3)
    # Twice the noise in a direction of twice the signal: as good as the others. RankMe prefers it.
    double = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 2], dtype=torch.float64)
    assert lidar(views(double, double), ridge=0) == pytest.approx(8, abs=1e-3)
    # Noise alone adds no dimension: eigenvalues in proportions 9 and 1 have an entropy of their own.
    weak = torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert lidar(views(weak, same)) == pytest.approx(math.exp(entropy), abs=1e-3)


def test_lidar_does_not_depend_on_rotation_and_shift_nor_without_a_ridge_on_scale_in_any_direction():
    views = torch.randn(50, 1, 6, dtype=torch.float64) + 0.5 * torch.randn(50, 5, 6, dtype=torch.float64)
    assert lidar(views @ rotation(6) + 7) == pytest.approx(lidar(views), rel=1e-6)
    skewed = views @ torch.randn(6, 6, dtype=torch.float64)
    assert lidar(skewed, ridge=0) == pytest.approx(lidar(views, ridge=0), rel=1e-6)


def test_lidar_needs_images_and_views():
    for shape in ((1, 5, 3), (5, 1, 3)):
        with pytest.raises(ValueError, match="two or more images of two or more views"):
            lidar(torch.randn(shape))


def test_deviations_are_those_of_each_dimension():
    x = torch.randn(40, 5) * torch.arange(5)
    np.testing.assert_allclose(deviations(x), x.double().numpy().std(0))


@pytest.mark.parametrize("shape", [(60, 9), (8, 20)])
def test_correlation_is_the_mean_over_pairs_of_dimensions(shape):
    x = torch.randn(shape) @ torch.randn(shape[1], shape[1])
    table = np.corrcoef(x.double().numpy().T)
    pairs = [table[i, j] ** 2 for i in range(shape[1]) for j in range(shape[1]) if i != j]
    assert correlation(x) == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    # A dimension that does not vary has no correlation with any.
    assert correlation(torch.cat([x, torch.ones(shape[0], 3)], 1)) == pytest.approx(correlation(x), rel=1e-6)


def test_correlation_in_closed_form():
    assert correlation(orthonormal(50, 7)) == pytest.approx(0, abs=1e-12)
    copies = torch.randn(50, 1).expand(50, 4) * torch.tensor([1.0, -2.0, 3.0, 0.5])
    assert correlation(copies) == pytest.approx(1)
    assert correlation(torch.randn(50, 1)) == 0


def test_the_description_has_every_number_of_the_features():
    x = torch.randn(120, 20) * torch.logspace(0, -1, 20) + 0.3
    x[:, 7] = 2
    found = describe(x)
    assert found == {
        "rankme": pytest.approx(rankme(x)),
        "participation": pytest.approx(participation(x)),
        "alpha_req": pytest.approx(alpha_req(x)),
        "auc": pytest.approx(spectrum_auc(x)),
        "correlation": pytest.approx(correlation(x)),
        "constant": 1,
        "spread": pytest.approx(spread(x)),
    }
    assert "alpha_req" not in describe(torch.ones(30, 4))  # there is nothing to fit


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
