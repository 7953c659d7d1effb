"""Each strategy on noise that a tiny encoder can tell apart: what learns, what stays, and what is kept."""

import copy
import itertools
import time
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from manyviews.adaptation import Frozen, Full
from manyviews.tuning import STRATEGIES, strategies
from manyviews.tuning.strategies import Descent, Late, Linear, Unfreeze, WarmStart, tune

from .conftest import noise, problem_of, resnet, vit

LABELS = [i % 3 for i in range(60)]
QUICK = Descent(lr=1e-3, head_lr=1e-3, epochs=2, fewest=4, batch=20)


def state(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("make", [resnet, vit])
def test_a_strategy_leaves_the_encoder_as_it_was_and_gives_plain_names(make, name, looking):
    problem = problem_of(make(), noise(LABELS), 15)
    before = state(problem.encoder)
    strategy = STRATEGIES[name]()
    if hasattr(strategy, "descent"):
        strategy = replace(strategy, descent=QUICK)
    if name == "mlp":
        strategy = replace(strategy, epochs=2, fewest=4, crops=2)
    found = strategy.run(problem, Linear().run(problem))
    assert same(state(problem.encoder), before)
    assert set(found.encoder.state_dict()) == set(before)
    torch.testing.assert_close(problem.validate(found.encoder, found.head), found.logits, rtol=1e-4, atol=1e-4)
    assert problem.score(found.logits) == found.score
    if name in ("linear", "mlp"):
        assert found.encoder is problem.encoder


def test_the_linear_head_is_scikit_learns():
    problem = problem_of(resnet(), noise(LABELS), 15)
    found = Linear(penalties=(0.1,)).run(problem)
    known = problem.task.frozen
    scaler = StandardScaler().fit(known.train_x)
    theirs = LogisticRegression(C=1 / (0.1 * 45), tol=1e-8, max_iter=5000).fit(
        scaler.transform(known.train_x), known.train_y
    )
    wanted = torch.from_numpy(theirs.predict_proba(scaler.transform(known.val_x)))
    torch.testing.assert_close(found.logits.softmax(1).double(), wanted, rtol=0, atol=2e-3)
    torch.testing.assert_close(problem.validate(found.encoder, found.head), found.logits, rtol=1e-4, atol=1e-4)


def test_the_encoder_waits_bit_for_bit_while_the_head_learns(looking):
    """LP-FT's first phase, on features and on crops: weights and BatchNorm's statistics."""
    problem = problem_of(resnet(), noise(LABELS), 15)
    before = state(problem.encoder)
    start = Linear().run(problem)
    assert same(state(start.encoder), before)
    found = tune(problem, start, Frozen(), QUICK, "frozen", time.monotonic())
    assert same(state(found.encoder), before)
    # In the second phase the weights move, and the statistics stay.
    second = WarmStart(descent=replace(QUICK, patience=99)).run(problem, start)
    moved = {k for k, v in second.encoder.state_dict().items() if not torch.equal(v, before[k])}
    buffers = {k for k, _ in problem.encoder.named_buffers()}
    assert second.setting["steps"] == 0 or (moved and not moved & buffers)


def test_early_stopping_restores_the_best(looking, monkeypatch):
    """Of five looks at the validation images the second is the best, and the third after it ends the run."""
    problem = problem_of(resnet(), noise(LABELS), 15)
    start, y = Linear().run(problem), problem.task.frozen.val_y
    seen, sure = [], iter([3.0, 9.0, 5.0, 4.0, 8.0, 100.0])

    def scripted(self, encoder, head):
        seen.append((state(encoder), state(head)))
        return next(sure) * torch.nn.functional.one_hot(y, 3).float()

    monkeypatch.setattr(type(problem), "validate", scripted)
    poor = replace(start, logits=torch.zeros(15, 3), score=problem.score(torch.zeros(15, 3)))
    how = replace(QUICK, epochs=20, patience=3)
    found = tune(problem, poor, Full(), how, "full", time.monotonic())
    assert len(seen) == 5 and found.setting["steps"] == 6  # three steps an epoch
    assert same(state(found.encoder), seen[1][0]) and same(state(found.head), seen[1][1])
    assert not same(seen[1][0], seen[4][0])


def test_unfreezing_goes_back_to_the_best_stage_with_rates_that_fall(looking, monkeypatch):
    """Three stages are better and the fourth is not; stage k learns at lr gamma ** i in block i from the top."""
    problem = problem_of(vit(), noise(LABELS), 15)
    rates, calls = [], []
    made = torch.optim.AdamW

    def spied(groups, **more):
        names = {id(p): n for m in learning[-1] for n, p in m.named_parameters()}
        rates.append({names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]})
        return made(groups, **more)

    learning = []
    usual = strategies.tune

    def staged(problem, start, adaptation, descent, name, begun):
        calls.append((adaptation.blocks, start))
        copied = type(problem).copied

        def watched(self, encoder):
            found = copied(self, encoder)
            learning.append([found])
            return found

        with monkeypatch.context() as m:
            m.setattr(type(problem), "copied", watched)
            m.setattr(strategies, "copied", lambda head: _remembered(learning, head))
            m.setattr(strategies.torch.optim, "AdamW", spied)
            found = usual(problem, start, adaptation, descent, name, begun)
        score = start.score._replace(value=0.5 + 0.1 * len(calls) if len(calls) < 3 else 0.0)
        return replace(found, score=score)

    monkeypatch.setattr(strategies, "tune", staged)
    start = Linear().run(problem)
    start = replace(start, score=start.score._replace(value=0.1))
    found = Unfreeze(blocks=4, gamma=0.7, descent=QUICK).run(problem, start)
    assert [blocks for blocks, _ in calls] == [1, 2, 3]
    assert calls[0][1] is start and found.score.value == 0.7 and found.setting["blocks"] == 2
    for k, scales in enumerate(rates, 1):
        for name, scale in scales.items():
            if name.startswith("model.blocks."):
                assert scale == 0.7 ** (2 - int(name.split(".")[2])) and 2 - int(name.split(".")[2]) < k
        assert {n.split(".")[2] for n in scales if "blocks" in n} == {str(2 - i) for i in range(k)}


