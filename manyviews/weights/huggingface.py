"""Folders of the Hugging Face Hub: weights beside a config.json, from transformers or timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manyviews.errors import UserError, from_json, printable

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The usual names of files of weights."""
_INDEX = ".index.json"

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""timm's names of transformers' activations."""


@dataclass(frozen=True)
class Described:
    """What the files beside the weights say.

    Attributes:
        name: timm's name of the architecture, for timm's folders; "" for transformers', whose weights tell it.
        settings: settings of the architecture that the weights do not tell: see `manyviews.backbones.Encoder`.
        images: those of "mean", "std" and "test_size" that are known.
        notes: parts of a sentence about what was taken from where.
    """

    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def files(folder: Path) -> list[Path]:
    """The files of weights in a folder, all shards of them; [] if it holds none under their usual names.

    Raises:
        UserError: an index of shards is damaged, or names files that are not there.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / (name + _INDEX)
        if index.is_file():
            named = _json(index).get("weight_map")
            shards = sorted({str(v) for v in named.values()} if isinstance(named, dict) else ())
            paths = [folder / shard for shard in shards]
            there = {path.name for path in folder.iterdir() if path.is_file()}
            missing = [path for shard, path in zip(shards, paths, strict=True) if shard not in there]
            if missing or not paths:
                which = printable(missing[0].name, 60) if missing else "any file"
                raise UserError(f"{index} names {len(paths)} files of weights, and {which} is not in the folder.")
            return paths
    return []


