"""What `load` assumes and takes from its arguments, timm's cache, and files that no one should trust."""

import argparse
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import manyviews as mv
from manyviews.errors import UserError


def tiny(size=32):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=8, depth=1, num_classes=0).eval()


@pytest.fixture
def path(tmp_path):
    return saved({"model": tiny().state_dict()}, tmp_path)


def saved(found, folder, name="weights.pth", **how):
    torch.save(found, folder / name, **how)
    return folder / name


def same(loaded, net):
    return all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.encoder.model.state_dict().items())


def refused(path, message, **settings):
    with pytest.raises(UserError, match=message) as error:
        mv.load(path, **settings)
    assert "\n" not in str(error.value)


def test_arguments_come_before_what_is_usual(path, tmp_path):
    loaded = mv.load(path, test_size=96, mean=[0.1, 0.2, 0.3], std=(1, 2, 3))
    assert (loaded.test_size, loaded.mean, loaded.std) == (96, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert "Assumed" not in loaded.note
    assert "Assumed images of 32 pixels." in mv.load(path, mean=[0.1, 0.2, 0.3], std=(1, 2, 3)).note
    # timm's own weights of this name are normalized by 0.5; those of methods are not.
    own = mv.load(path, "vit_tiny_patch16_224.augreg_in21k", img_size=32, patch_size=8, depth=1)
    assert own.mean == (0.4914, 0.4822, 0.4465)
    large = saved(tiny(64).state_dict(), tmp_path, "large.pth")
    assert mv.load(large).mean == (0.485, 0.456, 0.406)
    assert mv.load(large, "vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)


def test_settings_that_cannot_be(path):
    for settings, message in (
        ({"test_size": 0}, "The test size must be"),
        ({"test_size": 30}, "Patches of 8 pixels do not tile an image of 30 x 30"),
        ({"mean": (0.5, 0.5)}, "The mean must be three numbers"),
        ({"mean": 0.5}, "The mean must be three numbers"),
        ({"std": (0, 1, 1)}, "The std must be three positive finite numbers"),
        ({"mean": (0, float("nan"), 1)}, "The mean must be three finite numbers"),
        ({"no_such": 1}, "no_such"),
    ):
        refused(path, message, **settings)


def test_the_old_module_warns_and_still_works():
    with pytest.warns(DeprecationWarning, match=r"manyviews\.weights"):
        from manyviews import pretrained

    assert pretrained.load is mv.load and pretrained.Pretrained is mv.Pretrained


# -- files ---------------------------------------------------------------------------------------------------------


def test_damaged_files(path, tmp_path):
    whole = path.read_bytes()
    (tmp_path / "part.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("text.ckpt", "other.safetensors"):
        (tmp_path / name).write_bytes(b"hello, world")
    for name in ("part.pth", "empty.pth", "text.ckpt"):
        refused(tmp_path / name, "cannot be loaded safely: it is damaged")
    refused(tmp_path / "other.safetensors", "not a readable safetensors file")


def test_a_file_is_known_by_its_content_and_not_its_name(tmp_path):
    net = tiny()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.pth")
    saved(net.state_dict(), tmp_path, "weights.safetensors")
    saved(net.state_dict(), tmp_path, "old", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "weights.safetensors", "old"):
        assert same(mv.load(tmp_path / name), net)


class Harm:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return (self.call, self.args)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_no_checkpoint_runs_code(form, tmp_path):
    trace, file = tmp_path / "owned", tmp_path / "bad.pth"
    for harm in (
        Harm(os.system, f"touch {trace}"),
        Harm(Path.touch, trace),
        Harm(eval, f"open({str(trace)!r}, 'w')"),
        argparse.Namespace(inner=Harm(Path.touch, trace)),
    ):
        found = {"state_dict": {"x": torch.zeros(1)}, "args": harm}
        if form == "pickle":
            file.write_bytes(pickle.dumps(found, protocol=2))
        else:
            torch.save(found, file, _use_new_zipfile_serialization=form == "torch")
        refused(file, r"cannot be loaded safely.*save its weights alone in a new file, with torch\.save")
        assert not trace.exists()
        torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())
        trace.unlink()  # the file is as bad as it should be
    refused(saved(nn.Conv2d(1, 1, 1), tmp_path), r"it holds torch\.nn\.modules\.conv\.Conv2d\); if you trust it, save")


def test_settings_next_to_the_weights_are_left_behind(tmp_path):
    from lightning_fabric.utilities.data import AttributeDict
    from omegaconf import OmegaConf

    net, safe = tiny(), set(torch.serialization.get_safe_globals())
    settings = {
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "hyper_parameters": AttributeDict(lr=1, inner=OmegaConf.create({"a": [1, {"b": None}], "c": 1.5, "d": True})),
        "best": np.float64(3),
        "counts": collections.defaultdict(list, a=[1]),
        "curve": np.zeros(3),
    }
    for zipped in (True, False):
        found = {"model": net.state_dict(), **settings}
        assert same(mv.load(saved(found, tmp_path, _use_new_zipfile_serialization=zipped)), net)
    assert set(torch.serialization.get_safe_globals()) == safe


# -- timm's own weights --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hugging Face hub, and no network; put weights there."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def put(name, net):
        folder, commit = cache / f"models--timm--{name}", "0123456789abcdef0123456789abcdef01234567"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        safetensors.torch.save_file(net.state_dict(), folder / "snapshots" / commit / "model.safetensors")

    return put


def test_timms_weights_come_from_its_cache(hub, tmp_path):
    name = "mobilenetv4_conv_small.e3600_r256_in1k"
    net = timm.create_model(name).eval()
    hub(name, net)
    loaded = mv.load(f"timm:{name}")
    assert same(loaded, net) and not loaded.encoder.training
    assert (loaded.mean, loaded.test_size, loaded.name) == ((0.5,) * 3, 256, f"timm:{name}")
    assert timm.models.get_pretrained_cfg("mobilenetv4_conv_small").mean != loaded.mean  # those of the tag
    assert mv.load(f"timm:{name}", test_size=96).test_size == 96
    bands = mv.load(f"timm:{name}", in_chans=5)
    assert bands.mean == (0.5,) * 5 and "Adapted timm's first convolution from 3 channels to 5" in bands.note
    colors = bands.encoder.model.conv_stem.weight / net.conv_stem.weight[:, [0, 1, 2, 0, 1]]
    torch.testing.assert_close(colors, torch.full_like(colors, 3 / 5), rtol=1e-4, atol=0)
    again = mv.load(mv.export(loaded, "safetensors", tmp_path / "own.safetensors"))
    assert same(again, net) and (again.mean, again.test_size, again.note) == (loaded.mean, 256, "")


def test_timms_weights_that_cannot_be_had(hub):
    for name, message in (
        ("test_resnet", "weights of test_resnet are not in the cache and could not be downloaded: connect to the netw"),
        ("resnet81", r"no backbone 'resnet81'\. Did you mean resnet18"),
        ("vit_small_patch16_224.dinoo", r"no set of vit_small_patch16_224's weights 'dinoo'\. Did you mean 'dino'"),
        ("test_resnet.r160_in1k.x", "no set of test_resnet's weights"),
        ("convnext_atto_rms", "timm has no weights of convnext_atto_rms"),
    ):
        refused(f"timm:{name}", message)
