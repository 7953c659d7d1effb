"""Other libraries' checkpoints, as they write them, give the features of the networks that wrote them."""

from __future__ import annotations

import argparse
import collections
import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

import manyviews as mv
from manyviews.backbones import Encoder, ExternalEncoder, reinitialized
from manyviews.errors import UserError
from manyviews.weights.layouts import _convnext, _resnet, _vit

State = dict[str, Tensor]
BASIC, DEEP = torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck


@torch.no_grad()
def lively(net: nn.Module) -> nn.Module:
    """With weights and statistics that are nobody's defaults, so that a lost or a swapped one shows."""
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn_like(value))
    return net.eval()


def resnet(layers=(1, 1, 1, 1), block=BASIC, small: int | None = None, **settings) -> nn.Module:
    """torchvision's, without its classifier; for small images with this padding of the first convolution."""
    net = torchvision.models.ResNet(block, list(layers), **settings)
    net.fc = nn.Identity()
    if small is not None:
        net.conv1 = nn.Conv2d(3, 64, 3, 1, small, bias=False)
        net.maxpool = nn.Identity()
    return lively(net)


def vit(width: int = 192, depth: int = 2, size: int = 32, patch: int = 8, **settings) -> nn.Module:
    settings = {"num_heads": width // 64, **settings}
    return lively(
        timm.models.VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_classes=0, **settings
        )
    )


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{k}": v for k, v in state.items()}


def noise(*names: str) -> State:
    """Tensors that belong to no encoder."""
    return {name: torch.randn(4, 4) for name in names}


def saved(found: object, path: Path, name: str = "weights.pth") -> Path:
    torch.save(found, path / name)
    return path / name


@torch.no_grad()
def agree(loaded: mv.Pretrained, net: nn.Module, size: int) -> None:
    x = torch.randn(3, 3, size, size)
    wanted = net.eval()(x).flatten(1)
    torch.testing.assert_close(loaded.encoder(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


# -- plain state dicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "settings"),
    [
        (lambda: resnet((2, 2, 2, 2)), "resnet18", {}),
        (lambda: resnet((1, 1, 1, 1)), "resnet18", {"layers": (1, 1, 1, 1)}),
        (lambda: resnet((1, 1, 1, 1), DEEP), "resnet50", {"layers": (1, 1, 1, 1)}),
        (
            lambda: resnet((1, 1, 1, 1), DEEP, width_per_group=128),
            "wide_resnet50_2",
            {"layers": (1, 1, 1, 1)},
        ),
        (
            lambda: resnet((1, 1, 1, 1), DEEP, groups=32, width_per_group=4),
            "resnet50",
            {"layers": (1, 1, 1, 1), "cardinality": 32, "base_width": 4},
        ),
        (lambda: resnet((2, 2, 2, 2), small=1), "resnet18", {"stem": "small"}),
        (lambda: resnet((1, 1, 1, 1), DEEP, small=1), "resnet50", {"layers": (1, 1, 1, 1), "stem": "small"}),
    ],
)
def test_resnets_of_torchvision(make: Callable[[], nn.Module], name: str, settings: dict, tmp_path: Path):
    net = make()
    loaded = mv.load(saved({**net.state_dict(), **noise("fc.weight", "fc.bias")}, tmp_path))
    small = settings.get("stem") == "small"
    agree(loaded, net, 32 if small else 64)
    assert loaded.encoder.spec == {"name": name, "stem": "native", "position": "learned", **settings}
    assert loaded.test_size == (32 if small else 224)
    assert loaded.mean == ((0.4914, 0.4822, 0.4465) if small else (0.485, 0.456, 0.406))
    assert "left out 2 tensors (fc 2); " in loaded.note and "nothing was missing" in loaded.note
    assert f"Assumed the mean and std of {'CIFAR-10' if small else 'ImageNet'} and images of " in loaded.note
    assert ("assumed to have stride 1" in loaded.note) == small


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": 48, "patch": 16},
        {"width": 384, "depth": 3},
        {"init_values": 0.1, "qkv_bias": False},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"mlp_ratio": 2.0, "qk_norm": True},
        {"proj_bias": False},
    ],
)
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_vision_transformers_of_timm(settings: dict, form: str, tmp_path: Path):
    net = vit(**settings)
    state = {**net.state_dict(), **noise("head.weight", "head.bias")}
    path = tmp_path / f"weights.{form}"
    safetensors.torch.save_file(state, path) if form == "safetensors" else torch.save(state, path)
    loaded = mv.load(path)
    agree(loaded, net, settings.get("size", 32))
    assert "left out 2 tensors (head 2)" in loaded.note and "resized" not in loaded.note
    assert loaded.test_size == settings.get("size", 32)
    # Made again from its specification alone, as an untrained one is.
    again = Encoder.from_spec(loaded.encoder.spec)
    again.load_weights(loaded.encoder.model.state_dict())


