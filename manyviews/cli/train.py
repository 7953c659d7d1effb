"""Verbs that train."""

from __future__ import annotations

from itertools import product
from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal

import manyviews as mv
from manyviews.cli._options import (
    NO_HINTS,
    BatchSize,
    Count,
    DataSet,
    Epochs,
    Hints,
    Images,
    Json,
    Labels,
    LearningRate,
    NewFolder,
    Pixels,
    Recipe,
    RunFolder,
    Settings,
    Training,
    Weights,
    facts,
    load,
    settings,
    show_finished,
    with_short,
    write_json,
)
from manyviews.cli._parser import Arg
from manyviews.errors import UserError, printable

NewRun = Annotated[Path | None, Arg("RUN")]
Captions = Annotated[str | None, Arg("FILE_OR_COLUMN")]


def prepare(
    data: Images,
    /,
    out: NewFolder,
    canvas: Pixels = 800,
    verify: bool = False,
    labels: Labels = None,
    channels: Annotated[str, Arg("N_OR_BANDS")] = "3",
    range: Annotated[str, Arg("RANGE")] = "type",
    frames: Literal["first", "middle", "all"] = "first",
    max_pixels: Annotated[int | None, Arg("N")] = None,
    tile: Annotated[int | None, Arg("PIXELS")] = None,
    overlap: Pixels = 0,
    json: Json = None,
) -> None:
    """Decode images once, to canvases on disk, so that later runs decode nothing; or cut large ones into tiles.

    For example:
      manyviews prepare photos/ --out canvases/
      manyviews prepare photos/ --out small/ --canvas 340
      manyviews pretrain canvases/ --recipe simclr_imagenet
      manyviews prepare satellite/ --out canvases/ --channels 13 --range auto
      manyviews prepare slides/ --out tiles/ --tile 512 --overlap 64

    Args:
        out: A new folder, or one that the same command began. The same command continues it, again or several times
            at once.
        canvas: Longest short side of the canvases in pixels: 800 are as many as views of 224 pixels can use.
        verify: Read everything that was written again, and compare checksums.
        channels: The recipe's data.channels: 3 for RGB, 1 for gray, another number, or bands from 0, such as 3,2,1.
        range: The recipe's data.range, for files of more than 8 bits: type, auto, or two numbers, such as 0,4095.
        frames: Which picture of a file that holds several.
        max_pixels: Leave out larger images; by default those over 179 million pixels, or 2 billion with --tile.
        tile: Cut images into squares of this side, with all their values, instead of making canvases.
        overlap: Pixels that neighboring tiles share.
    """
    from manyviews.data import verify as damaged
    from manyviews.progress import progress
    from manyviews.settings import parse

    folder = mv.prepare(
        data,
        out,
        canvas,
        labels,
        channels=parse(channels),
        range=parse(range),
        frames=frames,
        max_pixels=max_pixels,
        tile=tile,
        overlap=overlap,
    )
    if tile is not None:
        return _tiles(folder, json)
    manifest = loads((folder / "canvases.json").read_text(encoding="utf-8"))
    images = sum(s["images"] for s in manifest["shards"])
    print(f"{images} canvases of {canvas} pixels in {len(manifest['shards'])} shards in {printable(str(folder))}.")
    for where, reason in manifest["bad"][:5]:
        print(printable(f"Left out {where}: {reason}"))
    if len(manifest["bad"]) > 5:
        print(f"Left out {len(manifest['bad']) - 5} more images: see {printable(str(folder / 'canvases.json'))}.")
    if verify:
        with progress("verify") as update:
            wrong = damaged(folder, update)
        if wrong:
            names = ", ".join(f.name for f in wrong)
            raise UserError(f"Shards in {folder} are damaged: remove {names} and canvases.json, and prepare again.")
        print("All checksums are right.")
    write_json(json, {"folder": str(folder), "images": images, "bad": manifest["bad"]})


def _tiles(folder: Path, json: Path | None) -> None:
    """Print what became of scenes."""
    cuts = loads((folder / "tiles.json").read_text(encoding="utf-8"))["cuts"]
    tiles, empty, small = (sum(cut[name] for cut in cuts) for name in ("tiles", "empty", "small"))
    bad = [(cut["scene"], cut["reason"]) for cut in cuts if cut["reason"]]
    print(f"{tiles} tiles of {len(cuts) - len(bad)} images in {printable(str(folder))}.")
    if empty:
        print(f"Left out {empty} tiles that hold one value or no data.")
    if small:
        print(f"{small} images are smaller than a tile, and stay whole.")
    for where, reason in bad[:5]:
        print(printable(f"Left out {where}: {reason}"))
    if len(bad) > 5:
        print(f"Left out {len(bad) - 5} more images: see {printable(str(folder / 'tiles.json'))}.")
    write_json(json, {"folder": str(folder), "images": tiles, "empty": empty, "bad": bad})


