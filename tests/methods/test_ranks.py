"""Two processes that share a batch take the step that one takes with all of it."""

import copy

import pytest
import torch

from manyviews import distributed, methods
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.recipes import get
from manyviews.settings import Recipe, override
from manyviews.types import Progress
from manyviews.views import Views
from tests.methods.conftest import TASKS, canvases
from tests.ranks import on_ranks

AT = Progress(3, 20, 5)


def cases() -> dict[str, Recipe]:
    """Every method, and every kind of task with a predictor that is told of it."""
    found = {name: get(f"{name}_tiny") for name in methods.names()}
    for name in ("byol", "moco_v3", "simsiam"):
        told = override(override(get(f"{name}_tiny"), "method.tasks", TASKS), "method.predictor", "conditioned")
        found[f"{name} with all tasks"] = told
    return found


def steps() -> dict[str, dict[str, torch.Tensor]]:
    """Gradients and states of every method after two steps on this rank's share of the batch."""
    found = {}
    batch = canvases(8)
    mine = batch.chunk(distributed.world_size())[distributed.rank()]
    for name, recipe in cases().items():
        # Double precision: a difference is then an error and not a rounding.
        method = distributed.sync_batchnorm(build_method(recipe).train().double(), torch.device("cpu"))
        found[name] = {}
        for k in range(2):
            method.zero_grad()
            views = Views(mine, method.views, seed=k)
            exact = Exact(views)
            backpropagate(method, [lambda v=exact: v], AT)
            found[name] |= {
                f"{k} gradient {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None
            }
            method.before_update(AT)
            with torch.no_grad():
                for p in method.parameters():
                    if p.requires_grad:
                        p.sub_(p.grad, alpha=0.01)
            method.after_update(AT)
        found[name] |= {f"state {n}": v for n, v in copy.deepcopy(method.state_dict()).items()}
    return found


class Exact(Views):
    """The same views in double precision."""

    def __init__(self, views: Views) -> None:
        self.__dict__.update(views.__dict__)

    def _make(self, kind, i):
        x = super()._make(kind, i)
        return x.double() if x.is_floating_point() else x

    def relation(self, *view):
        return super().relation(*view).double()


@pytest.fixture(scope="module")
def both() -> tuple[dict, list[dict]]:
    return steps(), on_ranks(steps)


@pytest.mark.parametrize("name", cases())
def test_two_ranks_give_the_gradient_and_the_state_of_one(name: str, both):
    one, (first, second) = both
    for word, value in one[name].items():
        for rank in (first, second):
            torch.testing.assert_close(rank[name][word], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {word}")
