"""From an image file to an encoder's input, with Pillow and NumPy alone: model cards and docs/weights.md print it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def pixels(path: str, size: int, short: int) -> np.ndarray:
    """The central square of an image file with 8 bits a channel, float32 `3 size size`, in [0, 1]."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    width, height = image.size
    width, height = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
