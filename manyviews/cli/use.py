"""Verbs that use an encoder, or hand it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import manyviews as mv
from manyviews.cli._options import (
    NO_HINTS,
    Count,
    DataSet,
    Hints,
    Images,
    Json,
    Labels,
    NewFile,
    NewFolder,
    Settings,
    TestLabels,
    Weights,
    load,
    settings,
    write_json,
    wrote,
)
from manyviews.cli._parser import Arg
from manyviews.errors import printable


def adapt(
    weights: Weights,
    /,
    data: Annotated[str, Arg("DATA")],
    out: NewFolder,
    strategy: Literal["auto", "linear", "mlp", "lora", "dora", "unfreeze", "lpft", "finetune"] = "auto",
    task: Literal["classes", "several", "numbers", "segmentation"] | None = None,
    budget: Annotated[str | None, Arg("TIME")] = None,
    test: DataSet = None,
    balance: Literal["none", "weights", "sampling", "logits"] = "none",
    labels: Labels = None,
    test_labels: TestLabels = None,
    shifted: Annotated[tuple[str, ...], Arg("DATA", repeat=True)] = (),
    corruptions: bool = False,
    min_per_class: Annotated[int | None, Arg("N")] = None,
    refit: bool = True,
    from_head_layer: Count = 0,
    seed: int = 0,
    set: Settings = (),
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Make a model that answers from an encoder and labeled images: a folder to predict with, show and export.

    The same command continues an interrupted one.

    For example:
      manyviews adapt runs/first --data labeled/ --out models/first
      manyviews adapt timm:resnet18 --data labeled/ --test held/ --budget 30m --out models/second
      manyviews adapt runs/first --data labeled/ --strategy lora --set lora.rank=16 --out models/third
      manyviews adapt runs/first --data photos/ --labels prices.csv --task numbers --out models/prices

    Args:
        data: Labeled images: each first-level folder is a class, or see --labels. A fifth of them chooses. Images with
            masks as `manyviews segment` takes them give a model that segments.
        out: A new folder for the model.
        strategy: linear: a linear layer on features; mlp: a small head; lora, dora: narrow matrices beside the layers;
            unfreeze: block by block; lpft: a head, then everything slowly; finetune: everything at once. auto climbs
            them as far as it helps on the images that choose, and says why.
        task: What the labels are: classes, one of each image; several; numbers; or segmentation, a mask of each image.
            By default it is found out, and said.
        budget: How long it may take, such as 30m or 2h.
        test: Labeled images to test on, which choose nothing. By default, the test images of DATA if it has splits.
        balance: For classes of unequal size: weigh the loss, sample rare classes more often, or adjust the logits.
        shifted: Labeled images of the same classes under other conditions, to test on too.
        corruptions: Test on corrupted test images too: noise, blur, weather, compression.
        min_per_class: Leave out classes with fewer images, at least 2. By default they are refused.
        refit: Learn what was best again from all labeled images, those that chose too.
        from_head_layer: Keep so many layers of the run's projector below the new head, as SimCLR v2 does with 1.
        seed: Seed of everything that is drawn.
        set: Change a setting of a strategy, such as lpft.descent.epochs=50.
    """
    from manyviews.reporting import summary

    found = mv.adapt(
        weights if from_head_layer else load(weights, hints),
        data,
        out,
        strategy=strategy,
        task=task,
        labels=labels,
        test=test,
        test_labels=test_labels,
        shifted=shifted,
        corruptions=corruptions,
        balance=balance,
        budget=budget,
        settings=settings(set, example="lora.rank=16"),
        min_per_class=min_per_class,
        refit=refit,
        from_head_layer=from_head_layer,
        seed=seed,
    )
    facts = {"task": found.task, "classes": found.classes, "temperature": found.temperature, **found.facts}
    summary.show_model(facts)
    wrote(out)
    write_json(json, facts)