def test_the_names_of_published_sizes():
    """By their shapes alone."""
    with torch.device("meta"):
        for name in (
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ):
            assert _resnet(torchvision.models.get_model(name).state_dict()) == (name, {})
        for name in ("resnext50_32x4d", "resnext101_32x8d"):
            settings = {"cardinality": 32, "base_width": int(name[-2])}
            assert _resnet(torchvision.models.get_model(name).state_dict()) == (
                f"resnet{name[7:].split('_')[0]}",
                settings,
            )
        for size in ("tiny_patch16", "small_patch16", "base_patch16", "large_patch16", "huge_patch14"):
            net = timm.create_model(f"vit_{size}_224")
            assert _vit(net.state_dict()) == (f"vit_{size}_224", {})
            assert net.blocks[0].attn.num_heads == Encoder(f"vit_{size}_224").model.blocks[0].attn.num_heads
        assert _vit(timm.create_model("vit_small_patch14_dinov2").state_dict()) == (
            "vit_small_patch16_224",
            {"img_size": 518, "patch_size": 14, "init_values": 1e-5},
        )
        for size in ("atto", "nano", "base", "huge"):
            net = timm.create_model(f"convnextv2_{size}")
            assert _convnext(net.state_dict()) == (f"convnextv2_{size}", {})


def test_vision_transformers_of_torchvision(tmp_path: Path):
    for mlp in (("mlp.0", "mlp.3"), ("mlp.linear_1", "mlp.linear_2")):  # now, and before torchvision 0.13
        net = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=384
        )
        state = {k.replace("mlp.0", mlp[0]).replace("mlp.3", mlp[1]): v for k, v in lively(net).state_dict().items()}
        loaded = mv.load(saved(state, tmp_path))
        net.heads = nn.Identity()
        agree(loaded, net, 32)
        assert loaded.note.startswith("torchvision checkpoint: took its weights as vit_tiny_patch16_224 with ")
        assert "left out 2 tensors (heads 2)" in loaded.note


def test_the_usual_sizes_of_torchvisions_vit(tmp_path: Path):
    net = torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=1, num_heads=12, hidden_dim=768, mlp_dim=3072
    )
    loaded = mv.load(saved(lively(net).state_dict(), tmp_path))
    net.heads = nn.Identity()
    agree(loaded, net, 224)
    spec = {"name": "vit_base_patch16_224", "stem": "native", "position": "learned", "depth": 1}
    assert loaded.encoder.spec == spec
    assert (loaded.mean, loaded.test_size) == ((0.485, 0.456, 0.406), 224)  # and not timm's 0.5


def test_convnexts_in_three_libraries_names(tmp_path: Path):
    block = torchvision.models.convnext.CNBlockConfig
    blocks = [block(40, 80, 2), block(80, 160, 2), block(160, 320, 6), block(320, None, 2)]
    net = lively(torchvision.models.convnext.ConvNeXt(blocks))
    loaded = mv.load(saved(net.state_dict(), tmp_path))
    net.classifier = nn.Sequential(net.classifier[0], nn.Flatten(1))
    agree(loaded, net, 64)
    assert loaded.encoder.name == "convnext_atto" and "left out 2 tensors (head 2)" in loaded.note

    again = lively(timm.create_model("convnextv2_atto", num_classes=7))
    theirs = (  # Meta's names, from timm's
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )
    state = {}
    for k, v in again.state_dict().items():
        for pattern, name in theirs:
            k = re.sub(pattern, name, k)
        state[k] = v[None, None, None] if "grn" in k else v.flatten(1) if "pwconv" in k and v.ndim > 1 else v
    assert "stages.0.0.pwconv1.weight" in state and state["stages.0.0.grn.gamma"].shape == (1, 1, 1, 160)
    again.head.fc = nn.Identity()
    for weights in (again.state_dict(), {"model": state}):
        loaded = mv.load(saved(weights, tmp_path))
        agree(loaded, again, 64)
        assert loaded.encoder.name == "convnextv2_atto"


def test_distilled_transformers(tmp_path: Path):
    net = lively(
        timm.create_model("deit_tiny_distilled_patch16_224", depth=2, img_size=32, patch_size=8, num_classes=9)
    )
    path = saved({"model": net.state_dict()}, tmp_path)
    net.reset_classifier(0)
    agree(mv.load(path), net, 32)


# -- what trainers write -------------------------------------------------------------------------------------------


def test_lightlys_simclr_through_its_trainer(tmp_path: Path):
    """A LightningModule as in lightly's examples, saved by Lightning with settings of several libraries."""
    import pytorch_lightning as pl
    from lightly.models.modules import SimCLRProjectionHead
    from omegaconf import OmegaConf

    class SimCLR(pl.LightningModule):
        def __init__(self, config: Any, root: Path) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            self.projection_head = SimCLRProjectionHead(512, 512, 128)

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    model = SimCLR(OmegaConf.create({"lr": 0.1, "views": [{"size": 224}]}), tmp_path)
    lively(model.backbone)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "last.ckpt")  # the settings

    loaded = mv.load(tmp_path / "last.ckpt")
    agree(loaded, model.backbone, 64)
    heads = len(model.projection_head.state_dict())
    assert loaded.note.startswith("lightly checkpoint: took 'backbone.' as resnet18; ")
    assert f"left out {heads} tensors (projection_head {heads}); nothing was missing." in loaded.note

    agree(mv.load(saved(model.state_dict(), tmp_path)), model.backbone, 64)  # the module alone
    agree(mv.load(saved(model.backbone.state_dict(), tmp_path)), model.backbone, 64)  # the backbone alone


