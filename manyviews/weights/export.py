"""An encoder to files: tensors, a folder for timm, an ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from manyviews import checkpoint
from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.errors import UserError, unknown
from manyviews.evaluation.features import SMALL
from manyviews.weights.load import Pretrained


def write(weights: Pretrained, format: str, out: Path) -> Path:
    """Write an encoder to a new file (a new folder for "timm") in one of `FORMATS`.

    Raises:
        UserError: an unknown format, a missing package, or an encoder that is a bare module.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    FORMATS[format](weights, out)
    return out


def facts(weights: Pretrained) -> dict[str, object]:
    """The settings that a user of the tensors needs, as JSON."""
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
    """One file of tensors under timm's names; the header holds the architecture and the normalization."""
    checkpoint.save_tensors(out, _own(weights).model.state_dict(), facts(weights))


def _torch(weights: Pretrained, out: Path) -> None:
    """A state dict under timm's names, for `torch.load(..., weights_only=True)`."""
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
        # The crop of `evaluation.features.test_transform`.
        "crop_pct": 1.0 if weights.test_size <= SMALL else 224 / 256,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    # timm's facts about its own weights of this architecture are not true of these.
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
    """A graph from RGB images in [0, 1], float32 `b 3 test_size test_size`, to features `b d`; it normalizes them."""
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
        features: Tensor = self.encoder((images - self.mean) / self.std)
        return features


FORMATS: dict[str, Callable[[Pretrained, Path], None]] = {
    "safetensors": _safetensors,
    "timm": _timm,
    "onnx": _onnx,
    "torch": _torch,
}
