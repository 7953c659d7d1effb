"""The numbers that a run is monitored with, and when they are reason for alarm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import manyviews as mv
from manyviews import recipes
from manyviews.data import open_source
from manyviews.engine import alarms, monitor
from manyviews.engine.build import build_method
from manyviews.evaluation import encode, rankme, spread
from manyviews.evaluation.unlabeled.spectrum import describe
from manyviews.methods import BYOL

CPU = torch.device("cpu")


def pictures(n: int = 96) -> np.ndarray:
    """Colored blocks under noise: images that differ, and that views of them keep apart."""
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0, 255, (n, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (blocks + rng.normal(0, 20, (n, 32, 32, 3))).clip(0, 255).astype(np.uint8)


def monitored(name: str):
    recipe = recipes.resolve(recipes.get(name))
    source = open_source(pictures(64))
    held = monitor.prepare(source.subset(range(32)), source.subset(range(32, 64)), recipe, 32)
    return build_method(recipe), held, recipe


def heard(seen: list[dict[str, float]]) -> list[list[str]]:
    """The alarms after each measurement."""
    return [alarms.of_measurements(seen[:end]) for end in range(1, len(seen) + 1)]


def pretrain(out: Path, recipe: str, **settings) -> mv.Run:
    every = {"data.batch_size": 16, "data.holdout": 0.25, "monitor.epochs": 1, "monitor.steps": 100}
    return mv.pretrain(pictures(), recipe, epochs=3, out=out, settings=every | settings)


def test_a_healthy_short_run_of_a_transformer_is_no_alarm(tmp_path: Path):
    """Its features lose dimensions before they gain them."""
    seen = monitor.measurements(pretrain(tmp_path / "run", "mae_tiny").log)
    assert len(seen) == 4
    assert heard(seen) == [[]] * 4


def test_byol_without_predictor_and_stop_gradient_is_one(tmp_path: Path, monkeypatch, capsys):
    def attract(self, views, at):
        a, b = (self.online(views["global", i]) for i in (0, 1))
        yield {"global": -cosine_similarity(a, b).mean()}

    monkeypatch.setattr(BYOL, "loss", attract)
    run = pretrain(tmp_path / "run", "byol_tiny", **{"optimizer.lr": 0.03})
    seen = monitor.measurements(run.log)
    said = [alarm for some in heard(seen) for alarm in some]
    assert [row["alarm"] for row in run.log if "alarm" in row] == said
    assert f"Warning: {said[0]}" in capsys.readouterr().err
    assert len(said) == 1  # once, however long it lasts
    assert said[0].startswith("The projections have collapsed: all images look nearly the same to the loss")
    assert seen[-1]["projection_spread"] < 0.1 < 0.15 < seen[-1]["spread"]  # features live on


def test_an_encoder_whose_features_are_the_same_for_every_image_is_one():
    method, held, recipe = monitored("simclr_tiny")
    seen = [monitor.measure(method, held, recipe, CPU)]
    with torch.no_grad():
        for weight in method.kept_encoder.parameters():
            weight.zero_()
    seen += [monitor.measure(method, held, recipe, CPU)] * 2
    first, second, third = heard(seen)
    assert first == third == []
    assert [a.split(":")[0] for a in second] == ["The features have collapsed", "The projections have collapsed"]
    assert [len(a) for a in heard([dict(s) for s in seen[1:]])] == [0, 2]  # it may also have been so from the start


def test_the_numbers_are_those_of_the_encoder_and_of_its_projector():
    method, held, recipe = monitored("byol_tiny")
    method.train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    found = monitor.measure(method, held, recipe, CPU)
    x = encode(method.kept_encoder, held.pixels, mean=recipe.data.mean, std=recipe.data.std)
    assert {k: found[k] for k in describe(x)} == pytest.approx(describe(x))
    assert (found["dim"], found["projection_dim"]) == (16, 32)
    assert 1 <= found["projection_rankme"] <= 32
    # It changes nothing.
    assert method.training and all(m.training for m in method.online.modules())
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    # Projections are of views, not of clean images.
    method.eval()
    z = encode(method.online, held.pixels, mean=recipe.data.mean, std=recipe.data.std)
    assert (rankme(z), spread(z)) != pytest.approx((found["projection_rankme"], found["projection_spread"]))


def test_projections_are_measured_where_they_mean_something():
    for name in ("mae_tiny", "dino_tiny"):
        method, held, recipe = monitored(name)
        assert not any(k.startswith("projection") for k in monitor.measure(method, held, recipe, CPU))
    method, held, recipe = monitored("mast_tiny")
    assert monitor.measure(method, held, recipe, CPU)["projection_dim"] == method.masks().shape[0]  # a Gaussian's means


def told(ranks, spreads=None, dim=256, prefix=""):
    spreads = spreads or [0.5] * len(ranks)
    keys = [prefix + name for name in ("dim", "rankme", "spread")]
    return [dict(zip(keys, (dim, r, s), strict=True)) for r, s in zip(ranks, spreads, strict=True)]


def test_few_dimensions_are_reported_in_numbers():
    *_, last = heard(told([9, 40, 41, 3]))
    assert last == [
        "The features use 3 of 256 dimensions, 41 at best: the encoder can tell few images apart. "
        "A lower learning rate or a larger batch may help."
    ]
    *_, last = heard(told([9, 40, 41, 12], dim=128, prefix="projection_"))
    assert last[0].startswith("The projections use 12 of 128 dimensions, 41 at best: the loss can tell")


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (told([5, 4, 3, 2.5], dim=2048), [0, 0, 0, 0]),  # little, but not much less than an untrained encoder has
        (told([9, 60, 40, 30]), [0, 0, 0, 0]),  # as ranks do
        (told([9, 200, 45, 45]), [0, 0, 0, 0]),  # a fall, but to many
        (told([3.5, 3, 2.5, 2], dim=16), [0, 0, 0, 0]),  # a small encoder
        (told([9, 40, 8, 7, 8, 9]), [0, 0, 1, 0, 0, 0]),
        (told([9, 40, 9.9, 10.1, 9.9, 16, 9.9]), [0, 0, 1, 0, 0, 0, 1]),  # about the limit, and then a second time
        (told([9, 40, 8, 2, 2], [0.2, 0.5, 0.5, 0.01, 0.01]), [0, 0, 1, 1, 0]),  # from few to none
        (told([9, 2, 8, 8], [0.2, 0.01, 0.5, 0.5]), [0, 1, 0, 0]),  # and back, which is no second fall
        (told([9, 9, 9], [0.04, 0.04, 0.03]), [0, 0, 0]),  # images that are alike, to any encoder
        (told([9, 9, 9], [0.04, 0.004, 0.004]), [0, 1, 0]),
        (told([9, 40, 15, 15], prefix="projection_"), [0, 0, 1, 0]),  # half is enough of projections
        ([{"knn": 0.1}, {"rankme": 9, "spread": 0.5}, {"rankme": 1, "spread": 0.0}], [0, 0, 0]),  # of older versions
    ],
)
def test_alarms_come_once_for_each_event(seen, wanted):
    assert [len(a) for a in heard(seen)] == wanted


def test_a_resumed_run_knows_its_past():
    rows = [
        {"step": 0, "monitor/dim": 256, "monitor/rankme": 9.0, "monitor/spread": 0.3},
        {"step": 5, "loss": 1.0, "lr": 0.1},
        {"step": 5, "monitor/dim": 256, "monitor/rankme": 2.0, "monitor/spread": 0.3},
        {"step": 5, "alarm": "The features use 2 of 256 dimensions."},
    ]
    past = monitor.measurements(rows)
    assert [p["rankme"] for p in past] == [9, 2]
    assert alarms.of_measurements([*past, dict(past[-1])]) == []
