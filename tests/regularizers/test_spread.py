"""Variance and Prior: the terms in slow steps, on the methods that have the tensors, refused by the others."""

from __future__ import annotations

import pytest
import torch

from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.objectives import prior_divergence, variance
from manyviews.recipes import get
from manyviews.regularizers import Prior, Regularized, Variance
from manyviews.settings import override
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Views

AT = Progress(3, 20, 5)


def regularized(name: str, *terms) -> Regularized:
    method = build_method(override(get(f"{name}_tiny"), "regularizers", tuple(terms))).train()
    assert isinstance(method, Regularized)
    return method


def total(method) -> dict[str, float]:
    found: dict[str, float] = {}
    for terms in method.loss(Views(pictures(), method.views, seed=5), AT):
        for name, t in terms.items():
            found[name] = found.get(name, 0.0) + t.item()
    return found


def test_the_hinge_is_vicregs_on_every_view():
    method = regularized("byol", Variance(0.5))
    heard: list[torch.Tensor] = []
    method.method.online.register_forward_hook(lambda m, x, z: heard.extend(z.detach().split(8)))
    found = total(method)["hinge"]
    wanted = 0.0
    for z in heard:
        for j in range(z.shape[1]):
            column = z[:, j].tolist()
            mean = sum(column) / 8
            std = (sum((x - mean) ** 2 for x in column) / 7 + 1e-4) ** 0.5
            wanted += 0.5 * max(0.0, 1 - std) / z.shape[1]
    assert len(heard) >= 2 and found == pytest.approx(wanted, rel=1e-4)
    # The same function as in VICReg's own loss.
    assert found == pytest.approx(0.5 * sum(variance(z).item() for z in heard), rel=1e-4)


@pytest.mark.parametrize(("name", "views"), [("dino", 4), ("ibot", 4), ("swav", 4), ("msn", 3)])
def test_the_prior_hears_every_view_of_the_student_and_nothing_else(name: str, views: int):
    method = regularized(name, Prior(0.5, exponent=0.25))
    module, temperature = method.method.scored
    heard: list[torch.Tensor] = []
    module.register_forward_hook(lambda m, x, s: heard.extend(s.split(8)) if s.ndim == 2 and s.requires_grad else None)
    found = total(method)["use"]
    assert len(heard) == views
    assert found == pytest.approx(0.5 * sum(prior_divergence((s / temperature).softmax(1), 0.25) for s in heard).item())


def test_the_prior_teaches_to_use_more_prototypes():
    """Alone, its gradient spreads the mean prediction."""
    method = regularized("swav", Prior(1.0))
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    uses = []
    for _ in range(12):
        optimizer.zero_grad()
        use = sum(terms["use"] for terms in method.loss(Views(pictures(), method.views, seed=5), AT))
        use.backward()
        optimizer.step()
        method.after_update(AT)
        uses.append(use.item())
    assert uses[-1] < 0.5 * uses[0]


def test_methods_without_the_tensor_refuse_it_in_one_sentence():
    for name, term, says in (
        ("mae", Variance(), "MAE has no projections"),
        ("ijepa", Variance(), "IJEPA has no projections"),
        ("dino", Variance(), "DINO's projections are scores of prototypes: take Prior instead"),
        ("simclr", Prior(), "SimCLR has no prototypes"),
        ("data2vec", Prior(), "Data2Vec has no prototypes"),
    ):
        with pytest.raises(UserError, match=says):
            regularized(name, term)
