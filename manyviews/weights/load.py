"""A pretrained encoder from a run, a file, timm or a module."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from torch import nn

from manyviews import checkpoint
from manyviews.backbones import Encoder, ExternalEncoder, per_channel
from manyviews.data import Reading
from manyviews.engine.build import encoder_facts, recipe_now, trained_method
from manyviews.engine.folder import RECIPE, RunFolder
from manyviews.errors import UserError
from manyviews.settings import CIFAR_MEAN, CIFAR_STD
from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD
from manyviews.weights import huggingface
from manyviews.weights.recognize import fetch, recognize
from manyviews.weights.unpickle import is_pickle, unpickle

TIMM = "timm:"
"""Prefix of the names of timm's weights."""

_SMALL = 32  # pixels; images of this size are usually CIFAR's


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and the images that it expects.

    Attributes:
        encoder: normalized images, float32 `b channels test_size test_size`, to features, `b d`.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel.
        test_size: side in pixels of test images.
        name: the file or folder, the name in timm, or the class.
        note: for weights of other libraries: the tensors taken and left out, and the assumptions, in a sentence or two.
        reading: how image files become the pixels that the encoder was trained on; None if nothing says so.
    """

    encoder: Encoder | ExternalEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_size: int
    name: str
    note: str = ""
    reading: Reading | None = None

    @property
    def top(self) -> nn.Module:
        """What follows the encoder in an exported program: nothing, or in a `Model` its answer."""
        return nn.Identity()

    @property
    def outputs(self) -> str:
        """What an exported program gives."""
        return "features"

    def embed(self, images: Any, *, unreadable: Literal["refuse", "nan"] = "refuse") -> np.ndarray:
        """The features of images: float32, `n d`, a row for each, in their order. Nothing is written.

        Images are read, resized and cropped as in an evaluation (`evaluation.features.test_transform`), on the device
        that every verb takes. Work of more than a moment shows its progress on standard error.

        Args:
            images: uint8 or floats in [0, 1], as an array `n h w c` or a tensor `n c h w`, or one image without `n`; a
                PIL image; a path; a list of any of these; a NumPy array or pandas column of paths; or whatever
                `manyviews.data.open_source` reads, such as a folder, in the order of its source's `ids`.
            unreadable: "refuse" raises an error that names the images that cannot be read; "nan" gives them rows of
                NaN, and says how many there are.

        Raises:
            UserError: images that cannot be read, arrays of another type, shape or range, or features that are not
                finite.
        """
        from manyviews.weights.embedding import embed

        return embed(self, images, unreadable)


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
        weights: a run folder; the folder of a model that `adapt` wrote; an exported file; a checkpoint of timm,
            transformers, torchvision, OpenMMLab, lightly, solo-learn, MoCo, DINO, MAE and the like (`.pth`, `.pth.tar`,
            `.ckpt`, `.safetensors`, `.bin`), see `weights.recognize`; a folder of the Hugging Face Hub, or a file in
            it; "timm:NAME" for timm's own weights; or a module from images `b c s s` to features, see
            `backbones.ExternalEncoder`. Code in a file is never run.
        backbone: timm's name of the architecture, if the file does not tell it.
        test_size: side in pixels of test images. The default is the file's, else the architecture's, or 32 for small
            stems. Modules have no default.
        mean: mean of each channel, for images in [0, 1]. The default is the file's, or that of a description beside it
            (preprocessor_config.json); else CIFAR-10's at 32 pixels, timm's if `backbone` is given and the method is
            unknown, and ImageNet's otherwise. Three numbers are repeated for another number of channels.
        std: standard deviation of each channel, with the same defaults.
        settings: settings of the architecture: see `manyviews.backbones.Encoder`. With `in_chans`, weights for RGB are
            adapted to another number of channels.

    Raises:
        UserError: there is no such file, it holds no weights, or their architecture is unknown or another one.
    """
    if isinstance(weights, nn.Module):
        if backbone is not None or settings:
            raise UserError(f"A module has its architecture: leave out {next(iter(settings), 'backbone')}.")
        found, guess = _of_module(weights, test_size)
    elif str(weights).startswith(TIMM):
        if backbone is not None:
            raise UserError(f"{weights} names the backbone already: leave out --backbone.")
        encoder = fetch(str(weights).removeprefix(TIMM), **settings).eval()
        found = Pretrained(encoder, encoder.mean, encoder.std, encoder.test_size, str(weights))
        guess = _Guess()
        if encoder.channels != 3:
            words = f"timm's mean and std, {_repeated(encoder.channels)}"
            note = f"Adapted timm's first convolution from 3 channels to {encoder.channels}."
            found, guess = replace(found, note=note), _Guess(words)
    else:
        found, guess = _of_file(Path(weights), backbone, settings)
    guesses = [guess.look] * (bool(guess.look) and (mean is None or std is None))
    if guess.size and test_size is None:
        guesses.append(f"images of {found.test_size} pixels")
    assumed = f"Assumed {' and '.join(guesses)}." if guesses else ""
    channels = found.encoder.channels
    found = replace(
        found,
        mean=found.mean if mean is None else _numbers("mean", mean, channels, lambda v: True),
        std=found.std if std is None else _numbers("std", std, channels, lambda v: v > 0),
        test_size=found.test_size if test_size is None else test_size,
        note=f"{found.note} {assumed}".strip(),
    )
    _check_size(found)
    return found


