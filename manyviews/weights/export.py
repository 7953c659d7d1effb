"""An encoder to files: tensors under the names of several libraries, folders for the Hub, and programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyviews import __version__, checkpoint
from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.errors import UserError, unknown
from manyviews.evaluation.features import SMALL, short_side
from manyviews.weights import model, programs, segmenter
from manyviews.weights.card import card, run_of
from manyviews.weights.load import Pretrained
from manyviews.weights.model import Model
from manyviews.weights.segmenter import Segmenter


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        notes: sentences about what the format cannot hold, and how to load it.
        difference: the greatest difference between the features of the network and those that the file gives on random
            images, with the software that the file is for; None where the file holds tensors alone.
        scale: the greatest absolute value among these features.
    """

    path: Path
    notes: tuple[str, ...] = ()
    difference: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Format:
    """A way to write an encoder.

    Attributes:
        write: from weights, a path, and whether images may have any size, to what was written.
        about: what it is, and what loads it.
        folder: whether it is a folder.
        sizes: whether it can hold a network for images of any size.
        answers: whether it can hold a model with its head.
    """

    write: Callable[[Pretrained, Path, bool], Exported]
    about: str
    folder: bool = False
    sizes: bool = False
    answers: bool = False


def write(weights: Pretrained, format: str, out: Path, *, dynamic_size: bool = False) -> Exported:
    """Write an encoder to a new file or folder in one of `FORMATS`.

    Args:
        weights: the encoder, and the images that it expects.
        format: a name in `FORMATS`.
        out: where to write.
        dynamic_size: programs take images of any size that the network takes, not of `test_size` alone.

    Raises:
        UserError: an unknown format, a missing package, an encoder that the format cannot hold, or a program whose
            features differ from the network's.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if dynamic_size and not FORMATS[format].sizes:
        able = ", ".join(name for name, found in FORMATS.items() if found.sizes)
        raise UserError(f"--dynamic-size is for {able}: {format} holds no program, or one for images of one size.")
    _own(weights)
    if isinstance(weights, Segmenter) and format == "timm":
        raise UserError("timm has no place for a head that segments: export to onnx, torch_export or torch.")
    if isinstance(weights, Model | Segmenter) and not FORMATS[format].answers:
        able = ", ".join(name for name, found in FORMATS.items() if found.answers)
        raise UserError(f"{format} holds an encoder without a classifier: a model is written as {able}.")
    return FORMATS[format].write(weights, out, dynamic_size)


def facts(weights: Pretrained) -> dict[str, Any]:
    """The settings that a user of the tensors needs, as JSON."""
    reading = {} if weights.reading is None else {"reading": weights.reading.to_dict()}
    run = run_of(weights)
    recipe = {} if run is None else {"recipe": run.recipe.name}
    answers = model.facts_of(weights) if isinstance(weights, Model) else {}
    answers |= segmenter.facts_of(weights) if isinstance(weights, Segmenter) else {}
    return {
        **{k: answers[k] for k in ("task", "classes", "thresholds", "temperature", "head", "colors") if k in answers},
        "encoder": _own(weights).spec,
        "mean": weights.mean,
        "std": weights.std,
        "test_size": weights.test_size,
        "library": "manyviews",
        "version": __version__,
        **recipe,
        **reading,
    }


def _own(weights: Pretrained) -> Encoder:
    if isinstance(weights.encoder, ExternalEncoder):
        raise UserError(f"{weights.name} is a bare module, which cannot be exported: save it with its own library.")
    return weights.encoder


def _tensors(weights: Pretrained) -> dict[str, Tensor]:
    if isinstance(weights, Model):
        return model.tensors(weights)
    if isinstance(weights, Segmenter):
        return segmenter.tensors(weights)
    return {k: v.detach().cpu() for k, v in _own(weights).model.state_dict().items()}


# -- tensors -------------------------------------------------------------------------------------------------------


def _safetensors(weights: Pretrained, out: Path, _: bool) -> Exported:
    """One file of tensors under timm's names; the header holds the architecture and the normalization."""
    checkpoint.save_tensors(out, _own(weights).model.state_dict(), facts(weights))
    return Exported(out)


