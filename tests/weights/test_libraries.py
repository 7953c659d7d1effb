"""Checkpoints under the names of Meta, Microsoft, OpenMMLab, OpenCLIP, torchvision and detectron2.

Where a library is installed, its own network is the reference. Else the names are written out from timm's, and the
order of channels where a library differs is computed slowly.
"""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

import manyviews as mv
from manyviews.errors import UserError
from manyviews.weights import layouts
from tests.weights.test_recognize import agree, lively, noise, refused, saved, under, vit

DINOV3 = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4}


def renamed(state, *pairs):
    found = {}
    for k, v in state.items():
        for pattern, name in pairs:
            k = re.sub(pattern, name, k)
        found[k] = v
    return found


# -- DINOv3 --------------------------------------------------------------------------------------------------------


def metas_dinov3(net):
    """Their names: one bias of queries, keys and values, whose part of the keys is masked, and buffers."""
    state = renamed(net.state_dict(), (r"gamma_(\d)$", r"ls\1.gamma"), ("reg_token", "storage_tokens"))
    found = {k: v for k, v in state.items() if not k.endswith(("q_bias", "v_bias"))}
    width = net.embed_dim
    for i in range(len(net.blocks)):
        q, v = (state.get(f"blocks.{i}.attn.{n}_bias", torch.zeros(width)) for n in "qv")
        found[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.randn(width), v])  # never looked at
        found[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    periods = torch.ones(width // net.blocks[0].attn.num_heads // 4)
    return found | {
        "mask_token": torch.randn(1, width),
        "rope_embed.periods": periods,
        **noise("local_cls_norm.weight"),
    }


def eva(name="vit_small_patch16_dinov3_qkvb", **settings):
    torch.manual_seed(0)
    return lively(timm.create_model(name, num_classes=0, **{**DINOV3, **settings}))


def test_dinov3_of_meta(tmp_path):
    name = "vit_small_patch16_dinov3_qkvb"
    net = eva(global_pool="token")
    path = saved(metas_dinov3(net), tmp_path)
    loaded = mv.load(path)
    agree(loaded, net)
    assert loaded.encoder.name == name and loaded.encoder.spec["num_heads"] == 4  # as the periods tell
    assert loaded.note.startswith("DINOv3 checkpoint: took its weights as")
    assert "left out 5 tensors (blocks 2, mask_token 1, rope_embed 1, local_cls_norm 1)" in loaded.note
    mean = eva(global_pool="avg")  # timm's own pool of this name
    agree(mv.load(path, name, **DINOV3, global_pool="avg"), mean)
    without = eva("vit_small_patch16_dinov3", global_pool="token")
    loaded = mv.load(saved(metas_dinov3(without), tmp_path, "without.pth"))
    agree(loaded, without)
    assert loaded.encoder.name == "vit_small_patch16_dinov3"
    refused(path, "biases .* not zero: give --backbone .*_qkvb", backbone="vit_small_patch16_dinov3", **DINOV3)


def test_names_of_dinov3s_published_sizes():
    with torch.device("meta"):
        for word in ("small", "small_plus", "base", "large", "huge_plus"):
            net = timm.create_model(f"vit_{word}_patch16_dinov3", num_classes=0)
            assert layouts.vit(net.state_dict()) == (f"vit_{word}_patch16_dinov3", {})
            assert layouts.dinov3(net.state_dict()) == (f"vit_{word}_patch16_dinov3", {"global_pool": "token"})


# -- the encoder that the paper evaluates ---------------------------------------------------------------------------


def test_joint_embedding_architectures_evaluate_the_target_encoder(tmp_path):
    settings = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    online, target = vit(**settings), vit(**settings)
    both = {
        "encoder": under("module.", online.state_dict()),
        "target_encoder": under("module.", target.state_dict()),
        "epoch": 1,
    }
    for beside, family in (
        ({"predictor": {"module.x": torch.zeros(3)}}, "I-JEPA"),
        ({"prototypes": torch.zeros(4, 3)}, "MSN"),
    ):
        loaded = mv.load(saved(both | beside, tmp_path, "last.pth.tar"))
        agree(loaded, target)
        assert loaded.note.startswith(f"{family} checkpoint: took 'target_encoder.module.' as")
    # BYOL has all three too, and projections; its papers evaluate the encoder that learns.
    byol = both | {"predictor": noise("0.weight"), "projector": noise("0.weight")}
    agree(mv.load(saved(byol, tmp_path)), online)


# -- OpenMMLab -----------------------------------------------------------------------------------------------------

MM_VIT = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.norm(\d)\.", r".ln\1."),
    (r"^norm\.", "ln1."),
)


def test_transformers_of_openmmlab(tmp_path):
    net = vit()
    state = renamed(net.state_dict(), *MM_VIT)
    older = renamed(state, (r"\.attn\.qkv\.", ".attn.attn.in_proj_"), (r"\.attn\.proj\.", ".attn.attn.out_proj."))
    for found in (state, older):
        loaded = mv.load(saved({"state_dict": under("backbone.", found) | noise("head.layers.0.weight")}, tmp_path))
        agree(loaded, net)
        assert loaded.note.startswith("OpenMMLab checkpoint: took 'backbone.' as vit_tiny")


def test_swin_of_openmmlab_merges_patches_in_another_order(tmp_path):
    net = swin()
    state = {}
    for k, v in renamed(
        net.state_dict(),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^layers\.", "stages."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^norm\.", "norm3."),
    ).items():
        if ".downsample." in k:
            # What unfolding gives at each place, for a map whose values are the places in timm's order.
            channels = v.shape[-1] // 4
            places = torch.arange(4 * channels).float().view(2, 2, channels)  # column, row, channel
            order = nn.functional.unfold(places.permute(2, 1, 0)[None], 2, stride=2).flatten().long()
            v = v[..., order]
        state[k] = v
    loaded = mv.load(saved(under("backbone.", state), tmp_path), img_size=32)
    agree(loaded, net)


