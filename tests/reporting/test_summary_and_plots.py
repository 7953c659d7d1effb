"""A run and its evaluation on one screen, and as pictures."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from manyviews.data import open_source
from manyviews.errors import printable
from manyviews.reporting import plots, summary
from manyviews.reporting.text import unmathed
from manyviews.reporting.views import drawn
from manyviews.settings import Component, Recipe, override

from .conftest import HOSTILE, stored, untrained_run


@pytest.fixture(scope="module")
def report(report):
    return dataclasses.replace(report, bad=((f"photos/{HOSTILE[0]}.jpg", "cut [short]"),) * 5)


ROWS = [
    *(
        {"step": s, "loss": 5.0 - s / 100, "loss/a$": 2.0, "lr": 0.1, "images_per_second": 900.0}
        for s in range(0, 100, 20)
    ),
    {"step": 100, "loss": "nan", "lr": 0.1, "images_per_second": 800.0},
    {"step": 0, "monitor/knn": 0.3, "monitor/rankme": 3.0, "monitor/spread": 0.4},
    {"step": 100, "monitor/knn": 0.5, "monitor/rankme": 30.0, "monitor/spread": 0.9},
]


def test_the_summary_fits_on_a_screen_and_says_what_there_is(report):
    facts = {"name": "first run", "data": "photos", "loss": None, "files": ["run/encoder"], "next": ["manyviews show"]}
    text = summary.plain(facts, report)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= summary.WIDTH
    for part in ("first run", "photos", "run/encoder", "manyviews show", "untrained encoder", "raw pixels", "k-NN"):
        assert part in text
    assert "loss" not in text
    for found in report.representations.values():
        for score in found.scores.values():
            assert f"{100 * score.top1:.1f} % ({100 * score.interval[0]:.1f} to {100 * score.interval[1]:.1f})" in text
    assert " ".join(report.verdict.split()) in " ".join(text.split())
    assert "5 images could not be read" in text and "2 more" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_are_shown_and_not_obeyed(report, terminal):
    facts = {"name": HOSTILE[0], "data": HOSTILE[1], "files": [HOSTILE[2]], "next": ["[link=file:///]x[/link]"]}
    out = io.StringIO()
    Console(file=out, force_terminal=terminal, width=200, color_system="standard" if terminal else None).print(
        summary.summary(facts, dataclasses.replace(report, source="[bold]\x1b]0;title\x07"))
    )
    text = out.getvalue()
    assert "[red]$x" in text and "[link=file:///]" in text and "[bold]" in text and "cut [short]" in text
    assert "\x1b[31m$" not in text and "\x1b]" not in text and "\x07" not in text
    text.encode()  # no broken Unicode is left


def test_printable_keeps_what_people_write():
    assert printable("Ätna \u65e5\u672c [x]") == "Ätna \u65e5\u672c [x]"
    assert len(printable("x" * 500, 200)) == 200
    assert "\n" not in printable("a\nb\x1b\u2028\u202e")
    assert unmathed("$a$") == r"\$a\$"


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 10


def test_a_log_becomes_pictures(tmp_path):
    files = plots.training(ROWS, tmp_path / "plots")
    assert [f.name for f in files] == ["loss.png", "monitor.png"]
    assert all(map(is_picture, files))
    assert sorted(tmp_path.glob("plots/*")) == sorted(files)  # nothing temporary is left
    assert plots.training([], tmp_path / "none") == []


def test_an_evaluation_becomes_pictures_with_escaped_labels(report, source, tmp_path, monkeypatch):
    texts, save = [], Figure.savefig

    def spy(figure, *args, **kwargs):
        for axes in figure.axes:
            texts.extend(t.get_text() for t in [*axes.texts, *axes.get_yticklabels()])
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    few = dataclasses.replace(report, nearest=report.nearest[:2])
    files = plots.evaluation(few, tmp_path, source)
    assert [f.name for f in files] == ["classes.png", "spectrum.png", "knn.png", "nearest.png"]
    assert all(map(is_picture, files))
    assert texts.count(r"[red]\$x") > 1


def test_a_thousand_classes_fit(report, tmp_path):
    found = {
        name: dataclasses.replace(
            r,
            scores={
                k: dataclasses.replace(s, per_class=tuple(i / 1000 if i % 7 else None for i in range(1000)))
                for k, s in r.scores.items()
            },
        )
        for name, r in report.representations.items()
    }
    many = dataclasses.replace(report, classes=tuple(f"class {i}" for i in range(1000)), representations=found)
    with Image.open(plots.per_class(many, tmp_path / "classes.png")) as image:
        assert image.size[1] < 2500


def tuned(report):
    """The report with protocols that raw pixels have no part in, and these first."""
    score = dataclasses.replace(
        report.representations["trained"].scores["linear"],
        top1=0.875,  # as wide as scores usually are: an untrained encoder may reach 100 % of 16 images
        interval=(0.75, 0.938),
        top5=0.987,
        setting={"lr": 0.02, "epochs": 30.0, "images": 12},
    )
    more = {p: score for p in ("semi_1", "semi_10", "finetune")}
    found = {
        name: dataclasses.replace(r, scores=(more if name != "pixels" else {}) | {"linear": r.scores["linear"]})
        for name, r in report.representations.items()
    }
    gains = {
        name: {p: g["linear"] for p in (*(more if name != "pixels" else ()), "linear")}
        for name, g in report.gains.items()
    }
    return dataclasses.replace(report, representations=found, gains=gains, features="last4")


def test_a_representation_may_lack_a_score(report, tmp_path):
    found = tuned(report)
    assert found.headline == "semi_1" and "raw pixels" not in found.verdict and "untrained" in found.verdict
    text = summary.plain({}, found)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= summary.WIDTH
    titles, *rows = [line for line in text.splitlines() if "top-1" in line or line.startswith("raw pixels")]
    assert titles.split("  ")[0] == "top-1 (95 % interval)" and "fine-tuning on 1 %" in titles
    assert rows[0].split() == ["raw", "pixels", "-", "-", "-"]
    assert "linear probe" in rows[1]  # a second table: four columns are too wide
    words = " ".join(text.split())
    assert "fine-tuning on 1 %: 12 images; learning rate 0.02 and 30 epochs chosen on the validation images." in words
    assert "Top-5 accuracy: fine-tuning on 1 % 98.7 %, fine-tuning on 10 % 98.7 %" in words
    assert "features last4" in words
    files = plots.evaluation(found, tmp_path)
    assert [f.name for f in files] == ["classes.png", "spectrum.png"] and is_picture(files[0])


def test_views_are_shown_in_true_colors(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Axes, "imshow", lambda axes, x, **k: shown.append(x))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    pixels = torch.rand(3, 3, 8, 8)
    x = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    plots.views([("global 0", x), ("local 0", x[..., :4, :4])], tmp_path / "views.png", mean, std)
    (sheet,) = shown  # cells of 8 + 4 pixels, a row for each image; a smaller view is in the middle of its cell
    for i, picture in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        np.testing.assert_allclose(sheet[12 * i + 2 : 12 * i + 10, 2:10], picture, atol=1e-6)
        np.testing.assert_allclose(sheet[12 * i + 4 : 12 * i + 8, 16:20], picture[:4, :4], atol=1e-6)


def test_views_are_of_images_from_all_over_the_set_beside_their_originals(tmp_path):
    """A set that is sorted by class has one class in its first images."""
    whole = np.zeros((40, 12, 24, 3), dtype=np.uint8)
    whole[20:, ..., 0] = 200
    batch, originals = drawn(open_source(whole), 8, 16, seed=0)
    assert len(batch) == len(originals) == 8 and {x.size for x in originals} == {(24, 12)}
    reds = {np.asarray(x)[0, 0, 0] for x in originals}
    assert reds == {0, 200} and batch.index.unique().numel() == 8
    for i, image in enumerate(originals):
        assert batch.canvases.image(i)[0, 0, 0] == np.asarray(image)[0, 0, 0]
    x = torch.rand(8, 1, 8, 8)
    path = plots.views([("a view", x)] * 2, tmp_path / "views.png", (0.5,), (0.5,), originals, "from $all over$")
    first = np.asarray(Image.open(path).convert("RGB"))[-1300:, :160]
    assert (first == (200, 0, 0)).all(-1).any() and (first == 0).all(-1).any()


def test_a_run_is_shown_with_its_latest_evaluation_or_says_how_to_go_on(report, tmp_path, capsys):
    for number, seed in ((9, 1), (10, 2)):
        stored(tmp_path / "run", number, dataclasses.replace(report, seed=seed).to_json())
    (tmp_path / "run" / "encoder.safetensors").touch()
    summary.show_run(untrained_run(tmp_path / "run", log=ROWS))
    text = capsys.readouterr().out
    assert "seed 2" in text and "1 min 1 s" in text and "900 images/s" in text and "2 images that cannot" in text
    assert "encoder.safetensors" in text and "manyviews export" in text.replace("\n", "")
    summary.show_run(untrained_run(tmp_path / "stopped", finished=False))
    text = capsys.readouterr().out
    assert "unfinished" in text and "manyviews resume" in text


def test_settings_are_paths_that_set_takes():
    recipe = Recipe("tiny", Component("simclr", {"temperature": 0.2}), Component("resnet18"), epochs=3)
    found = dict(summary.settings(recipe))
    assert found["method.temperature"] == 0.2 and found["optimizer.lr"] == 1e-3
    for path, value in found.items():
        if path != "method.name":
            assert override(recipe, path, value) == recipe
