"""Protocols of papers: lists of labeled images used whole, MoCo's probe and A3, against loops from their words."""

from __future__ import annotations

import copy
import dataclasses
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import load_canvases, open_source
from manyviews.data.order import order
from manyviews.data.source import unlabeled
from manyviews.engine.monitor import hold_out
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Task, evaluate, extract
from manyviews.evaluation.protocols import finetune
from manyviews.evaluation.protocols.finetune import FineTune, FineTuneA3, LinearAugmented, LinearMoCo, Semi1, Semi10
from manyviews.evaluation.protocols.linear import LogisticRegression
from manyviews.evaluation.subsets import balanced, matching, read_list
from manyviews.evaluation.unlabeled.diagnosis import Diagnosis, default_view, diagnose
from manyviews.reporting import plots
from manyviews.verbs import sweep
from manyviews.views import Global, Strong, Views, resolution
from manyviews.weights import Pretrained

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
LOOK = {"mean": MEAN, "std": STD}


def image_task(encoder, known, train, test):
    """To learn from the first `train` images of `known`, with the rest for validation, and to tell those of `test`."""
    (x, y), (test_x, _) = ((f.x, f.labels) for f in (extract(encoder, s, test_size=12, **LOOK) for s in (known, test)))
    frozen = Task(x[:train], y[:train], x[train:], y[train:], test_x, len(known.classes))
    hidden = [dataclasses.replace(s, annotate=unlabeled) for s in (known, test)]
    return ImageTask(encoder, frozen, *hidden, 12, MEAN, STD, torch.device("cpu"))


