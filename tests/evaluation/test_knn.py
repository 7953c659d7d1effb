import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from manyviews.data import open_source
from manyviews.evaluation import Pixels, extract, knn, neighbors, vote
from manyviews.evaluation import knn as package_knn
from manyviews.evaluation.linear import Standardizer


@pytest.fixture
def data():
    """Features with some structure, of 4 classes."""
    x = torch.randn(400, 12)
    y = (x[:, :4] + 0.8 * torch.randn(400, 4)).argmax(1)
    return x[:300], y[:300], x[300:], y[300:]


def by_hand(train_x, train_y, test_x, k, temperature, classes):
    """The paper's sum in loops: w_i = exp(s_i / t), the class with the largest sum, the lowest of equals."""
    found = []
    for q in test_x.double():
        s = [float(q @ x / (q.norm() * x.norm())) for x in train_x.double()]
        votes = [0.0] * classes
        for i in sorted(range(len(s)), key=lambda i: -s[i])[:k]:
            votes[int(train_y[i])] += 1 if temperature is None else math.exp(s[i] / temperature)
        found.append(max(range(classes), key=lambda c: votes[c]))
    return torch.tensor(found)


@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("temperature", [None, 0.1, 1.0])
def test_votes_are_the_papers_sum(data, k, temperature):
    train_x, train_y, test_x, _ = data
    s, i = neighbors(train_x, test_x, k)
    found = vote(s, train_y[i], 4, temperature)[:, 0]
    assert torch.equal(found, by_hand(train_x, train_y, test_x, k, temperature, 4))


def test_accuracies_are_scikit_learns(data):
    train_x, train_y, test_x, test_y = data
    found = knn(*data, ks=(1, 5, 20, 200), temperature=0.07)
    for k in (1, 5, 20, 200):
        for ours, weights in (
            (found.majority, "uniform"),
            (found.weighted, lambda distance: np.exp((1 - distance) / 0.07)),
        ):
            model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
            theirs = model.fit(train_x.double(), train_y).score(test_x.double(), test_y)
            assert ours[k] == pytest.approx(theirs, abs=1e-9)


def test_blocks_change_nothing(data, monkeypatch):
    train_x, _, test_x, _ = data
    whole = neighbors(train_x, test_x, 50)
    module = __import__("sys").modules[package_knn.__module__]
    monkeypatch.setattr(module, "_KEYS", 37)
    monkeypatch.setattr(module, "_QUERIES", 11)
    blocks = neighbors(train_x, test_x, 50)
    torch.testing.assert_close(blocks[0], whole[0])
    assert torch.equal(blocks[1], whole[1])


def test_an_image_among_its_own_neighbors_is_always_right(data):
    train_x, train_y, _, _ = data
    assert knn(train_x, train_y, train_x, train_y, ks=(1,)).majority == {1: 1.0}


def test_a_hot_vote_is_the_majority_and_a_cold_one_the_nearest(data):
    train_x, train_y, test_x, test_y = data
    found = knn(train_x, train_y % 2, test_x, test_y % 2, ks=(15,), temperature=1e6)  # 15 votes of two are no tie
    assert found.weighted == found.majority
    cold = knn(*data, ks=(1, 15), temperature=1e-6).weighted  # exp(1 / t) would overflow
    assert cold[15] == cold[1]


def test_lengths_of_features_are_of_no_importance(data):
    train_x, train_y, test_x, test_y = data
    scaled = train_x * torch.rand(300, 1).add(0.1), train_y, 100 * test_x, test_y
    assert knn(*scaled, ks=(5,)) == knn(*data, ks=(5,))


def test_ties_go_to_the_lowest_class_and_ranks_are_ordered():
    s = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    assert vote(s, torch.tensor([[3, 1, 3, 1, 2]]), 5, None, top=5).tolist() == [[1, 3, 2, 0, 4]]


def test_more_neighbors_than_there_are_is_dropped_or_all(data):
    train_x, train_y, test_x, test_y = data
    assert list(knn(train_x[:30], train_y[:30], test_x, test_y).majority) == [1, 5, 10, 20]
    assert list(knn(train_x[:30], train_y[:30], test_x, test_y, ks=(50,)).majority) == [30]


@pytest.mark.shared_data
def test_raw_pixels_of_cifar_10(shared_data):
    """45.0 % with all images; a part of them suffices to see that standardization and order of channels are right."""
    train, test = (open_source(shared_data / f"cifar10_{part}.parquet") for part in ("train", "test"))
    train, test = train.subset(range(5000)), test.subset(range(1000)).with_classes(train.classes)
    a, b = (extract(Pixels(), s, test_size=32, mean=(0.5,) * 3, std=(0.25,) * 3) for s in (train, test))
    standard = Standardizer.of(a.x)
    found = knn(standard(a.x), a.labels, standard(b.x), b.labels, ks=(20,)).weighted[20]
    assert 0.33 < found < 0.45
