import dataclasses
import json

import numpy as np
import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation import PROTOCOLS, Pixels, Report, evaluate, extract, knn
from manyviews.evaluation.linear import Standard
from manyviews.evaluation.protocol import untrained
from manyviews.evaluation.report import Gain

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def judge(encoder, *data, **options):
    return evaluate(encoder, *data, **LOOK, **{"protocols": ("knn",)} | options)


def relabeled(source, labels):
    return dataclasses.replace(source, annotate=lambda: (np.asarray(labels), source.classes))


def test_a_report_holds_every_representation_under_every_protocol(encoder, pictures):
    report = judge(encoder, pictures(240, classes=6), protocols=tuple(PROTOCOLS))
    assert set(report.representations) == {"trained", "untrained", "pixels"}
    assert sum(report.images.values()) == 240
    for found in report.representations.values():
        assert set(found.scores) == set(PROTOCOLS)
        for score in found.scores.values():
            low, high = score.interval
            assert low <= score.top1 <= high
            assert score.top1 <= score.top5 <= 1
            assert len(score.per_class) == 6
    assert set(report.gains) == {"untrained", "pixels"}
    assert report.representations["trained"].dim == encoder.embed_dim
    assert report.representations["pixels"].scores["linear"].top1 > 0.9  # the mean color tells the class
    assert report.bad == ()
    assert judge(encoder, pictures(60), baselines=False).gains == {}


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
def test_test_labels_choose_nothing(encoder, pictures, with_test):
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
        judge(encoder, *d, protocols=tuple(PROTOCOLS), baselines=False).representations["trained"].scores for d in data
    )
    for protocol, score in honest.items():
        assert score.setting == permuted[protocol].setting
        assert score.validation == permuted[protocol].validation
        assert score.per_class != permuted[protocol].per_class


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


def test_every_protocol_says_what_it_does():
    for protocol in PROTOCOLS.values():
        assert len(protocol.__doc__.splitlines()) == 1


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