def describe(folder: Path, names: Sequence[str]) -> Described:
    """What config.json and preprocessor_config.json beside weights say.

    Args:
        folder: where the files are.
        names: of the files of weights. Descriptions belong to files under the usual names alone.

    Raises:
        UserError: a file is no JSON object, or describes a network that timm cannot compute.
    """
    if names != [path.name for path in files(folder)] and not set(names) <= set(WEIGHTS):
        return Described()
    config, images = folder / CONFIG, folder / PREPROCESSOR
    found = _json(config) if config.is_file() else {}
    shown = _json(images) if images.is_file() else {}
    try:
        if "architecture" in found and "model_type" not in found:
            return _timms(found)
        kind = found.get("model_type")
        settings = _SETTINGS[kind](found) if kind in _SETTINGS else {}
        seen = _seen(shown)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
        raise UserError(f"{folder} holds a {CONFIG} or {PREPROCESSOR} that cannot be understood ({e!r}).") from None
    notes = [f"{CONFIG} says {kind}"] if kind in _SETTINGS else []
    if seen:
        notes.append(f"{PREPROCESSOR} gives {', '.join(sorted(seen)).replace('test_size', 'the size')}")
    return Described("", settings, seen, tuple(notes))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as JSON ({printable(e, 100)}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return found


def _timms(config: Mapping[str, Any]) -> Described:
    """A folder of timm's, or of this library's."""
    cfg = config.get("pretrained_cfg") or config
    settings = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    images: dict[str, Any] = {k: tuple(map(float, cfg[k])) for k in ("mean", "std") if k in cfg}
    if "input_size" in cfg:
        images["test_size"] = int(cfg["input_size"][-1])
    notes = (f"{CONFIG} says timm's {printable(config['architecture'], 60)}",)
    return Described(str(config["architecture"]), settings, images, notes)


def _seen(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The mean, the standard deviation and the size of images that an image processor makes."""
    found: dict[str, Any] = {}
    scale = shown.get("rescale_factor", 1 / 255)
    if not shown.get("do_rescale", True) or abs(255 * scale - 1) > 0.01:
        raise ValueError(f"pixels are scaled by {scale if shown.get('do_rescale', True) else 1}, not by 1/255")
    if not shown.get("do_normalize", True):
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in shown and "image_std" in shown:
        found |= {"mean": tuple(map(float, shown["image_mean"])), "std": tuple(map(float, shown["image_std"]))}
    size = shown["crop_size"] if shown.get("do_center_crop") and "crop_size" in shown else shown.get("size")
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    if size is not None:
        found["test_size"] = int(size)
    return found


def _act(config: Mapping[str, Any], known: bool = True, usual: str = "gelu") -> dict[str, str]:
    """timm's setting for an activation, none for the `usual` one; `known`: timm has such a setting."""
    name = config.get("hidden_act", "gelu")
    timms = "" if name == usual else _ACTIVATIONS.get(name)
    if timms is None or (timms and not known):
        raise UserError(f"timm has no {config['model_type']} with the activation '{printable(name, 40)}'.")
    return {"act_layer": timms} if timms else {}


def _side(config: Mapping[str, Any]) -> int:
    size = config["image_size"]
    return int(size if isinstance(size, int) else size[0])


def _eps(config: Mapping[str, Any], usual: float, timms: float, norm: str = "") -> dict[str, Any]:
    """Our setting for another epsilon of the layer norms than timm's; of one of them alone if it is named."""
    eps = float(config.get("layer_norm_eps", usual))
    return {} if eps == timms else {"norm_eps": (norm, eps) if norm else eps}


def _vit(config: Mapping[str, Any]) -> dict[str, Any]:
    usual = 1e-6 if config["model_type"].startswith(("dinov2", "ijepa")) else 1e-12
    act = {} if config.get("use_swiglu_ffn") else _act(config)
    return {"num_heads": int(config["num_attention_heads"]), **act, **_eps(config, usual, 1e-6)}


def _dinov3(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {"num_heads": int(config["num_attention_heads"]), **_eps(config, 1e-5, 1e-5)}
    _act(config, known=False, usual="silu" if config.get("use_gated_mlp") else "gelu")
    if float(config.get("rope_theta", 100)) != 100:
        found["rope_temperature"] = float(config["rope_theta"])
    if "image_size" in config:
        found["img_size"] = _side(config)
    return found


def _beit(config: Mapping[str, Any]) -> dict[str, Any]:
    _act(config, known=False)
    pooled = {} if config.get("use_mean_pooling", True) else {"global_pool": "token"}
    return {"num_heads": int(config["num_attention_heads"]), **pooled, **_eps(config, 1e-12, 1e-6)}


def _swin(config: Mapping[str, Any]) -> dict[str, Any]:
    _act(config, known=False)
    if config.get("use_absolute_embeddings"):
        raise UserError("timm has no Swin with absolute positions.")
    return {"img_size": _side(config), **_eps(config, 1e-5, 1e-5)}


def _convnext(config: Mapping[str, Any]) -> dict[str, Any]:
    # Only the last norm has the epsilon of the configuration: transformers' ConvNextLayerNorm has 1e-6.
    return {**_act(config), **_eps(config, 1e-12, 1e-6, "head.norm")}


def _clip(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("vision_config", config)
    act = {"act_layer": "gelu", **_act({"model_type": "clip", "hidden_act": "quick_gelu", **vision})}
    heads = int(vision.get("num_attention_heads", 12))
    return {"num_heads": heads, **act, **_eps(vision, 1e-5, 1e-5)}


def _resnet(config: Mapping[str, Any]) -> dict[str, Any]:
    for key, good in (("downsample_in_bottleneck", False), ("downsample_in_first_stage", False)):
        if config.get(key, good) != good:
            raise UserError(f"timm has no ResNet with {key}={config[key]}.")
    act = config.get("hidden_act", "relu")
    return {} if act == "relu" else {"act_layer": _ACTIVATIONS[act]}


_SETTINGS: dict[object, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(("vit", "deit", "vit_mae", "vit_msn", "ijepa", "dinov2", "dinov2_with_registers"), _vit),
    "dinov3_vit": _dinov3,
    "dinov3_convnext": _convnext,
    **dict.fromkeys(("beit", "data2vec-vision"), _beit),
    "swin": _swin,
    **dict.fromkeys(("convnext", "convnextv2"), _convnext),
    "resnet": _resnet,
    **dict.fromkeys(("clip", "clip_vision_model"), _clip),
}
"""By transformers' name of the kind of model: the settings that its configuration tells and its weights do not."""
