"""What must hold for any input: invariances, bounds, gradients, precision, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyviews import objectives
from manyviews.errors import UserError
from manyviews.views import Draws, Random

some = settings(max_examples=25, deadline=None, derandomize=True)
seeds, sizes, dims = st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 12)
temperatures = st.floats(0.05, 2.0)


def drawn(seed: int, count: int, *shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(count)]


@some
@given(seeds, sizes, dims, temperatures)
def test_contrast_depends_on_directions_and_not_on_order(seed: int, n: int, d: int, t: float):
    za, zb, scale = drawn(seed, 3, n, d)
    order = torch.randperm(n)
    loss = objectives.nt_xent(za, zb, t)
    assert loss >= 0
    torch.testing.assert_close(objectives.nt_xent(zb, za, t), loss)
    torch.testing.assert_close(objectives.nt_xent(za[order], zb[order], t), loss)
    torch.testing.assert_close(objectives.nt_xent(za * scale[:, :1].exp(), zb, t), loss)
    directed = objectives.cross_info_nce(za, zb, t)
    assert directed >= 0
    torch.testing.assert_close(objectives.cross_info_nce(za[order], zb[order] * scale[:, :1].exp(), t), directed)
    queue = torch.nn.functional.normalize(scale)
    queued = objectives.info_nce(za, zb, queue, t)
    assert queued >= 0
    torch.testing.assert_close(objectives.info_nce(za[order] * 3, zb[order], queue[order], t), queued)


@some
@given(seeds, sizes, dims)
def test_alignment_is_bounded_and_byol_is_two_plus_twice_simsiam(seed: int, n: int, d: int):
    p, z, scale = drawn(seed, 3, n, d)
    loss = objectives.squared_distance(p, z)
    assert -1e-12 <= loss <= 4 + 1e-12
    torch.testing.assert_close(loss, 2 + 2 * objectives.negative_cosine(p, z))
    torch.testing.assert_close(objectives.squared_distance(p * scale[:, :1].exp(), z * 5), loss)


@some
@given(seeds, st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 1.0), st.integers(1, 6))
def test_sinkhorn_codes(seed: int, n: int, k: int, epsilon: float, iterations: int):
    scores, shift = drawn(seed, 2, n, k)
    codes = objectives.sinkhorn(scores, epsilon, iterations)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(n, dtype=torch.float64))
    # What a prototype gives to every image does not count, whatever the number of iterations.
    torch.testing.assert_close(objectives.sinkhorn(scores + shift[:1], epsilon, iterations), codes)
    order = torch.randperm(k)
    torch.testing.assert_close(objectives.sinkhorn(scores[:, order], epsilon, iterations), codes[:, order])


def test_sinkhorn_uses_every_prototype_equally_and_survives_large_scores():
    scores = 10 * torch.randn(512, 300)
    codes = objectives.sinkhorn(scores, 0.05, 3)
    assert codes.isfinite().all()
    uses = objectives.sinkhorn(torch.randn(512, 300), 0.5, 50).sum(0) * 300 / 512
    torch.testing.assert_close(uses, torch.ones(300), atol=1e-3, rtol=0)


@some
@given(seeds, sizes, dims)
def test_variance_and_covariance_ignore_shifts_order_and_signs(seed: int, n: int, d: int):
    z, shift = drawn(seed, 2, n, d)
    other = -z[torch.randperm(n)] + shift[:1]
    for term in (objectives.variance, objectives.covariance):
        assert term(z) >= 0
        torch.testing.assert_close(term(other), term(z))
    assert objectives.variance(z) <= 0.99


def test_visible_patches_do_not_matter_to_the_loss():
    pred, target = torch.randn(2, 8, 12), torch.randn(2, 8, 12)
    mask, kept, _ = Random(0.5).draw((2, 4), Draws(0, 0, torch.arange(2)))
    loss = objectives.masked_mse(pred, target, mask)
    where = kept[:, :, None].expand(-1, -1, 12)
    changed = pred.scatter(1, where, 9.0), target.scatter(1, where, -9.0)
    assert torch.equal(objectives.masked_mse(*changed, mask), loss)
    assert objectives.masked_mse(target, target, mask, normalize=False) == 0


# -- gradients ---------------------------------------------------------------------------------------------------

D = torch.float64
MASK = torch.tensor([[True, False, True], [False, True, True]])
LOSSES = {
    "squared_distance": lambda x, y: objectives.squared_distance(x, y),
    "negative_cosine": lambda x, y: objectives.negative_cosine(x, y),
    "info_nce": lambda x, y: objectives.info_nce(x, y, torch.eye(6, dtype=D), 0.2),
    "cross_info_nce": lambda x, y: objectives.cross_info_nce(x, y, 0.2),
    "cross_entropy": lambda x, y: objectives.cross_entropy(objectives.sharpen(y, torch.zeros(6, dtype=D), 0.5), x, 0.1),
    "swapped_prediction": lambda x, y: objectives.swapped_prediction(x, objectives.sinkhorn(y, 0.5, 3), 0.1),
    "masked_mse": lambda x, y: objectives.masked_mse(x.view(2, 3, 4), y.view(2, 3, 4), MASK),
    "masked_cross_entropy": lambda x, y: objectives.masked_cross_entropy(y.view(2, 3, 4), x.view(2, 3, 4), MASK, 0.5),
    "latent_error": objectives.latent_error,
}
BOTH = {
    "directed_info_nce": lambda x, y: objectives.directed_info_nce(x, y, 0.2),
    "clip": lambda x, y: objectives.clip(x, y, torch.tensor(1.5, dtype=D)),
    "koleo": lambda x, y: objectives.koleo(x) + objectives.koleo(y),
    "nt_xent": lambda x, y: objectives.nt_xent(x, y, 0.2),
    "invariance": objectives.invariance,
    "variance": lambda x, y: objectives.variance(x) + objectives.variance(y),
    "covariance": lambda x, y: objectives.covariance(x) + objectives.covariance(y),
    "cross_correlation": lambda x, y: objectives.cross_correlation(x, y).square().sum(),
}


@pytest.mark.parametrize("name", [*LOSSES, *BOTH])
def test_gradients_are_those_of_the_value(name: str):
    x, y = (0.5 * torch.randn(4, 6, dtype=D) for _ in range(2))
    inputs = (x.requires_grad_(), y.requires_grad_()) if name in BOTH else (x.requires_grad_(),)
    loss = (LOSSES | BOTH)[name]
    assert torch.autograd.gradcheck(lambda *free: loss(*free) if len(free) == 2 else loss(free[0], y), inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_targets_receive_no_gradient(name: str):
    x, y = (torch.randn(4, 6, dtype=D, requires_grad=True) for _ in range(2))
    LOSSES[name](x, y).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert y.grad is None


@pytest.mark.parametrize(
    "name", ["squared_distance", "negative_cosine", "info_nce", "cross_info_nce", "nt_xent", "clip", "koleo"]
)
def test_gradients_are_orthogonal_to_what_was_normalized(name: str):
    x, y = (torch.randn(4, 6, dtype=D, requires_grad=True) for _ in range(2))
    (LOSSES | BOTH)[name](x, y).backward()
    torch.testing.assert_close((x * x.grad).sum(1), torch.zeros(4, dtype=D))


# -- precision ---------------------------------------------------------------------------------------------------

CALLS = {
    "squared_distance": lambda x, y: objectives.squared_distance(x, y),
    "nt_xent": lambda x, y: objectives.nt_xent(x, y, 0.05),
    "info_nce": lambda x, y: objectives.info_nce(q=x, k=y, queue_rows=torch.eye(6), temperature=0.05),
    "cross_info_nce": lambda x, y: objectives.cross_info_nce(x, y, 0.05),
    "sharpen": lambda x, y: objectives.sharpen(x, torch.zeros(6), 0.04),
    "cross_entropy": lambda x, y: objectives.cross_entropy(y.softmax(1), x, 0.05),
    "sinkhorn": lambda x, y: objectives.sinkhorn(x, 0.05, 3),
    "invariance": objectives.invariance,
    "variance": lambda x, y: objectives.variance(x),
    "covariance": lambda x, y: objectives.covariance(x),
    "cross_correlation": objectives.cross_correlation,
    "masked_mse": lambda x, y: objectives.masked_mse(x[None, :3], y[None, :3], MASK[:1]),
    "masked_cross_entropy": lambda x, y: objectives.masked_cross_entropy(y[None, :3], x[None, :3], MASK[:1], 0.1),
    "clip": lambda x, y: objectives.clip(x, y, torch.tensor(3.0)),
    "latent_error": objectives.latent_error,
    "koleo": lambda x, y: objectives.koleo(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_half_precision_inputs_are_computed_with_in_float32(name: str):
    x, y = (torch.randn(4, 6).bfloat16() for _ in range(2))
    expected = CALLS[name](x.float(), y.float() if name != "cross_entropy" else y)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(CALLS[name](x, y), expected)


# -- refusals ----------------------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="do not tile an image of 30 x 32"):
        objectives.patchify(torch.zeros(1, 3, 30, 32), 4)
    with pytest.raises(UserError, match="at least 1 iteration"):
        objectives.sinkhorn(torch.zeros(2, 3), 0.05, 0)
    for term in (objectives.variance, objectives.covariance, lambda z: objectives.cross_correlation(z, z)):
        with pytest.raises(UserError, match="at least 2 images"):
            term(torch.zeros(1, 3))
