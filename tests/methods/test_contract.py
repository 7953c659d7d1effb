"""What every method found in the folder must do, whatever it is."""

import copy
import dataclasses
from functools import partial

import pytest
import torch

from manyviews import methods, schedules
from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.evaluation import rankme
from manyviews.methods import Method
from manyviews.methods.method import Terms
from manyviews.objectives import sharpen, sinkhorn
from manyviews.recipes import get
from manyviews.settings import Recipe, override, settings
from manyviews.types import Backward, Batch, Progress
from manyviews.views import CutMix, Cutout, Draws, Global, Local, Views

AT = Progress(3, 20, 5)
every_method = pytest.mark.parametrize("name", methods.names())


def recipe(name: str) -> Recipe:
    return get(f"{name}_tiny")


def views(method: Method, batch: Batch, backward: str = "per_view") -> Views:
    return Views(batch, method.views, seed=5, backward=backward)


def step(
    method: Method, optimizer: torch.optim.Optimizer, batch: Batch, at: Progress, backward: Backward = "per_view", **how
) -> Terms:
    optimizer.zero_grad(set_to_none=True)
    terms = backpropagate(method, [lambda: views(method, batch, backward)], at, **how)
    method.before_update(at)
    optimizer.step()
    method.after_update(at)
    return terms


def adamw(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)


@every_method
def test_terms_are_finite_scalars_with_names(name: str, batch: Batch):
    method = build_method(recipe(name)).train()
    found = list(method.loss(views(method, batch), AT))
    assert found
    for terms in found:
        for word, term in terms.items():
            assert word and term.shape == () and term.isfinite(), word


@pytest.mark.parametrize("name", sorted({*methods.names()} - {"mae"}))  # which compares no views
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
def test_what_trains_has_a_gradient_and_what_does_not_has_none(name: str, batch: Batch):
    method = build_method(recipe(name)).train()
    backpropagate(method, [lambda: views(method, batch)], AT)
    for word, p in method.named_parameters():
        if p.requires_grad:
            # A second time, after one update: layers that start at zero pass no gradient to those behind them.
            assert p.grad is not None, f"{word} is trained and not reached by the loss"
        else:
            assert p.grad is None, f"{word} is frozen and has a gradient"
    step(method, adamw(method), batch, AT)
    backpropagate(method, [lambda: views(method, batch)], AT)
    for word, p in method.named_parameters():
        if p.requires_grad and not normalized_away(word):
            assert p.grad is not None and p.grad.abs().max() > 0, f"{word} does not learn"


def normalized_away(name: str) -> bool:
    """A bias before a normalization that removes it learns nothing, in any implementation."""
    return name.endswith("bias")


@every_method
def test_the_keyword_defaults_build_the_paper_and_recipes_only_change_them(name: str):
    known = settings(methods.get(name))
    for size in ("imagenet", "cifar10", "tiny"):
        assert set(get(f"{name}_{size}").method.settings) == set(known)
    assert all(p.default is not p.empty for p in known.values()), "every setting has the paper's default"


@every_method
def test_the_same_seed_gives_the_same_loss_and_another_batch_another(name: str, batch: Batch):
    def losses(batch: Batch) -> list[float]:
        method = build_method(recipe(name)).train()
        torch.manual_seed(1)
        return [t.item() for terms in method.loss(views(method, batch), AT) for t in terms.values()]

    other = Batch.of(batch.pixels.flip(2), batch.extent, batch.index)
    assert losses(batch) == losses(batch)
    assert losses(batch) != losses(other)


@every_method
def test_view_by_view_all_at_once_and_recomputed_steps_have_the_same_gradient(name: str, batch: Batch):
    built = build_method(recipe(name)).train()
    gradients, states = {}, {}
    for backward in ("per_view", "joint", "recompute"):
        method = copy.deepcopy(built)
        backpropagate(method, [lambda m=method, c=backward: views(m, batch, c)], AT)
        gradients[backward] = {k: p.grad for k, p in method.named_parameters() if p.requires_grad}
        states[backward] = method.state_dict()
    for backward in ("joint", "recompute"):
        for word, g in gradients["per_view"].items():
            # To rounding of the largest entry: sums over views are taken in another order.
            torch.testing.assert_close(
                gradients[backward][word], g, rtol=1e-3, atol=2e-5 * max(1.0, g.abs().max().item())
            )
        for word, value in states["per_view"].items():
            torch.testing.assert_close(states[backward][word], value, msg=f"{word} after a {backward} step")


@every_method
def test_it_resumes_to_the_same_bits(name: str, batch: Batch):
    """All that moves is in the state dict: queues, centers, targets."""

    def run(method: Method, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for i in steps:
            torch.manual_seed(i)
            step(method, optimizer, batch, Progress(i, 20, 5))

    whole = build_method(recipe(name)).train()
    optimizer = adamw(whole)
    run(whole, optimizer, range(2))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    run(whole, optimizer, range(2, 4))

    again = build_method(dataclasses.replace(recipe(name), seed=9)).train()
    its_optimizer = adamw(again)
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    run(again, its_optimizer, range(2, 4))
    for word, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[word], value), word


@every_method
def test_the_kept_encoder_is_part_of_the_method_and_moves(name: str, batch: Batch):
    method = build_method(recipe(name)).train()
    assert isinstance(method.kept_encoder, Encoder)
    assert any(m is method.kept_encoder for m in method.modules())
    before = copy.deepcopy(method.kept_encoder.state_dict())
    optimizer = adamw(method)
    for i in range(2):
        step(method, optimizer, batch, Progress(i, 20, 5))
    assert any(
        not torch.equal(v, before[k]) for k, v in method.kept_encoder.state_dict().items() if v.is_floating_point()
    )


@every_method
def test_a_batch_in_parts_has_the_mean_of_their_gradients(name: str, batch: Batch):
    built = build_method(recipe(name)).train()
    parts = batch.chunk(2)

    def gradient(batches: list[Batch]) -> dict[str, torch.Tensor]:
        method = copy.deepcopy(built)
        torch.manual_seed(0)
        backpropagate(method, [lambda b=b: views(method, b) for b in batches], AT)
        method.before_update(AT)
        method.after_update(AT)
        return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}

    both, one, two = gradient(parts), gradient(parts[:1]), gradient(parts[1:])
    for word, g in both.items():
        mean = (one[word] + two[word]) / 2
        torch.testing.assert_close(g, mean, rtol=1e-3, atol=2e-5 * max(1.0, mean.abs().max().item()), msg=word)


@every_method
def test_a_short_run_keeps_its_rank(name: str):
    from .conftest import canvases

    method = build_method(recipe(name)).train()
    optimizer = optim.build(method, recipe(name).optimizer, torch.device("cpu"))
    data = canvases(32)
    for i in range(30):
        at = Progress(i, 30, 10)
        optim.schedule(optimizer, recipe(name).optimizer, 32, at)
        torch.manual_seed(i)
        optimizer.zero_grad()
        backpropagate(method, [lambda e=i: Views(data, method.views, seed=5, epoch=e)], at)
        method.before_update(at)
        optimizer.step()
        method.after_update(at)
    encoder = method.kept_encoder.eval()
    with torch.no_grad():
        x = encoder((canvases(64, seed=1).pixels / 255 - 0.5) / 0.25)
    assert rankme(x) > 2, "the features have collapsed"


def test_classes_and_modules_keep_their_names():
    """`mv.methods.byol` must not be the class at one time and the module at another."""
    assert methods.BYOL is methods.get("byol") and methods.MoCoV3 is methods.get("moco_v3")
    assert not isinstance(getattr(methods, "byol", None), type)
