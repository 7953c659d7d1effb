"""Verbs that use an encoder, or hand it on."""

from __future__ import annotations

from typing import Annotated, Literal

import manyviews as mv
from manyviews.cli._options import NO_HINTS, Hints, Images, Json, NewFile, Weights, load, write_json, wrote
from manyviews.cli._parser import Arg
from manyviews.errors import printable


def embed(
    weights: Weights, data: Images, /, out: NewFile, map: bool = False, hints: Hints = NO_HINTS, json: Json = None
) -> None:
    """Write the features of every image to a file: Parquet, CSV, NumPy or safetensors.

    For example:
      manyviews embed runs/first photos/ --out features.parquet
      manyviews embed runs/first photos/ --out features.parquet --map
      torchrun --nproc-per-node 8 -m manyviews embed runs/first photos/ --out features.npy

    Args:
        out: A new file whose ending says the format: .parquet, .csv, .npz, or .npy or .safetensors, with the names of
            the images in FILE.json beside it.
        map: Add columns x and y, a map on which near images are alike, for a viewer of embeddings.
    """
    from manyviews import distributed
    from manyviews.verbs.embed import write

    found = write(load(weights, hints), data, out, map=map)
    if distributed.rank() == 0:
        print(f"Wrote the features of {found.images} images.")
        for note in found.notes:
            print(printable(note))
        wrote(found.path)
        write_json(json, {"file": str(found.path), "images": found.images, "columns": found.columns})
    distributed.stop()


def duplicates(
    weights: Weights,
    data: Images,
    /,
    out: NewFile,
    threshold: float = 0.95,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """List groups of images that are nearly the same to an encoder.

    For example:
      manyviews duplicates runs/first photos/ --out duplicates.csv
      manyviews duplicates runs/first photos/ --threshold 0.98 --out duplicates.csv

    Args:
        out: A new CSV file, with the columns group, id, keep (yes for one image of each group) and similarity.
        threshold: Cosine similarity above which two images count as the same. The protocol copy_detection measures a
            good one.
    """
    groups = mv.duplicates(load(weights, hints), data, out, threshold)
    images = sum(len(g.ids) for g in groups)
    extra = images - len(groups)
    print(f"{images} images are in {len(groups)} groups of near-duplicates: {extra} could be removed.")
    wrote(out)
    write_json(json, {"file": str(out), "groups": [{"ids": g.ids, "similarity": g.similarity} for g in groups]})


def export(
    weights: Weights,
    /,
    format: Annotated[
        Literal[
            "safetensors",
            "timm",
            "huggingface",
            "onnx",
            "torch",
            "torchvision",
            "detectron2",
            "torchscript",
            "torch_export",
        ],
        Arg("FORMAT"),
    ],
    out: NewFile,
    dynamic_size: bool = False,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Write the encoder in a format that other software loads.

    For example:
      manyviews export runs/first --format timm --out backbone/
      manyviews export runs/first --format onnx --out backbone.onnx

    Args:
        format: safetensors: tensors under timm's names. timm: a folder for timm's "local-dir:". huggingface: the same
            with a model card, for the Hub and transformers. torch: a state dict. torchvision, detectron2: a state dict
            under their names. onnx, torchscript, torch_export: programs from images in [0, 1] to features, which are
            compared with the network.
        out: A new file; a new folder for timm and huggingface.
        dynamic_size: For onnx and torch_export: images may have any size that the network takes.
    """
    from manyviews.verbs.export import exported

    found = exported(load(weights, hints), format, out, dynamic_size=dynamic_size)
    for note in found.notes:
        print(printable(note))
    wrote(found.path)
    difference = {"difference": found.difference, "scale": found.scale}
    write_json(json, {"file": str(found.path), "format": format, "notes": found.notes, **difference})
