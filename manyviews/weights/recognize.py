"""Checkpoints of other libraries, recognized by their keys, and timm's own weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.errors import UserError, printable, unknown
from manyviews.weights.layouts import FAMILIES, LAYOUTS, Layout

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


def recognize(found: object, where: str, backbone: str | None = None, **settings: Any) -> Recognized:
    """The encoder in an unpickled checkpoint of any library.

    The names and shapes of the weights tell the prefix and the architecture. If there are several encoders, the one
    that the method evaluates is taken: an average of weights (EMA, DINO's teacher) before all others, and an encoder
    that learns before its momentum copy (MoCo, BYOL).

    Args:
        found: tensors by name, or dicts that hold such a dict at any depth.
        where: the file's name, for messages.
        backbone: timm's name of the architecture, if the weights do not tell it. If they tell the same one, their
            settings are used too.
        settings: settings of the architecture, which replace those found: see `Encoder`.

    Raises:
        UserError: there are no weights, several different encoders, or an unknown architecture; or weights are missing,
            left over, or of another shape. Only positions are resized.
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
    for pattern, ours in layout.renames if layout else ():
        weights = {re.sub(pattern, ours, k): v for k, v in weights.items()}
    encoder = _fitting(weights, layout, family, where, backbone, settings)
    resized = _load(encoder, weights, where)

    own = encoder.model.state_dict()
    left = Counter(_part(k, place) for k in tensors if not k.startswith(place))
    left += Counter(k.partition(".")[0] for k in weights if k not in own and k != "register_tokens")
    taken = place.removeprefix("state_dict.") if isinstance(found, Mapping) and "state_dict" in found else place
    notes = [f"took {f'{printable(taken, 60)!r}' if taken else 'its weights'} as {_words(encoder)}", _listed(left)]
    if encoder.spec["stem"] in _STEMS:
        notes.append(f"its first convolution {_STEMS[encoder.spec['stem']]}")
    if not family and encoder.name.startswith(_NARROW) and _sines(weights):
        heads = f"its {encoder.model.blocks[0].attn.num_heads} heads were assumed"
        notes.append(f"{heads}; those of MoCo v3 and solo-learn have 12: num_heads says so")
    notes += [*resized, "nothing was missing"]
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
                tensors[_WRAPPERS.sub("", path)] = value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen and not path.startswith(_NO_WEIGHTS):
            seen.add(id(value))  # a dict may hold itself
            todo += [(f"{path}.{k}" if path else str(k), v) for k, v in reversed(list(value.items()))]
    return tensors


def _any(pattern: str, keys: Mapping[str, Tensor]) -> bool:
    return any(re.search(pattern, key) for key in keys)


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    return 0 if words & _FIRST else 2 if words & _LAST else 1


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
    """The prefix with the most names of the encoder under it; `_rank` decides between equals."""
    ours = encoder.model.state_dict()
    ends = {k.removesuffix(name) for name in list(ours)[:1] for k in tensors if k.endswith(name)}
    places = sorted((p for p in ends if not p or p.endswith(".")), key=lambda p: (_rank(p), len(p)))
    return max(places, key=lambda p: sum(p + name in tensors for name in ours), default="")


def _fitting(
    weights: Mapping[str, Tensor],
    layout: Layout | None,
    family: str,
    where: str,
    backbone: str | None,
    settings: Mapping[str, Any],
) -> Encoder:
    """An encoder of the given architecture, else of the one that the weights tell."""
    name, inferred = None, dict[str, Any]()
    try:
        if layout is not None:
            name, inferred = layout.infer(weights)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        pass  # another network
    if backbone is not None and backbone != name:
        return Encoder(backbone, **settings)
    if name is None:
        raise UserError(f"{where} does not say which architecture it has: give its timm name as --backbone.")
    if "embed_dim" in inferred and "num_heads" not in settings:
        raise UserError(
            f"{where} holds a vision transformer of width {inferred['embed_dim']}, and the weights do not tell how "
            "many heads it has: give num_heads."
        )
    if name.startswith(_NARROW) and (family == "MoCo v3" or (family == "solo-learn" and _sines(weights))):
        inferred["num_heads"] = 12  # solo-learn's MAE too; all other heads have 64 dimensions
    if family == "solo-learn" and inferred.get("stem") == "small":
        inferred["stem"] = "padded"
    return Encoder(name, **inferred | dict(settings))


def _sines(weights: Mapping[str, Tensor]) -> bool:
    """Whether positions are fixed sines and cosines, as in MoCo v3 and MAE: the class token's is zero."""
    positions = weights.get("pos_embed")
    return positions is not None and positions.ndim == 3 and not positions[:, :1].any()


def _load(encoder: Encoder, weights: Mapping[str, Tensor], where: str) -> list[str]:
    """Load those of the weights, in timm's names, that the encoder has. Returns sentences about resized ones."""
    from timm.models import vision_transformer

    ours, theirs, notes = encoder.model.state_dict(), dict(weights), []
    patches = theirs.get("patch_embed.proj.weight")
    if isinstance(encoder.model, vision_transformer.VisionTransformer) and patches is not None:
        registers = "register_tokens" in theirs
        if registers:
            theirs.setdefault("mask_token", patches)  # tells timm that it is DINOv2
        try:
            theirs = vision_transformer.checkpoint_filter_fn(theirs, encoder.model)
            before, after = (w["pos_embed"].shape[1] if "pos_embed" in w else 0 for w in (weights, theirs))
        except Exception as e:  # odd shapes make it raise anything
            why = printable(e, 100)
            raise UserError(f"{where} does not hold {encoder.name}, or with other settings ({why}).") from None
        if patches.ndim == 4:
            theirs["patch_embed.proj.weight"] = patches  # timm would resize them too
        if before - registers != after:
            notes.append(f"resized the positions from {before - registers} to {after}")
    for k, v in theirs.items():
        if k in ours and v.shape != ours[k].shape and v.squeeze().shape == ours[k].squeeze().shape:
            theirs[k] = v.reshape(ours[k].shape)  # a linear layer as a 1x1 convolution, and the like
    # PyTorch before 0.4.1 did not count batches. No result depends on the count.
    theirs = {k: v for k, v in ours.items() if k.endswith(".num_batches_tracked")} | theirs
    parts = {k.partition(".")[0] for k in ours}
    kept = {k: v for k, v in theirs.items() if k in ours or k.partition(".")[0] in parts}
    missing = [k for k in ours if k not in kept]
    fits = all(k in ours and ours[k].shape == v.shape for k, v in kept.items())
    if fits and 0 < len(missing) < len(ours) / 2:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(ours)} weights of {encoder.name}, such as "
            f"{', '.join(missing[:3])}: it is incomplete, or has another architecture."
        )
    encoder.load_weights(kept)
    return notes


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