class Gray(nn.Module):
    """A network of a few weights that can learn colors."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.mix.weight, 1 / 3)

    def forward(self, x):
        return self.mix(x).mean((2, 3))


@pytest.fixture
def logits(monkeypatch):
    """Predictions hold logits instead of the likeliest classes."""
    monkeypatch.setattr(finetune, "ranked", lambda logits: logits)


# -- labels that are all learned from --------------------------------------------------------------------------------


def test_all_labels_teach_the_network_that_predicts_after_some_of_them_chose(pictures, logits):
    """A choice on held-out images, then a training that knows of no held-out images."""
    known, test = pictures(60), pictures(9, seed=2)
    task = image_task(Gray(), known, 45, test)
    found = FineTune(lrs=(1e-9, 0.3), epochs=(2,), batch=15).run(task, 0)
    assert len(found.validation) == 2 and found.setting == {"lr": 0.3, "epochs": 2, "images": 60}
    whole = dataclasses.replace(task.frozen, train_x=task.frozen.trainval_x, train_y=task.frozen.trainval_y)
    none = dataclasses.replace(whole, val_x=whole.val_x[:0], val_y=whole.val_y[:0])
    alone = FineTune(lrs=(0.3,), epochs=(2,), batch=15).run(dataclasses.replace(task, frozen=none), 0)
    assert torch.equal(found.ranked, alone.ranked)
    (note,) = found.notes
    assert "15 validation images held out" in note and "learned anew from all 60 labeled images" in note
    assert "nothing was held out: the network learned from 60" in alone.notes[0]


def test_trials_on_all_labels_never_see_the_images_that_judge_them(pictures, monkeypatch):
    """Other validation labels change the accuracies, and not the logits that they are of."""
    task, judge, tried = image_task(Gray(), pictures(60), 45, pictures(9, seed=2)), finetune._accuracy, []
    monkeypatch.setattr(finetune, "_accuracy", lambda scores, y: tried.append(scores) or judge(scores, y))
    for turn in (0, 1):
        y = (task.frozen.val_y + turn) % 3
        changed = dataclasses.replace(task, frozen=dataclasses.replace(task.frozen, val_y=y))
        FineTune(lrs=(0.1, 0.3), epochs=(2,), batch=15).run(changed, 0)
    assert all(torch.equal(a, b) for a, b in zip(tried[:2], tried[2:], strict=True))


def test_a_list_is_learned_from_whole_and_the_other_validation_images_choose(pictures, logits, tmp_path):
    known, test = pictures(90), pictures(9, seed=2)
    known = dataclasses.replace(known, identify=lambda: [f"train/c{i % 3}/{i}.JPEG" for i in range(90)])
    rows = [*range(0, 30), 60, 61, 62, 80]  # four of them are validation images
    file = tmp_path / "10percent.txt"
    names = [f"{i}.JPEG" if i % 2 else f"c{i % 3}\\{i}.JPEG" for i in rows]
    file.write_text("\n".join([*names, "", f"  {names[3]} ", "none.JPEG"]))
    task = image_task(Gray(), known, 60, test)
    sweep = {"lrs": (0.3, 1e-9), "epochs": (3,), "batch": 17}
    found = Semi10(**sweep, subset=str(file)).run(task, 0)
    assert found.setting == {"lr": 0.3, "epochs": 3, "images": 34}

    x, y = task.frozen.trainval_x, task.frozen.trainval_y
    rest = [i for i in range(60, 90) if i not in rows]
    part = dataclasses.replace(
        task,
        frozen=dataclasses.replace(task.frozen, train_x=x[rows], train_y=y[rows], val_x=x[rest], val_y=y[rest]),
        trainval=task.trainval.subset([*rows, *rest]),
    )
    whole = tmp_path / "whole.txt"
    whole.write_text("\n".join(part.trainval.ids[: len(rows)]))
    again = FineTune(**sweep, subset=str(whole)).run(part, 0)
    assert torch.equal(found.ranked, again.ranked) and found.validation == again.validation
    learned, lost = found.notes
    assert "34 labeled images" in learned and "26 validation images outside of them" in learned
    assert "1 of the names" in lost and "none.JPEG" in lost


def test_lists_that_cannot_be_used_are_refused(pictures, tmp_path):
    task = image_task(Gray(), pictures(30), 20, pictures(9, seed=2))
    file = tmp_path / "list.txt"
    with pytest.raises(UserError, match=r"list\.txt cannot be read"):
        Semi1(subset=str(file))
    file.write_text("\n \n")
    with pytest.raises(UserError, match="is empty"):
        Semi1(subset=str(file))
    file.write_text("a.png")
    with pytest.raises(UserError, match=r"None of the images in .*list\.txt is a training image: it names a\.png"):
        Semi1(subset=str(file)).run(task, 0)
    with pytest.raises(UserError, match="leaves no image to choose"):
        file.write_text("\n".join(task.trainval.ids[20:]))
        Semi1(subset=str(file)).run(task, 0)
    assert read_list(file) == task.trainval.ids[20:]
    with pytest.raises(UserError, match=r"'1\.png' in the list of images is a/1\.png or b/1\.png"):
        matching(["1.png"], ["a/1.png", "b/1.png", "b/11.png"])
    assert matching(["b/1.png", "11.png"], ["a/1.png", "b/1.png", "b/11.png"])[0].tolist() == [1, 2]


def test_shares_are_of_all_labels_as_simclrs_lists():
    """1,281,167 images of 1,000 classes: 12,812 (its list has 12,811) and 128,117, 12 or 13 and 128 or 129 of each."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.permutation(np.arange(128_117) % 100))
    ids = [str(i) for i in range(len(y))]
    for share, images, each in ((0.01, 1281, {12, 13}), (0.1, 12_812, {128, 129})):
        rows = balanced(ids, y, share, 0)
        assert len(rows) == images and set(torch.bincount(y[rows]).tolist()) == each
    assert set(balanced(ids, y, 0.01, 0).tolist()) < set(balanced(ids, y, 0.0101, 0).tolist())


def test_the_report_says_what_was_learned_from_and_how_long_it_takes_is_told_before(
    learner, pictures, monkeypatch, capsys
):
    monkeypatch.setattr(sys.modules["manyviews.evaluation.evaluate"], "_LONG", 0.0)
    settings = {"finetune.lrs": (0.02, 0.1), "finetune.epochs": 1, "finetune.batch": 40}
    said = []
    report = evaluate(
        learner,
        pictures(80),
        pictures(20, seed=3),
        protocols=("finetune",),
        settings=settings,
        test_size=12,
        progress=lambda done, total, note="": said.append((note if isinstance(note, str) else note(), done)),
        **LOOK,
    )
    told = [note for note, *_ in said if note.startswith("finetune: trained")]
    assert told and capsys.readouterr().err.count("fine-tuning of this encoder takes about ") == 1
    protocol = FineTune(lrs=(1.0, 2.0), epochs=(3, 5))
    assert protocol.forwards(100) == 3 * 100 * (2 * (3 + 5) + 5)  # and a last time with all labels
    assert Semi10(lrs=(1.0, 2.0), epochs=(3, 5)).forwards(100) == 3 * 10 * 2 * (3 + 5)
    assert LinearAugmented(epochs=7).forwards(100) == 700
    (note,) = [note for note in report.notes if note.startswith("fine-tuning: ")]
    assert "held out" in note and "all 80 labeled images" in note
    assert report.representations["trained"].scores["finetune"].setting["images"] == 80


# -- MAST's table 10 -------------------------------------------------------------------------------------------------


