"""Modules of any kind as encoders, and the same modules with fresh weights."""

import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import manyviews as mv
from manyviews.backbones import Encoder, reinitialized
from manyviews.errors import UserError


class Giving(nn.Module):
    """A convolution, and what becomes of its map."""

    def __init__(self, then):
        super().__init__()
        self.conv, self.norm, self.then = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), then

    def forward(self, x):
        return self.then(self.norm(self.conv(x)))


def test_modules_of_any_shape():
    x = torch.randn(5, 3, 16, 16)
    for then, wanted in (
        (lambda h: h, lambda h: h.mean((2, 3))),
        (lambda h: h.flatten(2).transpose(1, 2), lambda h: h[:, :, 0, 0]),
        (lambda h: h.amax((2, 3)), lambda h: h.amax((2, 3))),
    ):
        module = Giving(then).train()
        module.conv.eval()  # each submodule has its own mode
        before = {k: v.clone() for k, v in module.state_dict().items()}
        loaded = mv.load(module, test_size=16, mean=(0, 0, 0), std=(1, 1, 1))
        assert loaded.encoder.module is module and (loaded.name, loaded.note) == ("Giving", "")
        assert (module.training, module.conv.training, module.norm.training) == (True, False, True)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        assert loaded.encoder.embed_dim == loaded.encoder.width("pooled") == 6
        module.eval()
        torch.testing.assert_close(loaded.encoder(x), wanted(module.norm(module.conv(x))))
    assert "Assumed the mean and std of ImageNet." in mv.load(module, test_size=16).note


def test_modules_that_give_no_features():
    for then, message in (
        (lambda h: {"features": h}, "Giving gives a dict: wrap it in a module that gives features as one tensor"),
        (lambda h: h[0, 0, 0], r"Giving gives a tensor \(4,\): wrap it"),
        (lambda h: h.flatten(1)[:1], r"gives \(1, 96\) torch.float32 for 2 images"),
        (lambda h: h.flatten(1).long(), "torch.int64 for 2 images"),
        (lambda h: h.flatten(1) @ torch.zeros(5, 3), "Giving cannot take images of 16 pixels .*give another test_size"),
    ):
        module = Giving(then).train()
        with pytest.raises(UserError, match=message) as error:
            mv.load(module, test_size=16)
        assert "\n" not in str(error.value) and module.training and module.conv.training


def test_what_modules_do_not_have(tmp_path):
    module = Giving(lambda h: h)
    with pytest.raises(UserError, match="Nothing says which images Giving expects: give test_size"):
        mv.load(module)
    with pytest.raises(UserError, match="A module has its architecture: leave out depth"):
        mv.load(module, test_size=16, depth=3)
    with pytest.raises(UserError, match="A module has its architecture: leave out backbone"):
        mv.load(module, "resnet18", test_size=16)
    loaded = mv.load(module, test_size=16)
    with pytest.raises(UserError, match="cannot give features 'last4' because it is a bare module"):
        loaded.encoder.width("last4")
    for form in ("safetensors", "torch", "timm", "onnx"):
        with pytest.raises(UserError, match="Giving is a bare module, which cannot be exported"):
            mv.export(loaded, form, tmp_path / form)
        assert not (tmp_path / form).exists()
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    assert mv.load(encoder).encoder is encoder and mv.load(encoder).test_size == 32


def test_a_module_is_evaluated():
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    pixels = (rng.integers(0, 60, (60, 16, 16, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    module = mv.load(Giving(lambda h: h.mean((2, 3))), test_size=16)
    look = {"test_size": module.test_size, "mean": module.mean, "std": module.std}
    data = mv.data.open_source((pixels, labels))
    report = mv.evaluation.evaluate(module.encoder, data, protocols=("knn",), baselines=False, **look)
    assert report.representations["trained"].scores["knn"].top1 > 0.9


# -- fresh weights -------------------------------------------------------------------------------------------------


def spread(x):
    return x.float().std(correction=0)


def vit():
    how = {"img_size": 32, "patch_size": 4, "depth": 1, "init_values": 1e-4}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **how)


@pytest.mark.parametrize(
    ("make", "by_hand"),
    [
        (lambda: timm.create_model("resnet18", num_classes=0, channels=(32, 32, 64, 64)), ""),
        (vit, ""),
        (lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(4, 64), nn.Flatten(), nn.Linear(64 * 9, 32)), ""),
        # `reset_parameters` does not set these as the constructor does.
        (
            lambda: torchvision.models.VisionTransformer(32, 8, 1, 3, 192, 384),
            r"conv_proj|heads|mlp|class_token",
        ),
    ],
)
def test_fresh_weights_have_the_scale_of_those_the_constructor_makes(make, by_hand):
    built, net = make().state_dict(), make()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(1)
    trained = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    fresh = reinitialized(net, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())
    same, other = (reinitialized(net, seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(v, same[k]) for k, v in fresh.state_dict().items())
    assert not all(torch.equal(v, other[k]) for k, v in fresh.state_dict().items())
    for k, v in fresh.state_dict().items():
        assert not torch.equal(v, trained[k]), k
        if not by_hand or not re.search(by_hand, k):
            torch.testing.assert_close(spread(v), spread(built[k]), rtol=0.25, atol=1e-5, msg=k)
            assert spread(v) or torch.equal(v, built[k]), k  # ones, zeros and counts


def test_parameters_that_belong_to_no_layer():
    class Owner(nn.Module):
        def __init__(self, **shapes):
            super().__init__()
            for name, shape in shapes.items():
                setattr(self, name, nn.Parameter(torch.full(shape, 7.0), requires_grad=False))
            self.register_buffer("constant", torch.full((3,), 7.0))

    fresh = reinitialized(Owner(cls_token=(1, 8, 64), pos_embed=(1, 50, 64), layer_scale=(64, 1, 1)), 0)
    assert [float(p.std()) for p in (fresh.cls_token, fresh.pos_embed)] == pytest.approx([0.02, 0.02], rel=0.1)
    assert torch.equal(fresh.layer_scale, torch.ones(64, 1, 1)) and torch.equal(fresh.constant, torch.full((3,), 7.0))
    with pytest.raises(UserError, match="no untrained Owner to compare with, because nothing initializes mixing"):
        reinitialized(Owner(mixing=(3, 3)), 0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))  # its own reset would be lost
    with pytest.raises(UserError, match=r"nothing initializes parametrizations\.weight\.original0"):
        reinitialized(normed, 0)
    owner = Owner(token=(3, 3))
    owner.generator = (i for i in range(3))
    with pytest.raises(UserError, match="it cannot be copied"):
        reinitialized(owner, 0)
