"""Rows of MULAN, "Self-supervised learning with a multi-task latent space objective" (De Plaen et al. 2026)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from manyviews.papers.parts import COCO_1X, LISTS, Detect, Evaluate, Row, Step, Training, absent, row, table

TITLE = "MULAN (De Plaen et al. 2026)"

_NO_METHOD = "There is no method {} here."
_SUPERVISED = "Nothing is pretrained here with labels; `manyviews evaluate timm:{}` judges such weights."
_THEIRS = "The number is quoted from the method's own paper, with its protocol."
_DINOS = "DINO's authors ran it and do not give their settings."
_MOCOS = "MoCo v3's authors ran it, with a learning rate and a weight decay searched for it, which they do not give."

# Trainings that several tables share.
_BYOL = Training("byol_imagenet")
_BYOL_1000 = Training("byol_imagenet1000")
_BYOL_CROPS = Training("byol_multicrop")
_BYOL_TASKS = Training("byol_mulan")
_SIMSIAM = Training("simsiam_imagenet")
_SIMSIAM_800 = Training("simsiam_imagenet800")
_SIMSIAM_CROPS = Training("simsiam_multicrop")
_SIMSIAM_TASKS = Training("simsiam_mulan")
_MOCO = Training("moco_v3_imagenet")
_MOCO_1000 = Training("moco_v3_imagenet1000")
_MOCO_CROPS = Training("moco_v3_multicrop")
_MOCO_TASKS = Training("moco_v3_mulan")
_MULAN = Training("byol_mulan800")
_MULAN_S = Training("byol_mulan_vit_s")
_MULAN_B = Training("byol_mulan_vit_b")
_SIMCLR = Training("simclr_imagenet")
_BARLOW = Training("barlow_twins_imagenet")
_SWAV = Training("swav_imagenet")
_MOCO_V2 = Training("moco_v2_imagenet")

_DINO_R50 = Training("dino_resnet50")

_WHOLE = "area=(1.0, 1.0), ratio=(0.01, 100.0), color=None, flip=0.0"


def _probes(
    knn: float | None, linear: float | None, features: Literal["pooled", "last4", "cls_mean"] = "pooled"
) -> tuple[Step, ...]:
    """Appendix A: k-NN by majority on pooled features, a linear probe on crops."""
    if features == "pooled":
        return (Evaluate({"knn_majority": knn, "linear_augmented": linear}),)
    return Evaluate({"knn_majority": knn}), Evaluate({"linear_augmented": linear}, features=features)


def _linear(top1: float | None, features: Literal["pooled", "last4", "cls_mean"] = "pooled") -> Step:
    return Evaluate({"linear_augmented": top1}, features=features)


def _coco(box: float, mask: float) -> Step:
    return Detect({"box AP": box, "mask AP": mask}, "coco", COCO_1X)


def _semi(one: float, ten: float, one5: float, ten5: float) -> Step:
    """Appendix B: top-1 and top-5 with 1 % and 10 % of the labels, those of SimCLR's lists."""
    return Evaluate({"semi_1": one, "semi_10": ten, "semi_1.top5": one5, "semi_10.top5": ten5}, lists=LISTS)


def _full(top1: float, top5: float) -> Step:
    return Evaluate({"finetune": top1, "finetune.top5": top5})


def _theirs(words: str, run: Training, *steps: Step) -> Row:
    """A row of prior work."""
    return row(words, run, *steps, notes=[_THEIRS])


def _alone(view: str) -> Training:
    """One task alone with the whole image as its target, as in section 4.2."""
    tasks = f"(Global(1, {_WHOLE}), {view}(1, {_WHOLE}))"
    return Training("byol_cutout_only", settings={"method.tasks": tasks})