def batches(known, epoch, steps, batch, seed, size=12):
    """(crops, rows) of each step: an order of all images cut into equal parts, an image at a time."""
    canvases, _ = load_canvases(known, 43)
    kind = Global(1, size=size, area=(0.08, 1.0), color=None)
    places = order(seed, epoch, len(known))
    for step in range(steps):
        chosen = places[step * batch : (step + 1) * batch]
        crops = [Views(canvases[i : i + 1], (kind,), seed, epoch, MEAN, STD)["global", 0] for i in chosen]
        yield torch.cat(crops), torch.from_numpy(chosen)


def clean(source):
    pixels = torch.stack([torch.tensor(np.asarray(source.load(i))).permute(2, 0, 1) for i in range(len(source))])
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_the_probe_at_rate_30_is_a_plain_loop(pictures, logits):
    """SGD with momentum on features as they are; a tenth of the rate after 60 and 80 % of the epochs."""
    known, test = pictures(40), pictures(9, seed=2)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(27, 5))
    found = LinearMoCo(epochs=5, lr=3.0, batch=20).run(image_task(encoder, known, 30, test), 3)
    weight, bias = torch.zeros(3, 5), torch.zeros(3)
    velocity = [torch.zeros(3, 5), torch.zeros(3)]
    y = torch.as_tensor(known.labels)
    with torch.no_grad():
        for epoch, rate in enumerate((3.0, 3.0, 3.0, 0.3, 0.03)):
            for crops, rows in batches(known, epoch, 2, 20, seed=3):
                x = encoder(crops)
                error = ((x @ weight.T + bias).softmax(1) - F.one_hot(y[rows], 3)) / 20
                velocity = [0.9 * velocity[0] + error.T @ x, 0.9 * velocity[1] + error.sum(0)]
                weight -= rate * velocity[0]
                bias -= rate * velocity[1]
        wanted = encoder(clean(test)) @ weight.T + bias
    torch.testing.assert_close(found.ranked, wanted, rtol=1e-3, atol=1e-3)
    usual = {"epochs": 100, "lr": 30.0, "batch": 256, "momentum": 0.9, "drops": (0.6, 0.8), "standardized": False}
    assert dataclasses.asdict(LinearMoCo()) == usual
    assert LinearAugmented().drops == () and LinearAugmented().standardized


def test_lamb_and_the_binary_loss_are_a_plain_loop(pictures, logits):
    """LAMB (You et al. 2020) as timm has it for "ResNet strikes back": clipped gradients, trust where it decays."""
    known, test = pictures(40), pictures(9, seed=2)
    a3 = FineTuneA3(lrs=(0.05,), epochs=(3,), batch=20, warmup=0, randaugment=0, mixup=0, cutmix=0, train_size=8)
    encoder = Gray()
    found = a3.run(image_task(encoder, known, 30, test), 5)
    assert found.setting == {"lr": 0.05, "epochs": 3, "images": 40} and found.validation == []

    model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    weights, y = list(model.parameters()), torch.as_tensor(known.labels)
    mean, square = ([torch.zeros_like(p) for p in weights] for _ in range(2))
    step = 0
    for epoch in range(3):
        for x, rows in batches(known, epoch, 2, 20, seed=5, size=8):
            z, target = model(x), F.one_hot(y[rows], 3)
            loss = -(target * F.logsigmoid(z) + (1 - target) * F.logsigmoid(-z)).mean()
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.sqrt(sum(g.square().sum() for g in gradients))
            lr = 0.05 / 2 * (1 + np.cos(np.pi * step / 6))
            step += 1
            with torch.no_grad():
                for p, g, m, v in zip(weights, gradients, mean, square, strict=True):
                    g = g / max(norm, 1)
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g**2)
                    update = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-6)
                    if p.ndim > 1:
                        update = update + 0.02 * p
                        if p.norm() > 0 and update.norm() > 0:
                            update = update * p.norm() / update.norm()
                    p.sub_(lr * update)
    with torch.no_grad():
        torch.testing.assert_close(found.ranked, model(clean(test)), rtol=1e-3, atol=1e-4)


def test_mixed_labels_count_whole_above_a_fifth():
    z = torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.0, -2.0]])
    mixed = torch.tensor([[0.85, 0.15, 0.0], [0.0, 0.7, 0.3]])
    p = torch.sigmoid(z)
    first = -(p[0, 0].log() + (1 - p[0, 1]).log() + (1 - p[0, 2]).log()) / 3
    second = -((1 - p[1, 0]).log() + p[1, 1].log() + p[1, 2].log()) / 3
    torch.testing.assert_close(finetune._binary(z, mixed), first + second)
    torch.testing.assert_close(finetune._binary(z, torch.tensor([0, 2])), finetune._binary(z, torch.eye(3)[[0, 2]]))