def _remembered(learning, head):
    found = copy.deepcopy(head).requires_grad_(True)
    learning[-1].append(found)
    return found


def test_a_deadline_ends_it_and_keeps_the_best(looking):
    problem = problem_of(resnet(), noise(LABELS), 15, deadline=time.monotonic())
    start = Linear().run(problem)
    found = tune(problem, start, Full(), replace(QUICK, epochs=1000), "full", time.monotonic())
    assert found.score >= start.score and len(found.history) == 2


@pytest.mark.parametrize("name", ["lora", "unfreeze", "finetune"])
def test_learning_again_is_the_same_training_from_all_images(name, looking, monkeypatch):
    """Where each look at validation images is better than the one before, nothing is left to choose."""
    problem = problem_of(vit() if name == "lora" else resnet(), noise(LABELS), 15)
    y, sure = problem.task.frozen.val_y, itertools.count(1)
    monkeypatch.setattr(type(problem), "validate", lambda *_: next(sure) * torch.nn.functional.one_hot(y, 3).float())
    more = {"blocks": 2} if name == "unfreeze" else {}
    strategy = replace(STRATEGIES[name](), descent=QUICK, **more)
    start = Linear().run(problem)
    start = replace(start, score=start.score._replace(value=0.0, certainty=-99.0))
    found = strategy.run(problem, start)
    first = Linear().again(problem, start, start)
    wanted = strategy.run(problem.whole, first)
    again = strategy.again(problem, found, first)
    assert same(state(again.encoder), state(wanted.encoder)) and same(state(again.head), state(wanted.head))
    assert not same(state(again.encoder), state(found.encoder)) and again.score == found.score


def test_learning_again_takes_as_many_passes_as_a_shortened_training(looking, monkeypatch):
    """And ends, with nothing, when the time does."""
    problem = problem_of(resnet(), noise(LABELS), 15)
    whole = replace(STRATEGIES["lpft"](), descent=replace(QUICK, epochs=8, fewest=1, patience=100))
    start = Linear().run(problem)
    found = whole.shortened(0.25).run(problem, start)
    assert found.setting["epochs"] == 2
    found = replace(found, setting={**found.setting, "steps": found.setting["of"]})  # as if its last step was the best
    told = []
    monkeypatch.setattr(type(problem), "tell", lambda self, done, of, note: told.append((done, of)))
    whole.again(problem, found, start)
    per_epoch = problem.whole.crops(QUICK.area, min(QUICK.batch, len(problem.whole.images))).steps_per_epoch
    assert told[-1] == (2 * per_epoch, 2 * per_epoch)
    with pytest.raises(Late):
        whole.again(replace(problem, deadline=time.monotonic()), found, start)
