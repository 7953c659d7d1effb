"""A handful of labels, against scikit-learn over the draws."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from manyviews.evaluation import Task
from manyviews.evaluation.protocols.few_shot import FewShot5, FewShot10
from manyviews.evaluation.subsets import balanced

from .conftest import features_task, measured
from .test_mlp import problem


def test_few_shots_are_scikit_learns_over_the_draws():
    task, y = problem(n=800, d=12, classes=4, noise=1.5)
    ids = [f"{i}.png" for i in range(600)]
    found = measured(FewShot5(), features_task(task, ids), y, 2)
    x, labels = torch.cat([task.train_x, task.val_x]), torch.cat([task.train_y, task.val_y])
    scaler = StandardScaler().fit(x.double())
    x, asked = (normalize(scaler.transform(v.double())) for v in (x, task.test_x))
    logistic, nearest, drawn, right = [], [], set(), []
    for draw in range(10):
        rows = balanced(ids, labels, 20 / 600, 20 + draw).numpy()
        assert torch.bincount(labels[rows]).tolist() == [5] * 4
        drawn.add(tuple(rows))
        few = x[rows], labels[rows]
        right.append(LogisticRegression(tol=1e-8, max_iter=10000).fit(*few).predict(asked) == y.numpy())
        logistic.append(right[-1].mean())
        nearest.append(NearestCentroid().fit(*few).score(asked, y))
    assert len(drawn) == 10
    assert found.value == pytest.approx(np.mean(logistic), abs=1e-3)
    assert found.details["nearest class mean"] == pytest.approx(np.mean(nearest), abs=1e-3)
    assert found.details["standard deviation over draws"] == pytest.approx(np.std(logistic, ddof=1), abs=1e-3)
    assert found.details["lowest"] == pytest.approx(min(logistic), abs=6e-3)
    assert found.details["highest"] == pytest.approx(max(logistic), abs=6e-3)
    # Of the mean over draws of each test image: the bootstrap is near the normal one.
    of_images = np.mean(right, 0)
    wanted = stats.norm.interval(0.95, of_images.mean(), of_images.std() / len(y) ** 0.5)
    assert found.interval == pytest.approx(wanted, abs=4e-3)
    assert found.setting == {"images": 20, "draws": 10, "C": 1}


def test_few_shots_of_what_can_be_separated():
    y = torch.arange(300) % 3
    x = (10 * torch.eye(3)[y] + torch.randn(300, 3)) * torch.logspace(-3, 3, 3)
    task = Task(x[:150], y[:150], x[150:200], y[150:200], x[200:], 3)
    for kind in (FewShot5, FewShot10):
        found = measured(kind(draws=3), features_task(task, [f"{i}.png" for i in range(200)]), y[200:])
        assert found.value == 1 and found.interval == (1, 1) and found.details["nearest class mean"] == 1


def test_draws_follow_the_seed_and_the_names_and_not_the_order():
    task, y = problem(n=400, noise=2.0)
    ids = [f"{i}.png" for i in range(300)]
    first, again, other = (measured(FewShot5(draws=4), features_task(task, ids), y, seed) for seed in (0, 0, 1))
    assert first == again and first.value != other.value
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    x, labels = torch.cat([task.train_x, task.val_x])[order], torch.cat([task.train_y, task.val_y])[order]
    turned = Task(x[:100], labels[:100], x[100:], labels[100:], task.test_x, task.classes)
    shuffled = measured(FewShot5(draws=4), features_task(turned, [ids[i] for i in order]), y)
    assert shuffled.value == pytest.approx(first.value, abs=2e-3)


def test_a_class_with_fewer_images_than_shots_and_one_without_any():
    task, y = problem(n=400, classes=3)
    keep = torch.ones(len(task.train_y), dtype=torch.bool)
    keep[(task.train_y == 1).nonzero()[3:]] = False
    few = Task(task.train_x[keep], task.train_y[keep], task.val_x[:0], task.val_y[:0], task.test_x, 4)
    found = measured(FewShot10(draws=4), features_task(few, [f"{i}.png" for i in range(int(keep.sum()))]), y)
    assert 0.3 < found.value <= 1 and 0 < found.details["nearest class mean"] <= 1
    assert found.setting["images"] == 23  # of the images, and not of the shots that were asked for
