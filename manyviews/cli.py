"""The command line: one verb per function of the library."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

# Nothing heavy is imported here: `manyviews --help` answers at once.
from manyviews.errors import UserError, printable, unknown

Json = Annotated[Path | None, arg(metavar="FILE", help="Also write the results to this file, as JSON; replaces it.")]
Out = Annotated[Path, arg(metavar="FILE")]
_WEIGHTS = (
    "The folder of a run, a file of weights (of this library, timm, torchvision, lightly, solo-learn, MoCo, DINO, MAE "
    "and others), or timm:NAME for timm's own."
)
Weights = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS", help=_WEIGHTS)]
Images = Annotated[Positional[str], arg(metavar="DATA")]
Folder = Annotated[Positional[Path], arg(metavar="RUN")]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How to take weights from elsewhere, whose files do not say everything.

    Attributes:
        backbone: Timm's name of the architecture, if the weights do not tell it.
        num_heads: Of a vision transformer's attention, which weights never tell, if another number was assumed.
        test_size: Side in pixels of what the encoder sees.
        mean: Per channel, to subtract from images in [0, 1].
        std: Per channel, to divide by.
    """

    backbone: str | None = None
    num_heads: Annotated[int | None, arg(metavar="N")] = None
    test_size: Annotated[int | None, arg(metavar="PIXELS")] = None
    mean: Triple | None = None
    std: Triple | None = None


_AS_THEY_ARE = Look()
Elsewhere = Annotated[Look, arg(name="")]
Ints = Annotated[tuple[int, ...] | None, arg(metavar="N N ...")]


def prepare(
    data: Images,
    /,
    out: Annotated[Path, arg(metavar="FOLDER")],
    canvas: Annotated[int, arg(metavar="PIXELS")] = 256,
    labels: Path | None = None,
    verify: bool = False,
    json: Json = None,
) -> None:
    """Decode images once, to canvases on disk: every further run reads them without a decode.

    For example:
      manyviews prepare photos/ --out canvases/
      manyviews prepare photos/ --out canvases160/ --canvas 160
      manyviews pretrain canvases/ --recipe simclr_imagenet

    Args:
        data: A folder of images, or Parquet or tar files: see `manyviews pretrain --help`.
        out: A new folder, or one that was begun by the same command: the same command again, or several at once,
            continue it.
        canvas: Their side, data.canvas of the recipe.
        labels: Of a folder a CSV file of path,label; of Parquet or tar files a column, or a member or field.
        verify: Read everything that was written again, and compare checksums.
    """
    import json as plain

    import manyviews as mv
    from manyviews.data import verify as damaged
    from manyviews.progress import progress

    folder = mv.prepare(data, out, canvas, labels)
    manifest = plain.loads((folder / "canvases.json").read_text(encoding="utf-8"))
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
    if json:
        _write(json, {"folder": str(folder), "images": images, "bad": manifest["bad"]})


def pretrain(
    data: Images,
    /,
    recipe: Annotated[str, arg(metavar="NAME")],
    epochs: Annotated[float | None, arg(metavar="N")] = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")] = (),
    out: Annotated[Path | None, arg(metavar="RUN")] = None,
    json: Json = None,
) -> None:
    """Pretrain a backbone on unlabeled images.

    For example:
      manyviews pretrain photos/ --recipe simclr_photos
      manyviews pretrain photos.parquet --recipe byol_cifar10 --epochs 50 --out runs/first
      manyviews pretrain photos/ --recipe dino_cifar10 --set optimizer.lr=1e-3 --set method.views.local.count=6
      torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe byol_imagenet

    Args:
        data: A folder of images, or "demo"; Parquet or tar files, by a path, a URL, or a pattern such as
            "s3://photos/{00..99}.tar".
        recipe: Which recipe: see `manyviews list recipes`.
        epochs: Passes over the images, instead of the recipe's.
        set: Change a setting by its dotted path; may be repeated.
        out: A new folder for the run; runs/<recipe>-<date> by default.
    """
    import manyviews as mv

    run = mv.pretrain(data, recipe, epochs=epochs, settings=_settings(set), out=out)
    _finished(run, json)


