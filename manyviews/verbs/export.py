"""Write an encoder for other software."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from manyviews.errors import say
from manyviews.verbs._common import loaded, new_file
from manyviews.weights import Exported, Pretrained, write


def export(weights: str | Path | Pretrained, format: str, out: str | Path, *, dynamic_size: bool = False) -> Path:
    """Write the encoder in a format that other software loads: see `manyviews.weights.FORMATS`.

    Programs (onnx, torchscript, torch_export) normalize images themselves. They are run once on random images and
    compared with the network. What a format cannot hold, and the difference, are printed on standard error.

    Args:
        weights: a run folder or weights: see `load`.
        format: "safetensors", "timm", "huggingface", "onnx", "torch", "torchvision", "detectron2", "torchscript" or
            "torch_export".
        out: a new file; a new folder for "timm" and "huggingface".
        dynamic_size: for "onnx" and "torch_export": images may have any size that the network takes.

    Raises:
        UserError: an unknown format, or one that cannot hold the encoder, or `out` exists.
    """
    found = exported(weights, format, out, dynamic_size=dynamic_size)
    for note in found.notes:
        say(note)
    return found.path


def exported(weights: str | Path | Pretrained, format: str, out: str | Path, *, dynamic_size: bool = False) -> Exported:
    """The same, with what is known about the file; nothing is printed."""
    ours = loaded(weights)
    found = write(ours, format, new_file(out), dynamic_size=dynamic_size)
    return replace(found, notes=(ours.note, *found.notes)) if ours.note else found
