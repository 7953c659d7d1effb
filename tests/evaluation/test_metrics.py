import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    recall_score,
    top_k_accuracy_score,
)

from manyviews.evaluation.metrics import Ranking, bootstrap, hits, per_class, top


def test_accuracies_are_scikit_learns():
    logits, y = torch.randn(200, 8), torch.randint(8, (200,))
    ranked = logits.argsort(1, descending=True)[:, :5]
    assert top(ranked, y) == pytest.approx(accuracy_score(y, logits.argmax(1)))
    assert top(ranked, y, 5) == pytest.approx(top_k_accuracy_score(y, logits, k=5, labels=range(8)))
    wanted = recall_score(y, logits.argmax(1), average=None)
    assert per_class(hits(ranked, y), y, 8) == pytest.approx(wanted.tolist())


def test_a_class_without_items_has_no_accuracy():
    right, y = torch.tensor([True, False]), torch.tensor([0, 2])
    assert per_class(right, y, 4) == [1.0, None, 0.0, None]


@pytest.mark.parametrize("values", [[0, 1], [-1, 0, 1]])
def test_the_interval_is_that_of_drawing_items_one_by_one(values):
    x = np.random.default_rng(0).choice(values, size=150, p=[0.7, 0.3] if len(values) == 2 else [0.2, 0.5, 0.3])
    means = [np.random.default_rng(i).choice(x, size=150).mean() for i in range(4000)]
    assert bootstrap(torch.from_numpy(x)) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.012)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).random((400, 300)) < 0.7
    held = [low <= 0.7 <= high for low, high in (bootstrap(torch.from_numpy(d), resamples=1000) for d in draws)]
    assert 0.91 < np.mean(held) < 0.98


def test_the_interval_is_the_seeds():
    x = torch.rand(100)
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)


def test_the_paired_interval_of_a_difference_is_the_narrow_one():
    a = torch.rand(500) < 0.6
    b = a ^ (torch.rand(500) < 0.02)  # nearly the same answers
    low, high = bootstrap(a.double() - b.double())
    alone = bootstrap(a)
    assert high - low < 0.5 * (alone[1] - alone[0])


def listed(*relevant, missed=0):
    """One class whose items are ranked like this, and what is relevant and was not found."""
    scores = [-float(i) for i in range(len(relevant))] + [-float("inf")] * missed
    return Ranking.of(torch.tensor(scores)[:, None], torch.tensor([*map(bool, relevant), *[True] * missed])[:, None])


def test_average_precision_by_hand():
    assert listed(1, 1, 0, 0).average_precision().tolist() == [1.0]
    assert listed(0, 0, 0, 1).average_precision().tolist() == [0.25]
    # Ranks 1 and 4 of three relevant ones, the third of which was not found: not 0.75, the mean over those found.
    assert listed(1, 0, 0, 1, missed=1).average_precision().tolist() == [0.5]
    assert listed(missed=2).average_precision().tolist() == [0.0]
    nan = Ranking.of(torch.tensor([[1.0], [float("nan")]]), torch.tensor([[True], [True]]))
    assert nan.average_precision().tolist() == [0.5]  # a network that diverged ranks nothing


@pytest.mark.parametrize("digits", [1, 8])
def test_average_precisions_are_scikit_learns(digits):
    """With many equal scores, and with weights."""
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(80, 6)).round(digits), rng.random((80, 6)) < [0.02, 0.1, 0.3, 0.5, 0.9, 1]
    targets[0] = True
    ranking = Ranking.of(torch.from_numpy(scores), torch.from_numpy(targets))
    weight = rng.integers(0, 4, 80).astype(np.float64)
    weight[0] = 1
    for w in (None, weight):
        wanted = [average_precision_score(targets[:, c], scores[:, c], sample_weight=w) for c in range(6)]
        np.testing.assert_allclose(ranking.average_precision(w), wanted, rtol=1e-12)


def test_a_class_without_items_has_no_average_precision():
    ranking = Ranking.of(torch.rand(5, 2), torch.tensor([[True, False]] * 5))
    for found in (ranking.average_precision(), ranking.eleven_points()):
        assert found[0] == 1 and np.isnan(found[1])
    assert ranking.bootstrap(resamples=50) == (1.0, 1.0)
    weight = np.array([0.0, 0, 1, 1, 1])
    both = Ranking.of(torch.rand(5, 2), torch.tensor([[True, True]] * 2 + [[True, False]] * 3))
    assert both.average_precision(weight)[0] == 1 and np.isnan(both.average_precision(weight)[1])


def eleven_points(scores, targets):
    """VOC 2007's loop."""
    order = np.argsort(-scores)
    hits, total = 0, int(targets.sum())
    curve = []
    for k, i in enumerate(order, 1):
        hits += int(targets[i])
        curve.append((hits, hits / k))
    best = [max([p for h, p in curve if h * 10 >= t * total], default=0.0) for t in range(11)]
    return sum(best) / 11


def test_eleven_points_are_voc_2007s():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(100, 5)), rng.random((100, 5)) < [0.05, 0.1, 0.2, 0.5, 0.9]
    targets[0] = True
    found = Ranking.of(torch.from_numpy(scores), torch.from_numpy(targets)).eleven_points()
    np.testing.assert_allclose(found, [eleven_points(scores[:, c], targets[:, c]) for c in range(5)])
    assert listed(1, 0, 0, 1, missed=1).eleven_points().tolist() == [pytest.approx((4 * 1 + 3 * 0.5) / 11)]
    tied = Ranking.of(torch.zeros(4, 1), torch.tensor([[True], [False], [False], [False]]))
    assert tied.eleven_points().tolist() == [0.25]  # in whichever order they come


def test_the_interval_of_a_mean_average_precision_is_that_of_drawing_images():
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.3
    scores = targets + rng.normal(size=(60, 3))
    ranking = Ranking.of(torch.from_numpy(scores), torch.from_numpy(targets))
    means = []
    for _ in range(1500):
        rows = rng.integers(0, 60, 60)
        drawn = Ranking.of(torch.from_numpy(scores[rows]), torch.from_numpy(targets[rows]))
        means.append(drawn.average_precision().mean())
    assert ranking.bootstrap(seed=1) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.015)
    assert ranking.bootstrap(seed=1, resamples=50) == ranking.bootstrap(seed=1, resamples=50)
    assert ranking.bootstrap(seed=1, resamples=50) != ranking.bootstrap(seed=2, resamples=50)


def test_resamples_without_any_item_of_a_class_do_not_count():
    scores = torch.linspace(1, 0, 60)[:, None].expand(60, 2)
    targets = torch.zeros(60, 2, dtype=torch.bool)
    targets[[3, 20], 0] = True  # a seventh of the resamples have neither
    low, high = Ranking.of(scores, targets).bootstrap(resamples=200)
    assert 0 < low < high <= 1
