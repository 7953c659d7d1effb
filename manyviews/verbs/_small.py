"""A row of a paper at about a hundredth of its size: the same parts, of small networks, views and made-up images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manyviews.backbones import Encoder
from manyviews.checkpoint import new_folder
from manyviews.evaluation.protocols.finetune import LinearAugmented
from manyviews.papers import SETS, SUITE, Detect, Sweep
from manyviews.papers.parts import LISTS
from manyviews.papers.sets import SEVERAL
from manyviews.regularizers import Rescue
from manyviews.settings import Component, Recipe
from manyviews.views import Crop, View
from manyviews.weights import Pretrained, load

# Networks of the same families. Patches are of 4 pixels, so that blocks of them can be hidden.
_RESNET = {"backbone.name": "resnet18", "backbone.stem": "small", "backbone.channels": "(8, 8, 16, 16)"}
_VIT = {
    "backbone.name": "vit_tiny_patch16_224",
    "backbone.img_size": "32",
    "backbone.patch_size": "4",
    "backbone.embed_dim": "32",
    "backbone.depth": "4",
    "backbone.num_heads": "2",
}
_WIDTHS = {"hidden_dim", "output_dim", "bottleneck_dim", "prototypes", "queue_size", "decoder_dim", "predictor_dim"}
_FEW = {"decoder_depth": 1, "predictor_depth": 1, "decoder_heads": 2, "predictor_heads": 2}
_RUN = {"data.batch_size": "16", "data.holdout": "0.3", "monitor.epochs": "0", "test_size": "32"}

_PROTOCOLS = {
    "linear_augmented.epochs": "1",
    "linear_moco.epochs": "1",
    "linear_grid.lrs": "0.01",
    "linear_grid.weight_decays": "0.0",
    "finetune_a3.epochs": "1",
    "finetune_a3.batch": "32",
    "finetune_a3.train_size": "32",
    **{
        f"{name}.{setting}": value
        for name in ("finetune", "semi_1", "semi_10")
        for setting, value in (("lrs", "0.05"), ("epochs", "1"))
    },
    "few_shot_5.draws": "1",
    "few_shot_10.draws": "1",
    "rotation.images": "32",
}
_DETECT = {"size": 64, "epochs": 1, "batch": 4, "proposals": 16}

EPOCHS = 2.0
SWEPT = LinearAugmented(epochs=1)


def training(recipe: Recipe) -> dict[str, str]:
    """The settings that make a recipe small: network, views, heads, batch; all others stay as they are."""
    vit = recipe.backbone.name.startswith("vit")
    rescued = {
        f"regularizers.{term.name}.k": str(_small_k(term.k))
        for term in recipe.regularizers
        if isinstance(term, Rescue) and term.k is not None
    }
    return {**_RUN, **(_VIT if vit else _RESNET), **dict(_sizes(recipe.method)), **rescued}


def _sizes(method: Component) -> Iterator[tuple[str, str]]:
    for name, value in method.settings.items():
        if isinstance(value, Crop):
            yield f"method.{name}.size", _side(value)
        elif isinstance(value, tuple) and any(isinstance(view, View) for view in value):
            for i, view in enumerate(value):
                yield f"method.{name}.{i}.size", _side(view)
        elif name in _WIDTHS and isinstance(value, int):
            yield f"method.{name}", str(max(32, value // 64))
        elif name in _FEW:
            yield f"method.{name}", str(_FEW[name])


def _side(view: Any) -> str:
    """A seventh of a view's side: 32 pixels for 224, 16 for 96."""
    return str(32 if view.size > 128 else 16)


def _small_k(k: int) -> int:
    """How many of 16 images are rescued."""
    return max(2, min(16, k // 8))


def protocols(names: list[str]) -> dict[str, str]:
    """Settings of protocols for a few images."""
    return {path: value for path, value in _PROTOCOLS.items() if path.partition(".")[0] in names}


def detection(step: Detect) -> dict[str, Any]:
    """Options of `detect` for a few small images."""
    return {**step.options, **_DETECT}


def weights() -> Pretrained:
    """A small network with fresh weights, in place of published ones."""
    return load(Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)), test_size=32)


