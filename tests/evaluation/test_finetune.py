"""Protocols that look at the images again: against loops written from the papers' words, and what they must not do."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from manyviews.data import BadImage, load_canvases, open_source
from manyviews.data.loader import order
from manyviews.data.source import unlabeled
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Pixels, Task, extract, finetune, linear_probe
from manyviews.evaluation.finetune import balanced, linear_augmented, semi_1, semi_10
from manyviews.types import Canvases
from manyviews.views import Global, Views

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LOOK = {"mean": MEAN, "std": STD}


def asked(encoder, known, train, test, progress=None):
    """To learn from the first `train` images of `known`, choose with the rest, and say what those of `test` are."""
    (x, y), (test_x, _) = ((f.x, f.labels) for f in (extract(encoder, s, test_size=12, **LOOK) for s in (known, test)))
    frozen = Task(x[:train], y[:train], x[train:], y[train:], test_x, len(known.classes))
    hidden = [dataclasses.replace(s, annotate=unlabeled) for s in (known, test)]
    return ImageTask(encoder, frozen, *hidden, 12, MEAN, STD, torch.device("cpu"), progress)


@pytest.fixture
def logits(monkeypatch):
    """Answers hold logits, where they else hold the likeliest classes."""
    monkeypatch.setattr(finetune, "_ranked", lambda logits: logits)


def batches(known, rows, epoch, steps, batch, seed):
    """(crops, rows) of each step: an order of all images cut into equal parts, an image at a time."""
    canvases, _ = load_canvases(known.subset(rows), 12)
    kind = Global(1, size=12, area=(0.08, 1.0), color=None)
    places = order(seed, epoch, len(rows))
    for step in range(steps):
        chosen = places[step * batch : (step + 1) * batch]
        crops = []
        for i in chosen:
            one = Canvases(canvases.pixels[i : i + 1], canvases.extent[i : i + 1], canvases.index[i : i + 1])
            crops.append(Views(one, (kind,), seed, epoch, MEAN, STD)["global", 0])
        yield torch.cat(crops), torch.as_tensor(rows)[torch.from_numpy(chosen)]


def cosine(lr, step, steps):
    return lr / 2 * (1 + math.cos(math.pi * step / steps))


def clean(source):
    pixels = torch.stack([torch.tensor(np.asarray(source.load(i))).permute(2, 0, 1) for i in range(len(source))])
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# -- the linear layer on crops ---------------------------------------------------------------------------------------


def test_the_linear_layer_is_the_papers(encoder, pictures, logits):
    """In float64, with the gradient of softmax and cross-entropy by hand; scikit-learn standardizes."""
    known, test = pictures(50), pictures(9, seed=2)
    found = linear_augmented(asked(encoder, known, 40, test), 3, epochs=3, lr=0.05, batch=20)
    assert found.setting == {"lr": 0.05, "epochs": 3} and found.validation == [] and found.others == {}

    y = np.asarray(known.labels)
    with torch.no_grad():
        scaler = StandardScaler().fit(encoder(clean(known)).double())  # all 50: nothing is chosen with the last ten
        weight, bias = np.zeros((8, 3)), np.zeros(3)
        velocity = [np.zeros((8, 3)), np.zeros(3)]
        for step in range(9):  # 50 images are three equal batches of 16 and two left out
            if step % 3 == 0:
                epoch = batches(known, np.arange(50), step // 3, 3, 16, seed=3)
            crops, rows = next(epoch)
            x = scaler.transform(encoder(crops).double())
            error = np.exp(x @ weight + bias)
            error /= error.sum(1, keepdims=True)
            error -= np.eye(3)[y[rows]]
            velocity = [0.9 * velocity[0] + x.T @ error / 16, 0.9 * velocity[1] + error.mean(0)]
            weight -= cosine(0.05, step, 9) * velocity[0]
            bias -= cosine(0.05, step, 9) * velocity[1]
        wanted = scaler.transform(encoder(clean(test)).double()) @ weight + bias
    np.testing.assert_allclose(found.ranked.numpy(), wanted, atol=1e-4)


def test_crops_teach_what_the_clean_images_show(pictures):
    known, test = pictures(200, noise=30), pictures(60, seed=4, noise=30)
    for encoder in (Pixels(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        found = linear_augmented(asked(encoder, known, 150, test), 0, epochs=10, lr=0.05)
        assert (found.ranked[:, 0].numpy() == test.labels).mean() > 0.9


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_is_the_papers(learner, pictures, logits):
    """Nesterov's momentum by hand, BatchNorm with the batch's statistics, no weight decay."""
    known, test = pictures(40), pictures(9, seed=2)
    task = asked(learner, known, 32, test)
    found = finetune.finetune(task, 5, lrs=(0.05,), epochs=(3,), batch=17)

    model = nn.Sequential(copy.deepcopy(learner), nn.Linear(8, 3)).train()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    y = torch.as_tensor(known.labels)
    for step in range(6):
        if step % 2 == 0:
            epoch = batches(known, np.arange(32), step // 2, 2, 16, seed=5)
        x, rows = next(epoch)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y[rows]), list(model.parameters()))
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(cosine(0.05, step, 6) * (g + 0.9 * v))
    with torch.no_grad():
        wanted = model.eval()(clean(test))
        held = (model(clean(known))[32:].argmax(1) == y[32:]).double().mean().item()
    torch.testing.assert_close(found.ranked, wanted, rtol=1e-3, atol=1e-3)
    assert found.setting == {"lr": 0.05, "epochs": 3, "images": 32}
    assert found.validation == [({"lr": 0.05, "epochs": 3}, pytest.approx(held))]


class Gray(nn.Module):
    """The mean of an image's channels, four times: it says nothing of its color, and can learn to."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.mix.weight, 1 / 3)

    def forward(self, x):
        return self.mix(x).mean((2, 3))


