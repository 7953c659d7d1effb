"""The names that other libraries give to the weights of a network, and the architectures that the weights tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True)
class Layout:
    """The names that a library gives to the weights of a network.

    Attributes:
        landmarks: names that together tell this layout from all others; each may follow any prefix.
        infer: from weights in timm's names to timm's name of the architecture and its settings. Raises KeyError,
            ValueError and the like for an architecture that it does not know, and `Ambiguous` if there are several.
        renames: patterns and their replacements, applied in order, which give timm's names. "#0", "#1" and so on at
            the end of a name mark parts of one tensor, which `join` concatenates.
        library: the one library that uses these names; "" if several do.
        convert: from renamed weights to those in timm's names, where names alone do not do.
        beside: the beginning of names that belong to the encoder and may lie beside its prefix instead of under it.
    """

    landmarks: tuple[str, ...]
    infer: Callable[[Mapping[str, Tensor]], tuple[str, dict[str, Any]]]
    renames: Renames = ()
    library: str = ""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    beside: str = ""

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights in timm's names."""
        found: dict[str, Tensor] = {}
        for name, value in weights.items():
            for pattern, ours in self.renames:
                name = re.sub(pattern, ours, name)
            found[name] = value
        return join(found if self.convert is None else self.convert(found))


class Ambiguous(Exception):
    """Weights that fit several architectures. The message names them, and what tells them apart."""