def test_a3_is_the_papers():
    """Wightman et al. 2021, table 2, third column."""
    a3 = FineTuneA3()
    assert (a3.lrs, a3.epochs, a3.batch, a3.weight_decay, a3.warmup) == ((0.008,), (100,), 2048, 0.02, 5)
    assert (a3.optimizer, a3.loss, a3.train_size, a3.smoothing, a3.drop_path) == ("lamb", "bce", 160, 0, 0)
    assert (a3.mixup, a3.cutmix, a3.randaugment) == (0.1, 1.0, 2)
    with pytest.raises(UserError, match="smoothing is for the cross-entropy"):
        FineTuneA3(smoothing=0.1)


# -- the rescue of easy samples --------------------------------------------------------------------------------------


def test_common_and_strong_views_are_compared_by_their_cosines(encoder, pictures):
    """An image at a time, from the same draws."""
    source = pictures(20)
    found = diagnose(encoder, source, test_size=12, **LOOK, views=2, seed=4)
    canvases, _ = load_canvases(source, resolution([default_view(12)]))
    common, strong = [], []
    with torch.no_grad():
        for i in range(20):
            first, second = (
                encoder(Views(canvases[i : i + 1], (default_view(12),), 4, k, MEAN, STD)["global", 0])[0]
                for k in (0, 1)
            )
            other = encoder(Views(canvases[i : i + 1], (Strong(size=12),), 4, 0, MEAN, STD)["strong", 0])[0]
            common.append((first @ second / first.norm() / second.norm()).item())
            strong.append((first @ other / first.norm() / other.norm()).item())
    assert found.cosine == pytest.approx(np.mean(common), abs=1e-5)
    assert found.strong == pytest.approx(np.mean(strong), abs=1e-5)
    assert f"{found.strong:.4f}  cosine of a view and a strongly augmented one" in found.text()
    assert Diagnosis.from_json(found.to_json()) == found


