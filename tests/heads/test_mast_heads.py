"""GeM pooling, the Gaussian projector and the masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyviews.heads import GaussianProjector, GeM, Masks

D = torch.float64

# -- pooling -----------------------------------------------------------------------------------------------------


def test_gem_is_the_papers_sum():
    x = torch.rand(2, 5, 3) + 0.1
    found = GeM(2.5)(x)
    for b in range(2):
        for d in range(3):
            mean = sum(v**2.5 for v in x[b, :, d].tolist()) / 5
            assert found[b, d].item() == pytest.approx(mean ** (1 / 2.5), rel=1e-5)


def test_gem_goes_from_the_mean_to_the_maximum():
    x = 5 * torch.rand(4, 49, 6)
    torch.testing.assert_close(GeM(1.0)(x), x.mean(1))
    torch.testing.assert_close(GeM(1e4)(x), x.amax(1), rtol=1e-3, atol=0)
    assert GeM().p.item() == 3
    torch.testing.assert_close(GeM(0.2)(x), x.mean(1))  # below 1 it counts as 1


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_gem_has_the_gradient_of_its_value(p: float):
    pool = GeM(p).double()
    x = (torch.rand(2, 4, 3, dtype=D) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: torch.func.functional_call(pool, {"p": p}, (x,)), (x, pool.p))


def test_gem_survives_zeros_large_values_and_half_precision():
    for x in (torch.zeros(2, 4, 3), 1e30 * torch.rand(2, 4, 3), -torch.rand(2, 4, 3)):
        pool, x = GeM(20.0), x.requires_grad_()
        found = pool(x)
        found.mean().backward()
        assert found.isfinite().all() and x.grad.isfinite().all() and pool.p.grad.isfinite().all()
    x = torch.rand(2, 4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GeM()(x), GeM()(x.float())) and GeM()(x).dtype == torch.float32


# -- projector ---------------------------------------------------------------------------------------------------


def test_the_projector_is_the_papers():
    """Section 3.2: two layers of 8192 that are shared, 4096 dimensions each of means and variances; two numbers p."""
    with torch.device("meta"):
        head = GaussianProjector(2048)
        mean, var = head(torch.empty(4, 49, 2048))
    assert mean.shape == var.shape == (4, 4096)
    shared = 2048 * 8192 + 8192 * 8192 + 4 * 8192
    assert sum(p.numel() for p in head.parameters()) == shared + 2 * (8192 * 4096 + 4096) + 2


@pytest.mark.parametrize("pooling", ["first", "last"])
@pytest.mark.parametrize("positive", ["softplus", "relu", None])
def test_the_projector_pools_where_it_says(pooling: str, positive: str | None):
    head = GaussianProjector(6, 8, 5, pooling=pooling, positive=positive, floor=0.01).eval()
    with torch.no_grad():
        for i, pool in enumerate(head.pools):
            pool.p.fill_(2.0 + i)
        for m in head.shared:
            if isinstance(m, nn.BatchNorm1d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
    x = torch.rand(3, 7, 6)
    mean, var = head(x)
    raw = []
    for pool, last in zip(head.pools, head.heads, strict=True):
        if pooling == "first":
            raw.append(last(head.shared(pool(x))))
        else:
            raw.append(last(pool(torch.stack([head.shared(row) for row in x]))))
    torch.testing.assert_close(mean, raw[0])
    if positive is None:
        assert torch.equal(var, torch.ones_like(mean)) and len(head.heads) == len(head.pools) == 1
    else:
        torch.testing.assert_close(var, getattr(torch.nn.functional, positive)(raw[1]) + 0.01)
        assert var.min() >= 0.01


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_evaluation_has_the_statistics_of_training(pooling: str):
    """With both heads' rows in one batch; in two, the running statistics would be those of neither."""
    head = GaussianProjector(6, 16, 5, pooling=pooling)
    with torch.no_grad():
        head.pools[1].p.fill_(30.0)
    for m in head.shared:
        if isinstance(m, nn.BatchNorm1d):
            m.momentum = 1.0
    x = 3 * torch.rand(512, 4, 6)
    trained = head(x)
    for found, expected in zip(head.eval()(x), trained, strict=True):
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_everything_in_the_projector_learns(pooling: str):
    head = GaussianProjector(6, 8, 5, pooling=pooling)
    mean, var = head(torch.rand(16, 7, 6))
    (mean.square().sum() + var.log().square().sum()).backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_variances_are_computed_in_float32_under_autocast():
    head = GaussianProjector(6, 8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mean, var = head(torch.rand(16, 7, 6))
    assert mean.dtype == torch.bfloat16 and var.dtype == torch.float32


# -- masks -------------------------------------------------------------------------------------------------------


def test_masks_start_as_the_paper_says():
    masks = Masks(20_000, 5)
    u = masks.weight.detach()
    for k in range(5):
        own = torch.zeros(20_000, dtype=torch.bool)
        own[4000 * k : 4000 * (k + 1)] = True
        # 4,000 and 16,000 draws: errors of the mean of 0.0022 and 0.0008.
        assert u[own, k].mean().item() == pytest.approx(1.2, abs=0.01)
        assert u[own, k].std().item() == pytest.approx(2**0.5 * 0.1, abs=0.01)
        assert u[~own, k].mean().item() == pytest.approx(0.2, abs=0.005)
        assert u[~own, k].var().item() == pytest.approx(0.01, abs=0.001)
    assert torch.equal(masks(), u.clamp(min=0)) and (u < 0).any()
    assert isinstance(masks.weight, nn.Parameter)


def test_disjoint_masks_share_the_dimensions_among_them():
    masks = Masks(13, 5, "disjoint")()
    assert torch.equal(masks.sum(1), torch.ones(13)) and set(masks.unique().tolist()) == {0, 1}
    assert masks.sum(0).min() >= 2 and masks.sum(0).max() <= 3
    assert masks.argmax(1).diff().min() >= 0  # each in one piece


def test_no_masks_are_one_of_ones():
    assert torch.equal(Masks(13, 5, "none")(), torch.ones(13, 1))


@pytest.mark.parametrize("kind", ["disjoint", "none"])
def test_fixed_masks_are_not_trained_and_follow_the_module(kind: str):
    masks = Masks(6, 3, kind).double()
    assert not list(masks.parameters()) and not masks.state_dict()
    assert masks().dtype == D


def test_masks_of_fixed_length_compete_for_dimensions_only():
    free, fixed = Masks(20, 4).double(), Masks(20, 4, norm="fixed").double()
    fixed.load_state_dict(free.state_dict())
    torch.testing.assert_close(fixed().norm(dim=0), torch.full((4,), 5**0.5, dtype=D))
    torch.testing.assert_close(torch.nn.functional.normalize(free(), dim=0) * 5**0.5, fixed())
    (fixed() * torch.rand(20, 4, dtype=D)).sum().backward()
    torch.testing.assert_close((fixed.weight.grad * fixed()).sum(0), torch.zeros(4, dtype=D))
    with torch.no_grad():
        before = fixed()
        fixed.weight.mul_(0.01)
        torch.testing.assert_close(fixed(), before)
        fixed.weight.fill_(-1)
    assert torch.equal(fixed(), torch.zeros(20, 4, dtype=D))
    for kind in ("disjoint", "none"):
        assert torch.equal(Masks(20, 4, kind, norm="fixed")(), Masks(20, 4, kind)())
