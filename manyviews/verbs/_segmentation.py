"""Make and use a model that segments."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyviews import machine
from manyviews.backbones import Encoder
from manyviews.data import RGB, Source
from manyviews.errors import UserError, say, unknown
from manyviews.evaluation.dense.files import SPLITS
from manyviews.evaluation.dense.maps import Maps
from manyviews.evaluation.dense.masks import Masks
from manyviews.evaluation.dense.segmentation import fit
from manyviews.evaluation.features import fingerprint, stamps, weights_digest
from manyviews.progress import progress
from manyviews.settings import parse
from manyviews.verbs._common import claim, plain, preprocessing
from manyviews.weights import Pretrained
from manyviews.weights.segmenter import Segmenter, palette, write, write_masks

_SETTINGS = ("epochs", "batch", "pixels", "stages", "test_size", "ignore", "lrs")
_MOST = 256  # classes of a PNG with a palette


def has_masks(data: Any) -> bool:
    """Whether data is a folder of images and masks, as `segment` takes it."""
    if not isinstance(data, str | Path) or not (root := Path(data).expanduser()).is_dir():
        return False
    folders = [(root / name / "images", root / name / "masks") for name in SPLITS["train"]]
    folders += [(root / "images" / name, root / "masks" / name) for name in SPLITS["train"]]
    return any(images.is_dir() and masks.is_dir() for images, masks in folders)


def segmenter(weights: Pretrained, data: str | Path, out: Path, settings: Mapping[str, Any], seed: int) -> Segmenter:
    """Learn a linear layer on the map of an encoder that stays, and keep both in a folder.

    Args:
        weights: the encoder.
        data: a folder of images and masks: see `manyviews.evaluation.dense.masks.open_masks`.
        out: a new folder.
        settings: `segmentation.NAME` and values: arguments of `manyviews.evaluation.dense.segment`.
        seed: seed of the order and the pixels.

    Raises:
        UserError: bad input, or an encoder without maps of features.
    """
    begun, options = time.monotonic(), dict[str, Any]()
    for path, value in settings.items():
        kind, _, name = path.partition(".")
        if kind != "segmentation" or name not in _SETTINGS:
            raise unknown("setting of segmentation", path, [f"segmentation.{name}" for name in _SETTINGS])
        options[name] = parse(value) if isinstance(value, str) else value
    encoder = weights.encoder
    if not isinstance(encoder, Encoder):
        raise UserError(f"{weights.name} is a bare module, which cannot be kept: adapt weights that `load` reads.")
    if encoder.channels != 3:
        raise UserError(f"Masks are learned from RGB images, and {encoder.name} takes {encoder.channels} channels.")
    if isinstance(options.get("stages"), int):
        options["stages"] = (options["stages"],)
    look = {k: v for k, v in preprocessing(weights).items() if k != "test_size"}
    with progress("segmentation") as update:
        judged, layer, found = fit(encoder, Path(data).expanduser(), seed=seed, progress=update, **look, **options)
    for note in judged.notes:
        say(note)
    for where, reason in judged.bad[:5]:
        say(f"Skipped {where}: {reason}")
    if len(found.classes) > _MOST:
        raise UserError(f"Masks are kept with a palette of {_MOST} colors, and there are {len(found.classes)} classes.")
    maps = Maps(encoder, options.get("stages"))
    head = nn.Conv2d(maps.dim, len(found.classes), 1).eval()
    with torch.no_grad():
        head.weight.copy_(layer.weight[:, :, None, None])
        head.bias.copy_(layer.bias)  # type: ignore[union-attr]
    facts = {
        "title": f"{Path(weights.name).name} with a layer that segments",
        "strategy": "linear",
        "from": weights.name,
        "data": str(data),
        "images": judged.images,
        "seed": seed,
        "parameters": {"learned": sum(p.numel() for p in head.parameters()), "all": _count(encoder)},
        "setting": judged.setting,
        "validation": {"mIoU": max(judged.validation.values()), "images": judged.images["validation"]},
        "tried": judged.validation,
        "test": {
            "mIoU": judged.value,
            "interval": judged.interval,
            **judged.details,
            "images": judged.images["test"],
            "per_class": judged.per_class,
            "baselines": judged.baselines,
            "unreadable": len(judged.bad),
        },
        "machine": machine.describe(look["device"]),
        "seconds": round(time.monotonic() - begun, 1),
    }
    model = Segmenter(
        encoder=encoder,
        mean=weights.mean,
        std=weights.std,
        test_size=max(1, round(weights.test_size / maps.stride)) * maps.stride,
        name=str(out),
        reading=RGB if weights.reading is None else weights.reading,
        head=head,
        stride=maps.stride,
        stages=None if maps.stages is None else tuple(maps.stages),
        short=options.get("test_size"),
        classes=found.classes,
        colors=_colors(found),
        facts=facts,
    )
    write(model, out)
    return model


def _count(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.parameters())


def _colors(found: Masks) -> tuple[tuple[int, int, int], ...]:
    """The colors of the masks that were learned from, if they are in color; else ours."""
    colors = list(palette(len(found.classes)))
    for packed, value in (found.colors or {}).items():
        k = found.values.get(value, -1)
        if k >= 0:
            colors[k] = (packed >> 16, packed >> 8 & 255, packed & 255)
    return tuple(colors)


def masks_to(model: Segmenter, source: Source, out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write a mask of each image of a source, and `legend.json`, which says what its values mean.

    A mask has the name of its image, and its own size. The same call continues an interrupted one.

    Args:
        model: the model.
        source: the images.
        out: a new folder, or one that was begun with the same model and images.

    Returns:
        number of images that show each class, and of those that cannot be read, by reason.
    """
    legend = {
        "classes": [
            {"value": k, "name": name, "color": color}
            for k, (name, color) in enumerate(zip(model.classes, model.colors, strict=True))
        ],
        "model": weights_digest(model.encoder) + weights_digest(model.head),
        "images": f"{fingerprint(source)} {stamps(source)}",
    }
    claim(out, "legend.json", json.dumps(legend, indent=2), "masks of another model or other images")
    names = _names(source)
    with progress("predict") as update:
        counts, bad = write_masks(
            model, source, lambda i: out / f"{names[i]}.png", lambda done: update(done, len(source))
        )
    return {k: v for k, v in counts.items() if v}, dict(Counter(bad.values()).most_common())


def _names(source: Source) -> list[str]:
    """The names of the masks: those of the images without their endings, where these tell them apart."""
    whole = ["/".join(p for p in plain(name).split("/") if p not in ("", "..", ".")) for name in source.ids]
    short = [str(Path(name).with_suffix("")) for name in whole]
    several = {name for name, n in Counter(short).items() if n > 1}
    return [w if s in several else s for w, s in zip(whole, short, strict=True)]
