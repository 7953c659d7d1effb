"""Checkpoints of other libraries, recognized by their keys, and timm's own weights."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.errors import UserError, printable, unknown
from manyviews.weights.layouts import FAMILIES, LAYOUTS, Ambiguous, Layout, clip

# Words in the prefix of an encoder. What a method evaluates comes first; what only helps to train it comes last.
_FIRST = {"ema", "teacher"}
_LAST = {"momentum", "target", "student", "k", "key", "anchor"}

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NO_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "callbacks", "loops", "hyper_parameters", "args", "config")
_NARROW = ("vit_tiny", "vit_small")  # libraries disagree on how many heads these have
_STEMS = {
    "small": "was assumed to have stride 1, and no max-pool after it",
    "bare": "has no activation after it, as in lightly's Sequential; stem='small' has one",
    "padded": "was assumed to have a padding of 2, as in solo-learn; stem='small' has 1",
}
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_NAMED = 6  # groups of tensors that a note names


@dataclass(frozen=True)
class Recognized:
    """An encoder with the weights of a checkpoint.

    Attributes:
        encoder: computes the same function of images as the saved network without its head.
        family: who saved the checkpoint ("MoCo v2"); "" where the keys do not tell.
        note: one sentence without its full stop: the tensors taken, left out, resized and missing.
    """

    encoder: Encoder
    family: str
    note: str


def fetch(name: str, **settings: Any) -> Encoder:
    """A timm model with timm's weights, from its cache or the network.

    Args:
        name: timm's name of the architecture, "resnet50", or of its weights, "vit_small_patch16_224.dino".
        settings: see `Encoder`.

    Raises:
        UserError: timm has no such architecture or no weights for it, or the weights cannot be downloaded.
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


def recognize(
    found: object,
    where: str,
    backbone: str | None = None,
    described: Mapping[str, Any] = _NOTHING,
    told: bool = False,
    **settings: Any,
) -> Recognized:
    """The encoder in an unpickled checkpoint of any library.

    The names and shapes of the weights tell the prefix and the architecture. If there are several encoders, the one
    that the method evaluates is taken: an average of weights (EMA, DINO's teacher, the target encoder of I-JEPA and
    MSN) before all others, and an encoder that learns before its momentum copy (MoCo, BYOL).

    Args:
        found: tensors by name, or dicts that hold such a dict at any depth.
        where: the file's name, for messages.
        backbone: timm's name of the architecture, if the weights do not tell it. If they tell the same one, their
            settings are used too.
        described: settings of the architecture that a description beside the weights tells. They replace those found
            in the weights.
        told: `backbone` and `settings` are the whole architecture, so nothing is taken from the weights.
        settings: settings of the architecture, which replace both: see `Encoder`.

    Raises:
        UserError: there are no weights, several different encoders, or an unknown architecture; or weights are missing,
            left over, or of another shape. Only positions are resized, and only weights for RGB are adapted to another
            number of channels.
    """
    tensors = _tensors(found)
    if not tensors:
        raise UserError(f"{where} does not hold a state dict of tensors.")
    family = next((name for name, signs in FAMILIES if all(_any(sign, tensors) for sign in signs)), "")
    place, layout = _place(tensors, where)
    if layout is None and backbone is not None:
        place = _alike(tensors, Encoder(backbone, **settings))
    family = family or (layout.library if layout else "")
    weights = {k.removeprefix(place): v for k, v in tensors.items() if k.startswith(place)}
    beside = _beside(tensors, place, layout)
    weights |= {name: tensors[k] for k, name in beside.items()}
    renamed = layout.rename(weights) if layout else weights
    if told and backbone is not None:
        encoder = Encoder.from_spec({"name": backbone, **settings})
    else:
        encoder = _fitting(renamed, layout, family, where, backbone, {**described, **settings}, settings)
    loaded = _load(encoder, _conversions(encoder, weights, renamed, layout, place), weights, where)

    left = Counter(_part(k, place) for k in tensors if not k.startswith(place) and k not in beside)
    left += Counter(k.partition(".")[0] for k in loaded.unused)
    taken = place.removeprefix("state_dict.") if isinstance(found, Mapping) and "state_dict" in found else place
    notes = [f"took {f'{printable(taken, 60)!r}' if taken else 'its weights'} as {_words(encoder)}", _listed(left)]
    if encoder.spec["stem"] in _STEMS:
        notes.append(f"its first convolution {_STEMS[encoder.spec['stem']]}")
    if not family and encoder.name.startswith(_NARROW) and _sines(renamed):
        heads = f"its {encoder.model.blocks[0].attn.num_heads} heads were assumed"
        notes.append(f"{heads}; those of MoCo v3 and solo-learn have 12: num_heads says so")
    notes += [*loaded.notes, "nothing was missing"]
    note = "; ".join(notes)
    return Recognized(encoder, family, f"{family} checkpoint: {note}" if family else note[0].upper() + note[1:])