def varied(step: Sweep) -> dict[str, tuple[str, ...]]:
    """Two values of each setting."""
    return {
        path: tuple(str(_small_k(int(v))) for v in values[1:3]) if path.endswith(".k") else values[:2]
        for path, values in step.vary.items()
    }


# -- made-up images ----------------------------------------------------------------------------------------------

_CLASSES = 6
_TRAIN, _TEST = 16, 10  # images of each class
_SIDE = 48


def made_up(name: str, folder: Path) -> Path:
    """A set of that name, drawn once: rectangles whose color is their class. Returns its folder."""
    root = folder / name
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    kind = SETS[name].kind
    with new_folder(root) as part:
        if kind == "suite":
            for i, one in enumerate(SUITE, start=1):
                _classes(part / one, i)
            _voc(part / SEVERAL, ("trainval", "test"), 48)
        elif kind == "classes":
            _classes(part, 0)
        elif kind == "several":
            _several(part)
        elif SETS[name].folders:
            for one in SETS[name].folders:
                _voc(part / one, ("trainval", "test") if one == SETS[name].folders[0] else ("trainval",))
        else:
            _boxes(part)
    return root


def _classes(root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for split, count in (("train", _TRAIN), ("test", _TEST)):
        for label in range(_CLASSES):
            where = root / split / f"class{label}"
            where.mkdir(parents=True)
            for i in range(count):
                _picture(rng, [label])[0].save(where / f"{i}.png")
    for file, count in zip(LISTS.values(), (2, 8), strict=True):
        names = [f"class{label}/{i}.png" for label in range(_CLASSES) for i in range(count)]
        (root / file).write_text("\n".join(names) + "\n", encoding="utf-8")


def _several(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 2 * _TRAIN), ("test", 2 * _TEST)):
        (root / split).mkdir()
        lines = ["path,label"]
        for i in range(count * 2):
            labels = rng.permutation(_CLASSES)[: 1 + i % 2]
            _picture(rng, labels)[0].save(root / split / f"{i}.png")
            lines += [f"{split}/{i}.png,class{label}" for label in labels]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _voc(root: Path, splits: tuple[str, ...], count: int = 12) -> None:
    """Pascal VOC's layout, of two classes, with so many images in each split."""
    rng = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in splits:
        names = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        for name in names:
            labels = [int(c) for c in rng.integers(0, 2, 2)]
            picture, boxes = _picture(rng, labels, 96)
            picture.save(root / "JPEGImages" / f"{name}.png")
            things = "".join(
                f"<object><name>class{label}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for label, (x, y, w, h) in zip(labels, boxes, strict=True)
            )
            size = "<size><width>96</width><height>96</height><depth>3</depth></size>"
            text = f"<annotation>{size}{things}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def _boxes(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in (("train", 12), ("val", 6)):
        (root / split).mkdir()
        facts: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": c + 1, "name": f"class{c}"} for c in range(2)],
        }
        for i in range(1, count + 1):
            labels = [int(c) for c in rng.integers(0, 2, 2)]
            picture, boxes = _picture(rng, labels, 96)
            picture.save(root / split / f"{i}.png")
            facts["images"].append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 96})
            for label, (x, y, w, h) in zip(labels, boxes, strict=True):
                facts["annotations"].append(
                    {"id": len(facts["annotations"]) + 1, "image_id": i, "category_id": label + 1, "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h}
                    | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
                )
        (root / "annotations" / f"{split}.json").write_text(json.dumps(facts), encoding="utf-8")


_COLORS = np.array([[220, 40, 40], [40, 200, 40], [50, 60, 230], [220, 210, 40], [200, 50, 210], [40, 210, 210]])


def _picture(
    rng: np.random.Generator, labels: Any, side: int = _SIDE
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Noise with a rectangle for each label, and their boxes: left, top, width, height."""
    pixels = rng.integers(60, 140, (side, side, 3))
    boxes = []
    for label in labels:
        w, h = (int(v) for v in rng.integers(side // 4, side // 2, 2))
        x, y = int(rng.integers(0, side - w)), int(rng.integers(0, side - h))
        pixels[y : y + h, x : x + w] = _COLORS[label] + rng.integers(-30, 31, (h, w, 3))
        boxes.append((x, y, w, h))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), boxes
