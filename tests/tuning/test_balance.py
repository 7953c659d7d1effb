"""Classes of unequal size, and probabilities: against closed forms."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from manyviews.tuning import Balance, calibration_error, temperature

COUNTS = torch.tensor([60, 30, 10])


def test_adjusted_logits_are_bayes_rule():
    """Without features the best logits plus the log prior give the frequencies, so the logits alone are level.

    With the prior added in training (Menon et al. 2021, eq. 10), a constant classifier learns to prefer no class;
    without it, the classes' log frequencies.
    """
    y = torch.arange(3).repeat_interleave(COUNTS)
    for way, wanted in (("logits", torch.zeros(3)), ("none", (COUNTS / 100).log()), ("weights", torch.zeros(3))):
        balance, bias = Balance(way, COUNTS), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure(balance=balance, bias=bias, optimizer=optimizer):
            optimizer.zero_grad()
            loss = balance.loss(bias.expand(100, 3), y) / 100
            loss.backward()
            return loss

        optimizer.step(closure)
        found = bias.detach() - bias.detach().mean()
        torch.testing.assert_close(found, wanted - wanted.mean(), rtol=0, atol=1e-3)


def test_the_loss_is_the_sum_over_images():
    logits, y = torch.randn(20, 3), torch.randint(0, 3, (20,))
    prior = np.array([0.6, 0.3, 0.1])
    z = logits.double().numpy()
    for way in ("none", "weights", "sampling", "logits"):
        total = 0.0
        for row, c in zip(z, y.tolist(), strict=True):
            shifted = row + np.log(prior) if way == "logits" else row
            once = -np.log(np.exp(shifted[c]) / np.exp(shifted).sum())
            total += once / (3 * prior[c]) if way == "weights" else once
        assert Balance(way, COUNTS).loss(logits, y).item() == pytest.approx(total, rel=1e-5)
    weights = Balance("weights", COUNTS).weights
    assert (weights * COUNTS).sum().item() == pytest.approx(100)  # the mean over images is 1


def test_sampling_shows_every_class_as_often():
    y = torch.arange(3).repeat_interleave(torch.tensor([7, 3, 2]))
    rows = Balance("sampling", y.bincount()).rows(y, 0)
    assert torch.equal(y[rows].bincount(), torch.tensor([7, 7, 7]))
    times = rows.bincount(minlength=12)
    assert times[:7].eq(1).all() and set(times[7:10].tolist()) <= {2, 3} and set(times[10:].tolist()) <= {3, 4}
    assert torch.equal(Balance("none", y.bincount()).rows(y, 0), torch.arange(12))


def test_the_score_counts_classes_or_images():
    logits = torch.tensor([[2.0, 0.0]] * 8 + [[0.0, 2.0], [2.0, 0.0]])
    y = torch.tensor([0] * 8 + [1, 1])
    assert Balance("none", y.bincount()).score(logits, y).value == pytest.approx(0.9)
    assert Balance("logits", y.bincount()).score(logits, y).value == pytest.approx(0.75)
    broken = Balance("none", y.bincount()).score(logits * torch.nan, y)
    assert broken.value == 0 and broken < Balance("none", y.bincount()).score(-logits, y)


def test_the_temperature_is_the_likeliest():
    torch.manual_seed(0)
    sharp = torch.randn(4000, 5) * 2
    y = torch.multinomial(sharp.softmax(1), 1)[:, 0]
    found = temperature(sharp * 3, y)
    best = minimize_scalar(
        lambda t: F.cross_entropy(sharp.double() * 3 / t, y).item(), bounds=(0.5, 20), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=0.02) and found == pytest.approx(3, rel=0.1)
    assert calibration_error((sharp * 3).softmax(1), y) > 3 * calibration_error((sharp * 3 / found).softmax(1), y)
    # A few right answers do not make a model certain.
    few = F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    assert 0.5 < (few / temperature(few, torch.tensor([0, 1, 2]))).softmax(1).max() < 0.9


def test_the_calibration_error_is_the_papers():
    probability = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.6, 0.4], [0.3, 0.7]])
    y = torch.tensor([0, 1, 0, 1])
    # Bins of 1/15: 0.9 and 0.95 apart; each image alone but for none.
    wanted = (abs(1 - 0.9) + abs(0 - 0.95) + abs(1 - 0.6) + abs(1 - 0.7)) / 4
    assert calibration_error(probability, y) == pytest.approx(wanted, rel=1e-5)
