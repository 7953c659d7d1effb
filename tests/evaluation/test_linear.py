import inspect
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from manyviews.evaluation import linear_probe, logistic_regression
from manyviews.evaluation.linear import Standard, linear_probes, logistic_fit


def problem(n=600, d=20, classes=4, noise=2.0):
    """Features on scales from 0.01 to 100, and labels a linear map of them gives but for noise."""
    z = torch.randn(n, d)
    y = (z @ torch.randn(d, classes) + noise * torch.randn(n, classes)).argmax(1)
    x = z * torch.logspace(-2, 2, d) + 5
    a, b = n // 2, 3 * n // 4
    return (x[:a], y[:a], x[a:b], y[a:b], x[b:]), y[b:]


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
    steps = max(1000, 20 * per_epoch)
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


def test_heads_trained_at_once_are_heads_trained_alone():
    data, _ = problem()
    train_x, train_y, val_x, val_y, test_x = data
    lrs, decays = (1e-3, 1e-1), (0.0, 1e-2)
    found = linear_probe(*data, classes=4, lrs=lrs, weight_decays=decays, seed=3)
    alone = {
        (lr, decay): one_head(train_x, train_y, torch.cat([val_x, test_x]), 4, lr, decay, seed=3)
        for lr in lrs
        for decay in decays
    }
    for setting, accuracy in found.validation:
        logits = alone[setting["lr"], setting["weight_decay"]][: len(val_x)]
        assert accuracy == pytest.approx((logits.argmax(1) == val_y).double().mean().item(), abs=0.01)
    best = max(found.validation, key=lambda tried: tried[1])[0]
    assert found.setting == best
    wanted = alone[best["lr"], best["weight_decay"]][len(val_x) :]
    torch.testing.assert_close(found.logits, wanted, rtol=1e-3, atol=1e-3)


def test_the_probe_is_deterministic_by_its_seed_and_leaves_the_global_one():
    data, _ = problem(n=1200, noise=4)
    state = torch.get_rng_state()
    first, again, other = (linear_probe(*data, classes=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_diverges_is_not_chosen():
    data, _ = problem()
    found = linear_probe(*data, classes=4, lrs=(1e38, 0.01), weight_decays=(0.0,))
    assert found.validation[0][1] == 0
    assert found.setting["lr"] == 0.01
    assert found.logits.isfinite().all()


def test_probes_of_several_looks_are_probes_of_each_alone():
    """Whatever lies beside: here features 1e9 times as large, next to which their own variation would seem rounding."""
    (train_x, train_y, val_x, val_y, test_x), _ = problem(d=20)
    looks = [slice(0, 12), slice(0, 20), slice(4, 9), slice(20, 26)]
    wide = [torch.cat([x, 1e9 * x[:, :6].flip(1)], 1) for x in (train_x, val_x, test_x)]
    options = {"classes": 4, "lrs": (0.01, 0.1, 0.3), "seed": 2}
    found = linear_probes(wide[0], train_y, wide[1], val_y, wide[2], looks=looks, **options)
    for look, probe in zip(looks, found, strict=True):
        parts = [x[:, look].contiguous() for x in wide]
        alone = linear_probe(parts[0], train_y, parts[1], val_y, parts[2], **options)
        assert probe.setting == alone.setting and probe.validation == alone.validation
        torch.testing.assert_close(probe.logits, alone.logits, rtol=1e-6, atol=1e-6)
    assert len({max(a for _, a in probe.validation) for probe in found}) > 1  # the looks are of different worth


def test_what_can_be_separated_is_separated():
    data, test_y = problem(noise=0.0, d=5)
    for fit in (linear_probe, logistic_regression):
        assert (fit(*data, classes=4).logits.argmax(1) == test_y).double().mean() > 0.96


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("penalty", [0.1, 1e-3])
def test_logistic_regression_is_scikit_learns(classes, penalty):
    data, _ = problem(classes=classes)
    train_x, train_y, _, _, test_x = data
    found = logistic_regression(*data, classes=classes, penalties=(penalty,))
    scaler = StandardScaler().fit(train_x.double())
    # scikit-learn has one weight vector for two classes: w = w_1 - w_0, and |w|^2 = 2 (|w_0|^2 + |w_1|^2).
    c = 1 / (penalty * len(train_x)) * (2 if classes == 2 else 1)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10000).fit(scaler.transform(train_x.double()), train_y)
    theirs = model.predict_proba(scaler.transform(test_x.double()))
    np.testing.assert_allclose(found.logits.softmax(1).numpy(), theirs, atol=3e-3)


def test_logistic_regression_with_a_fixed_penalty_is_scikit_learns():
    (train_x, train_y, _, _, test_x), _ = problem(classes=5)
    train_x, test_x = F.normalize(train_x), F.normalize(test_x)
    found = logistic_fit(train_x, train_y, test_x, classes=5, penalty=1 / len(train_x))
    model = LogisticRegression(tol=1e-8, max_iter=10000).fit(train_x.double(), train_y)  # C = 1 by default
    np.testing.assert_allclose(found.softmax(1).numpy(), model.predict_proba(test_x.double()), atol=3e-3)


def test_logistic_regression_chooses_the_penalty_by_validation():
    data, _ = problem(n=120, d=60, noise=6)  # more noise than signal: a weak penalty overfits
    found = logistic_regression(*data, classes=4)
    best = max(accuracy for _, accuracy in found.validation)
    assert dict((s["l2"], a) for s, a in found.validation)[found.setting["l2"]] == best
    # Warm starts lead to the same optimum as a start at zero.
    alone = logistic_regression(*data, classes=4, penalties=(found.setting["l2"],))
    torch.testing.assert_close(found.logits.softmax(1), alone.logits.softmax(1), rtol=0, atol=1e-2)


@pytest.mark.parametrize("fit", [linear_probe, logistic_regression])
def test_test_labels_cannot_be_given(fit):
    assert "test_y" not in inspect.signature(fit).parameters


def test_a_class_without_training_images_is_no_problem():
    (train_x, train_y, *rest), _ = problem()
    keep = train_y != 2
    for fit in (linear_probe, logistic_regression):
        found = fit(train_x[keep], train_y[keep], *rest, classes=4)
        assert found.logits.isfinite().all()
        assert (found.logits.argmax(1) != 2).all()


def test_standardization_is_scikit_learns_and_leaves_constants_alone():
    x = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.01, 0.0]) + torch.tensor([0.0, 7.0, -3.0, 2.0])
    standard = Standard.of(x)
    wanted = StandardScaler().fit_transform(x.double())
    np.testing.assert_allclose(standard(x)[:, :3].numpy(), wanted[:, :3], atol=1e-3)
    assert standard(x)[:, 3].abs().max() < 1e-5
