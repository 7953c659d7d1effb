"""Runs that start from the weights of a file."""

import pytest
import torch

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.verbs.pretrain import changed
from manyviews.weights import Pretrained


def test_a_run_starts_from_a_file_and_takes_its_architecture_and_its_images(tmp_path, monkeypatch, capsys):
    settings = {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem": "half"}
    saved = Encoder("resnet18", **settings)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    mv.export(Pretrained(saved, mean, std, 48, "ours"), "safetensors", tmp_path / "start.safetensors")
    monkeypatch.chdir(tmp_path)
    given = {"backbone.pretrained": "start.safetensors"}
    recipe = changed("moco_v2_tiny", None, given)
    monkeypatch.chdir("/")  # the recipe names the file wherever it is read again
    assert (recipe.data.mean, recipe.data.std, recipe.test_size) == (
        mean,
        std,
        mv.recipes.get("moco_v2_tiny").test_size,
    )
    assert "Starts from" in capsys.readouterr().err
    method = build_method(recipe)
    for name, tensor in saved.model.state_dict().items():
        held = [v for k, v in method.state_dict().items() if k.endswith(f"model.{name}")]
        assert len(held) >= 2 and all(torch.equal(v, tensor) for v in held), name  # the moving average starts there too
    assert method.kept_encoder.spec["channels"] == settings["channels"]

    given = {"backbone.pretrained": str(tmp_path / "start.safetensors")}
    own = changed("moco_v2_tiny", None, {**given, "data.mean": (0.5, 0.5, 0.5)})
    assert (own.data.mean, own.data.std) == ((0.5, 0.5, 0.5), std)
    assert changed(own, None, {"optimizer.lr": 0.1}).data.mean == (0.5, 0.5, 0.5)  # as sweeps change a recipe
    with pytest.raises(UserError, match="holds resnet18, not resnet34"):
        changed("moco_v2_tiny", None, {**given, "backbone.name": "resnet34"})
    torch.save({"layer.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth does not say which architecture it has: .*--backbone"):
        changed("moco_v2_tiny", None, {"backbone.pretrained": str(tmp_path / "other.pth")})
    with pytest.raises(UserError, match="There is no file"):
        changed("moco_v2_tiny", None, {"backbone.pretrained": str(tmp_path / "none.safetensors")})
