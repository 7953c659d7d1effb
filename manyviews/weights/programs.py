"""Encoders as programs that other software runs. Each is run once and compared with the network."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.checkpoint import write_buffered
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import short_side
from manyviews.weights.load import Pretrained
from manyviews.weights.segmenter import Segmenter

FACTS = "manyviews.json"
"""The file in a program's archive that holds the facts about it."""

_TOLERANCE = 0.01  # of the greatest feature; a larger difference is another function
_TRACED, _TRIED = 2, 3  # images; another number shows that the program takes any


@dataclass(frozen=True)
class Compared:
    """How far a program's features are from the network's on random images.

    Attributes:
        difference: the greatest absolute difference.
        scale: the greatest absolute value of a feature.
        sentence: both, in words.
    """

    difference: float
    scale: float
    sentence: str = ""


class _Pooled(nn.Module):
    """What an encoder computes, without its properties: tracers ask for all of them, and some raise errors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(x))
        return features


class Normalized(nn.Module):
    """An encoder of images in [0, 1], and what follows it: float32 `b channels s s` to features or answers."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float], top: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.top = copy.deepcopy(top).cpu()
        self.register_buffer("mean", column(mean))
        self.register_buffer("std", column(std))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.top(self.encoder((images - self.mean) / self.std))
        return found


def column(values: Sequence[float]) -> Tensor:
    """A value for each channel, float32 `c 1 1`."""
    return torch.tensor(values).view(-1, 1, 1)


def normalized(weights: Pretrained, dynamic_size: bool) -> tuple[Normalized, Encoder]:
    """A copy of the encoder on the CPU in evaluation mode, with the normalization and alone.

    Positions are resized to `test_size` once and for all, unless images may have any size: then the program resizes
    them for each image.

    Raises:
        UserError: images may have any size, and the network takes one.
    """
    encoder = weights.encoder
    assert isinstance(encoder, Encoder)
    copied = copy.deepcopy(encoder).cpu().eval()
    size = weights.test_size
    if dynamic_size and getattr(getattr(copied.model, "patch_embed", None), "strict_img_size", False):
        raise UserError(f"{encoder.name} takes only images of {encoder.test_size} pixels: leave out --dynamic-size.")
    if not dynamic_size and copied.timm_kwargs.get("dynamic_img_size"):
        copied.model.set_input_size(img_size=(size, size))
        fixed = Encoder.from_spec(encoder.spec | {"img_size": size, "dynamic_img_size": False})
        fixed.load_weights(copied.model.state_dict())
        copied = fixed.eval()
    copied.requires_grad_(False)
    inner = weights.inner(copied) if isinstance(weights, Segmenter) else _Pooled(copied.model)
    return Normalized(inner, weights.mean, weights.std, weights.top).eval().requires_grad_(False), copied


@torch.no_grad()
def compare(weights: Pretrained, run: Callable[[Tensor], Tensor], sizes: Sequence[int] = ()) -> Compared:
    """Compare a program with the network on random images in [0, 1].

    Args:
        weights: the encoder and its normalization.
        run: float32 `b channels s s` to `b embed_dim`.
        sizes: sides of the images; `test_size` if there are none.

    Raises:
        UserError: the features are not the network's.
    """
    encoder = weights.encoder
    device = next(encoder.parameters()).device
    mode, most, scale = encoder.training, 0.0, 0.0
    top = copy.deepcopy(weights.top).cpu().eval()
    seen = weights.inner(encoder) if isinstance(weights, Segmenter) and isinstance(encoder, Encoder) else encoder
    encoder.eval()
    try:
        for size in sizes or (weights.test_size,):
            generator = torch.Generator().manual_seed(size)
            images = torch.rand(_TRIED, encoder.channels, size, size, generator=generator)
            x = (images - column(weights.mean)) / column(weights.std)
            wanted = top(seen(x.to(device)).cpu().float())
            difference = float((run(images).cpu().float() - wanted).abs().max())
            most, scale = max(most, difference), max(scale, float(wanted.abs().max()))
    finally:
        encoder.train(mode)
    if not math.isfinite(scale):
        raise UserError(
            f"{encoder.name} gives features that are not finite for random images: there is nothing to export."
        )
    if not most <= _TOLERANCE * scale:
        raise UserError(
            f"The exported program of {encoder.name} gives other {weights.outputs} than the network: they differ "
            f"by {most:.2g}, and are at most {scale:.2g}. Nothing was written; export to safetensors, timm or torch "
            "instead."
        )
    sides = " and ".join(map(str, sizes or (weights.test_size,)))
    return Compared(
        most,
        scale,
        f"Compared with the network on {_TRIED} random images of {sides} pixels: the greatest difference is "
        f"{most:.1e}, of {weights.outputs} up to {scale:.1e}.",
    )