def predict(
    model: Annotated[str, Arg("MODEL", "The folder of a model that `manyviews adapt` wrote.")],
    data: Images,
    /,
    out: NewFile,
    k: Count = 3,
    json: Json = None,
) -> None:
    """Write the class of every image, with a calibrated probability, to a CSV or Parquet file.

    The column `known` is false for images that are farther from the training images than 95 % of those that chose the
    model. Models of several classes or of numbers have a column for each, and those that segment write masks. The same
    command continues an interrupted one.

    For example:
      manyviews predict models/first photos/ --out predictions.csv
      manyviews predict models/first photos/ --out predictions.parquet --k 5

    Args:
        out: A new file that ends in .csv or .parquet; a folder for the masks of a model that segments.
        k: Classes in a row, the likeliest first.
    """
    from manyviews.verbs.predict import write

    found = write(model, data, out, k=k)
    read = found.images - sum(found.problems.values())
    unlike = f"; {found.unknown:,} of them are unlike the training images (known is false)"
    print(f"Predicted {read:,} images{unlike if found.path.is_file() else ''}.")
    for reason, count in list(found.problems.items())[:5]:
        print(printable(f"{count:,} cannot be read: {reason}"))
    for name, count in list(found.counts.items())[:10]:
        print(printable(f"  {name}: {count:,}"))
    wrote(found.path)
    write_json(json, found.to_dict())


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


def choose(
    data: Images,
    /,
    candidates: Annotated[tuple[str, ...], Arg("RUN_OR_WEIGHTS")] = (),
    labels: Labels = None,
    out: Annotated[Path | None, Arg("FILE")] = None,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Compare backbones on your images, and say which to take and what to do next.

    With labels, a fifth of the images judges, and test images are not looked at. Without, look at the page.

    For example:
      manyviews choose photos/ --candidates timm:resnet50 timm:vit_small_patch16_224.dino runs/first --out page.html
      manyviews choose photos/ --labels labels.csv --candidates mobilenet_v2.pth runs/first

    Args:
        candidates: Folders of runs, files of weights, or timm:NAME; by default four of timm. Those that cannot be had
            are named and left out.
        out: A new page of nearest neighbors, those of each candidate side by side.
        seed: Seed of the probes and intervals.
    """
    from manyviews.reporting import summary
    from manyviews.verbs.choose import USUAL
    from manyviews.verbs.choose import choose as compare

    found = compare(data, candidates or USUAL, labels=labels, out=out, seed=seed)
    summary.show_choice(found)
    if found.page is not None:
        wrote(found.page)
    write_json(json, found.to_dict())


def serve(
    weights: Weights,
    /,
    *,
    in_: Annotated[str | None, Arg("DATA")] = None,
    host: Annotated[str, Arg("ADDRESS")] = "127.0.0.1",
    name: Annotated[tuple[str, ...], Arg("NAME", repeat=True)] = (),
    port: Count = 8000,
    largest: Annotated[float, Arg("MB")] = 20.0,
    per_minute: Count = 120,
    hints: Hints = NO_HINTS,
) -> None:
    """Serve a page on which you drop a picture, and a small HTTP API, on this machine.

    The page shows classes, the nearest images, and what the encoder looked at. Nothing that is sent is kept.

    For example:
      manyviews serve models/clothes --in photos/
      manyviews serve runs/first --in photos/ --port 8080
      curl --data-binary @dress.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/api/look

    Args:
        in_: Images to find neighbors among: a folder, or Parquet or tar files.
        host: Where to listen. Only this machine reaches the default.
        name: A name under which it may be asked for, such as photos.example.org; several with --name again. With
            another --host than the default, any will do unless you name some.
        port: The port; 0 for any that is free.
        largest: Size of the largest file that is taken, in megabytes.
        per_minute: Pictures that one client may ask about in a minute.
    """
    from manyviews.verbs.serve import serve as start

    def tell(address: str) -> None:
        print(f"Open {address} in a browser. Ctrl-C ends it.", flush=True)

    model = load(weights, hints)
    start(model, images=in_, host=host, names=name, port=port, largest=largest, per_minute=per_minute, started=tell)


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