def write_voc(root, rng, splits):
    """Pictures of red and blue things, one or both, in Pascal VOC's layout; what is difficult is no label."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    thing = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax>"
    truth = {}
    for split, count in splits.items():
        names = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            shown = [
                kind for kind, there in zip(("red", "blue"), ((1, 0), (0, 1), (1, 1))[i % 3], strict=True) if there
            ]
            pixels = rng.integers(0, 30, (12, 12, 3)) + rng.integers(0, 120, 3)
            for kind in shown:
                pixels[:, :, 0 if kind == "red" else 2] += 80
            Image.fromarray(pixels.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.png")
            text = "".join(thing.format(kind, 0) + "<ymax>6</ymax></bndbox></object>" for kind in shown)
            text += thing.format("red", 1) + "<ymax>6</ymax></bndbox></object>"
            size = "<size><width>12</width><height>12</height></size>"
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
            truth[name] = shown
    return truth


def test_a_suite_has_voc_in_its_table_and_draws_other_suites_beside_it(tmp_path, monkeypatch):
    """Tables 1 and figure 4 of the rescue: VOC 2007 by mAP among sets by accuracy; the lines have the numbers."""
    rng = np.random.default_rng(0)
    truth = write_voc(tmp_path / "suite" / "voc2007", rng, {"train": 24, "val": 12, "test": 12})
    for name in ("a", "b"):
        for k in range(2):
            (tmp_path / "suite" / name / f"class {k}").mkdir(parents=True)
            for i in range(15):
                pixels = (rng.integers(0, 120, (12, 12, 3)) + 80 * k).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "suite" / name / f"class {k}" / f"{i}.png")
    encoders = [
        Pretrained(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval(), MEAN, STD, 12, name)
        for name in ("first", "second")
    ]
    how = {"baselines": False, "settings": {"multilabel.penalties": (0.1,)}, "protocols": ("knn", "logistic")}
    suite = tmp_path / "suite"
    first = mv.transfer(encoders[0], suite, tmp_path / "first", **how)
    figures, drawn = [], plots._figure

    @contextmanager
    def kept(*given):
        with drawn(*given) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(plots, "_figure", kept)
    second = mv.transfer(encoders[1], suite, tmp_path / "second", compare=[tmp_path / "first"], **how)
    rows = second.table()
    assert [(r["set"], r["metric"]) for r in rows[:4]] == [
        ("a", "top-1"), ("b", "top-1"), ("voc2007", "mAP"), ("mean", "top-1 and mAP")
    ]  # fmt: skip
    assert rows[2]["value"] == rows[6]["value"] and rows[2]["protocol"] == "multilabel" and rows[2]["top1"] is None
    assert rows[3]["value"] == pytest.approx(np.mean([r["value"] for r in rows[:3]])) and rows[3]["top1"] is None

    # VOC's number is the mAP of its own images, labels and parts.
    def part(*splits):
        names = [name for name in truth if name.startswith(splits)]
        pixels = np.stack([np.asarray(Image.open(suite / "voc2007/JPEGImages" / f"{n}.png")) for n in names])
        targets = np.array([[kind in truth[n] for kind in ("blue", "red")] for n in names])
        source = open_source(pixels)
        ids = partial(list, [f"{n}.png" for n in names])
        return dataclasses.replace(source, identify=ids, annotate=lambda: (targets, ["blue", "red"]))

    monkeypatch.setattr(plots, "evaluation", lambda *_: [])
    alone = mv.evaluate(encoders[1], part("train", "val"), part("test"), protocols=("multilabel",), baselines=False,
                        settings=how["settings"])  # fmt: skip
    assert rows[2]["value"] == pytest.approx(alone.representations["trained"].measures["multilabel"].value, abs=1e-6)

    assert len(figures) == 2 and (tmp_path / "second" / "radar-logistic.png").stat().st_size > 5000
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "voc2007"]
    for line, found in zip(axes.lines, (second, first), strict=True):
        numbers = [100 * r["value"] for r in found.table()[:3]]
        assert line.get_label() == found.weights
        assert list(line.get_ydata()) == pytest.approx([*numbers, numbers[0]])
        assert list(line.get_xdata()) == pytest.approx([0, 2 * np.pi / 3, 4 * np.pi / 3, 0])
        assert min(numbers) >= axes.get_ylim()[0]
    with pytest.raises(UserError, match="holds no finished suite"):
        mv.transfer(encoders[1], suite, tmp_path / "third", compare=[tmp_path], **how)
    with pytest.raises(UserError, match="three sets or more"):
        mv.transfer(
            encoders[1], {"a": suite / "a"}, tmp_path / "third", compare=[tmp_path / "first"], protocols=["knn"]
        )
    with pytest.raises(UserError, match="one label each"):
        mv.transfer(encoders[1], suite, tmp_path / "third", protocols=["multilabel"])


def test_a_sweep_is_judged_by_a_protocol_beside_two_baselines(pictures, tmp_path, monkeypatch, capsys):
    """Figure 5 of the rescue: the probe learns from all training images and is judged on others, once for each run."""
    data, test = pictures(90), pictures(24, seed=5)
    monkeypatch.setattr(plots, "evaluation", lambda *_: [])
    how = {
        "recipe": "simclr_tiny",
        "vary": {"method.temperature": (0.5,)},
        "out": tmp_path / "sweep",
        "seeds": 1,
        "settings": {"data.batch_size": 16, "data.holdout": 0.3, "monitor.steps": 1000, "epochs": 1},
        "baseline": [{"optimizer.lr": 0.0}, {"optimizer.lr": 0.0, "epochs": 2}],
        "metric": LogisticRegression(),
        "test": test,
    }
    found = mv.sweep(data, **how)
    assert (found.metric, found.words) == ("logistic", "logistic regression on test images")
    assert [p.value for p in found.baselines] == ["optimizer.lr=0.0", "optimizer.lr=0.0, epochs=2"]
    run = tmp_path / "sweep" / found.points[0].runs[0]
    train, held = hold_out(data, 0.3)
    alone = mv.evaluate(run, train, test, protocols=("logistic",), baselines=False)
    assert found.points[0].scores == [alone.representations["trained"].scores["logistic"].top1]
    evaluated = []
    monkeypatch.setattr(sweep, "evaluate", lambda *given, **_: evaluated.append(given) or alone)
    assert mv.sweep(data, **how) == found and not evaluated  # it is not judged again
    on_held = mv.sweep(data, **how | {"metric": "logistic", "test": None})  # other images: it is judged again
    assert [len(images) for _, images, _ in evaluated] == [len(train)] * 3
    assert all(images.ids == held.ids for *_, images in evaluated) and "held-out" in on_held.words
    with pytest.raises(UserError, match="Test images are for protocols"):
        mv.sweep(data, **how | {"metric": "ridge"})
    with pytest.raises(UserError, match="knn, ridge, rankme or a protocol"):
        mv.sweep(data, **how | {"metric": "loss"})
