import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from manyviews.backbones import Encoder, ExternalEncoder, represent
from manyviews.data import open_source
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation import (
    PROTOCOLS,
    Measure,
    Pixels,
    Report,
    Task,
    evaluate,
    extract,
    knn,
    linear_probe,
    protocol,
)
from manyviews.evaluation.linear import Standard
from manyviews.evaluation.protocol import INSIDE, MEASURES, ON_FEATURES, ON_IMAGES, untrained
from manyviews.evaluation.report import Gain
from manyviews.reporting.summary import plain

from .conftest import QUICK

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}


PARTS = {"train": 0.64, "validation": 0.16, "test": 0.2}
QUICK_SEMI = {k: v for k, v in QUICK.items() if k.startswith("semi_10")}


ANSWERING = (*ON_FEATURES, *ON_IMAGES)


def judge(encoder, *data, **options):
    return evaluate(encoder, *data, **LOOK, **{"protocols": ("knn",)} | options)


def relabeled(source, labels):
    return dataclasses.replace(source, annotate=lambda: (np.asarray(labels), source.classes))


def test_a_report_holds_every_representation_under_every_protocol(learner, pictures, few_steps):
    """But raw pixels where an encoder is tuned: they have nothing to learn with."""
    report = judge(learner, pictures(240, classes=6), protocols=ANSWERING, settings=QUICK)
    assert set(report.representations) == {"trained", "untrained", "pixels"}
    assert sum(report.images.values()) == 240
    for name, found in report.representations.items():
        assert list(found.scores) == [p for p in ANSWERING if name != "pixels" or p not in INSIDE]
        for score in found.scores.values():
            low, high = score.interval
            assert low <= score.top1 <= high
            assert score.top1 <= score.top5 <= 1
            assert len(score.per_class) == 6
    assert {name: set(gains) for name, gains in report.gains.items()} == {
        "untrained": set(ANSWERING),
        "pixels": set(ANSWERING) - INSIDE,
    }
    assert report.representations["trained"].dim == learner.embed_dim
    assert report.representations["pixels"].scores["linear"].top1 > 0.9  # the mean color tells the class
    assert report.bad == ()
    assert judge(learner, pictures(60), baselines=False).gains == {}


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
    standard = Standard.of(a.x)
    wanted = knn(standard(a.x), a.labels, standard(b.x), b.labels).weighted[20]
    assert report.representations["pixels"].scores["knn"].top1 == pytest.approx(wanted)


def test_data_without_a_test_set_is_split_by_a_stable_hash(encoder, pictures):
    source = pictures(200)
    report = judge(encoder, source, baselines=False)
    parts = split(source.ids, {"train": 0.64, "validation": 0.16, "test": 0.2}, salt="evaluation")
    assert report.images == {k: len(v) for k, v in parts.items()}
    shuffled = source.subset(np.random.default_rng(0).permutation(200))
    again = judge(encoder, shuffled, baselines=False)
    ours, theirs = (r.representations["trained"].scores["knn"].top1 for r in (report, again))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("with_test", [True, False])
def test_test_labels_choose_nothing(learner, pictures, with_test, monkeypatch, few_steps):
    answers, score = [], protocol._score
    monkeypatch.setattr(protocol, "_score", lambda given, *rest: answers.extend(given) or score(given, *rest))
    source = pictures(160, noise=200)
    rng = np.random.default_rng(0)
    if with_test:
        test = pictures(60, seed=5)
        data = [(source, test), (source, relabeled(test, rng.permutation(test.labels)))]
    else:
        asked = split(source.ids, {"train": 0.64, "validation": 0.16, "test": 0.2}, salt="evaluation")["test"]
        labels = source.labels.copy()
        labels[asked] = rng.permutation(labels[asked])
        data = [(source,), (relabeled(source, labels),)]
    honest, permuted = (
        judge(learner, *d, protocols=ANSWERING, settings=QUICK, baselines=False).representations["trained"].scores
        for d in data
    )
    for name, found in honest.items():
        assert found.setting == permuted[name].setting
        assert found.validation == permuted[name].validation
    assert honest["knn"].per_class != permuted["knn"].per_class
    for ours, theirs in zip(answers[: len(ANSWERING)], answers[len(ANSWERING) :], strict=True):
        assert torch.equal(ours.ranked, theirs.ranked)


