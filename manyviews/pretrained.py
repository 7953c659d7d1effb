"""A pretrained encoder in and out of files: our own, timm's, ONNX, plain tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyviews import checkpoint
from manyviews.backbones import Encoder
from manyviews.engine import folder as files
from manyviews.errors import UserError, unknown


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and what one must know to use it.

    Attributes:
        encoder: normalized images, float32 `b 3 test_size test_size`, to features, `b d`.
        mean: to subtract, per channel, of images in [0, 1].
        std: to divide by, per channel.
        test_size: side in pixels at which it is evaluated.
        name: where it came from.
    """

    encoder: Encoder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    test_size: int
    name: str


def load(path: str | Path, backbone: str | None = None, **backbone_settings: Any) -> Pretrained:
    """An encoder from a run folder, from an exported file, or from any weights with timm's names.

    Args:
        path: a run folder, a `.safetensors` file, or a `.pt`/`.pth` file of tensors. Pickles that hold anything but
            tensors are refused: they could run code.
        backbone: the architecture, where the file does not say.
        backbone_settings: of that architecture: see `manyviews.backbones.Encoder`.

    Raises:
        UserError: no such file, not weights, or weights of another architecture.
    """
    path = Path(path)
    if path.is_dir():
        files.read(path)  # says what is wrong with a folder that is no run
        if not (path / files.ENCODER).exists():
            raise UserError(f"The run in {path} is not finished: continue it with `manyviews resume {path}`.")
        path = path / files.ENCODER
    if path.suffix in (".pt", ".pth", ".bin", ".tar", ".ckpt"):
        tensors, facts = _load_pickle(path), dict[str, Any]()
    else:
        tensors, facts = checkpoint.load_tensors(path)
    if backbone is not None:
        encoder = Encoder(backbone, **backbone_settings)
        facts = {"mean": encoder.mean, "std": encoder.std, "test_size": encoder.test_size, **facts}
    elif {"encoder", "mean", "std", "test_size"} <= facts.keys() and isinstance(facts["encoder"], dict):
        encoder = Encoder.from_spec(facts["encoder"])
    else:
        raise UserError(f"{path} does not say which architecture it is of: give its timm name as --backbone.")
    encoder.load_weights(tensors)
    mean, std = (tuple(float(v) for v in facts[k]) for k in ("mean", "std"))
    return Pretrained(encoder.eval(), mean, std, int(facts["test_size"]), str(path))  # type: ignore[arg-type]


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler raises whatever the bytes make it raise
        raise UserError(
            f"{path} cannot be loaded safely: it is damaged, or holds more than tensors, which could run code "
            f"({str(e).splitlines()[0]})."
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(f"{path} does not hold a state dict of tensors.")
    return found


def write(weights: Pretrained, format: str, out: Path) -> Path:
    """Write an encoder to a new file (a new folder for "timm") in one of `FORMATS`.

    Raises:
        UserError: no such format, or a package it needs is not installed.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    FORMATS[format](weights, out)
    return out


def facts(weights: Pretrained) -> dict[str, object]:
    """What one must know to use the tensors, JSON-able."""
    return {
        "encoder": weights.encoder.spec,
        "mean": weights.mean,
        "std": weights.std,
        "test_size": weights.test_size,
    }


def _safetensors(weights: Pretrained, out: Path) -> None:
    """One file of tensors in timm's names, with the architecture and the normalization in its header."""
    checkpoint.save_tensors(out, weights.encoder.model.state_dict(), facts(weights))


def _torch(weights: Pretrained, out: Path) -> None:
    """A state dict in timm's names, for `torch.load(..., weights_only=True)`."""
    tensors = {k: v.detach().cpu() for k, v in weights.encoder.model.state_dict().items()}
    checkpoint.write_atomically(out, lambda part: torch.save(tensors, part))


def _timm(weights: Pretrained, out: Path) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    from timm.models import save_for_hf

    stem = weights.encoder.spec["stem"]
    if stem != "native":
        raise UserError(
            f"timm cannot build the stem '{stem}' of {weights.encoder.name}: export to onnx, safetensors or torch, or "
            "pretrain with --set backbone.stem=native."
        )
    size = [3, weights.test_size, weights.test_size]
    data = {"mean": weights.mean, "std": weights.std, "input_size": size, "crop_pct": 224 / 256}
    # What timm knows of its own weights of this architecture does not hold for these.
    source = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "test_input_size", "test_crop_pct")
    out.mkdir()
    save_for_hf(
        weights.encoder.model,
        str(out),
        model_config={"pretrained_cfg": {**dict.fromkeys(source), **data}},
        model_args=weights.encoder.timm_kwargs,
        safe_serialization=True,
    )


def _onnx(weights: Pretrained, out: Path) -> None:
    """A graph from RGB images in [0, 1], float32 `b 3 test_size test_size`, to features `b d`; it normalizes itself."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs its packages: pip install 'manyviews[onnx]'.") from None
    model = _Normalized(weights).eval()
    images = torch.rand(2, 3, weights.test_size, weights.test_size)

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
        self.encoder = weights.encoder
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
