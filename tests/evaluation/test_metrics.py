import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from manyviews.evaluation.metrics import bootstrap, hits, per_class, top


def test_accuracies_are_scikit_learns():
    logits, y = torch.randn(200, 8), torch.randint(8, (200,))
    ranked = logits.argsort(1, descending=True)[:, :5]
    assert top(ranked, y) == pytest.approx(accuracy_score(y, logits.argmax(1)))
    assert top(ranked, y, 5) == pytest.approx(top_k_accuracy_score(y, logits, k=5, labels=range(8)))
    wanted = recall_score(y, logits.argmax(1), average=None)
    assert per_class(hits(ranked, y), y, 8) == pytest.approx(wanted.tolist())


def test_a_class_without_items_has_no_accuracy():
    assert per_class(torch.tensor([True, False]), torch.tensor([0, 2]), 4) == [1.0, None, 0.0, None]


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
