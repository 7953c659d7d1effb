"""A model that is kept: what its folder says, how it is read again, and that others read it without this library."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews import cli
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.errors import UserError
from manyviews.weights import Pretrained
from manyviews.weights.model import tensors

QUICK = {
    f"{name}.descent.{k}": v for name in ("unfreeze", "lpft", "finetune") for k, v in (("epochs", 1), ("fewest", 2))
} | {"mlp.crops": 1, "mlp.fewest": 2, "mlp.epochs": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures of three kinds whose color nearly tells the kind: 24 to learn from, 9 to test."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for kind, name in enumerate(("blue", "green", "red")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(90, 40, (40, 36, 3)) + 70 * (np.arange(3) == 2 - kind)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16)).train()
    with torch.no_grad():
        for _ in range(20):  # statistics for its BatchNorm layers
            encoder(torch.rand(16, 3, 1, 1) * 4 - 2 + torch.randn(16, 3, 32, 32))
    return Pretrained(encoder.eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 32, "tiny")


@pytest.fixture(scope="module")
def model(weights, photos, tmp_path_factory):
    """A linear model and its folder. Do not change it."""
    return mv.adapt(weights, photos, tmp_path_factory.mktemp("models") / "linear", strategy="linear", corruptions=True)


def test_a_folder_says_what_the_model_is_and_gives_it_back(model, photos, capsys):
    folder = Path(model.name)
    assert {p.name for p in folder.iterdir()} == {"model.json", "model.safetensors", "known.safetensors", "README.md"}
    facts = json.loads((folder / "model.json").read_text())
    assert facts["classes"] == ["blue", "green", "red"] and facts["strategy"] == "linear"
    assert facts["images"] == {"train": 18, "validation": 6} and facts["test"]["images"] == 9
    assert facts["corruptions"]["clean"] == facts["test"]["accuracy"] and "jpeg" in facts["corruptions"]
    assert facts["preprocessing"]["mean"] == [0.4, 0.5, 0.6] and facts["preprocessing"]["size"] == 32
    again = mv.load(folder)
    assert isinstance(again, mv.weights.Model)
    ours, theirs = model.predict(photos / "test"), again.predict(photos / "test")
    np.testing.assert_array_equal(ours.probability, theirs.probability)
    np.testing.assert_array_equal(ours.distance, theirs.distance)
    right = np.array(theirs.best) == np.array([name.split("/")[0] for name in theirs.ids])
    assert right.mean() == pytest.approx(facts["test"]["accuracy"]) and right.mean() > 0.6
    assert (theirs.known == (theirs.distance <= facts["known"]["threshold"])).all()
    np.testing.assert_allclose(theirs.probability.sum(1), 1, atol=1e-5)
    # A model is weights like any other: what is embedded is its encoder.
    assert again.embed(photos / "test").shape == (9, 16)
    cli.main(["show", str(folder)])
    shown = capsys.readouterr().out
    assert "3: blue, green, red" in shown and "validation" in shown and "test" in shown


WITHOUT = """
import json, os, sys
sys.path = [p for p in sys.path if p != {tree!r}]
sys.modules["manyviews"] = None  # cannot be imported
"""

README = """
os.chdir({folder!r})
sys.argv[1:] = {images!r}
exec({program!r})
"""

EXPORTS = """
import onnxruntime
os.chdir({folder!r})
x = np.load("images.npy")
facts = json.load(open({facts!r}))
session = onnxruntime.InferenceSession("m.onnx")
found = [session.run(["probabilities"], {{"images": x}})[0]]
with torch.no_grad():
    found.append(torch.export.load("m.pt2").module()(torch.from_numpy(x)).numpy())
    mean, std = (torch.tensor(facts["preprocessing"][k]).view(3, 1, 1) for k in ("mean", "std"))
    z = (torch.from_numpy(x) - mean) / std
    one = timm.create_model(facts["timm"]["name"], num_classes=3, **facts["timm"]["settings"]).eval()
    one.load_state_dict(torch.load("m.pt", weights_only=True))
    two = timm.create_model("local-dir:timm", pretrained=True).eval()
    assert facts["temperature"] != 1
    found += [net(z).softmax(1).numpy() for net in (one, two)]
