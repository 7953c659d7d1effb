"""Other libraries' checkpoints, as they write them, give the features of the networks that wrote them."""

import argparse
import logging
import re

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.weights import layouts

TINY = {"img_size": 32, "patch_size": 8, "depth": 2}


@torch.no_grad()
def lively(net):
    """With weights and statistics that are nobody's defaults, so that a lost or a swapped one shows."""
    for name, value in net.state_dict().items():  # and no tables that networks compute anew
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn_like(value))
    return net.eval()


def resnet(block=BasicBlock, padding=None):
    """A narrow one without a classifier; for small images with this padding of the first convolution."""
    net = ResNet(block, (1, 1, 1, 1), num_classes=0, channels=(64, 16, 16, 32))
    if padding is not None:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    return lively(net)


def vit(width=192, depth=2, size=32, patch=8, **settings):
    settings = {"num_heads": width // 64, "embed_dim": width, "depth": depth, **settings}
    return lively(timm.models.VisionTransformer(img_size=size, patch_size=patch, num_classes=0, **settings))


def under(prefix, state):
    return {f"{prefix}{k}": v for k, v in state.items()}


def noise(*names):
    """Tensors that belong to no encoder."""
    return {name: torch.randn(4, 4) for name in names}


def saved(found, folder, name="weights.pth"):
    torch.save(found, folder / name)
    return folder / name


@torch.no_grad()
def agree(loaded, net, size=32):
    x = torch.randn(3, 3, size, size)
    wanted = net.eval()(x).flatten(1)
    torch.testing.assert_close(loaded.encoder(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def refused(path, message, **settings):
    with pytest.raises(UserError, match=message) as error:
        mv.load(path, **settings)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


# -- architectures -------------------------------------------------------------------------------------------------


def test_the_names_of_published_sizes():
    models = torchvision.models.get_model
    with torch.device("meta"):
        for name in ("resnet18", "resnet34", "resnet101", "wide_resnet50_2"):
            assert layouts.resnet(models(name).state_dict()) == (name, {})
        grouped = {"cardinality": 32, "base_width": 8}
        assert layouts.resnet(models("resnext101_32x8d").state_dict()) == ("resnet101", grouped)
        for size in ("tiny_patch16", "small_patch16", "base_patch16", "large_patch16", "huge_patch14"):
            net = timm.create_model(f"vit_{size}_224")
            assert layouts.vit(net.state_dict()) == (f"vit_{size}_224", {})
        dinov2 = {"img_size": 518, "patch_size": 14, "init_values": 1e-5}
        net = timm.create_model("vit_small_patch14_dinov2")
        assert layouts.vit(net.state_dict()) == ("vit_small_patch16_224", dinov2)
        for size in ("atto", "base"):
            net = timm.create_model(f"convnextv2_{size}")
            assert layouts.convnext(net.state_dict()) == (f"convnextv2_{size}", {})


@pytest.mark.parametrize(
    ("deep", "settings", "name", "found"),
    [
        (False, {}, "resnet18", {}),
        (True, {"width_per_group": 128}, "wide_resnet50_2", {}),
        (True, {"groups": 32, "width_per_group": 4}, "resnet50", {"cardinality": 32, "base_width": 4}),
        (False, {"small": True}, "resnet18", {"stem": "small"}),
    ],
)
def test_resnets_of_torchvision(deep, settings, name, found, tmp_path):
    small, block = "small" in settings, torchvision.models.resnet.Bottleneck if deep else None
    net = torchvision.models.ResNet(
        block or torchvision.models.resnet.BasicBlock,
        [1, 1, 1, 1],
        **{k: v for k, v in settings.items() if k != "small"},
    )
    net.fc = nn.Identity()
    if small:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    loaded = mv.load(saved({**lively(net).state_dict(), **noise("fc.weight", "fc.bias")}, tmp_path))
    agree(loaded, net)
    wanted = {"name": name, "stem": "native", "position": "learned", "layers": (1, 1, 1, 1), **found}
    assert loaded.encoder.spec == wanted
    assert loaded.test_size == (32 if small else 224)
    assert loaded.mean == ((0.4914, 0.4822, 0.4465) if small else (0.485, 0.456, 0.406))
    assert "left out 2 tensors (fc 2); " in loaded.note and "nothing was missing" in loaded.note
    assert f"Assumed the mean and std of {'CIFAR-10' if small else 'ImageNet'} and images of " in loaded.note
    assert ("assumed to have stride 1" in loaded.note) == small


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 48, "patch": 16},
        {"init_values": 0.1, "qkv_bias": False, "mlp_ratio": 2.0},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True, "proj_bias": False},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "qk_norm": True},
        {"global_pool": "avg"},
    ],
)
def test_vision_transformers_of_timm(settings, tmp_path):
    net, path = vit(**settings), tmp_path / "weights.safetensors"
    safetensors.torch.save_file({**net.state_dict(), **noise("head.weight", "head.bias")}, path)
    loaded, size = mv.load(path), settings.get("size", 32)
    agree(loaded, net, size)
    assert "left out 2 tensors (head 2)" in loaded.note and "resized" not in loaded.note
    assert loaded.test_size == size
    # Made again from its specification alone, as an untrained one is.
    Encoder.from_spec(loaded.encoder.spec).load_weights(loaded.encoder.model.state_dict())