def test_protocols_see_images_and_no_labels_of_them(learner, pictures, monkeypatch):
    source, test, seen = pictures(160), pictures(60, seed=5), []
    monkeypatch.setitem(
        ON_IMAGES, "finetune", lambda task, seed: seen.append(task) or ON_FEATURES["knn"](task.frozen, 0)
    )
    for data in ((source, test), (source,)):
        parts = judge(learner, *data, protocols=("finetune",), baselines=False).images
        task = seen.pop()
        assert task.known.labels is None and task.asked.labels is None
        y = torch.cat([task.frozen.train_y, task.frozen.val_y]).tolist()
        assert (len(task.known), len(task.asked)) == (parts["train"] + parts["validation"], parts["test"])
        where = dict(zip(source.ids, source.labels.tolist(), strict=True))
        assert [where[name] for name in task.known.ids] == y
        assert set(task.asked.ids) <= set(data[-1].ids) and not set(task.asked.ids) & set(task.known.ids)
        # The same images in the same rows: their features are those that the task holds.
        for images, x in (
            (task.known, torch.cat([task.frozen.train_x, task.frozen.val_x])),
            (task.asked, task.frozen.test_x),
        ):
            torch.testing.assert_close(extract(learner, images, **LOOK).x, x)


def test_tuning_alone_is_judged_without_raw_pixels(learner, pictures):
    report = judge(learner, pictures(120), protocols=("semi_10",), settings=QUICK_SEMI)
    assert set(report.representations) == {"trained", "untrained"} and set(report.gains) == {"untrained"}
    assert "fine-tuning on 10 % " in report.verdict and "pixels" not in report.verdict
    images = report.representations["trained"].scores["semi_10"].setting["images"]
    assert images == 3 * round(report.images["train"] / 30)
    assert Report.from_json(report.to_json()) == report


def test_raw_pixels_are_standardized_by_the_protocol_that_makes_crops_of_them(learner, pictures, monkeypatch):
    seen = {}

    def look(task, seed):
        seen[type(task.encoder)] = task.frozen.train_x
        return ON_FEATURES["knn"](task.frozen, 0)

    monkeypatch.setitem(ON_IMAGES, "linear_augmented", look)
    source = pictures(60)
    judge(learner, source, protocols=("linear_augmented",))
    raw = extract(Pixels(), source, **LOOK).x
    rows = torch.from_numpy(
        split(source.ids, {"train": 0.64, "validation": 0.16, "test": 0.2}, salt="evaluation")["train"]
    )
    assert torch.equal(seen[Pixels], raw[rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetune.lr": 0.1}, "no setting of finetune 'lr'. Did you mean 'lrs'"),
        ({"semi_1.lrs": 0.1}, "semi_1.lrs is of no protocol that was asked for: knn, finetune"),
        ({"lrs": 0.1}, "lrs is of no protocol"),
        ({"knn.k": 10}, "'knn' has no settings"),
        ({"finetune.epochs": 1.5}, "finetune.epochs must be tuple"),
        ({"finetune.epochs": "many"}, "finetune.epochs must be tuple"),
        ({"finetune.lrs": ()}, "finetune.lrs must be positive"),
        ({"finetune.lrs": "0.1,-1"}, "finetune.lrs must be positive"),
        ({"finetune.batch": 0}, "finetune.batch must be positive"),
    ],
)
def test_bad_settings_are_named(learner, pictures, settings, message):
    with pytest.raises(UserError, match=message):
        judge(learner, pictures(40), protocols=("knn", "finetune"), settings=settings)


@pytest.mark.parametrize("value", ["0.05, 0.1", [0.05, 0.1], (0.05, 0.1)])
def test_settings_are_values_or_texts(value):
    assert protocol._given(("finetune",), {"finetune.lrs": value})["finetune"] == {"lrs": (0.05, 0.1)}
    assert protocol._given(("finetune",), {"finetune.epochs": "3"})["finetune"] == {"epochs": (3,)}
    assert protocol._given(("linear_augmented",), {"linear_augmented.lr": 1})["linear_augmented"] == {"lr": 1}
    for severity in ("0", "6"):
        with pytest.raises(UserError, match="severities must be from 1 to 5"):
            protocol._given(("corruptions",), {"corruptions.severities": severity})


