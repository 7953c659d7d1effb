"""Networks from elsewhere: checkpoints of other libraries, recognized by their keys, and modules of any kind."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manyviews.backbones.encoder import Encoder
from manyviews.errors import UserError, printable, unknown

# -- what others call their weights --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """The names that a library gives to the weights of a network.

    Attributes:
        landmarks: some names that tell it from all others. They follow a prefix, which is anything.
        infer: timm's name of the architecture, and its settings, from weights in timm's names. Raises KeyError,
            ValueError and the like for what it does not know.
        renames: patterns, and what timm has in their place, in the order in which to replace them.
        library: whose names they are, if only one library has them.
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
"""By whether blocks have three convolutions, and how many blocks there are in each stage."""

_VITS = {
    192: ("tiny", 16, 12, 3),
    384: ("small", 16, 12, 6),
    768: ("base", 16, 12, 12),
    1024: ("large", 16, 24, 16),
    1280: ("huge", 14, 32, 16),
}
"""By width: timm's word, its patch size and depth, and the heads, which weights do not tell."""

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
"""By blocks in each stage, and width."""


def _blocks(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the pattern's group has among the names."""
    return len({m[1] for key in weights if (m := re.match(pattern, key))})


def _resnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
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
    if shortcut is not None and shortcut.ndim == 4:  # after a pool, which has no weights
        settings["avg_down"] = True
    if weights["conv1.weight"].shape[-1] == 3:
        settings["stem"] = "small"
    return name, settings


def _bare_resnet(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    name, settings = _resnet(weights)
    return name, settings | {"stem": "bare"}


def _vit(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    if "norm_pre.weight" in weights:
        raise ValueError("of CLIP there are two, with activations that weights do not tell apart")
    if any(name.startswith("attn_pool.") for name in weights):
        raise ValueError("several architectures pool by attention")
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    usual_width = width if width in _VITS else 192
    word, usual_patch, usual_depth, heads = _VITS[usual_width]
    cls, distilled = "cls_token" in weights, "dist_token" in weights
    registers = next((weights[k].shape[1] for k in ("reg_token", "register_tokens") if k in weights), 0)
    prefix, positions = cls + distilled + registers, weights["pos_embed"].shape[1]
    if "register_tokens" in weights:
        positions -= 1  # DINOv2 has one for the class token, which timm adds to that token
    apart = math.isqrt(positions) ** 2 == positions  # only patches have positions
    side = math.isqrt(positions if apart else positions - prefix)
    if side**2 != positions - prefix * (not apart):
        raise ValueError("the patches make no square")
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


def _convnext(weights: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    depths = tuple(_blocks(weights, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(4))
    second = any(".grn." in key for key in weights)
    return f"convnext{'v2' if second else ''}_{_CONVNEXTS[depths, len(weights['stem.0.weight'])]}", {}


def _stages(*numbers: int) -> tuple[tuple[str, str], ...]:
    """Of a ResNet whose children are numbered: the convolution, its norm, and the stages."""
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    return tuple((rf"^{i}\.", f"{name}.") for i, name in zip(numbers, names, strict=True))


_LAYOUTS = (
    _Layout(
        ("layer1.0.conv1.weight", "layer4.0.conv1.weight", "conv1.weight"),
        _resnet,
        ((r"\.shortcut\.", ".downsample."),),  # of many ResNets for CIFAR
    ),
    # nn.Sequential(*list(resnet.children())[:-1]), of torchvision's ResNet, and of lightly's own, which has no max-pool
    # and whose first activation is a function, and so no child.
    _Layout(("7.0.conv1.weight", "4.0.conv1.weight", "1.weight", "0.weight"), _resnet, _stages(0, 1, 4, 5, 6, 7)),
    _Layout(
        ("5.0.conv1.weight", "2.0.conv1.weight", "1.weight", "0.weight"),
        _bare_resnet,
        (*_stages(0, 1, 2, 3, 4, 5), (r"\.shortcut\.", ".downsample.")),
        "lightly",
    ),
    _Layout(
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        _vit,
        ((r"\.gamma_(\d)$", r".ls\1.gamma"),),  # DeiT III
    ),
    # DINOv2's own training has its blocks in chunks.
    _Layout(
        ("blocks.0.0.attn.qkv.weight", "patch_embed.proj.weight"), _vit, ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
    ),
    _Layout(
        ("encoder.layers.encoder_layer_0.ln_1.weight", "conv_proj.weight"),
        _vit,
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
    _Layout(("stages.0.blocks.0.conv_dw.weight", "stem.0.weight"), _convnext),
    _Layout(
        ("stages.0.0.dwconv.weight", "downsample_layers.0.0.weight"),
        _convnext,
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
    _Layout(
        ("features.1.0.layer_scale", "features.0.0.weight"),
        _convnext,
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

_FAMILIES = (
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
"""Who saved a checkpoint, by patterns that all are found in its keys; the first that fits."""

# Words of a prefix. What a method evaluates comes first; what only helped to train it comes last.
_FIRST = {"ema", "teacher"}
_LAST = {"momentum", "target", "student", "k", "key", "anchor"}

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NO_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "callbacks", "loops", "hyper_parameters", "args", "config")
_NARROW = ("vit_tiny", "vit_small")  # of whose heads there are two opinions
_NAMED = 6  # groups of tensors that a note names


# -- checkpoints ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recognized:
    """An encoder with the weights of a checkpoint.

    Attributes:
        encoder: the same function of images as the network that was saved, less its head.
        family: who saved it ("MoCo v2"); "" where the keys do not tell.
        note: what was taken, left out, resized and missing, in a sentence, without its full stop.
    """

    encoder: Encoder
    family: str
    note: str


def fetch(name: str, **settings: Any) -> Encoder:
    """A timm model with timm's weights, from its cache or the network.

    Args:
        name: of the architecture, or of the architecture and the weights: "vit_small_patch16_224.dino".
        settings: see `Encoder`.

    Raises:
        UserError: no such architecture, no weights of it, or they cannot be had.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{architecture}.*")]
        if not tags:
            raise UserError(f"timm has no weights of {architecture}: `timm.list_pretrained()` shows those it has.")
        if tag and tag not in tags:
            raise unknown(f"set of {architecture}'s weights", tag, tags)
    return Encoder(name, pretrained=True, **settings)


def recognize(found: object, where: str, backbone: str | None = None, **settings: Any) -> Recognized:
    """The encoder in a checkpoint of any library, as it was unpickled.

    Prefixes and the architecture are found by the names and the shapes of the weights. Of several encoders the one is
    taken that its method evaluates: an average of weights (EMA, DINO's teacher) before all others, and an encoder that
    learns before its momentum copy (MoCo, BYOL).

    Args:
        found: tensors by name, or a dict that holds such a dict.
        where: it came from, for messages.
        backbone: timm's name, where the weights do not tell. If they tell of the same, its settings are found too.
        settings: of the architecture, instead of those that were found: see `Encoder`.

    Raises:
        UserError: there are no weights, several encoders, an architecture that is not known, or weights are missing,
            left over or of other shapes. Only positions may be of another size.
    """
    tensors = _tensors(found)
    if not tensors:
        raise UserError(f"{where} does not hold a state dict of tensors.")
    family = next((name for name, signs in _FAMILIES if all(_any(sign, tensors) for sign in signs)), "")
    place, layout = _place(tensors, where)
    if layout is None and backbone is not None:
        place = _alike(tensors, Encoder(backbone, **settings))
    family = family or (layout.library if layout else "")
    weights = {k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)}
    for pattern, ours in layout.renames if layout else ():
        weights = {re.sub(pattern, ours, k): v for k, v in weights.items()}
    encoder = _fitting(weights, layout, family, where, backbone, settings)
    resized = _load(encoder, weights, where)

    own = _own(encoder)
    left = Counter(_part(k, place) for k in tensors if not k.startswith(place))
    left += Counter(k.partition(".")[0] for k in weights if k not in own and k != "register_tokens")
    taken = place.removeprefix("state_dict.") if isinstance(found, Mapping) and "state_dict" in found else place
    notes = [f"took {f'{printable(taken, 60)!r}' if taken else 'its weights'} as {_words(encoder)}", _listed(left)]
    if encoder.spec["stem"] == "small":
        notes.append("its first convolution was assumed to have stride 1, and no max-pool after it")
    if encoder.spec["stem"] == "bare":
        notes.append(
            "its first convolution has no activation after it, as lightly's in a Sequential; stem='small' has one"
        )
    if encoder.spec["stem"] == "padded":
        notes.append("its first convolution was assumed to have a padding of 2, as solo-learn's; stem='small' has 1")
    if not family and encoder.name.startswith(_NARROW) and _sines(weights):
        heads = f"its {encoder.model.blocks[0].attn.num_heads} heads were assumed"
        notes.append(f"{heads}; those of MoCo v3 and solo-learn have 12: num_heads says so")
    notes += [*resized, "nothing was missing"]
    note = "; ".join(notes)
    return Recognized(encoder, family, f"{family} checkpoint: {note}" if family else note[0].upper() + note[1:])


def _tensors(found: object) -> dict[str, Tensor]:
    """All plain tensors in dicts in dicts, by their path, but for those that are no weights."""
    tensors: dict[str, Tensor] = {}
    todo, seen = [("", found)], set[int]()
    while todo:
        path, value = todo.pop()
        if isinstance(value, Tensor) and path:
            if value.layout is torch.strided and not (value.is_meta or value.is_quantized):
                tensors[_WRAPPERS.sub("", path)] = value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen and not path.startswith(_NO_WEIGHTS):
            seen.add(id(value))  # dicts may hold themselves
            todo += [(f"{path}.{k}" if path else str(k), v) for k, v in reversed(list(value.items()))]
    return tensors


def _any(pattern: str, keys: Mapping[str, Tensor]) -> bool:
    return any(re.search(pattern, key) for key in keys)


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    return 0 if words & _FIRST else 2 if words & _LAST else 1


def _place(tensors: Mapping[str, Tensor], where: str) -> tuple[str, _Layout | None]:
    """The prefix of the encoder to take, and its layout."""
    places: dict[str, _Layout] = {}
    for layout in _LAYOUTS:
        for key in tensors:
            place = key.removesuffix(layout.landmarks[0])
            begins = place != key and (not place or place.endswith("."))
            if begins and all(place + landmark in tensors for landmark in layout.landmarks):
                places.setdefault(place, layout)
    if not places:
        return "", None
    best = min(map(_rank, places))
    first, *others = sorted((place for place in places if _rank(place) == best), key=len)
    layout = places[first]

    def copied(place: str) -> bool:
        pairs = ((tensors[first + k], tensors[place + k]) for k in layout.landmarks)
        return places[place] is layout and all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    if not all(map(copied, others)):
        names = ", ".join(f"'{printable(place, 60)}'" for place in (first, *others))
        raise UserError(f"{where} holds several encoders ({names}): save the state dict of one of them alone.")
    return first, layout


def _alike(tensors: Mapping[str, Tensor], encoder: Encoder) -> str:
    """The prefix under which there are most of the encoder's names; of equals, see `_rank`."""
    ours = _own(encoder)
    ends = {k.removesuffix(name) for name in list(ours)[:1] for k in tensors if k.endswith(name)}
    places = sorted((p for p in ends if not p or p.endswith(".")), key=lambda p: (_rank(p), len(p)))
    return max(places, key=lambda p: sum(p + name in tensors for name in ours), default="")


def _fitting(
    weights: Mapping[str, Tensor],
    layout: _Layout | None,
    family: str,
    where: str,
    backbone: str | None,
    settings: Mapping[str, Any],
) -> Encoder:
    """An encoder of the architecture that is given, or else of the one that the weights tell."""
    name, inferred = None, dict[str, Any]()
    try:
        if layout is not None:
            name, inferred = layout.infer(weights)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        pass  # a network of other parts
    if backbone is not None and backbone != name:
        return Encoder(backbone, **settings)
    if name is None:
        raise UserError(f"{where} does not say which architecture it is of: give its timm name as --backbone.")
    if "embed_dim" in inferred and "num_heads" not in settings:
        raise UserError(
            f"{where} holds a vision transformer that is {inferred['embed_dim']} wide, and weights do not tell how "
            "many heads it has: give num_heads."
        )
    if name.startswith(_NARROW) and (family == "MoCo v3" or (family == "solo-learn" and _sines(weights))):
        inferred["num_heads"] = 12  # in solo-learn MAE's too; all others have heads of 64 dimensions
    if family == "solo-learn" and inferred.get("stem") == "small":
        inferred["stem"] = "padded"
    return Encoder(name, **inferred | dict(settings))


def _sines(weights: Mapping[str, Tensor]) -> bool:
    """Whether positions are fixed sines and cosines, as MoCo v3's and MAE's: the class token has none."""
    positions = weights.get("pos_embed")
    return positions is not None and positions.ndim == 3 and not positions[:, :1].any()


def _own(encoder: Encoder) -> dict[str, Tensor]:
    return encoder.model.state_dict()


def _load(encoder: Encoder, weights: Mapping[str, Tensor], where: str) -> list[str]:
    """Load what the encoder has of these weights, which have timm's names; what was resized, in words."""
    from timm.models import vision_transformer

    ours, theirs, notes = _own(encoder), dict(weights), []
    patches = theirs.get("patch_embed.proj.weight")
    if isinstance(encoder.model, vision_transformer.VisionTransformer) and patches is not None:
        registers = "register_tokens" in theirs
        if registers:
            theirs.setdefault("mask_token", patches)  # by which timm knows DINOv2
        try:
            theirs = vision_transformer.checkpoint_filter_fn(theirs, encoder.model)
            before, after = (w["pos_embed"].shape[1] if "pos_embed" in w else 0 for w in (weights, theirs))
        except Exception as e:  # whatever odd shapes make it raise
            raise UserError(f"{where} is not of {encoder.name}, or of other settings ({printable(e, 100)}).") from None
        if patches.ndim == 4:
            theirs["patch_embed.proj.weight"] = patches  # timm would resize them too
        if before - registers != after:
            notes.append(f"resized the positions from {before - registers} to {after}")
    for k, v in theirs.items():
        if k in ours and v.shape != ours[k].shape and v.squeeze().shape == ours[k].squeeze().shape:
            theirs[k] = v.reshape(ours[k].shape)  # a linear layer as a 1x1 convolution, and the like
    # PyTorch before 0.4.1 did not count batches, and nothing depends on their number.
    theirs = {k: v for k, v in ours.items() if k.endswith(".num_batches_tracked")} | theirs
    parts = {k.partition(".")[0] for k in ours}
    kept = {k: v for k, v in theirs.items() if k in ours or k.partition(".")[0] in parts}
    missing = [k for k in ours if k not in kept]
    fits = all(k in ours and ours[k].shape == v.shape for k, v in kept.items())
    if fits and 0 < len(missing) < len(ours) / 2:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(ours)} weights of {encoder.name}, such as "
            f"{', '.join(missing[:3])}: it is incomplete, or of another architecture."
        )
    encoder.load_weights(kept)
    return notes


def _part(key: str, place: str) -> str:
    """The first word by which a name differs from where the encoder is."""
    names, places = key.split("."), place.split(".")[:-1]
    shared = 0
    while shared < min(len(names) - 1, len(places)) and names[shared] == places[shared]:
        shared += 1
    return names[shared]


def _listed(left: Counter[str]) -> str:
    if not left:
        return "left out nothing"
    most = left.most_common(_NAMED)
    words = [f"{printable(part, 40)} {count}" for part, count in most]
    if len(left) > len(most):
        words.append(f"others {left.total() - sum(count for _, count in most)}")
    return f"left out {left.total()} tensor{'s' * (left.total() > 1)} ({', '.join(words)})"


def _words(encoder: Encoder) -> str:
    usual = {"name": encoder.name, "stem": "native", "position": "learned"}
    settings = [f"{k}={v}" for k, v in encoder.spec.items() if usual.get(k) != v]
    return encoder.name + (f" with {', '.join(settings)}" if settings else "")


# -- modules -------------------------------------------------------------------------------------------------------

_M = TypeVar("_M", bound=nn.Module)


class ExternalEncoder(nn.Module):
    """A network of any kind as an encoder: `b 3 s s` to `b embed_dim`.

    What it gives is taken as it is if it is `b d`, averaged over places if it is `b d h w`, and of tokens, `b n d`, the
    first is taken. The module is not copied: it goes where its encoder goes.

    Args:
        module: gives one tensor of floats.
        size: side of the images it is tried with, pixels.

    Attributes:
        module: as given.
        name: of its class.
        embed_dim: dimensions of the features, which a first look at images of noise has shown.

    Raises:
        UserError: it does not take such images, or gives something else.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module = module
        self.name = type(module).__name__
        modes = [(m, m.training) for m in module.modules()]
        device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        try:
            module.eval()
            noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                found = self(noise.to(device))
        except UserError:
            raise
        except Exception as e:  # anybody's code raises anything
            why = printable(e, 120) or type(e).__name__
            raise UserError(f"{self.name} cannot take images of {size} pixels ({why}): give another test_size.") from e
        finally:
            for part, training in modes:
                part.training = training
        if len(found) != 2 or not found.is_floating_point() or not found.shape[1]:
            raise UserError(
                f"{self.name} gives {tuple(found.shape)} of {found.dtype} for 2 images: it must give a row of floats "
                "for each image."
            )
        self.embed_dim: int = found.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b 3 s s` to `b embed_dim`."""
        found = self.module(x)
        if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4):
            what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UserError(
                f"{self.name} gives {what}: wrap it in a module that gives features as one tensor, b d, b d h w or "
                "b n d."
            )
        return found.mean((2, 3)) if found.ndim == 4 else found[:, 0] if found.ndim == 3 else found


# What parameters that belong to no layer begin with. Tokens and positions: Dosovitskiy et al. 2021. Scales of channels
# at one, which leaves the network as it is without them.
_BARE: tuple[tuple[str, Callable[[Tensor], object]], ...] = (
    (r"token|pos_?emb|position", lambda p: nn.init.trunc_normal_(p, std=0.02)),
    (r"gamma|scale", nn.init.ones_),
)


def reinitialized(module: _M, seed: int) -> _M:
    """A copy of a module with fresh weights; the module itself and the global random state stay as they are.

    Every submodule begins as its `reset_parameters` makes it, which may be at another scale than what its network chose
    when it was built; models of timm with `init_weights`, such as its ResNets, begin as they do there. Tokens and
    positions begin with noise of standard deviation 0.02, scales of channels with one. Buffers that no
    `reset_parameters` sets stay as they are.

    Raises:
        UserError: it cannot be copied, or holds parameters which nothing tells how to begin with.
    """
    no = f"There can be no untrained {type(module).__name__} to compare with"
    try:
        fresh = copy.deepcopy(module).cpu()  # the same baseline, wherever the module lies
    except Exception as e:
        raise UserError(f"{no}, for it cannot be copied ({printable(e, 120)}).") from e
    floats = {k: p for k, p in fresh.named_parameters() if p.is_floating_point()}
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for p in floats.values():
            p.fill_(math.nan)  # which is how those are found that nobody sets
        for part in reversed(list(fresh.modules())):  # what holds others goes after them, as in constructors
            for name in ("reset_parameters", "_reset_parameters", "init_weights"):
                begin = getattr(part, name, None)
                # Elsewhere `init_weights` may also load trained ones.
                if not callable(begin) or (name == "init_weights" and not type(part).__module__.startswith("timm.")):
                    continue
                try:
                    begin()
                except Exception as e:
                    raise UserError(f"{no}: its {type(part).__name__}.{name} fails ({printable(e, 120)}).") from e
        for k, p in floats.items():
            start = next((start for pattern, start in _BARE if re.search(pattern, k)), None)
            if p.isnan().any() and start is not None:
                start(p)
    unset = [k for k, p in floats.items() if p.isnan().any()]
    if unset:
        raise UserError(f"{no}, for nothing tells how {', '.join(unset[:3])} began: give it a reset_parameters().")
    return fresh
