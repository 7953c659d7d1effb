"""Verbs that evaluate an encoder, with labels or without."""

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
    NewFolder,
    Pixels,
    Protocols,
    RunFolders,
    Scenes,
    Settings,
    Stages,
    TestLabels,
    Weights,
    load,
    names,
    settings,
    show_dense,
    write_json,
    wrote,
)
from manyviews.cli._parser import Arg
from manyviews.errors import UserError


def evaluate(
    weights: Weights,
    /,
    data: Annotated[str, Arg("DATA")],
    test: DataSet = None,
    protocol: Protocols = "knn,linear",
    labels: Labels = None,
    test_labels: TestLabels = None,
    baselines: bool = True,
    min_per_class: Annotated[int | None, Arg("N")] = None,
    seed: int = 0,
    seeds: Count = 1,
    features: Literal["pooled", "last4", "cls_mean"] = "pooled",
    set: Settings = (),
    shifted: Annotated[tuple[str, ...], Arg("DATA", repeat=True)] = (),
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Evaluate an encoder on labeled images, next to an untrained encoder and raw pixels.

    For example:
      manyviews evaluate runs/first --data labeled/
      manyviews evaluate runs/first --data train.parquet --test test.parquet --protocol knn,linear,logistic
      manyviews evaluate checkpoint.pth.tar --data photos/ --labels labels.csv
      manyviews evaluate timm:resnet18 --data labeled/
      manyviews evaluate runs/vit --data labeled/ --protocol linear_augmented --features last4
      manyviews evaluate runs/first --data labeled/ --protocol finetune --set finetune.lrs=0.01,0.05
      torchrun --nproc-per-node 8 -m manyviews evaluate runs/first --data imagenet/train --test imagenet/val

    Args:
        data: Labeled images: each first-level folder is a class, or see --labels.
        test: Labeled images to test on. By default, the test images of DATA if it has splits, else a fifth of it.
        protocol: Protocols, separated by commas: see `manyviews list protocols`.
        baselines: Evaluate an untrained encoder and raw pixels too.
        min_per_class: Leave out classes with fewer training images, at least 10. By default they are refused.
        seed: Seed of the untrained encoder, of the protocols that draw, and of the intervals.
        seeds: How often each protocol that draws is run; its accuracy is the mean.
        features: Features of a vision transformer: the pooled ones, the class tokens of the last four blocks, or the
            class token and the mean patch token.
        set: Change a setting of a protocol, such as finetune.epochs=30: see `manyviews list protocols NAME`.
        shifted: Labeled images of the same classes under other conditions, such as sketches, to test a probe that
            learned from DATA.
    """
    from manyviews import distributed
    from manyviews.reporting import summary

    report = mv.evaluate(
        load(weights, hints),
        data,
        test,
        protocols=names(protocol),
        features=features,
        settings=settings(set, example="finetune.epochs=30"),
        labels=labels,
        test_labels=test_labels,
        others=shifted,
        seed=seed,
        seeds=seeds,
        baselines=baselines,
        min_per_class=min_per_class,
    )
    if distributed.rank() == 0:
        summary.show(report)
        write_json(json, report.to_json())
    distributed.stop()


def transfer(
    weights: Weights,
    suite: Annotated[Path, Arg("SUITE")],
    /,
    out: NewFolder,
    protocol: Protocols = "linear",
    baselines: bool = True,
    min_per_class: Annotated[int | None, Arg("N")] = None,
    seed: int = 0,
    seeds: Count = 1,
    set: Settings = (),
    compare: Annotated[tuple[Path, ...], Arg("FOLDER", repeat=True)] = (),
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Evaluate an encoder on many labeled sets, in one table.

    For example:
      manyviews transfer runs/first sets/ --out transfer/first
      manyviews transfer runs/first sets/ --protocol linear,finetune --seeds 3 --out transfer/tuned
      manyviews transfer runs/second sets/ --out transfer/second --compare transfer/first

    Args:
        suite: A folder that holds each set: pets/train/<class> and pets/test/<class>, or pets/<class>, or pets.zip, or
            pets_train.parquet and pets_test.parquet, or a folder in Pascal VOC's layout. Or one such set.
        out: A folder for the reports. The same command again continues an interrupted suite.
        protocol: Protocols that classify, separated by commas: see `manyviews list protocols`.
        baselines: Evaluate an untrained encoder and raw pixels too.
        min_per_class: Leave out classes with fewer training images, at least 10. By default they are refused.
        seed: Seed of the untrained encoder, of the protocols that draw, and of the intervals.
        seeds: How often each protocol that draws is run; its accuracy is the mean.
        set: Change a setting of a protocol, such as finetune.epochs=30: see `manyviews list protocols NAME`.
        compare: The folder of another encoder's suite, to draw a radar plot of both; may be repeated.
    """
    from manyviews.reporting import summary

    found = mv.transfer(
        load(weights, hints),
        suite,
        out,
        protocols=names(protocol),
        settings=settings(set, example="finetune.epochs=30"),
        seed=seed,
        seeds=seeds,
        baselines=baselines,
        min_per_class=min_per_class,
        compare=compare,
    )
    summary.show_transfer(found.table(), found.notes)
    for plot in sorted(found.folder.glob("radar-*.png")) if compare else ():
        wrote(plot)
    write_json(json, found.to_dict())


def segment(
    weights: Weights,
    data: Scenes,
    /,
    stages: Stages = None,
    epochs: Count = 50,
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ignore: int | None = None,
    baseline: bool = True,
    seed: int = 0,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Train a linear layer on frozen patch features to segment images, and report its mIoU.

    For example:
      manyviews segment runs/first scenes/
      manyviews segment runs/first scenes/ --stages -3 -2 -1

    Args:
        data: A folder with images/train and masks/train, the same for test and, if you have one, val. Masks are
            one-channel PNG files of class numbers; 255 is ignored.
        epochs: Passes over the images.
        lrs: Learning rates to choose from on validation images.
        ignore: Another value in masks to ignore, besides 255.
        baseline: Evaluate an untrained encoder too.
        seed: Seed of the layer's training.
    """
    found = mv.segment(
        load(weights, hints),
        data,
        baseline=baseline,
        stages=stages,
        test_size=hints.test_size,
        epochs=epochs,
        lrs=lrs,
        ignore=ignore,
        seed=seed,
    )
    show_dense(found, json)


def detect(
    weights: Weights,
    data: Annotated[tuple[Path, ...], Arg("DATA")],
    /,
    preset: Literal["coco_1x", "voc_24k"] | None = None,
    masks: bool = False,
    size: Pixels = 800,
    epochs: Annotated[int | None, Arg("N")] = None,
    batch_size: Count = 16,
    lr: Annotated[float | None, Arg("RATE")] = None,
    batch_norm: Literal["batch", "backbone", "running"] | None = None,
    proposals: Count = 512,
    baseline: bool = False,
    seed: int = 0,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Fine-tune a Faster or Mask R-CNN on a copy of the encoder, and report COCO's average precision.

    For example:
      manyviews detect runs/first cells/ --size 160 --epochs 6 --batch-size 4 --proposals 64
      manyviews detect runs/first coco/ --masks --preset coco_1x
      torchrun --nproc-per-node 8 -m manyviews detect runs/first VOC2007/ VOC2012/ --preset voc_24k

    Args:
        data: A folder in the format of Pascal VOC or COCO, or several that are one set.
        preset: A published schedule: detectron2's 1x for COCO with a feature pyramid, or MoCo's 24,000 steps for VOC
            07+12 with the C4 detector. Steps are scaled to the number of images.
        masks: Segment every object, too (COCO's format only).
        size: Short side of the images in pixels. The training sizes of a preset are in proportion.
        epochs: Passes over the images; by default 12, or the preset's steps.
        batch_size: Images per step, of all processes.
        lr: Peak learning rate; by default 0.02 for a batch of 16, and 1e-4 with AdamW for transformers.
        batch_norm: Normalize with the statistics of the batch, in the backbone alone or in the pyramid too, or with the
            running ones. By default batch, and backbone with a preset.
        proposals: How many proposals are sampled from each image.
        baseline: Fine-tune an untrained encoder too.
        seed: Seed of the new layers and of the order of the images.
    """
    if hints.test_size is not None:
        raise UserError("Detection takes the short side of its images as --size, not as --test-size.")
    found = mv.detect(
        load(weights, hints),
        data,
        baseline=baseline,
        preset=preset,
        masks=masks,
        size=size,
        epochs=epochs,
        lr=lr,
        batch=batch_size,
        batch_norm=batch_norm,
        proposals=proposals,
        seed=seed,
    )
    show_dense(found, json)


def propagate(
    weights: Weights,
    data: Scenes,
    /,
    stages: Stages = None,
    frames: Count = 7,
    radius: Count = 12,
    baseline: bool = True,
    seed: int = 0,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Follow the objects of a video's first frame by nearest patch features, and report DAVIS's J&F.

    For example:
      manyviews propagate runs/first DAVIS/

    Args:
        data: A folder with frames/<video>/*.jpg and masks/<video>/*.png, or in DAVIS's layout.
        frames: How many previous frames give their labels, besides the first frame.
        radius: How far away in the frame a label may come from, in patches.
        baseline: Evaluate an untrained encoder too.
        seed: Seed of the interval.
    """
    found = mv.propagate(
        load(weights, hints),
        data,
        baseline=baseline,
        stages=stages,
        test_size=hints.test_size,
        frames=frames,
        radius=radius,
        seed=seed,
    )
    show_dense(found, json)


def diagnose(
    weights: Weights,
    data: Images,
    /,
    images: Count = 10_000,
    seed: int = 0,
    hints: Hints = NO_HINTS,
    json: Json = None,
) -> None:
    """Describe an encoder's features without labels: dimensions, spread, collapse.

    For example:
      manyviews diagnose runs/first photos/
      manyviews diagnose timm:vit_small_patch16_224.dino photos/ --images 2000

    Args:
        images: How many images to use at most.
        seed: Seed of the views, and of the untrained encoder to compare with.
    """
    found = mv.diagnose(load(weights, hints), data, images=images, seed=seed)
    print(found.text())
    write_json(json, found.to_json())


def select(
    runs: RunFolders,
    /,
    data: DataSet = None,
    by: Literal["rankme", "lidar", "alpha_req", "auc"] = "rankme",
    oracle: DataSet = None,
    test: DataSet = None,
    labels: Labels = None,
    test_labels: TestLabels = None,
    min_per_class: Annotated[int | None, Arg("N")] = None,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Choose among runs of one method without labels, by their features.

    For example:
      manyviews select runs/lr1 runs/lr2 runs/lr3
      manyviews select runs/lr1 runs/lr2 runs/lr3 --data photos/ --by lidar
      manyviews select sweeps/temperature/*/ --oracle labeled/

    Args:
        runs: Folders of finished runs.
        data: Images to compute the criterion on; by default those that the runs were trained on.
        by: The criterion: a number that needs no labels.
        min_per_class: Leave out classes of the oracle with fewer images, at least 10. By default they are refused.
        oracle: Labeled images, to measure how well the choice agrees with accuracy.
        test: Labeled images to test the accuracy on; a fifth of the oracle by default.
        seed: Seed of the views and of the intervals.
    """
    found = mv.select(
        runs,
        data,
        by=by,
        oracle=oracle,
        test=test,
        labels=labels,
        test_labels=test_labels,
        seed=seed,
        min_per_class=min_per_class,
    )
    print(found.text())
    write_json(json, found.to_json())
