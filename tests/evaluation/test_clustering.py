import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation import Task
from manyviews.evaluation.protocols import clustering
from manyviews.evaluation.protocols.clustering import Clustering, agreement, kmeans

from .conftest import features_task, measured


def entropy(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def by_hand(y, c):
    """All five in loops, from their definitions."""
    n, ks = len(y), range(max(y + c) + 1)
    joint = {(a, b): sum((i, j) == (a, b) for i, j in zip(y, c, strict=True)) / n for a in ks for b in ks}
    py, pc = ([sum(v == k for v in x) / n for k in ks] for x in (y, c))
    mutual = sum(p * math.log(p / (py[a] * pc[b])) for (a, b), p in joint.items() if p > 0)
    pairs = list(itertools.combinations(range(n), 2))
    together = [(y[i] == y[j], c[i] == c[j]) for i, j in pairs]
    both, of_y, of_c = (sum(map(f, together)) for f in (all, lambda t: t[0], lambda t: t[1]))
    chance = of_y * of_c / len(pairs)
    return {
        "NMI": mutual / ((entropy(py) + entropy(pc)) / 2),
        "ARI": (both - chance) / ((of_y + of_c) / 2 - chance),
        "FMI": both / math.sqrt(of_y * of_c),
        "purity": sum(max(joint[a, b] for a in ks) for b in ks),
        "accuracy": max(sum(joint[order[b], b] for b in ks) for order in itertools.permutations(ks)),
    }


def test_agreement_is_its_definitions():
    y, c = torch.randint(4, (40,)), torch.randint(4, (40,))
    c = torch.where(torch.rand(40) < 0.6, (y + 1) % 4, c)
    assert agreement(y, c) == pytest.approx(by_hand(y.tolist(), c.tolist()))


def test_names_of_clusters_are_of_no_importance():
    y = torch.arange(30) % 3
    assert agreement(y, (y + 1) % 3) == pytest.approx(dict.fromkeys(("NMI", "ARI", "FMI", "purity", "accuracy"), 1))
    one = agreement(y, torch.zeros(30, dtype=torch.int64))
    assert one["NMI"] == one["ARI"] == 0 and one["purity"] == one["accuracy"] == pytest.approx(1 / 3)


def test_more_clusters_than_classes_raise_purity_and_not_accuracy():
    y = torch.arange(40) // 20
    found = agreement(y, torch.arange(40) // 10)
    assert found["purity"] == 1 and found["accuracy"] == 0.5


@pytest.fixture
def task():
    """Three directions with noise, lengths of no importance: 60 known images and 90 asked."""
    y = torch.arange(150) % 3
    x = (torch.eye(8)[y] + 0.25 * torch.randn(150, 8)) * (0.1 + 10 * torch.rand(150, 1))
    frozen = Task(x[:50], y[:50], x[50:60], y[50:60], x[60:], 3)
    return features_task(frozen), y[60:]


@pytest.mark.parametrize("fit", ["test", "train"])
def test_directions_are_found(task, fit):
    found = measured(Clustering(fit=fit), *task)
    assert found.name == "NMI" and found.interval is None and 0.7 < found.value <= 1
    assert found.details["accuracy"] > 0.9 and found.details["NMI, deviation"] < 0.1
    assert found.setting["images"] == {"test": 90, "train": 60}[fit] and found.setting["clusters"] == 3
    assert found == measured(Clustering(fit=fit), *task)


def test_numbers_are_means_over_runs(task):
    known, y = task
    noisy = dataclasses.replace(known, frozen=dataclasses.replace(known.frozen, test_x=torch.randn(90, 8)))
    found = measured(Clustering(runs=3, starts=1), noisy, y, 5)
    x = F.normalize(noisy.frozen.test_x, dim=1)
    each = [agreement(y, kmeans(x, x, 3, seed, 1)) for seed in (5, 6, 7)]
    assert found.value == pytest.approx(np.mean([e["NMI"] for e in each]))
    assert found.details["NMI, deviation"] == pytest.approx(np.std([e["NMI"] for e in each]))
    assert found.details["ARI"] == pytest.approx(np.mean([e["ARI"] for e in each]))
    assert abs(found.details["ARI"]) < 0.1


def test_labels_change_nothing_but_the_numbers(task, monkeypatch):
    known, y = task
    seen = []
    monkeypatch.setattr(clustering, "agreement", lambda y, c: seen.append(c) or agreement(y, c))
    measured(Clustering(runs=1), known, y)
    measured(Clustering(runs=1), known, y.flip(0))
    assert torch.equal(*seen)


def test_minibatches_find_them_too(task, monkeypatch):
    monkeypatch.setattr(clustering, "_EXACT", 0)
    assert measured(Clustering(), *task).value > 0.7


def test_names_of_classes_without_images_make_no_clusters(task):
    known, y = task
    named = dataclasses.replace(known, frozen=dataclasses.replace(known.frozen, classes=1000))
    assert measured(Clustering(), named, y) == measured(Clustering(), known, y)


def test_what_cannot_be_clustered_is_said(task):
    known, y = task
    few = dataclasses.replace(known, frozen=dataclasses.replace(known.frozen, test_x=known.frozen.test_x[:2]))
    with pytest.raises(UserError, match="3 clusters need"):
        measured(Clustering(), few, y[:2])
    with pytest.raises(UserError, match="Known: test, train"):
        Clustering(fit="tset")
