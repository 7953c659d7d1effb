"""Object detection and instance segmentation by fine-tuning Faster and Mask R-CNN on an encoder, and COCO's AP."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice, tee
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews import distributed, machine
from manyviews.backbones import Encoder, patch_features, protect
from manyviews.data.canvas import in_threads
from manyviews.data.decode import BadImage
from manyviews.errors import UserError
from manyviews.evaluation.dense.boxes import Picture, Thing, open_pictures
from manyviews.evaluation.dense.files import Bad, check_counts, check_rates
from manyviews.evaluation.dense.maps import intermediates, stage_shapes
from manyviews.evaluation.dense.presets import preset_of
from manyviews.evaluation.dense.report import Dense
from manyviews.evaluation.descent import descend, stepping
from manyviews.evaluation.features import frozen
from manyviews.evaluation.metrics import LEVEL, MAP_RESAMPLES, Interval
from manyviews.progress import Update

_CHANNELS = 256
_STRIDES = (4, 8, 16, 32)
_SIDES = (32, 64, 128, 256, 512)  # of anchors in pixels
_RATIOS = (0.5, 1.0, 2.0)
_ELONGATED = 1333 / 800  # largest ratio of the long side to the short one
_WARMUP = 1000  # steps, or a tenth of the run
_DROPS = (2 / 3, 8 / 9)  # share of the run at which the learning rate falls to a tenth: 60,000, 80,000 of 90,000 steps
_LEAST_RESAMPLES = 100
_ROWS = 2 * 10**7  # pairs of an image and a class that all resamples read together: half a minute
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def detect(
    encoder: Encoder,
    data: Path | Sequence[Path],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    preset: str | None = None,
    masks: bool = False,
    size: int = 800,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int = 16,
    batch_norm: Literal["batch", "backbone", "running"] | None = None,
    proposals: int = 512,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Update | None = None,
) -> Dense:
    """Fine-tuning of a Faster R-CNN, or a Mask R-CNN, on a copy of the encoder: COCO's AP on the test images.

    Convolutional networks get a feature pyramid (FPN, Lin et al. 2017) on their maps of strides 4 to 32, vision
    transformers a simple one of their last map (ViTDet, Li et al. 2022), with global attention throughout. Anchors are
    32 to 512 pixels wide, and the heads are torchvision's. Random horizontal flips are the only augmentation. All
    weights that require a gradient learn, by SGD (momentum 0.9, weight decay 1e-4) or, in vision transformers, by AdamW
    (weight decay 0.1); the learning rate warms up for 1,000 steps, a tenth of the run at most, and falls to a tenth
    after 2/3 and 8/9 of the run. The last weights predict the test images once, one image at a time. Nothing is chosen.

    Several processes of a group share each batch and the test images, and get the same result.

    Args:
        encoder: encoder to judge. It stays as it is, on its device.
        data: folder of images with boxes, or several that are one set: see `boxes.open_pictures`.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        preset: a published schedule: the detector, the sizes of training images, the number of steps and their rates:
            see `presets`. None for one size and `epochs`.
        masks: also segment every object; the headline is then mask AP. Needs COCO's format.
        size: short side of the images in pixels; the long one is at most 5/3 of it. A preset's training sizes are in
            proportion.
        epochs: passes over the training images that show an object. None: the preset's steps, or 12, COCO's "1x".
        lr: learning rate. None: 0.02 for batches of 16, in proportion for others; 1e-4 for vision transformers.
        batch: images per step, of all processes.
        batch_norm: statistics of BatchNorm. "backbone" takes those of the batch while training, of all processes, in
            the encoder. "batch" puts BatchNorm into the pyramid too (MoCo, He et al. 2020, section 4.2:
            self-supervised features are not on the scale that detectors expect). "running" keeps those of the
            pretraining, for tiny batches. None: "batch", and "backbone" with a preset.
        proposals: regions per image that the heads learn from.
        device: device to compute on.
        seed: seed of the heads' first weights, the order, the flips, the regions, and the interval.
        progress: called after every step, every test image and every draw of the interval.

    Raises:
        UserError: data in no known layout, an unknown preset, an encoder without maps, or a training that diverged.
    """
    schedule = preset_of(preset)
    check_counts(size=size, epochs=1 if epochs is None else epochs, batch=batch, proposals=proposals)
    check_rates(*([] if lr is None else [lr]))
    if batch < distributed.world_size():
        raise UserError(f"A batch of {batch} is too small for {distributed.world_size()} processes: give one to each.")
    if masks and schedule is not None and schedule.detector == "c4":
        raise UserError(f"The preset {schedule.name} finds boxes only: leave masks out, or take coco_1x.")
    _coco_tools()
    start, device = time.monotonic(), torch.device(device)
    found = open_pictures(data, masks)
    shown = [p for p in found.train if not all(t.crowd for t in p.things)]
    per_epoch = math.ceil(len(shown) / batch)
    if schedule is None or epochs is not None:
        steps = per_epoch * (12 if epochs is None else epochs)
    else:
        steps = schedule.steps_for(len(shown), batch)
    few = None if proposals == 512 else proposals
    given = {"epochs": epochs, "lr": lr, "batch_norm": batch_norm, "proposals": few}
    changed = [name for name, value in given.items() if value is not None]
    batch_norm = batch_norm or ("batch" if schedule is None else "backbone")
    bad: Bad = list(found.bad)
    # The heads and torchvision's samplers draw from the global random state; it is restored.
    with machine.seeded(seed, device):
        sizes, c4 = ((size,), False) if schedule is None else (schedule.sizes_at(size), schedule.detector == "c4")
        model, plain = _detector(encoder, len(found.classes), mean, std, masks, size, batch_norm, proposals, sizes, c4)
        model = distributed.sync_batchnorm(model.to(device), device)
        if distributed.rank():  # the same heads, other regions
            torch.manual_seed(seed + distributed.rank())
        rate = lr if lr is not None else 1e-4 if plain else 0.02 * batch / 16
        warmup, drops = (_WARMUP, _DROPS) if schedule is None else (schedule.warmup, schedule.shares)
        share = partial(_share, steps=steps, warmup=warmup, drops=drops)
        trained = _train(model, plain, shown, masks, steps, rate, share, batch, batch_norm, seed, bad, progress)
    tell: Callable[[Dense | None], Dense | None] = distributed.later()
    truth, answers = _ask(model, found.test, found.classes, masks, bad, progress)
    if not truth["annotations"]:
        raise UserError(f"None of the {len(found.test)} test images of {data} that show an object can be read.")
    bad = [one for part in distributed.collect(bad) for one in part]
    if distributed.rank():
        return cast(Dense, tell(None))

    kinds: tuple[Literal["bbox", "segm"], ...] = ("segm", "bbox") if masks else ("bbox",)
    words = {"bbox": "box", "segm": "mask"}
    scores = {kind: average_precision(truth, answers, kind) for kind in kinds}
    details = {f"{words[k]} {name}": value for k in kinds for name, value in scores[k][0].items()}
    metric = f"{words[kinds[0]]} AP"
    ours = () if schedule is None else (schedule.told(steps, batch, size, plain, changed),)
    report = Dense(
        task="detection",
        metric=metric,
        value=details.pop(metric),
        interval=interval(truth, answers, kinds[0], seed, progress),
        details=details,
        per_class=dict(zip(found.classes, scores[kinds[0]][1], strict=True)),
        baselines={},
        setting={"lr": rate, "epochs": steps / per_epoch, "batch": batch, "size": size},
        validation={},
        images={"train": trained, "validation": 0, "test": len(truth["images"])},
        bad=tuple(dict.fromkeys(bad)),
        seconds=time.monotonic() - start,
        notes=(*found.notes, *ours),
    )
    tell(report)
    return report


# -- measures ----------------------------------------------------------------------------------------------------


def average_precision(
    truth: dict[str, Any], answers: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> tuple[dict[str, float], list[float | None]]:
    """COCO's average precision, mean over IoU from 0.5 to 0.95, with up to 100 answers per image.

    Args:
        truth: annotations in COCO's format: "images", "categories" and "annotations".
        answers: results in COCO's format: "image_id", "category_id", "score", "bbox", and "segmentation" for masks.
        kind: overlap of boxes or of masks.

    Returns:
        "AP", "AP50", "AP75", and "APs", "APm", "APl" for objects up to 32, up to 96 and above 96 pixels squared, where
        there are any; and the AP of each category, by ascending id, None if it has no objects.
    """
    judge = _judge(truth, answers, kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    numbers = dict(zip(_NAMES, (float(v) for v in judge.stats[: len(_NAMES)]), strict=True))
    # Thresholds, recalls, categories, areas and numbers of answers; -1 where there is nothing.
    precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]
    each = [column[column > -1] for column in np.moveaxis(precision, 2, 0)]
    return {k: v for k, v in numbers.items() if v > -1}, [float(c.mean()) if c.size else None for c in each]


def interval(
    truth: dict[str, Any],
    answers: Sequence[dict[str, Any]],
    kind: Literal["bbox", "segm"],
    seed: int = 0,
    progress: Update | None = None,
) -> Interval:
    """Percentile bootstrap interval of AP over the images, which are drawn 1,000 times with replacement.

    With more than 20,000 pairs of an image and a class there are fewer draws, but at least 100. Answers are matched
    with objects once, and COCO's evaluator computes the AP of each draw. Draws without objects do not count.

    Args:
        truth, answers, kind: see `average_precision`.
        seed: seed of the draws.
        progress: called after every draw.
    """
    judge = _judge(truth, answers, kind, separate_eval=True)
    # AP is over objects of any size, with up to 100 answers per image; the rest is not needed here.
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
    judge.params.maxDets = judge.params.maxDets[-1:]
    judge.evaluate()
    matched, m, classes = judge._evalImgs_cpp, len(judge.params.imgIds), len(judge.params.catIds)
    rng, values = np.random.default_rng(seed), []
    draws = max(_LEAST_RESAMPLES, min(MAP_RESAMPLES, _ROWS // len(matched)))
    for k in range(draws):
        drawn = rng.integers(0, m, m).tolist()
        judge._evalImgs_cpp = [matched[c * m + i] for c in range(classes) for i in drawn]
        judge.accumulate()
        precision = np.asarray(judge.eval["precision"])
        if (precision > -1).any():
            values.append(precision[precision > -1].mean())
        if progress is not None:
            progress(k + 1, draws, "interval")
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _judge(truth: dict[str, Any], answers: Sequence[dict[str, Any]], kind: str, **settings: bool) -> Any:
    """COCO's evaluator of these answers."""
    COCO, COCOeval = _coco_tools()
    # With its box, a mask would be called small or large by the area of the box.
    left_out = "bbox" if kind == "segm" else "segmentation"
    results = [{k: v for k, v in answer.items() if k != left_out} for answer in answers]
    known = COCO(copy.deepcopy(truth))
    found = known.loadRes(results) if results else COCO({**copy.deepcopy(truth), "annotations": []})
    return COCOeval(known, found, kind, **settings)


