"""An interrupted adaptation goes on to the same bits; heads learn again; layers of a projector stay."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.checkpoint import load_tensors
from manyviews.data import open_source
from manyviews.engine.build import trained_method
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError
from manyviews.tuning import STRATEGIES
from manyviews.weights import Pretrained
from manyviews.weights.inside import with_head_layers

LEARN = {"epochs": 2, "fewest": 4, "batch": 8, "lr": 1e-3}
QUICK = {f"lpft.descent.{k}": v for k, v in LEARN.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir()
        for i in range(8):
            pixels = rng.normal(90, 60, (32, 32, 3)) + 50 * (np.arange(3) == 2 - kind)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).eval()
    return Pretrained(encoder, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 32, "tiny")


def same(a, b):
    """Two folders of models: weights to the bit, and facts but for times."""
    for name in ("model.safetensors", "known.safetensors"):
        one, other = (load_tensors(folder / name)[0] for folder in (a, b))
        assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
    one, other = (json.loads((folder / "model.json").read_text()) for folder in (a, b))
    for facts in (one, other):
        facts.pop("seconds")
        [tried.pop("seconds") for tried in facts["tried"]]
    assert one == other


def test_an_interruption_costs_only_what_is_unfinished(weights, photos, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the middle of a strategy, and as the model is written."""
    whole = {"strategy": "lpft", "settings": QUICK}
    mv.adapt(weights, photos, tmp_path / "whole", **whole)

    def stop(*_, **__):
        raise KeyboardInterrupt

    kept = tmp_path / "m.parts"
    for part, there in (("tuning.strategies.tune", "linear"), ("verbs.adapt.write", "lpft, all images")):
        with monkeypatch.context() as m:
            m.setattr(f"manyviews.{part}", stop)
            with pytest.raises(KeyboardInterrupt):
                mv.adapt(weights, photos, tmp_path / "m", **whole)
        assert not (tmp_path / "m").exists() and (kept / f"{there}.safetensors").exists()
    with pytest.raises(UserError):
        mv.load(kept)
    with pytest.raises(UserError, match="with other settings"):
        mv.adapt(weights, photos, tmp_path / "m", seed=1, **whole)
    monkeypatch.setattr(STRATEGIES["linear"], "run", lambda *_: pytest.fail("it was finished"))
    monkeypatch.setattr("manyviews.verbs.adapt.extract", _only_later(monkeypatch))
    mv.adapt(weights, photos, tmp_path / "m", **whole)
    assert "is there already" in capsys.readouterr().err and not kept.exists()
    same(tmp_path / "whole", tmp_path / "m")


def _only_later(monkeypatch):
    """The features of the encoder as it came are not made again."""
    from manyviews.verbs.adapt import extract

    def later(encoder, source, **more):
        assert source.classes is None, "they are kept"
        return extract(encoder, source, **more)

    return later


def test_heads_learn_again_from_all_labels_with_what_was_chosen(weights, photos, tmp_path):
    """scikit-learn's logistic regression of all images at the chosen penalty; validation numbers are those before."""
    found = {
        refit: mv.adapt(weights, photos, tmp_path / str(refit), strategy="linear", refit=refit)
        for refit in (True, False)
    }
    assert found[True].facts["validation"] == found[False].facts["validation"]
    assert found[True].temperature == found[False].temperature
    source = open_source(photos)
    x, y = weights.embed(photos), source.labels
    penalty = found[True].facts["setting"]["l2"]
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
    with torch.no_grad():
        ours = found[True].head(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(x)), atol=2e-3)
    assert not np.allclose(ours, found[False].head(torch.from_numpy(x)).softmax(1).detach().numpy(), atol=1e-3)
    mlp = mv.adapt(weights, photos, tmp_path / "mlp", strategy="mlp", settings={"mlp.crops": 0, "mlp.fewest": 20})
    assert mlp.facts["refit"] and "learned again" in mlp.facts["why"][-1]


def test_the_encoder_keeps_the_first_layers_of_its_projector(photos, tmp_path):
    """SimCLR v2: what is fine-tuned begins as the encoder and the first layer of a head of three."""
    run = mv.pretrain(photos, "simclr_tiny", epochs=1, settings={"method.layers": 3}, out=tmp_path / "run").folder
    method, _ = trained_method(RunFolder(run))
    method.eval()
    x = torch.randn(4, 3, 32, 32)
    for layers, end in ((1, 3), (2, 6)):  # a linear layer, BatchNorm and ReLU each
        found = with_head_layers(run, layers)
        with torch.no_grad():
            wanted = method.online.projector[:end](method.online.encoder(x))
            torch.testing.assert_close(found.encoder(x), wanted, rtol=1e-5, atol=1e-6)
        assert found.encoder.embed_dim == 64
    settings = {f"finetune.descent.{k}": v for k, v in LEARN.items()}
    model = mv.adapt(run, photos, tmp_path / "m", strategy="finetune", settings=settings, from_head_layer=1)
    again = mv.load(tmp_path / "m")
    moved = dict(model.encoder.model.fc.named_parameters())
    assert (
        model.facts["parameters"]["learned"] >= sum(p.numel() for p in moved.values()) and again.head.in_features == 64
    )
    images = torch.rand(3, 3, 32, 32)
    np.testing.assert_allclose(again.predict(images).probability, model.predict(images).probability, atol=1e-6)
    for given, says in (
        ((run, 4), "has 3 layers"),
        ((tmp_path / "m", 1), "no folder of a run"),
        ((run, 0), "1 or more"),
    ):
        with pytest.raises(UserError, match=says):
            with_head_layers(*given)
