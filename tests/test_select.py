"""Choosing among runs without labels, and how good a choice that was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import manyviews as mv
from manyviews import recipes
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine.build import write_encoder
from manyviews.engine.folder import ENCODER, create
from manyviews.errors import UserError
from manyviews.evaluation import evaluate
from manyviews.evaluation.diagnosis import diagnose
from manyviews.selection import CRITERIA, agreement, numbers_of, select
from manyviews.settings import override

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
    """The folder of a run that ended, of an encoder that nobody trained."""
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
    """Three runs of one method that differ in its temperature, and in their luck."""
    out = tmp_path_factory.mktemp("runs")
    return [
        finished(out / f"t{t}", photos, seed=seed, **{"method.temperature": t})
        for seed, t in enumerate((0.1, 0.2, 0.5))
    ]


def seen(run: Path, photos: Path):
    weights = mv.load(run)
    how = {"test_size": weights.test_size, "mean": weights.mean, "std": weights.std}
    return diagnose(weights.encoder, open_source(photos), baseline=False, **FEW, **how)


@pytest.mark.parametrize("by", sorted(CRITERIA))
def test_runs_are_ranked_by_the_criterion_on_the_same_images(by: str, runs: list[Path], photos: Path):
    found = select(runs, photos, by=by, **FEW)
    diagnoses = {str(run): seen(run, photos) for run in runs}
    wanted = {
        "rankme": lambda d: -d.rankme,
        "lidar": lambda d: -d.lidar,
        "alpha_req": lambda d: abs(d.alpha_req - 1),
        "auc": lambda d: d.auc,
    }[by]
    assert [c.run for c in found.candidates] == sorted(diagnoses, key=lambda run: wanted(diagnoses[run]))
    assert found.chosen is found.candidates[0]
    for c in found.candidates:
        assert c.numbers == pytest.approx(numbers_of(diagnoses[c.run]))
        assert list(c.settings) == ["method.temperature"] and c.run.endswith(f"t{c.settings['method.temperature']}")
        assert (c.method, c.accuracy) == ("simclr", {})
    assert (found.images, found.agreement, found.warnings) == (60, {}, ())


def test_the_images_are_those_of_the_runs_unless_others_are_given(runs: list[Path], photos: Path, tmp_path: Path):
    assert select(runs, **FEW) == select(runs, photos, **FEW)
    other = finished(tmp_path / "other", tmp_path)
    with pytest.raises(UserError, match="trained on the same images"):
        select([*runs, other], **FEW)
    nowhere = [finished(tmp_path / f"memory{i}", None, seed=i) for i in range(2)]
    with pytest.raises(UserError, match="trained on the same images"):
        select(nowhere, **FEW)


def test_with_labels_it_says_how_good_the_choice_was(runs: list[Path], photos: Path):
    found = select(runs, photos, oracle=photos, **FEW)
    for c in found.candidates:
        weights = mv.load(c.run)
        how = {"test_size": weights.test_size, "mean": weights.mean, "std": weights.std}
        report = evaluate(weights.encoder, open_source(photos), baselines=False, **how)
        assert c.accuracy == {k: s.top1 for k, s in report.representations["trained"].scores.items()}
    assert set(found.agreement) == {"knn", "linear"}
    for metric, agreed in found.agreement.items():
        best = max(c.accuracy[metric] for c in found.candidates)
        assert agreed.regret == pytest.approx(best - found.chosen.accuracy[metric])
    text = found.text()
    assert "Best by RankMe, on 60 images" in text and "Against knn accuracy: " in text
    assert text.splitlines()[1].startswith(found.chosen.run)
    facts = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert facts["chosen"] == found.chosen.run and len(facts["candidates"]) == 3


def test_agreement_is_kendalls_tau_the_share_of_pairs_and_the_regret():
    rng = np.random.default_rng(0)
    goodness, accuracy = rng.normal(size=12).round(1).tolist(), rng.normal(size=12).round(1).tolist()
    names = [f"run {i}" for i in range(12)]
    found = agreement(names, goodness, accuracy)
    assert found.tau == pytest.approx(scipy.stats.kendalltau(goodness, accuracy).statistic)
    right = total = 0.0
    for i in range(12):
        for j in range(12):
            if accuracy[i] > accuracy[j]:
                total += 1
                right += 1.0 if goodness[i] > goodness[j] else 0.5 if goodness[i] == goodness[j] else 0.0
    assert found.pairs == pytest.approx(right / total)
    assert found.regret == pytest.approx(max(accuracy) - accuracy[goodness.index(max(goodness))])
    assert found.best == names[accuracy.index(max(accuracy))]


def test_agreement_in_closed_form():
    names, up = ["a", "b", "c"], [0.1, 0.2, 0.3]
    same, opposite = agreement(names, [1, 2, 3], up), agreement(names, [3, 2, 1], up)
    assert (same.tau, same.pairs, same.regret, same.best) == (pytest.approx(1), 1, 0, "c")
    assert (opposite.tau, opposite.pairs, opposite.regret) == (pytest.approx(-1), 0, pytest.approx(0.2))
    unsure = agreement(names, [1, 1, 1], up)
    assert (unsure.tau, unsure.pairs) == (None, 0.5)
    alike = agreement(names, [1, 2, 3], [0.5] * 3)
    assert (alike.tau, alike.pairs, alike.regret) == (None, None, 0)
    # What could not be computed is the worst.
    assert agreement(names, [-np.inf, 2, 3], up).tau == pytest.approx(1)


def test_an_exponent_near_one_is_the_best_and_none_the_worst():
    good = CRITERIA["alpha_req"]
    assert good({"alpha_req": 1.0}) > good({"alpha_req": 0.8}) > good({"alpha_req": 1.5}) > good({"alpha_req": None})


def test_doubts_are_said(runs: list[Path], photos: Path, tmp_path: Path):
    byol = finished(tmp_path / "byol", photos, "byol_tiny")
    wide = finished(tmp_path / "wide", photos, **{"backbone.channels": (8, 8, 16, 32)})
    deep = finished(tmp_path / "deep", photos, **{"backbone.layers": (1, 1, 1, 1)})
    assert "runs of byol, simclr: no such criterion compares methods" in " ".join(
        select([runs[0], byol], photos, **FEW).warnings
    )
    assert "16, 32 dimensions" in " ".join(select([runs[0], wide], photos, **FEW).warnings)
    assert "different backbones" in " ".join(select([runs[0], deep], photos, **FEW).warnings)
    weights = mv.load(runs[1])
    with torch.no_grad():
        for p in weights.encoder.parameters():
            p.zero_()
    dead = mv.export(weights, "safetensors", tmp_path / "dead.safetensors")
    found = select([runs[0], dead], photos, **FEW)
    assert found.chosen.run == str(runs[0])  # whatever made it, weights are candidates too
    assert found.candidates[1].method is None and f"{dead}: collapse." in found.warnings


def test_bad_selections_are_refused(runs: list[Path], photos: Path, tmp_path: Path):
    with pytest.raises(UserError, match="two runs or more"):
        select(runs[:1], photos)
    with pytest.raises(UserError, match="each given once"):
        select([runs[0], runs[0]], photos)
    with pytest.raises(UserError, match="Did you mean 'rankme'"):
        select(runs, photos, by="rankm")
    half = finished(tmp_path / "half", photos)
    (half / ENCODER).unlink()
    with pytest.raises(UserError, match="is not finished"):
        select([runs[0], half], photos)