# -- majority --------------------------------------------------------------------------------------------------------


def noisy(n=300, v=60, m=80, classes=4):
    x = torch.randn(n + v + m, 12)
    y = (x[:, :classes] + torch.randn(n + v + m, classes)).argmax(1)
    return Task(x[:n], y[:n], x[n : n + v], y[n : n + v], x[n + v :], classes), y[n + v :]


def test_the_majority_is_scikit_learns_with_k_from_validation_images():
    """A tie of votes goes to the class of the lowest index, here and there."""
    chosen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        task, _ = noisy()
        answer = ON_FEATURES["knn_majority"](task, 0)

        def theirs(k, x, y, asked):
            model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x.double(), y)
            return torch.from_numpy(model.predict(asked.double()))

        held = {k: (theirs(k, task.train_x, task.train_y, task.val_x) == task.val_y).double().mean() for k in (10, 20)}
        assert [s["k"] for s, _ in answer.validation] == [10, 20]
        assert [a for _, a in answer.validation] == pytest.approx([float(held[k]) for k in (10, 20)])
        best = 20 if held[20] > held[10] else 10
        assert answer.setting == {"k": best}
        chosen.add(best)
        x, y = torch.cat([task.train_x, task.val_x]), torch.cat([task.train_y, task.val_y])
        for k in (10, 20):
            assert torch.equal(answer.others[f"k={k}"], theirs(k, x, y, task.test_x))
        assert torch.equal(answer.ranked[:, 0], answer.others[f"k={best}"])
    assert chosen == {10, 20}  # the rule was seen both ways


def test_neighbors_of_few_images():
    """All of them vote, as many as the setting says."""
    task, _ = noisy(n=10, v=6)
    answer = ON_FEATURES["knn"](task, 0)
    assert answer.setting["k"] == 16 and {"k=10 weighted", "k=16 weighted"} <= answer.others.keys()
    model = KNeighborsClassifier(16, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    model.fit(torch.cat([task.train_x, task.val_x]).double(), torch.cat([task.train_y, task.val_y]))
    assert answer.ranked[:, 0].tolist() == model.predict(task.test_x.double()).tolist()


def test_a_majority_of_few_images():
    task, _ = noisy(n=6, v=6)
    answer = ON_FEATURES["knn_majority"](task, 0)
    assert answer.setting == {"k": 6} and list(answer.others) == ["k=6"]


# -- kinds of features -----------------------------------------------------------------------------------------------


@pytest.fixture
def vit():
    torch.manual_seed(7)  # other weights than an untrained encoder's
    return Encoder("vit_tiny_patch16_224", img_size=12, patch_size=4, embed_dim=12, depth=4, num_heads=2).eval()


def test_features_of_a_kind_reach_every_protocol_and_baseline(vit, pictures, few_steps):
    source, protocols = pictures(90), ("knn", "linear", "linear_augmented", "semi_10")
    settings = {k: v for k, v in QUICK.items() if k.startswith(protocols[2:])}
    report = judge(vit, source, protocols=protocols, features="last4", settings=settings)
    assert report.features == "last4" and Report.from_json(report.to_json()) == report
    dims = {name: found.dim for name, found in report.representations.items()}
    assert dims == {"trained": 48, "untrained": 48, "pixels": 432}

    class Last4(torch.nn.Module):
        def forward(self, x):
            return represent(vit, x, "last4")

    x, parts = extract(Last4(), source, **LOOK), split(source.ids, PARTS, salt="evaluation")
    (a, ya), (b, yb), (c, yc) = ((x.x[parts[k]], x.labels[parts[k]]) for k in PARTS)
    logits = linear_probe(a, ya, b, yb, c, classes=3).logits
    assert report.representations["trained"].scores["linear"].top1 == (logits.argmax(1) == yc).double().mean().item()


def test_the_cache_tells_kinds_of_features_apart(vit, pictures, tmp_path):
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
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    norm = a.model.bn1
    assert norm.running_mean.abs().max() == 0 and (norm.running_var == 1).all()


def test_the_encoder_is_left_as_it_was_and_the_same_seed_gives_the_same_report(encoder, pictures):
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    reports = [judge(encoder, pictures(90), protocols=("knn", "linear"), baselines=False) for _ in range(2)]
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert dataclasses.replace(reports[0], seconds=0) == dataclasses.replace(reports[1], seconds=0)


def test_a_report_survives_json(encoder, pictures):
    report = judge(encoder, pictures(90, classes=7), protocols=("knn", "linear"))
    text = report.to_json()
    assert Report.from_json(text) == report
    assert json.loads(text)["verdict"] == report.verdict
    for wrong in ("{", "[]", "{}", '{"classes": 3}', json.dumps({"representations": {"trained": 1}})):
        with pytest.raises(UserError, match="not an evaluation's report"):
            Report.from_json(wrong)


def test_the_cache_gives_the_same_report(encoder, pictures, tmp_path):
    first, again = (judge(encoder, pictures(90), cache=tmp_path) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 3
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(again, seconds=0)


def test_nearest_are_training_images_by_their_place_in_the_source(encoder, pictures):
    source = pictures(100)
    report = judge(encoder, source, baselines=False)
    parts = split(source.ids, {"train": 0.64, "validation": 0.16, "test": 0.2}, salt="evaluation")
    x = torch.nn.functional.normalize(extract(encoder, source, **LOOK).x, dim=1)
    for found in report.nearest:
        assert found.query in parts["test"]
        assert not set(found.items) & set(parts["test"].tolist())
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


def test_progress_grows_to_the_total(encoder, pictures):
    calls = []
    judge(
        encoder, pictures(60), pictures(30, seed=1), progress=lambda done, total, note="": calls.append((done, total))
    )
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)
    assert {c[1] for c in calls} == {93}
    assert calls[-1] == (93, 93)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda make: (open_source(np.zeros((20, 12, 12, 3), np.uint8)),), "has no labels"),
        (lambda make: (make(30, classes=1),), "of the class 'class 0': an evaluation needs at least two"),
        (lambda make: (make(31, classes=4).subset(range(28)),), "'class 0' of array has 7 of the at least 10"),
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