def sweep(
    data: Images,
    /,
    recipe: Annotated[str, arg(metavar="NAME")],
    vary: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE,VALUE,...")],
    out: Annotated[Path, arg(metavar="FOLDER")],
    seeds: int = 3,
    epochs: Annotated[float | None, arg(metavar="N")] = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")] = (),
    baseline: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")] = (),
    metric: Literal["knn", "linear", "rankme"] | None = None,
    json: Json = None,
) -> None:
    """Train with several values of a setting, and plot how sensitive the result is to it.

    For example:
      manyviews sweep photos/ --recipe simclr_photos --vary method.temperature=0.05,0.1,0.2 --out sweeps/temperature
      manyviews sweep photos/ --recipe simclr_photos --set "rescue=Rescue(0.75)" --baseline rescue=none \\
        --vary rescue.scale=0.25,0.5,0.75,1 --vary rescue.k=2,4,8,16 --out sweeps/rescue

    Args:
        data: A folder of images, or "demo"; Parquet or tar files, by a path, a URL, or a pattern such as
            "s3://photos/{00..99}.tar".
        recipe: Which recipe: see `manyviews list recipes`.
        vary: A setting and its values, one setting at a time; may be repeated.
        out: The sweep's folder. The same command again continues a sweep that was interrupted.
        seeds: Runs of each value.
        epochs: Passes over the images, instead of the recipe's.
        set: Change a setting of all runs; may be repeated.
        baseline: A setting of the runs to compare with; may be repeated.
        metric: Of held-out training images; k-NN if there are labels, else the effective rank.
    """
    import manyviews as mv
    from manyviews.report import summary
    from manyviews.settings import parse

    example = "method.temperature=0.1,0.2"

    def values(path: str, text: str) -> tuple[Any, ...]:
        found = parse(f"({text},)")
        if not isinstance(found, tuple):
            raise UserError(f"--vary takes path=value,value, such as {example}, not '{path}={text}'.")
        return found

    varied = _settings(vary, "--vary", example)
    if len(varied) < len(vary):  # of two the last would count, as with --set
        raise UserError(f"--vary names a setting several times: give all of its values at once, such as {example}.")
    found = mv.sweep(
        data,
        recipe,
        {k: values(k, v) for k, v in varied.items()},
        out,
        seeds=seeds,
        epochs=epochs,
        settings=_settings(set),
        baseline=_settings(baseline, "--baseline") or None,
        metric=metric,
    )
    summary.show_sweep(found.to_dict())
    if json:
        _write(json, found.to_dict())


def resume(run: Folder, /, json: Json = None) -> None:
    """Continue an interrupted run, exactly where it stopped.

    For example:
      manyviews resume runs/first

    Args:
        run: The folder of the run.
    """
    import manyviews as mv

    _finished(mv.resume(run), json)


