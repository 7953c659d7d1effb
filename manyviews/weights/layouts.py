"""The names that other libraries give to the weights of a network, and the architectures that the weights tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The names that a library gives to the weights of a network.

    Attributes:
        landmarks: names that together tell this layout from all others; each may follow any prefix.
        infer: from weights in timm's names to timm's name of the architecture and its settings. Raises KeyError,
            ValueError and the like for an architecture that it does not know.
        renames: patterns and their replacements, applied in order, which give timm's names.
        library: the one library that uses these names; "" if several do.
    """

    landmarks: tuple[str, ...]
    infer: Callable[[Mapping[str, Tensor]], tuple[str, dict[str, Any]]]
    renames: tuple[tuple[str, str], ...] = ()
    library: str = ""


_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (2, 2, 2, 2)): "resnet26",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""timm's name by (whether blocks have three convolutions, blocks in each stage)."""

_VITS = {
    192: ("tiny", 16, 12, 3),
    384: ("small", 16, 12, 6),
    768: ("base", 16, 12, 12),
    1024: ("large", 16, 24, 16),
    1280: ("huge", 14, 32, 16),
}
"""By width: timm's word, patch size, depth, and the number of heads, which the weights do not show."""

_CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 6, 2), 40): "atto",
    ((2, 2, 6, 2), 48): "femto",
    ((2, 2, 6, 2), 64): "pico",
    ((2, 2, 8, 2), 80): "nano",
    ((3, 3, 9, 3), 96): "tiny",
    ((3, 3, 27, 3), 96): "small",
    ((3, 3, 27, 3), 128): "base",
    ((3, 3, 27, 3), 192): "large",
    ((3, 3, 27, 3), 256): "xlarge",
    ((3, 3, 27, 3), 352): "huge",
}
"""timm's word by (blocks in each stage, width)."""