def _coco_tools() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError("Detection needs a package: pip install 'manyviews[detection]'.") from None
    return COCO, COCOeval_faster


# -- networks ----------------------------------------------------------------------------------------------------


class _Stages(nn.Module):
    """FPN on the maps of a convolutional network: the last map of each stride from 4 to 32 that it has.

    Gives maps "0", "1", ... of `strides`, the finest first, and pooled ones: see `_pooled`.
    """

    out_channels = _CHANNELS

    def __init__(self, encoder: Encoder, shapes: list[tuple[int, int]], norm: type[nn.Module] | None) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        last = {stride: i for i, (_, stride) in enumerate(shapes) if stride in _STRIDES}
        if not last:
            raise UserError(f"{encoder.name} has no maps of strides from 4 to 32 pixels: choose another backbone.")
        self.strides = sorted(last)
        self._indices = [last[stride] for stride in self.strides]
        self.encoder = encoder
        self.pyramid = FeaturePyramidNetwork([shapes[i][0] for i in self._indices], _CHANNELS, norm_layer=norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = intermediates(self.encoder, x, self._indices)
        return _pooled(self.pyramid({str(i): m for i, m in enumerate(maps)}))


class _Conv4(nn.Module):
    """The map of a ResNet's last group of blocks but one, of stride 16, alone: the C4 detector (Ren et al. 2015)."""

    def __init__(self, encoder: Encoder, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        if not isinstance(getattr(encoder.model, "layer4", None), nn.Sequential):
            raise UserError(f"The C4 detector takes a ResNet apart, and {encoder.name} is none: take coco_1x.")
        (self.out_channels, stride), self._index = shapes[-2], len(shapes) - 2
        self.strides = [stride]
        self.encoder = encoder

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        (found,) = intermediates(self.encoder, x, [self._index])
        return {"0": found}


class _Conv5(nn.Module):
    """Regions, `n c 14 14`, to features, `n d`: a ResNet's last group of blocks, and as in MoCo one more BatchNorm."""

    def __init__(self, encoder: Encoder, d: int, norm: bool) -> None:
        super().__init__()
        self.blocks = cast(nn.Module, encoder.model.layer4)
        self.norm = nn.BatchNorm2d(d) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.blocks(x)).mean((2, 3))
        return found


class _Simple(nn.Module):
    """ViTDet's pyramid of strides 4 to 32: the last map enlarged by deconvolution, as it is, and max-pooled.

    torchvision's anchors and regions need strides that are powers of two. For patches of another size, such as 14
    pixels, images are shrunk (by 14/16), so that the strides on the original image are powers of two.
    """

    out_channels = _CHANNELS

    def __init__(self, encoder: Encoder, d: int, patch: int) -> None:
        super().__init__()
        self.encoder, self.strides = encoder, list(_STRIDES)
        self._stride = 2 ** math.ceil(math.log2(patch))
        self._scale = patch / self._stride
        self.levels = nn.ModuleList(_level(d, self._stride / stride) for stride in self.strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        grid = [side // self._stride for side in x.shape[-2:]]
        if self._scale != 1:
            x = F.interpolate(x, scale_factor=self._scale, mode="bilinear", antialias=True)
        found = patch_features(self.encoder, x).transpose(1, 2).unflatten(2, grid)
        return _pooled({str(i): level(found) for i, level in enumerate(self.levels)})


def _level(d: int, scale: float) -> nn.Sequential:
    """Resizes a map of `d` features by a power of two, to 256 features."""
    from timm.layers import LayerNorm2d

    body: list[nn.Module] = []
    while scale > 1:
        body += [LayerNorm2d(d), nn.GELU()] if body else []
        body.append(nn.ConvTranspose2d(d, d // 2, kernel_size=2, stride=2))
        d, scale = d // 2, scale / 2
    if scale < 1:
        body.append(nn.MaxPool2d(round(1 / scale)))
    narrow = nn.Conv2d(d, _CHANNELS, 1, bias=False)
    smooth = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
    return nn.Sequential(*body, narrow, LayerNorm2d(_CHANNELS), smooth, LayerNorm2d(_CHANNELS))


def _pooled(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps, and further ones, each with every second position of the one before, up to five."""
    last = str(len(maps) - 1)
    found, x = dict(maps), maps[last]
    while len(found) <= len(_STRIDES):
        x = found[f"pool{len(found)}"] = F.max_pool2d(x, 1, 2)
    return found


def _detector(
    encoder: Encoder,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    masks: bool,
    size: int,
    batch_norm: str,
    proposals: int,
    sizes: Sequence[int] = (),
    c4: bool = False,
) -> tuple[Any, bool]:
    """The network, and whether its encoder is a plain vision transformer. Without `sizes` it learns at `size`."""
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    shapes = stage_shapes(encoder)
    encoder = copy.deepcopy(encoder)
    protect(encoder)
    plain = len({stride for _, stride in shapes}) == 1
    settings: dict[str, Any] = {
        "min_size": tuple(sizes) or size,  # torchvision draws one for each image, and tests at the last
        "max_size": int(size * _ELONGATED),
        "image_mean": list(mean),
        "image_std": list(std),
        "size_divisible": _STRIDES[-1],
        "box_batch_size_per_image": proposals,
    }
    body: Any
    if c4:
        body = _Conv4(encoder, shapes)
        head = _Conv5(encoder, shapes[-1][0], batch_norm != "running")
        return FasterRCNN(
            body,
            rpn_anchor_generator=AnchorGenerator((_SIDES,), (_RATIOS,)),
            rpn_pre_nms_top_n_train=12_000,  # of one map, as detectron2's; a pyramid's are for each level
            rpn_pre_nms_top_n_test=6_000,
            box_roi_pool=_regions(body.strides, 14),
            box_head=head,
            box_predictor=FastRCNNPredictor(shapes[-1][0], classes + 1),
            **settings,
        ), plain
    if plain:
        body = _Simple(encoder, *shapes[-1])
    else:
        body = _Stages(encoder, shapes, nn.BatchNorm2d if batch_norm == "batch" else None)
    sides = [8 * body.strides[0] * 2**i for i in range(len(_STRIDES) + 1)]
    settings |= {
        "num_classes": classes + 1,
        "rpn_anchor_generator": AnchorGenerator(tuple((s,) for s in sides), (_RATIOS,) * len(sides)),
        "box_roi_pool": _regions(body.strides, 7),
    }
    if masks:
        return MaskRCNN(body, mask_roi_pool=_regions(body.strides, 14), **settings), plain
    return FasterRCNN(body, **settings), plain


def _regions(strides: list[int], side: int) -> nn.Module:
    """Features of regions, `side` by `side`, each from the level of its size.

    torchvision infers the levels' strides from the first batch, whose padding may mislead it, and keeps them. So it
    first sees maps that leave no doubt.
    """
    from torchvision.ops import MultiScaleRoIAlign

    names = [str(i) for i in range(len(strides))]
    pool: nn.Module = MultiScaleRoIAlign(names, output_size=side, sampling_ratio=2)
    whole = 4 * strides[-1]
    maps = {name: torch.zeros(1, 1, whole // s, whole // s) for name, s in zip(names, strides, strict=True)}
    pool(maps, [torch.tensor([[0.0, 0.0, whole, whole]])], [(whole, whole)])
    return pool


_Example = tuple[Picture, bool, Image.Image]
"""An image's objects, whether to mirror it, and its pixels."""


# -- training ----------------------------------------------------------------------------------------------------


def _train(
    model: Any,
    plain: bool,
    pictures: list[Picture],
    masks: bool,
    steps: int,
    lr: float,
    share: Callable[[int], float],
    batch: int,
    batch_norm: str,
    seed: int,
    bad: Bad,
    progress: Update | None,
) -> int:
    """Fine-tune the network in place. Returns the number of images that it learned from; the others go to `bad`.

    Every process of a group takes its part of each batch, and all take the same steps.
    """
    device = next(model.parameters()).device
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if plain:
        optimizer = torch.optim.AdamW(_groups(weights, 0.1), lr=lr)
    else:
        optimizer = torch.optim.SGD(_groups(weights, 1e-4), lr=lr, momentum=0.9)
    # The encoder learns without noise, such as drop path.
    model.train()
    model.backbone.encoder.eval()
    for module in model.backbone.encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_norm != "running")
    generator = torch.Generator().manual_seed(seed)
    per_epoch, done = math.ceil(len(pictures) / batch), 0
    epochs, rank, world = math.ceil(steps / per_epoch), distributed.rank(), distributed.world_size()
    good: set[Path] = set()

    def batches() -> Iterator[list[tuple[Picture, bool]]]:
        for _ in count():
            order = torch.randperm(len(pictures), generator=generator)
            flipped = torch.rand(len(pictures), generator=generator) < 0.5
            # Equal batches: a last one of one image would spoil BatchNorm.
            for part in order.tensor_split(per_epoch):
                # Where there are fewer images than processes, some images are taken twice.
                own = part[rank::world] if rank < len(part) else part[rank % len(part), None]
                yield [(pictures[i], bool(flipped[i])) for i in own.tolist()]

    def backward(some: list[_Example]) -> None:
        pairs = [_example(image, picture, masks, flip, device) for picture, flip, image in some]
        loss = sum(model([x for x, _ in pairs], [y for _, y in pairs]).values())
        if distributed.anywhere(not bool(loss.isfinite())):
            raise UserError(f"The detector diverged after {done} steps: give an lr lower than {lr:g}.")
        loss.backward()
        distributed.mean_gradients(weights)

    learn = stepping(optimizer, backward)

    def step(some: list[_Example], rate: float) -> None:
        if distributed.least(len(some)):  # else none of the images of some process can be read
            good.update(picture.path for picture, _, _ in some)
            learn(some, rate)

    for done in descend(_read(islice(batches(), steps), bad), step, lambda step: lr * share(step)):
        if progress is not None:
            progress(done, steps, f"epoch {1 + (done - 1) // per_epoch} of {epochs}")
    learned = len(set().union(*distributed.collect(good)))
    if not learned:
        raise UserError(f"None of the {len(pictures)} training images can be read (the first: {bad[0][1]}).")
    return learned


def _share(step: int, steps: int, warmup: int = _WARMUP, drops: Sequence[float] = _DROPS) -> float:
    """Share of the learning rate."""
    warm = min(warmup, steps // 10)
    return min(1.0, (step + 1) / max(1, warm)) * 0.1 ** sum(step >= drop * steps for drop in drops)


def _groups(weights: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay, biases and norms do not."""
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def _read(batches: Iterable[list[tuple[Picture, bool]]], bad: Bad) -> Iterator[list[_Example]]:
    """The good images of each batch, the next ones decoding while one is in use."""

    def read(one: tuple[Picture, bool]) -> Image.Image | str:
        try:
            return one[0].read()
        except BadImage as error:
            return error.reason

    batches, ahead = tee(batches)
    for some, found in zip(batches, in_threads(read, ahead), strict=True):
        both = list(zip(some, found, strict=True))
        bad += [(str(picture.path), image) for (picture, _), image in both if isinstance(image, str)]
        yield [(picture, flip, image) for (picture, flip), image in both if not isinstance(image, str)]


def _example(
    image: Image.Image, picture: Picture, masks: bool, flip: bool, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """The image in [0, 1], `3 h w`, and its objects in torchvision's format, both mirrored if `flip`."""
    x = _pixels(image, device)
    things = [t for t in picture.things if not t.crowd]
    boxes = torch.tensor([t.box for t in things], dtype=torch.float32).view(-1, 4)
    y = {"labels": torch.tensor([t.label + 1 for t in things], dtype=torch.int64)}
    if masks:
        drawn = [_mask(t, picture) for t in things]
        y["masks"] = torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, *picture.size, dtype=torch.uint8)
    if flip:
        x = x.flip(2)
        boxes[:, [0, 2]] = picture.size[1] - boxes[:, [2, 0]]
        y |= {"masks": y["masks"].flip(2)} if masks else {}
    return x, {k: v.to(device) for k, v in (y | {"boxes": boxes}).items()}


def _pixels(image: Image.Image, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1).float() / 255


def _mask(thing: Thing, picture: Picture) -> np.ndarray:
    """uint8 `h w`, from polygons or a run-length encoding."""
    from faster_coco_eval import mask as tools

    shape, (h, w) = thing.segmentation, picture.size
    if isinstance(shape, list):
        encoded = tools.merge(tools.frPyObjects(shape, h, w))
    else:
        encoded = tools.frPyObjects(shape, h, w) if isinstance(shape["counts"], list) else shape
    return np.ascontiguousarray(tools.decode(encoded))


# -- answers -----------------------------------------------------------------------------------------------------


def _ask(
    model: Any, pictures: list[Picture], classes: Sequence[str], masks: bool, bad: Bad, progress: Update | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The objects in the images, and the network's answers, both in COCO's format. Unreadable images go to `bad`.

    Every process of a group asks about its share of the images, and all get all answers.
    """
    own = range(distributed.rank(), len(pictures), distributed.world_size())
    found: dict[int, list[dict[str, Any]]] = {}
    for done, some in enumerate(_read([[(pictures[i], False)] for i in own], bad)):
        for _, _, image in some:
            found[own[done]] = _answers(model, image, masks)
        if progress is not None:
            progress(done + 1, len(own), "test images")
    found = {i: said for part in distributed.collect(found) for i, said in part.items()}

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for i in sorted(found):
        picture, number = pictures[i], len(images) + 1
        h, w = picture.size
        images.append({"id": number, "height": h, "width": w, "file_name": picture.path.name})
        for t in picture.things:
            a: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": t.label + 1}
            a |= {"bbox": _corner(t.box), "area": t.area, "iscrowd": int(t.crowd), "segmentation": t.segmentation}
            annotations.append({k: v for k, v in a.items() if v is not None})
        answers += [{"image_id": number, **answer} for answer in found[i]]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, answers


def _answers(model: Any, image: Image.Image, masks: bool) -> list[dict[str, Any]]:
    """The network's answers about an image, in COCO's format but for the image's number."""
    from faster_coco_eval import mask as tools

    with frozen(model):
        found = {k: v.cpu() for k, v in model([_pixels(image, next(model.parameters()).device)])[0].items()}
    answers = []
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    for i, (box, label, score) in enumerate(rows):
        answer = {"category_id": label, "score": score, "bbox": _corner(box)}
        if masks:
            inside = (found["masks"][i, 0] > 0.5).to(torch.uint8).numpy()
            answer["segmentation"] = tools.encode(np.asfortranarray(inside))
        answers.append(answer)
    return answers


def _corner(box: Sequence[float]) -> list[float]:
    """Left, top, width and height of left, top, right and bottom."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