def test_lightlys_own_resnet_for_small_images(tmp_path: Path):
    from lightly.models import ResNetGenerator

    for name, ours in (("resnet-9", "resnet18"), ("resnet-18", "resnet18")):
        backbone = nn.Sequential(*list(ResNetGenerator(name).children())[:-1], nn.AdaptiveAvgPool2d(1))
        loaded = mv.load(saved(under("backbone.", lively(backbone).state_dict()), tmp_path))
        agree(loaded, backbone, 32)
        assert (loaded.encoder.name, loaded.encoder.spec["stem"]) == (ours, "bare")
        assert loaded.note.startswith("lightly checkpoint") and loaded.test_size == 32
        whole = ResNetGenerator(name)  # with the activation that is lost in the Sequential
        loaded = mv.load(saved(lively(whole).state_dict(), tmp_path))
        whole.linear = nn.Identity()
        agree(loaded, whole, 32)


def test_lightlys_masked_autoencoder(tmp_path: Path):
    from lightly.models.modules import MaskedVisionTransformerTIMM

    model = nn.Module()
    model.backbone = MaskedVisionTransformerTIMM(vit=vit())
    state = model.state_dict() | noise("decoder.decoder_embed.weight", "decoder.decoder_pred.weight")
    loaded = mv.load(saved({"state_dict": state}, tmp_path))
    agree(loaded, model.backbone.vit, 32)
    assert loaded.note.startswith("MAE checkpoint: took 'backbone.vit.' as vit_tiny_patch16_224 with ")
    assert "left out 3 tensors (decoder 2, mask_token 1)" in loaded.note


