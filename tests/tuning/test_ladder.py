"""The climb: how far, why, and that it never ends below where it began."""

import time
from dataclasses import replace

import torch

from manyviews.errors import UserError
from manyviews.tuning import STRATEGIES, Linear, ladder
from manyviews.tuning.balance import gain
from manyviews.tuning.ladder import climb, plan
from manyviews.tuning.pace import Pace
from manyviews.tuning.strategies import Descent, LowRank, Unfreeze

from .conftest import noise, problem_of, resnet

FREE = Pace(0.0, 0.0, 0.0)


def ladder_of(problem, accuracies, monkeypatch, pace=FREE):
    """Climb with strategies whose accuracies are given: their logits get so many of 20 validation images right."""
    y, order = problem.task.frozen.val_y, []
    linear = Linear().run(problem)

    def fake(name):
        def run(self, problem, before=None):
            order.append(name)
            right = torch.arange(20) < round(20 * accuracies[name])
            logits = 5 * torch.nn.functional.one_hot(torch.where(right, y, (y + 1) % 3), 3).float()
            encoder = problem.encoder if name in ("linear", "mlp") else resnet()
            return replace(linear, strategy=name, encoder=encoder, logits=logits, score=problem.score(logits))

        return type(f"Fake{name}", (STRATEGIES[name],), {"run": run})()

    monkeypatch.setattr(ladder, "plan", lambda *a: (["mlp", "lora", "unfreeze", "lpft", "finetune"], "planned"))
    return climb(problem, {name: fake(name) for name in STRATEGIES}, pace), order


def test_it_climbs_while_it_helps_and_says_why(monkeypatch):
    problem = problem_of(resnet(), noise([i % 3 for i in range(60)], noise=10), 20)
    base = {"linear": 0.5, "mlp": 0.5, "lora": 0.7, "unfreeze": 0.7, "lpft": 1.0, "finetune": 1.0}
    found, order = ladder_of(problem, base, monkeypatch)
    assert order == ["linear", "mlp", "lora", "unfreeze"]  # a head that does not help ends nothing
    assert found.best.strategy == "lora" and "unfreeze" in found.why[-1] and "ends here" in found.why[-1]
    assert len(found.tried) == 4
    # One more image of twenty is no more than chance; better or not, the result is never below linear.
    found, order = ladder_of(problem, base | {"lora": 0.45, "mlp": 0.4}, monkeypatch)
    assert found.best.strategy == "linear" and order[-1] == "lora"


def test_an_encoder_that_does_not_know_the_domain_tries_every_rung(monkeypatch):
    problem = problem_of(resnet(), noise([0, 1, 2] * 20, noise=400), 20)
    found, order = ladder_of(problem, dict.fromkeys(STRATEGIES, 0.5) | {"lpft": 0.9}, monkeypatch)
    assert order[-1] == "finetune" and len(order) == 6 and found.best.strategy == "lpft"
    assert "ends here" not in " ".join(found.why)


def test_time_shortens_and_ends_the_climb(monkeypatch):
    problem = problem_of(resnet(), noise([i % 3 for i in range(60)], noise=10), 20)
    problem = replace(problem, deadline=time.monotonic() + 100)
    rising = {"linear": 0.3, "mlp": 0.4, "lora": 0.6, "unfreeze": 0.8, "lpft": 0.9, "finetune": 1.0}
    # At 0.03 seconds an image, LoRA takes 240: 200 passes over one batch of 40. Unfreezing takes 4 times 100 passes.
    found, order = ladder_of(problem, rising, monkeypatch, Pace(0.0, 0.0, 0.03))
    assert order == ["linear", "mlp", "lora"] and "are left: it ends here" in found.why[-1]
    assert found.best.strategy == "lora"


def test_a_gain_is_more_than_its_standard_error():
    """McNemar's counts: b - c against the square root of b + c; balanced, each class weighs the same."""
    y = torch.zeros(10, dtype=torch.int64)
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    def answers(*hits):
        return torch.stack([right if h else wrong for h in hits] + [right] * (10 - len(hits)))

    assert gain(answers(1), answers(0), y) == (True, 1)
    assert gain(answers(1, 1, 0), answers(0, 0, 1), y) == (False, 1)  # 1 < sqrt(3)
    assert gain(answers(1, 1, 1, 0), answers(0, 0, 0, 1), y) == (True, 2)
    assert gain(answers(1), answers(1), y) == (False, 0)
    assert gain(answers(0), answers(1), y) == (False, -1)
    y = torch.tensor([0] * 8 + [1, 1])
    theirs = torch.stack([right] * 8 + [right] * 2)
    ours = torch.stack([wrong] + [right] * 7 + [wrong, right])
    assert gain(ours, theirs, y) == (False, 0) and gain(ours, theirs, y, balanced=True)[0] is False
    ours = torch.stack([wrong] + [right] * 7 + [wrong, wrong])
    assert gain(ours, theirs, y, balanced=True) == (True, 1)


def test_the_plan_follows_data_and_domain():
    assert plan(5, 0.9, True)[0] == ["mlp"]
    assert plan(50, 0.9, True)[0] == ["mlp", "lora", "unfreeze", "lpft"]
    assert plan(50, 0.9, False)[0] == ["mlp", "unfreeze", "lpft"]
    assert plan(50, 0.1, True)[0] == ["mlp", "lora", "lpft", "finetune"]
    assert plan(500, 0.9, True)[0][-1] == "finetune"


def test_the_time_of_a_strategy_is_that_of_its_images():
    pace, how = Pace(1.0, 2.0, 10.0), Descent(lr=1.0, epochs=7, batch=10)
    assert pace.features(5) == 15
    assert pace.most(Linear(), 100, 20) == 0
    assert pace.most(LowRank(descent=how), 1000, 20) == 7 * (1000 * 10 + 20 * 2)
    assert pace.most(LowRank(descent=how), 10, 20) == 200 * (10 * 10 + 20 * 2)  # 200 steps of one batch
    assert pace.most(Unfreeze(blocks=3, descent=how), 1000, 20) == 3 * 7 * (1000 * 10 + 20 * 2)


def test_a_rung_that_the_network_does_not_have_is_left_out(monkeypatch):
    class Without(Unfreeze):
        def run(self, problem, before=None):
            raise UserError("resnet does not say what its layers are.")

    monkeypatch.setattr(ladder, "plan", lambda *a: (["unfreeze"], "planned"))
    problem = problem_of(resnet(), noise([0, 1, 2] * 20, noise=400), 20)
    found = climb(problem, {"linear": Linear(), "unfreeze": Without()}, FREE)
    assert found.best.strategy == "linear" and found.why[-1].startswith("unfreeze is left out: resnet does not say")
