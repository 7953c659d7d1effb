"""Rows of "Rescuing easy samples in self-supervised pretraining" (Wang et al.)."""

from __future__ import annotations

from manyviews.papers.parts import (
    COCO_1X,
    VOC_24K,
    Detect,
    Diagnose,
    Evaluate,
    Row,
    Settings,
    Step,
    Sweep,
    Training,
    Transfer,
    row,
    table,
)
from manyviews.papers.sets import SEVERAL

TITLE = "Rescuing easy samples (Wang et al.)"

_PROBE = "The paper does not name the settings of its linear probe; here they are MULAN's."
_GRID = "The paper does not name the settings of its linear probe; here they are DINOv2's."
_NETWORK = "The paper does not say which network of MoCo v3 this is; here it is that of table 1, ViT-B."
_DETECTOR = (
    "The paper does not say which detector and schedule; here they are MoCo's for VOC and detectron2's 1x for COCO. "
    "Heads, regions and proposals are torchvision's."
)
_PYRAMID = (
    "The paper does not say which detector and schedule; here it is ViTDet's pyramid with AdamW, in VOC for as many "
    "epochs as MoCo's schedule has, and in COCO for those of detectron2's 1x."
)
_VALUES = "The values tried are in a picture. The paper does not name its probe; here it is MULAN's."
_VIEWS = (
    'The paper does not name the views, and says "the entire dataset"; here the common ones are SimCLR\'s, and 1,000 '
    "training images are looked at."
)

_SIMCLR, _SIMCLR_OURS = Training("simclr_imagenet"), Training("simclr_rescue")
_NONE: Settings = {"regularizers": "()"}
_R50, _R50_OURS = Training("moco_v3_rescue", settings=_NONE), Training("moco_v3_rescue")
_S, _S_OURS = Training("moco_v3_vit_s"), Training("moco_v3_rescue_vit_s")
_B, _B_OURS = Training("moco_v3_vit_b"), Training("moco_v3_rescue_vit_b")
_DINO = Training("dinov2_imagenet", settings={"optimizer.weight_decay": "0.04"})
_DINO_OURS = Training("dinov2_rescue")

_SETS = ("cifar10", "cifar100", "food101", "sun397", "dtd", "pets", "aircraft", "flowers", "caltech101")
_PER_CLASS = ("pets", "aircraft", "flowers", "caltech101")  # SimCLR's number for these is the mean over classes


def _linear(top1: float | None) -> Step:
    return Evaluate({"linear_augmented": top1})


def _grid(top1: float) -> Step:
    """DINOv2's own probe, as its recipe names it."""
    return Evaluate({"linear_grid": top1})


def _classify(*nine: float, voc: float) -> tuple[Step, ...]:
    """Table 1: logistic regressions on fixed features, as SimCLR has them."""
    keys = [f"{name}.logistic{'.mean_per_class' if name in _PER_CLASS else ''}" for name in _SETS]
    several = {f"{SEVERAL}.multilabel.mAP of 11 points": voc}
    return (Transfer(dict(zip(keys, nine, strict=True)) | several),)


_EPOCHS = 23  # of MoCo's schedule for VOC, whose detector takes a ResNet


def _dense(*nine: float, vit: bool = False) -> tuple[Step, ...]:
    """Table 2: AP, AP50 and AP75 of boxes in VOC, of boxes in COCO, and of masks in COCO."""
    keys = ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")
    return (
        Detect(dict(zip(keys[:3], nine[:3], strict=True)), "voc0712", {"epochs": _EPOCHS} if vit else VOC_24K),
        Detect(dict(zip(keys, nine[3:], strict=True)), "coco", COCO_1X),
    )


