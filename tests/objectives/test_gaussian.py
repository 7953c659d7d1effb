"""MAST's terms against slow loops, closed forms and PyTorch's own divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from manyviews.objectives import gaussian_distance, gaussian_kl, masked_distance, sparsity, unit_prior

D = torch.float64
APPLIED = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)


def drawn(b: int = 4, d: int = 6, k: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means and variances of two views, and masks with zeros among them."""
    mu, mu2 = torch.randn(b, d, dtype=D), torch.randn(b, d, dtype=D)
    var, var2 = torch.rand(b, d, dtype=D) + 0.1, torch.rand(b, d, dtype=D) + 0.1
    return mu, mu2, var, var2, torch.randn(d, k, dtype=D).relu() + torch.eye(d, k, dtype=D)


# -- the equations, in loops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [None, APPLIED])
def test_equation_2(applied: Tensor | None):
    z, z2, _, _, masks = drawn()
    total = 0.0
    for i in range(4):
        for k in range(3):
            if applied is None or applied[i, k]:
                count = 3 if applied is None else applied[i].sum().item()  # K, whose weight is d/K
                total += sum((z[i, j] * masks[j, k] - z2[i, j] * masks[j, k]).item() ** 2 for j in range(6)) / count
    assert masked_distance(z, z2, masks, applied).item() == pytest.approx(total / 4, abs=1e-12)


def test_equation_3():
    masks = torch.randn(5, 3)
    assert sparsity(masks).item() == pytest.approx(sum(abs(x) for row in masks.tolist() for x in row), rel=1e-6)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("applied", [None, APPLIED])
def test_equation_4(applied: Tensor | None, squared: bool):
    """As printed, S diag(m), and with the covariance that masked vectors have, diag(m) S diag(m)."""
    mu, mu2, var, var2, masks = drawn()
    total = 0.0
    for i in range(4):
        for k in range(3):
            if applied is None or applied[i, k]:
                square = (mu[i] * masks[:, k] - mu2[i] * masks[:, k]).norm().item() ** 2
                m = torch.diag(masks[:, k])
                traces = [
                    torch.trace((m if squared else torch.eye(6, dtype=D)) @ torch.diag(v[i]) @ m).item()
                    for v in (var, var2)
                ]
                count = 3 if applied is None else applied[i].sum().item()
                total += 2 * square / sum(traces) / count
    found = gaussian_distance(mu, mu2, var, var2, masks, applied, squared=squared)
    assert found.item() == pytest.approx(total / 4, abs=1e-12)


def test_the_covariance_of_a_masked_vector_is_masked_twice():
    """Against samples: x * m of x from N(mu, S) has the covariance diag(m) S diag(m)."""
    _, _, var, var2, masks = drawn(1)
    zero, m = torch.zeros_like(var), masks[:, 0]
    x = var.sqrt() * torch.randn(200_000, 6, dtype=D)
    assert (x * m).var(0).sum().item() == pytest.approx((var @ m.square()).item(), rel=0.02)
    distance = gaussian_distance(zero, zero + 1, var, var2, masks[:, :1])
    assert distance.item() == pytest.approx((2 * m.square().sum() / ((var + var2) @ m.square())).item())


def test_equations_5_and_6_with_their_constant():
    mu, mu2, var, var2, _ = drawn()

    def kl(m: Tensor, m2: Tensor, s: Tensor, s2: Tensor) -> float:
        a, b = torch.diag(s), torch.diag(s2)
        away = m2 - m
        printed = (b.inverse() @ a).trace() + away @ b.inverse() @ away + torch.log(b.det() / a.det())
        return 0.5 * (printed.item() - len(m))

    pairs = zip(mu, mu2, var, var2, strict=True)
    total = sum(kl(m, m2, s, s2) + kl(m2, m, s2, s) for m, m2, s, s2 in pairs)
    assert gaussian_kl(mu, mu2, var, var2).item() == pytest.approx(total / 4, abs=1e-12)


# -- closed forms ------------------------------------------------------------------------------------------------


def test_divergence_is_pytorchs_of_normal_distributions_in_both_directions():
    mu, mu2, var, var2, _ = drawn(8, 20)
    one, two = Normal(mu, var.sqrt()), Normal(mu2, var2.sqrt())
    expected = (kl_divergence(one, two) + kl_divergence(two, one)).sum(1).mean()
    torch.testing.assert_close(gaussian_kl(mu, mu2, var, var2), expected)
    torch.testing.assert_close(gaussian_kl(mu2, mu, var2, var), expected)


