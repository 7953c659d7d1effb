"""The contract of a method, as checks that anybody can run on a method of their own.

    from manyviews.testing import CHECKS, check_method

    check_method("my_method")           # the recipe my_method_tiny
    check_method(my_recipe)             # any recipe of a few seconds

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_my_method(check):
        check(my_recipe)

All checks compute in float32 on the CPU, on small random pictures with random captions and labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.evaluation import rankme
from manyviews.methods import Method
from manyviews.recipes import get
from manyviews.settings import Recipe
from manyviews.types import Backward, Batch, Canvases, Progress
from manyviews.views import Views

AT = Progress(3, 20, 5)


def check_method(recipe: str | Recipe) -> None:
    """Raises AssertionError, which says what is wrong, if a method breaks the contract.

    Args:
        recipe: of a small network, or the name of a method that has a recipe `<name>_tiny`.
    """
    for check in CHECKS.values():
        check(recipe)


def pictures(n: int = 8, size: int = 32, seed: int = 0) -> Batch:
    """Smooth random pictures, so that views of one resemble each other, with random captions and labels."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=draw)
    pixels = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    text = torch.randint(97, 123, (n, 12), generator=draw, dtype=torch.uint8)
    text[:, 8:] *= (torch.rand(n, 1, generator=draw) < 0.5).byte()  # of two lengths
    label = torch.randint(0, 3, (n,), generator=draw)
    return Batch.of((pixels * 255).byte(), text=text, label=label)


def terms_are_finite_scalars(recipe: str | Recipe) -> None:
    """Every yield is a dictionary of named, finite scalars."""
    method = _built(recipe)
    found = list(method.loss(_views(method, pictures()), AT))
    assert found, "The loss yields nothing."
    for terms in found:
        for name, term in terms.items():
            assert name and term.shape == () and term.isfinite(), f"The term '{name}' is {term}."


def gradients_reach_what_trains(recipe: str | Recipe) -> None:
    """Parameters that require a gradient get one, and learn; frozen ones get none."""
    method = _built(recipe)
    _backward(method, [pictures()])
    for name, p in method.named_parameters():
        if p.requires_grad:
            # Layers that start at zero pass no gradient to those behind them: not zero only after one update.
            assert p.grad is not None, f"{name} is trained and not reached by the loss."
        else:
            assert p.grad is None, f"{name} is frozen and has a gradient."
    _step(method, _adamw(method), pictures(), AT)
    _backward(method, [pictures()])
    for name, p in method.named_parameters():
        if p.requires_grad and not name.endswith("bias"):  # a normalization may follow and remove it
            assert p.grad is not None and p.grad.abs().max() > 0, f"{name} does not learn."


def the_seed_decides(recipe: str | Recipe) -> None:
    """The same seed gives the same loss, and another batch another one."""

    def losses(batch: Batch) -> list[float]:
        method = _built(recipe)
        torch.manual_seed(1)
        return [t.item() for terms in method.loss(_views(method, batch), AT) for t in terms.values()]

    batch = pictures()
    assert losses(batch) == losses(batch), "The same seed gives another loss."
    other = Batch(batch.index, Canvases.dense(batch.canvases.padded().flip(2)), batch.columns)
    assert losses(batch) != losses(other), "Other pictures give the same loss."


def execution_changes_nothing(recipe: str | Recipe) -> None:
    """Steps view by view, all at once and recomputed have the same gradient and leave the same state."""
    built = _built(recipe)
    gradients: dict[str, dict[str, Tensor]] = {}
    states: dict[str, dict[str, Tensor]] = {}
    ways: tuple[Backward, ...] = ("per_view", "joint", "recompute")
    for how in ways:
        method = copy.deepcopy(built)
        _backward(method, [pictures()], how)
        gradients[how] = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
        states[how] = method.state_dict()
    for how in ways[1:]:
        _same_gradients(gradients[how], gradients["per_view"], how)
        for name, value in states["per_view"].items():
            torch.testing.assert_close(states[how][name], value, msg=f"{name} after a {how} step")