def test_bad_requests_are_named_before_anything_is_read(encoder, pictures):
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        judge(encoder, pictures(40), protocols=("knn", "liner"))
    with pytest.raises(UserError, match="No protocol"):
        judge(encoder, pictures(40), protocols=())


def test_a_diverged_encoder_is_named(pictures):
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    with torch.no_grad():
        encoder.model.layer1[0].bn1.weight.fill_(float("nan"))
        encoder.model.conv1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        judge(encoder, pictures(40))


def test_every_protocol_says_what_it_does_in_a_line():
    for described in PROTOCOLS.values():
        line = described.__doc__.splitlines()[0]
        assert line.endswith(".") and len(line) < 120


def test_progress_of_long_protocols_grows_to_the_total(learner, pictures, few_steps):
    calls = []
    settings = {"linear_augmented.epochs": 2, "semi_10.epochs": (1, 2), "semi_10.lrs": 0.1}
    judge(
        learner,
        pictures(60),
        protocols=("semi_10", "knn", "linear_augmented"),
        settings=settings,
        progress=lambda *call: calls.append(call),
    )
    done, total = [c[0] for c in calls], {c[1] for c in calls}
    assert done == sorted(done) and total == {done[-1]}
    notes = [c[2] for c in calls if len(c) > 2]
    assert "semi_10: trained, lr 0.1, epoch 2 of 2" in notes and "linear_augmented: pixels, epoch 2 of 2" in notes


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
    assert (
        "not better than an untrained encoder or raw pixels"
        in with_gains(report, pixels=(-0.3, -0.2), untrained=(-0.1, 0.1)).verdict
    )
    collapsed = with_gains(report, pixels=(-0.3, -0.2), untrained=(-0.1, 0.1), rankme=1.3).verdict
    assert "have collapsed (RankMe 1.3 of 8)" in collapsed
    # Few dimensions that beat everything are no collapse.
    assert "good" in with_gains(report, pixels=(0.2, 0.25), untrained=(0.3, 0.34), rankme=1.3).verdict
    assert "no baseline" in judge(encoder, pictures(60), baselines=False).verdict


