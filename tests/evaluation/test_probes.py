import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from torch import nn
from torch.nn import functional as F

from manyviews.data import open_source
from manyviews.evaluation import Pixels, Task, linear_probe
from manyviews.evaluation.features import encode
from manyviews.evaluation.finetune import balanced
from manyviews.evaluation.probes import few_shot, few_shot_5, few_shot_10, mlp
from manyviews.evaluation.rotation import rotation
from manyviews.evaluation.task import ImageTask

from .test_layers import LOOK, image_task

# -- a small network ---------------------------------------------------------------------------------------------------


def problem(n=600, d=8, classes=3, noise=1.0):
    """Features on scales from 0.01 to 100, and labels a linear map of them gives but for noise."""
    z = torch.randn(n, d)
    y = (z @ torch.randn(d, classes) + noise * torch.randn(n, classes)).argmax(1)
    x = z * torch.logspace(-2, 2, d) + 5
    a, b = n // 2, 3 * n // 4
    return Task(x[:a], y[:a], x[a:b], y[a:b], x[b:], classes), y[b:]


def by_the_book(task, layers, lr, epochs, seed):
    """A network in plain PyTorch, without dropout: validation accuracy and test logits after each epoch."""
    scaler = StandardScaler().fit(task.train_x.double())
    x, held, asked = (
        torch.from_numpy(scaler.transform(v.double())).float() for v in (task.train_x, task.val_x, task.test_x)
    )
    d = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    linear = [nn.Linear(a, b) for a, b in pairwise([d, *[2 * d] * (layers - 1), task.classes])]
    with torch.no_grad():
        for layer in linear:
            for w in (layer.weight, layer.bias):
                w.uniform_(-1 / math.sqrt(layer.in_features), 1 / math.sqrt(layer.in_features), generator=generator)
    net = nn.Sequential(*[m for layer in linear for m in (layer, nn.ReLU())][:-1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-4)
    batches = math.ceil(len(x) / 256)
    epochs = max(epochs, math.ceil(500 / batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    found = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(256):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), task.train_y[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found.append(((net(held).argmax(1) == task.val_y).double().mean().item(), net(asked)))
    return found


@pytest.mark.parametrize("layers", [2, 3])
def test_networks_trained_at_once_are_plain_ones_and_the_first_best_epoch_answers(layers):
    task, _ = problem(noise=2.0)
    lrs = (1e-3, 1e-2)
    answer = mlp(task, 3, layers=layers, lrs=lrs, dropout=0.0)
    alone = [by_the_book(task, layers, lr, 6, 3) for lr in lrs]
    held = [[a for a, _ in one] for one in alone]
    for lr, accuracies, (setting, accuracy) in zip(lrs, held, answer.validation, strict=True):
        assert setting["lr"] == lr and accuracy == pytest.approx(max(accuracies), abs=0.01)
        assert accuracies[int(setting["epochs"]) - 1] == pytest.approx(max(accuracies), abs=0.01)
        assert max(accuracies[: int(setting["epochs"]) - 1], default=0) <= accuracy
    assert answer.setting == max(answer.validation, key=lambda t: t[1])[0]
    logits = alone[lrs.index(answer.setting["lr"])][int(answer.setting["epochs"]) - 1][1]
    assert (answer.ranked[:, 0] == logits.argmax(1)).double().mean() > 0.98
    assert 1 < answer.setting["epochs"] < 250  # it overfits: neither the first nor the last


def test_a_network_finds_what_no_line_separates():
    x = torch.randn(900, 6)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    task = Task(x[:500], y[:500], x[500:600], y[500:600], x[600:], 2)
    line = linear_probe(task.train_x, task.train_y, task.val_x, task.val_y, task.test_x, classes=2).logits.argmax(1)
    for layers in (2, 3):
        assert (mlp(task, 0, layers=layers).ranked[:, 0] == y[600:]).double().mean() > 0.93
    assert (line == y[600:]).double().mean() < 0.65


def test_a_network_separates_what_can_be_separated():
    y = torch.arange(400) % 4
    x = (10 * torch.eye(4)[y] + torch.randn(400, 4)) * torch.logspace(-3, 3, 4)
    task = Task(x[:200], y[:200], x[200:300], y[200:300], x[300:], 4)
    answer = mlp(task, 0)
    assert torch.equal(answer.ranked[:, 0], y[300:])
    assert answer.ranked.shape == (100, 4)


def test_a_network_does_not_depend_on_those_beside_it_nor_on_the_global_random_state():
    task, _ = problem()
    state = torch.get_rng_state()
    grid, alone = mlp(task, 1, lrs=(1e-4, 1e-3)), mlp(task, 1, lrs=(1e-3,))
    assert torch.equal(torch.get_rng_state(), state)
    assert grid.validation[1] == alone.validation[0]
    torch.manual_seed(77)
    again, other = mlp(task, 1, lrs=(1e-3,)), mlp(task, 2, lrs=(1e-3,))
    assert torch.equal(again.ranked, alone.ranked) and again.validation == alone.validation
    assert not torch.equal(other.ranked, alone.ranked)


def test_test_features_do_not_choose_the_epoch_and_a_diverged_network_is_not_chosen():
    task, _ = problem(noise=2.0)
    honest, poisoned = mlp(task, 0), mlp(dataclasses.replace(task, test_x=-task.test_x.flip(0)), 0)
    assert honest.setting == poisoned.setting and honest.validation == poisoned.validation
    assert mlp(task, 0, lrs=(1e30, 1e-3)).setting["lr"] == 1e-3


def test_hidden_layers_have_a_widest():
    task, _ = problem()
    answers = [mlp(task, 0, lrs=(1e-3,), widest=w) for w in (4, 16, 1000)]
    assert answers[0].validation != answers[1].validation == answers[2].validation


# -- a few labels ------------------------------------------------------------------------------------------------------


def named(task, ids):
    """A task on features alone, whose images have names."""

    def identify():
        return ids

    source = open_source(np.zeros((len(ids), 2, 2, 3), np.uint8))
    known = dataclasses.replace(source, identify=identify)
    return ImageTask(nn.Identity(), task, known, known, 2, LOOK["mean"], LOOK["std"], torch.device("cpu"))


def test_few_shots_are_scikit_learns_over_the_draws():
    task, y = problem(n=800, d=12, classes=4, noise=1.5)
    ids = [f"{i}.png" for i in range(600)]
    found = few_shot_5(named(task, ids), y, 2)
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
    for measure in (few_shot_5, few_shot_10):
        found = measure(named(task, [f"{i}.png" for i in range(200)]), y[200:], 0)
        assert found.value == 1 and found.interval == (1, 1) and found.details["nearest class mean"] == 1


def test_draws_follow_the_seed_and_the_names_and_not_the_order():
    task, y = problem(n=400, noise=2.0)
    ids = [f"{i}.png" for i in range(300)]
    first, again, other = (few_shot(named(task, ids), y, seed, shots=5) for seed in (0, 0, 1))
    assert first == again and first.value != other.value
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    x, labels = torch.cat([task.train_x, task.val_x])[order], torch.cat([task.train_y, task.val_y])[order]
    turned = Task(x[:100], labels[:100], x[100:], labels[100:], task.test_x, task.classes)
    shuffled = few_shot(named(turned, [ids[i] for i in order]), y, 0, shots=5)
    assert shuffled.value == pytest.approx(first.value, abs=2e-3)


def test_a_class_with_fewer_images_than_shots_and_one_without_any():
    task, y = problem(n=400, classes=3)
    keep = torch.ones(len(task.train_y), dtype=torch.bool)
    keep[(task.train_y == 1).nonzero()[3:]] = False
    few = Task(task.train_x[keep], task.train_y[keep], task.val_x[:0], task.val_y[:0], task.test_x, 4)
    found = few_shot(named(few, [f"{i}.png" for i in range(int(keep.sum()))]), y, 0, shots=10)
    assert 0.3 < found.value <= 1 and 0 < found.details["nearest class mean"] <= 1
    assert found.setting["images"] == 23  # of the images, and not of the shots that were asked for


def test_a_few_more_labels_help():
    task, y = problem(n=1600, d=16, noise=0.5)
    known = named(task, [f"{i}.png" for i in range(1200)])
    assert few_shot(known, y, 0, shots=40).value > few_shot_10(known, y, 0).value > few_shot_5(known, y, 0).value


# -- rotations ---------------------------------------------------------------------------------------------------------


def skies(count, seed=0):
    """Noise that is brighter above."""
    rng = np.random.default_rng(seed)
    light = np.linspace(60, -60, 12)[None, :, None, None]
    pixels = 128 + light + rng.normal(0, 30, (count, 12, 12, 3))
    return open_source((pixels.clip(0, 255).astype(np.uint8), np.arange(count) % 2))


def test_pixels_know_which_way_is_up_whatever_the_labels():
    task, y = image_task(Pixels(), skies(120), 60, 90)
    found = rotation(task, y, 0)
    assert found.value == 1 and list(found.details) == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    other = dataclasses.replace(task, frozen=dataclasses.replace(task.frozen, train_y=task.frozen.train_y * 0))
    assert rotation(other, y.flip(0), 0) == found


def test_an_encoder_that_averages_over_all_places_knows_no_rotation():
    class Average(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).round(decimals=3)  # the order of a sum leaves no trace

    task, y = image_task(Average(), skies(400), 200, 300)
    found = rotation(task, y, 0)
    assert found.value == 0.25 and sum(found.details.values()) == pytest.approx(1)


def test_rotations_are_those_of_images_and_the_probe_is_the_linear_one(encoder, pictures):
    source = pictures(130)
    task, y = image_task(encoder, source, 60, 90)
    images = [source.load(i) for i in range(130)]
    x = []
    for turn in (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
        turned = [np.asarray(image if turn is None else image.transpose(turn)) for image in images]
        x.append(
            encode(encoder, torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2), mean=(0.5,) * 3, std=(0.25,) * 3)
        )
    x, turns = torch.stack(x, 1), torch.arange(4).repeat(130, 1)
    parts = [(v[rows].flatten(0, 1)) for rows in (slice(0, 60), slice(60, 90), slice(90, None)) for v in (x, turns)]
    alone = linear_probe(*parts[:5], classes=4, seed=4)
    found = rotation(task, y, 4)
    right = (alone.logits.argmax(1) == parts[5]).double().view(-1, 4)
    assert found.value == pytest.approx(right.mean().item(), abs=0.05)
    assert list(found.details.values()) == pytest.approx(right.mean(0).tolist(), abs=0.15)
    low, high = found.interval
    assert low < found.value < high


def test_only_validation_images_choose_the_probe_of_rotations(encoder, pictures):
    task, y = image_task(encoder, pictures(130, noise=100), 60, 90)
    found = rotation(task, y, 0)
    others = rotation(dataclasses.replace(task, asked=skies(40)), y, 0)
    assert found.setting == others.setting and found.value != others.value
    assert rotation(task, y, 0, images=20) == rotation(task, y, 0, images=20) != found