@pytest.mark.parametrize("mlp", [("mlp.0", "mlp.3"), ("mlp.linear_1", "mlp.linear_2")])  # now; before 0.13
def test_vision_transformers_of_torchvision(mlp, tmp_path):
    net = lively(torchvision.models.VisionTransformer(32, 8, 2, 3, 192, 384))
    state = {k.replace("mlp.0", mlp[0]).replace("mlp.3", mlp[1]): v for k, v in net.state_dict().items()}
    loaded = mv.load(saved(state, tmp_path))
    net.heads = nn.Identity()
    agree(loaded, net)
    assert loaded.note.startswith("torchvision checkpoint: took its weights as vit_tiny_patch16_224 with ")
    assert "left out 2 tensors (heads 2)" in loaded.note


def test_convnexts_under_the_names_of_three_libraries(tmp_path):
    block = torchvision.models.convnext.CNBlockConfig
    blocks = [block(40, 80, 2), block(80, 160, 2), block(160, 320, 6), block(320, None, 2)]
    net = lively(torchvision.models.convnext.ConvNeXt(blocks))
    loaded = mv.load(saved(net.state_dict(), tmp_path))
    net.classifier = nn.Sequential(net.classifier[0], nn.Flatten(1))
    agree(loaded, net)
    assert loaded.encoder.name == "convnext_atto" and "left out 2 tensors (classifier 2)" in loaded.note

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
    again.head.fc = nn.Identity()
    for weights in (again.state_dict(), {"model": state}):
        loaded = mv.load(saved(weights, tmp_path))
        agree(loaded, again)
        assert loaded.encoder.name == "convnextv2_atto"


# -- what trainers write -------------------------------------------------------------------------------------------


def test_lightlys_simclr_through_its_trainer(tmp_path):
    """A LightningModule as in lightly's examples, saved by Lightning with settings of several libraries."""
    import pytorch_lightning as pl
    from lightly.models.modules import SimCLRProjectionHead
    from omegaconf import OmegaConf

    class SimCLR(pl.LightningModule):
        def __init__(self, config, root):
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
    agree(loaded, model.backbone)
    heads = len(model.projection_head.state_dict())
    assert loaded.note.startswith("lightly checkpoint: took 'backbone.' as resnet18; ")
    assert f"left out {heads} tensors (projection_head {heads}); nothing was missing." in loaded.note


def test_lightlys_own_resnet_for_small_images(tmp_path):
    """Its Sequential has lost the first activation, which no weight tells."""
    from lightly.models import ResNetGenerator

    whole = lively(ResNetGenerator("resnet-9", width=0.25))
    part = nn.Sequential(*list(whole.children())[:-1], nn.AdaptiveAvgPool2d(1))
    loaded = mv.load(saved(under("backbone.", part.state_dict()), tmp_path))
    agree(loaded, part)
    assert loaded.encoder.spec["stem"] == "bare" and loaded.test_size == 32
    assert loaded.note.startswith("lightly checkpoint") and "no activation after it" in loaded.note
    loaded = mv.load(saved(whole.state_dict(), tmp_path))
    whole.linear = nn.Identity()
    agree(loaded, whole)


