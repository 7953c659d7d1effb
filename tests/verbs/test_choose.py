"""Choosing a backbone: labels judge on held-out images, and what cannot be had is named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.evaluation import evaluate
from manyviews.evaluation.knn import neighbors
from manyviews.tuning.pace import Pace
from manyviews.verbs import choose as verb
from manyviews.weights import write


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three folders of 30 noisy pictures whose color is their class. Do not change them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir()
        for i in range(30):
            pixels = rng.integers(0, 120, (16, 16, 3)) + 120 * np.eye(3, dtype=int)[k]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two networks of different speed, as files."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, width in (("small", 16), ("large", 48)):
        encoder = Encoder("resnet18", stem="small", channels=(width,) * 4, layers=(1, 1, 1, 1))
        write(
            mv.Pretrained(encoder.eval(), (0.5,) * 3, (0.25,) * 3, 16, name),
            "safetensors",
            folder / f"{name}.safetensors",
        )
    return folder


def test_labels_judge_and_speed_decides_between_equals(photos, files, tmp_path):
    names = [str(files / "large.safetensors"), str(tmp_path / "nowhere.pth"), str(files / "small.safetensors")]
    page = tmp_path / "page.html"
    found = json.loads(json.dumps(verb.choose(photos, names, out=page).to_dict()))
    large, small = found["candidates"]
    assert list(found["skipped"]) == [names[1]]
    # Colors are easy for both: their accuracies cannot be told apart, so the faster is to be taken.
    assert large["linear"] <= small["linear_interval"][1] and min(large["linear"], small["linear"]) > 0.8
    assert small["images_per_second"] > large["images_per_second"]
    assert found["best"] == names[2] and found["words"][0].startswith(f"Take {names[2]}")
    assert small["parameters"] == sum(p.numel() for p in mv.load(names[2]).encoder.parameters())
    assert any("manyviews adapt" in words and "linear" in words for words in found["words"])
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 6 * (1 + 2 * 5) and "default-src 'none'" in text


def test_without_labels_nothing_is_named_the_best(photos, files, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(photos.rglob("*.png"))[::4]):
        Image.open(path).save(flat / f"{i}.png")
    found = verb.choose(flat, [files / "small.safetensors"])
    (one,) = found.candidates
    assert found.best is None and one.linear is None and one.spectrum["rankme"] > 1
    assert "label a few hundred images" in found.words[0]
    with pytest.raises(mv.UserError, match="None of the 1 candidates"):
        verb.choose(flat, [tmp_path / "nowhere.pth"])


def test_neighbors_on_the_page_are_the_nearest_other_images(photos, files):
    known = mv.load(files / "small.safetensors")
    source = mv.data.open_source(photos)
    look = verb._look("small", known, source, source, False, True, Pace(0.1, 0.1, 0.1), 0)
    x = torch.from_numpy(known.embed(photos))
    for i, *near in look.near:
        _, index = neighbors(x, x[[i]], len(x))
        assert near == [j for j in index[0].tolist() if j != i][:5]


def test_probes_that_judge_are_those_of_evaluate(photos, files):
    """The same splits and numbers as `evaluate` gives, which reads the images anew and has an untrained encoder too."""
    known, source = mv.load(files / "small.safetensors"), mv.data.open_source(photos)
    look = verb._look("small", known, source, source, True, True, Pace(0.1, 0.1, 0.1), 0)
    parts = verb._parts(source)
    report = evaluate(
        known.encoder,
        source.subset(parts["train"]),
        source.subset(parts["judge"]),
        test_size=known.test_size,
        mean=known.mean,
        std=known.std,
    )
    for name, (knn, linear) in {
        "trained": (look.candidate.knn, look.candidate.linear),
        "pixels": look.pixels,
    }.items():
        wanted = report.representations[name].scores
        assert knn == wanted["knn"].top1 and linear == wanted["linear"].top1


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("timm:vit_base_patch16_224.mae", "masked"),
        ("timm:vit_small_patch14_reg4_dinov2.lvd142m", "hybrid"),
        ("timm:vit_small_patch16_224.dino", "global"),
        ("timm:resnet50.a1_in1k", "supervised"),
        ("weights.pth", "untold"),
    ],
)
def test_what_a_network_is_known_for(name, family):
    assert verb.family(name) == family
