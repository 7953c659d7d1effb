"""The judgment as a whole: what protocols get to see, what is compared with what, and what a report says."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from manyviews.backbones import Encoder, ExternalEncoder, represent
from manyviews.data import open_source
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation import (
    FeatureProtocol,
    ImageProtocol,
    LabeledTask,
    Metric,
    MetricProtocol,
    Pixels,
    Projector,
    Report,
    Task,
    evaluate,
    extract,
    knn,
    linear_probe,
    protocols,
    untrained,
)
from manyviews.evaluation.linear import Standardizer
from manyviews.evaluation.protocols.knn import KNN
from manyviews.evaluation.report import Gain
from manyviews.reporting.summary import plain

from .conftest import quick

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}
PARTS = {"train": 0.64, "validation": 0.16, "test": 0.2}
KNOWN = protocols.known()
PREDICTING = tuple(n for n, p in KNOWN.items() if issubclass(p, (FeatureProtocol, ImageProtocol)))
MEASURING = tuple(n for n, p in KNOWN.items() if issubclass(p, MetricProtocol) and n != "multilabel")


def judge(encoder, *data, **options):
    return evaluate(encoder, *data, **LOOK, **{"protocols": ("knn",)} | options)


def relabeled(source, labels):
    return dataclasses.replace(source, annotate=lambda: (np.asarray(labels), source.classes))


def test_every_protocol_is_run_on_every_representation_that_has_what_it_looks_at(learner, pictures, few_steps):
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    names, calls = PREDICTING + MEASURING, []
    report = judge(
        learner,
        pictures(160, classes=6),
        protocols=names,
        settings=quick(*names),
        projector=Projector(layers),
        progress=lambda *call: calls.append(call),
    )
    lacking = {"trained": (), "untrained": ("projector",), "pixels": ("network", "projector")}
    assert set(report.representations) == set(lacking) and sum(report.images.values()) == 160
    for name, found in report.representations.items():
        has = [p for p in names if KNOWN[p].sees not in lacking[name]]
        assert list(found.scores) == [p for p in has if p in PREDICTING]
        assert list(found.measures) == [p for p in has if p in MEASURING]
        assert all(np.isfinite(m.value) for m in found.measures.values())
        for score in found.scores.values():
            low, high = score.interval
            assert low <= score.top1 <= high and score.top1 <= score.top5 <= 1 and len(score.per_class) == 6
        if name != "trained":
            assert list(report.gains[name]) == list(found.scores)
    assert report.representations["pixels"].scores["linear"].top1 > 0.6  # the mean color tells the class
    assert Report.from_json(report.to_json()) == report
    done = [c[0] for c in calls]
    assert done == sorted(done) and all(c[0] <= c[1] for c in calls) and calls[-1][0] == calls[-1][1]
    notes = [c[2] for c in calls if len(c) > 2]
    assert {"semi_10: trained, lr 0.1, epoch 1 of 1", "linear_augmented: pixels, epoch 2 of 2"} <= set(notes)


def test_the_numbers_are_those_of_the_parts(encoder, pictures):
    train, test = pictures(150, noise=120), pictures(60, seed=9, noise=120)
    report = judge(encoder, train, test)
    a, b = (extract(encoder, s, **LOOK) for s in (train, test))
    wanted = knn(a.x, a.labels, b.x, b.labels)  # all of train is the memory
    score = report.representations["trained"].scores["knn"]
    assert score.top1 == pytest.approx(wanted.weighted[20])
    assert score.setting == {"k": 20, "temperature": 0.1}
    for k, accuracy in wanted.majority.items():
        assert score.others[f"k={k} majority"] == pytest.approx(accuracy)
        assert score.others[f"k={k} weighted"] == pytest.approx(wanted.weighted[k])

    a, b = (extract(Pixels(), s, **LOOK) for s in (train, test))
    standard = Standardizer.of(a.x)
    wanted = knn(standard(a.x), a.labels, standard(b.x), b.labels).weighted[20]
    assert report.representations["pixels"].scores["knn"].top1 == pytest.approx(wanted)


def test_data_without_a_test_set_is_split_by_a_stable_hash(encoder, pictures):
    source = pictures(200)
    report = judge(encoder, source, baselines=False)
    assert report.gains == {}
    parts = split(source.ids, PARTS, salt="evaluation")
    assert report.images == {k: len(v) for k, v in parts.items()}
    shuffled = source.subset(np.random.default_rng(0).permutation(200))
    again = judge(encoder, shuffled, baselines=False)
    ours, theirs = (r.representations["trained"].scores["knn"].top1 for r in (report, again))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("with_test", [True, False])
def test_test_labels_choose_nothing(learner, pictures, with_test, few_steps):
    """The settings and the number of right answers tell: a permutation of labels keeps neither by chance."""
    source = pictures(120, noise=200)
    rng = np.random.default_rng(0)
    if with_test:
        test = pictures(45, seed=5)
        data = [(source, test), (source, relabeled(test, rng.permutation(test.labels)))]
    else:
        held = split(source.ids, PARTS, salt="evaluation")["test"]
        labels = source.labels.copy()
        labels[held] = rng.permutation(labels[held])
        data = [(source,), (relabeled(source, labels),)]
    # A protocol that says what it is given: those that predict are all given the same.
    names = (*PREDICTING, "seen features", "seen images")
    SeenFeatures.tasks.clear()
    SeenImages.tasks.clear()
    honest, permuted = (
        judge(learner, *d, protocols=names, settings=quick(*PREDICTING), baselines=False)
        .representations["trained"]
        .scores
        for d in data
    )
    for name, found in honest.items():
        assert found.setting == permuted[name].setting and found.validation == permuted[name].validation
    assert honest["knn"].per_class != permuted["knn"].per_class
    for a, b in (SeenFeatures.tasks, [task.frozen for task in SeenImages.tasks]):
        for field in ("train_x", "train_y", "val_x", "val_y", "test_x"):
            assert torch.equal(getattr(a, field), getattr(b, field))


@dataclass(frozen=True)
class SeenFeatures(FeatureProtocol):
    """Keeps what it sees."""

    name = title = "seen features"
    tasks: ClassVar[list] = []

    def run(self, task, seed):
        self.tasks.append(task)
        return KNN().run(task, seed)


@dataclass(frozen=True)
class SeenImages(ImageProtocol):
    """Keeps what it sees."""

    name = title = "seen images"
    tasks: ClassVar[list] = []

    def run(self, task, seed):
        self.tasks.append(task)
        return KNN().run(task.frozen, seed)


@dataclass(frozen=True)
class Counting(MetricProtocol):
    """Counts the test images."""

    name = title = "counting"
    title = "count of images"
    seeded = True

    scale: float = 2.0

    def run(self, task, seed):
        assert isinstance(task, LabeledTask) and len(task.test_y) == len(task.frozen.test_x)
        n = len(task.test_y)
        return Metric("count", self.scale * n + seed, (seed, 1.0 + seed), {"half": n / 2}, {"scale": self.scale})


def test_protocols_see_images_and_no_labels_of_them(learner, pictures):
    assert not any("test_y" in {f.name for f in dataclasses.fields(kind)} for kind in (Task, SeenImages))
    source, test = pictures(90), pictures(40, seed=5)
    for data in ((source, test), (source,)):
        SeenImages.tasks.clear()
        parts = judge(learner, *data, protocols=("seen images",)).images
        task, _, pixels = SeenImages.tasks
        assert not isinstance(task, LabeledTask) and not hasattr(task, "test_y")
        assert task.trainval.labels is None and task.test.labels is None
        assert (len(task.trainval), len(task.test)) == (parts["train"] + parts["validation"], parts["test"])
        where = dict(zip(source.ids, source.labels.tolist(), strict=True))
        assert [where[name] for name in task.trainval.ids] == task.frozen.trainval_y.tolist()
        assert set(task.test.ids) <= set(data[-1].ids) and not set(task.test.ids) & set(task.trainval.ids)
        # The same images in the same rows: their features are those that the task holds.
        for images, x in ((task.trainval, task.frozen.trainval_x), (task.test, task.frozen.test_x)):
            torch.testing.assert_close(extract(learner, images, **LOOK).x, x)
        # A protocol that makes crops of raw pixels standardizes them itself.
        torch.testing.assert_close(extract(Pixels(), pixels.test, **LOOK).x, pixels.frozen.test_x)


def test_tuning_alone_is_judged_without_raw_pixels(learner, pictures):
    report = judge(learner, pictures(120), protocols=("semi_10",), settings=quick("semi_10"))
    assert set(report.representations) == {"trained", "untrained"} and set(report.gains) == {"untrained"}
    assert "fine-tuning on 10 % " in report.verdict and "pixels" not in report.verdict
    images = report.representations["trained"].scores["semi_10"].setting["images"]
    assert images == round((report.images["train"] + report.images["validation"]) / 10)


# -- kinds of features -----------------------------------------------------------------------------------------------


@pytest.fixture
def vit():
    torch.manual_seed(7)  # other weights than an untrained encoder's
    return Encoder("vit_tiny_patch16_224", img_size=12, patch_size=4, embed_dim=12, depth=4, num_heads=2).eval()


def test_features_of_a_kind_reach_every_protocol_and_baseline(vit, pictures, few_steps):
    source, names = pictures(90), ("knn", "linear", "linear_augmented", "semi_10")
    report = judge(vit, source, protocols=names, features="last4", settings=quick(*names))
    assert report.features == "last4" and Report.from_json(report.to_json()) == report
    dims = {name: found.dim for name, found in report.representations.items()}
    assert dims == {"trained": 48, "untrained": 48, "pixels": 432}

    class Last4(torch.nn.Module):
        def forward(self, x):
            return represent(vit, x, "last4")

    x, parts = extract(Last4(), source, **LOOK), split(source.ids, PARTS, salt="evaluation")
    (a, ya), (b, yb), (c, yc) = ((x.x[parts[k]], x.labels[parts[k]]) for k in PARTS)
    logits = linear_probe(Task(a, ya, b, yb, c, 3)).logits
    assert report.representations["trained"].scores["linear"].top1 == (logits.argmax(1) == yc).double().mean().item()


def test_the_cache_gives_the_same_report_and_tells_kinds_of_features_apart(vit, pictures, tmp_path):
    first = judge(vit, pictures(60), features="last4", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    again = judge(vit, pictures(60), features="last4", cache=tmp_path)
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(again, seconds=0)
    for count, kind, dim in ((5, "cls_mean", 24), (7, "pooled", 12)):
        found = judge(vit, pictures(60), features=kind, cache=tmp_path).representations
        assert (found["trained"].dim, found["untrained"].dim) == (dim, dim)
        assert len(list(tmp_path.iterdir())) == count  # raw pixels are the same


def test_features_that_an_encoder_does_not_have_are_refused_before_anything_is_read(encoder, pictures):
    source = dataclasses.replace(pictures(40), read=None)
    with pytest.raises(UserError, match="resnet18 cannot give features 'last4'"):
        judge(encoder, source, features="last4")
    with pytest.raises(UserError, match="Did you mean 'last4'"):
        judge(encoder, source, features="last")


# -- encoders and data -------------------------------------------------------------------------------------------


def test_labels_of_the_test_set_are_aligned_by_name(encoder, pictures):
    train, test = pictures(90, noise=10), pictures(60, seed=3, noise=10)
    # The same names in another order: class 2 is number 0.
    turned = dataclasses.replace(test, annotate=lambda: ((test.labels + 1) % 3, ["class 2", "class 0", "class 1"]))
    scores = [judge(encoder, train, t).representations["pixels"].scores["knn"] for t in (test, turned)]
    assert scores[0].top1 == scores[1].top1 > 0.9


def test_the_untrained_encoder_is_the_same_architecture_with_weights_from_the_seed(encoder):
    state = torch.get_rng_state()
    a, again, b = untrained(encoder, 0), untrained(encoder, 0), untrained(encoder, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.spec == encoder.spec
    weights = [e.model.layer1[0].conv1.weight for e in (a, again, b, encoder)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    norm = a.model.bn1
    assert norm.running_mean.abs().max() == 0 and (norm.running_var == 1).all()


def test_the_encoder_is_left_as_it_was_and_the_same_seed_gives_the_same_report(encoder, pictures, few_steps):
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    reports = [judge(encoder, pictures(90), protocols=("knn", "linear"), baselines=False) for _ in range(2)]
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert dataclasses.replace(reports[0], seconds=0) == dataclasses.replace(reports[1], seconds=0)


def test_the_nearest_images_are_training_images(encoder, pictures):
    source = pictures(100)
    report = judge(encoder, source, baselines=False)
    parts = split(source.ids, PARTS, salt="evaluation")
    x = torch.nn.functional.normalize(extract(encoder, source, **LOOK).x, dim=1)
    for found in report.nearest:
        assert found.query in parts["test"] and not set(found.items) & set(parts["test"].tolist())
        bank = np.setdiff1d(np.arange(100), parts["test"])
        assert found.items[0] == bank[int((x[bank] @ x[found.query]).argmax())]
        assert list(found.similarity) == sorted(found.similarity, reverse=True)


def test_bad_images_are_reported_once_and_left_out(encoder, pictures, tmp_path):
    source = pictures(60)
    for i in range(60):
        file = tmp_path / source.classes[source.labels[i]] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        source.load(i).save(file)
    file.write_bytes(b"no image")
    report = judge(encoder, open_source(tmp_path))
    assert [where.rsplit("/", 1)[-1] for where, _ in report.bad] == ["59.png"]
    assert sum(report.images.values()) == 59


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda make: (open_source(np.zeros((20, 12, 12, 3), np.uint8)),), "has no labels"),
        (lambda make: (make(30, classes=1),), "of the class 'class 0': an evaluation needs at least two"),
        (lambda make: (make(31, classes=4).subset(range(28)),), r"4 classes \(class 0 \(7\).* --min-per-class 10"),
        (lambda make: (make(40, classes=2), make(30)), "'class 2', which is not among class 0, class 1"),
        (lambda make: (make(40), open_source(np.zeros((20, 12, 12, 3), np.uint8))), "has no labels"),
        (lambda make: (make(40), make(40)), "test images are the images of array themselves"),
        (lambda make: (make(40), make(30, seed=1).subset(range(0, 30, 3))), "of the class 'class 0'"),
    ],
)
def test_bad_data_is_named_in_one_sentence(encoder, pictures, data, message):
    with pytest.raises(UserError, match=message) as error:
        judge(encoder, *data(pictures))
    assert str(error.value).count(".") <= 3 and "\n" not in str(error.value)


def test_a_diverged_encoder_is_named(pictures):
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    torch.nn.init.constant_(encoder.model.conv1.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        judge(encoder, pictures(40))


def test_test_images_that_were_trained_on_are_reported(encoder, pictures, tmp_path):
    source, test = pictures(120), pictures(40, seed=9)
    assert judge(encoder, source, test, baselines=False).notes == ()
    pixels = [np.asarray(s.load(i)) for s, rows in ((test, range(38)), (source, (5, 7))) for i in rows]
    mixed = open_source((np.stack(pixels), np.array([f"class {i % 3}" for i in (*range(38), 5, 7)])))
    report = judge(encoder, source, mixed, baselines=False)
    assert len(report.notes) == 1 and report.notes[0].startswith("2 of 40 test images are also training images")
    assert report.notes[0] in plain({}, report) and Report.from_json(report.to_json()) == report
    # In a set that is split, names decide, and two copies may fall on either side.
    for i in range(60):
        for copy in ("a", "b"):
            file = tmp_path / f"class {i % 3}" / f"{i}{copy}.png"
            file.parent.mkdir(exist_ok=True)
            source.load(i).save(file)
    (note,) = judge(encoder, open_source(tmp_path), baselines=False).notes
    assert "test images are also training images" in note


def test_images_that_a_collapsed_encoder_takes_for_one_are_no_copies(pictures):
    class Same(torch.nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 8) + 1e-6 * x.mean((1, 2, 3))[:, None]

    assert judge(ExternalEncoder(Same(), 12), pictures(200), baselines=False).notes == ()


# -- other conditions --------------------------------------------------------------------------------------------


def test_a_probe_is_tried_under_other_conditions(encoder, pictures, tmp_path, few_steps):
    source, copies = pictures(120), tmp_path / "darker"
    for i in range(60):
        file = copies / f"class {i % 3}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        (source if i < 20 else pictures(60, seed=3)).load(i).save(file)
    (copies / "class 0" / "bad.png").write_bytes(b"no image")
    same = dataclasses.replace(pictures(60, seed=4), name="same")
    options = {"protocols": ("linear",), "baselines": False, "seeds": 2}
    report = judge(encoder, source, others=[same, open_source(copies)], **options)
    found = report.representations["trained"]
    assert list(found.measures) == ["shifted same", "shifted darker"]
    assert found.measures["shifted same"].details["on the test images"] == pytest.approx(found.scores["linear"].top1)
    copied, bad = report.notes  # each said once, whatever the seeds
    learned = report.images["train"] + report.images["validation"]
    assert 0 < int(copied.split()[0]) <= 20 and learned < 120
    assert "images of darker are also training images" in copied and "too high" in copied
    assert bad.startswith("1 images of darker could not be read") and "bad.png" in bad
    assert Report.from_json(report.to_json()) == report


def test_other_conditions_that_cannot_be_judged_are_refused(encoder, pictures):
    same = dataclasses.replace(pictures(60, seed=4), name="same")
    for others, message in (
        ([same, dataclasses.replace(pictures(60, seed=5), name="same")], "Two sets of other conditions are called sam"),
        ([pictures(90)], "are those that are evaluated"),
        ([pictures(60, classes=6)], "class 3"),
    ):
        with pytest.raises(UserError, match=message):
            judge(encoder, pictures(90), others=others)


def test_images_with_one_label_each_may_be_asked_for_several(encoder, pictures):
    source, test = pictures(120), pictures(60, seed=5)
    for sets in ((source,), (source, test)):
        report = judge(encoder, *sets, protocols=("multilabel",), baselines=False)
        assert 0.3 < report.representations["trained"].measures["multilabel"].value <= 1
    with pytest.raises(UserError, match="ask for it alone"):
        judge(encoder, source, protocols=("multilabel", "knn"))


# -- seeds, and the report ---------------------------------------------------------------------------------------


def test_several_seeds_are_run_and_averaged(encoder, pictures):
    settings = {"linear_augmented.epochs": 1}

    def judged(seed, seeds):
        names = ("knn", "linear_augmented", "counting")
        return judge(encoder, pictures(90), protocols=names, settings=settings, baselines=False, seed=seed, seeds=seeds)

    one, two, both = (r.representations["trained"] for r in (judged(3, 1), judged(4, 1), judged(3, 2)))
    scores = [r.scores["linear_augmented"] for r in (one, two, both)]
    assert scores[2].by_seed == (scores[0].top1, scores[1].top1)
    assert scores[2].top1 == pytest.approx((scores[0].top1 + scores[1].top1) / 2)
    assert both.scores["knn"].by_seed == (one.scores["knn"].top1,)  # it draws nothing
    a, b, c = (r.measures["counting"] for r in (one, two, both))
    assert c.by_seed == (a.value, b.value) and c.value == (a.value + b.value) / 2 and c.interval == (3.5, 4.5)
    report = judged(3, 2)
    assert Report.from_json(report.to_json()) == report
    assert "count of images: mean of 2 seeds" in " ".join(plain({}, report).split())
    with pytest.raises(UserError, match="1 seed or more, not 0"):
        judged(0, 0)


def test_metrics_stand_next_to_accuracies(encoder, pictures):
    report = judge(encoder, pictures(90), protocols=("counting",), settings={"counting.scale": 3.0})
    tested = report.images["test"]
    assert {r.measures["counting"].value for r in report.representations.values()} == {3.0 * tested}
    assert report.verdict == f"count of images: count {3.0 * tested:.3f} against " + (
        f"{3.0 * tested:.3f} for an untrained encoder and {3.0 * tested:.3f} for raw pixels."
    )
    assert f"{3.0 * tested:.3f} (0.000 to 1.000)" in plain({}, report)


def test_a_report_survives_json_and_reads_what_older_versions_wrote(encoder, pictures):
    report = judge(encoder, pictures(90, classes=7), protocols=("knn", "counting"))
    text = report.to_json()
    assert Report.from_json(text) == report and json.loads(text)["verdict"] == report.verdict
    for wrong in ("{", "[]", "{}", '{"classes": 3}', json.dumps({"representations": {"trained": 1}})):
        with pytest.raises(UserError, match="not an evaluation's report"):
            Report.from_json(wrong)
    facts = json.loads(text)
    for part in facts["representations"].values():
        part["measures"] = {"guillotine": part["measures"].pop("counting")}
    old = Report.from_json(json.dumps(facts))
    assert old.measures == ["projector_layers"] and "projector, layer by layer" in plain({}, old)


def with_gains(report, *, pixels, untrained, spread=0.8, rankme=20.0):
    found = dict(report.representations)
    found["trained"] = dataclasses.replace(found["trained"], spread=spread, rankme=rankme)
    gains = {
        name: {"knn": Gain((low + high) / 2, (low, high))}
        for name, (low, high) in {"untrained": untrained, "pixels": pixels}.items()
    }
    return dataclasses.replace(report, representations=found, gains=gains)


def test_the_verdict_follows_the_intervals(encoder, pictures):
    report = judge(encoder, pictures(60))
    good = with_gains(report, pixels=(0.2, 0.25), untrained=(0.3, 0.34)).verdict
    assert good.startswith("The features are good: k-NN ") and good.endswith("well outside the interval.")
    close = with_gains(report, pixels=(0.01, 0.06), untrained=(0.3, 0.34)).verdict
    assert close.startswith("The features are better") and "just outside" in close
    same = with_gains(report, pixels=(-0.01, 0.05), untrained=(0.3, 0.34)).verdict
    assert "not better than raw pixels:" in same and "Train longer" in same
    worse = with_gains(report, pixels=(-0.3, -0.2), untrained=(-0.1, 0.1))
    assert "not better than an untrained encoder or raw pixels" in worse.verdict
    collapsed = with_gains(report, pixels=(-0.3, -0.2), untrained=(-0.1, 0.1), rankme=1.3).verdict
    assert "have collapsed (RankMe 1.3 of 8)" in collapsed
    # Few dimensions that beat everything are no collapse.
    assert "good" in with_gains(report, pixels=(0.2, 0.25), untrained=(0.3, 0.34), rankme=1.3).verdict
    assert "no baseline" in judge(encoder, pictures(60), baselines=False).verdict