@pytest.mark.parametrize(
    ("means", "variances", "expected"),
    [
        ((0.0, 0.0), (1.0, 1.0), 0.0),
        ((0.0, 3.0), (1.0, 1.0), 9.0),  # half a square in each direction
        ((0.0, 3.0), (9.0, 9.0), 1.0),
        ((0.0, 0.0), (1.0, 4.0), (4 + 1 / 4 - 2) / 2),
        ((1.0, 0.0), (2.0, 0.5), (4 + 1 / 4 - 2 + 1 / 2 + 2) / 2),
    ],
)
def test_divergence_in_one_dimension(means: tuple[float, float], variances: tuple[float, float], expected: float):
    found = gaussian_kl(*(torch.tensor([[x]]) for x in (*means, *variances)))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_divergence_of_nearly_equal_gaussians_does_not_drown_in_rounding():
    """The printed sum of terms near one, less d, would be off by 1e-3 in float32."""
    var = torch.rand(2, 4096) + 0.5
    var2 = var * (1 + 1e-4)
    expected = 4096 * 1e-8 / 2
    assert gaussian_kl(torch.zeros_like(var), torch.zeros_like(var), var, var2).item() == pytest.approx(
        expected, rel=0.01
    )
    assert gaussian_kl(var, var, var, var) == 0


def test_prior_is_pytorchs_divergence_from_unit_variances():
    mu, _, var, _, _ = drawn(8, 20)
    expected = kl_divergence(Normal(mu, var.sqrt()), Normal(mu, torch.ones_like(mu))).sum(1).mean()
    torch.testing.assert_close(unit_prior(var), expected)
    assert unit_prior(torch.ones(3, 4)) == 0 and unit_prior(torch.zeros(3, 4)).isfinite()


def test_distance_of_unit_variances_and_full_masks_is_a_mean_over_dimensions_for_each_mask():
    mu, mu2 = torch.randn(7, 10), torch.randn(7, 10)
    one = torch.ones(7, 10)
    expected = (mu - mu2).square().mean()
    torch.testing.assert_close(gaussian_distance(mu, mu2, one, one, torch.ones(10, 5)), expected)
    torch.testing.assert_close(gaussian_distance(mu, mu2, 4 * one, 4 * one, torch.ones(10, 5)), expected / 4)
    torch.testing.assert_close(masked_distance(mu, mu2, torch.ones(10, 5)), 10 * expected)


def test_uncertainty_of_one_view_counts_as_half_of_both():
    mu, mu2, var, var2, masks = drawn()
    torch.testing.assert_close(
        gaussian_distance(mu, mu2, var, var2, masks),
        gaussian_distance(mu2, mu, (var + var2) / 2, (var + var2) / 2, masks),
    )


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_nothing_in_the_printed_loss_holds_the_size_of_masks_and_variances(c: float):
    """Why `MAST` has gates and a `prior_weight`: smaller masks and larger variances always cost less."""
    mu, mu2, var, var2, masks = drawn()
    distance, plain = gaussian_distance(mu, mu2, var, var2, masks, squared=False), masked_distance(mu, mu2, masks)
    torch.testing.assert_close(gaussian_distance(mu, mu2, var, var2, c * masks, squared=False), c * distance)
    torch.testing.assert_close(masked_distance(mu, mu2, c * masks), c**2 * plain)
    torch.testing.assert_close(gaussian_distance(mu, mu2, c * var, c * var2, masks, squared=False), distance / c)
    once = gaussian_distance(mu, mu2, var, var2, masks)
    torch.testing.assert_close(gaussian_distance(mu, mu2, var, var2, c * masks), once)  # the size no longer matters
    torch.testing.assert_close(gaussian_kl(mu, mu2, c * var, c * var), gaussian_kl(mu, mu2, var, var) / c)


# -- which subspaces count ---------------------------------------------------------------------------------------


def test_the_order_of_the_augmentations_does_not_matter():
    mu, mu2, var, var2, masks = drawn()
    order = torch.tensor([2, 0, 1])
    for term in (lambda m, a: gaussian_distance(mu, mu2, var, var2, m, a), lambda m, a: masked_distance(mu, mu2, m, a)):
        torch.testing.assert_close(term(masks[:, order], APPLIED[:, order]), term(masks, APPLIED))
        assert not torch.allclose(term(masks[:, order], APPLIED), term(masks, APPLIED))