def families() -> dict[str, tuple[Callable[[], tuple[Any, nn.Module]], str]]:
    """Names as each library writes them, around a network and others of the same shape; and what the note says."""

    def solo() -> tuple[Any, nn.Module]:
        net, momentum = resnet(), resnet()
        state = under("backbone.", net.state_dict()) | under("momentum_backbone.", momentum.state_dict())
        heads = noise("projector.0.weight", "momentum_projector.0.weight", "classifier.weight", "classifier.bias")
        return {"epoch": 3, "pytorch-lightning_version": "1.6", "state_dict": state | heads, "loops": {}}, net

    def moco(v2: bool) -> Callable[[], tuple[Any, nn.Module]]:
        def make() -> tuple[Any, nn.Module]:
            net, key = (resnet((1, 1, 1, 1), DEEP) for _ in range(2))
            head = [f"fc.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")] if v2 else ["fc.weight", "fc.bias"]
            parts = (("module.encoder_k.", key), ("module.encoder_q.", net))
            state = {}
            for prefix, part in parts:
                state |= under(prefix, part.state_dict()) | noise(*(prefix + k for k in head))
            state |= noise("module.queue", "module.queue_ptr")
            return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {0: noise("m")}}}, net

        return make

    def moco_v3() -> tuple[Any, nn.Module]:
        net, momentum = (vit(384, num_heads=12) for _ in range(2))
        state = under("module.momentum_encoder.", momentum.state_dict())
        state |= under("module.base_encoder.", net.state_dict())
        return {"arch": "vit_small", "state_dict": state | noise("module.predictor.0.weight")}, net

    def dino() -> tuple[Any, nn.Module]:
        net, student = vit(384), vit(384)
        heads = ("head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v")
        return {
            "student": under("module.backbone.", student.state_dict()) | noise(*(f"module.{k}" for k in heads)),
            "teacher": under("backbone.", net.state_dict()) | noise(*heads),
            "optimizer": {"state": {0: noise("exp_avg")}},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", lr=0.1),
            "dino_loss": noise("center"),
        }, net

    def mae() -> tuple[Any, nn.Module]:
        net = vit()
        rest = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_pred.bias", "decoder_norm.weight")
        return {"model": net.state_dict() | noise(*rest, "decoder_blocks.0.attn.qkv.weight")}, net

    def dinov2() -> tuple[Any, nn.Module]:
        net = vit(init_values=0.1)
        return net.state_dict() | {"mask_token": torch.randn(1, 192)}, net

    def dinov2_training() -> tuple[Any, nn.Module]:
        net, student = (vit(init_values=0.1, depth=4) for _ in range(2))

        def chunked(state: State) -> State:  # two blocks to a chunk
            return {
                re.sub(r"^blocks\.(\d)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", k): v for k, v in state.items()
            }

        state = under("teacher.backbone.", chunked(net.state_dict()))
        state |= under("student.backbone._fsdp_wrapped_module.", chunked(student.state_dict()))
        return {"model": state | noise("student.dino_head.mlp.0.weight", "teacher.ibot_head.mlp.0.weight")}, net

    def swav() -> tuple[Any, nn.Module]:
        net = resnet()
        return under("module.", net.state_dict() | noise("projection_head.0.weight", "prototypes.weight")), net

    def byol() -> tuple[Any, nn.Module]:
        net, target = resnet(), resnet()
        online = under("online_encoder.net.", net.state_dict()) | noise("online_encoder.projector.0.weight")
        copies = under("target_encoder.net.", target.state_dict()) | under("net.", net.state_dict())
        return copies | online | noise("online_predictor.0.weight"), net

    def barlow() -> tuple[Any, nn.Module]:
        net = resnet()
        state = under("module.backbone.", net.state_dict()) | noise(
            "module.projector.0.weight", "module.bn.running_mean"
        )
        return {"epoch": 1, "model": state, "optimizer": {}}, net

    def lightly_moco() -> tuple[Any, nn.Module]:
        net, momentum = nn.Sequential(*list(resnet().children())[:-1]).eval(), resnet()
        state = under("backbone_momentum.", nn.Sequential(*list(momentum.children())[:-1]).state_dict())
        heads = noise("projection_head.layers.0.weight", "projection_head_momentum.layers.0.weight")
        return {"state_dict": state | under("backbone.", net.state_dict()) | heads}, net

    def lightly_dino() -> tuple[Any, nn.Module]:
        net, student = vit(), vit()
        heads = noise("student_head.layers.0.weight", "teacher_head.last_layer.weight", "criterion.center")
        return under("student_backbone.", student.state_dict()) | under(
            "teacher_backbone.", net.state_dict()
        ) | heads, net

    def compiled() -> tuple[Any, nn.Module]:
        net = resnet()
        return under("_orig_mod.module.", torch.compile(net).state_dict()), net

    def averaged() -> tuple[Any, nn.Module]:
        net, last = resnet(), resnet()
        return {
            "state_dict": last.state_dict(),
            "state_dict_ema": net.state_dict(),
            "args": argparse.Namespace(x=1),
        }, net

    def lightning() -> tuple[Any, nn.Module]:
        net = vit()
        return {"state_dict": under("model.encoder.", net.state_dict()) | noise("metric.total"), "callbacks": {}}, net

    def old() -> tuple[Any, nn.Module]:  # PyTorch before 0.4.1 counted no batches
        net = resnet()
        return {k: v for k, v in net.state_dict().items() if "num_batches" not in k}, net

    return {
        "solo-learn": (solo, "solo-learn checkpoint: took 'backbone.' as resnet18 with layers"),
        "moco v1": (moco(False), "MoCo v1 checkpoint: took 'module.encoder_q.' as resnet50 with layers"),
        "moco v2": (moco(True), "left out 112 tensors (encoder_k 106, fc 4, queue 1, queue_ptr 1)"),
        "moco v3": (moco_v3, "MoCo v3 checkpoint: took 'module.base_encoder.' as vit_small_patch16_224 with "),
        "dino": (dino, "DINO checkpoint: took 'teacher.backbone.' as vit_small_patch16_224 with "),
        "mae": (mae, "MAE checkpoint: took 'model.' as vit_tiny_patch16_224 with "),
        "dinov2": (dinov2, "DINOv2 checkpoint: took its weights as vit_tiny_patch16_224 with "),
        "dinov2 training": (dinov2_training, "DINOv2 checkpoint: took 'model.teacher.backbone.' as "),
        "swav": (swav, "left out 2 tensors (projection_head 1, prototypes 1)"),
        "byol": (byol, "BYOL checkpoint: took 'net.' as resnet18"),
        "barlow": (barlow, "Barlow Twins or VICReg checkpoint: took 'model.module.backbone.' as resnet18"),
        "lightly moco": (lightly_moco, "lightly checkpoint: took 'backbone.' as resnet18 with layers"),
        "lightly dino": (lightly_dino, "lightly checkpoint: took 'teacher_backbone.' as vit_tiny_patch16_224 with "),
        "compiled": (compiled, "Took 'module.' as resnet18"),
        "averaged": (averaged, "Took 'state_dict_ema.' as resnet18"),
        "lightning": (lightning, "left out 1 tensor (metric 1)"),
        "old": (old, "left out nothing; nothing was missing"),
    }


@pytest.mark.parametrize("family", families())
def test_checkpoints_of_methods(family: str, tmp_path: Path):
    make, said = families()[family]
    found, net = make()
    loaded = mv.load(saved(found, tmp_path, "checkpoint.pth.tar"))
    agree(loaded, net, 32)
    assert said in loaded.note, loaded.note
    assert "nothing was missing" in loaded.note


def test_solo_learns_first_convolution_for_cifar(tmp_path: Path):
    """It has a padding of 2, which no weight tells."""
    net = resnet((2, 2, 2, 2), small=2)
    heads = noise("projector.0.weight", "classifier.weight", "classifier.bias")
    path = saved({"state_dict": under("backbone.", net.state_dict()) | heads}, tmp_path, "last.ckpt")
    loaded = mv.load(path)
    agree(loaded, net, 32)
    assert "padding of 2" in loaded.note and loaded.test_size == 32
    net.conv1.padding = (1, 1)
    agree(mv.load(path, stem="small"), net, 32)
    agree(mv.load(path, "resnet18", stem="small"), net, 32)


def test_dinov2_with_registers(tmp_path: Path):
    net = vit(384, reg_tokens=4, no_embed_class=True, init_values=0.1)
    state = net.state_dict()
    of_class = torch.randn(1, 1, 384)  # a position that timm adds to the class token once and for all
    theirs = {k: v for k, v in state.items() if k != "reg_token"} | {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - of_class,
        "pos_embed": torch.cat([of_class, state["pos_embed"]], 1),
        "mask_token": torch.randn(1, 384),
    }
    for found in (theirs, {k: v for k, v in theirs.items() if k != "mask_token"}):
        loaded = mv.load(saved(found, tmp_path))
        agree(loaded, net, 32)
        assert "resized" not in loaded.note and "register" not in loaded.note


