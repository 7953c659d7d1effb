import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from manyviews.backbones import Encoder
from manyviews.data import load_canvases, open_source
from manyviews.errors import UserError
from manyviews.evaluation import Pixels, alignment, extract, rankme, spread, uniformity
from manyviews.evaluation.unlabeled.diagnosis import Diagnosis, default_view, diagnose
from manyviews.evaluation.unlabeled.spectrum import (
    alpha_req,
    correlation,
    deviations,
    lidar,
    participation,
    spectrum_auc,
)
from manyviews.views import BYOL_PAIR, SIMCLR, Global, Views

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}
MEASURES = {
    "rankme": rankme,
    "participation": participation,
    "alpha_req": alpha_req,
    "auc": spectrum_auc,
    "correlation": correlation,
    "spread": spread,
}


class Line(nn.Module):
    """Features along one line through 0: one dimension, however wide."""

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * torch.arange(1.0, 65.0)


class Point(nn.Module):
    """Features that are the same up to a hundredth."""

    def forward(self, x):
        return 1 + 0.01 * x.flatten(1)[:, :8]


def of_views(encoder, canvases, view, count):
    """Features of a view of each of several epochs: `n count d`."""
    made = [Views(canvases, (view,), 0, epoch, LOOK["mean"], LOOK["std"]) for epoch in range(count)]
    with torch.no_grad():
        return torch.stack([encoder(views[view.name, 0]) for views in made], 1)


def test_the_numbers_are_those_of_features_and_of_views(encoder, pictures):
    source = pictures(100)
    found = diagnose(encoder, source, **LOOK, views=3)
    x = extract(encoder, source, **LOOK).x
    assert (found.images, found.dim, found.viewed) == (100, x.shape[1], (100, 3))
    for name, measure in MEASURES.items():
        wanted = measure(x)
        assert getattr(found, name) == (None if math.isnan(wanted) else pytest.approx(wanted, rel=1e-6))
    largest = torch.linalg.eigvalsh(x.double().T @ x.double())[-1].item()
    assert found.singular_values[0] ** 2 == pytest.approx(largest)
    assert found.deviations == pytest.approx(sorted(deviations(x).tolist(), reverse=True))
    # All at once they are what they are a few images at a time.
    z = of_views(encoder, load_canvases(source, 12)[0], default_view(12), 3)
    assert found.lidar == pytest.approx(lidar(z), rel=1e-4)
    assert found.alignment == pytest.approx(alignment(z[:, 0], z[:, 1]), rel=1e-4)
    assert found.uniformity == pytest.approx(uniformity(z[:, 0]), rel=1e-4)


def test_it_looks_at_some_images_from_all_over_and_in_the_views_it_is_given(encoder, pictures):
    source = pictures(90)
    found = diagnose(encoder, source, **LOOK, images=40, viewed=20, views=4)
    assert (found.images, found.viewed) == (40, (20, 4))
    chosen = source.subset(np.linspace(0, 89, 40).astype(int))
    assert found.rankme == pytest.approx(rankme(extract(encoder, chosen, **LOOK).x))
    still = Global(2, size=12, area=(1, 1), ratio=(1, 1), flip=0, color=None)
    assert diagnose(encoder, source, **LOOK, view=still).alignment == pytest.approx(0, abs=1e-6)
    pair = Global(2, size=12, color=BYOL_PAIR)  # a view of each color in turn
    assert diagnose(encoder, source, **LOOK, view=pair, views=3).viewed == (90, 3)
    assert default_view(32).color.blur == 0 and default_view(224).color == SIMCLR


def test_an_encoder_is_compared_with_an_untrained_one_and_stays_as_it_is(learner, pictures):
    learner.train()
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    source = pictures(60)
    found = diagnose(learner, source, **LOOK, seed=3)
    torch.manual_seed(3)
    fresh = Encoder.from_spec(learner.spec)
    x = extract(fresh, source, **LOOK).x
    assert found.untrained == {"rankme": pytest.approx(rankme(x)), "spread": pytest.approx(spread(x))}
    assert learner.training and all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())
    assert diagnose(learner, source, **LOOK, baseline=False).untrained is None
    pixels = diagnose(Pixels(), source, **LOOK)
    assert pixels.untrained is None and pixels.state == "healthy"


