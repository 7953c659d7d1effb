"""Rows of papers: what is registered is what was printed, every plan can be typed, and every row runs when small."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews import cli, papers
from manyviews.cli._parser import parse
from manyviews.data import open_source
from manyviews.engine import pace as pace_module
from manyviews.engine.pace import Pace, measure
from manyviews.errors import UserError
from manyviews.evaluation import protocols
from manyviews.evaluation.dense.presets import PRESETS
from manyviews.papers import ROWS, SETS, Detect, Diagnose, Evaluate, Sweep, Training, Transfer
from manyviews.regularizers import Rescue
from manyviews.settings import override
from manyviews.verbs import _cost, _rows
from manyviews.verbs._rows import Place, tasks
from manyviews.verbs.pretrain import changed

HERE = [row for row in ROWS.values() if not row.absent]


def printed(name: str) -> list[float | None]:
    """The numbers of a row, in order."""
    return [value for step in ROWS[name].steps for value in step.printed.values()]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # Typed from the papers, in the order of their columns; MULAN's table 7 and rescue's table 1 mix theirs.
        ("mulan.table2.simsiam-multitask", [66.5, 74.7]),
        ("mulan.table3.vit-b-dino", [76.1, 78.2]),
        ("mulan.table4.mulan", [41.8, 38.0]),
        ("mulan.table7.mulan", [60.4, 72.5, 84.0, 91.3]),
        ("mulan.table10.shuffle-cutout", [70.0, 75.7]),
        ("rescue.table2.moco-v3-rescue", [51.4, 80.8, 55.9, 41.0, 61.3, 44.4, 35.4, 57.5, 37.5]),
        ("mast.table1.mast15", [75.8, 92.1, 55.8, 71.4, 81.0, 90.9]),
        ("mast.table2.vicreg", [54.3, 86.6, 47.0, 82.4, 39.4, 36.4]),
        ("mast.table5.vicreg-staged", [73.4, 54.6, 82.4, 36.5]),
        ("mast.table6.mast5-cars", [18.7, 44.1]),
        ("mast.table9.mast15", [82.5, 95.5, 48.1, 72.8, 39.86, 50.74]),
    ],
)
def test_numbers_are_those_of_the_paper(name: str, numbers: list[float]) -> None:
    assert printed(name) == numbers


def test_columns_of_the_papers_are_found_by_name() -> None:
    (suite,) = ROWS["rescue.table1.simclr-rescue"].steps
    assert suite.printed["sun397.logistic"] == 58.56 and suite.printed["caltech101.logistic.mean_per_class"] == 90.24
    assert suite.printed["voc2007.multilabel.mAP of 11 points"] == 79.39
    semi = ROWS["mulan.table7.byol"].steps[0].printed
    assert (semi["semi_1"], semi["semi_10"], semi["semi_1.top5"], semi["semi_10.top5"]) == (53.2, 68.8, 78.4, 89.0)


def test_every_table_has_all_its_rows() -> None:
    """The numbers of rows were counted in the papers."""
    rows = {
        **{"mulan.table1": 6, "mulan.table2": 12, "mulan.table3": 12 + 7 + 10, "mulan.table4": 7, "mulan.table5": 5},
        **{"mulan.table6": 4, "mulan.table7": 10, "mulan.table8": 3, "mulan.table9": 4, "mulan.table10": 5},
        **{"rescue.table1": 6, "rescue.table2": 6, "mast.table1": 16, "mast.table2": 14, "mast.table3": 7},
        **{"mast.table4": 9, "mast.table5": 8, "mast.table6": 4 * 2, "mast.table7": 3, "mast.table8": 2 * 4},
        **{"mast.table9": 6, "mast.table10": 2},
    }
    assert {table: len(papers.under(table)) for table in rows} == rows
    assert all(row.absent or row.run or isinstance(row.steps[0], Sweep | Diagnose) for row in ROWS.values())


def test_rows_of_mast_run_the_printed_loss() -> None:
    """No gates and no prior, whichever recipe a row starts from; what has no masks has none."""
    trainings = {row.run.name: row.run for row in HERE if row.run and row.run.recipe.startswith("mast_")}
    for training in trainings.values():
        method = changed(training.recipe, training.epochs, training.settings).method.settings
        assert method["masks"] in ("learned", "disjoint", "none"), training
        assert method["prior_weight"] == 0.0 and method["squared"] is False, training
    assert len(trainings) > 8


def test_detectors_are_those_that_a_network_can_have() -> None:
    """MoCo's schedule for VOC takes the groups of a ResNet; a transformer looks at VOC as often, with a pyramid."""
    for row in HERE:
        for step in row.steps:
            if isinstance(step, Detect) and row.run is not None and step.data == "voc0712":
                recipe = changed(row.run.recipe, row.run.epochs, row.run.settings)
                vit = recipe.backbone.name.startswith("vit")
                assert dict(step.options) == ({"epochs": 23} if vit else {"preset": "voc_24k"}), row.name
    voc = PRESETS["voc_24k"]
    assert round(voc.steps * 16 / voc.images) == 23


