"""A pretrained encoder from a run, a file, timm or a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import nn

from manyviews import checkpoint
from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError
from manyviews.settings import CIFAR_MEAN, CIFAR_STD
from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD
from manyviews.weights.recognize import fetch, recognize
from manyviews.weights.unpickle import is_pickle, unpickle

TIMM = "timm:"
"""Prefix of the names of timm's weights."""

_SMALL = 32  # pixels; images of this size are usually CIFAR's


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and the images that it expects.

    Attributes:
        encoder: normalized images, float32 `b 3 test_size test_size`, to features, `b d`.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel.
        test_size: side in pixels of test images.
        name: the file, the name in timm, or the class.
        note: for weights of other libraries: the tensors taken and left out, and the assumptions, in a sentence or two.
    """

    encoder: Encoder | ExternalEncoder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    test_size: int
    name: str
    note: str = ""


def load(
    weights: str | Path | nn.Module,
    backbone: str | None = None,
    *,
    test_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **settings: Any,
) -> Pretrained:
    """An encoder from a run, a file, timm, or a module.

    Files of other libraries do not say which images they expect; `Pretrained.note` names the assumptions.

    Args:
        weights: a run folder; an exported file; a checkpoint of timm, torchvision, lightly, solo-learn, MoCo, DINO, MAE
            and the like (`.pth`, `.pth.tar`, `.ckpt`, `.safetensors`), see `weights.recognize`; "timm:NAME" for timm's
            own weights; or a module from images `b 3 s s` to features, see `backbones.ExternalEncoder`. Code in a file
            is never run.
        backbone: timm's name of the architecture, if the file does not tell it.
        test_size: side in pixels of test images. The default is the file's, else the architecture's, or 32 for small
            stems. Modules have no default.
        mean: mean of each channel, for images in [0, 1]. The default is the file's; else CIFAR-10's at 32 pixels,
            timm's if `backbone` is given and the method is unknown, and ImageNet's otherwise.
        std: standard deviation of each channel, with the same defaults.
        settings: settings of the architecture: see `manyviews.backbones.Encoder`.

    Raises:
        UserError: there is no such file, it holds no weights, or their architecture is unknown or another one.
    """
    guess = ""
    if isinstance(weights, nn.Module):
        if backbone is not None or settings:
            raise UserError(f"A module has its architecture: leave out {next(iter(settings), 'backbone')}.")
        found, guess = _of_module(weights, test_size)
    elif str(weights).startswith(TIMM):
        if backbone is not None:
            raise UserError(f"{weights} names the backbone already: leave out --backbone.")
        encoder = fetch(str(weights).removeprefix(TIMM), **settings).eval()
        found = Pretrained(encoder, encoder.mean, encoder.std, encoder.test_size, str(weights))
    else:
        found, guess = _of_file(Path(weights), backbone, settings)
    guesses = [guess] * (bool(guess) and (mean is None or std is None))
    if guess and test_size is None:
        guesses.append(f"images of {found.test_size} pixels")
    assumed = f"Assumed {' and '.join(guesses)}." if guesses else ""
    found = replace(
        found,
        mean=found.mean if mean is None else _triple("mean", mean, lambda v: True),
        std=found.std if std is None else _triple("std", std, lambda v: v > 0),
        test_size=found.test_size if test_size is None else test_size,
        note=f"{found.note} {assumed}".strip(),
    )
    _check_size(found)
    return found


def _of_file(path: Path, backbone: str | None, settings: dict[str, Any]) -> tuple[Pretrained, str]:
    """An encoder, and what was assumed about its images, in words."""
    if path.is_dir():
        folder = RunFolder(path)
        _ = folder.recipe  # raises an error for a folder that is no run
        if not folder.encoder.exists():
            raise UserError(
                f"The run in {path} is not finished: continue it with `manyviews resume {quote(str(path))}`."
            )
        path = folder.encoder
    facts: dict[str, Any] = {}
    tensors: Any
    if is_pickle(path):
        tensors = unpickle(path)
    else:
        tensors, facts = checkpoint.load_tensors(path)
    guess = note = ""
    ours = {"encoder", "mean", "std", "test_size"} <= facts.keys() and isinstance(facts["encoder"], dict)
    if ours and backbone is None:
        encoder = Encoder.from_spec(facts["encoder"] | settings)
        encoder.load_weights(tensors)
    else:
        known = recognize(tensors, str(path), backbone, **settings)
        encoder, note = known.encoder, f"{known.note}."
        if not ours:
            guess, facts = _assumed(encoder, backbone is None or known.family != "")
    mean = _triple(f"mean of {path}", facts["mean"], lambda v: True)
    std = _triple(f"std of {path}", facts["std"], lambda v: v > 0)
    return Pretrained(encoder.eval(), mean, std, facts["test_size"], str(path), note), guess


def _assumed(encoder: Encoder, outside: bool) -> tuple[str, dict[str, Any]]:
    """The usual images of weights that do not say, in words and as facts; `outside`: timm did not train them."""
    if encoder.test_size <= _SMALL:
        words, mean, std = "the mean and std of CIFAR-10", CIFAR_MEAN, CIFAR_STD
    elif outside:
        words, mean, std = "the mean and std of ImageNet", IMAGENET_MEAN, IMAGENET_STD
    else:
        words, mean, std = f"timm's mean and std of {encoder.name}", encoder.mean, encoder.std
    return words, {"mean": mean, "std": std, "test_size": encoder.test_size}


def _of_module(module: nn.Module, test_size: int | None) -> tuple[Pretrained, str]:
    name = type(module).__name__
    if isinstance(module, Encoder):
        return Pretrained(module, module.mean, module.std, module.test_size, name), ""
    if test_size is None:
        raise UserError(f"Nothing says which images {name} expects: give test_size, and mean and std.")
    _positive(test_size)
    encoder = ExternalEncoder(module, test_size)
    return Pretrained(encoder, IMAGENET_MEAN, IMAGENET_STD, test_size, name), "the mean and std of ImageNet"


def _positive(size: int) -> None:
    if not isinstance(size, int) or size < 1:
        raise UserError(f"The test size must be a number of pixels, not {size}.")


def _triple(name: str, values: Sequence[float], fits: Callable[[float], bool]) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise UserError(f"The {name} must be three numbers, not {values!r}.") from None
    if not all(math.isfinite(v) and fits(v) for v in (red, green, blue)):
        raise UserError(f"The {name} must be three {'positive ' * (not fits(0))}finite numbers, not {values!r}.")
    return red, green, blue


def _check_size(weights: Pretrained) -> None:
    _positive(weights.test_size)
    encoder = weights.encoder
    if isinstance(encoder, ExternalEncoder) or weights.test_size == encoder.test_size:
        return
    if getattr(getattr(encoder.model, "patch_embed", None), "strict_img_size", False):
        raise UserError(
            f"{encoder.name} takes only images of {encoder.test_size} pixels: leave out the test size, or, in "
            f"Python, load it with img_size={weights.test_size}."
        )
    encoder.check_size(weights.test_size, weights.test_size)