def test_several_seeds_are_run_and_averaged(encoder, pictures):
    settings = {"linear_augmented.epochs": 1}
    protocols = ("knn", "linear_augmented")

    def judged(seed, seeds):
        options = dict(protocols=protocols, settings=settings, baselines=False, **LOOK)
        return evaluate(encoder, pictures(150), seed=seed, seeds=seeds, **options)

    one, two, both = judged(3, 1), judged(4, 1), judged(3, 2)
    scores = [r.representations["trained"].scores["linear_augmented"] for r in (one, two, both)]
    assert scores[2].by_seed == (scores[0].top1, scores[1].top1)
    assert scores[2].top1 == pytest.approx((scores[0].top1 + scores[1].top1) / 2)
    assert both.representations["trained"].scores["knn"].by_seed == (one.representations["trained"].scores["knn"].top1,)
    assert Report.from_json(both.to_json()) == both
    with pytest.raises(UserError, match="1 seed or more, not 0"):
        judged(0, 0)


def test_measures_are_repeated_with_several_seeds_too(encoder, pictures):
    settings = {"corruptions.kinds": ("gaussian_noise", "fog"), "corruptions.severities": (5,)}

    def judged(seed, seeds):
        protocols = ("corruptions", "few_shot_5")
        return evaluate(
            encoder,
            pictures(150),
            protocols=protocols,
            settings=settings,
            baselines=False,
            seed=seed,
            seeds=seeds,
            **LOOK,
        )

    reports = [judged(3, 1), judged(4, 1), judged(3, 2)]
    one, two, both = (r.representations["trained"].measures["corruptions"] for r in reports)
    assert one.value != two.value
    assert both.by_seed == (one.value, two.value)
    assert both.value == pytest.approx((one.value + two.value) / 2)
    assert both.interval == pytest.approx(np.mean([one.interval, two.interval], 0))
    assert both.details["fog"] == pytest.approx((one.details["fog"] + two.details["fog"]) / 2)
    alone, again = (r.representations["trained"].measures["few_shot_5"] for r in (reports[0], reports[2]))
    assert alone == again
    assert Report.from_json(reports[2].to_json()) == reports[2]
    assert "corrupted images: mean of 2 seeds" in " ".join(plain({}, reports[2]).split())


def test_measures_stand_beside_accuracies(encoder, pictures, monkeypatch):
    def counting(task: object, test_y: torch.Tensor, seed: int, *, scale: float = 2.0) -> Measure:
        """Counts."""
        assert len(test_y) == len(task.frozen.test_x)
        return Measure("count", scale * len(test_y), (0.0, 1.0), {"half": len(test_y) / 2}, {"scale": scale})

    monkeypatch.setitem(MEASURES, "counting", counting)
    monkeypatch.setitem(PROTOCOLS, "counting", counting)
    report = evaluate(encoder, pictures(150), protocols=("counting",), settings={"counting.scale": 3.0}, **LOOK)
    assert list(report.representations) == ["trained", "untrained", "pixels"]
    tested = report.images["test"]
    assert {r.measures["counting"].value for r in report.representations.values()} == {3.0 * tested}
    assert report.verdict == f"counting: count {3.0 * tested:.3f} against " + (
        f"{3.0 * tested:.3f} for an untrained encoder and {3.0 * tested:.3f} for raw pixels."
    )
    assert Report.from_json(report.to_json()) == report
    assert f"{3.0 * tested:.3f} (0.000 to 1.000)" in plain({}, report)


QUICK_MEASURES = {
    "corruptions.images": 20,
    "corruptions.kinds": ("contrast", "jpeg"),
    "corruptions.severities": (1, 5),
    "copy_detection.copies": 10,
    "clustering.runs": 1,
}