def families():
    """Names as each library writes them, around a network and others of the same shape; and what the note says."""
    net, other, deep, other_deep = resnet(), resnet(), resnet(Bottleneck), resnet(Bottleneck)
    small, other_small, twelve, scaled = vit(), vit(), vit(num_heads=12), vit(init_values=0.1, depth=4)

    def moco(*head):
        state = {}
        for prefix, part in (("module.encoder_k.", other_deep), ("module.encoder_q.", deep)):
            state |= under(prefix, part.state_dict() | noise(*head))
        return {"arch": "resnet50", "state_dict": state | noise("module.queue"), "optimizer": {"state": noise("m")}}

    solo = under("backbone.", net.state_dict()) | under("momentum_backbone.", other.state_dict())
    moco_v3 = under("module.momentum_encoder.", vit(num_heads=12).state_dict())
    moco_v3 |= under("module.base_encoder.", twelve.state_dict()) | noise("module.predictor.0.weight")
    dino = {
        "student": under("module.backbone.", other_small.state_dict()) | noise("module.head.mlp.0.weight"),
        "teacher": under("backbone.", small.state_dict()) | noise("head.mlp.0.weight"),
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": noise("center"),
    }
    mae = small.state_dict() | noise("mask_token", "decoder_pos_embed", "decoder_pred.bias")
    deit = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): v for k, v in scaled.state_dict().items()}
    chunked = {  # two blocks to a chunk, as DINOv2 trains
        re.sub(r"^blocks\.(\d)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", k): v
        for k, v in scaled.state_dict().items()
    }
    dinov2 = under("teacher.backbone.", chunked) | noise("student.dino_head.mlp.0.weight", "teacher.ibot_head.weight")
    dinov2 |= under("student.backbone._fsdp_wrapped_module.", {k: v + 1 for k, v in chunked.items()})
    swav = under("module.", net.state_dict() | noise("projection_head.0.weight", "prototypes.weight"))
    byol = under("target_encoder.net.", other.state_dict()) | under("net.", net.state_dict())
    byol |= under("online_encoder.net.", net.state_dict()) | noise("online_encoder.projector.0.weight")
    barlow = under("module.backbone.", net.state_dict()) | noise("module.projector.0.weight", "module.bn.running_mean")
    children, others = (nn.Sequential(*list(r.children())[:-1]) for r in (net, other))
    lightly = under("backbone_momentum.", others.state_dict()) | under("backbone.", children.state_dict())
    lightly |= noise("projection_head.layers.0.weight", "projection_head_momentum.layers.0.weight")
    pair = under("student_backbone.", other_small.state_dict()) | under("teacher_backbone.", small.state_dict())
    pair |= noise("student_head.layers.0.weight", "teacher_head.last_layer.weight")
    averaged = {"state_dict": other.state_dict(), "state_dict_ema": net.state_dict()}
    uncounted = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}  # PyTorch before 0.4.1
    return {
        "solo-learn": (
            {"state_dict": solo | noise("projector.0.weight", "classifier.weight"), "loops": {}},
            net,
            "solo-learn checkpoint: took 'backbone.' as resnet18 with layers",
        ),
        "moco v1": (moco("fc.weight"), deep, "MoCo v1 checkpoint: took 'module.encoder_q.' as resnet50 with "),
        "moco v2": (moco("fc.0.weight", "fc.2.weight"), deep, "MoCo v2 checkpoint"),
        "moco v3": ({"state_dict": moco_v3}, twelve, "MoCo v3 checkpoint: took 'module.base_encoder.' as vit_tiny"),
        "dino": (dino, small, "DINO checkpoint: took 'teacher.backbone.' as vit_tiny_patch16_224 with "),
        "mae": ({"model": mae}, small, "MAE checkpoint: took 'model.' as vit_tiny_patch16_224 with "),
        "dinov2": (scaled.state_dict() | noise("mask_token"), scaled, "DINOv2 checkpoint: took its weights as vit_t"),
        "dinov2 training": ({"model": dinov2}, scaled, "DINOv2 checkpoint: took 'model.teacher.backbone.' as "),
        "deit iii": ({"model": deit}, scaled, "left out nothing"),
        "swav": (swav, net, "SwAV checkpoint: took 'module.' as resnet18 with "),
        "byol": (byol, net, "BYOL checkpoint: took 'net.' as resnet18"),
        "barlow": ({"model": barlow}, net, "Barlow Twins or VICReg checkpoint: took 'model.module.backbone.' as "),
        "lightly moco": ({"state_dict": lightly}, net, "lightly checkpoint: took 'backbone.' as resnet18 with layers"),
        "lightly dino": (pair, small, "lightly checkpoint: took 'teacher_backbone.' as vit_tiny_patch16_224 with "),
        "compiled": (under("_orig_mod.module.", net.state_dict()), net, "Took 'module.' as resnet18"),
        "averaged": (averaged, net, "Took 'state_dict_ema.' as resnet18"),
        "lightning": (
            {"state_dict": under("model.encoder.", small.state_dict()) | noise("metric.total"), "callbacks": {}},
            small,
            "left out 1 tensor (metric 1)",
        ),
        "uncounted": (uncounted, net, "left out nothing; nothing was missing"),
    }


