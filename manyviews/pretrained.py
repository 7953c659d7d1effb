"""A pretrained encoder in and out of files: our own, timm's, other libraries', ONNX, plain tensors."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from manyviews import checkpoint
from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.backbones.outside import fetch, recognize
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, printable, unknown
from manyviews.evaluation.features import SMALL
from manyviews.settings import CIFAR_MEAN, CIFAR_STD
from manyviews.views.container import IMAGENET_MEAN, IMAGENET_STD

TIMM = "timm:"
"""What names of timm's weights begin with."""

_PICKLES = (".pt", ".pth", ".bin", ".tar", ".ckpt", ".torch", ".pyth", ".pkl")
_SMALL = 32  # pixels: images of this size are usually CIFAR's


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and what one must know to use it.

    Attributes:
        encoder: normalized images, float32 `b 3 test_size test_size`, to features, `b d`.
        mean: to subtract, per channel, of images in [0, 1].
        std: to divide by, per channel.
        test_size: side in pixels at which it is evaluated.
        name: where it came from.
        note: of what did not come from here: what was taken and left out, and what was assumed, in a sentence or two.
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

    What did not come from here was looked at by others in another way: the note says what was assumed.

    Args:
        weights: a run folder; an exported file; a checkpoint of timm, torchvision, lightly, solo-learn, or of MoCo,
            DINO, MAE and the like (`.pth`, `.pth.tar`, `.ckpt`, `.safetensors`), recognized by its keys: see
            `backbones.outside.recognize`; "timm:NAME" for timm's own weights; or a module from images `b 3 s s` to
            features, see `backbones.ExternalEncoder`. No code that a file may hold is ever run.
        backbone: timm's name of the architecture, where a file does not tell.
        test_size: side in pixels at which it is evaluated. Of files that do not say: that of the architecture, 32 for
            small stems. Modules must be given theirs.
        mean: per channel, of images in [0, 1]. Of files that do not say: CIFAR-10's if they are of images of 32 pixels;
            timm's, if `backbone` is given and nothing is known of the method; ImageNet's in all other cases.
        std: the same.
        settings: of the architecture: see `manyviews.backbones.Encoder`.

    Raises:
        UserError: no such file, not weights, weights of an architecture that is not known, or of another one.
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
    """An encoder, and what was assumed of its images, in words."""
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
    if _is_pickle(path):
        tensors = _unpickle(path)
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


def _is_pickle(path: Path) -> bool:
    """By what is in it, whatever it is called, and by its name where that says nothing."""
    with contextlib.suppress(OSError), path.open("rb") as file:  # who reads it says what is wrong
        head = file.read(9)
        if head[8:] == b"{":  # safetensors: the header's length, and JSON
            return False
        if head[:2] == b"PK" or head[:1] == b"\x80":  # a zip file, as `torch.save` makes it, or a bare pickle
            return True
    return path.suffix.lower() in _PICKLES


def _assumed(encoder: Encoder, outside: bool) -> tuple[str, dict[str, Any]]:
    """What is usual for weights that do not say, in words and as facts; `outside` are none that timm has trained."""
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
        raise UserError(f"Nothing says for which images {name} was made: give test_size, and mean and std.")
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
            f"{encoder.name} takes images of {encoder.test_size} pixels alone: leave out the test size, or, in "
            f"Python, load it with img_size={weights.test_size}."
        )
    encoder.check_size(weights.test_size, weights.test_size)