def _tensors(found: object) -> dict[str, Tensor]:
    """All plain tensors in nested dicts, by their path, except for the state of optimizers and the like."""
    tensors: dict[str, Tensor] = {}
    todo, seen = [("", found)], set[int]()
    while todo:
        path, value = todo.pop()
        if isinstance(value, Tensor) and path:
            if value.layout is torch.strided and not (value.is_meta or value.is_quantized):
                if value.nbytes > 100 * value.untyped_storage().nbytes() + 2**26:
                    raise UserError(
                        f"The tensor {printable(path, 60)} repeats few numbers to {value.nbytes / 1e9:.1f} GB: save it "
                        "as it is used, with .contiguous()."
                    )
                tensors[_WRAPPERS.sub("", path)] = value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen and not path.startswith(_NO_WEIGHTS):
            seen.add(id(value))  # a dict may hold itself
            todo += [(f"{path}.{k}" if path else str(k), v) for k, v in reversed(list(value.items()))]
    return tensors


def _any(pattern: str, keys: Mapping[str, Tensor]) -> bool:
    return any(re.search(pattern, key) for key in keys)


def _rank(prefix: str, tensors: Mapping[str, Tensor]) -> int:
    if _joint(prefix, tensors):
        return 0
    words = set(re.split(r"[._]", prefix))
    return 0 if words & _FIRST else 2 if words & _LAST else 1


