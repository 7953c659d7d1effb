"""Numbers and pictures of MAST's subspaces."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.data.split import split
from manyviews.evaluation.unlabeled import subspaces
from manyviews.evaluation.unlabeled.subspaces import (
    analyze,
    correlation,
    diverse,
    ensemble,
    invariance,
    predictions,
    uncertainty,
)
from manyviews.methods.mast import MAST
from manyviews.reporting.subspaces import draw
from manyviews.views import MAST_15, Composed

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}
NAMES = ["color_jitter", "gaussian_blur", "horizontal_flip", "grayscale", "resized_crop"]


def cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


# -- single numbers ----------------------------------------------------------------------------------------------


def test_correlation_is_the_cosine_of_masks():
    masks = torch.rand(20, 4)
    found = correlation(masks)
    for i, j in itertools.product(range(4), repeat=2):
        assert found[i, j].item() == pytest.approx(cos(masks[:, i], masks[:, j]), abs=1e-6)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(correlation(masks[:, order]), found[order][:, order])
    disjoint = torch.eye(4).repeat(3, 1)
    torch.testing.assert_close(correlation(disjoint), torch.eye(4).double())
    assert not correlation(torch.zeros(6, 3)).any()


def test_what_is_new_comes_first():
    """0 and 1 are alike, 2 is like neither, 3 a little like all."""
    alike = torch.tensor([[1, 0.9, 0.0, 0.3], [0.9, 1, 0.1, 0.3], [0.0, 0.1, 1, 0.3], [0.3, 0.3, 0.3, 1]])
    assert diverse(alike) == [2, 0, 3, 1]
    assert diverse(alike, [1]) == [1, 2, 3, 0]
    assert diverse(alike, [3, 0]) == [3, 0, 2, 1]
    assert diverse(torch.ones(1, 1)) == [0] and diverse(alike, range(4)) == [0, 1, 2, 3]


def test_the_order_is_the_greedy_one_of_any_correlation():
    alike = correlation(torch.rand(10, 7))
    order = diverse(alike, [4])
    for n in range(1, 7):
        means = {k: alike[k, order[:n]].mean().item() for k in range(7) if k not in order[:n]}
        assert order[n] == min(means, key=lambda k: means[k])


def test_an_ensemble_is_all_masked_embeddings():
    mu, masks = torch.randn(6, 8), torch.rand(8, 3)
    expected = torch.stack([torch.cat([row * masks[:, k] for k in range(3)]) for row in mu])
    assert torch.equal(ensemble(mu, masks), expected)


def test_invariance_is_the_cosine_of_masked_embeddings():
    mu, changed, masks = torch.randn(6, 8), torch.randn(6, 8), torch.rand(8, 3)
    found = invariance(mu, changed, masks)
    for k in range(3):
        m = masks[:, k]
        expected = sum(cos(a * m, b * m) for a, b in zip(mu, changed, strict=True)) / 6
        assert found[k].item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(invariance(mu, 3 * mu, masks), torch.ones(3).double())
    torch.testing.assert_close(invariance(mu, -mu, masks), -torch.ones(3).double())
    assert not invariance(mu, changed, torch.zeros(8, 3)).any()


def test_a_subspace_without_the_dimensions_that_change_is_invariant():
    mu, masks = torch.randn(6, 8), torch.eye(2).repeat_interleave(4, 0)
    changed = torch.cat([mu[:, :4], torch.randn(6, 4)], 1)
    found = invariance(mu, changed, masks)
    assert found[0].item() == pytest.approx(1) and found[1] < 0.9


def test_uncertainty_is_from_zero_to_one_in_the_order_of_the_traces():
    var = torch.rand(9, 5)
    found = uncertainty(var)
    trace = var.double().sum(1)
    assert found.min() == 0 and found.max() == 1
    torch.testing.assert_close(found, (trace - trace.min()) / (trace.max() - trace.min()))
    assert not uncertainty(torch.full((4, 3), 0.1)).any()


def test_predictions_are_logits_of_the_right_class():
    mu, labels, masks, weight = torch.randn(6, 8), torch.tensor([0, 2, 1, 1, 0, 2]), torch.rand(8, 3), torch.randn(3, 8)
    found = predictions(mu, labels, masks, weight)
    for k in range(3):
        expected = sum(float(weight[y] @ (x * masks[:, k])) for x, y in zip(mu, labels, strict=True)) / 6
        assert found[k].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifiers_weights_are_its_own(classes: int):
    """Two classes are a case of their own in scikit-learn; a class without training images has no weights."""
    y = torch.arange(90) % classes
    x = torch.randn(90, 4) + 5 * torch.eye(4)[y]
    y = y + (y > 0)  # none is of class 1
    guessed, weight = subspaces._logistic(x, y, x, classes + 1)
    reference = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
    assert guessed.tolist() == reference.predict(x.numpy()).tolist()
    assert weight.shape == (classes + 1, 4) and not weight[1].any()
    # Centered embeddings, so that the bias matters little.
    logits = (x - x.mean(0)).double() @ weight.T
    logits[:, 1] = -math.inf
    assert (logits.argmax(1) == y).double().mean() > 0.9


# -- together ----------------------------------------------------------------------------------------------------


def build(**settings: object) -> MAST:
    torch.manual_seed(3)
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    method = MAST(encoder, **{"view": Composed(2, size=12), "hidden_dim": 16, "output_dim": 20, **settings})
    for _ in range(20):  # statistics for its BatchNorm layers
        method.embed(torch.rand(32, 3, 1, 1) * 4 + torch.randn(32, 3, 12, 12))
    return method


@pytest.fixture(scope="module")
def method() -> MAST:
    return build()


@pytest.fixture(scope="module")
def labeled():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    colors = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    pixels = colors[labels][:, None, None] + rng.normal(0, 30, (120, 12, 12, 3))
    return open_source((pixels.clip(0, 255).astype(np.uint8), np.array(["red", "green", "b$lue"])[labels]))


@pytest.fixture(scope="module")
def numbers(method: MAST, labeled):
    return analyze(method.train(), labeled, **LOOK, swept=40, batch_size=25)


def embedded(method: MAST, source) -> tuple[Tensor, Tensor]:
    """As `analyze` sees the images, which are of the size that it looks at."""
    x = torch.stack([torch.tensor(np.asarray(source.load(i))).permute(2, 0, 1) for i in range(len(source))])
    with torch.no_grad():
        found = method.eval().embed((x / 255 - 0.5) / 0.25)
    method.train()
    return found


def test_numbers_are_complete_and_can_be_kept(numbers, method: MAST):
    assert method.training  # as it was
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["subspaces"] == NAMES and sorted(numbers["order"]) == sorted(NAMES)
    np.testing.assert_allclose(numbers["masks"], method.masks().detach().T, atol=5e-5)
    np.testing.assert_allclose(numbers["correlation"], correlation(method.masks().detach()), atol=1e-6)


def test_numbers_are_those_of_the_images(numbers, method: MAST, labeled):
    _, var = embedded(method, labeled)
    np.testing.assert_allclose(numbers["uncertainty"]["values"], uncertainty(var), atol=1e-4)
    assert numbers["uncertainty"]["images"] == [labeled.where(i) for i in range(120)]
    values = np.array(numbers["uncertainty"]["values"])
    for name, found in numbers["classes"].items():
        mine = values[labeled.labels == labeled.classes.index(name)]
        assert (found["mean"], found["std"]) == pytest.approx((mine.mean(), mine.std()))
    assert set(numbers["classes"]) == {"red", "green", "b$lue"}


def test_a_classifier_of_embeddings_is_asked_about_images_it_has_not_seen(numbers, method: MAST, labeled):
    x, y = embedded(method, labeled)[0].numpy(), labeled.labels
    train, test = split(labeled.ids, {"train": 0.8, "test": 0.2}, salt="subspaces").values()
    x = (x - x[train].mean(0)) / x[train].std(0)
    fitted = LogisticRegression(max_iter=1000).fit(x[train], y[train])
    right = fitted.predict(x[test]) == y[test]
    assert numbers["accuracy"]["embedding"] == pytest.approx(right.mean()) and 0 < right.mean() < 1
    for name, found in numbers["classes"].items():
        assert found["accuracy"] == pytest.approx(right[y[test] == labeled.classes.index(name)].mean())
    for k, found in enumerate(numbers["predictions"]):
        masked = x[test][right] * method.masks().detach().numpy()[:, k]
        logits = (masked * fitted.coef_[y[test][right]]).sum(1)
        assert found == pytest.approx(logits.mean(), abs=0.02)


def test_invariance_falls_with_the_strength(numbers):
    assert list(numbers["invariance"]) == ["color_jitter", "gaussian_blur", "resized_crop"]
    for sweep in numbers["invariance"].values():
        assert len(sweep["subspaces"]) == 5
        for curve in (*sweep["subspaces"], sweep["all"]):
            assert len(curve) == len(sweep["values"]) == len(sweep["trace"])
            assert curve[0] == pytest.approx(1, abs=1e-3) and curve[-1] < curve[0]
    assert numbers["invariance"]["resized_crop"]["values"][0] == 1.0


def test_strengths_are_what_they_say(method: MAST):
    """Jitter by a factor on its settings, blur by its width, crops by their area."""
    kinds = {type(a): a for a in method.view.augmentations}
    made = {
        kind.name: [at(kind, v) for v in (1.0, 0.5)]
        for t, kind in kinds.items()
        if t in subspaces._SWEEPS
        for _, _, at in [subspaces._SWEEPS[t]]
    }
    assert made["color_jitter"][0] == kinds[type(made["color_jitter"][0])]
    half = made["color_jitter"][1]
    assert (half.brightness, half.contrast, half.saturation, half.hue) == (0.2, 0.2, 0.1, 0.05)
    assert subspaces._jitter(half, 100).hue == 0.5
    assert [b.sigma for b in made["gaussian_blur"]] == [(1.0, 1.0), (0.5, 0.5)]
    assert [c.area for c in made["resized_crop"]] == [(1.0, 1.0), (0.5, 0.5)]


def test_masks_and_images_may_be_of_any_kind(labeled, tmp_path):
    alone = replace(labeled, annotate=lambda: None)
    found = analyze(build(masks="none"), alone, **LOOK, images=30, swept=10)
    assert found["subspaces"] == ["all"] and found["correlation"] == [[pytest.approx(1)]]
    assert found["accuracy"] is found["predictions"] is found["classes"] is None
    assert len(found["uncertainty"]["values"]) == 30
    sweep = found["invariance"]["gaussian_blur"]
    assert sweep["subspaces"][0] == pytest.approx(sweep["all"], abs=1e-6)
    plain = analyze(build(uncertainty=False, masks="disjoint"), labeled, **LOOK, images=60, swept=10)
    assert plain["uncertainty"] is None and plain["invariance"]["resized_crop"]["trace"] is None
    assert plain["classes"]["red"]["mean"] is None and plain["predictions"] is not None
    for kind, numbers in (("alone", found), ("plain", plain)):
        assert all(map(is_picture, draw(numbers, tmp_path / kind)))


def test_the_same_seed_gives_the_same_numbers(method: MAST, labeled):
    one, two, other = (analyze(method, labeled, **LOOK, images=40, swept=20, seed=s) for s in (0, 0, 1))
    assert one == two and one["invariance"] != other["invariance"]
    batched = analyze(method, labeled, **LOOK, images=40, swept=20, batch_size=7)
    for name, sweep in one["invariance"].items():
        np.testing.assert_allclose(batched["invariance"][name]["subspaces"], sweep["subspaces"], atol=1e-4)


# -- pictures ----------------------------------------------------------------------------------------------------


def is_picture(path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 10


def test_all_numbers_become_pictures(numbers, tmp_path):
    files = draw(json.loads(json.dumps(numbers)), tmp_path / "plots")
    names = ["masks", "correlation", "invariance", "uncertainty", "classes", "predictions"]
    assert [f.stem for f in files] == names and all(map(is_picture, files))
    assert sorted((tmp_path / "plots").iterdir()) == sorted(files)


def test_fifteen_augmentations_fit(labeled, tmp_path):
    many = build(view=Composed(2, size=12, augmentations=MAST_15), output_dim=45)
    found = analyze(many, labeled, **LOOK, images=30, swept=10)
    assert len(found["subspaces"]) == 15 and all(map(is_picture, draw(found, tmp_path)))