def it_resumes_to_the_same_bits(recipe: str | Recipe) -> None:
    """Whatever moves is in the state dict: queues, centers, targets."""

    def run(method: Method, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
        for i in steps:
            torch.manual_seed(i)
            _step(method, optimizer, pictures(), Progress(i, 20, 5))

    whole = _built(recipe)
    optimizer = _adamw(whole)
    run(whole, optimizer, range(2))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    run(whole, optimizer, range(2, 4))

    again = _built(replace(_recipe(recipe), seed=9))
    its_optimizer = _adamw(again)
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    run(again, its_optimizer, range(2, 4))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), f"{name} is not what an uninterrupted run has."


def the_kept_encoder_moves(recipe: str | Recipe) -> None:
    """The encoder that is exported is a part of the method, and training changes it."""
    method = _built(recipe)
    kept = method.kept_encoder
    assert isinstance(kept, Encoder), "kept_encoder is no Encoder."
    assert any(m is kept for m in method.modules()), "kept_encoder is no part of the method."
    before = copy.deepcopy(kept.state_dict())
    optimizer = _adamw(method)
    for i in range(2):
        _step(method, optimizer, pictures(), Progress(i, 20, 5))
    after = method.kept_encoder.state_dict()
    moved = any(not torch.equal(v, before[k]) for k, v in after.items() if v.is_floating_point())
    assert moved, "Training does not change the kept encoder."


def parts_give_their_mean(recipe: str | Recipe) -> None:
    """A batch in two accumulated parts has the mean of their gradients."""
    built = _built(recipe)
    parts = pictures().chunk(2)

    def gradient(batches: list[Batch]) -> dict[str, Tensor]:
        method = copy.deepcopy(built)
        torch.manual_seed(0)
        _backward(method, batches)
        method.before_update(AT)
        method.after_update(AT)
        return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}

    both, one, two = gradient(parts), gradient(parts[:1]), gradient(parts[1:])
    _same_gradients(both, {name: (one[name] + two[name]) / 2 for name in both}, "in parts")


def a_short_run_keeps_its_rank(recipe: str | Recipe) -> None:
    """Thirty steps do not collapse the features."""
    chosen = _recipe(recipe)
    method = _built(chosen)
    optimizer = optim.build(method, chosen.optimizer, torch.device("cpu"))
    data = pictures(32)
    for i in range(30):
        at = Progress(i, 30, 10)
        optim.schedule(optimizer, chosen.optimizer, 32, at)
        torch.manual_seed(i)
        optimizer.zero_grad()
        backpropagate(method, [partial(Views, data, method.views, 5, i, progress=at.progress)], at, precision="float32")
        method.before_update(at)
        optimizer.step()
        method.after_update(at)
    with torch.no_grad():
        x = method.kept_encoder.eval()((pictures(64, chosen.test_size, seed=1).canvases.padded() / 255 - 0.5) / 0.25)
    assert rankme(x) > 2, "The features have collapsed."


CHECKS: dict[str, Callable[[str | Recipe], None]] = {
    check.__name__: check
    for check in (
        terms_are_finite_scalars,
        gradients_reach_what_trains,
        the_seed_decides,
        execution_changes_nothing,
        it_resumes_to_the_same_bits,
        the_kept_encoder_moves,
        parts_give_their_mean,
        a_short_run_keeps_its_rank,
    )
}
"""The checks by name."""


def _recipe(recipe: str | Recipe) -> Recipe:
    return get(f"{recipe}_tiny") if isinstance(recipe, str) else recipe


def _built(recipe: str | Recipe) -> Method:
    method = build_method(_recipe(recipe)).train()
    method.begin(32)
    return method


def _views(method: Method, batch: Batch, backward: Backward = "per_view") -> Views:
    return Views(batch, method.views, seed=5, backward=backward)


def _backward(method: Method, batches: list[Batch], how: Backward = "per_view", at: Progress = AT) -> None:
    backpropagate(method, [partial(_views, method, b, how) for b in batches], at, precision="float32")


def _step(method: Method, optimizer: torch.optim.Optimizer, batch: Batch, at: Progress) -> None:
    optimizer.zero_grad(set_to_none=True)
    _backward(method, [batch], at=at)
    method.before_update(at)
    optimizer.step()
    method.after_update(at)


def _adamw(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)


def _same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], how: str) -> None:
    for name, g in wanted.items():
        # To rounding of the largest entry: sums over views are taken in another order.
        atol = 2e-5 * max(1.0, g.abs().max().item())
        torch.testing.assert_close(found[name], g, rtol=1e-3, atol=atol, msg=f"The gradient of {name} differs {how}.")