def test_checkpoints_of_methods(tmp_path):
    """The network that a method evaluates, and not its momentum copy, its student or its heads."""
    for family, (found, net, said) in families().items():
        loaded = mv.load(saved(found, tmp_path, "checkpoint.pth.tar"))
        agree(loaded, net)
        assert said in loaded.note and "nothing was missing" in loaded.note, (family, loaded.note)


def test_solo_learns_first_convolution_for_cifar(tmp_path):
    """It has a padding of 2, which no weight tells."""
    net = resnet(padding=2)
    heads = noise("projector.0.weight", "classifier.weight", "classifier.bias")
    path = saved({"state_dict": under("backbone.", net.state_dict()) | heads}, tmp_path, "last.ckpt")
    loaded = mv.load(path)
    agree(loaded, net)
    assert "padding of 2" in loaded.note and loaded.test_size == 32
    net.conv1.padding = (1, 1)
    agree(mv.load(path, stem="small"), net)
    agree(mv.load(path, "resnet18", stem="small"), net)


def test_distilled_transformers_and_dinov2_with_registers(tmp_path):
    net = lively(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=9, **TINY))
    path = saved({"model": net.state_dict()}, tmp_path)
    net.reset_classifier(0)
    agree(mv.load(path), net)

    net = vit(reg_tokens=4, no_embed_class=True, init_values=0.1)
    state = net.state_dict()
    of_class = torch.randn(1, 1, 192)  # a position that timm adds to the class token once and for all
    theirs = {k: v for k, v in state.items() if k != "reg_token"} | {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - of_class,
        "pos_embed": torch.cat([of_class, state["pos_embed"]], 1),
    }
    for found in (theirs, theirs | {"mask_token": torch.randn(1, 192)}):
        loaded = mv.load(saved(found, tmp_path))
        agree(loaded, net)
        assert "resized" not in loaded.note and "register" not in loaded.note


def test_positions_of_another_size_are_resized_and_reported(tmp_path):
    from timm.layers import resample_abs_pos_embed

    net = vit()
    path = saved(net.state_dict(), tmp_path)
    wanted = resample_abs_pos_embed(net.pos_embed, [6, 6], [4, 4])
    for backbone, settings in ((None, {}), ("vit_tiny_patch16_224.augreg_in21k", TINY)):
        loaded = mv.load(path, backbone, **{**settings, "img_size": 48})
        assert "resized the positions from 17 to 37" in loaded.note and loaded.test_size == 48
        torch.testing.assert_close(loaded.encoder.model.pos_embed, wanted)
    # timm would resize the patches too, and not tell.
    refused(path, r"the first is patch_embed\.proj\.weight", patch_size=16)