def pretrain(
    data: Training,
    /,
    recipe: Recipe = "auto",
    budget: Annotated[str | None, Arg("TIME")] = None,
    epochs: Epochs = None,
    init: Annotated[str | None, Arg("RUN_OR_WEIGHTS")] = None,
    backbone: Annotated[str | None, Arg("NAME")] = None,
    out: NewRun = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Annotated[int | None, Arg("N")] = None,
    set: Settings = (),
    captions: Captions = None,
    old: DataSet = None,
    json: Json = None,
) -> None:
    """Pretrain a backbone on unlabeled images.

    For example:
      manyviews pretrain photos/
      manyviews pretrain photos/ --budget 2h --out runs/photos
      manyviews pretrain photos/ --recipe byol_cifar10 --budget 30m
      manyviews pretrain photos.parquet --recipe byol_cifar10 --epochs 50 --out runs/first
      manyviews pretrain photos/ --recipe dino_cifar10 --lr 1e-3 --set method.views.local.count=6
      manyviews pretrain photos/ --recipe photos_gpu_small --init timm:resnet50.a1_in1k --epochs 20
      manyviews pretrain photos/ --recipe photos_gpu_small --init downloaded.pth --backbone resnet50
      torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe byol_imagenet

    Args:
        recipe: Name of the recipe: see `manyviews list recipes`. auto chooses one for the images, the machine and the
            time, and says why.
        budget: How long the run may take, such as 30m or 2h. Its schedule ends in time, whatever else the machine does.
            A recipe that is chosen by itself takes half an hour on a processor.
        init: Start from weights: the folder of a run, a file (from this library, timm, torchvision, DINO and others),
            or timm:NAME for timm's. They bring their architecture. The learning rate is then a tenth of the recipe's
            (with Muon, a hundredth), new heads learn for an epoch before the encoder moves, and BatchNorm keeps its
            statistics, unless --lr and --set adaptation say otherwise.
        backbone: Timm's name of the architecture, as --set backbone.name=NAME; for files that do not tell it.
        out: A new folder for the run. By default, runs/<recipe>-<date>.
        seed: Seed of the initial weights, the order of the images and the views, as --set seed=N.
        set: Change any other setting by its dotted path: see `manyviews list recipes NAME`.
        captions: For methods that read captions. For a folder, a CSV file of path,caption (by default, captions.csv in
            it); for Parquet or tar files, a column, or a member or field.
        old: Labeled images of the kind that the weights come from: nearest neighbors on them, measured along the run,
            tell what is forgotten.
    """
    changed = with_short(set, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, backbone=backbone)
    passes = changed.pop("epochs", None)
    run = mv.pretrain(
        data,
        recipe,
        epochs=passes,
        budget=budget,
        init=init,
        settings=changed,
        out=out,
        captions=captions,
        old=old,
    )
    show_finished(run, json)


