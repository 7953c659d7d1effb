"""MAST's gates: the projection against slow ones, VICReg's loss in both stages, rates, and pooling that comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.optimizers import LARS
from manyviews.heads import GeM, Masks
from manyviews.heads.masks import gates
from manyviews.methods import MAST
from manyviews.objectives import covariance, invariance, variance
from manyviews.recipes import get
from manyviews.regularizers import Regularized
from manyviews.settings import Optimizer
from manyviews.types import Progress
from manyviews.views import Composed, Views

D = torch.float64


def by_bisection(u: Tensor, total: float) -> Tensor:
    """The projection, a column and a threshold at a time."""
    columns = []
    for column in u.T.tolist():
        low, high = min(column) - 1, max(column)
        for _ in range(200):
            mid = (low + high) / 2
            if sum(min(1.0, max(0.0, v - mid)) for v in column) > total:
                low = mid
            else:
                high = mid
        columns.append([min(1.0, max(0.0, v - mid)) for v in column])
    return torch.tensor(columns, dtype=u.dtype).T


# -- the projection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("total", [0.0, 0.4, 3.0, 7.7, 11.0])
def test_the_threshold_is_the_one_that_bisection_finds(total: float, spread: float):
    u = spread * torch.randn(11, 4, dtype=D)
    found = gates(u, total)
    torch.testing.assert_close(found, by_bisection(u, total))
    torch.testing.assert_close(found.sum(0), torch.full((4,), total, dtype=D))


def test_it_is_the_nearest_point_of_the_set():
    """A general solver, which knows nothing of thresholds, does not come nearer."""
    u = torch.randn(6, 3, dtype=D)
    for column, found in zip(u.T.numpy(), gates(u, 2.0).T.numpy(), strict=True):
        solved = minimize(
            lambda m, c=column: ((m - c) ** 2).sum(),
            np.full(6, 1 / 3),
            jac=lambda m, c=column: 2 * (m - c),
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda m: m.sum() - 2},
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(found, solved.x, atol=1e-5)


def test_ties_bounds_and_points_of_the_set_stay():
    equal = gates(torch.full((8, 2), 5.0), 2.0)
    assert torch.equal(equal, torch.full((8, 2), 0.25))
    disjoint = Masks(12, 4, "disjoint")()
    torch.testing.assert_close(gates(disjoint, 3.0), disjoint)
    once = gates(torch.randn(9, 5, dtype=D), 1.8)
    torch.testing.assert_close(gates(once, 1.8), once)


def test_its_gradient_is_that_of_finite_differences():
    u = torch.randn(9, 4, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: gates(u, 2.25), (u,))


def test_thousands_of_dimensions_add_up_in_float32():
    for count in (5, 15, 19):
        masks = Masks(4096, count, "gates")()
        torch.testing.assert_close(masks.sum(0), torch.full((count,), 4096 / count), rtol=1e-6, atol=0)
        assert masks.min() >= 0 and masks.max() <= 1
        own = Masks(4096, count, "disjoint")()
        assert ((masks * own).sum(0) > 0.4 * masks.sum(0)).all()  # they start where disjoint ones are


# -- the loss ----------------------------------------------------------------------------------------------------


class Some(Views):
    """Random views, to both of which the augmentations in a table were applied."""

    def __init__(self, applied: Tensor) -> None:
        draw = torch.Generator().manual_seed(1)
        # The same images for each row, so that a mean over rows is one over masks.
        self.x = [torch.randn(4, 3, 16, 16, generator=draw).repeat(len(applied) // 4, 1, 1, 1) for _ in range(2)]
        self.table = applied

    def map(self, module: nn.Module) -> list[Tensor]:
        return [module(x) for x in self.x]

    def applied(self, name: str) -> Tensor:
        return torch.stack([self.table, self.table])


def build(**settings: object) -> MAST:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    return MAST(encoder, view=Composed(2, size=16), **{"hidden_dim": 16, "output_dim": 15, **settings})


def terms(method: MAST, views: Views) -> dict[str, Tensor]:
    (found,) = method.loss(views, Progress(3, 20, 5))
    return found


ONE = torch.eye(5, dtype=torch.bool).repeat_interleave(4, 0)  # stage one: each image once with each augmentation
SOME = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool).repeat_interleave(4, 0)
ALL = torch.ones(4, 5, dtype=torch.bool)


@pytest.mark.parametrize("applied", [ONE, ALL], ids=["one at a time", "all"])
def test_gates_that_are_disjoint_with_unit_variances_are_vicreg_in_both_stages(applied: Tensor):
    """A K that is always the number of masks makes stage one five times too weak."""
    method = build().eval()
    last = method.online.projector.heads[1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, float(np.log(np.expm1(1 - 1e-4))))  # softplus and the floor give one
    with torch.no_grad():
        method.masks.weight.copy_(Masks(15, 5, "disjoint")())
    views = Some(applied)
    (a, s), (b, t) = (method.embed(x) for x in views.x)
    torch.testing.assert_close(torch.stack([s, t]), torch.ones(2, *s.shape))
    found = terms(method, views)
    torch.testing.assert_close(found["distance"], 25 * invariance(a, b))
    torch.testing.assert_close(found["variance"], 25 * (variance(a) + variance(b)) / 2)
    torch.testing.assert_close(found["covariance"], covariance(a) + covariance(b))
    assert found["prior"] < 1e-5 and "sparsity" not in found


def test_each_image_has_a_weight_of_its_own():
    """The mean over an image's masks: two applied count half each, three a third."""
    method = build().eval()
    both = terms(method, Some(SOME))["distance"]
    one = [terms(method, Some(torch.eye(5, dtype=torch.bool)[[k]].repeat(4, 1)))["distance"] for k in range(5)]
    expected = ((one[0] + one[1]) / 2 + (one[2] + one[3] + one[4]) / 3) / 2
    torch.testing.assert_close(both, expected)