def _torch(weights: Pretrained, out: Path, _: bool) -> Exported:
    """A state dict under timm's names, for `torch.load(..., weights_only=True)`."""
    tensors = _tensors(model.warmed(weights) if isinstance(weights, Model) else weights)
    checkpoint.write_atomically(out, lambda part: checkpoint.write_buffered(part, partial(torch.save, tensors)))
    return Exported(out)


def _torchvision(weights: Pretrained, out: Path, _: bool) -> Exported:
    """A state dict under torchvision's names, of a network that gives the same features in torchvision."""
    from manyviews.weights.names import to_torchvision

    tensors, call, head = to_torchvision(_own(weights), weights.test_size)
    checkpoint.write_atomically(out, lambda part: checkpoint.write_buffered(part, partial(torch.save, tensors)))
    load = f"model = {call}; model.{head} = torch.nn.Identity(); model.load_state_dict(torch.load(file))"
    return Exported(out, (f"Load it without its classifier: {load}", _normalization(weights)))


def _detectron2(weights: Pretrained, out: Path, _: bool) -> Exported:
    """A ResNet under detectron2's names, as its `DetectionCheckpointer` loads it."""
    from manyviews.weights.names import to_detectron2

    found = {"model": to_detectron2(_own(weights)), "__author__": "manyviews", "matching_heuristics": True}
    checkpoint.write_atomically(out, lambda part: checkpoint.write_buffered(part, partial(torch.save, found)))
    pixels = (f"{name} {[round(255 * v, 3) for v in getattr(weights, name)]}" for name in ("mean", "std"))
    note = f"detectron2 needs INPUT.FORMAT RGB, MODEL.RESNETS.STRIDE_IN_1X1 False, and pixels' {' and '.join(pixels)}."
    return Exported(out, (note,))


def _normalization(weights: Pretrained) -> str:
    mean, std = ([round(v, 4) for v in values] for values in (weights.mean, weights.std))
    return f"Images in [0, 1] are normalized by mean {mean} and std {std}."


# -- folders -------------------------------------------------------------------------------------------------------


def _timm(weights: Pretrained, out: Path, _: bool) -> Exported:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    with checkpoint.new_folder(out) as part:
        notes = _write_timm(weights, part)
        checkpoint.write_text(part / "README.md", card(weights))
    return Exported(out, notes)


def _huggingface(weights: Pretrained, out: Path, _: bool) -> Exported:
    """A folder for the Hub: timm's, which transformers loads too, with a description of images and a model card."""
    size = {"height": weights.test_size, "width": weights.test_size}
    shown = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": short_side(weights.test_size)},
        "do_center_crop": True,
        "crop_size": size,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": weights.mean,
        "image_std": weights.std,
        "num_channels": _own(weights).channels,
    }
    with checkpoint.new_folder(out) as part:
        notes = _write_timm(weights, part)
        checkpoint.write_text(part / "preprocessor_config.json", json.dumps(shown, indent=2))
        checkpoint.write_text(part / "README.md", card(weights))
    return Exported(out, notes)


def _crop(weights: Pretrained) -> float:
    """The part of an image's side that `evaluation.features.test_transform` keeps."""
    return 1.0 if weights.test_size <= SMALL else 224 / 256


_PROBLEMS = {
    "classes": "single_label_classification",
    "several": "multi_label_classification",
    "numbers": "regression",
}
"""What transformers calls the tasks."""