def test_deit_iii_names_its_scales_otherwise(tmp_path: Path):
    net = vit(init_values=0.1, no_embed_class=True)
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): v for k, v in net.state_dict().items()}
    assert "blocks.0.gamma_1" in state
    agree(mv.load(saved({"model": state}, tmp_path)), net, 32)


def test_positions_of_another_size_are_resized_and_said(tmp_path: Path):
    from timm.layers import resample_abs_pos_embed

    net = vit()
    path = saved(net.state_dict(), tmp_path)
    loaded = mv.load(path, img_size=48)
    assert "resized the positions from 17 to 37" in loaded.note and loaded.test_size == 48
    wanted = resample_abs_pos_embed(net.pos_embed, [6, 6], [4, 4])
    torch.testing.assert_close(loaded.encoder.model.pos_embed, wanted)
    same = {**VIT_SETTINGS, "img_size": 48}
    torch.testing.assert_close(
        mv.load(path, "vit_tiny_patch16_224.augreg_in21k", **same).encoder.model.pos_embed, wanted
    )
    with pytest.raises(UserError, match=r"the first is patch_embed\.proj\.weight"):
        mv.load(path, patch_size=16)  # timm would resize the patches too, and say nothing


VIT_SETTINGS = {"img_size": 32, "patch_size": 8, "depth": 2}


def test_an_architecture_that_the_weights_do_not_tell(tmp_path: Path):
    net = lively(timm.create_model("efficientnet_b0", num_classes=5))
    path = saved({"state_dict": under("teacher.", net.state_dict()) | under("student.", net.state_dict())}, tmp_path)
    with pytest.raises(UserError, match=r"does not say which architecture .* --backbone"):
        mv.load(path)
    net.classifier = nn.Identity()
    loaded = mv.load(path, "efficientnet_b0")
    agree(loaded, net, 64)
    assert "Took 'teacher.' as efficientnet_b0; left out" in loaded.note
    small = {**VIT_SETTINGS, "embed_dim": 192, "num_heads": 3}
    clip = lively(timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **small))
    path = saved(clip.state_dict(), tmp_path)
    refused(path, "does not say which architecture")
    agree(mv.load(path, "vit_base_patch16_clip_quickgelu_224", **small), clip, 32)
    odd = vit(48, num_heads=4)
    path = saved(odd.state_dict(), tmp_path)
    with pytest.raises(UserError, match="48 wide, and weights do not tell how many heads it has: give num_heads"):
        mv.load(path)
    agree(mv.load(path, num_heads=4), odd, 32)


def test_small_transformers_of_moco_v3_and_solo_learn_have_twelve_heads(tmp_path: Path):
    """Whose positions are fixed sines and cosines; the shapes of the weights are those of any number of heads."""
    net = vit(192, num_heads=12)
    with torch.no_grad():
        net.pos_embed[:, :1] = 0
    online = under("module.base_encoder.", net.state_dict())
    agree(mv.load(saved({"state_dict": online}, tmp_path)), net, 32)
    solo = under("backbone.", net.state_dict()) | noise("projector.0.weight", "classifier.weight")
    agree(mv.load(saved({"state_dict": solo}, tmp_path)), net, 32)
    path = saved(net.state_dict(), tmp_path)
    assert "3 heads were assumed; those of MoCo v3 and solo-learn have 12" in mv.load(path).note
    agree(mv.load(path, num_heads=12), net, 32)
    learned = vit(192)
    solo = under("backbone.", learned.state_dict()) | noise("projector.0.weight", "classifier.weight")
    agree(mv.load(saved({"state_dict": solo}, tmp_path)), learned, 32)


