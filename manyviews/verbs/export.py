"""Write an encoder for other software."""

from __future__ import annotations

from pathlib import Path

from manyviews.verbs._common import loaded, new_file
from manyviews.weights import Pretrained, write


def export(weights: str | Path | Pretrained, format: str, out: str | Path) -> Path:
    """Write the encoder in a format that other software loads: see `manyviews.weights.FORMATS`.

    Args:
        weights: a run folder or weights: see `load`.
        format: "safetensors", "timm", "onnx" or "torch".
        out: a new file; a new folder for "timm".

    Raises:
        UserError: an unknown format, or `out` exists.
    """
    return write(loaded(weights), format, new_file(out))