class _Nothing:
    """What is made of everything in a file that is neither tensors nor plain containers: it keeps nothing."""

    def __new__(cls, *args: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _no_items(*args: object) -> dict[object, object]:
    return {}


_INERT: list[tuple[Callable[..., Any], str]] = [
    *((_Nothing, f"builtins.{name}") for name in ("bool", "dict", "float", "int", "list", "str")),
    *((_Nothing, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (_Nothing, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *((_Nothing, f"pathlib{part}.{name}") for part in ("", "._local") for name in ("PosixPath", "WindowsPath")),
    *((_Nothing, f"omegaconf.base.{name}") for name in ("ContainerMetadata", "Metadata")),
    *((_Nothing, f"omegaconf.{name}") for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *((_Nothing, name) for name in ("argparse.Namespace", "types.SimpleNamespace", "typing.Any")),
    (_no_items, "collections.defaultdict"),
    *((dict, f"{library}.utilities.data.AttributeDict") for library in ("lightning_fabric", "lightning.fabric")),
]
"""What trainers keep settings and scores in, beside the weights, and what is called in its place."""


def _unpickle(path: Path) -> object:
    """What `torch.save` wrote: tensors and plain containers. Nothing that the file names is called."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        # As an open file: by a path PyTorch goes by the name.
        with torch.serialization.safe_globals(list(_INERT)), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler raises whatever the bytes make it raise
        foreign = re.search(r"GLOBAL (\S+)", str(e))
        reason = f"it holds {foreign[1]}" if foreign else str(e).partition("\n")[0]
        raise UserError(
            f"{path} cannot be loaded safely: it is damaged, or holds more than tensors, which could run code "
            f"({printable(reason, 160)}); where you trust it, save its weights alone in a new file, with "
            "torch.save(model.state_dict(), 'weights.pth')."
        ) from None


def write(weights: Pretrained, format: str, out: Path) -> Path:
    """Write an encoder to a new file (a new folder for "timm") in one of `FORMATS`.

    Raises:
        UserError: no such format, a package it needs is not installed, or the encoder is anybody's module.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    FORMATS[format](weights, out)
    return out


def facts(weights: Pretrained) -> dict[str, object]:
    """What one must know to use the tensors, JSON-able."""
    return {
        "encoder": _own(weights).spec,
        "mean": weights.mean,
        "std": weights.std,
        "test_size": weights.test_size,
    }


def _own(weights: Pretrained) -> Encoder:
    if isinstance(weights.encoder, ExternalEncoder):
        raise UserError(f"{weights.name} is a bare module, which cannot be exported: save it with its own library.")
    return weights.encoder


def _safetensors(weights: Pretrained, out: Path) -> None:
    """One file of tensors in timm's names, with the architecture and the normalization in its header."""
    checkpoint.save_tensors(out, _own(weights).model.state_dict(), facts(weights))


def _torch(weights: Pretrained, out: Path) -> None:
    """A state dict in timm's names, for `torch.load(..., weights_only=True)`."""
    tensors = {k: v.detach().cpu() for k, v in _own(weights).model.state_dict().items()}
    checkpoint.write_atomically(out, lambda part: torch.save(tensors, part))


def _timm(weights: Pretrained, out: Path) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    from timm.models import save_for_hf

    encoder = _own(weights)
    stem = encoder.spec["stem"]
    if stem != "native":
        raise UserError(
            f"timm cannot build the stem '{stem}' of {encoder.name}: export to onnx, safetensors or torch, or "
            "pretrain with --set backbone.stem=native."
        )
    data = {
        "mean": weights.mean,
        "std": weights.std,
        "input_size": [3, weights.test_size, weights.test_size],
        # As `evaluation.features.test_transform` looks at images.
        "crop_pct": 1.0 if weights.test_size <= SMALL else 224 / 256,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    # What timm knows of its own weights of this architecture does not hold for these.
    source = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "test_input_size", "test_crop_pct")
    with checkpoint.new_folder(out) as part:
        save_for_hf(
            encoder.model,
            str(part),
            model_config={"pretrained_cfg": {**dict.fromkeys(source), **data}},
            model_args=encoder.timm_kwargs,
            safe_serialization=True,
        )


def _onnx(weights: Pretrained, out: Path) -> None:
    """A graph from RGB images in [0, 1], float32 `b 3 test_size test_size`, to features `b d`; it normalizes itself."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs its packages: pip install 'manyviews[onnx]'.") from None
    device = next(weights.encoder.parameters()).device
    model = _Normalized(weights).eval().to(device)
    images = torch.rand(2, 3, weights.test_size, weights.test_size, device=device)

    def save(part: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (images,),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(part, external_data=False)

    checkpoint.write_atomically(out, save)


class _Normalized(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, weights: Pretrained) -> None:
        super().__init__()
        self.encoder = _own(weights)
        self.register_buffer("mean", torch.tensor(weights.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(weights.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images - self.mean) / self.std)


FORMATS: dict[str, Callable[[Pretrained, Path], None]] = {
    "safetensors": _safetensors,
    "timm": _timm,
    "onnx": _onnx,
    "torch": _torch,
}
