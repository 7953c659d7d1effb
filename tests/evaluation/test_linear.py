import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from manyviews.evaluation import Task, descent, linear_probe, logistic_regression
from manyviews.evaluation.linear import Standardizer, linear_probes, logistic_fit


def problem(n=600, d=20, classes=4, noise=2.0):
    """Features on scales from 0.01 to 100, and labels a linear map of them gives but for noise."""
    z = torch.randn(n, d)
    y = (z @ torch.randn(d, classes) + noise * torch.randn(n, classes)).argmax(1)
    x = z * torch.logspace(-2, 2, d) + 5
    a, b = n // 2, 3 * n // 4
    return Task(x[:a], y[:a], x[a:b], y[a:b], x[b:], classes), y[b:]


def one_head(train_x, train_y, test_x, classes, lr, decay, seed):
    """One linear layer in plain PyTorch: its logits of the test items."""
    scaler = StandardScaler().fit(train_x.double())
    x, test_x = (torch.from_numpy(scaler.transform(v.double())).float() for v in (train_x, test_x))
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = math.ceil(len(x) / 256)
    steps = max(60, 20 * per_epoch)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[step % per_epoch * 256 :][:256]
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        F.cross_entropy(layer(x[rows]), train_y[rows]).backward()
        optimizer.step()
    return layer(test_x).detach()


def test_heads_trained_at_once_are_heads_trained_alone(few_steps):
    task, _ = problem()
    lrs, decays = (1e-3, 1e-1), (0.0, 1e-2)
    state = torch.get_rng_state()
    found = linear_probe(task, lrs=lrs, weight_decays=decays, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    asked = torch.cat([task.val_x, task.test_x])
    alone = {
        (lr, decay): one_head(task.train_x, task.train_y, asked, 4, lr, decay, seed=3) for lr in lrs for decay in decays
    }
    for setting, accuracy in found.validation:
        logits = alone[setting["lr"], setting["weight_decay"]][: len(task.val_x)]
        assert accuracy == pytest.approx((logits.argmax(1) == task.val_y).double().mean().item(), abs=0.01)
    best = max(found.validation, key=lambda tried: tried[1])[0]
    assert found.setting == best
    wanted = alone[best["lr"], best["weight_decay"]][len(task.val_x) :]
    torch.testing.assert_close(found.logits, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(found.logits, linear_probe(task, lrs=lrs, weight_decays=decays, seed=1).logits)


def test_a_head_that_diverges_is_not_chosen(few_steps):
    found = linear_probe(problem()[0], lrs=(1e38, 0.01), weight_decays=(0.0,))
    assert found.validation[0][1] == 0
    assert found.setting["lr"] == 0.01
    assert found.logits.isfinite().all()


def test_probes_of_several_choices_of_columns_are_probes_of_each_alone(few_steps):
    """Next to features 1e9 times as large, beside which their own variation would seem rounding."""
    task, _ = problem(d=20)
    columns = [slice(0, 12), slice(0, 20), slice(4, 9), slice(20, 26)]
    wide = {k: torch.cat([x, 1e9 * x[:, :6].flip(1)], 1) for k, x in vars(task).items() if k.endswith("_x")}
    options = {"lrs": (0.01, 0.1, 0.3), "seed": 2}
    found = linear_probes(dataclasses.replace(task, **wide), columns, **options)
    for part, probe in zip(columns, found, strict=True):
        alone = linear_probe(
            dataclasses.replace(task, **{k: x[:, part].contiguous() for k, x in wide.items()}), **options
        )
        assert probe.setting == alone.setting and probe.validation == alone.validation
        torch.testing.assert_close(probe.logits, alone.logits, rtol=1e-6, atol=1e-6)
    assert len({max(a for _, a in probe.validation) for probe in found}) > 1  # the choices are of different worth


@pytest.mark.parametrize("fit", [linear_probe, logistic_regression])
def test_what_can_be_separated_is_separated_and_a_class_may_have_no_training_images(fit, few_steps):
    task, test_y = problem(noise=0.0, d=5)
    assert (fit(task).logits.argmax(1) == test_y).double().mean() > 0.9
    keep = task.train_y != 2
    found = fit(dataclasses.replace(task, train_x=task.train_x[keep], train_y=task.train_y[keep]))
    assert found.logits.isfinite().all() and (found.logits.argmax(1) != 2).all()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("penalty", [0.1, 1e-3])
def test_logistic_regression_is_scikit_learns(classes, penalty):
    task, _ = problem(classes=classes)
    found = logistic_regression(task, penalties=(penalty,))
    scaler = StandardScaler().fit(task.train_x.double())
    # scikit-learn has one weight vector for two classes: w = w_1 - w_0, and |w|^2 = 2 (|w_0|^2 + |w_1|^2).
    c = 1 / (penalty * len(task.train_x)) * (2 if classes == 2 else 1)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10000)
    model.fit(scaler.transform(task.train_x.double()), task.train_y)
    theirs = model.predict_proba(scaler.transform(task.test_x.double()))
    np.testing.assert_allclose(found.logits.softmax(1).numpy(), theirs, atol=3e-3)


def test_logistic_regression_with_a_fixed_penalty_is_scikit_learns():
    task, _ = problem(classes=5)
    x, test_x = F.normalize(task.train_x), F.normalize(task.test_x)
    found = logistic_fit(x, task.train_y, test_x, classes=5, penalty=1 / len(x))
    model = LogisticRegression(tol=1e-8, max_iter=10000).fit(x.double(), task.train_y)  # C = 1 by default
    np.testing.assert_allclose(found.softmax(1).numpy(), model.predict_proba(test_x.double()), atol=3e-3)


def test_logistic_regression_chooses_the_penalty_by_validation():
    task, _ = problem(n=120, d=60, noise=6)  # more noise than signal: a weak penalty overfits
    found = logistic_regression(task)
    best = max(accuracy for _, accuracy in found.validation)
    assert dict((s["l2"], a) for s, a in found.validation)[found.setting["l2"]] == best
    # Warm starts lead to the same optimum as a start at zero.
    alone = logistic_regression(task, penalties=(found.setting["l2"],))
    torch.testing.assert_close(found.logits.softmax(1), alone.logits.softmax(1), rtol=0, atol=1e-2)


def test_standardization_is_scikit_learns_and_leaves_constants_alone():
    x = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.01, 0.0]) + torch.tensor([0.0, 7.0, -3.0, 2.0])
    standard = Standardizer.of(x)
    wanted = StandardScaler().fit_transform(x.double())
    np.testing.assert_allclose(standard(x)[:, :3].numpy(), wanted[:, :3], atol=1e-3)
    assert standard(x)[:, 3].abs().max() < 1e-5


def test_only_its_own_steps_take_the_smallest_numbers_for_zero():
    """Programs that use ours, hypothesis among them, count on these numbers."""
    inside = []
    for _ in descent.descend([0, 1], lambda *_: inside.append(float(torch.full((), 1e-40) * 1)), lambda _: 0.1):
        assert torch.full((), 1e-40) * 1 > 0
    assert inside == [0, 0]