def test_every_measure_is_there_for_every_representation(learner, pictures, few_steps):
    names = tuple(m for m in MEASURES if m not in ("multilabel", "guillotine"))
    given = {k: v for k, v in QUICK_MEASURES.items() if k.partition(".")[0] in names}
    report = judge(learner, pictures(150), protocols=names, settings=given)
    for name, found in report.representations.items():
        assert list(found.measures) == [m for m in names if name != "pixels" or m not in INSIDE]
        assert all(np.isfinite(m.value) for m in found.measures.values())
    assert Report.from_json(report.to_json()) == report


def test_a_projector_alone_is_judged_without_baselines(learner, pictures, few_steps):
    """An untrained encoder has none: it is described, and nothing is run on it."""
    width = learner(torch.zeros(2, 3, 12, 12)).shape[1]
    layers = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    report = judge(learner, pictures(120), protocols=("guillotine",), projector=(layers, None))
    assert {name: list(r.measures) for name, r in report.representations.items()} == {
        "trained": ["guillotine"],
        "untrained": [],
    }


def test_a_probe_is_tried_under_other_conditions(encoder, pictures):
    darker = dataclasses.replace(pictures(60, seed=3), name="darker")
    same = dataclasses.replace(pictures(60, seed=4), name="same")
    report = judge(encoder, pictures(200), protocols=("linear",), others=[same, darker], baselines=False)
    found = report.representations["trained"]
    assert list(found.measures) == ["shifted same", "shifted darker"]
    assert found.measures["shifted same"].details["on the test images"] == found.scores["linear"].top1
    with pytest.raises(UserError, match="Two sets of other conditions are called same"):
        judge(encoder, pictures(200), others=[same, dataclasses.replace(darker, name="same")])
    with pytest.raises(UserError, match="are those that are evaluated"):
        judge(encoder, pictures(200), others=[pictures(200)])
    with pytest.raises(UserError, match="class 3"):
        judge(encoder, pictures(200), others=[pictures(60, classes=6)])


def test_what_is_wrong_with_other_conditions_is_said(encoder, pictures, tmp_path):
    source = pictures(120)
    for i in range(60):
        file = tmp_path / "darker" / f"class {i % 3}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        (source if i < 20 else pictures(60, seed=3)).load(i).save(file)
    (tmp_path / "darker" / "class 0" / "bad.png").write_bytes(b"no image")
    report = judge(
        encoder, source, protocols=("linear",), others=[open_source(tmp_path / "darker")], baselines=False, seeds=2
    )
    copied, bad = report.notes
    learned = report.images["train"] + report.images["validation"]
    assert 0 < int(copied.split()[0]) <= 20 and learned < 120
    assert "images of darker are also training images" in copied and "too high" in copied
    assert bad.startswith("1 images of darker could not be read") and "bad.png" in bad
    assert Report.from_json(report.to_json()) == report


def test_images_with_one_label_each_may_be_asked_for_several(encoder, pictures):
    source, test = pictures(120), pictures(60, seed=5)
    for sets in ((source,), (source, test)):
        report = judge(encoder, *sets, protocols=("multilabel",), baselines=False)
        assert 0.3 < report.representations["trained"].measures["multilabel"].value <= 1


def test_test_images_that_were_trained_on_are_said(encoder, pictures, tmp_path):
    source, test = pictures(120), pictures(40, seed=9)
    assert judge(encoder, source, test, baselines=False).notes == ()
    pixels = [np.asarray(s.load(i)) for s, rows in ((test, range(38)), (source, (5, 7))) for i in rows]
    mixed = open_source((np.stack(pixels), np.array([f"class {i % 3}" for i in (*range(38), 5, 7)])))
    report = judge(encoder, source, mixed, baselines=False)
    assert len(report.notes) == 1 and report.notes[0].startswith("2 of 40 test images are also training images")
    assert report.notes[0] in plain({}, report)
    assert Report.from_json(report.to_json()) == report
    # In a set that is split, names decide, and two copies may fall on either side.
    for i in range(120):
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


def test_settings_that_are_words_are_checked(encoder, pictures):
    for settings in ({"corruptions.kinds": "contrst"}, {"corruptions.probe": "tree"}, {"clustering.fit": "all"}):
        (name,) = settings
        with pytest.raises(UserError):
            judge(encoder, pictures(120), protocols=(name.partition(".")[0],), settings=settings)