def _write_timm(weights: Pretrained, folder: Path) -> tuple[str, ...]:
    """Write config.json and model.safetensors; returns sentences about what they cannot hold."""
    from timm.models import save_for_hf

    encoder = _own(weights)
    stem = encoder.spec["stem"]
    if isinstance(weights, Model) and weights.head_spec["kind"] != "linear":
        raise UserError("timm's classifiers are linear, and this head is not: export to onnx, torch_export or torch.")
    whole = model.with_head(model.warmed(weights)) if isinstance(weights, Model) else encoder.model
    if stem != "native":
        raise UserError(
            f"timm cannot build the stem '{stem}' of {encoder.name}: export to onnx, safetensors or torch, or "
            "pretrain with --set backbone.stem=native."
        )
    if "descriptor" in encoder.spec:
        raise UserError(f"timm has no copy descriptors like that of {weights.name}: export to onnx or safetensors.")
    data = {
        "mean": weights.mean,
        "std": weights.std,
        "input_size": [encoder.channels, weights.test_size, weights.test_size],
        "crop_pct": _crop(weights),
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    # timm's facts about its own weights of this architecture are not true of these.
    source = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "test_input_size", "test_crop_pct")
    names = {"label_names": list(weights.classes)} if isinstance(weights, Model) else {}
    save_for_hf(
        whole,
        str(folder),
        model_config={"pretrained_cfg": {**dict.fromkeys(source), **data}, **names},
        model_args=encoder.timm_kwargs,
        safe_serialization=True,
    )
    # transformers' wrapper gives this argument itself, and fails if it is given twice.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    if isinstance(weights, Model):
        config["problem_type"] = _PROBLEMS[weights.task]
        config |= {"thresholds": list(weights.thresholds)} if weights.thresholds else {}
    checkpoint.write_text(folder / "config.json", json.dumps(config, indent=2))
    if "norm_eps" not in encoder.spec:
        return ()
    plain = Encoder.from_spec({k: v for k, v in encoder.spec.items() if k != "norm_eps"}).eval()
    plain.load_weights(_tensors(weights))
    found = programs.compare(
        weights, lambda x: plain((x - programs.column(weights.mean)) / programs.column(weights.std))
    )
    return (
        f"timm has no setting for the epsilon of layer norms, {encoder.spec['norm_eps']} here: its features differ by "
        f"at most {found.difference:.1e} of {found.scale:.1e} on random images.",
    )


# -- programs ------------------------------------------------------------------------------------------------------


def _program(save: Callable[[Pretrained, Path, bool, dict[str, Any]], programs.Compared]) -> Any:
    """A writer of a format of programs, from a function that writes one and compares it with the network."""

    def write(weights: Pretrained, out: Path, dynamic_size: bool) -> Exported:
        found: list[programs.Compared] = []
        checkpoint.write_atomically(out, lambda part: found.append(save(weights, part, dynamic_size, facts(weights))))
        (compared,) = found
        return Exported(out, (compared.sentence,), compared.difference, compared.scale)

    return write


FORMATS: dict[str, Format] = {
    "safetensors": Format(_safetensors, "tensors under timm's names, and all that `manyviews.load` needs"),
    "timm": Format(_timm, 'a folder for timm\'s "local-dir:" and "hf-hub:"', folder=True, answers=True),
    "huggingface": Format(_huggingface, "a folder for the Hub, which transformers and timm load", folder=True),
    "onnx": Format(
        _program(programs.onnx), "a graph for onnxruntime and others, which normalizes images", sizes=True, answers=True
    ),
    "torch": Format(_torch, "a state dict under timm's names", answers=True),
    "torchvision": Format(_torchvision, "a state dict under torchvision's names, of ResNets and vision transformers"),
    "detectron2": Format(_detectron2, "a ResNet for detectron2"),
    "torchscript": Format(
        _program(programs.torchscript), "a program for torch.jit.load, which normalizes images", answers=True
    ),
    "torch_export": Format(
        _program(programs.torch_export),
        "a program for torch.export.load, which normalizes images",
        sizes=True,
        answers=True,
    ),
}
"""The ways to write an encoder, by name."""