def test_an_image_without_augmentations_counts_as_zero_among_all():
    mu, mu2, var, var2, masks = drawn()
    nothing = APPLIED.any(1)
    kept = [x[nothing] for x in (mu, mu2, var, var2)]
    found = gaussian_distance(mu, mu2, var, var2, masks, APPLIED)
    torch.testing.assert_close(found, 3 / 4 * gaussian_distance(*kept, masks, APPLIED[nothing]))
    assert gaussian_distance(mu, mu2, var, var2, masks, torch.zeros_like(APPLIED)) == 0


def test_masks_of_augmentations_that_were_not_applied_receive_no_gradient():
    mu, mu2, var, var2, masks = drawn()
    only_first = torch.tensor([[True, False, False]]).expand(4, 3)
    for term in (
        lambda m: gaussian_distance(mu, mu2, var, var2, m, only_first),
        lambda m: masked_distance(mu, mu2, m, only_first),
    ):
        free = masks.clone().requires_grad_()
        term(free).backward()
        assert free.grad[:, 0][masks[:, 0] > 0].abs().min() > 0 and not free.grad[:, 1:].any()


def test_dimensions_outside_a_mask_receive_no_gradient():
    mu, mu2, var, var2, masks = drawn()
    masks[2:] = 0
    free = [x.requires_grad_() for x in (mu, mu2, var, var2)]
    gaussian_distance(*free, masks).backward()
    for x in free:
        assert x.grad[:, :2].abs().min() > 0 and not x.grad[:, 2:].any()


# -- gradients and edges -----------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_value():
    mu, mu2, var, var2, masks = (x.requires_grad_() for x in drawn())
    masks = (masks.detach() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, m: masked_distance(a, b, m, APPLIED), (mu, mu2, masks))
    assert torch.autograd.gradcheck(gaussian_kl, (mu, mu2, var, var2))
    assert torch.autograd.gradcheck(sparsity, (masks,)) and torch.autograd.gradcheck(unit_prior, (var,))
    for applied in (None, APPLIED):
        assert torch.autograd.gradcheck(
            lambda a, b, s, t, m, on=applied: gaussian_distance(a, b, s, t, m, on), (mu, mu2, var, var2, masks)
        )


@pytest.mark.parametrize("empty", ["masks", "variances", "both"])
def test_zero_masks_and_variances_give_finite_values_and_gradients(empty: str):
    mu, mu2, var, var2, masks = (x.float() for x in drawn())
    if empty != "variances":
        masks = torch.zeros_like(masks)
    if empty != "masks":
        var, var2 = torch.zeros_like(var), torch.zeros_like(var2)
    free = [x.clone().requires_grad_() for x in (mu, mu2, var, var2, masks)]
    distance = gaussian_distance(*free, APPLIED)
    assert empty == "variances" or distance == 0
    total = distance + gaussian_kl(*free[:4]) + masked_distance(free[0], free[1], free[4]) + sparsity(free[4])
    total.backward()
    assert total.isfinite() and all(x.grad.isfinite().all() for x in free)


def test_the_smallest_masks_that_float32_knows_do_not_divide_by_zero():
    mu, mu2, var, var2, masks = (x.float() for x in drawn())
    for scale in (1e-20, 1e-38, 1e-44):
        for squared in (True, False):
            tiny = (masks * scale).requires_grad_()
            found = gaussian_distance(mu, mu2, var, var2, tiny, squared=squared)
            found.backward()
            assert found.isfinite() and tiny.grad.isfinite().all()


def test_half_precision_is_computed_with_in_float32():
    mu, mu2, var, var2, masks = (x.bfloat16() for x in drawn())
    expected = gaussian_distance(*(x.float() for x in (mu, mu2, var, var2, masks)), APPLIED)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gaussian_distance(mu, mu2, var, var2, masks.float(), APPLIED), expected)
        for found in (
            gaussian_kl(mu, mu2, var, var2),
            unit_prior(var),
            masked_distance(mu, mu2, masks),
            sparsity(masks),
        ):
            assert found.dtype == torch.float32


def test_no_copy_of_the_embeddings_for_each_mask_is_kept():
    b, d, k = 6, 8, 10
    inputs = [torch.rand(b, d, requires_grad=True) for _ in range(4)]
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()), lambda _: None):
        gaussian_distance(*inputs, torch.rand(d, k, requires_grad=True), torch.ones(b, k, dtype=torch.bool))
        masked_distance(*inputs[:2], torch.rand(d, k, requires_grad=True))
    assert 0 < max(sizes) <= d * k < b * d * k
