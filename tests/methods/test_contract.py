"""What every method found in the folder must do, whatever it is."""

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch

from manyviews import methods, recipes, schedules
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.objectives import sharpen, sinkhorn
from manyviews.recipes import get
from manyviews.settings import Recipe, override, settings
from manyviews.testing import CHECKS
from manyviews.types import Batch, Progress
from manyviews.views import CutMix, Cutout, Draws, Global, Local, Views
from tests.methods.conftest import pairs

AT = Progress(3, 20, 5)
every_method = pytest.mark.parametrize("name", methods.names())


def recipe(name: str) -> Recipe:
    return get(f"{name}_tiny")


@every_method
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_it_keeps_the_contract(name: str, check: Callable[[str], None]):
    check(name)


@pytest.mark.parametrize("name", [n for n in methods.names() if pairs(n)])
def test_views_that_cannot_be_compared_are_refused(name: str):
    encoder = build_method(recipe(name)).kept_encoder
    several = next((k for k in ("views", "tasks") if k in settings(methods.get(name))), None)
    build = partial(methods.get(name), encoder)
    wrong = [
        ((Global(1, size=32),), "set its count to 2"),
        ((Local(2, size=16), Cutout(2, size=32)), "need a global type"),
        ((Local(2, size=16),), "need a global type"),
        ((Global(2, size=32), Global(2, size=32)), "distinct names"),
    ]
    for kinds, says in wrong if several else []:
        with pytest.raises(UserError, match=says):
            build(**{several: kinds})
    if not several:
        with pytest.raises(UserError, match="set its count to 2"):
            build(view=Global(1, size=32))
    if name in ("dino", "swav"):
        with pytest.raises(UserError, match="cutout views predict cutout views"):
            build(views=(Global(2, size=32), Cutout(2, size=32, symmetric=True)))
    if not several and name != "mast":  # which composes its own
        with pytest.raises(UserError, match="a blend of targets"):
            build(view=CutMix(2, size=32))


def test_views_that_would_be_ignored_are_refused():
    for name, view, says in (("mae", Global(2, size=32), "one view"), ("moco_v2", Global(3, size=32), "two views")):
        with pytest.raises(UserError, match=says):
            methods.get(name)(build_method(recipe(name)).kept_encoder, view=view)


@dataclasses.dataclass(frozen=True)
class Neighbors(Local):
    """Local views that predict the neighbor's targets."""

    def blend(self, targets: torch.Tensor, draws: Draws) -> torch.Tensor:
        return targets.roll(1, 0)


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_targets_are_blended_as_the_view_says(name: str, batch: Batch):
    found = build_method(override(recipe(name), "method.views", (Global(2, size=32), Local(2, size=16)))).train()
    kinds = (Global(2, size=32), Neighbors(2, size=16))
    draws = Views(batch, kinds, seed=5)
    targets, heard = [], []
    head = found.student if name == "dino" else found.prototypes
    head.register_forward_hook(lambda _, x, s: heard.extend(s.detach().split(len(batch))))
    found.views = kinds
    at = AT
    if name == "dino":
        found.teacher.register_forward_hook(lambda _, x, t: targets.extend(t.detach().split(len(batch))))
    loss = sum(v.detach() for terms in found.loss(draws, at) for k, v in terms.items() if k == "neighbors")
    scores, local = heard[:2], heard[2:]
    if name == "dino":
        t = schedules.value(found.teacher_temperature, at)
        targets = [sharpen(t_, found.center.value, t) for t_ in targets[:2]]
        temperature = found.student_temperature
    else:
        targets = [sinkhorn(s, found.epsilon, found.iterations) for s in scores]
        temperature = found.temperature
    each = [-(q.roll(1, 0) * (s / temperature).log_softmax(1)).sum(1).mean() for q in targets for s in local]
    assert len(each) == 4
    torch.testing.assert_close(loss, sum(each) / (2 * 3))


@every_method
def test_the_keyword_defaults_build_the_paper_and_recipes_only_change_them(name: str):
    known = settings(methods.get(name))
    own = [r for r in recipes.names() if recipes.get(r).method.name == name]
    assert f"{name}_tiny" in own
    for recipe_name in own:
        assert set(get(recipe_name).method.settings) == set(known)
    assert all(p.default is not p.empty for p in known.values()), "every setting has the paper's default"


def test_classes_and_modules_keep_their_names():
    """`mv.methods.byol` must not be the class at one time and the module at another."""
    assert methods.BYOL is methods.get("byol") and methods.MoCoV3 is methods.get("moco_v3")
    assert not isinstance(getattr(methods, "byol", None), type)