@dataclass(frozen=True)
class _Guess:
    """What was assumed about the images of weights that do not say: their mean and std, in words, and their size."""

    look: str = ""
    size: bool = False


def _of_file(path: Path, backbone: str | None, settings: dict[str, Any]) -> tuple[Pretrained, _Guess]:
    """An encoder, and what was assumed about its images."""
    name, parts = str(path), [path]
    if path.is_dir():
        from manyviews.weights import model  # a model is loaded weights itself

        if model.is_model(path):
            if backbone is not None or settings:
                raise UserError(f"{path} holds a model, which has its architecture: leave out the backbone's options.")
            return model.read(path), _Guess()
        hub = [] if (path / RECIPE).exists() else huggingface.files(path)
        folder = RunFolder(path)
        if not hub:
            if (path / huggingface.CONFIG).exists() and not (path / RECIPE).exists():
                usual = " or ".join(huggingface.WEIGHTS)
                raise UserError(f"{path} holds {huggingface.CONFIG} and no weights: {usual} belongs beside it.")
            _ = folder.recipe  # raises an error for a folder that is no run
            if not folder.encoder.exists():
                return _unfinished(folder, settings)
            path, name = folder.encoder, str(folder.encoder)
        parts = hub or [path]
    facts: dict[str, Any] = {}
    tensors: Any = {}
    for part in parts:
        if is_pickle(part):
            _check_program(part)
            found = unpickle(part)
            tensors = found if len(parts) == 1 else tensors | dict(found if isinstance(found, Mapping) else {})
        else:
            if part.suffix.lower() == ".onnx" and part.is_file():
                raise UserError(
                    f"{part} holds an ONNX graph, which onnxruntime runs. Export the encoder to safetensors, torch or "
                    "timm to load it again."
                )
            more, facts = checkpoint.load_tensors(part)
            tensors = tensors | more
    ours = {"encoder", "mean", "std", "test_size"} <= facts.keys() and isinstance(facts["encoder"], dict)
    if ours and backbone is None:
        encoder = Encoder.from_spec(facts["encoder"] | settings)
        adapted = encoder.load_weights(tensors)
        note = f"{adapted[0].upper()}{adapted[1:]}." if adapted else ""
        return _seen(encoder, facts, _Guess(), name, note)
    described = huggingface.describe(parts[0].parent, [part.name for part in parts])
    told = bool(described.name) and backbone is None
    known = recognize(
        tensors,
        name,
        described.name if told else backbone,
        described={} if told else described.settings,
        told=told,
        **({**described.settings, **settings} if told else settings),
    )
    note = "; ".join((known.note, *described.notes)) + "."
    guess = _Guess()
    if not ours:
        looks, facts = _assumed(known.encoder, backbone is None or known.family != "")
        guess = _Guess("" if {"mean", "std"} <= described.images.keys() else looks, "test_size" not in described.images)
        facts |= described.images
    return _seen(known.encoder, facts, guess, name, note)


def _unfinished(folder: RunFolder, settings: dict[str, Any]) -> tuple[Pretrained, _Guess]:
    """The encoder of a run that goes on, or was interrupted, as its last checkpoint has it."""
    path = folder.path
    again = f"continue it with `manyviews resume {quote(str(path))}`"
    latest = folder.latest
    if latest is None:
        raise UserError(f"The run in {path} is not finished, and has no checkpoint yet: wait for one, or {again}.")
    if settings:
        raise UserError(f"The run in {path} has its architecture: leave out {next(iter(settings))}.")
    method, facts = trained_method(folder)
    recipe = recipe_now(folder)
    encoder = recipe.adaptation.finish(method.kept_encoder)
    steps = int(facts.get("end", facts.get("steps", 0)))
    note = f"The run in {path} is not finished: its encoder is that of step {facts['step']}"
    note += f" of {steps}; {again}." if steps else f"; {again}."
    return _seen(encoder, encoder_facts(encoder, recipe, facts["step"]), _Guess(), str(latest), note)