def test_what_is_given_comes_before_what_is_usual(tmp_path: Path):
    path = saved(resnet().state_dict(), tmp_path)
    loaded = mv.load(path, test_size=96, mean=[0.1, 0.2, 0.3], std=(1, 2, 3))
    assert (loaded.test_size, loaded.mean, loaded.std) == (96, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert "Assumed" not in loaded.note
    assert "Assumed images of 224 pixels." in mv.load(path, mean=[0.1, 0.2, 0.3], std=(1, 2, 3)).note
    # timm's own weights of this name are normalized by 0.5; those of methods are not.
    path = saved({"model": vit().state_dict()}, tmp_path)
    own = mv.load(path, "vit_tiny_patch16_224.augreg_in21k", **VIT_SETTINGS, test_size=64)
    assert own.mean == (0.4914, 0.4822, 0.4465)
    large = vit(size=64)
    assert mv.load(saved(large.state_dict(), tmp_path)).mean == (0.485, 0.456, 0.406)
    assert mv.load(saved(large.state_dict(), tmp_path), "vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_size": 0}, "The test size must be"),
        ({"test_size": 30}, "Patches of 8 pixels do not tile an image of 30 x 30"),
        ({"mean": (0.5, 0.5)}, "The mean must be three numbers"),
        ({"mean": 0.5}, "The mean must be three numbers"),
        ({"std": (0, 1, 1)}, "The std must be three positive finite numbers"),
        ({"mean": (0, float("nan"), 1)}, "The mean must be three finite numbers"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        mv.load(saved(vit().state_dict(), tmp_path), **settings)


# -- files that cannot be loaded -----------------------------------------------------------------------------------


def refused(path: Path, message: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        mv.load(path, **settings)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_weights_that_are_missing_left_over_or_of_two_encoders(tmp_path: Path):
    net = resnet((2, 2, 2, 2))
    state = net.state_dict()
    less = {k: v for k, v in state.items() if k not in ("bn1.weight", "bn1.running_mean", "layer3.1.conv2.weight")}
    refused(saved(less, tmp_path), r"lacks 3 of the 120 weights of resnet18, such as bn1.weight, bn1.running_mean, ")
    refused(saved(less, tmp_path), r"lacks 3 of the 120 weights", backbone="resnet18")
    more = state | {"layer3.1.conv9.\x1b[31m": torch.zeros(1)}
    refused(saved(more, tmp_path), r"1 weights do not fit resnet18's 120 \(the first is layer3.1.conv9.")
    deeper = resnet((3, 4, 6, 3)).state_dict()
    refused(saved(deeper, tmp_path), r"do not fit resnet18's", backbone="resnet18")  # and not its first blocks
    two = under("left.", state) | under("right.", resnet((2, 2, 2, 2)).state_dict())
    refused(saved(two, tmp_path), r"holds several encoders \('left.', 'right.'\): save the state dict of one")
    same = under("left.", state) | under("other.", state)
    agree(mv.load(saved(same, tmp_path)), net, 64)


def test_files_that_hold_something_else(tmp_path: Path):
    refused(tmp_path / "none.pth", "There is no file")
    for found in (torch.zeros(3), [1, 2], {}, {"epoch": 3}, {"state_dict": None}, {"optimizer": noise("x")}):
        refused(saved(found, tmp_path), "does not hold a state dict of tensors")
    refused(saved(noise("x", "y"), tmp_path), "does not say which architecture")
    refused(
        saved({"conv1.weight": torch.zeros(2, 3, 3, 3)}, tmp_path), "weights do not fit resnet18", backbone="resnet18"
    )
    pooled = vit().state_dict() | {"attn_pool.latent": torch.zeros(1, 1, 3)}
    refused(saved(pooled, tmp_path), "does not say which architecture")
    shapeless = dict.fromkeys(vit().state_dict(), torch.zeros(3))
    refused(saved(shapeless, tmp_path), "does not say which architecture")
    refused(saved(shapeless, tmp_path), "vit_tiny_patch16_224", backbone="vit_tiny_patch16_224")
    endless: dict[str, Any] = {}
    endless |= {str(i): endless for i in range(100)}
    refused(saved(endless, tmp_path), "does not hold a state dict of tensors")


def test_damaged_files(tmp_path: Path):
    whole = saved(resnet().state_dict(), tmp_path).read_bytes()
    (tmp_path / "part.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.ckpt").write_bytes(b"hello, world")
    (tmp_path / "other.safetensors").write_bytes(b"hello, world")
    for name in ("part.pth", "empty.pth", "text.ckpt"):
        refused(tmp_path / name, "cannot be loaded safely: it is damaged")
    refused(tmp_path / "other.safetensors", "not a readable safetensors file")


def test_what_is_in_a_file_counts_and_not_its_name(tmp_path: Path):
    net = resnet()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.pth")
    torch.save(net.state_dict(), tmp_path / "weights.safetensors")
    torch.save(net.state_dict(), tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "weights.safetensors", "old"):
        agree(mv.load(tmp_path / name), net, 64)


class Harm:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return (self.call, self.args)


@pytest.mark.parametrize("call", ["system", "touch", "eval", "getattr", "namespace"])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_no_checkpoint_runs_code(call: str, form: str, tmp_path: Path):
    trace = tmp_path / "owned"
    harm = {
        "system": Harm(os.system, f"touch {trace}"),
        "touch": Harm(Path.touch, trace),
        "eval": Harm(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Harm(getattr, trace, "touch"),
        "namespace": argparse.Namespace(inner=Harm(Path.touch, trace)),
    }[call]
    found = {"state_dict": resnet().state_dict(), "args": harm}
    if form == "pickle":
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(found, protocol=2))
    else:
        torch.save(found, tmp_path / "bad.pth", _use_new_zipfile_serialization=form == "torch")
    refused(tmp_path / "bad.pth", r"cannot be loaded safely.*save its weights alone in a new file, with torch\.save")
    assert not trace.exists()
    if call != "getattr":  # which only fetches what it would call
        torch.load(tmp_path / "bad.pth", weights_only=False) if form != "pickle" else pickle.loads(
            (tmp_path / "bad.pth").read_bytes()
        )
        assert trace.exists()  # the file is as bad as it should be


def test_a_pickled_network_says_what_to_do(tmp_path: Path):
    refused(saved(resnet(), tmp_path), r"it holds torchvision\.models\.resnet\.ResNet\); where you trust it, save")


def test_settings_beside_the_weights_are_left_behind(tmp_path: Path):
    from lightning_fabric.utilities.data import AttributeDict
    from omegaconf import OmegaConf

    net, safe = resnet(), set(torch.serialization.get_safe_globals())
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "hyper_parameters": AttributeDict(lr=1, inner=OmegaConf.create({"a": [1, {"b": None}], "c": 1.5, "d": True})),
        "best": np.float64(3),
        "counts": collections.defaultdict(list, a=[1]),
        "curve": np.zeros(3),
    }
    for zipped in (True, False):
        torch.save({"model": net.state_dict(), **beside}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        agree(mv.load(tmp_path / "w.pth"), net, 64)
    assert set(torch.serialization.get_safe_globals()) == safe


# -- timm's own weights --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, nn.Module], None]:
    """An empty cache of the Hugging Face hub, and no network; put weights there."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def put(name: str, net: nn.Module) -> None:
        folder, commit = cache / f"models--timm--{name}", "0123456789abcdef0123456789abcdef01234567"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        safetensors.torch.save_file(net.state_dict(), folder / "snapshots" / commit / "model.safetensors")

    return put


def test_timms_weights_come_from_its_cache(hub, tmp_path: Path):
    net = lively(timm.create_model("resnet18"))
    hub("resnet18.a1_in1k", net)
    loaded = mv.load("timm:resnet18")
    net.reset_classifier(0)
    agree(loaded, net, 64)
    assert (loaded.mean, loaded.test_size, loaded.name) == ((0.485, 0.456, 0.406), 224, "timm:resnet18")
    assert not loaded.encoder.training

    net = lively(timm.create_model("vit_small_patch16_224.dino"))
    hub("vit_small_patch16_224.dino", net)
    loaded = mv.load("timm:vit_small_patch16_224.dino")
    agree(loaded, net, 224)
    assert loaded.mean == (0.485, 0.456, 0.406)  # those of this tag; the architecture's usual ones are 0.5
    assert mv.load("timm:vit_small_patch16_224.dino", test_size=96).test_size == 96
    path = mv.export(loaded, "safetensors", tmp_path / "own.safetensors")
    again = mv.load(path)
    agree(again, net, 224)
    assert (again.mean, again.test_size, again.note) == (loaded.mean, 224, "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet18",
            "weights of resnet18 are not in the cache and could not be downloaded: connect to the network, or",
        ),
        ("resnet81", r"no backbone 'resnet81'\. Did you mean resnet18"),
        ("vit_small_patch16_224.dinoo", r"no set of vit_small_patch16_224's weights 'dinoo'\. Did you mean 'dino'"),
        ("test_resnet.r160_in1k.x", "no set of test_resnet's weights"),
        ("convnext_atto_rms", "timm has no weights of convnext_atto_rms"),
    ],
)
def test_timms_weights_that_cannot_be_had(hub, name: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        mv.load(f"timm:{name}")
    assert "\n" not in str(error.value)


# -- modules -------------------------------------------------------------------------------------------------------


class Giving(nn.Module):
    """A convolution, and what becomes of its map."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.then = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.norm(self.conv(x)))


def test_modules_of_any_shape():
    x = torch.randn(5, 3, 16, 16)
    for then, wanted in (
        (lambda h: h, lambda h: h.mean((2, 3))),
        (lambda h: h.flatten(2).transpose(1, 2), lambda h: h[:, :, 0, 0]),
        (lambda h: h.amax((2, 3)), lambda h: h.amax((2, 3))),
    ):
        module = Giving(then).train()
        module.conv.eval()  # modes are each submodule's own
        before = {k: v.clone() for k, v in module.state_dict().items()}
        loaded = mv.load(module, test_size=16, mean=(0, 0, 0), std=(1, 1, 1))
        assert loaded.encoder.module is module and (loaded.name, loaded.note) == ("Giving", "")
        assert (module.training, module.conv.training, module.norm.training) == (True, False, True)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        assert (
            isinstance(loaded.encoder, ExternalEncoder)
            and loaded.encoder.embed_dim == loaded.encoder.width("pooled") == 6
        )
        module.eval()
        torch.testing.assert_close(loaded.encoder(x), wanted(module.norm(module.conv(x))))
    assert "Assumed the mean and std of ImageNet." in mv.load(module, test_size=16).note


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda h: {"features": h}, "Giving gives a dict: wrap it in a module that gives features as one tensor"),
        (lambda h: (h, h), "Giving gives a tuple: wrap it"),
        (lambda h: h[0, 0, 0], r"Giving gives a tensor \(4,\): wrap it"),
        (lambda h: h.flatten(1)[:1], r"gives \(1, 96\) of torch.float32 for 2 images"),
        (lambda h: h.flatten(1).long(), "of torch.int64 for 2 images"),
        (lambda h: h.flatten(1) @ torch.zeros(5, 3), "Giving cannot take images of 16 pixels .*give another test_size"),
    ],
)
def test_modules_that_give_no_features(then: Callable[[Tensor], Any], message: str):
    module = Giving(then).train()
    with pytest.raises(UserError, match=message) as error:
        mv.load(module, test_size=16)
    assert "\n" not in str(error.value) and module.training and module.conv.training