def test_an_architecture_that_the_weights_do_not_tell(tmp_path):
    net = lively(timm.create_model("test_efficientnet", num_classes=5))
    path = saved({"state_dict": under("teacher.", net.state_dict()) | under("student.", net.state_dict())}, tmp_path)
    refused(path, r"does not say which architecture .* --backbone")
    net.classifier = nn.Identity()
    loaded = mv.load(path, "test_efficientnet")
    agree(loaded, net, 64)
    assert "Took 'teacher.' as test_efficientnet; left out" in loaded.note
    small = {**TINY, "embed_dim": 192, "num_heads": 3}  # CLIP's activation is one of two
    clip = lively(timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **small))
    path = saved(clip.state_dict(), tmp_path)
    refused(path, "does not say which architecture")
    agree(mv.load(path, "vit_base_patch16_clip_quickgelu_224", **small), clip)
    odd = vit(48, num_heads=4)
    path = saved(odd.state_dict(), tmp_path)
    refused(path, "of width 48, and the weights do not tell how many heads it has: give num_heads")
    agree(mv.load(path, num_heads=4), odd)


def test_small_transformers_of_moco_v3_and_solo_learn_have_twelve_heads(tmp_path):
    """Their positions are fixed sines and cosines; the shapes of the weights are those of any number of heads."""
    net, learned = vit(num_heads=12), vit()
    with torch.no_grad():
        net.pos_embed[:, :1] = 0
    heads = noise("projector.0.weight", "classifier.weight")
    for wanted in (net, learned):
        agree(mv.load(saved({"state_dict": under("backbone.", wanted.state_dict()) | heads}, tmp_path)), wanted)
    path = saved(net.state_dict(), tmp_path)
    assert "3 heads were assumed; those of MoCo v3 and solo-learn have 12" in mv.load(path).note
    agree(mv.load(path, num_heads=12), net)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_weights_that_are_missing_left_over_or_of_two_encoders(tmp_path):
    state, n = resnet().state_dict(), len(resnet().state_dict())
    less = {k: v for k, v in state.items() if k not in ("bn1.weight", "bn1.running_mean", "layer3.0.bn2.weight")}
    for backbone, settings in ((None, {}), ("resnet18", {"layers": (1, 1, 1, 1), "channels": (64, 16, 16, 32)})):
        refused(saved(less, tmp_path), rf"lacks 3 of the {n} weights of resnet18, ", backbone=backbone, **settings)
    more = state | {"layer3.0.conv9.\x1b[31m": torch.zeros(1)}
    refused(saved(more, tmp_path), rf"1 weights do not fit resnet18's {n} \(the first is layer3.0.conv9.")
    deeper = resnet(Bottleneck).state_dict()
    refused(saved(deeper, tmp_path), r"do not fit resnet18's", backbone="resnet18")  # and not its first blocks
    two = under("left.", state) | under("right.", resnet().state_dict())
    refused(saved(two, tmp_path), r"holds several encoders \('left.', 'right.'\): save the state dict of one")
    same = under("left.", state) | under("other.", state)
    assert "took 'left.'" in mv.load(saved(same, tmp_path)).note.lower()


def test_files_that_hold_something_else(tmp_path):
    refused(tmp_path / "none.pth", "There is no file")
    endless = {}
    endless |= {str(i): endless for i in range(100)}
    for found in (torch.zeros(3), [1, 2], {"epoch": 3}, {"state_dict": None}, {"optimizer": noise("x")}, endless):
        refused(saved(found, tmp_path), "does not hold a state dict of tensors")
    refused(
        saved({"conv1.weight": torch.zeros(2, 3, 3, 3)}, tmp_path), "weights do not fit resnet18", backbone="resnet18"
    )
    shapeless = dict.fromkeys(vit().state_dict(), torch.zeros(3))
    for found in (noise("x", "y"), vit().state_dict() | {"attn_pool.latent": torch.zeros(1, 1, 3)}, shapeless):
        refused(saved(found, tmp_path), "does not say which architecture")
    refused(saved(shapeless, tmp_path), "vit_tiny_patch16_224", backbone="vit_tiny_patch16_224")