def test_every_plan_can_be_typed_and_its_recipes_and_protocols_exist(tmp_path) -> None:
    trainings: dict[str, Training] = {}
    for row in HERE:
        assert set(row.data) <= set(SETS), row.name
        for task in tasks(row, Place(tmp_path, {}, False)):
            verb, *words = shlex.split(task.command)[1:]
            given = parse(verb, cli.VERBS[verb], words)
            step = task.step
            if isinstance(step, Training):
                assert given["recipe"] == step.recipe and cli._settings(given.get("set", ())) == dict(step.settings)
            if isinstance(step, Detect):
                assert [str(path) for path in given["data"]] == (
                    ["VOC0712/VOC2007", "VOC0712/VOC2012"] if step.data == "voc0712" else ["COCO"]
                )
            if isinstance(step, Sweep):
                assert given["metric"] == "linear_augmented" and given["test"].startswith(step.data.upper())
            if isinstance(step, Evaluate | Transfer):
                assert given["protocol"].split(",") == step.protocols and given["baselines"] is False
                protocols.requested(step.protocols, step.settings)
            found = step.training if isinstance(step, Sweep) else step
            if isinstance(found, Training):
                same = trainings.setdefault(found.name, found)
                assert same == found, "two trainings have one folder"
    for training in trainings.values():
        recipe = changed(training.recipe, training.epochs, training.settings)
        assert recipe.epochs == (training.epochs or recipe.epochs)
        for small in (False, True):
            epochs, settings = Place(tmp_path, {}, small).recipe(training)
            made = changed(training.recipe, epochs, settings)
            if small:
                assert made.method.name == recipe.method.name and made.test_size == 32
                assert made.optimizer == recipe.optimizer and len(made.regularizers) == len(recipe.regularizers)