def join(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the parts of tensors, named NAME#0, NAME#1, ...; a missing part of a bias is zero.

    Queries, keys and values are three tensors in some libraries and one in timm.
    """
    found = {k: v for k, v in weights.items() if "#" not in k}
    for name in dict.fromkeys(k.partition("#")[0] for k in weights if "#" in k):
        parts = [weights.get(f"{name}#{i}") for i in range(3 if name.endswith((".qkv.weight", ".qkv.bias")) else 2)]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts) and there[0].ndim > 1:
            continue  # reported as missing
        found[name] = torch.cat([torch.zeros_like(there[0]) if part is None else part for part in parts])
    return found


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

_DINOV3S = {
    (384, False): ("small", 12, 6, 1536),
    (384, True): ("small_plus", 12, 6, 1536),
    (768, False): ("base", 12, 12, 3072),
    (1024, False): ("large", 24, 16, 4096),
    (1280, True): ("huge_plus", 32, 20, 5120),
    (4096, True): ("7b", 40, 32, 8192),
}
"""By width, and whether the MLP has gates: timm's word, depth, heads, and the width of the MLP."""

_EFFICIENTNETS = {
    ((1, 2, 2, 3, 3, 4, 1), 1280): "b0",
    ((2, 3, 3, 4, 4, 5, 2), 1280): "b1",
    ((2, 3, 3, 4, 4, 5, 2), 1408): "b2",
    ((2, 3, 3, 5, 5, 6, 2), 1536): "b3",
    ((2, 4, 4, 6, 6, 8, 2), 1792): "b4",
    ((3, 5, 5, 7, 7, 9, 3), 2048): "b5",
    ((3, 6, 6, 8, 8, 11, 3), 2304): "b6",
    ((4, 7, 7, 10, 10, 13, 4), 2560): "b7",
    ((2, 4, 4, 6, 9, 15), 1280): "v2_s",
    ((3, 5, 5, 7, 14, 18, 5), 1280): "v2_m",
    ((4, 7, 7, 10, 19, 25, 7), 1280): "v2_l",
}
"""The end of timm's name by (blocks in each stage, channels of the last convolution)."""

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
    if "conv1.0.weight" in weights:  # three 3x3 convolutions
        settings |= {"stem_type": "deep", "stem_width": len(weights["conv1.0.weight"])}
    elif weights["conv1.weight"].shape[-1] == 3:
        settings["stem"] = "small"
    return name, settings


def bare_resnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    name, settings = resnet(weights)
    return name, settings | {"stem": "bare"}


def vit(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    if "norm_pre.weight" in weights:
        raise clip(weights)
    four = "reg_token" in weights and weights["reg_token"].shape[1] == 4
    if four and "cls_token" in weights and "pos_embed" not in weights:
        # timm's other rotary transformers have positions or no class token. Under timm's names, timm's pool is meant.
        name, settings = dinov3(weights)
        return name, {k: v for k, v in settings.items() if k != "global_pool"}
    if any(name.startswith("attn_pool.") for name in weights):
        raise ValueError("several architectures pool by attention")
    gated = any(f"blocks.0.mlp.{name}.weight" in weights for name in ("w12", "w3"))
    if gated or len(weights["blocks.0.mlp.fc1.weight"]) != weights["blocks.0.mlp.fc2.weight"].shape[1]:
        return _giant(weights)
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
        "mlp_ratio": _ratio(len(weights["blocks.0.mlp.fc1.weight"]), width),
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


def _ratio(hidden: int, width: int) -> float:
    """The ratio for which timm's `int(width * ratio)` is `hidden`."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def clip(weights: Mapping[str, Tensor]) -> Ambiguous:
    """Why the weights of CLIP's image encoder do not tell its architecture."""
    import timm

    width, patch = len(weights["patch_embed.proj.weight"]), weights["patch_embed.proj.weight"].shape[-1]
    begin = f"vit_{_VITS[width][0] if width in _VITS else '*'}_patch{patch}_clip"
    names = [found for kind in ("_quickgelu", "") for found in timm.list_models(f"{begin}{kind}_[0-9]*")[:1]]
    cure = f"give {' or '.join(names)} as --backbone" if names else "give its timm name as --backbone"
    return Ambiguous(
        "CLIP's image encoder, whose activation the weights do not tell: quickgelu in OpenAI's weights and OpenCLIP's "
        f"-quickgelu models, GELU in the others. It does not say which architecture it has: {cure}"
    )


def transformers_clip(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """CLIP's image encoder as transformers saves it, whose configuration tells the activation."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    side = math.isqrt(weights["pos_embed"].shape[1] - 1)
    return "vit_base_patch16_clip_224", {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _blocks(weights, r"blocks\.(\d+)\."),
        "mlp_ratio": _ratio(len(weights["blocks.0.mlp.fc1.weight"]), width),
        "act_layer": None,
    }


def _giant(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """DINOv2 with gates in its MLPs (SwiGLU)."""
    renamed = {
        re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", k)): v for k, v in weights.items()
    }
    rows = len(renamed["blocks.0.mlp.fc1.weight"])
    # The same without gates; its name and its word for the width do not matter.
    plain = {k: v[: rows // 2] if ".mlp.fc1." in k else v for k, v in renamed.items()}
    registers = "register_tokens" in weights or "reg_token" in weights
    usual = {"img_size": 518, "patch_size": 14, "embed_dim": 1536, "depth": 40, "num_heads": 24, "init_values": 1e-5}
    usual |= {"mlp_ratio": 2.66667 * 2} | ({"reg_tokens": 4, "no_embed_class": True} if registers else {})
    _, found = vit(plain)
    width = len(weights["patch_embed.proj.weight"])
    word_width = width if width in _VITS else 192
    _, patch, depth, heads = _VITS[word_width]
    whole = {"img_size": 224, "patch_size": patch, "embed_dim": word_width, "depth": depth, "init_values": None} | found
    whole |= {"mlp_ratio": _ratio(rows, width)}
    if width in _VITS:
        whole.setdefault("num_heads", heads)
    if width == usual["embed_dim"]:
        whole["num_heads"] = usual["num_heads"]
        if rows == 8192:
            del whole["mlp_ratio"]
    settings = {k: v for k, v in whole.items() if usual.get(k) != v}
    return f"vit_giant_patch14_{'reg4_' if registers else ''}dinov2", settings


def dinov3(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """A transformer with rotary positions and layer scales (Simeoni et al. 2025), in Meta's names or timm's."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = _blocks(weights, r"blocks\.(\d+)\.")
    gate = next((weights[k] for k in (f"blocks.0.mlp.{n}.weight" for n in ("w1", "fc1_g")) if k in weights), None)
    hidden = len(weights["blocks.0.mlp.fc1.weight"] if gate is None else gate)
    word, *usual = _DINOV3S.get((width, gate is not None), ("small", 0, 0, 0))
    # Rotary positions have a frequency for every four dimensions of a head.
    periods = next((v for k, v in weights.items() if re.search(r"(^|\.)periods$", k)), None)
    heads = usual[1] if periods is None else width // (4 * len(periods))
    known = usual == [depth, heads, hidden]
    settings: dict[str, Any] = {"global_pool": "token"}
    if not known:
        settings |= {"embed_dim": width, "depth": depth, "mlp_ratio": _ratio(hidden, width)}
        settings |= {"num_heads": heads} if heads else {}
        # Any alignment gives the two layers of the gate that Meta has, in place of timm's one.
        settings |= {} if gate is None else {"swiglu_mlp": True, "swiglu_align_to": 1}
    if patch != 16:
        settings["patch_size"] = patch
    registers = weights.get("reg_token")
    if registers is None or registers.shape[1] != 4:
        settings["num_reg_tokens"] = 0 if registers is None else registers.shape[1]
    third = [v.view(3, -1)[[0, 2]] for k, v in weights.items() if k.endswith(".attn.qkv.bias")]
    biases = third + [v for k, v in weights.items() if k.endswith((".attn.q_bias", ".attn.v_bias"))]
    biased = any(bool(b.any()) for b in biases)
    if biased and word == "7b":
        raise ValueError("timm has none of this size with biases")
    return f"vit_{word if known else 'small'}_patch16_dinov3{'_qkvb' * biased}", settings


def beit(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    own, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    rows, heads = weights[own if own in weights else shared].shape
    side = (math.isqrt(rows - 3) + 1) // 2
    if (2 * side - 1) ** 2 + 3 != rows:
        raise ValueError("the patches form no square")
    usual: dict[str, Any] = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    usual |= {"mlp_ratio": 4.0, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}
    usual |= {"use_fc_norm": None, "init_values": 0.1}
    norm = "norm.weight" in weights and "fc_norm.weight" not in weights
    found = {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _blocks(weights, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "mlp_ratio": _ratio(len(weights["blocks.0.mlp.fc1.weight"]), width),
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": own in weights,
        "use_shared_rel_pos_bias": own not in weights,
        "use_fc_norm": False if norm else None,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else None,
    }
    return "beit_base_patch16_224", {k: v for k, v in found.items() if v != usual[k]}


def swin(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    stages = _blocks(weights, r"layers\.(\d+)\.blocks\.")
    tables = [weights[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(stages)]
    windows = tuple((math.isqrt(len(table)) + 1) // 2 for table in tables)
    if any((2 * w - 1) ** 2 != len(table) for w, table in zip(windows, tables, strict=True)):
        raise ValueError("the windows are no squares")
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    same = len(set(windows)) == 1
    usual = {"patch_size": 4, "window_size": 7, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    usual |= {"img_size": 224, "mlp_ratio": 4.0}
    found = {
        "patch_size": patch,
        "window_size": windows[0] if same else windows,
        "embed_dim": width,
        "depths": tuple(_blocks(weights, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)),
        "num_heads": tuple(table.shape[1] for table in tables),
        "mlp_ratio": _ratio(len(weights["layers.0.blocks.0.mlp.fc1.weight"]), width),
        # The masks of shifted windows, which older files hold, tell the size of the images; else it is 32 windows.
        "img_size": windows[0] * patch * 8,
    }
    mask = weights.get("layers.0.blocks.1.attn_mask")
    if mask is not None:
        found["img_size"] = math.isqrt(len(mask)) * windows[0] * patch
    return "swin_tiny_patch4_window7_224", {k: v for k, v in found.items() if v != usual[k]}


def convnext(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    depths = tuple(_blocks(weights, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(4))
    second = any(".grn." in key for key in weights)
    begin, word = f"convnext{'v2' if second else ''}", _CONVNEXTS.get((depths, len(weights["stem.0.weight"])))
    if word:
        return f"{begin}_{word}", {}
    dims = tuple(len(weights[f"stages.{i}.blocks.0.conv_dw.weight"]) for i in range(4))
    return f"{begin}_tiny", {"depths": depths, "dims": dims}


def efficientnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    stages = _blocks(weights, r"blocks\.(\d+)\.")
    depths = tuple(_blocks(weights, rf"blocks\.{i}\.(\d+)\.") for i in range(stages))
    word = _EFFICIENTNETS[depths, len(weights["conv_head.weight"])]
    if word.startswith("v2"):  # torchvision pads all sides alike
        return f"tf_efficientnet{word}", {"pad_type": ""}
    return f"efficientnet_{word}", {"bn_eps": 1e-3} if word in ("b5", "b6", "b7") else {}


def mobilenet_v2(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    width = {32: "100", 24: "075", 16: "050"}[len(weights["conv_stem.weight"])]
    return f"mobilenetv2_{width}", {}


def _stages(*numbers: int) -> tuple[tuple[str, str], ...]:
    """Renames for a ResNet in a Sequential: the numbers of the convolution, its norm, and the four stages."""
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return tuple((rf"^{i}\.", f"{name}.") for i, name in zip(numbers, names, strict=True))


def unfolded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin's mergers of patches for timm: `nn.Unfold` puts channels before the 2x2 pixels, row by row; timm after."""
    found = dict(weights)
    for name, value in weights.items():
        if re.search(r"^layers\.\d+\.downsample\.(reduction|norm)\.", name):
            pixels = value.unflatten(-1, (-1, 2, 2))  # channel, row, column to column, row, channel
            found[name] = pixels.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)
    return found


def batched(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's class token and positions with timm's leading dimensions."""
    found = {k: v.unflatten(0, (1, 1, -1)) if k == "cls_token" and v.ndim == 1 else v for k, v in weights.items()}
    return {k: v[None] if k == "pos_embed" and v.ndim == 2 else v for k, v in found.items()}


# timm's names of the layers of torchvision's blocks, by their number.
_INVERTED = {
    1: (("conv", "bn1"),),
    2: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    3: (("conv_dw", "bn1"), ("se",), ("conv_pw", "bn2")),
    4: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("se",), ("conv_pwl", "bn3")),
}


def torchvisions_efficientnet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An EfficientNet of torchvision in timm's names."""
    last = max(int(m[1]) for k in weights if (m := re.match(r"features\.(\d+)\.", k)))
    found: dict[str, Tensor] = {}
    for k, v in weights.items():
        inside = re.match(r"features\.(\d+)\.(\d+)\.block\.(\d+)\.(\w+)\.(.+)", k)
        outside = re.match(rf"features\.(0|{last})\.([01])\.(.+)", k)
        if inside:
            stage, block, layer, part, rest = inside.groups()
            layers = _INVERTED[_blocks(weights, rf"features\.{stage}\.{block}\.block\.(\d+)\.")]
            names = layers[int(layer)]
            name = f"se.conv_{'reduce' if part == 'fc1' else 'expand'}" if names == ("se",) else names[int(part)]
            k = f"blocks.{int(stage) - 1}.{block}.{name}.{rest}"
        elif outside:
            names = ("conv_stem", "bn1") if outside[1] == "0" else ("conv_head", "bn2")
            k = f"{names[int(outside[2])]}.{outside[3]}"
        found[k.replace("classifier.1.", "classifier.")] = v
    return found


_MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)  # blocks in each stage
_NARROWED = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")


def torchvisions_mobilenet_v2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A MobileNetV2 of torchvision, whose blocks are numbered through and whose layers are nested, in timm's names."""
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(_MOBILENET_V2) for i in range(blocks)]
    last = len(places) + 1
    outside = {f"{k}.{i}": name for k, i, name in ((0, 0, "conv_stem"), (0, 1, "bn1"), (last, 0, "conv_head"))}
    outside[f"{last}.1"] = "bn2"
    found: dict[str, Tensor] = {}
    for k, v in weights.items():
        if m := re.match(r"features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(\w+)$", k):
            block, layer, part, rest = m.groups()
            # The first block does not expand. Its last layers and all others' have no activation, and so no nesting.
            names = ("conv_dw", "bn1", "conv_pw", "bn2") if block == "1" else _NARROWED
            flat = int(layer) + len(names) // 2 - 1 if part is None else 2 * int(layer) + int(part)
            k = f"{places[int(block) - 1]}.{names[flat]}.{rest}"
        elif m := re.match(r"features\.(\d+\.\d)\.(\w+)$", k):
            k = f"{outside[m[1]]}.{m[2]}"
        found[k.replace("classifier.1.", "classifier.")] = v
    return found


def _qkv(before: str, after: str) -> tuple[tuple[str, str], ...]:
    """Renames of queries, keys and values: `before` holds a group for what is left of the name of the attention."""
    words = (r"(?:query|q_proj)", r"(?:key|k_proj)", r"(?:value|v_proj)")
    return tuple((rf"{before}{word}\.(weight|bias)$", rf"{after}\1#{i}") for i, word in enumerate(words))


# transformers, in its files and, since version 5, in its modules.
_TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.relative_position_bias\.", ".attn."),
    *_qkv(r"\.attention\.(?:attention\.|self\.)?", ".attn.qkv."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.(?:layernorm_before)\.", ".norm1."),
    (r"\.(?:layernorm_after)\.", ".norm2."),
)
_HF_VIT = (
    *_TRANSFORMERS,
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.gate_proj\.(weight|bias)$", r".mlp.fc1.\1#0"),
    (r"\.mlp\.up_proj\.(weight|bias)$", r".mlp.fc1.\1#1"),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
_HF_BEIT = (
    (r"^(?:encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    *_TRANSFORMERS,
    (r"\.attn\.qkv\.bias#0$", ".attn.q_bias"),
    (r"\.attn\.qkv\.bias#2$", ".attn.v_bias"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^layernorm\.", "norm."),
)
_HF_DINOV3 = (
    *_TRANSFORMERS,
    (r"\.attn\.qkv\.bias#0$", ".attn.q_bias"),
    (r"\.attn\.qkv\.bias#2$", ".attn.v_bias"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
)
_PLAIN_MLP = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
_GATED_MLP = ((r"\.mlp\.gate_proj\.", ".mlp.fc1_g."), (r"\.mlp\.up_proj\.", ".mlp.fc1_x."), _PLAIN_MLP[1])
_HF_SWIN: Renames = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_", ".attn.relative_"),
    *_TRANSFORMERS[8:],
    (r"^layernorm\.", "norm."),
)
_HF_CONVNEXT = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^layernorm\.", "head.norm."),
)
_HF_DINOV3_CONVNEXT = (
    (r"^model\.stages\.", "stages."),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"^stages\.(\d)\.downsample_layers\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"^layer_norm\.", "head.norm."),
)
_HF_CLIP = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    *_qkv(r"\.self_attn\.", ".attn.qkv."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
_HF_RESNET: Renames = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
# OpenMMLab: mmpretrain, and mmsegmentation's older attention.
_MM_VIT = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.gamma(\d)\.weight$", r".ls\1.gamma"),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"^(?:ln1|norm1)\.", "norm."),
)
_MM_SWIN: Renames = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    (r"^stages\.", "layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^norm3\.", "norm."),
)
_TORCHVISION_SWIN = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    *((rf"^features\.{2 * i}\.(reduction|norm)\.", rf"layers.{i}.downsample.\1.") for i in range(1, 4)),
    *((rf"^features\.{2 * i + 1}\.", f"layers.{i}.blocks.") for i in range(4)),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
)
_CLIP = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
)
_DETECTRON2: Renames = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)

_HF = "transformers"
_PROJECTION = "embeddings.patch_embeddings.projection.weight"
_NEW_PROJECTION = "embeddings.patch_embeddings.weight"  # DINOv3 and ConvNeXt
_HF_QUERIES = ("encoder.layer.0.attention.attention.query.weight", "encoder.layer.0.attention.q_proj.weight")
_NEW_QUERY = "layers.0.attention.q_proj.weight"
_SWIN_QUERIES = (
    "encoder.layers.0.blocks.0.attention.self.query.weight",
    "encoder.layers.0.blocks.0.attention.q_proj.weight",
)

# The first layout whose landmarks are there counts: one with more of the same landmarks comes before one with fewer.
LAYOUTS = (
    *(
        # BEiT's last norm belongs to its pool, or to the head that predicts tokens.
        Layout(
            (query, _PROJECTION, f"{query.partition('attention.')[0]}lambda_1"), beit, _HF_BEIT, _HF, None, "layernorm."
        )
        for query in (*_HF_QUERIES, _NEW_QUERY)
    ),
    *(Layout((query, _PROJECTION), vit, _HF_VIT, _HF) for query in (*_HF_QUERIES, _NEW_QUERY)),
    *(
        Layout((f"{begin}layer.0.attention.q_proj.weight", _NEW_PROJECTION, *gate), dinov3, (*_HF_DINOV3, *mlp), _HF)
        for begin in ("", "model.")
        for gate, mlp in (((f"{begin}layer.0.mlp.gate_proj.weight",), _GATED_MLP), ((), _PLAIN_MLP))
    ),
    *(Layout((query, _PROJECTION), swin, _HF_SWIN, _HF) for query in _SWIN_QUERIES),
    Layout(("encoder.stages.0.layers.0.dwconv.weight", _NEW_PROJECTION), convnext, _HF_CONVNEXT, _HF),
    *(
        Layout(
            (f"{begin}stages.0.layers.0.depthwise_conv.weight", "layer_norm.weight"),
            convnext,
            _HF_DINOV3_CONVNEXT,
            _HF,
        )
        for begin in ("", "model.")
    ),
    Layout(
        ("encoder.stages.0.layers.0.layer.0.convolution.weight", "embedder.embedder.convolution.weight"),
        resnet,
        _HF_RESNET,
        _HF,
    ),
    Layout(
        ("encoder.layers.0.self_attn.q_proj.weight", "embeddings.class_embedding", "pre_layrnorm.weight"),
        transformers_clip,
        _HF_CLIP,
        _HF,
        batched,
    ),
    Layout(("layers.0.attn.qkv.weight", "patch_embed.projection.weight"), vit, _MM_VIT, "OpenMMLab"),
    Layout(("layers.0.attn.attn.in_proj_weight", "patch_embed.projection.weight"), vit, _MM_VIT, "OpenMMLab"),
    Layout(
        ("stages.0.blocks.0.attn.w_msa.qkv.weight", "patch_embed.projection.weight"),
        swin,
        _MM_SWIN,
        "OpenMMLab",
        unfolded,
    ),
    Layout(("transformer.resblocks.0.attn.in_proj_weight", "conv1.weight"), vit, _CLIP, "OpenCLIP"),
    Layout(("res2.0.conv1.weight", "stem.conv1.weight"), resnet, _DETECTRON2, "detectron2"),
    Layout(
        ("features.1.0.block.0.0.weight", "features.0.0.weight"),
        efficientnet,
        (),
        "torchvision",
        torchvisions_efficientnet,
    ),
    Layout(
        ("features.1.conv.0.0.weight", "features.0.0.weight"),
        mobilenet_v2,
        (),
        "torchvision",
        torchvisions_mobilenet_v2,
    ),
    Layout(
        ("features.1.0.attn.relative_position_bias_table", "features.0.0.weight"),
        swin,
        _TORCHVISION_SWIN,
        "torchvision",
    ),
    # Swin, as Microsoft and timm name it; Microsoft's mergers of patches end a stage.
    Layout(
        ("layers.0.blocks.0.attn.relative_position_bias_table", "layers.0.downsample.reduction.weight"),
        swin,
        ((r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."), (r"^head\.", "head.fc.")),
    ),
    Layout(("layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight"), swin),
    Layout(
        ("layer1.0.conv1.weight", "layer4.0.conv1.weight", "conv1.weight"),
        resnet,
        ((r"\.shortcut\.", ".downsample."),),  # many ResNets for CIFAR
    ),
    Layout(("layer1.0.conv1.weight", "layer4.0.conv1.weight", "conv1.0.weight"), resnet),
    # OpenMMLab's ResNet-C and -D.
    Layout(
        ("layer1.0.conv1.weight", "layer4.0.conv1.weight", "stem.0.weight"),
        resnet,
        ((r"^stem\.7\.", "bn1."), (r"^stem\.", "conv1.")),
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
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "storage_tokens"),
        dinov3,
        ((r"^storage_tokens$", "reg_token"),),
    ),
    *(
        Layout(("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", f"{name}.relative_position_bias_table"), beit)
        for name in ("blocks.0.attn", "rel_pos_bias")
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
    ("I-JEPA", (r"(^|\.)target_encoder\.", r"(^|\.)encoder\.", r"(^|\.)predictor\.")),
    ("MSN", (r"(^|\.)target_encoder\.", r"(^|\.)encoder\.", r"(^|\.)prototypes")),
    ("DINOv3", (r"(^|\.)storage_tokens$", r"blocks\.0\.ls1\.gamma")),
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