def evaluate(
    weights: Weights,
    /,
    data: str,
    test: str | None = None,
    protocol: str = "knn,linear",
    features: Literal["pooled", "last4", "cls_mean"] = "pooled",
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")] = (),
    labels: Path | None = None,
    test_labels: Path | None = None,
    shifted: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="DATA")] = (),
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    seeds: int = 1,
    json: Json = None,
) -> None:
    """Judge an encoder on labeled images, next to an untrained encoder and raw pixels.

    For example:
      manyviews evaluate runs/first --data labeled/
      manyviews evaluate runs/first --data train.parquet --test test.parquet --protocol knn,linear,logistic
      manyviews evaluate checkpoint.pth.tar --data photos/ --labels labels.csv
      manyviews evaluate timm:resnet18 --data labeled/
      manyviews evaluate runs/vit --data labeled/ --protocol linear_augmented --features last4
      manyviews evaluate runs/first --data labeled/ --protocol finetune --set finetune.lrs=0.01,0.05

    Args:
        data: Labeled images: each first-level folder is a class, or see --labels.
        test: Labeled images to test on; a fifth of DATA by default.
        protocol: Which protocols, separated by commas: see `manyviews list protocols`.
        features: Of a vision transformer: the pooled ones, the class tokens of the last four blocks, or the class
            token and the mean patch token.
        set: Change a setting of a protocol, such as finetune.epochs=30; may be repeated.
        labels: Of a folder a CSV file of path,label; of Parquet or tar files a column, or a member or field.
        test_labels: The same for the test images.
        shifted: Labeled images of the same classes under other conditions, such as sketches, on which a probe that
            learned on DATA is tried; may be repeated.
        seed: Of the untrained encoder, what the protocols draw, and the intervals.
        seeds: How often protocols that draw are run; their accuracy is the mean.
    """
    import manyviews as mv
    from manyviews.report import summary

    report = mv.evaluate(
        _loaded(weights, look),
        data,
        test,
        protocols=_names(protocol),
        features=features,
        settings=_settings(set, example="finetune.epochs=30"),
        labels=labels,
        test_labels=test_labels,
        others=shifted,
        seed=seed,
        seeds=seeds,
    )
    summary.show(report)
    if json:
        _write(json, report.to_json())


def transfer(
    weights: Weights,
    suite: Annotated[Positional[Path], arg(metavar="SUITE")],
    /,
    out: Annotated[Path, arg(metavar="FOLDER")],
    protocol: str = "linear",
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")] = (),
    baselines: bool = True,
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    seeds: int = 1,
    json: Json = None,
) -> None:
    """Judge an encoder on many labeled sets, in one table.

    For example:
      manyviews transfer runs/first sets/ --out transfer/first
      manyviews transfer runs/first sets/ --protocol linear,finetune --seeds 3 --out transfer/tuned

    Args:
        suite: A folder with a set in each folder below: pets/train/<class> and pets/test/<class>, or pets/<class>, or
            pets_train.parquet and pets_test.parquet.
        out: A folder for the reports. The same command again continues a suite that was interrupted.
        protocol: Which protocols, separated by commas: those of `manyviews list protocols` that classify.
        set: Change a setting of a protocol, such as finetune.epochs=30; may be repeated.
        baselines: Evaluate an untrained encoder and raw pixels too.
        seed: Of the untrained encoder, what the protocols draw, and the intervals.
        seeds: How often protocols that draw are run; their accuracy is the mean.
    """
    import manyviews as mv
    from manyviews.report import summary

    found = mv.transfer(
        _loaded(weights, look),
        suite,
        out,
        protocols=_names(protocol),
        settings=_settings(set, example="finetune.epochs=30"),
        seed=seed,
        seeds=seeds,
        baselines=baselines,
    )
    summary.show_transfer(found.table(), found.notes)
    if json:
        _write(json, found.to_dict())