def _blocks(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Number of distinct values that the pattern's group takes among the names."""
    return len({m[1] for key in weights if (m := re.match(pattern, key))})


def resnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    deep = "layer1.0.conv3.weight" in weights
    layers = tuple(_blocks(weights, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    last, widening = ("conv3", 4) if deep else ("conv2", 1)
    channels = tuple(len(weights[f"layer{i}.0.{last}.weight"]) // widening for i in (1, 2, 3, 4))
    name = _RESNETS.get((deep, layers))
    settings: dict[str, Any] = {} if name else {"layers": layers}
    name = name or ("resnet50" if deep else "resnet18")
    if channels != (64, 128, 256, 512):
        settings["channels"] = channels
    if deep:
        width, per_group = weights["layer1.0.conv2.weight"].shape[:2]
        groups = width // per_group
        base = 64 * per_group // channels[0]
        if (groups, base) == (1, 128) and name in ("resnet50", "resnet101"):
            name = f"wide_{name}_2"
        elif (groups, base) != (1, 64):
            settings |= {"cardinality": groups, "base_width": base}
    shortcut = weights.get("layer2.0.downsample.1.weight")
    if shortcut is not None and shortcut.ndim == 4:  # a pool without weights comes first
        settings["avg_down"] = True
    if weights["conv1.weight"].shape[-1] == 3:
        settings["stem"] = "small"
    return name, settings


def bare_resnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    name, settings = resnet(weights)
    return name, settings | {"stem": "bare"}


def vit(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    if "norm_pre.weight" in weights:
        raise ValueError("CLIP has two activations, which the weights do not tell apart")
    if any(name.startswith("attn_pool.") for name in weights):
        raise ValueError("several architectures pool by attention")
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    usual_width = width if width in _VITS else 192
    word, usual_patch, usual_depth, heads = _VITS[usual_width]
    cls, distilled = "cls_token" in weights, "dist_token" in weights
    registers = next((weights[k].shape[1] for k in ("reg_token", "register_tokens") if k in weights), 0)
    prefix, positions = cls + distilled + registers, weights["pos_embed"].shape[1]
    if "register_tokens" in weights:
        positions -= 1  # DINOv2 has a position for the class token; timm adds it to that token
    apart = math.isqrt(positions) ** 2 == positions  # no positions for the prefix tokens
    side = math.isqrt(positions if apart else positions - prefix)
    if side**2 != positions - prefix * (not apart):
        raise ValueError("the patches form no square")
    fc_norm, norm = "fc_norm.weight" in weights, "norm.weight" in weights
    mean = not cls or (fc_norm and not norm)
    usual = {
        "img_size": 224,
        "patch_size": usual_patch,
        "embed_dim": usual_width,
        "depth": usual_depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "proj_bias": True,
        "qk_norm": False,
        "class_token": True,
        "reg_tokens": 0,
        "no_embed_class": False,
        "global_pool": "token",
        "fc_norm": None,
        "init_values": None,
    }
    found = usual | {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _blocks(weights, r"blocks\.(\d+)\."),
        "mlp_ratio": len(weights["blocks.0.mlp.fc1.weight"]) / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "proj_bias": "blocks.0.attn.proj.bias" in weights,
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "class_token": cls,
        "reg_tokens": registers,
        "no_embed_class": apart and prefix > 0,
        "global_pool": "avg" if mean else "token",
        "fc_norm": False if mean and norm else None,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
    }
    name = f"deit_{word}_distilled_patch16_224" if distilled else f"vit_{word}_patch{usual_patch}_224"
    return name, {k: v for k, v in found.items() if v != usual[k]}


def convnext(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    depths = tuple(_blocks(weights, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(4))
    second = any(".grn." in key for key in weights)
    return f"convnext{'v2' if second else ''}_{_CONVNEXTS[depths, len(weights['stem.0.weight'])]}", {}


def _stages(*numbers: int) -> tuple[tuple[str, str], ...]:
    """Renames for a ResNet in a Sequential: the numbers of the convolution, its norm, and the four stages."""
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return tuple((rf"^{i}\.", f"{name}.") for i, name in zip(numbers, names, strict=True))


LAYOUTS = (
    Layout(
        ("layer1.0.conv1.weight", "layer4.0.conv1.weight", "conv1.weight"),
        resnet,
        ((r"\.shortcut\.", ".downsample."),),  # many ResNets for CIFAR
    ),
    # nn.Sequential(*list(resnet.children())[:-1]). The first is torchvision's ResNet. The second is lightly's own: it
    # has no max-pool, and its first activation is a function and thus no child.
    Layout(("7.0.conv1.weight", "4.0.conv1.weight", "1.weight", "0.weight"), resnet, _stages(0, 1, 4, 5, 6, 7)),
    Layout(
        ("5.0.conv1.weight", "2.0.conv1.weight", "1.weight", "0.weight"),
        bare_resnet,
        (*_stages(0, 1, 2, 3, 4, 5), (r"\.shortcut\.", ".downsample.")),
        "lightly",
    ),
    Layout(
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        vit,
        ((r"\.gamma_(\d)$", r".ls\1.gamma"),),  # DeiT III
    ),
    # DINOv2's training code groups its blocks in chunks.
    Layout(
        ("blocks.0.0.attn.qkv.weight", "patch_embed.proj.weight"), vit, ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
    ),
    Layout(
        ("encoder.layers.encoder_layer_0.ln_1.weight", "conv_proj.weight"),
        vit,
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ),
        "torchvision",
    ),
    Layout(("stages.0.blocks.0.conv_dw.weight", "stem.0.weight"), convnext),
    Layout(
        ("stages.0.0.dwconv.weight", "downsample_layers.0.0.weight"),
        convnext,
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"\.grn\.gamma$", ".mlp.grn.weight"),
            (r"\.grn\.beta$", ".mlp.grn.bias"),
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ),
    ),
    Layout(
        ("features.1.0.layer_scale", "features.0.0.weight"),
        convnext,
        (
            (r"^features\.0\.", "stem."),
            *((rf"^features\.{2 * i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
            *((rf"^features\.{2 * i}\.", f"stages.{i}.downsample.") for i in range(1, 4)),
            (r"\.layer_scale$", ".gamma"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
        "torchvision",
    ),
)

FAMILIES = (
    ("MoCo v3", (r"base_encoder\.",)),
    ("MoCo v2", (r"encoder_q\.fc\.2\.",)),
    ("MoCo v1", (r"encoder_q\.",)),
    (
        "solo-learn",
        (r"^state_dict\.(backbone|encoder)\.", r"^state_dict\.classifier\.", r"\.(projector|head|decoder)\."),
    ),
    ("lightly", (r"backbone", r"(projection|prediction|student|teacher)_head\w*\.(layers|last_layer)\.")),
    ("MAE", (r"mask_token", r"decoder_pred\.")),
    ("DINOv2", (r"(teacher|student)\..*blocks\.0\.(\d+\.)?ls1\.gamma", r"dino_head|ibot_head")),
    ("DINO", (r"^teacher\.", r"^student\.")),
    ("DINOv2", (r"mask_token", r"blocks\.0\.(\d+\.)?ls1\.gamma")),
    ("SwAV", (r"projection_head\.", r"prototypes\.")),
    ("BYOL", (r"(^|\.)online", r"(^|\.)target")),
    ("Barlow Twins or VICReg", (r"module\.backbone\.", r"module\.projector\.")),
)
"""(who saved the checkpoint, patterns that must all occur in its keys); the first match counts."""