def colored(n, seed):
    """Red or green, equally bright on average."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    tint = np.where(y == 0, 1, -1)[:, None, None, None] * np.array([50, -50, 0])
    pixels = rng.integers(60, 160, (n, 1, 1, 1)) + tint + rng.normal(0, 20, (n, 12, 12, 3))
    return open_source((pixels.clip(0, 255).astype(np.uint8), y))


def test_fine_tuning_finds_what_frozen_features_lack():
    known, test = colored(240, 0), colored(100, 1)
    task = dataclasses.replace(asked(Gray(), known, 200, test), mean=(0.5,) * 3, std=(0.25,) * 3)
    x = task.frozen
    found = {
        "probe": linear_probe(x.train_x, x.train_y, x.val_x, x.val_y, x.test_x, classes=2).logits.argmax(1),
        "augmented": linear_augmented(task, 0, epochs=10).ranked[:, 0],
        "tuned": finetune.finetune(task, 0, lrs=(0.02, 0.1), epochs=(20,), batch=50).ranked[:, 0],
    }
    right = {k: (v.numpy() == test.labels).mean() for k, v in found.items()}
    assert right["probe"] < 0.7 and right["augmented"] < 0.7 and right["tuned"] > 0.95, right


def test_the_first_best_on_validation_images_answers(learner, pictures, logits):
    known, test = pictures(120, noise=40), pictures(30, seed=1)
    task = asked(learner, known, 90, test)
    found = finetune.finetune(task, 0, lrs=(1e-6, 0.1, 1e12), epochs=(1, 12), batch=30)
    tried = [(s["lr"], s["epochs"]) for s, _ in found.validation]
    assert tried == [(1e-6, 1), (0.1, 1), (1e12, 1), (1e-6, 12), (0.1, 12), (1e12, 12)]
    accuracies = [a for _, a in found.validation]
    assert accuracies[2] == accuracies[5] == 0  # diverged
    chosen = accuracies.index(max(accuracies))
    assert (found.setting["lr"], found.setting["epochs"]) == tried[chosen] and tried[chosen][0] == 0.1
    # Alone, the chosen setting gives the same answer: a sweep's settings know nothing of each other.
    lr, epochs = tried[chosen]
    assert torch.equal(finetune.finetune(task, 0, lrs=(lr,), epochs=(epochs,), batch=30).ranked, found.ranked)
    tie = finetune.finetune(task, 0, lrs=(1e-9, 2e-9), epochs=(1,))
    assert tie.validation[0][1] == tie.validation[1][1] and tie.setting["lr"] == 1e-9


def test_a_batch_in_parts_has_the_gradient_of_the_whole(pictures, logits, monkeypatch):
    task = asked(Gray(), pictures(50), 40, pictures(9, seed=2))
    whole = finetune.finetune(task, 0, lrs=(0.1,), epochs=(3,)).ranked
    monkeypatch.setattr(finetune, "_PART", 7)
    torch.testing.assert_close(finetune.finetune(task, 0, lrs=(0.1,), epochs=(3,)).ranked, whole)


class Noisy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("protocol", [linear_augmented, semi_10, finetune.finetune])
def test_the_encoder_and_the_global_random_state_stay_as_they_are(protocol, pictures, logits):
    encoder = Noisy().train()
    encoder[1].eval()
    task = asked(encoder, pictures(90), 70, pictures(9, seed=2))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    sweep = {"epochs": 2} if protocol is linear_augmented else {"epochs": (2,), "lrs": (0.1,)}
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # dropout would draw from it
        state = torch.get_rng_state()
        answers.append(protocol(task, 0, **sweep).ranked)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*answers)
    assert not torch.equal(protocol(task, 1, **sweep).ranked, answers[0])  # another order, other crops
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder] == [True, False, True, True, True]
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_what_requires_no_gradient_does_not_learn(pictures, monkeypatch):
    copies = []
    copied = finetune._copy
    monkeypatch.setattr(finetune, "_copy", lambda task: copies.append(copied(task)) or copies[-1])
    encoder = Noisy()
    encoder[0].bias.requires_grad_(False)
    finetune.finetune(asked(encoder, pictures(50), 40, pictures(9, seed=2)), 0, lrs=(0.1,), epochs=(2,))
    (model,) = copies
    assert torch.equal(model[0][0].bias, encoder[0].bias)
    assert not torch.equal(model[0][0].weight, encoder[0].weight)


def test_a_part_of_the_labels_is_all_that_is_learned_from(pictures, logits):
    """As if there were no other training images."""
    known = pictures(300)
    task = asked(Gray(), known, 250, pictures(9, seed=2))
    rows = balanced(known.ids[:250], task.frozen.train_y, 0.1, seed=0)
    sweep = {"lrs": (0.1,), "epochs": (3,)}
    found = semi_10(task, 0, **sweep)
    assert found.setting["images"] == len(rows) == 24  # 8 of each of three classes
    assert semi_1(task, 0, **sweep).setting["images"] == 3
    x, y = task.frozen.train_x, task.frozen.train_y
    part = dataclasses.replace(
        task,
        frozen=dataclasses.replace(task.frozen, train_x=x[rows], train_y=y[rows]),
        known=task.known.subset([*rows.tolist(), *range(250, 300)]),
    )
    assert torch.equal(finetune.finetune(part, 0, **sweep).ranked, found.ranked)


def test_subsets_are_balanced_stable_and_nested():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.repeat([0, 1, 2, 3], [400, 300, 295, 5]))
    ids = [f"{i}.jpg" for i in range(1000)]
    chosen = {share: balanced(ids, y, share, seed=0) for share in (0.001, 0.01, 0.1, 1.0)}
    assert torch.bincount(y[chosen[0.001]]).tolist() == [1, 1, 1, 1]
    assert torch.bincount(y[chosen[0.01]]).tolist() == [2, 2, 2, 2]  # 2.5 of each, rounded
    assert torch.bincount(y[chosen[0.1]]).tolist() == [25, 25, 25, 5]  # the last class has no more
    assert torch.bincount(y[chosen[1.0]]).tolist() == [250, 250, 250, 5]
    for small, large in ((0.001, 0.01), (0.01, 0.1), (0.1, 1.0)):
        assert set(chosen[small].tolist()) < set(chosen[large].tolist())
    assert chosen[0.1].tolist() == sorted(chosen[0.1].tolist())
    turn = rng.permutation(1000)
    again = balanced([ids[i] for i in turn], y[turn], 0.1, seed=0)
    assert {ids[turn[i]] for i in again} == {ids[i] for i in chosen[0.1]}
    assert set(balanced(ids, y, 0.1, seed=1).tolist()) != set(chosen[0.1].tolist())


def test_validation_images_that_do_not_fit_are_read_again(learner, pictures, monkeypatch):
    task = asked(learner, pictures(60), 40, pictures(9, seed=2))
    held = finetune.finetune(task, 0, lrs=(0.02, 0.1), epochs=(1,))
    monkeypatch.setattr(finetune, "_MEMORY", 0)
    again = finetune.finetune(task, 0, lrs=(0.02, 0.1), epochs=(1,))
    assert held.validation == again.validation and torch.equal(held.ranked, again.ranked)


def test_an_image_that_is_gone_is_named(learner, pictures):
    task = asked(learner, pictures(40), 30, pictures(9, seed=2))

    def broken(i):
        raise BadImage("the disk failed")

    with pytest.raises(UserError, match=r"array\[0\] could be read a moment ago, .*the disk failed"):
        finetune.finetune(
            dataclasses.replace(task, asked=dataclasses.replace(task.asked, read=broken)), 0, lrs=(0.1,), epochs=(1,)
        )


def test_progress_counts_the_steps_of_all_settings(pictures):
    calls = []
    task = asked(Gray(), pictures(50), 40, pictures(9, seed=2), lambda *call: calls.append(call))
    finetune.finetune(task, 0, lrs=(0.01, 0.1), epochs=(1, 2), batch=20)
    assert [c[:2] for c in calls] == [(i, 12) for i in range(1, 13)]
    assert calls[0][2] == "lr 0.01, epoch 1 of 1" and calls[-1][2] == "lr 0.1, epoch 2 of 2"
    calls.clear()
    linear_augmented(task, 0, epochs=2)
    assert calls == [(1, 2, "epoch 1 of 2"), (2, 2, "epoch 2 of 2")]
