"""Models of several classes, of numbers, and of masks: what is detected, what is kept, and what other software gets."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler

import manyviews as mv
from manyviews import cli
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.evaluation.dense.segmentation import miou, tally
from manyviews.serving.look import Look
from manyviews.tuning import Several, thresholds
from manyviews.tuning.goal import Score
from manyviews.verbs._judged import Judge
from manyviews.verbs._labels import labeled
from manyviews.verbs.predict import write as predict
from manyviews.weights import Pretrained

PICTURES = 48


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 16), stem="small").train()
    with torch.no_grad():
        for _ in range(10):
            encoder(torch.rand(16, 3, 1, 1) * 4 - 2 + torch.randn(16, 3, 32, 32))
    return Pretrained(encoder.eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 32, "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures whose red and green are there or not, and tables of labels beside them."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "in").mkdir()
    shades = rng.uniform(20, 230, (PICTURES, 3))
    for i, shade in enumerate(shades):
        pixels = (shade + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{i:02d}.png")
    has = shades[:, :2] > 120
    names = [f"{i:02d}.png" for i in range(PICTURES)]

    def table(name, header, rows):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([["path", *header], *([n, *r] for n, r in zip(names, rows, strict=True))])

    joined = [";".join(n for n, there in zip(("red", "green"), row, strict=True) if there) for row in has]
    table("joined.csv", ["label"], [[v] for v in joined])
    table("columns.csv", ["red", "green"], has.astype(int).tolist())
    table(
        "numbers.csv",
        ["shade"],
        [[""] if i == 3 else ["nan"] if i == 4 else [f"{1000 + 3 * s[0]:.2f}"] for i, s in enumerate(shades)],
    )
    table("two.csv", ["warm", "cold"], shades[:, [0, 2]].round(1).tolist())
    table("words.csv", ["label"], [["a;b" if i % 2 else "c"] for i in range(PICTURES)])
    return root


@pytest.fixture(scope="module")
def several(weights, photos, tmp_path_factory):
    """A model of several classes. Do not change it."""
    out = tmp_path_factory.mktemp("models") / "several"
    table = photos / "joined.csv"
    return mv.adapt(weights, photos / "in", out, labels=table, test=photos / "in", test_labels=table, strategy="linear")


@pytest.fixture(scope="module")
def numbers(weights, photos, tmp_path_factory):
    """A model of numbers. Do not change it."""
    out, table = tmp_path_factory.mktemp("models") / "numbers", photos / "numbers.csv"
    return mv.adapt(
        weights, photos / "in", out, labels=table, test=photos / "in", test_labels=table, strategy="linear", refit=False
    )


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "task", "names", "note"),
    [
        ("joined.csv", "several", ("green", "red"), "labels such as"),
        ("columns.csv", "several", ("red", "green"), "2 columns of 0 and 1"),
        ("numbers.csv", "numbers", ("shade",), "2 of 48 images lack a label"),
        ("two.csv", "numbers", ("warm", "cold"), "Numbers in 2 columns"),
        ("words.csv", "classes", ("a;b", "c"), ""),  # separators that make no fewer classes
    ],
)
def test_what_labels_ask_for_is_found_out_and_said(table, task, names, note, photos, capsys):
    found = labeled(photos / "in", photos / table)
    assert (found.task, found.names) == (task, names)
    assert note in capsys.readouterr().err
    if table == "columns.csv":
        assert torch.equal(found.y[:, [1, 0]], labeled(photos / "in", photos / "joined.csv").y)


@pytest.mark.parametrize(
    ("table", "given", "says"),
    [
        ("path,a,b\n00.png,1,x\n01.png,2,y\n", {}, "has the b 'x', which is no number"),
        ("path,a,b\n00.png,1,2\n01.png,0,3\n", {"task": "several"}, "must hold 0 and 1"),
        ("path,label\nno.png,a\n", {}, "no.png"),
        ("path,label\n00.png,a\n00.png,b\n01.png,a\n", {"task": "numbers"}, "several rows for an image"),
        (
            "path,price\n00.png,1.5\n01.png,2.5\n02.png,3.5\n",
            {},
            "has 3 images with labels, and an adaptation to numbers",
        ),
        ("path,label\n00.png,a;b\n01.png,a\n02.png,b\n03.png,b;c\n04.png,c\n", {}, "needs 10 or more"),
        ("path,label\n" + "".join(f"{i:02d}.png,1.5\n" for i in range(20)), {"task": "numbers"}, "the same label"),
        ("path,a,b\n" + "".join(f"{i:02d}.png,1,0\n" for i in range(20)), {}, "the same labels"),
        ("path,label\n00.png,a\n01.png,a\n", {}, "All 2 images of in are of the class 'a'"),
        ("path,label\n00.png,a\n01.png,a\n02.png,b\n03.png,\n", {}, r"b \(1\), of in has fewer than 2"),
    ],
)
def test_bad_labels_are_one_sentence(table, given, says, photos, weights, tmp_path):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError, match=says):
        mv.adapt(weights, photos / "in", tmp_path / "m", labels=tmp_path / "t.csv", **given)
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv"}


def test_folders_without_images_are_named(photos, tmp_path, capsys):
    for name, count in (("a", 2), ("b", 2), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").symlink_to(photos / "in" / f"{i:02d}.png")
    assert labeled(tmp_path, None).names == ("a", "b")
    assert "no classes: empty." in capsys.readouterr().err


def test_test_images_of_an_unknown_class_are_refused(photos, weights, tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{i:02d}.png,{'ab'[i % 2]}\n" for i in range(8)))
    (tmp_path / "b.csv").write_text("path,label\n20.png,a\n21.png,z\n")
    with pytest.raises(UserError, match="class 'z', which is not among a, b"):
        mv.adapt(
            weights,
            photos / "in",
            tmp_path / "m",
            labels=tmp_path / "a.csv",
            test=photos / "in",
            test_labels=tmp_path / "b.csv",
        )


# -- goals ---------------------------------------------------------------------------------------------------------


def test_thresholds_are_those_of_the_best_f1_by_trying_all():
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.integers(0, 12, (30, 3)) / 12.0)
    y = torch.from_numpy(rng.random((30, 3)) < p.numpy())

    def f1(column, limit):
        there = p[:, column] >= limit
        return 2 * (there & y[:, column]).sum() / (there.sum() + y[:, column].sum())

    for column, limit in enumerate(thresholds(p, y)):
        assert f1(column, limit) == max(f1(column, t) for t in np.linspace(0, 1.01, 500))
    assert thresholds(p, torch.zeros_like(y)) == (0.5, 0.5, 0.5)


def test_several_labels_are_scored_as_scikit_learn_does():
    torch.manual_seed(0)
    logits, y = torch.randn(40, 4), torch.rand(40, 4) < 0.3
    y[:, 3] = False  # a class without images
    goal = Several()
    wanted = average_precision_score(y[:, :3].numpy(), logits[:, :3].numpy(), average="macro")
    assert goal.score(logits, y).value == pytest.approx(wanted)
    assert goal.score(torch.full_like(logits, torch.nan), y) == Score(0.0, -1e6)
    better, by = goal.gain(torch.where(y, 3.0, -3.0), logits, y)
    assert better and by.startswith("+") and not goal.gain(logits, logits, y)[0]


# -- models --------------------------------------------------------------------------------------------------------


def test_a_model_of_several_classes_answers_each_on_its_own(several, photos, tmp_path):
    again = mv.load(several.name)
    found = again.predict(photos / "in")
    assert found.task == "several" and again.thresholds == several.thresholds
    has = labeled(photos / "in", photos / "joined.csv").y.numpy()
    test = several.facts["test"]
    assert test["mAP"] == pytest.approx(average_precision_score(has, found.probability, average="macro"))
    assert test["mAP"] > 0.8 and test["learned_from"] == PICTURES
    predict(several.name, photos / "in", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [tuple(filter(None, row["classes"].split(";"))) for row in rows] == found.found
    np.testing.assert_allclose([float(r["probability of red"]) for r in rows], found.probability[:, 1], atol=1e-5)
    shown = Look(again).at((photos / "in" / "00.png").read_bytes())["classes"]
    assert {c["name"]: pytest.approx(c["probability"], abs=1e-5) for c in shown} == dict(
        zip(again.classes, found.probability[0].tolist(), strict=True)
    )


def test_a_model_of_numbers_is_ridge_regression_in_their_own_units(numbers, weights, photos, tmp_path):
    learned = labeled(photos / "in", photos / "numbers.csv")
    found = mv.load(numbers.name).predict(photos / "in")
    there = [i for i in range(PICTURES) if i not in (3, 4)]
    y = learned.y[:, 0].numpy()
    test = numbers.facts["test"]
    assert test["mae"] == pytest.approx(mean_absolute_error(y, found.outputs[there, 0]), rel=1e-4)
    assert test["r2"] == pytest.approx(r2_score(y, found.outputs[there, 0]), rel=1e-4)
    assert test["interval"][0] < test["mae"] < test["interval"][1] and test["r2"] > 0.5
    with pytest.raises(UserError, match="numbers"):
        _ = found.probability
    # The same features, split and penalty in scikit-learn.
    from manyviews.evaluation.subsets import stratified

    x = weights.embed(photos / "in")[there]
    groups = torch.from_numpy((4 * y.argsort(kind="stable").argsort(kind="stable")) // len(y))
    train, _ = stratified([learned.source.ids[i] for i in range(len(y))], groups, 0.2, "adaptation")
    scaler = StandardScaler().fit(x[train])
    ridge = Ridge(alpha=numbers.facts["setting"]["l2"] * len(train), tol=1e-8)
    mean, std = y[train].mean(), y[train].std()
    ridge.fit(scaler.transform(x[train]), (y[train] - mean) / std)
    np.testing.assert_allclose(found.outputs[there, 0], ridge.predict(scaler.transform(x)) * std + mean, rtol=2e-3)
    predict(numbers.name, photos / "in", tmp_path / "p.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["id", "shade", "known", "distance", "problem"]
    np.testing.assert_array_equal(table["shade"].to_numpy(), found.outputs[:, 0])
    with pytest.raises(UserError, match="gives numbers"):
        mv.serve(numbers.name)


def test_shifted_and_corrupted_images_are_tested_on_too(weights, photos, tmp_path):
    (tmp_path / "other").mkdir()
    for i in range(PICTURES):
        (tmp_path / "other" / f"{i:02d}.png").symlink_to(photos / "in" / f"{i:02d}.png")
    model = mv.adapt(weights, photos / "in", tmp_path / "m", labels=photos / "columns.csv", strategy="linear")
    part = labeled(tmp_path / "other", photos / "columns.csv")
    judge = Judge(None, None, (part,), False, 0)
    found = judge.all(model, None)["shifted"]["other"]
    assert found["mAP"] > 0.8 and found["images"] == PICTURES


# -- masks ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A bright half beside a dark one."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    for part, count in (("train", 10), ("test", 4)):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((48, 64), np.uint8)
            mask[:, : rng.integers(16, 48)] = 1
            pixels = np.where(mask, 200, 50)[..., None] + rng.normal(0, 10, (48, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / part / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / part / f"{i}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    return root


@pytest.fixture(scope="module")
def masks(weights, scenes, tmp_path_factory):
    """A model that segments. Do not change it."""
    out = tmp_path_factory.mktemp("models") / "masks"
    return mv.adapt(weights, scenes, out, settings={"segmentation.epochs": 20, "segmentation.stages": "(-1, -3)"})


def test_the_masks_that_are_written_have_the_accuracy_that_was_reported(masks, scenes, tmp_path):
    found = predict(masks.name, scenes / "images" / "test", tmp_path / "out")
    legend = json.loads((tmp_path / "out" / "legend.json").read_text())
    assert [(c["value"], c["name"]) for c in legend["classes"]] == [(0, "dark"), (1, "bright")]
    tallies = []
    for path in sorted((scenes / "masks" / "test").iterdir()):
        image = Image.open(tmp_path / "out" / path.name)
        assert image.mode == "P" and image.getpalette()[3:6] == legend["classes"][1]["color"]
        ours, true = (torch.from_numpy(np.array(m)).long() for m in (image, Image.open(path)))
        tallies.append(tally(ours, true, 2))
    assert miou(torch.stack(tallies)) == pytest.approx(masks.facts["test"]["mIoU"]) and found.counts == {
        "dark": 4,
        "bright": 4,
    }
    assert masks.facts["test"]["mIoU"] > 0.7
    # What is there is not made again, and other images are refused.
    (tmp_path / "out" / "0.png").write_bytes(b"kept")
    predict(masks.name, scenes / "images" / "test", tmp_path / "out")
    assert (tmp_path / "out" / "0.png").read_bytes() == b"kept"
    with pytest.raises(UserError, match="other images"):
        predict(masks.name, scenes / "images" / "train", tmp_path / "out")
    for given, says in (({"strategy": "lora"}, "leave --strategy"), ({"settings": {"linear.l2": 1}}, "segmentation")):
        with pytest.raises(UserError, match=says):
            mv.adapt(masks.encoder and mv.load(masks.name), scenes, tmp_path / "m", **given)


@pytest.mark.parametrize(("kind", "words"), [("several", "mAP"), ("numbers", "mean absolute"), ("masks", "mIoU")])
def test_what_is_shown_has_the_number_that_counts(kind, words, request, capsys):
    model = request.getfixturevalue(kind)
    cli.main(["show", model.name])
    shown = capsys.readouterr().out
    assert words in shown and "test" in shown and all(name in shown for name in model.classes)


def test_an_exported_program_gives_the_probabilities_of_each_pixel(masks, scenes, tmp_path):
    """Those of `torch.export`, which needs this library no more; the likeliest classes are those of `masks`."""
    mv.export(masks.name, "torch_export", tmp_path / "m.pt2")
    with Image.open(scenes / "images" / "test" / "0.png") as image:
        square = image.convert("RGB").resize((masks.test_size, masks.test_size))
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    found = torch.export.load(tmp_path / "m.pt2").module()(x)[0]
    torch.testing.assert_close(found.sum(0), torch.ones(square.size))
    assert (found.argmax(0).numpy() == masks.masks([square])[0]).mean() > 0.999
    with pytest.raises(UserError, match="timm has no place"):
        mv.export(masks.name, "timm", tmp_path / "timm")