assert json.load(open("timm/config.json"))["label_names"] == facts["classes"]
print(json.dumps(np.stack(found).tolist()))
"""


def test_a_process_without_this_library_gives_the_same_predictions(model, weights, photos, tmp_path):
    """By the programs that the READMEs print, of a linear head and of another; by timm, ONNX and torch.export."""
    other = mv.adapt(weights, photos, tmp_path / "mlp", strategy="mlp", settings={"mlp.crops": 0, "mlp.fewest": 20})
    answers = [m.predict(photos / "test") for m in (model, other)]
    code = WITHOUT.format(tree=str(Path(mv.__file__).parents[1]))
    for m in (model, other):
        program = (Path(m.name) / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        images = [str(photos / "test" / name) for name in answers[0].ids]
        code += README.format(folder=m.name, images=images, program=program)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "images.npy", images.numpy())
    for form, name in (("onnx", "m.onnx"), ("torch_export", "m.pt2"), ("torch", "m.pt"), ("timm", "timm")):
        mv.export(model.name, form, tmp_path / name)
    code += EXPORTS.format(folder=str(tmp_path), facts=str(Path(model.name) / "model.json"))

    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *printed, exported = run.stdout.splitlines()
    theirs = np.array([list(json.loads(line).values()) for line in printed])
    np.testing.assert_allclose(theirs, np.concatenate([a.probability for a in answers]), atol=1e-4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    with torch.no_grad():
        wanted = model.top(model.encoder((images - mean) / std)).numpy()
    for theirs in np.array(json.loads(exported)):
        np.testing.assert_allclose(theirs, wanted, atol=1e-4)
    with pytest.raises(UserError, match="a model is written as timm, onnx"):
        mv.export(model.name, "detectron2", tmp_path / "d.pth")


def test_auto_is_never_below_linear_on_validation_images(weights, photos, tmp_path, capsys):
    found = mv.adapt(weights, photos, tmp_path / "auto", settings=QUICK)
    tried = {t["strategy"]: t["accuracy"] for t in found.facts["tried"]}
    assert tried[found.facts["strategy"]] >= tried["linear"] and "mlp" in tried
    said = capsys.readouterr().err
    assert "further rungs take up to" in said and all(text in said for text in found.facts["why"])


def test_a_class_without_images_is_no_class(weights, photos, tmp_path):
    source = open_source(photos / "train")
    found = mv.adapt(weights, source.subset(np.flatnonzero(source.labels != 1)), tmp_path / "m", strategy="linear")
    assert found.classes == ("blue", "red") and found.head.weight.shape == (2, 16)


def test_the_encoder_that_learned_is_the_one_that_is_kept(weights, photos, tmp_path):
    """Its features, its distances, and numbers for other conditions beside those of the linear layer."""
    settings = {"lr": 3e-3, "epochs": 12, "fewest": 24, "batch": 9}
    settings = {f"finetune.descent.{k}": v for k, v in settings.items()}
    found = mv.adapt(
        weights, photos / "train", tmp_path / "m", strategy="finetune", settings=settings, shifted=(photos / "test",)
    )
    again = mv.load(tmp_path / "m")
    assert all(torch.equal(v, tensors(again)[k]) for k, v in tensors(found).items())
    moved = [
        not torch.equal(v, w) for v, w in zip(found.encoder.parameters(), weights.encoder.parameters(), strict=True)
    ]
    assert all(moved)
    facts = found.facts
    assert set(facts["shifted"]) == {"test"} and "test" not in facts
    assert facts["instead"]["linear"]["shifted"]["test"]["accuracy"] >= 0
    assert facts["parameters"]["learned"] == sum(p.numel() for p in found.encoder.parameters()) + 16 * 3 + 3
    best = max(h["accuracy"] for h in facts["history"])
    assert facts["validation"]["accuracy"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "full"}, "no strategy 'full'"),
        ({"balance": "weight"}, "Did you mean 'weights'"),
        ({"settings": {"lora.ranks": 3}}, "Did you mean 'rank'"),
        ({"settings": {"lora.rank": "x"}}, "lora.rank must be"),
        ({"settings": {"lpft.descent.lr": -1.0}}, "Descent.lr must be more than 0"),
        ({"budget": "soon"}, "length of time"),
        ({"data": "one"}, "needs at least two classes"),
        ({"data": "few"}, r"green \(1\), of few has fewer than 2 images, and an adaptation needs as many"),
        ({"data": "few", "corruptions": True}, "give some as --test"),
    ],
)
def test_bad_input_is_one_sentence(given, says, weights, tmp_path):
    def pixels(n):
        return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)

    for name, labels in (("one", ["a"] * 4), ("few", ["blue"] * 3 + ["green"])):
        for i, label in enumerate(labels):
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(4)[i]).save(tmp_path / name / label / f"{i}.png")
    data = tmp_path / given.pop("data", "few")
    with pytest.raises(UserError, match=says):
        mv.adapt(weights, data, tmp_path / "m", **given)
    assert not (tmp_path / "m").exists()