def test_what_modules_do_not_have(tmp_path: Path):
    module = Giving(lambda h: h)
    with pytest.raises(UserError, match="Nothing says for which images Giving was made: give test_size"):
        mv.load(module)
    with pytest.raises(UserError, match="A module has its architecture: leave out depth"):
        mv.load(module, test_size=16, depth=3)
    with pytest.raises(UserError, match="A module has its architecture: leave out backbone"):
        mv.load(module, "resnet18", test_size=16)
    loaded = mv.load(module, test_size=16)
    with pytest.raises(UserError, match="cannot give features 'last4', for it is a bare module"):
        loaded.encoder.width("last4")
    for form in ("safetensors", "torch", "timm", "onnx"):
        with pytest.raises(UserError, match="Giving is a bare module, which cannot be exported"):
            mv.export(loaded, form, tmp_path / form)
        assert not (tmp_path / form).exists()
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    assert mv.load(encoder).encoder is encoder and mv.load(encoder).test_size == 32


def test_a_module_is_evaluated():
    from manyviews import evaluation
    from manyviews.data import open_source

    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = (rng.integers(0, 60, (120, 16, 16, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    loaded = mv.load(Giving(lambda h: h.mean((2, 3))), test_size=16)
    report = evaluation.evaluate(
        loaded.encoder,
        open_source((pixels, labels)),
        protocols=("knn",),
        test_size=loaded.test_size,
        mean=loaded.mean,
        std=loaded.std,
        baselines=False,
    )
    assert report.representations["trained"].scores["knn"].top1 > 0.9


# -- untrained modules ---------------------------------------------------------------------------------------------


def scales(net: nn.Module) -> State:
    return {k: v.float().std(correction=0) for k, v in net.state_dict().items() if v.is_floating_point()}


FRESH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm's resnet": (lambda: timm.create_model("resnet18", num_classes=0), ""),
    "timm's vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4, depth=2, init_values=1e-4
        ),
        "",
    ),
    "layers": (
        lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(4, 64), nn.Flatten(), nn.Linear(64 * 9, 32)),
        "",
    ),
    # What these constructors set by hand, `reset_parameters` sets otherwise.
    "torchvision's vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 3, 192, 384),
        r"conv_proj|heads|mlp|class_token",
    ),
    "timm's convnext": (lambda: timm.create_model("convnext_atto", num_classes=0), "conv|fc|stem|downsample|gamma"),
}
"""Constructors, and whose parameters they set by themselves."""


