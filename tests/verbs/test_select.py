"""Choosing among runs without labels, and measuring with labels how good the choice was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews import recipes
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine.build import write_encoder
from manyviews.engine.folder import create
from manyviews.errors import UserError
from manyviews.evaluation import evaluate
from manyviews.evaluation.unlabeled.diagnosis import diagnose
from manyviews.settings import override
from manyviews.verbs.select import CRITERIA, agreement, numbers_of, select

FEW = {"images": 60, "viewed": 20, "views": 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures of three colors under noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, color in {"red": (160, 60, 60), "green": (60, 160, 60), "blue": (60, 60, 160)}.items():
        (folder / label).mkdir()
        for i in range(30):
            pixels = np.array(color) + rng.normal(0, 60, 3) + rng.normal(0, 30, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


def finished(out: Path, data: Path | None, recipe: str = "simclr_tiny", seed: int = 0, **changes) -> Path:
    """The folder of a run that ended; its encoder is untrained."""
    chosen = recipes.get(recipe)
    for path, value in changes.items():
        chosen = override(chosen, path, value)
    chosen = recipes.resolve(chosen)
    torch.manual_seed(seed)
    encoder = Encoder(chosen.backbone.name, **chosen.backbone.settings)
    folder = create(out, chosen, {"data": None if data is None else str(data)})
    write_encoder(folder, encoder, chosen, 1)
    return folder.path


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one method that differ in temperature and in luck."""
    out = tmp_path_factory.mktemp("runs")
    return [
        finished(out / f"t{t}", photos, seed=seed, **{"method.temperature": t})
        for seed, t in enumerate((0.1, 0.2, 0.5))
    ]


def how(weights: mv.Pretrained) -> dict:
    return {"test_size": weights.test_size, "mean": weights.mean, "std": weights.std}


def test_runs_are_ranked_by_the_criterion_on_their_own_images(runs: list[Path], photos: Path):
    diagnoses = {}
    for run in runs:
        weights = mv.load(run)
        seen = diagnose(weights.encoder, open_source(photos), baseline=False, **FEW, **how(weights))
        diagnoses[str(run)] = seen
    for by, badness in {
        "rankme": lambda d: -d.rankme,
        "auc": lambda d: d.auc,
    }.items():
        found = select(runs, by=by, **FEW)
        assert [c.run for c in found.candidates] == sorted(diagnoses, key=lambda run: badness(diagnoses[run]))
        assert found.chosen is found.candidates[0]
        assert (found.images, found.agreement, found.warnings) == (60, {}, ())
    for c in found.candidates:
        assert c.numbers == pytest.approx(numbers_of(diagnoses[c.run]))
        assert list(c.settings) == ["method.temperature"] and c.run.endswith(f"t{c.settings['method.temperature']}")
        assert (c.method, c.accuracy) == ("simclr", {})


def test_higher_ranks_are_better_and_so_is_an_exponent_near_one():
    assert CRITERIA["lidar"]({"lidar": 9.0}) > CRITERIA["lidar"]({"lidar": 3.0})
    good = CRITERIA["alpha_req"]
    assert good({"alpha_req": 1.0}) > good({"alpha_req": 0.8}) > good({"alpha_req": 1.5}) > good({"alpha_req": None})


def test_runs_on_different_images_need_images(runs: list[Path], photos: Path, tmp_path: Path):
    other = finished(tmp_path / "other", tmp_path)
    nowhere = [finished(tmp_path / f"memory{i}", None, seed=i) for i in range(2)]
    for mixed in ([*runs, other], nowhere):
        with pytest.raises(UserError, match="trained on the same images"):
            select(mixed, **FEW)


def test_with_labels_it_says_how_good_the_choice_was(runs: list[Path], photos: Path):
    found = select(runs, photos, oracle=photos, **FEW)
    weights = mv.load(found.chosen.run)
    report = evaluate(weights.encoder, open_source(photos), baselines=False, **how(weights))
    assert found.chosen.accuracy == {k: s.top1 for k, s in report.representations["trained"].scores.items()}
    assert set(found.agreement) == {"knn", "linear"}
    for metric, agreed in found.agreement.items():
        best = max(c.accuracy[metric] for c in found.candidates)
        assert agreed.regret == pytest.approx(best - found.chosen.accuracy[metric])
    text = found.text()
    assert "Best by RankMe, on 60 images" in text and "Against knn accuracy: " in text
    assert text.splitlines()[1].startswith(found.chosen.run)
    facts = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert facts["chosen"] == found.chosen.run and len(facts["candidates"]) == 3


def test_agreement_in_closed_form():
    names, up = ["a", "b", "c"], [0.1, 0.2, 0.3]
    same, opposite = agreement(names, [1, 2, 3], up), agreement(names, [3, 2, 1], up)
    assert (same.tau, same.pairs, same.regret, same.best) == (pytest.approx(1), 1, 0, "c")
    assert (opposite.tau, opposite.pairs, opposite.regret) == (pytest.approx(-1), 0, pytest.approx(0.2))
    tied = agreement(names, [1, 1, 2], up)  # tau-b: 2 concordant pairs of 3, one of them tied in the criterion
    assert (tied.tau, tied.pairs) == (pytest.approx(2 / 6**0.5), pytest.approx(2.5 / 3))
    unsure = agreement(names, [1, 1, 1], up)
    assert (unsure.tau, unsure.pairs) == (None, 0.5)
    alike = agreement(names, [1, 2, 3], [0.5] * 3)
    assert (alike.tau, alike.pairs, alike.regret) == (None, None, 0)
    assert agreement(names, [-np.inf, 2, 3], up).tau == pytest.approx(1)  # a number that is missing is the worst


def test_doubts_are_reported(runs: list[Path], photos: Path, tmp_path: Path):
    byol = finished(tmp_path / "byol", photos, "byol_tiny")
    wide = finished(tmp_path / "wide", photos, **{"backbone.channels": (8, 8, 16, 32)})
    deep = finished(tmp_path / "deep", photos, **{"backbone.layers": (1, 1, 1, 1)})
    weights = mv.load(runs[1])
    with torch.no_grad():
        for p in weights.encoder.parameters():
            p.zero_()
    dead = mv.export(weights, "safetensors", tmp_path / "dead.safetensors")
    found = select([byol, wide, dead], photos, **FEW)
    warnings = " ".join(found.warnings)
    assert "runs of byol, simclr: no such criterion compares methods" in warnings
    assert "16, 32 dimensions" in warnings and f"{dead}: collapse." in found.warnings
    assert found.candidates[-1].run == str(dead) and found.candidates[-1].method is None  # plain weights compete too
    assert "different backbones" in " ".join(select([runs[0], deep], photos, **FEW).warnings)


def test_bad_selections_are_refused(runs: list[Path], photos: Path, tmp_path: Path):
    for given, says in ((runs[:1], "two runs or more"), ([runs[0], runs[0]], "each of them once")):
        with pytest.raises(UserError, match=says):
            select(given, photos)
    with pytest.raises(UserError, match="Did you mean 'rankme'"):
        select(runs, photos, by="rankm")
