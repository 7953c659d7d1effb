"""Protocols that look at the images again: against loops written from the papers' words, and what they must not do."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from manyviews.backbones import Encoder
from manyviews.data import BadImage, load_canvases, open_source
from manyviews.data.order import order
from manyviews.data.source import unlabeled
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Pixels, Task, crops, extract, linear_probe
from manyviews.evaluation.features import Chosen
from manyviews.evaluation.protocols import finetune
from manyviews.evaluation.protocols.finetune import FineTune, FineTuneViT, LinearAugmented, Semi1, Semi10
from manyviews.evaluation.subsets import balanced
from manyviews.views import Global, Views

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LOOK = {"mean": MEAN, "std": STD}


def image_task(encoder, known, train, test, progress=None):
    """To learn from the first `train` images of `known`, choose with the rest, and say what those of `test` are."""
    (x, y), (test_x, _) = ((f.x, f.labels) for f in (extract(encoder, s, test_size=12, **LOOK) for s in (known, test)))
    frozen = Task(x[:train], y[:train], x[train:], y[train:], test_x, len(known.classes))
    hidden = [dataclasses.replace(s, annotate=unlabeled) for s in (known, test)]
    return ImageTask(encoder, frozen, *hidden, 12, MEAN, STD, torch.device("cpu"), progress)


@pytest.fixture
def logits(monkeypatch):
    """Predictions hold logits instead of the likeliest classes."""
    monkeypatch.setattr(finetune, "ranked", lambda logits: logits)


def batches(known, rows, epoch, steps, batch, seed):
    """(crops, rows) of each step: an order of all images cut into equal parts, an image at a time."""
    canvases, _ = load_canvases(known.subset(rows), 43)  # no smaller than the pictures
    kind = Global(1, size=12, area=(0.08, 1.0), color=None)
    places = order(seed, epoch, len(rows))
    for step in range(steps):
        chosen = places[step * batch : (step + 1) * batch]
        crops = []
        for i in chosen:
            crops.append(Views(canvases[i : i + 1], (kind,), seed, epoch, MEAN, STD)["global", 0])
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
    found = LinearAugmented(epochs=3, lr=0.05, batch=20).run(image_task(encoder, known, 40, test), 3)
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
        found = LinearAugmented(epochs=10, lr=0.05).run(image_task(encoder, known, 150, test), 0)
        assert (found.ranked[:, 0].numpy() == test.labels).mean() > 0.9


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_is_the_papers(learner, pictures, logits):
    """Nesterov's momentum by hand, BatchNorm with the batch's statistics, no weight decay."""
    known, test = pictures(40), pictures(9, seed=2)
    task = image_task(learner, known, 32, test)
    found = FineTune(lrs=(0.05,), epochs=(3,), batch=20).run(task, 5)  # nothing to choose: no image is held out

    model = nn.Sequential(copy.deepcopy(learner), nn.Linear(8, 3)).train()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    y = torch.as_tensor(known.labels)
    for step in range(6):
        if step % 2 == 0:
            epoch = batches(known, np.arange(40), step // 2, 2, 20, seed=5)
        x, rows = next(epoch)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y[rows]), list(model.parameters()))
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(cosine(0.05, step, 6) * (g + 0.9 * v))
    with torch.no_grad():
        wanted = model.eval()(clean(test))
    torch.testing.assert_close(found.ranked, wanted, rtol=1e-3, atol=1e-3)
    assert found.setting == {"lr": 0.05, "epochs": 3, "images": 40}
    assert found.validation == []


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
    task = dataclasses.replace(image_task(Gray(), known, 200, test), mean=(0.5,) * 3, std=(0.25,) * 3)
    x = task.frozen
    found = {
        "probe": linear_probe(x).logits.argmax(1),
        "augmented": LinearAugmented(epochs=10).run(task, 0).ranked[:, 0],
        "tuned": FineTune(lrs=(0.02, 0.1), epochs=(20,), batch=50).run(task, 0).ranked[:, 0],
    }
    right = {k: (v.numpy() == test.labels).mean() for k, v in found.items()}
    assert right["probe"] < 0.7 and right["augmented"] < 0.7 and right["tuned"] > 0.95, right


def test_the_first_best_on_validation_images_answers(learner, pictures, logits):
    known, test = pictures(120, noise=40), pictures(30, seed=1)
    task = image_task(learner, known, 90, test)
    found = FineTune(lrs=(1e-6, 0.1, 1e12), epochs=(1, 12), batch=30).run(task, 0)
    tried = [(s["lr"], s["epochs"]) for s, _ in found.validation]
    assert tried == [(1e-6, 1), (0.1, 1), (1e12, 1), (1e-6, 12), (0.1, 12), (1e12, 12)]
    accuracies = [a for _, a in found.validation]
    assert accuracies[2] == accuracies[5] == 0  # diverged
    chosen = accuracies.index(max(accuracies))
    assert (found.setting["lr"], found.setting["epochs"]) == tried[chosen] and tried[chosen][0] == 0.1
    # Alone, the chosen setting gives the same answer: a sweep's settings know nothing of each other.
    lr, epochs = tried[chosen]
    assert torch.equal(FineTune(lrs=(lr,), epochs=(epochs,), batch=30).run(task, 0).ranked, found.ranked)
    tie = FineTune(lrs=(1e-9, 2e-9), epochs=(1,)).run(task, 0)
    assert tie.validation[0][1] == tie.validation[1][1] and tie.setting["lr"] == 1e-9


def test_a_batch_in_parts_has_the_gradient_of_the_whole(pictures, logits, monkeypatch):
    task = image_task(Gray(), pictures(50), 40, pictures(9, seed=2))
    whole = FineTune(lrs=(0.1,), epochs=(3,)).run(task, 0).ranked
    monkeypatch.setattr(crops, "_PART", 7)
    torch.testing.assert_close(FineTune(lrs=(0.1,), epochs=(3,)).run(task, 0).ranked, whole)


class Noisy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("protocol", [LinearAugmented, Semi10, FineTune])
def test_the_encoder_and_the_global_random_state_stay_as_they_are(protocol, pictures, logits):
    encoder = Noisy().train()
    encoder[1].eval()
    task = image_task(encoder, pictures(90), 70, pictures(9, seed=2))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    sweep = {"epochs": 2} if protocol is LinearAugmented else {"epochs": (2,), "lrs": (0.1,)}
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # dropout would draw from it
        state = torch.get_rng_state()
        answers.append(protocol(**sweep).run(task, 0).ranked)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*answers)
    assert not torch.equal(protocol(**sweep).run(task, 1).ranked, answers[0])  # another order, other crops
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder] == [True, False, True, True, True]
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_what_requires_no_gradient_does_not_learn(pictures, monkeypatch):
    copies = []
    copied = finetune._copy
    monkeypatch.setattr(finetune, "_copy", lambda *given: copies.append(copied(*given)) or copies[-1])
    encoder = Noisy()
    encoder[0].bias.requires_grad_(False)
    FineTune(lrs=(0.1,), epochs=(2,)).run(image_task(encoder, pictures(50), 40, pictures(9, seed=2)), 0)
    (model,) = copies
    assert torch.equal(model[0][0].bias, encoder[0].bias)
    assert not torch.equal(model[0][0].weight, encoder[0].weight)


def test_a_part_of_the_labels_is_all_that_is_learned_from(pictures, logits):
    """As if there were no other training images."""
    known = pictures(300)
    task = image_task(Gray(), known, 250, pictures(9, seed=2))
    rows = balanced(known.ids, task.frozen.trainval_y, 0.1, seed=0)
    sweep = {"lrs": (0.1,), "epochs": (3,)}
    found = Semi10(**sweep).run(task, 0)
    assert found.setting["images"] == len(rows) == 30  # 10 of each of three classes, validation images among them
    assert Semi1(**sweep).run(task, 0).setting["images"] == 3
    x, y = task.frozen.trainval_x, task.frozen.trainval_y
    part = dataclasses.replace(
        task,
        frozen=dataclasses.replace(task.frozen, train_x=x[rows], train_y=y[rows], val_x=x[:0], val_y=y[:0]),
        trainval=task.trainval.subset(rows.numpy()),
    )
    assert torch.equal(FineTune(**sweep).run(part, 0).ranked, found.ranked)


def test_subsets_are_balanced_stable_and_nested():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.repeat([0, 1, 2, 3], [400, 300, 295, 5]))
    ids = [f"{i}.jpg" for i in range(1000)]
    chosen = {share: balanced(ids, y, share, seed=0) for share in (0.001, 0.01, 0.1, 1.0)}
    assert torch.bincount(y[chosen[0.001]]).tolist() == [1, 1, 1, 1]
    assert sorted(torch.bincount(y[chosen[0.01]]).tolist()) == [2, 2, 3, 3]  # 10 in all
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
    task = image_task(learner, pictures(60), 40, pictures(9, seed=2))
    held = FineTune(lrs=(0.02, 0.1), epochs=(1,)).run(task, 0)
    monkeypatch.setattr(crops, "_MEMORY", 0)
    again = FineTune(lrs=(0.02, 0.1), epochs=(1,)).run(task, 0)
    assert held.validation == again.validation and torch.equal(held.ranked, again.ranked)


def test_an_image_that_is_gone_is_named(learner, pictures):
    task = image_task(learner, pictures(40), 30, pictures(9, seed=2))

    def broken(i):
        raise BadImage("the disk failed")

    with pytest.raises(UserError, match=r"array\[0\] could be read a moment ago, .*the disk failed"):
        FineTune(lrs=(0.1,), epochs=(1,)).run(
            dataclasses.replace(task, test=dataclasses.replace(task.test, read=broken)), 0
        )


def test_progress_counts_the_steps_of_all_settings(pictures):
    calls = []
    task = image_task(Gray(), pictures(50), 40, pictures(9, seed=2), lambda *call: calls.append(call))
    FineTune(lrs=(0.01, 0.1), epochs=(1, 2), batch=20).run(task, 0)
    trials, last = calls[:12], calls[12:]
    assert [c[:2] for c in trials] == [(i, 12 + 2 * 3) for i in range(1, 13)]  # at most two epochs of all 50 follow
    assert calls[0][2] == "lr 0.01, epoch 1 of 1" and trials[-1][2] == "lr 0.1, epoch 2 of 2"
    assert last[-1][0] == last[-1][1] and last[-1][2].startswith("all labels, lr ")
    calls.clear()
    LinearAugmented(epochs=2).run(task, 0)
    assert calls == [(1, 2, "epoch 1 of 2"), (2, 2, "epoch 2 of 2")]


# -- what transformers want ------------------------------------------------------------------------------------------


def tiny_vit(**settings):
    small = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return Encoder("vit_tiny_patch16_224", **small | settings).eval()


def scales(model, weight_decay=0.05, layer_decay=0.5):
    """name: (factor on the learning rate, weight decay) of what learns in an encoder and its linear layer."""
    groups = finetune.groups(model, weight_decay, layer_decay)
    found = {id(p): (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups)  # each once
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_rates_fall_from_layer_to_layer_by_hand():
    vit = nn.Sequential(tiny_vit(position="sincos"), nn.Linear(16, 3))
    before = repr(vit)
    found = scales(vit)
    assert repr(vit) == before  # the linear layer was a part of the encoder for a moment
    assert not any("pos_embed" in name for name in found)  # fixed
    found |= scales(nn.Sequential(tiny_vit(), nn.Linear(16, 3)))
    for name, (scale, decay) in found.items():
        layer = 4
        if "cls_token" in name or "pos_embed" in name or "patch_embed" in name:
            layer = 0
        elif "blocks." in name:
            layer = 1 + int(name.split("blocks.")[1][0])
        elif ".norm." in name:
            layer = 3  # the last norm is a part of the last block
        assert scale == 0.5 ** (4 - layer), name
        matrix = name.endswith("weight") and "norm" not in name
        assert decay == (0.05 if matrix else 0.0), name

    from torchvision.models import VisionTransformer

    outside = VisionTransformer(12, 4, 2, 2, 16, 32)
    found = scales(nn.Sequential(outside, nn.Linear(16, 3)), layer_decay=1)
    for name, (_, decay) in found.items():
        still = name.endswith("bias") or name in ("0.class_token", "0.encoder.pos_embedding") or ".ln" in name
        assert decay == (0.0 if still else 0.05), name

    resnet = nn.Sequential(Encoder("resnet18", layers=(1, 2, 1, 1), channels=(8, 8, 8, 8)), nn.Linear(8, 3))
    order = ("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0", "1.")
    for name, (scale, decay) in scales(resnet, layer_decay=0.8).items():
        stem = name.startswith(("0.model.conv1", "0.model.bn1"))
        layer = 0 if stem else 1 + next(i for i, o in enumerate(order) if name.removeprefix("0.model.").startswith(o))
        assert scale == pytest.approx(0.8 ** (6 - layer)), name
        assert decay == (0.0 if "bn" in name or "downsample.1" in name or name.endswith("bias") else 0.05), name


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_rates_are_those_that_timm_gives_a_model_with_its_classifier(name):
    from timm.optim import param_groups_layer_decay

    whole = timm.create_model(name, num_classes=3)
    groups = param_groups_layer_decay(whole, 0.05, whole.no_weight_decay() if "swin" in name else (), layer_decay=0.7)
    by_id = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    wanted = {k: by_id[id(p)] for k, p in whole.named_parameters()}
    encoder = Encoder(name)
    for ours, scale in scales(nn.Sequential(encoder, nn.Linear(encoder.embed_dim, 3)), layer_decay=0.7).items():
        theirs = ours.removeprefix("0.model.")
        assert scale == (wanted[theirs] if ours.startswith("0.") else (1.0, 0.0 if ours.endswith("bias") else 0.05))


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_fine_tuning_by_adamw_is_a_plain_loop(pictures, logits, decay):
    """AdamW, warm-up, smoothed labels and rates that fall with depth, written out."""
    known, test, encoder = pictures(40), pictures(9, seed=2), tiny_vit()
    found = FineTune(
        lrs=(0.1,),
        epochs=(3,),
        batch=20,
        optimizer="adamw",
        lr_scaling="linear",
        weight_decay=0.3,
        layer_decay=decay,
        warmup=1,
        smoothing=0.2,
    ).run(image_task(encoder, known, 32, test), 5)
    assert found.setting == {"lr": 0.1, "epochs": 3, "images": 40}

    model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(16, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    depth = scales(model, weight_decay=0.3, layer_decay=decay)
    weights, y = dict(model.named_parameters()), torch.as_tensor(known.labels)
    mean, square = ({k: torch.zeros_like(p) for k, p in weights.items()} for _ in range(2))
    for step in range(6):
        if step % 2 == 0:
            epoch = batches(known, np.arange(40), step // 2, 2, 20, seed=5)
        x, rows = next(epoch)
        smooth = 0.8 * F.one_hot(y[rows], 3) + 0.2 / 3
        loss = -(smooth * model(x).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        peak = 0.1 * 20 / 256
        lr = peak * (step + 1) / 2 if step < 2 else cosine(peak, step - 2, 4)
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                scale, shrink = depth[name]
                p.mul_(1 - lr * scale * shrink)
                mean[name] = 0.9 * mean[name] + 0.1 * g
                square[name] = 0.999 * square[name] + 0.001 * g**2
                m, v = mean[name] / (1 - 0.9 ** (step + 1)), square[name] / (1 - 0.999 ** (step + 1))
                p.sub_(lr * scale * m / (v.sqrt() + 1e-8))
    with torch.no_grad():
        wanted = model(clean(test))
        assert (wanted - model[1](encoder(clean(test)))).abs().max() > 100 * 1e-4  # it learned more than its last layer
    torch.testing.assert_close(found.ranked, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_as_the_images_are(mixup, cutmix):
    """Images of one value each, so that what is in a mixed one can be read off its pixels."""
    mix = finetune._mixing(mixup, cutmix, 5)
    blended, boxed, shares = 0, 0, []
    for _ in range(200):
        x, y = mix(torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4]).view(5, 1, 1, 1).expand(5, 3, 16, 16), torch.arange(5))
        assert x.shape == (5, 3, 16, 16) and y.shape == (5, 5)
        torch.testing.assert_close(y.sum(1), torch.ones(5))
        assert ((y > 0).sum(1) <= 2).all() and (y >= 0).all()
        torch.testing.assert_close(x.mean((1, 2, 3)), y @ torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4]))
        if y[0, 0] == 1:
            continue  # a box of no pixels
        whole = bool((x == x[:, :, :1, :1]).all())
        blended, boxed, shares = blended + whole, boxed + (not whole), [*shares, y[0, 0].item()]
    if mixup and cutmix:
        assert 70 < blended < 130 and boxed > 60
    elif mixup:
        assert boxed == 0 and stats.kstest(shares, stats.beta(mixup, mixup).cdf).pvalue > 1e-3
    else:
        assert blended < 5  # boxes of the whole image


EVERYTHING = {"warmup": 1, "randaugment": 1, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "drop_path": 0.5}


def test_all_noise_is_the_seeds(pictures, logits):
    encoder = Chosen(tiny_vit(), "cls_mean")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    task, answers = image_task(encoder, pictures(50), 40, pictures(9, seed=2)), []
    sweep = {"lrs": (0.5,), "epochs": (2,), "batch": 20}
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        states = torch.get_rng_state(), np.random.get_state()[1]
        answers.append(FineTuneViT(**sweep, **EVERYTHING).run(task, 0).ranked)
        assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(*answers)
    assert not torch.equal(FineTuneViT(**sweep, **EVERYTHING).run(task, 1).ranked, answers[0])
    for name in EVERYTHING:
        quiet = EVERYTHING | {name: 0}
        assert not torch.equal(FineTuneViT(**sweep, **quiet).run(task, 0).ranked, answers[0]), name
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_drop_path_is_timms_and_nothing_else_is_noisy(pictures):
    encoder = tiny_vit(drop_path_rate=0.9, proj_drop_rate=0.5, attn_drop_rate=0.5)
    encoder.freeze_patch_embed()
    task = image_task(encoder, pictures(20), 15, pictures(9, seed=2))
    state = torch.get_rng_state()
    model = finetune._copy(task, 0.2)
    assert torch.equal(torch.get_rng_state(), state)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model[0].model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert {type(m).__name__ for m in model.modules() if m.training and m is not model} == {"DropPath", "Linear"}
    assert [m for m in model.modules() if m.training and isinstance(m, nn.Linear)] == [model[1]]
    assert {k for k, p in model.named_parameters() if not p.requires_grad} == {
        "0.model.patch_embed.proj.weight",
        "0.model.patch_embed.proj.bias",
    }
    x = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(model[0].eval()(x), encoder(x))
    quiet = finetune._copy(task, 0.0)  # what it learned with does not come back
    torch.testing.assert_close(quiet[0](x), encoder(x))


def test_what_an_encoder_cannot_do_is_said(pictures):
    task = image_task(Gray(), pictures(20), 15, pictures(9, seed=2))
    with pytest.raises(UserError, match="Gray does not say what its layers are: set layer_decay to 1"):
        FineTune(layer_decay=0.7).run(task, 0)
    with pytest.raises(UserError, match=r"Gray has no residual branches .* set drop_path to 0"):
        FineTune(drop_path=0.1).run(task, 0)
    with pytest.raises(UserError, match="vit_tiny_patch16_224 has no residual branches"):
        finetune._dropping(tiny_vit(depth=1), 0.1)  # the first block's stay
    found = FineTune(lrs=(0.01,), epochs=(1,), optimizer="adamw", weight_decay=0.1).run(task, 0)
    assert found.setting["images"] == 20


def test_presets_are_the_papers():
    """MULAN, appendix B; MAE, table 9."""
    for kind in (Semi1, Semi10, FineTune):
        assert (kind().lrs, kind().epochs, kind().batch) == ((0.005, 0.01, 0.02, 0.05, 0.1), (30, 50), 1024)
    assert (Semi1().share, Semi10().share, FineTune().share) == (0.01, 0.1, 1.0)
    assert FineTuneViT() == FineTuneViT(
        lrs=(0.0005, 0.001, 0.002),
        epochs=(100,),
        batch=1024,
        share=1.0,
        optimizer="adamw",
        lr_scaling="linear",
        weight_decay=0.05,
        layer_decay=0.75,
        warmup=5,
        randaugment=2,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        drop_path=0.1,
    )


def test_a_transformer_learns_what_its_frozen_features_lack():
    known, test = colored(240, 0), colored(100, 1)
    task = dataclasses.replace(image_task(tiny_vit(), known, 200, test), mean=(0.5,) * 3, std=(0.25,) * 3)
    found = FineTuneViT(lrs=(0.02,), epochs=(15,), batch=20, randaugment=0, warmup=1).run(task, 0)
    assert (found.ranked[:, 0].numpy() == test.labels).mean() > 0.95