def segment(
    weights: Weights,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    stages: Ints = None,
    epochs: int = 50,
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ignore: int | None = None,
    baseline: bool = True,
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Judge what every place of an image tells: a linear layer on frozen patch features, by mIoU.

    For example:
      manyviews segment runs/first scenes/
      manyviews segment runs/first scenes/ --stages -3 -2 -1

    Args:
        data: A folder with images/train and masks/train, the same for test and, if there is one, val. Masks are
            one-channel PNG files of class numbers, of which 255 does not count.
        stages: Of which of the network's stages, from the back as -1, -2: several are put side by side.
        epochs: Passes over the images.
        lrs: Learning rates to choose from on validation images.
        ignore: A value in masks that does not count, besides 255.
        baseline: Judge an untrained encoder too.
        seed: Of the layer's training.
    """
    import manyviews as mv

    found = mv.segment(
        _loaded(weights, look),
        data,
        baseline=baseline,
        stages=stages,
        test_size=look.test_size,
        epochs=epochs,
        lrs=lrs,
        ignore=ignore,
        seed=seed,
    )
    _show_dense(found, json)


def detect(
    weights: Weights,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    masks: bool = False,
    size: Annotated[int, arg(metavar="PIXELS")] = 800,
    epochs: int = 12,
    lr: float | None = None,
    batch: int = 16,
    batch_norm: Literal["batch", "running"] = "batch",
    proposals: int = 512,
    baseline: bool = False,
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Fine-tune a Faster or Mask R-CNN on a copy of the encoder, and judge it by COCO's average precision.

    For example:
      manyviews detect runs/first cells/ --size 160 --epochs 6 --batch 4 --proposals 64
      manyviews detect runs/first coco/ --masks

    Args:
        data: A folder in Pascal VOC's or COCO's format.
        masks: Segment every object, too (COCO's format only).
        size: Short side of the images, pixels.
        epochs: Passes over the images.
        lr: Peak learning rate; 0.02 for a batch of 16, and AdamW's 1e-4 for transformers, by default.
        batch: Images per step.
        batch_norm: Learn with the statistics of the batch, or keep the running ones.
        proposals: Sampled of each image.
        baseline: Fine-tune an untrained encoder too.
        seed: Of the new layers and the order.
    """
    import manyviews as mv

    if look.test_size is not None:
        raise UserError("Detection takes its images' short side as --size, and not as --test-size.")
    found = mv.detect(
        _loaded(weights, look),
        data,
        baseline=baseline,
        masks=masks,
        size=size,
        epochs=epochs,
        lr=lr,
        batch=batch,
        batch_norm=batch_norm,
        proposals=proposals,
        seed=seed,
    )
    _show_dense(found, json)


def propagate(
    weights: Weights,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    stages: Ints = None,
    frames: int = 7,
    radius: int = 12,
    baseline: bool = True,
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Follow the objects of a video's first frame by nearest patch features, without training, by DAVIS's J&F.

    For example:
      manyviews propagate runs/first DAVIS/

    Args:
        data: A folder with frames/<video>/*.jpg and masks/<video>/*.png, or in DAVIS's layout.
        stages: Of which of the network's stages, from the back as -1, -2: several are put side by side.
        frames: How many before, besides the first, labels are taken from.
        radius: How far away in the frame, in places of the map.
        baseline: Judge an untrained encoder too.
        seed: Of the interval.
    """
    import manyviews as mv

    found = mv.propagate(
        _loaded(weights, look),
        data,
        baseline=baseline,
        stages=stages,
        test_size=look.test_size,
        frames=frames,
        radius=radius,
        seed=seed,
    )
    _show_dense(found, json)


def report(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")],
    /,
    out: Annotated[Path, arg(metavar="FOLDER")],
    data: str | None = None,
    labels: Path | None = None,
    queries: Annotated[str | None, arg(metavar="DATA")] = None,
    images: Annotated[int, arg(metavar="N")] = 10_000,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Write a page about runs: how they trained, how good they are, what they see. It opens from disk.

    For example:
      manyviews report runs/first --out page
      manyviews report runs/first runs/second --out both --data labeled/ --queries mine/

    Args:
        runs: Folders of runs; several are shown side by side.
        out: A new or empty folder; open its index.html.
        data: Images for the map, the galleries and the views; those of the first run by default.
        labels: Of a folder a CSV file of path,label; of Parquet or tar files a column, or a member or field.
        queries: Images of your own, whose nearest neighbors are shown.
        images: On the map, at most.
        seed: Of the map.
    """
    import manyviews as mv

    path = mv.page(runs, out, data=data, labels=labels, queries=queries, images=images, seed=seed)
    print(f"Wrote {printable(str(path))}.")
    if json:
        _write(json, {"file": str(path)})


def diagnose(
    weights: Weights,
    data: Images,
    /,
    images: Annotated[int, arg(metavar="N")] = 10_000,
    look: Elsewhere = _AS_THEY_ARE,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Say what an encoder's features are like, without labels: dimensions, spread, collapse.

    For example:
      manyviews diagnose runs/first photos/
      manyviews diagnose timm:vit_small_patch16_224.dino photos/ --images 2000

    Args:
        data: A folder of images, or Parquet or tar files: see `manyviews pretrain --help`.
        images: How many to look at, at most.
        seed: Of the views, and of the untrained encoder to compare with.
    """
    import manyviews as mv

    found = mv.diagnose(_loaded(weights, look), data, images=images, seed=seed)
    print(found.text())
    if json:
        _write(json, found.to_json())


def select(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")],
    /,
    data: str | None = None,
    by: Literal["rankme", "lidar", "alpha_req", "auc"] = "rankme",
    oracle: Annotated[str | None, arg(metavar="DATA")] = None,
    test: str | None = None,
    labels: Path | None = None,
    test_labels: Path | None = None,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Choose among runs of one method without labels, by what their features are like.

    For example:
      manyviews select runs/lr1 runs/lr2 runs/lr3
      manyviews select runs/lr1 runs/lr2 runs/lr3 --data photos/ --by lidar
      manyviews select sweeps/temperature/*/ --oracle labeled/

    Args:
        runs: Folders of finished runs.
        data: Images to look at; those that the runs were trained on by default.
        by: A number that needs no labels.
        oracle: Labeled images, to see how often the choice agrees with accuracy.
        test: Labeled images to test the accuracy on; a fifth of the oracle by default.
        labels: For the oracle: of a folder a CSV file of path,label; of Parquet or tar files a column, or a member or
            field.
        test_labels: The same for the test images.
        seed: Of the views and the intervals.
    """
    import manyviews as mv

    found = mv.select(runs, data, by=by, oracle=oracle, test=test, labels=labels, test_labels=test_labels, seed=seed)
    print(found.text())
    if json:
        _write(json, found.to_json())


def duplicates(
    weights: Weights,
    data: Images,
    /,
    out: Annotated[Path, arg(metavar="FILE")],
    threshold: float = 0.95,
    look: Elsewhere = _AS_THEY_ARE,
    json: Json = None,
) -> None:
    """List groups of images that are nearly the same, by the features of an encoder.

    For example:
      manyviews duplicates runs/first photos/ --out duplicates.csv
      manyviews duplicates runs/first photos/ --threshold 0.98 --out duplicates.csv

    Args:
        data: A folder of images, or Parquet or tar files: see `manyviews pretrain --help`.
        out: A new CSV file, with the columns group, id, keep (of one image in each group) and similarity.
        threshold: Cosine similarity from which images count as the same. The protocol copy_detection measures one.
    """
    import manyviews as mv

    groups = mv.duplicates(_loaded(weights, look), data, out, threshold)
    images = sum(len(g.ids) for g in groups)
    print(
        f"{images} images are in {len(groups)} groups of near-duplicates, {images - len(groups)} more than are needed."
    )
    print(f"Wrote {printable(str(out))}.")
    if json:
        _write(json, {"file": str(out), "groups": [{"ids": g.ids, "similarity": g.similarity} for g in groups]})


def subspaces(run: Folder, data: Images, /, out: Out, labels: Path | None = None, json: Json = None) -> None:
    """Show what a MAST run learned of its augmentations: masks, correlations, invariances, uncertainties.

    For example:
      manyviews subspaces runs/mast labeled/ --out subspaces/

    Args:
        run: The folder of a run of mast.
        data: Images; with labels, also what each subspace is good for.
        out: A new folder, for plots and subspaces.json.
        labels: Of a folder a CSV file of path,label; of Parquet or tar files a column, or a member or field.
    """
    import manyviews as mv

    found = mv.subspaces(run, data, out, labels)
    print(f"Wrote {len(list(out.glob('*.png')))} plots and subspaces.json to {printable(str(out))}.")
    print(f"The most diverse augmentations first: {printable(', '.join(found['order']))}.")
    if found["bad"]:
        where, reason = found["bad"][0]
        print(printable(f"Left out {len(found['bad'])} images that cannot be read (the first: {where}: {reason})."))
    if json:
        _write(json, found)


def embed(weights: Weights, data: Images, /, out: Out, look: Elsewhere = _AS_THEY_ARE, json: Json = None) -> None:
    """Write the features of every image to a Parquet file.

    For example:
      manyviews embed runs/first photos/ --out features.parquet

    Args:
        data: A folder of images, or Parquet or tar files: see `manyviews pretrain --help`.
        out: A new Parquet file, with the columns id, embedding and, if there are labels, label.
    """
    import pyarrow.parquet as pq

    import manyviews as mv

    path = mv.embed(_loaded(weights, look), data, out)
    table = pq.read_schema(path)
    facts = {"file": str(path), "images": pq.read_metadata(path).num_rows, "columns": table.names}
    print(f"Wrote the features of {facts['images']} images to {printable(str(path))}.")
    if json:
        _write(json, facts)


def export(
    weights: Weights,
    /,
    format: Literal["safetensors", "timm", "onnx", "torch"],
    out: Out,
    look: Elsewhere = _AS_THEY_ARE,
    json: Json = None,
) -> None:
    """Write the encoder in a form that other software loads.

    For example:
      manyviews export runs/first --format timm --out backbone/
      manyviews export runs/first --format onnx --out backbone.onnx

    Args:
        format: safetensors: tensors in timm's names. timm: a folder for timm's "local-dir:". onnx: a graph from
            RGB images in [0, 1] to features. torch: a state dict.
        out: A new file, or a new folder for timm.
    """
    import manyviews as mv

    path = mv.export(_loaded(weights, look), format, out)
    print(f"Wrote {printable(str(path))}.")
    if json:
        _write(json, {"file": str(path), "format": format})


def show(run: Folder, /, settings: bool = False, json: Json = None) -> None:
    """Show what a run is, how far it came, and how good it is.

    For example:
      manyviews show runs/first
      manyviews show runs/first --settings

    Args:
        run: The folder of the run.
        settings: Print every setting by its dotted path.
    """
    import manyviews as mv
    from manyviews.report import summary

    found = mv.Run(run)
    if settings:
        for path, value in summary.settings(found.recipe):
            print(f"{path}={value}")
    else:
        summary.show_run(found)
    if json:
        _write(json, _facts(found))


def list_(
    what: Positional[Literal["methods", "recipes", "views", "protocols", "backbones"]],
    /,
    match: str = "*",
    json: Json = None,
) -> None:
    """List what there is to choose from.

    For example:
      manyviews list recipes
      manyviews list backbones --match "vit_*"

    Args:
        what: What to list.
        match: Only names of this pattern.
    """
    from fnmatch import fnmatch

    found = {k: v for k, v in _catalog(what, match).items() if fnmatch(k, match)}
    if not found:
        raise UserError(f"There are no {what} that match '{match}'.")
    wide = max(map(len, found))
    for name, words in found.items():
        print(f"{name:{wide}}  {words}".rstrip())
    if json:
        _write(json, found)


def demo(out: Annotated[Path | None, arg(metavar="RUN")] = None, json: Json = None) -> None:
    """Pretrain on the pictures that come with the package, and judge the result. No network, minutes on two cores.

    For example:
      manyviews demo

    Args:
        out: A new folder for the run; runs/simclr_demo-<date> by default.
    """
    import manyviews as mv
    from manyviews.report import summary

    # Not "demo", which a folder here may be called.
    run = mv.pretrain("demo:train", "simclr_demo", out=out)
    report = run.evaluate("demo:train", "demo:test")
    summary.show_run(run)
    if json:
        _write(json, {**_facts(run), "report": report.to_dict()})


VERBS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "pretrain": pretrain,
    "sweep": sweep,
    "resume": resume,
    "evaluate": evaluate,
    "transfer": transfer,
    "segment": segment,
    "detect": detect,
    "propagate": propagate,
    "report": report,
    "diagnose": diagnose,
    "select": select,
    "duplicates": duplicates,
    "subspaces": subspaces,
    "embed": embed,
    "export": export,
    "show": show,
    "list": list_,
    "demo": demo,
}


def main(args: Sequence[str] | None = None) -> None:
    """Exit with 0, with 2 after bad input, with 1 after a failure or an interruption."""
    args = sys.argv[1:] if args is None else args
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_overview())
            sys.exit(0 if args else 2)
        if args[0] not in VERBS:
            raise unknown("verb", args[0], VERBS)
        for flag, value in zip(args, [*args[1:], ""], strict=True):
            if flag == "--json" or flag.startswith("--json="):
                _check_place(Path(flag.partition("=")[2] or value))  # before hours of work, and not after
        tyro.cli(VERBS[args[0]], prog=f"manyviews {args[0]}", args=args[1:])
    except UserError as e:
        print(printable(f"manyviews: {e}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("manyviews: interrupted.", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        # What may happen to anybody: a stop, numbers that are no longer finite, a full disk.
        if isinstance(e, (FloatingPointError, OSError)) or type(e).__name__ in ("Stopped", "SafetensorError"):
            print(printable(f"manyviews: {e}"), file=sys.stderr)
        else:
            traceback.print_exc()
        sys.exit(1)


def _overview() -> str:
    """Every verb and what it does, in a line each."""
    lines = [f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    title = "Self-supervised visual pretraining: a folder of unlabeled images in, a backbone out."
    return "\n".join([f"{title}\n", "usage: manyviews VERB ...", *lines, "\n`manyviews VERB --help` has examples."])


def _loaded(weights: str, look: Look) -> Any:
    """A run stays a path, for an evaluation of it to be written there."""
    import manyviews as mv

    if look == _AS_THEY_ARE and Path(weights).is_dir():
        return weights
    settings = {} if look.num_heads is None else {"num_heads": look.num_heads}
    return mv.load(weights, look.backbone, test_size=look.test_size, mean=look.mean, std=look.std, **settings)


def _show_dense(found: Any, out: Path | None) -> None:
    from manyviews.report import summary

    summary.show_dense(found)
    if out:
        _write(out, found.to_dict())


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _settings(pairs: tuple[str, ...], flag: str = "--set", example: str = "optimizer.lr=0.1") -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"{flag} takes path=value, such as {example}, not '{pair}'.")
    return dict(pair.split("=", 1) for pair in pairs)


def _finished(run: Any, out: Path | None) -> None:
    from manyviews import distributed
    from manyviews.report import summary

    if distributed.rank() == 0:
        summary.show_run(run)
        if out:
            _write(out, _facts(run))
    distributed.stop()


def _facts(run: Any) -> dict[str, Any]:
    from manyviews.settings import to_json

    return {
        "folder": str(run.folder),
        "recipe": json.loads(to_json(run.recipe)),
        "run": run.facts,
        "summary": run.summary,
    }


def _check_place(path: Path) -> None:
    from manyviews.checkpoint import check_writable

    if path.is_dir():
        raise UserError(f"The results cannot be written to {path}, which is a folder: name a file.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder {path.absolute().parent} for {path.name}.")
    check_writable(path)


def _write(path: Path, result: Any) -> None:
    from manyviews.checkpoint import write_text

    try:
        write_text(path, result if isinstance(result, str) else json.dumps(result, indent=2))
    except OSError as e:
        raise UserError(f"The results cannot be written to {path}: {e.strerror}.") from None


def _catalog(what: str, match: str) -> dict[str, str]:
    def first(text: str | None) -> str:
        return (text or "").strip().splitlines()[0]

    if what == "methods":
        from manyviews import methods

        return {n: first(methods.describe(n)) for n in methods.names()}
    if what == "recipes":
        from manyviews import recipes

        return {n: first(recipes.describe(n)) for n in recipes.names()}
    if what == "views":
        from manyviews import views

        return {k.__name__: first(k.__doc__) for k in views.View.__subclasses__()}
    if what == "protocols":
        from manyviews import evaluation

        return {n: first(p.__doc__) for n, p in evaluation.PROTOCOLS.items()}
    from manyviews import backbones

    return dict.fromkeys(backbones.names(match), "")