def _shapes(encoder: Encoder, size: int, dynamic_size: bool) -> dict[int, Any]:
    """The dimensions of a batch of images of a size that may vary, for `torch.export`."""
    dim = torch.export.Dim
    found: dict[int, Any] = {0: dim("batch", min=1)}
    if dynamic_size:
        patch = encoder.patch_size if encoder.is_transformer else 1
        for axis, name in ((2, "rows"), (3, "columns")):
            found[axis] = (
                patch * dim(name, min=1, max=4096 // patch) if patch > 1 else dim(name, min=min(32, size), max=4096)
            )
    return found


def _other_sizes(weights: Pretrained, encoder: Encoder, dynamic_size: bool) -> tuple[int, ...]:
    """Sides of the images on which a program is tried."""
    size = weights.test_size
    step = encoder.patch_size if encoder.is_transformer else 32
    return (size, size + step) if dynamic_size else (size,)


@contextmanager
def _quiet(weights: Pretrained, format: str) -> Iterator[None]:
    """Hide the warnings of an exporter, and explain its failures."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, KeyboardInterrupt, OSError):  # a disk that fails is not the exporter's
        raise
    except Exception as e:  # exporters raise whatever they meet in other people's code
        why = printable(str(e).strip().partition("\n")[0], 160) or type(e).__name__
        raise UserError(
            f"{weights.encoder.name} cannot be written as {format} ({why}): export to safetensors, timm or torch."
        ) from e


def _program(weights: Pretrained, dynamic_size: bool) -> tuple[Normalized, Tensor, dict[int, Any], tuple[int, ...]]:
    """The network, images to trace it with, dimensions that may vary, and sides of images to try."""
    model, encoder = normalized(weights, dynamic_size)
    images = torch.rand(_TRACED, encoder.channels, weights.test_size, weights.test_size)
    return (
        model,
        images,
        _shapes(encoder, weights.test_size, dynamic_size),
        _other_sizes(weights, encoder, dynamic_size),
    )


def onnx(weights: Pretrained, path: Path, dynamic_size: bool, facts: dict[str, Any]) -> Compared:
    """A graph from "images", in [0, 1], to "features", or a model's "probabilities". Its properties hold the facts."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs its packages: pip install 'manyviews[onnx]'.") from None
    model, images, shapes, sizes = _program(weights, dynamic_size)
    weight = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weight > 2**31 - 2**20:
        raise UserError(
            f"{weights.encoder.name} holds {weight / 2**30:.1f} GiB, and one ONNX file at most 2: export to "
            "torch_export, safetensors or timm."
        )
    with _quiet(weights, "onnx"):
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=[weights.outputs],
            dynamic_shapes={"images": shapes},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])

    found = compare(weights, run, sizes)
    kind = {3: "RGB images", 1: "gray images"}.get(images.shape[1], f"images of {images.shape[1]} bands")
    size, short = weights.test_size, short_side(weights.test_size)
    told: dict[str, Any] = {
        "mean": weights.mean,
        "std": weights.std,
        "size": size,
        "resize": short,
        "interpolation": "bicubic",
        "channels": images.shape[1],
        "range": (0, 1),
        "features": weights.encoder.embed_dim,
        **{k: facts[k] for k in ("classes", "temperature") if k in facts},
        "preprocessing": f"{kind} with a short side of {short} pixels, bicubic and antialiased, cropped to the central "
        f"{size} x {size}, in [0, 1], float32, b c h w; the graph subtracts the mean and divides by the std",
        "difference": f"{found.difference:.3g}",
        "scale": f"{found.scale:.3g}",
        **{k: facts[k] for k in ("library", "version", "recipe") if k in facts},
        "manyviews": facts,
    }
    program.model.metadata_props.update(
        {k: value if isinstance(value, str) else json.dumps(value) for k, value in told.items()}
    )
    program.save(path, external_data=False)
    return found


def torchscript(weights: Pretrained, path: Path, _size: bool, facts: dict[str, Any]) -> Compared:
    """A traced program for images of one size. Its archive holds the facts in a file of its own."""
    model, images, _, sizes = _program(weights, False)
    with _quiet(weights, "torchscript"), torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)
        more = {FACTS: json.dumps(facts).encode()}
        write_buffered(path, lambda buffer: torch.jit.save(traced, buffer, _extra_files=more))
        loaded = torch.jit.load(str(path), map_location="cpu")
        found = compare(weights, loaded, sizes)
    return found


def torch_export(weights: Pretrained, path: Path, dynamic_size: bool, facts: dict[str, Any]) -> Compared:
    """A program of torch.export. Its archive holds the facts in a file of its own."""
    model, images, shapes, sizes = _program(weights, dynamic_size)
    # Strides make sizes depend on each other, which named dimensions do not allow; the sizes that are tried show that
    # they vary.
    convolutions = dynamic_size and not getattr(weights.encoder, "is_transformer", False)
    shapes |= dict.fromkeys((2, 3), torch.export.Dim.AUTO) if convolutions else {}
    with _quiet(weights, "torch_export"), torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes={"images": shapes})
        more = {FACTS: json.dumps(facts)}
        write_buffered(path, lambda buffer: torch.export.save(program, buffer, extra_files=more))
        with path.open("rb") as file:
            loaded = torch.export.load(file).module()
        found = compare(weights, loaded, sizes)
    return found