def _joint(prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an encoder is the target encoder of a joint-embedding architecture, which its paper evaluates.

    I-JEPA (Assran et al. 2023, appendix A.1) and MSN (Assran et al. 2022) save it beside the encoder that learns and
    the predictor or the prototypes. BYOL also has a target and a predictor, and evaluates the other encoder; only BYOL
    has projections.
    """
    before, target, _ = prefix.partition("target_encoder.")
    if not target or (before and not before.endswith(".")):
        return False
    beside = {k.removeprefix(before).partition(".")[0] for k in tensors if k.startswith(before)}
    return (
        not beside.isdisjoint({"encoder", "context_encoder"})
        and not beside.isdisjoint({"predictor", "prototypes"})
        and not _any(r"(^|\.|_)project(or|ion)", tensors)
    )


def _place(tensors: Mapping[str, Tensor], where: str) -> tuple[str, Layout | None]:
    """The prefix of the encoder to take, and its layout; ("", None) if no layout matches."""
    places: dict[str, Layout] = {}
    for layout in LAYOUTS:
        for key in tensors:
            place = key.removesuffix(layout.landmarks[0])
            begins = place != key and (not place or place.endswith("."))
            if begins and all(place + landmark in tensors for landmark in layout.landmarks):
                places.setdefault(place, layout)
    if not places:
        return "", None
    best = min(_rank(place, tensors) for place in places)
    first, *others = sorted((place for place in places if _rank(place, tensors) == best), key=len)
    layout = places[first]

    def copied(place: str) -> bool:
        pairs = ((tensors[first + k], tensors[place + k]) for k in layout.landmarks)
        return places[place] is layout and all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    if not all(map(copied, others)):
        names = ", ".join(f"'{printable(place, 60)}'" for place in (first, *others))
        raise UserError(f"{where} holds several encoders ({names}): save the state dict of one of them alone.")
    return first, layout


def _beside(tensors: Mapping[str, Tensor], place: str, layout: Layout | None) -> dict[str, str]:
    """Names of the encoder's weights that lie beside its prefix, with their names under it."""
    before = place.removesuffix(".").rpartition(".")
    parent = f"{before[0]}." if before[0] else ""
    if layout is None or not layout.beside or not place:
        return {}
    found = {k: k.removeprefix(parent) for k in tensors if k.startswith(parent + layout.beside)}
    return {k: name for k, name in found.items() if place + name not in tensors}


def _alike(tensors: Mapping[str, Tensor], encoder: Encoder) -> str:
    """The prefix with the most names of the encoder under it; `_rank` decides between equals."""
    ours = encoder.model.state_dict()
    ends = {k.removesuffix(name) for name in list(ours)[:1] for k in tensors if k.endswith(name)}
    places = sorted((p for p in ends if not p or p.endswith(".")), key=lambda p: (_rank(p, tensors), len(p)))
    return max(places, key=lambda p: sum(p + name in tensors for name in ours), default="")


def _fitting(
    weights: Mapping[str, Tensor],
    layout: Layout | None,
    family: str,
    where: str,
    backbone: str | None,
    described: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Encoder:
    """An encoder of the given architecture, else of the one that the weights tell.

    Args:
        described: settings beside the weights and the caller's; used unless the caller names another architecture.
        settings: the caller's.
    """
    name, inferred, why = None, dict[str, Any](), "does not say which architecture it has: give its timm name as "
    why += "--backbone"
    try:
        if layout is not None:
            name, inferred = layout.infer(weights)
    except Ambiguous as e:
        why = f"holds {e}"
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        pass  # another network
    if backbone is not None and backbone != name:
        return Encoder(backbone, **_channels(backbone, weights) | dict(settings))
    if name is None:
        raise UserError(f"{where} {why}.")
    if {**inferred, **described}.get("act_layer", "") is None:
        raise UserError(f"{where} holds {clip(weights)}.")
    if "embed_dim" in inferred and "num_heads" not in {**inferred, **described}:
        raise UserError(
            f"{where} holds a vision transformer of width {inferred['embed_dim']}, and the weights do not tell how "
            "many heads it has: give num_heads."
        )
    if name.startswith(_NARROW) and (family == "MoCo v3" or (family == "solo-learn" and _sines(weights))):
        inferred["num_heads"] = 12  # solo-learn's MAE too; all other heads have 64 dimensions
    if family == "solo-learn" and inferred.get("stem") == "small":
        inferred["stem"] = "padded"
    return Encoder(name, **inferred | _channels(name, weights) | dict(described))


def _channels(name: str, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of channels of the images, if the first convolution is for another one than RGB."""
    import timm

    if not timm.is_model(name):
        return {}
    first = getattr(timm.models.get_pretrained_cfg(name), "first_conv", None) or ()
    for conv in (first,) if isinstance(first, str) else first:
        weight = weights.get(f"{conv}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] > 0:
            return {} if weight.shape[1] == 3 else {"in_chans": weight.shape[1]}
    return {}


def _sines(weights: Mapping[str, Tensor]) -> bool:
    """Whether positions are fixed sines and cosines, as in MoCo v3 and MAE: the class token's is zero."""
    positions = weights.get("pos_embed")
    return positions is not None and positions.ndim == 3 and not positions[:, :1].any()


@dataclass(frozen=True)
class _Loaded:
    """What became of the weights under the encoder's prefix."""

    unused: tuple[str, ...]
    notes: tuple[str, ...]


_Conversion = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Tensors that networks compute anew, or that only training needs.
_COMPUTED = re.compile(
    r"(^|\.)(relative_position_index|relative_coords_table|attn_mask|bias_mask|periods|num_batches_tracked|mask_token)$"
)


def _conversions(
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    renamed: Mapping[str, Tensor],
    layout: Layout | None,
    place: str,
) -> list[_Conversion]:
    """Ways to this network's names: timm's own for its models first, ours next, the names as they are last."""
    import importlib

    filter_fn = getattr(importlib.import_module(type(encoder.model).__module__), "checkpoint_filter_fn", None)
    rename: _Conversion = layout.rename if layout else dict
    found: list[_Conversion] = []
    if filter_fn is not None:
        timms = partial(_quiet, filter_fn, encoder.model)
        found.append(timms)
        if place.endswith("visual."):  # timm knows CLIP's image encoder by this prefix
            found.append(lambda w: timms({f"visual.{k}": v for k, v in w.items()}))
        if "register_tokens" in weights and "patch_embed.proj.weight" in weights:  # a mask token tells timm of DINOv2
            found.append(lambda w: timms({"mask_token": w["patch_embed.proj.weight"], **w}))
        if "mask_token" in weights:
            found.append(lambda w: timms({k: v for k, v in w.items() if k != "mask_token"}))
        found.append(lambda w: timms(rename(w)))
        if "register_tokens" in renamed:
            found.append(lambda w: timms({"mask_token": w[next(iter(w))], **rename(w)}))
        found.append(lambda w: timms({k: v for k, v in rename(w).items() if k != "mask_token"}))
    return [*found, rename, dict]


def _quiet(filter_fn: Callable[..., Any], model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's conversion of a checkpoint, without what it prints and logs. It may raise anything."""
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(filter_fn(dict(weights), model))


def _load(encoder: Encoder, ways: Sequence[_Conversion], weights: Mapping[str, Tensor], where: str) -> _Loaded:
    """Load weights by the first conversion after which all of them fit.

    Raises:
        UserError: none does; the message is about the best of them.
    """
    ours = encoder.model.state_dict()
    best: tuple[int, dict[str, Tensor]] | None = None
    why = ""
    for way in ways:
        try:
            theirs = _shaped(way(dict(weights)), weights, ours, encoder)
            unused = _unused(way, weights, ours)
        except Exception as e:  # odd shapes make the conversions raise anything
            why = why or printable(e, 100) or type(e).__name__
            continue
        parts = {k.partition(".")[0] for k in ours}
        kept = {k: v for k, v in theirs.items() if k in ours or k.partition(".")[0] in parts}
        lost = _lost(unused, weights)
        first = {k for k in encoder.first_convolutions if k in kept and k in ours}
        wrong = [
            k
            for k in {**ours, **_headless(encoder, kept)}
            if k not in ours or k not in kept or (ours[k].shape != kept[k].shape and k not in first)
        ]
        if not wrong and not lost:
            notes = _changes(theirs, weights, ours)
            adapted = encoder.load_weights(kept)
            return _Loaded(tuple(unused), (*notes, *([adapted] if adapted else [])))
        if best is None or len(wrong) + len(lost) < best[0]:
            best = len(wrong) + len(lost), kept | {k: weights[k] for k in lost}
    if best is None:
        raise UserError(f"{where} does not hold {encoder.name}, or with other settings ({why}).")
    kept = best[1]
    missing = [k for k in ours if k not in kept]
    fits = all(k in ours and ours[k].shape == v.shape for k, v in kept.items())
    if fits and 0 < len(missing) < len(ours) / 2:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(ours)} weights of {encoder.name}, such as "
            f"{', '.join(missing[:3])}: it is incomplete, or has another architecture."
        )
    biases = [k for k in kept if k not in ours and re.search(r"\.attn\.(qkv\.bias|[qv]_bias|[qv]_proj\.bias)$", k)]
    if biases and len(biases) == sum(k not in ours for k in kept) and not missing:
        raise UserError(
            f"{where} holds {len(biases)} biases of the attention that {encoder.name} does not have and that are not "
            f"zero: give --backbone {encoder.name.partition('.')[0]}_qkvb, if timm has it."
        )
    encoder.load_weights(kept)
    raise AssertionError("weights that do not fit were loaded")


def _headless(encoder: Encoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without a classifier."""
    heads = encoder.model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {k: v for k, v in weights.items() if k.rpartition(".")[0] not in heads}


def _shaped(
    theirs: dict[str, Tensor], weights: Mapping[str, Tensor], ours: Mapping[str, Tensor], encoder: Encoder
) -> dict[str, Tensor]:
    """Converted weights in the network's shapes where that is only another view of them."""
    convolutions = [v for name, v in weights.items() if v.ndim == 4 or "patch_embed" in name]
    for k in encoder.first_convolutions:
        if k in theirs and theirs[k].numel() not in {v.numel() for v in convolutions}:
            # timm has resized the patches. That gives another network; only positions may be resized.
            theirs[k] = next((v for v in convolutions if len(v) == len(theirs[k])), theirs[k])
    for k, v in theirs.items():
        if k in ours and v.shape != ours[k].shape and v.squeeze().shape == ours[k].squeeze().shape:
            theirs[k] = v.reshape(ours[k].shape)  # a linear layer as a 1x1 convolution, and the like
    # Biases that are zero do nothing: timm has some networks with and without them.
    theirs = {k: v for k, v in theirs.items() if k in ours or not (k.endswith(("q_bias", "v_bias")) and not v.any())}
    # PyTorch before 0.4.1 did not count batches. No result depends on the count.
    return {k: v for k, v in ours.items() if k.endswith(".num_batches_tracked")} | theirs


def _unused(way: _Conversion, weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """The weights that take no part in what is loaded: the conversion is followed by its gradients, without numbers."""
    probes = {k: torch.empty(v.shape, device="meta", requires_grad=True) for k, v in weights.items()}
    with torch.enable_grad():
        found = [v.sum() for k, v in way(dict(probes)).items() if k in ours]
        if not found:
            return list(weights)
        used = torch.autograd.grad(torch.stack(found).sum(), list(probes.values()), allow_unused=True)
    return [k for k, gradient in zip(probes, used, strict=True) if gradient is None]


def _lost(unused: Sequence[str], weights: Mapping[str, Tensor]) -> list[str]:
    """Unused weights from inside the network: conversions must not drop any that are not zero."""
    inside = re.compile(r"(^|\.)(blocks|layers?|stages|layer\d|features|resblocks)\.\d")
    found = [k for k in unused if inside.search(k) and not _COMPUTED.search(k)]
    # DINOv3's biases of keys are masked, whatever their values.
    return [k for k in found if (weights[k] * weights.get(f"{k}_mask", torch.ones(())).nan_to_num()).any()]


_POSITIONS = re.compile(r"(pos_?embed\w*|position\w*embedding\w*|pos_embedding|relative_position_bias_table)$")


def _changes(theirs: Mapping[str, Tensor], weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Sentences about weights that are not as they were saved."""
    notes: list[str] = []
    numbers = {v.numel() for name, v in weights.items() if _POSITIONS.search(name)}
    for k, v in theirs.items():
        # DINOv2 has a position for the class token; timm adds it to that token.
        if k not in ours or not _POSITIONS.search(k) or not numbers.isdisjoint({v.numel(), v.numel() + v.shape[-1]}):
            continue
        kind = "bias_table" if k.endswith("bias_table") else "pos"
        before = next((w for name, w in weights.items() if _POSITIONS.search(name) and kind in name), None)
        axis = 0 if kind == "bias_table" else -2
        notes.append(f"resized the positions from {'?' if before is None else before.shape[axis]} to {v.shape[axis]}")
    if {"fc_norm.weight", "norm.weight"} & ours.keys() == {"fc_norm.weight"} and "norm.weight" in weights:
        notes.append("its norm comes after the pool, as in timm")
    return list(dict.fromkeys(notes))


def _part(key: str, place: str) -> str:
    """The first word of a tensor's name that the encoder's prefix does not share."""
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