def distill(
    teacher: Weights,
    /,
    data: Annotated[str, Arg("DATA")],
    student: Annotated[str, Arg("NAME")] = "resnet18",
    target: Literal["features", "relations", "prototypes", "soft", "hard"] = "features",
    view: Literal["clean", "same"] = "clean",
    recipe: Recipe = "auto",
    budget: Annotated[str | None, Arg("TIME")] = None,
    epochs: Epochs = None,
    out: NewRun = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Annotated[int | None, Arg("N")] = None,
    set: Settings = (),
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Teach a small backbone, on unlabeled images, to see as a larger one does.

    The result is a run as of `manyviews pretrain`: resume, evaluate, adapt and export it.

    For example:
      manyviews distill timm:vit_small_patch14_dinov2.lvd142m --data photos/ --student resnet18
      manyviews distill mobilenet_v2.pth --data photos/ --student mobilenetv3_small_100 --budget 30m
      manyviews distill models/first --data photos/ --target soft --set method.temperature=4
      manyviews distill runs/large --data photos/ --target relations --view same

    Args:
        data: Unlabeled images: see `manyviews pretrain --help`.
        student: Timm's name of the backbone that learns.
        target: features: the teacher's features; relations: how similar it finds images; prototypes: its soft
            assignments to groups of images; soft, hard: probabilities or likeliest class, of a model that
            `manyviews adapt` wrote.
        view: clean: the teacher looks at each image once, before the run, and further students use the same pass. same:
            it sees the student's view in each step.
        recipe: Name of a recipe of the method distill. auto takes distill_cpu or distill_gpu.
        budget: How long the run may take, such as 30m or 2h.
        out: A new folder for the run. By default, runs/<recipe>-<date>.
        seed: Seed of the initial weights, the order of the images and the views, as --set seed=N.
        set: Change any other setting by its dotted path: see `manyviews list recipes NAME`.
    """
    changed = with_short(set, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    passes = changed.pop("epochs", None)
    run = mv.distill(
        load(teacher, hints),
        data,
        student,
        target=target,
        view=view,
        recipe=recipe,
        epochs=passes,
        budget=budget,
        settings=changed,
        out=out,
    )
    show_finished(run, json)


def resume(
    run: RunFolder,
    /,
    data: DataSet = None,
    epochs: Annotated[float | None, Arg("N")] = None,
    out: NewRun = None,
    captions: Captions = None,
    trust: bool = False,
    json: Json = None,
) -> None:
    """Continue an interrupted run exactly where it stopped, or train a run longer.

    For example:
      manyviews resume runs/first
      manyviews resume runs/first --data /new/place/photos
      manyviews resume runs/first --epochs 300 --out runs/longer

    Args:
        data: Where the images are now, if they were moved.
        epochs: Start a new run of so many epochs from the weights of this one. Its optimizer and its schedule begin
            anew.
        out: A new folder for that new run. By default, runs/<recipe>-<date>.
        captions: Where the captions are now: see `manyviews pretrain --help`.
        trust: Let a run that somebody else began contact the servers that it names. Your own runs always may.
    """
    show_finished(mv.resume(run, data, captions, epochs=epochs, out=out, trust=trust), json)


def finish(
    run: RunFolder,
    /,
    steps: Annotated[int | None, Arg("N")] = None,
    data: DataSet = None,
    captions: Captions = None,
    trust: bool = False,
    json: Json = None,
) -> None:
    """End an interrupted run early: its schedule runs out over a few more steps.

    For example:
      manyviews finish runs/first
      manyviews finish runs/first --steps 500

    Args:
        steps: Steps until it ends; by default a tenth of those taken, and at least 20.
        data: Where the images are now, if they were moved.
        captions: Where the captions are now: see `manyviews pretrain --help`.
        trust: Let a run that somebody else began contact the servers that it names.
    """
    show_finished(mv.finish(run, steps, data, captions, trust), json)


def sweep(
    data: Training,
    /,
    recipe: Recipe,
    vary: Annotated[tuple[str, ...], Arg("PATH=VALUE,VALUE,...", repeat=True)],
    out: NewFolder,
    seeds: Count = 3,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    set: Settings = (),
    baseline: Settings = (),
    metric: Annotated[str | None, Arg("NAME")] = None,
    test: DataSet = None,
    json: Json = None,
) -> None:
    """Train with several values of a setting, and plot how sensitive the result is to it.

    For example:
      manyviews sweep photos/ --recipe photos_cpu_small --vary method.temperature=0.05,0.1,0.2 --out sweeps/temperature
      manyviews sweep photos/ --recipe photos_cpu_small --set "regularizers=(Rescue(0.75),)" --out sweeps/rescue \\
        --baseline "regularizers=()" --vary regularizers.rescue.scale=0.25,0.5,0.75,1

    Args:
        vary: A setting and its values. Several settings are varied one at a time.
        out: The sweep's folder. The same command again continues an interrupted sweep.
        seeds: Trainings for each value, with seeds 0, 1, ...
        set: Change a setting of all trainings.
        baseline: Train with this setting too, and draw its result as a line to compare with. Several values make
            several baselines.
        metric: Metric on held-out training images: knn, ridge (a linear classifier on 1,000 images), rankme (the
            effective rank), or a protocol of `manyviews list protocols`, which learns from all labels. By default knn
            if there are labels, else rankme.
        test: Labeled images to judge a protocol on.
    """
    from manyviews.reporting import summary
    from manyviews.settings import parse

    example = "method.temperature=0.1,0.2"

    def values(path: str, text: str, flag: str = "--vary") -> tuple[Any, ...]:
        found = parse(f"({text},)")
        if not isinstance(found, tuple):
            raise UserError(f"{flag} takes path=value,value, such as {example}, not '{path}={text}'.")
        return found

    changed = with_short(set, epochs=epochs, batch_size=batch_size, lr=lr)
    varied = settings(vary, "--vary", example)
    if len(varied) < len(vary):  # only the last of two would count, as with --set
        raise UserError(f"--vary names a setting several times: give all of its values at once, such as {example}.")
    beside = {k: values(k, v, "--baseline") for k, v in settings(baseline, "--baseline").items()}
    found = mv.sweep(
        data,
        recipe,
        {k: values(k, v) for k, v in varied.items()},
        out,
        seeds=seeds,
        settings=changed,
        baseline=[dict(zip(beside, chosen, strict=True)) for chosen in product(*beside.values())] if beside else None,
        metric=metric,
        test=test,
    )
    summary.show_sweep(found.to_dict())
    write_json(json, found.to_dict())


def demo(out: NewRun = None, json: Json = None) -> None:
    """Pretrain on the pictures in the package and evaluate the result: no network, minutes on two cores.

    For example:
      manyviews demo

    Args:
        out: A new folder for the run; runs/simclr_demo-<date> by default.
    """
    from manyviews.reporting import summary

    # Not "demo": there may be a folder of that name here.
    run = mv.pretrain("demo:train", "simclr_demo", out=out)
    report = run.evaluate("demo:train", "demo:test")
    summary.show_run(run)
    write_json(json, {**facts(run), "report": report.to_dict()})
