"""Answers for a folder: a row for each image, in parts that an interruption keeps."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews import cli
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads.classify import classifier
from manyviews.verbs import predict as verb
from manyviews.weights.model import Known, Model, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of noise for four classes."""
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).eval()
    head = classifier({"kind": "linear"}, 8, 4)
    with torch.no_grad():
        head.weight.mul_(30)
    x = encoder(torch.randn(40, 3, 32, 32)).detach()
    out = tmp_path_factory.mktemp("model") / "m"
    model = Model(
        encoder=encoder,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        test_size=32,
        name="m",
        head=head,
        head_spec={"kind": "linear"},
        classes=("a", "b", "c", "d"),
        temperature=2.0,
        kept=Known.of(x[:30], x[30:]),
        facts={"title": "noise"},
    )
    write(model, out)
    return out


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(11):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i:02d}.png")
    (tmp_path / "in" / "05.png").write_bytes((tmp_path / "in" / "05.png").read_bytes()[:300])
    return tmp_path / "in"


def test_rows_are_the_models_answers(folder, pictures, tmp_path, monkeypatch, capsys):
    """In both formats, over several parts, with a reason for the image that cannot be read."""
    monkeypatch.setattr(verb, "PART", 4)
    model = mv.load(folder)
    found = model.predict(pictures)
    assert found.problems.keys() == {5} and not found.known[5] and np.isnan(found.probability[5]).all()
    cli.main(["predict", str(folder), str(pictures), "--out", str(tmp_path / "p.parquet"), "--k", "2"])
    assert "Predicted 10 images" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert list(table) == ["id", "class", "probability", "known", "distance", "class_2", "probability_2", "problem"]
    assert table["id"] == found.ids and ["" if c is None else c for c in table["class"]] == found.best
    for i in (0, 1, 9):
        first, second = np.sort(found.probability[i])[::-1][:2]
        assert (table["probability"][i], table["probability_2"][i]) == (pytest.approx(first), pytest.approx(second))
        assert table["known"][i] == bool(table["distance"][i] <= model.kept.threshold)
    assert table["known"][5] is None and table["problem"][5] and table["problem"][4] is None
    mv.predict(folder, pictures, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == found.ids and [row["class"] for row in rows] == found.best
    assert not list(tmp_path.glob("*.parts"))
    # The probabilities by hand: the encoder, the head, the temperature.
    with torch.no_grad():
        x = (torch.from_numpy(np.array(Image.open(pictures / "00.png"))).permute(2, 0, 1) / 255 - 0.5) / 0.25
        wanted = (model.head(model.encoder(x[None])) / 2.0).softmax(1)[0]
    torch.testing.assert_close(torch.from_numpy(found.probability[0]), wanted, rtol=1e-4, atol=1e-4)


def test_an_interruption_keeps_the_parts_that_are_done(folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "PART", 4)
    usual, calls = verb.answers, []

    def failing(model, source, tell_done):
        calls.append(len(source))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(model, source, tell_done)

    monkeypatch.setattr(verb, "answers", failing)
    out = tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        mv.predict(folder, pictures, out)
    assert not out.exists()
    with pytest.raises(UserError, match="predictions of another model or other images"):
        mv.predict(folder, pictures, out, k=1)
    mv.predict(folder, pictures, out)
    assert calls == [4, 4, 3, 3] and len(out.read_text().splitlines()) == 12


def test_what_is_far_from_the_training_images_is_unknown():
    """The distance is to the fifth nearest, by cosine; 95 % of validation images are nearer than the threshold."""
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 6) * 0.2 + torch.eye(6)[0], dim=1)
    kept = Known.of(x[:100], x[100:])
    exact = 1 - (x[100:] @ x[:100].T).sort(1, descending=True)[0][:, 4]
    torch.testing.assert_close(kept.distance(x[100:]), exact, rtol=0, atol=2e-3)
    assert (kept.distance(x[100:]) <= kept.threshold).sum() == 95
    assert (kept.distance(-x) > kept.threshold).all()


def test_bad_input_is_one_sentence(folder, pictures, tmp_path):
    with pytest.raises(UserError, match=r"\.csv or \.parquet"):
        mv.predict(folder, pictures, tmp_path / "p.txt")
    encoder = mv.weights.Pretrained(mv.load(folder).encoder, (0.5,) * 3, (0.25,) * 3, 32, "bare")
    with pytest.raises(UserError, match="without a head"):
        mv.predict(encoder, pictures, tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        mv.predict(folder, pictures, tmp_path / "p.csv")