def _seen(encoder: Encoder, facts: Mapping[str, Any], guess: _Guess, name: str, note: str) -> tuple[Pretrained, _Guess]:
    """An encoder with the images that a file says or that were assumed."""
    given = len(facts["mean"])
    if given != encoder.channels and given == len(facts["std"]) == 3:
        if not guess.look:
            guess = replace(guess, look=f"the mean and std of the file, {_repeated(encoder.channels)}")
        facts = {**facts, **{k: per_channel(facts[k], encoder.channels) for k in ("mean", "std")}}
    mean = _numbers(f"mean of {name}", facts["mean"], encoder.channels, lambda v: True)
    std = _numbers(f"std of {name}", facts["std"], encoder.channels, lambda v: v > 0)
    reading = facts.get("reading")
    try:
        read = None if reading is None else Reading.from_dict(reading)
    except (TypeError, ValueError) as e:
        raise UserError(f"{name} says how to read images, in a way that is not understood ({e}).") from None
    return Pretrained(encoder.eval(), mean, std, facts["test_size"], name, note, read), guess


def _repeated(channels: int) -> str:
    return "averaged for one channel" if channels == 1 else f"repeated for {channels} channels"


def _check_program(path: Path) -> None:
    """Raise UserError for files of weights and code, which other software runs."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    kind = (
        ("a program of torch.export", "torch.export.load")
        if any(re.search(r"(^|/)models/.+\.json$|serialized_exported_program\.json$", n) for n in names)
        else ("a TorchScript program", "torch.jit.load")
        if any(n.endswith("/constants.pkl") or "/code/" in n for n in names)
        else None
    )
    if kind:
        raise UserError(
            f"{path} holds {kind[0]}, which {kind[1]} runs; code in a file is never run here. Export the encoder to "
            "safetensors, torch or timm to load it again."
        )


def _assumed(encoder: Encoder, outside: bool) -> tuple[str, dict[str, Any]]:
    """The usual images of weights that do not say, in words and as facts; `outside`: timm did not train them."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if encoder.test_size <= _SMALL:
        words, mean, std = "the mean and std of CIFAR-10", CIFAR_MEAN, CIFAR_STD
    elif outside:
        words, mean, std = "the mean and std of ImageNet", IMAGENET_MEAN, IMAGENET_STD
    else:
        words, mean, std = f"timm's mean and std of {encoder.name}", encoder.mean, encoder.std
    if encoder.channels != 3:
        words = f"{words}, {_repeated(encoder.channels)}"
        mean, std = (per_channel(values[:3], encoder.channels) for values in (mean, std))
    return words, {"mean": mean, "std": std, "test_size": encoder.test_size}


def _of_module(module: nn.Module, test_size: int | None) -> tuple[Pretrained, _Guess]:
    name = type(module).__name__
    if isinstance(module, Encoder):
        return Pretrained(module, module.mean, module.std, module.test_size, name), _Guess()
    if test_size is None:
        raise UserError(f"Nothing says which images {name} expects: give test_size, and mean and std.")
    _positive(test_size)
    encoder = ExternalEncoder(module, test_size)
    guess = _Guess("the mean and std of ImageNet", size=True)
    return Pretrained(encoder, IMAGENET_MEAN, IMAGENET_STD, test_size, name), guess


def _positive(size: int) -> None:
    if not isinstance(size, int) or size < 1:
        raise UserError(f"The test size must be a number of pixels, not {size}.")


def _numbers(name: str, values: Sequence[float], channels: int, fits: Callable[[float], bool]) -> tuple[float, ...]:
    """A number for each channel."""
    wanted = {1: "one number", 3: "three numbers"}.get(channels, f"{channels} numbers")
    try:
        found = tuple(map(float, values))
    except (TypeError, ValueError):
        raise UserError(f"The {name} must be {wanted}, not {values!r}.") from None
    if len(found) != channels:
        raise UserError(f"The {name} must be {wanted}, not {values!r}.")
    if not all(math.isfinite(v) and fits(v) for v in found):
        kind = wanted.replace(" number", f"{' positive' * (not fits(0))} finite number")
        raise UserError(f"The {name} must be {kind}, not {values!r}.")
    return found


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