# As docs/methods/byol.md has it.
_NAIVE_S = Training(
    "byol_mulan_vit_s",
    settings={
        "method.predictor": "shared",
        "method.tasks": "(Global(2, area=(0.25, 1.0), "
        "color=(Color(saturation=0.2, blur=1.0), Color(saturation=0.2, blur=0.1, solarize=0.2))), "
        "Local(4, color=Color(saturation=0.2, kernel=23)))",
    },
)
_DETECTORS = ("The schedule is detectron2's 1x; heads, regions and proposals are torchvision's.",)


def _noted(found: Row, notes: tuple[str, ...]) -> Row:
    return found if found.absent else replace(found, notes=(*found.notes, *notes))


ROWS = (
    *table(
        "mulan.table1",
        "table 1",
        {
            "byol": row("BYOL, two views", _BYOL, *_probes(63.1, 70.7)),
            "byol-multicrop": row("BYOL, multi-crop with a predictor for each type", _BYOL_CROPS, *_probes(69.5, 74.7)),
            "simsiam": row("SimSiam, two views", _SIMSIAM, *_probes(60.2, 69.9)),
            "simsiam-multicrop": row("SimSiam, multi-crop", _SIMSIAM_CROPS, *_probes(65.3, 73.9)),
            "moco-v3": row("MoCo v3, two views", _MOCO, *_probes(64.5, 71.4)),
            "moco-v3-multicrop": row("MoCo v3, multi-crop", _MOCO_CROPS, *_probes(68.7, 75.2)),
        },
    ),
    *table(
        "mulan.table2",
        "table 2",
        {
            "byol-1000": row("BYOL, 1000 epochs", _BYOL_1000, *_probes(68.0, 74.3), notes=[_THEIRS]),
            "byol": row("BYOL, two views", _BYOL, *_probes(63.1, 70.7)),
            "byol-multicrop": row("BYOL, multi-crop", _BYOL_CROPS, *_probes(69.5, 74.7)),
            "byol-multitask": row("BYOL, three tasks", _BYOL_TASKS, *_probes(69.9, 75.6)),
            "simsiam-800": row("SimSiam, 800 epochs", _SIMSIAM_800, _linear(71.3), notes=[_THEIRS]),
            "simsiam": row("SimSiam, two views", _SIMSIAM, *_probes(60.2, 69.9)),
            "simsiam-multicrop": row("SimSiam, multi-crop", _SIMSIAM_CROPS, *_probes(65.3, 73.9)),
            "simsiam-multitask": row("SimSiam, three tasks", _SIMSIAM_TASKS, *_probes(66.5, 74.7)),
            "moco-v3-1000": row("MoCo v3, 1000 epochs", _MOCO_1000, *_probes(68.9, 74.6), notes=[_THEIRS]),
            "moco-v3": row("MoCo v3, two views", _MOCO, *_probes(64.5, 71.4)),
            "moco-v3-multicrop": row("MoCo v3, multi-crop", _MOCO_CROPS, *_probes(68.7, 75.2)),
            "moco-v3-multitask": row("MoCo v3, three tasks", _MOCO_TASKS, *_probes(69.2, 75.7)),
        },
    ),
    *table(
        "mulan.section4",
        "section 4.2",
        {
            "asymmetric": row("BYOL, asymmetric cutout alone, 100 epochs", Training("byol_cutout_only"), _linear(46.8)),
            "symmetric": row(
                "BYOL, symmetric cutout alone, 100 epochs", Training("byol_cutout_symmetric"), _linear(3.4)
            ),
        },
    ),
    *table(
        "mulan.table3",
        "table 3",
        {
            "r50-supervised": absent("ResNet-50, labels", _SUPERVISED.format("resnet50.a1_in1k"), _linear(80.5)),
            "r50-simclr": _theirs("ResNet-50, SimCLR", _SIMCLR, *_probes(60.7, 69.3)),
            "r50-moco-v2": _theirs("ResNet-50, MoCo v2", _MOCO_V2, *_probes(61.9, 71.1)),
            "r50-simsiam": _theirs("ResNet-50, SimSiam", _SIMSIAM_800, _linear(71.3)),
            "r50-barlow-twins": _theirs("ResNet-50, Barlow Twins", _BARLOW, *_probes(66.0, 73.2)),
            "r50-byol": _theirs("ResNet-50, BYOL", _BYOL_1000, *_probes(68.0, 74.3)),
            "r50-moco-v3": _theirs("ResNet-50, MoCo v3", _MOCO_1000, *_probes(68.9, 74.6)),
            "r50-swav": _theirs("ResNet-50, SwAV", _SWAV, *_probes(65.7, 75.3)),
            "r50-dino": _theirs("ResNet-50, DINO", _DINO_R50, *_probes(67.5, 75.3)),
            "r50-c-byol": absent("ResNet-50, C-BYOL", _NO_METHOD.format("C-BYOL"), _linear(75.6)),
            "r50-relic-v2": absent("ResNet-50, ReLIC v2", _NO_METHOD.format("ReLIC v2"), *_probes(70.5, 77.1)),
            "r50-mulan": row("ResNet-50, MULAN, 800 epochs", _MULAN, *_probes(70.9, 76.7)),
            "vit-s-supervised": absent(
                "ViT-S, labels", _SUPERVISED.format("deit_small_patch16_224.fb_in1k"), _linear(79.8)
            ),
            "vit-s-byol": absent("ViT-S, BYOL", _DINOS, *_probes(66.6, 71.4, "last4")),
            "vit-s-moco-v2": absent("ViT-S, MoCo v2", _DINOS, *_probes(64.4, 72.7, "last4")),
            "vit-s-moco-v3": _theirs("ViT-S, MoCo v3", Training("moco_v3_vit_s"), _linear(73.4, "last4")),
            "vit-s-swav": absent("ViT-S, SwAV", _DINOS, *_probes(66.3, 73.5, "last4")),
            "vit-s-dino": _theirs("ViT-S, DINO", Training("dino_imagenet"), *_probes(74.5, 77.0, "last4")),
            "vit-s-mulan": row("ViT-S, MULAN, 200 epochs", _MULAN_S, *_probes(70.2, 74.5, "last4")),
            "vit-b-supervised": absent(
                "ViT-B, labels", _SUPERVISED.format("deit_base_patch16_224.fb_in1k"), _linear(81.8)
            ),
            "vit-b-simmim": _theirs("ViT-B, SimMIM", Training("simmim_imagenet"), *_probes(16.1, 56.7)),
            "vit-b-mae": _theirs("ViT-B, MAE", Training("mae_imagenet", epochs=1600), *_probes(27.1, 68.0)),
            "vit-b-ijepa": _theirs("ViT-B, I-JEPA", Training("ijepa_imagenet"), _linear(72.9)),
            "vit-b-ibot": _theirs(
                "ViT-B, iBOT", Training("ibot_imagenet", epochs=1600), *_probes(77.1, 79.5, "cls_mean")
            ),
            "vit-b-simclr": absent("ViT-B, SimCLR", _MOCOS, _linear(73.9, "cls_mean")),
            "vit-b-byol": absent("ViT-B, BYOL", _MOCOS, *_probes(68.1, 73.9, "cls_mean")),
            "vit-b-moco-v3": _theirs("ViT-B, MoCo v3", Training("moco_v3_vit_b"), *_probes(71.4, 76.7, "cls_mean")),
            "vit-b-dino": _theirs("ViT-B, DINO", Training("dino_vit_b"), *_probes(76.1, 78.2, "cls_mean")),
            "vit-b-mulan": row("ViT-B, MULAN, 200 epochs", _MULAN_B, *_probes(74.2, 78.3, "cls_mean")),
        },
    ),
    *(
        _noted(found, _DETECTORS)
        for found in table(
            "mulan.table4",
            "table 4",
            {
                "supervised": absent(
                    "Labels",
                    "Nothing is pretrained here with labels; `manyviews detect timm:resnet50.tv_in1k COCO "
                    "--masks --preset coco_1x` judges such weights.",
                    _coco(39.0, 35.4),
                ),
                "moco-v2": _theirs("MoCo v2", _MOCO_V2, _coco(39.8, 36.1)),
                "byol": _theirs("BYOL", _BYOL_1000, _coco(40.4, 37.0)),
                "swav": _theirs("SwAV", _SWAV, _coco(41.6, 37.8)),
                "barlow-twins": _theirs("Barlow Twins", _BARLOW, _coco(40.0, 36.7)),
                "dino": _theirs("DINO", _DINO_R50, _coco(41.2, 37.1)),
                "mulan": row("MULAN, 800 epochs", _MULAN, _coco(41.8, 38.0)),
            },
        )
    ),
    *table(
        "mulan.table5",
        "table 5",
        {
            "byol": row("BYOL, 2 global views", _BYOL, *_probes(63.1, 70.7)),
            "more-views": row("4 global views", Training("byol_global4"), *_probes(64.3, 71.7)),
            "local": row("2 global and 4 local views", _BYOL_CROPS, *_probes(69.5, 74.7)),
            "cutout": row("2 global and 2 cutout views", Training("byol_cutout"), *_probes(68.6, 73.7)),
            "multitask": row("2 global, 2 local and 1 cutout view", _BYOL_TASKS, *_probes(69.9, 75.6)),
        },
    ),
    *table(
        "mulan.table6",
        "table 6",
        {
            "baseline": row("BYOL with all its augmentations", _BYOL, _linear(70.7)),
            "no-crop": row("All but crops", Training("byol_no_crop"), _linear(33.8)),
            "crop-only": row("Crops alone", Training("byol_crop_only"), _linear(55.3)),
            "cutout-only": row("Asymmetric cutout alone, 100 epochs", Training("byol_cutout_only"), _linear(46.8)),
        },
    ),
    *table(
        "mulan.table7",
        "table 7",
        {
            "supervised": absent(
                "Labels alone",
                "Nothing is trained here from labels alone; the untrained encoder of `manyviews evaluate RUN "
                "--protocol semi_1,semi_10` is this baseline.",
                _semi(25.4, 56.4, 48.4, 80.4),
            ),
            "simclr": _theirs("SimCLR", _SIMCLR, _semi(48.3, 65.6, 75.5, 87.8)),
            "byol": _theirs("BYOL", _BYOL_1000, _semi(53.2, 68.8, 78.4, 89.0)),
            "dino": row("DINO, as MULAN's authors evaluate it", _DINO_R50, _semi(49.1, 69.0, 76.1, 89.7)),
            "swav": _theirs("SwAV", _SWAV, _semi(53.9, 70.2, 78.5, 89.9)),
            "barlow-twins": _theirs("Barlow Twins", _BARLOW, _semi(55.0, 69.7, 79.2, 89.3)),
            "nnclr": _theirs("NNCLR", Training("nnclr_imagenet"), _semi(56.4, 69.8, 80.7, 89.3)),
            "c-byol": absent("C-BYOL", _NO_METHOD.format("C-BYOL"), _semi(60.6, 70.5, 83.4, 90.0)),
            "relic-v2": absent("ReLIC v2", _NO_METHOD.format("ReLIC v2"), _semi(58.1, 72.4, 81.3, 91.2)),
            "mulan": row("MULAN, 800 epochs", _MULAN, _semi(60.4, 72.5, 84.0, 91.3)),
        },
    ),
    *table(
        "mulan.table8",
        "table 8",
        {
            "simclr": _theirs("SimCLR", _SIMCLR, _full(76.0, 93.1)),
            "byol": _theirs("BYOL", _BYOL_1000, _full(77.7, 93.7)),
            "mulan": row("MULAN, 800 epochs", _MULAN, _full(79.3, 94.8)),
        },
    ),
    *table(
        "mulan.table9",
        "table 9",
        {
            "byol": row("BYOL, 13:09 an epoch on 4 A100", _BYOL, _linear(70.7), hours=44),
            "multicrop": row("BYOL, multi-crop, 19:51 an epoch", _BYOL_CROPS, _linear(74.7), hours=66),
            "multitask": row("BYOL, three tasks, 21:35 an epoch", _BYOL_TASKS, _linear(75.6), hours=72),
            "byol-1000": row("BYOL, 1000 epochs, 13:09 each", _BYOL_1000, _linear(74.3), hours=219),
        },
    ),
    *table(
        "mulan.table10",
        "table 10",
        {
            "local": row("Global and local views", _BYOL_CROPS, *_probes(69.5, 74.7)),
            "rotate": row("Rotated views too", Training("byol_rotation"), *_probes(68.9, 75.1)),
            "shuffle": row("Shuffled views too", Training("byol_shuffle"), *_probes(69.7, 75.1)),
            "cutout": row("Cutout views too", _BYOL_TASKS, *_probes(69.9, 75.6)),
            "shuffle-cutout": row(
                "Shuffled and cutout views too", Training("byol_shuffle_cutout"), *_probes(70.0, 75.7)
            ),
        },
    ),
    *table(
        "mulan.appendix-d",
        "appendix D",
        {
            "byol-naive": row(
                "BYOL, multi-crop with one predictor: unstable", Training("byol_naive_multicrop"), *_probes(None, None)
            ),
            "simsiam-naive": row(
                "SimSiam, multi-crop with one predictor: unstable",
                Training("simsiam_multicrop", settings={"method.predictor": "shared"}),
                *_probes(None, None),
            ),
            "moco-v3-naive": row(
                "MoCo v3, multi-crop with one predictor: unstable",
                Training("moco_v3_multicrop", settings={"method.predictor": "shared"}),
                *_probes(None, None),
            ),
            "byol-naive-vit-s": row(
                "ViT-S, multi-crop with one predictor, as DINO's authors report it: from 71.4 to 64.8",
                _NAIVE_S,
                *_probes(None, 64.8, "last4"),
                notes=[f"{_DINOS} Here they are MULAN's for a ViT-S."],
            ),
            "smaller-batch": row(
                "BYOL, multi-crop with one predictor and a batch of 256: no collapse, and below two views",
                Training("byol_naive_multicrop", settings={"data.batch_size": "256"}),
                *_probes(None, None),
                notes=["The paper does not say how much smaller its batch was."],
            ),
            "smaller-rate": row(
                "BYOL, multi-crop with one predictor and half the rate: no collapse, and below two views",
                Training("byol_naive_multicrop", settings={"optimizer.lr": "0.2"}),
                *_probes(None, None),
                notes=["The paper does not say how much smaller its rate was."],
            ),
        },
    ),
    *table(
        "mulan.figure4",
        "figure 4",
        {
            "beta2-999": row(
                "ViT-B, beta2 0.999 and no clipping: spikes",
                Training("byol_mulan_vit_b", settings={"optimizer.betas": "(0.9, 0.999)", "optimizer.clip": "none"}),
                _linear(None, "cls_mean"),
            ),
            "beta2-98": row("ViT-B, beta2 0.98, clipped at 0.5: none", _MULAN_B, _linear(78.3, "cls_mean")),
        },
    ),
    *table(
        "mulan.appendix-f",
        "appendix F",
        {
            "cutmix": row("CutMix-like views too: they degrade", Training("byol_cutmix"), *_probes(None, None)),
            "rotation-alone": row("Rotated views alone: they fail", _alone("Rotation"), _linear(None)),
            "shuffle-alone": row("Shuffled views alone: they fail", _alone("Shuffle"), _linear(None)),
            "cutmix-alone": row("CutMix-like views alone: they fail", _alone("CutMix"), _linear(None)),
        },
    ),
)