@pytest.mark.parametrize("case", FRESH)
def test_fresh_weights_have_the_scale_of_those_the_constructor_makes(case: str):
    make, by_hand = FRESH[case]
    wanted, net = scales(make()), lively(make())
    trained = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    fresh = reinitialized(net, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())
    same, other = (reinitialized(net, seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(v, same[k]) for k, v in fresh.state_dict().items())
    assert not all(torch.equal(v, other[k]) for k, v in fresh.state_dict().items())
    for k, scale in scales(fresh).items():
        assert not torch.equal(fresh.state_dict()[k], trained[k]), k
        if not by_hand or not re.search(by_hand, k):
            torch.testing.assert_close(scale, wanted[k], rtol=0.25, atol=1e-5, msg=k)


def test_fresh_statistics_and_closed_forms():
    net = ExternalEncoder(resnet(), 64)
    fresh = reinitialized(net, 0)
    assert isinstance(fresh, ExternalEncoder) and fresh.embed_dim == 512
    bn, conv = fresh.module.layer4[0].bn1, fresh.module.layer4[0].conv1
    assert torch.equal(bn.weight, torch.ones(512)) and torch.equal(bn.running_var, torch.ones(512))
    assert not bn.bias.any() and not bn.running_mean.any()
    assert float(conv.weight.detach().std()) == pytest.approx(
        (3 * 9 * 256) ** -0.5, rel=0.02
    )  # uniform within 1/sqrt(fan in)


def test_parameters_that_belong_to_no_layer():
    class Owner(nn.Module):
        def __init__(self, **shapes: tuple[int, ...]) -> None:
            super().__init__()
            for name, shape in shapes.items():
                setattr(self, name, nn.Parameter(torch.full(shape, 7.0), requires_grad=False))
            self.register_buffer("constant", torch.full((3,), 7.0))

    fresh = reinitialized(Owner(cls_token=(1, 8, 64), pos_embed=(1, 50, 64), layer_scale=(64, 1, 1)), 0)
    assert [float(p.std()) for p in (fresh.cls_token, fresh.pos_embed)] == pytest.approx([0.02, 0.02], rel=0.1)
    assert torch.equal(fresh.layer_scale, torch.ones(64, 1, 1)) and torch.equal(fresh.constant, torch.full((3,), 7.0))
    with pytest.raises(UserError, match="no untrained Owner to compare with, for nothing tells how mixing began"):
        reinitialized(Owner(mixing=(3, 3)), 0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))  # whose own reset would be lost
    with pytest.raises(UserError, match=r"nothing tells how parametrizations\.weight\.original0"):
        reinitialized(normed, 0)
    owner = Owner(token=(3, 3))
    owner.generator = (i for i in range(3))
    with pytest.raises(UserError, match="it cannot be copied"):
        reinitialized(owner, 0)
