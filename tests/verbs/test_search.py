"""Search: exactly the nearest images, from an index that is made once."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation import features, index
from manyviews.evaluation.features import encode
from manyviews.verbs import search as verb
from manyviews.weights import Pretrained

MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty noisy pictures of all colors, one of them broken. Do not change them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 80, (20, 24, 3)) + rng.integers(0, 170, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1))
    return Pretrained(encoder.eval(), MEAN, STD, 16, "a network")


@pytest.fixture(autouse=True)
def parts(monkeypatch, tmp_path):
    """Parts of few images, and a cache of this test's own."""
    monkeypatch.setattr(index, "PART", 12)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_nearest_of_all_parts_are_found_in_order(photos, weights, tmp_path):
    queries = [str(photos / "00.png"), str(photos / "30.png")]
    out = tmp_path / "found.html"
    found = mv.search(weights, queries, photos, k=5, out=out).found
    source = open_source(photos)
    good = [i for i in range(40) if i != 7]
    x = torch.cat([encode(weights.encoder, p, mean=MEAN, std=STD) for p, _, _ in features.test_images(source, 16)])
    x = torch.nn.functional.normalize(x)
    for one, i in zip(found, (0, 30), strict=True):
        near = x @ x[good.index(i)]
        order = near.argsort(descending=True)[:5]
        assert one.index == [good[j] for j in order.tolist()]
        assert one.ids == [source.ids[j] for j in one.index] and one.index[0] == i
        assert one.similarity == pytest.approx(near[order].tolist(), abs=1e-3)
    page = out.read_text(encoding="utf-8")
    assert page.count("<img") == 12 and "default-src 'none'" in page
    with pytest.raises(mv.UserError, match="exists"):
        mv.search(weights, queries, photos, out=out)


def test_an_index_is_made_once_and_continued(photos, weights, tmp_path, monkeypatch, capfd):
    folder, calls = tmp_path / "index", []
    real = index.encode
    monkeypatch.setattr(index, "encode", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    first = mv.search(weights, photos / "03.png", photos, index=folder)
    assert len(calls) == 4 and first.images == 39 and "07.png" in capfd.readouterr().err
    assert mv.search(weights, photos / "03.png", photos, index=folder).found == first.found and len(calls) == 4
    sorted(folder.glob("*.safetensors"))[2].unlink()  # as if it had been interrupted
    assert mv.search(weights, photos / "03.png", photos, index=folder).found == first.found and len(calls) == 5
    other = Pretrained(Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)), MEAN, STD, 16, "another")
    with pytest.raises(mv.UserError, match="give another --index"):
        mv.search(other, photos / "03.png", photos, index=folder)


def test_the_cache_of_indices_is_bounded(tmp_path):
    for k, name in enumerate(("old", "mine", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(100))
        os.utime(tmp_path / name, (k, k))
    assert verb.bounded(tmp_path, tmp_path / "mine", most=300) == 0
    assert verb.bounded(tmp_path, tmp_path / "mine", most=200) == 1 and not (tmp_path / "old").exists()
    assert verb.bounded(tmp_path, tmp_path / "mine", most=10) == 1 and (tmp_path / "mine" / "x").exists()


def test_a_file_that_changed_is_read_again(weights, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, color in enumerate(((250, 0, 0), (0, 250, 0), (0, 0, 250))):
        Image.new("RGB", (16, 16), color).save(folder / f"{i}.png")
    Image.new("RGB", (16, 16), (250, 0, 0)).save(tmp_path / "red.png")
    (before,) = mv.search(weights, tmp_path / "red.png", folder, k=1).found
    Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "0.png")
    Image.new("RGB", (16, 16), (250, 0, 0)).save(folder / "2.png")
    (after,) = mv.search(weights, tmp_path / "red.png", folder, k=1).found
    assert (before.ids, after.ids) == (["0.png"], ["2.png"])


def test_texts_need_a_run_that_has_learned_from_captions(photos, weights, tmp_path):
    for given in ({"text": "a dress"}, {"text": ["a dress"], "query": photos / "00.png"}, {}):
        with pytest.raises(mv.UserError):
            mv.search(weights, given.pop("query", None), photos, **given)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    lines = ["path,caption"]
    for i in range(32):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (20, 20), (200 + i, 0, 0) if i % 2 == 0 else (0, 0, 200 + i)).save(pairs / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    (pairs / "captions.csv").write_text("\n".join(lines))
    settings = {"data.holdout": 0.0, "data.batch_size": 16, "optimizer.lr": 0.003}
    run = mv.pretrain(pairs, "clip_tiny", epochs=20, settings=settings, out=tmp_path / "run")
    red, blue = mv.search(run.folder, None, pairs, text=["red", "blue"], k=4).found
    assert red.query == "red" and all(i % 2 == 0 for i in red.index) and all(i % 2 for i in blue.index)