def test_half_of_the_hinge_is_where_the_masks_select_and_has_no_gradient_to_them():
    method = build(distance_weight=0.0, divergence_weight=0.0, covariance_weight=0.0, prior_weight=0.0)
    with torch.no_grad():
        method.masks.weight.copy_(torch.eye(15)[:, [0, 0, 0, 1, 1]] * 9)
    views = Some(ALL)
    found = terms(method.eval(), views)["variance"]
    masks = method.masks()
    expected = 0.0
    for x in views.x:
        short = (1 - (method.embed(x)[0].var(0) + 1e-4).sqrt()).relu()
        for j in range(15):
            share = sum((masks[j, k] / masks[:, k].sum()).item() for k in range(5)) / 5
            expected += 25 * (share + 1 / 15) / 2 * short[j].item() / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert method.masks.weight.grad is None or not method.masks.weight.grad.any()


def test_without_uncertainty_a_gates_distance_is_a_weighted_mean():
    """Divided by d/K as disjoint masks are, a gate of many small entries would have next to none."""
    method = build(uncertainty=False).eval()
    views, masks = Some(ALL), method.masks()
    (a, _), (b, _) = (method.embed(x) for x in views.x)
    means = [((a - b).square() * m**2).sum() / (m**2).sum() / 4 for m in masks.T]
    found = terms(method, views)
    torch.testing.assert_close(found["distance"], 25 * sum(means) / 5)
    assert set(found) == {"distance", "variance", "covariance"}


def test_no_gradient_can_shrink_a_gate():
    method = build()
    sum(terms(method, Some(ALL)).values()).backward()
    gradient = method.masks.weight.grad
    assert gradient.any() and gradient.sum(0).abs().max() < 1e-4 * gradient.abs().sum()
    with torch.no_grad():
        method.masks.weight.mul_(0.01)  # as decay does
    torch.testing.assert_close(method.masks().sum(0), torch.full((5,), 3.0))


# -- rates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularized", [False, True])
def test_masks_learn_at_a_rate_of_their_own(regularized: bool):
    method = build(mask_rate=10.0)
    masks = method.masks.weight
    trained = Regularized(method, ()) if regularized else method
    settings = Optimizer("muon", 1e-3, "constant", 1.0)
    optimizer = optim.build(trained, settings, torch.device("cpu"))
    rate = optim.schedule(optimizer, settings, 256, Progress(0, 10, 5))
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx((10 if p is masks else 1) * rate)


def test_lars_moves_a_single_number_by_its_own_size():
    """At MAST's 1.6, an exponent's own gradient of 0.06 would move it by one in a step, with momentum."""
    p, bias = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([3.0, 1.0]))
    optimizer = LARS([{"params": [p, bias], "adapt": False}], lr=1.6, momentum=0.0, trust=0.001)
    p.grad, bias.grad = torch.tensor([0.06]), torch.tensor([0.06, 0.0])
    optimizer.step()
    assert p.item() == pytest.approx(3 - 1.6 * 0.001 * 3)
    assert bias.tolist() == pytest.approx([3 - 1.6 * 0.06, 1.0])


# -- pooling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "expected"), [(1.0, 2.5), (3.0, 2.924018), (10.0, 3.501656), (100.0, 3.944931)])
def test_gem_of_four_numbers(p: float, expected: float):
    found = GeM(p)(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_an_exponent_below_one_comes_back_and_does_not_go_further_down():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).view(1, 4, 1)
    for sign, moves in ((-1, True), (1, False)):  # raise the output, or lower it
        pool = GeM(0.9)
        (sign * pool(x)).sum().backward()
        assert (pool.p.grad.item() < 0) == moves and (pool.p.grad.item() == 0) != moves
    pool, at_one = GeM(0.9), GeM(1.0)
    (-pool(x)).sum().backward()
    (-at_one(x)).sum().backward()
    assert torch.equal(pool.p.grad, at_one.p.grad)


def test_the_printed_loss_is_one_recipe_away():
    settings = get("mast_printed").method.settings
    method = build(**{k: v for k, v in settings.items() if k in ("masks", "squared", "prior_weight")})
    found = terms(method, Some(ALL))
    assert set(found) == {"distance", "divergence", "sparsity", "variance", "covariance"}