def _sweep(words: str, recipe: str, path: str, values: tuple[str, ...], best: float, **options: str) -> Row:
    """Figures 5 and 6: values of s or of k, everything else fixed, next to the baseline."""
    settings = {f"regularizers.rescue.{k}": v for k, v in options.items() if k in ("k", "scale")}
    training = Training(recipe, epochs=float(options.get("epochs", 100)), settings=settings)
    baseline = {"regularizers": options["baseline"]} if "baseline" in options else _NONE
    found = Sweep({f"regularizers.rescue.{path}": best}, training, {f"regularizers.rescue.{path}": values}, baseline)
    return row(words, None, found, notes=[_VALUES])


_KOLEO = "(KoLeo(0.1, on='features', first=2),)"

ROWS = (
    *table(
        "rescue.section3",
        "section 3",
        {
            "cosines": row(
                "Mean cosines of common and of strong views, under a supervised ResNet-50",
                None,
                Diagnose({"cosine": 0.7069, "strong": 0.6690}, "timm:resnet50.tv_in1k"),
                notes=[_VIEWS],
            ),
        },
    ),
    *table(
        "rescue.figure2",
        "figure 2",
        {
            "simclr": row("SimCLR, ResNet-50", _SIMCLR, _linear(69.1), notes=[_PROBE]),
            "simclr-rescue": row("SimCLR with rescue", _SIMCLR_OURS, _linear(70.2), notes=[_PROBE]),
            "moco-v3": row("MoCo v3, ResNet-50, 800 epochs", _R50, _linear(73.8), notes=[_PROBE]),
            "moco-v3-rescue": row("MoCo v3, ResNet-50, with rescue", _R50_OURS, _linear(74.4), notes=[_PROBE]),
            "moco-v3-vit-s": row("MoCo v3, ViT-S", _S, _linear(None), notes=[_PROBE]),
            "moco-v3-vit-s-rescue": row("MoCo v3, ViT-S, with rescue", _S_OURS, _linear(None), notes=[_PROBE]),
            "moco-v3-vit-b": row("MoCo v3, ViT-B", _B, _linear(None), notes=[_PROBE]),
            "moco-v3-vit-b-rescue": row("MoCo v3, ViT-B, with rescue", _B_OURS, _linear(None), notes=[_PROBE]),
            "dinov2": row("DINOv2, ViT-L", _DINO, _grid(82.6), notes=[_GRID]),
            "dinov2-rescue": row("DINOv2, ViT-L, with rescue", _DINO_OURS, _grid(83.1), notes=[_GRID]),
        },
    ),
    *table(
        "rescue.table1",
        "table 1 and figure 4",
        {
            "simclr": row(
                "SimCLR",
                _SIMCLR,
                *_classify(83.31, 57.46, 66.71, 57.97, 68.72, 84.67, 50.36, 90.11, 89.43, voc=80.27),
            ),
            "simclr-rescue": row(
                "SimCLR with rescue",
                _SIMCLR_OURS,
                *_classify(84.50, 59.42, 67.42, 58.56, 68.94, 84.78, 51.28, 90.92, 90.24, voc=79.39),
            ),
            "moco-v3": row(
                "MoCo v3, ViT-B",
                _B,
                *_classify(88.67, 68.07, 71.56, 60.71, 70.90, 89.65, 44.48, 91.01, 90.00, voc=81.09),
            ),
            "moco-v3-rescue": row(
                "MoCo v3, ViT-B, with rescue",
                _B_OURS,
                *_classify(89.66, 68.56, 70.00, 59.98, 68.72, 91.44, 45.92, 92.22, 91.28, voc=82.17),
            ),
            "dinov2": row(
                "DINOv2, ViT-L",
                _DINO,
                *_classify(89.36, 68.18, 72.28, 61.09, 71.43, 90.31, 45.24, 91.31, 90.85, voc=81.23),
            ),
            "dinov2-rescue": row(
                "DINOv2, ViT-L, with rescue",
                _DINO_OURS,
                *_classify(89.82, 69.18, 71.62, 60.50, 69.37, 91.86, 46.59, 92.63, 91.95, voc=82.91),
            ),
        },
    ),
    *table(
        "rescue.table2",
        "table 2",
        {
            "simclr": row(
                "SimCLR",
                _SIMCLR,
                *_dense(43.9, 77.0, 48.7, 33.8, 69.3, 27.6, 16.3, 52.8, 39.3),
                notes=[_DETECTOR],
            ),
            "simclr-rescue": row(
                "SimCLR with rescue",
                _SIMCLR_OURS,
                *_dense(46.4, 77.9, 43.9, 34.7, 69.9, 29.5, 16.4, 53.5, 38.9),
                notes=[_DETECTOR],
            ),
            "moco-v3": row(
                "MoCo v3",
                _B,
                *_dense(50.8, 80.5, 54.9, 39.3, 58.9, 42.5, 34.4, 55.8, 36.5, vit=True),
                notes=[_PYRAMID, _NETWORK],
            ),
            "moco-v3-rescue": row(
                "MoCo v3 with rescue",
                _B_OURS,
                *_dense(51.4, 80.8, 55.9, 41.0, 61.3, 44.4, 35.4, 57.5, 37.5, vit=True),
                notes=[_PYRAMID, _NETWORK],
            ),
            "dinov2": row(
                "DINOv2, ViT-L",
                _DINO,
                *_dense(51.9, 81.3, 57.0, 44.3, 66.8, 44.1, 23.9, 55.0, 45.8, vit=True),
                notes=[_PYRAMID],
            ),
            "dinov2-rescue": row(
                "DINOv2, ViT-L, with rescue",
                _DINO_OURS,
                *_dense(52.2, 81.1, 57.3, 43.9, 66.9, 43.9, 24.2, 54.5, 45.8, vit=True),
                notes=[_PYRAMID],
            ),
        },
    ),
    *table(
        "rescue.figure5",
        "figure 5",
        {
            "simclr": _sweep(
                "SimCLR, the scale s", "simclr_rescue", "scale", ("0.25", "0.5", "0.75", "1.0", "1.5"), 0.75, k="64"
            ),
            "moco-v3-vit-s": _sweep(
                "MoCo v3, ViT-S, the scale s",
                "moco_v3_rescue_vit_s",
                "scale",
                ("0.0125", "0.025", "0.05", "0.1"),
                0.025,
                k="64",
            ),
            "moco-v3": _sweep(
                "MoCo v3, ResNet-50, the scale s",
                "moco_v3_rescue",
                "scale",
                ("0.025", "0.05", "0.1", "0.2"),
                0.05,
                k="64",
            ),
            "moco-v3-vit-b": _sweep(
                "MoCo v3, ViT-B, the scale s (not shown)",
                "moco_v3_rescue_vit_b",
                "scale",
                ("0.025", "0.05", "0.1", "0.2"),
                0.05,
                k="64",
            ),
            "dinov2": _sweep(
                "DINOv2, the scale s",
                "dinov2_rescue",
                "scale",
                ("0.25", "0.5", "1.0", "2.0"),
                1.0,
                k="32",
                epochs="200",
                baseline=_KOLEO,
            ),
        },
    ),
    *table(
        "rescue.figure6",
        "figure 6",
        {
            "simclr": _sweep(
                "SimCLR, the number k", "simclr_rescue", "k", ("32", "64", "128", "256"), 64, scale="0.75"
            ),
            "moco-v3-vit-s": _sweep(
                "MoCo v3, ViT-S, the number k",
                "moco_v3_rescue_vit_s",
                "k",
                ("32", "64", "128", "256"),
                64,
                scale="0.025",
            ),
            "dinov2": _sweep(
                "DINOv2, the number k",
                "dinov2_rescue",
                "k",
                ("8", "16", "32", "64"),
                16,
                scale="1.0",
                epochs="200",
                baseline=_KOLEO,
            ),
        },
    ),
)