def test_deep_stems_of_resnets(tmp_path):
    net = lively(timm.create_model("resnet18", num_classes=0, stem_type="deep", stem_width=16, layers=(1, 1, 1, 1)))
    mm = renamed(net.state_dict(), (r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))
    for found in (net.state_dict(), under("backbone.", mm)):
        loaded = mv.load(saved(found, tmp_path))
        agree(loaded, net)
        assert loaded.encoder.spec["stem_width"] == 16


# -- torchvision, Microsoft, OpenCLIP, detectron2 ------------------------------------------------------------------


def swin():
    settings = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return lively(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **settings))


def test_swin_of_torchvision_and_microsoft(tmp_path):
    net = lively(torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5))
    path = saved(net.state_dict(), tmp_path)
    net.head = nn.Identity()
    loaded = mv.load(path, img_size=32)
    agree(loaded, net)
    assert loaded.note.startswith("torchvision checkpoint") and "left out 6 tensors" in loaded.note  # 4 are indices

    net = swin()
    shifted = renamed(
        net.state_dict(), (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.")
    )
    mask = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}  # of 2 x 2 windows: the size of the images
    for found in (net.state_dict() | mask, {"model": shifted | mask | noise("head.weight")}):
        loaded = mv.load(saved(found, tmp_path))
        agree(loaded, net)
        assert loaded.test_size == 32


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2"])
def test_efficientnet_of_torchvision(name, tmp_path):
    net = lively(torchvision.models.get_model(name))
    path = saved(net.state_dict(), tmp_path)
    net.classifier = nn.Identity()
    loaded = mv.load(path)
    agree(loaded, net, 64)
    assert "left out 2 tensors (classifier 2)" in loaded.note


def test_clip_asks_for_its_activation(tmp_path):
    small = {"img_size": 32, "patch_size": 16, "depth": 2}
    net = lively(timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **small))
    names = (
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^pos_embed$", "positional_embedding"),
        (r"^cls_token$", "class_embedding"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    state = renamed(net.state_dict(), *names)
    state["class_embedding"], state["positional_embedding"] = state["class_embedding"][0, 0], net.pos_embed[0]
    text = {k.replace("visual.", ""): v for k, v in under("visual.", state).items() if "resblocks" in k}
    found = {"state_dict": under("module.", under("visual.", state) | text | {"visual.proj": torch.randn(768, 8)})}
    path = saved(found, tmp_path)
    refused(path, r"give vit_base_patch16_clip_quickgelu_224 or vit_base_patch16_clip_224 as --backbone")
    loaded = mv.load(path, "vit_base_patch16_clip_quickgelu_224", **small)
    agree(loaded, net)
    assert "took 'module.visual.' as vit_base_patch16_clip_quickgelu_224" in loaded.note
    # In OpenCLIP's models around timm's, the names are timm's.
    trunk = under("visual.trunk.", vit().state_dict()) | noise("visual.head.proj.weight")
    assert mv.load(saved(trunk, tmp_path)).note.startswith("Took 'visual.trunk.' as vit_tiny")


def test_beit_of_microsoft(tmp_path):
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    net = lively(timm.create_model("beit_base_patch16_224", num_classes=0, **small))
    index = {"blocks.0.attn.relative_position_index": torch.zeros(3, 3)}
    for backbone, settings in ((None, {}), ("beit_base_patch16_224", small)):
        agree(mv.load(saved({"model": net.state_dict() | index}, tmp_path), backbone, **settings), net)


# -- channels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_weights_for_rgb_are_adapted_to_bands(name, tmp_path):
    """As timm does it for its own weights: the colors in turn, scaled, so that a gray image gives the same."""
    torch.manual_seed(0)
    net = lively(timm.create_model(name, num_classes=0))
    path = saved(net.state_dict(), tmp_path)
    loaded = mv.load(path, in_chans=6)
    assert "adapted the first convolution from 3 channels to 6" in loaded.note
    assert "Assumed the mean and std of ImageNet, repeated for 6 channels and" in loaded.note
    assert loaded.mean == (0.485, 0.456, 0.406) * 2 and loaded.encoder.channels == 6
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(x.repeat(1, 2, 1, 1)), net(x), rtol=1e-3, atol=1e-4)
    own = mv.load(mv.export(loaded, "safetensors", tmp_path / "own.safetensors"))
    assert own.mean == loaded.mean and own.encoder.channels == 6 and own.note == ""
    torch.save(own.encoder.model.state_dict(), path)
    assert mv.load(path).encoder.channels == 6  # as the weights tell
    with pytest.raises(UserError, match=r"for images of 6 channels, and .* asked for 4"):
        mv.load(path, in_chans=4)