def test_collapse_is_called_by_its_name(learner, pictures):
    source = pictures(60)
    point, line = (diagnose(module, source, **LOOK) for module in (Point(), Line()))
    assert point.state == "collapse"
    assert point.verdict.startswith("Collapse: all images look nearly the same to the encoder (spread 0.0")
    assert line.state == "dimensional collapse"
    assert line.verdict.startswith("Dimensional collapse: the features use about 1 of 64 dimensions, and")
    with torch.no_grad():
        for weight in learner.parameters():
            weight.zero_()
    assert diagnose(learner, source, **LOOK).state == "collapse"
    assert "Collapse" in diagnose(learner, source, **LOOK).text()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "healthy"),
        ({"rankme": 25.0}, "dimensional collapse"),  # less than half of an untrained encoder's
        ({"rankme": 40.0, "untrained": {"rankme": 100.0, "spread": 0.2}}, "healthy"),  # more than an eighth
        ({"rankme": 30.0}, "healthy"),
        ({"rankme": 4.0, "untrained": {"rankme": 5.0, "spread": 0.2}}, "dimensional collapse"),  # whatever it was
        ({"rankme": 4.0, "untrained": None, "images": 60}, "healthy"),  # of 60 images, no more than 60
        ({"rankme": 8.0, "dim": 16, "untrained": None}, "healthy"),
        ({"spread": 0.04}, "collapse"),
        ({"spread": 0.04, "untrained": {"rankme": 60.0, "spread": 0.03}}, "healthy"),  # the images are alike
        ({"spread": 0.004, "untrained": {"rankme": 60.0, "spread": 0.003}}, "collapse"),
    ],
)
def test_a_state_is_relative_to_the_untrained_encoder(encoder, pictures, changes, wanted):
    usual = {"dim": 256, "images": 1000, "rankme": 90.0, "spread": 0.5, "untrained": {"rankme": 60.0, "spread": 0.2}}
    found = diagnose(encoder, pictures(20), **LOOK, baseline=False, views=2)
    assert dataclasses.replace(found, **usual | changes).state == wanted


def test_a_verdict_says_what_it_does_not_know(encoder, pictures):
    found = dataclasses.replace(diagnose(encoder, pictures(20), **LOOK), dim=100, rankme=15.2)
    assert "about 15 of 100 dimensions" in found.verdict
    assert "Of 20 images no more than 20 can be seen" in found.verdict
    assert "no measure of accuracy" in found.verdict


def test_it_survives_json(encoder, pictures):
    found = diagnose(encoder, pictures(30), **LOOK)
    text = found.to_json()
    facts = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (facts["state"], facts["verdict"]) == (found.state, found.verdict)
    assert Diagnosis.from_json(text) == found
    for wrong in ("[]", "{}", "no", text.replace('"viewed"', '"saw"')):
        with pytest.raises(UserError, match="not a diagnosis"):
            Diagnosis.from_json(wrong)
    assert found.text().endswith(found.verdict)
    assert f"{found.lidar:.1f}" in found.text()


class Bad(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4] * float("nan")


def test_bad_input_is_refused(encoder, pictures):
    with pytest.raises(UserError, match="10 images that can be read: a diagnosis takes 16"):
        diagnose(encoder, pictures(10), **LOOK)
    with pytest.raises(UserError, match="2 views of each"):
        diagnose(encoder, pictures(20), **LOOK, views=1)
    with pytest.raises(UserError, match="not finite"):
        diagnose(Bad(), pictures(20), **LOOK)


def test_labels_are_not_needed(encoder):
    noise = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    assert diagnose(encoder, open_source(noise), **LOOK).images == 20
