"""A small network on features, against plain PyTorch."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from manyviews.evaluation import Task, linear_probe
from manyviews.evaluation.protocols.mlp import MLP


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


def test_networks_trained_at_once_are_plain_ones_and_the_first_best_epoch_answers():
    layers = 3
    task, _ = problem(noise=2.0)
    lrs = (1e-3, 1e-2)
    answer = MLP(layers=layers, lrs=lrs, dropout=0.0).run(task, 3)
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
    line = linear_probe(task).logits.argmax(1)
    assert (MLP().run(task, 0).ranked[:, 0] == y[600:]).double().mean() > 0.9
    assert (line == y[600:]).double().mean() < 0.65


def test_a_network_depends_on_its_seed_and_not_on_those_beside_it_nor_on_test_features(few_steps):
    task, _ = problem(noise=2.0)
    state = torch.get_rng_state()
    grid, alone = MLP(lrs=(1e-4, 1e-3)).run(task, 1), MLP(lrs=(1e-3,)).run(task, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert grid.validation[1] == alone.validation[0]
    torch.manual_seed(77)
    other_test = dataclasses.replace(task, test_x=-task.test_x.flip(0))
    again, other, poisoned = (MLP(lrs=(1e-3,)).run(t, s) for t, s in ((task, 1), (task, 2), (other_test, 1)))
    assert torch.equal(again.ranked, alone.ranked) and again.validation == alone.validation
    assert not torch.equal(other.ranked, alone.ranked)
    assert poisoned.setting == alone.setting and poisoned.validation == alone.validation


def test_a_diverged_network_is_not_chosen_and_hidden_layers_have_a_widest(few_steps):
    task, _ = problem(noise=2.0)
    assert MLP(lrs=(1e30, 1e-3)).run(task, 0).setting["lr"] == 1e-3
    narrow, all_units, more = (MLP(lrs=(1e-3,), widest=w).run(task, 0).validation for w in (4, 16, 1000))
    assert narrow != all_units == more