def test_lists_of_images_are_asked_for_before_the_training(tmp_path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"1percent\.txt names, and there is no such file: .*SimCLR's lists"):
        mv.reproduce("mulan.table7.mulan", {"imagenet": tmp_path}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    semi = tasks(ROWS["mast.table1.mast5"], Place(tmp_path, {}, False))[2]
    assert "--set semi_1.subset=IMAGENET/1percent.txt" in semi.command


def test_names_that_do_not_exist_are_understood(capsys) -> None:
    for name, says in (
        ("mulan.table2.byl", "There is no row of mulan.table2 'byl'. Did you mean 'byol'?"),
        ("mulan.tabel2", "Did you mean 'mulan.table2'? `manyviews reproduce` lists all tables."),
        ("mulan.table2", "mulan.table2 has rows, such as mulan.table2.byol-1000"),
        ("mulan.table3.r50_relic_v2", "There is no method ReLIC v2 here."),
        ("mast.table4.mast5", "--data cub200=PATH"),
    ):
        with pytest.raises(UserError) as e:
            mv.reproduce(name)
        assert says in str(e.value)
    with pytest.raises(UserError, match=r"no set of images 'imagnet'\. Did you mean 'imagenet'"):
        mv.reproduce("mulan.table2.byol", {"imagnet": "x"})
    cli.main(["reproduce", "rescue.table2"])
    listed = capsys.readouterr().out
    assert "DINOv2, ViT-L, with rescue: 52.2, 81.1" in listed
    cli.main(["reproduce", "mast.table1.pcl", "--dry-run"])
    assert "It cannot be run here. There is no method PCL here." in capsys.readouterr().out


# -- plans -------------------------------------------------------------------------------------------------------


def test_times_follow_from_the_pace(monkeypatch, tmp_path) -> None:
    """A step of 2 s, 0.01 s an image to encode: by hand."""
    monkeypatch.setattr(_cost, "measure", lambda recipe, source, device: Pace(2.0, 0.16, 0.32, 1, 3, 8))
    plan = mv.reproduce("mulan.table2.byol", out=tmp_path, dry_run=True)
    training, evaluation = plan.parts
    steps = (1_281_167 - 1000) // 1024
    rounds = 2 + 200 / 5
    assert training.seconds == pytest.approx(200 * steps * 2.0 + rounds * 10.0 + 20.0)
    images = 1_281_167 + 50_000
    assert evaluation.seconds == pytest.approx(0.01 * (images + 100 * 1_281_167))
    assert plan.seconds == training.seconds + evaluation.seconds
    assert "measured on 8 images at a time of noise, 500x375" in training.note and not any(tmp_path.iterdir())
    (swept,) = mv.reproduce("rescue.figure6.simclr", out=tmp_path, dry_run=True).parts
    assert f"{3 * 5} times" in swept.note


def test_a_step_of_a_large_batch_is_extrapolated_from_two_sizes() -> None:
    """3 s for the weights and 0.5 s for an image; at the least half of the mean, whatever the clock says."""
    assert pace_module._whole(4.0, 7.0, 8, 8) == 7.0
    assert pace_module._whole(4.0, 7.0, 8, 1024) == pytest.approx(3 + 0.5 * 1024)
    assert pace_module._whole(9.0, 8.0, 8, 16) == pytest.approx(8 + 8 * 0.5)
    assert pace_module._whole(6.0, 6.0, 2, 16) == pytest.approx(48.0)  # a very large network: of one size


def test_the_pace_of_rescue_is_measured_on_fewer_images_than_it_rescues(monkeypatch) -> None:
    monkeypatch.setattr(pace_module, "PATIENCE", 0.2)
    source = open_source(
        (np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 2)
    )
    recipe = changed("simclr_tiny", None, {"data.batch_size": "256"})
    found = measure(override(recipe, "regularizers", (Rescue(0.5, k=64),)), source, torch.device("cpu"))
    assert found is not None and found.step > 0


# -- runs --------------------------------------------------------------------------------------------------------


def never(*args, **options):
    raise AssertionError("this was done before")


def test_what_is_finished_is_not_repeated_and_shared_between_rows(tmp_path, monkeypatch, capsys) -> None:
    evaluate = _rows.evaluate

    def broken(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(_rows, "evaluate", broken)
    with pytest.raises(KeyboardInterrupt):
        mv.reproduce("mulan.table2.byol", out=tmp_path, small=True)
    monkeypatch.setattr(_rows, "evaluate", evaluate)
    monkeypatch.setattr(_rows, "pretrain", never)
    found = mv.reproduce("mulan.table2.byol", out=tmp_path, small=True)
    knn, linear = found.numbers
    assert (knn.paper, linear.paper) == (63.1, 70.7)
    assert all(0 <= n.ours <= 100 and n.difference == n.ours - n.paper for n in found.numbers)
    monkeypatch.setattr(_rows, "evaluate", never)
    again = mv.reproduce("mulan.table5.byol", out=tmp_path, small=True)
    assert again.numbers == found.numbers
    saved = json.loads((tmp_path / "mulan.table5.byol-small.json").read_text())
    assert saved["numbers"][1]["ours"] == linear.ours and saved["small"]
    capsys.readouterr()
    cli.main(["reproduce", "mulan.table9.byol", "--small", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "hours of training" in shown and "the numbers mean nothing" in shown
    recipe = tmp_path / "runs" / "byol_imagenet-small" / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"epochs": 2.0', '"epochs": 3.0'))
    with pytest.raises(UserError, match=r"byol_imagenet-small holds a run with epochs=3\.0, not 2\.0"):
        mv.reproduce("mulan.table5.byol", out=tmp_path, small=True)
    with pytest.raises(UserError, match=r"was made of the images in .*made_up/imagenet, not of those in elsewhere"):
        mv.reproduce("mulan.table5.byol", {"imagenet": "elsewhere"}, tmp_path, small=True)


# The kinds of step that are cheap; `make test-papers` runs all rows.
SOME = ("rescue.figure6.simclr", "rescue.section3.cosines", "mast.table3.mast5-ensemble")


def run_small(name: str, out) -> None:
    found = mv.reproduce(name, out=out, small=True)
    assert all(part.done for part in found.parts) and all(n.ours is not None for n in found.numbers), found


@pytest.mark.parametrize("name", SOME)
def test_a_row_of_each_kind_runs_when_small(name: str, tmp_path) -> None:
    run_small(name, tmp_path)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("reproduced")


@pytest.mark.papers
@pytest.mark.parametrize("name", [row.name for row in HERE])
def test_every_row_runs_when_small(name: str, reproduced) -> None:
    run_small(name, reproduced)
