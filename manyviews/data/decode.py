"""Any image file to RGB, upright, eight bits; or the reason why not."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from manyviews.data.files import Unreachable
from manyviews.data.formats import EXTENSIONS as EXTENSIONS
from manyviews.data.formats import HEAD, missing, sniff
from manyviews.data.reading import MAX_PIXELS, RGB, Reading

Raw = Path | bytes | Image.Image | np.ndarray
"""An image before decoding: a file, its bytes, or a decoded image (arrays: uint8 `h w 3` or `h w`)."""

MIN_SIDE = 4
MAX_RATIO = 100
"""Largest ratio of sides. A longer picture of a few kilobytes would become gigabytes at a useful short side."""

# Errors that are not the image's fault: too many open files, a network disk that does not answer.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that cannot be used. `reason` is a short phrase without the file's name, which the caller knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(raw: Raw, at_least: int | None = None, reading: Reading = RGB) -> tuple[Image.Image, tuple[int, int]]:
    """An RGB image with its EXIF orientation applied, and the true (height, width) of the upright picture.

    Alpha is composited on white. Sixteen bits are scaled to eight, not clipped. An animation gives its first frame.
    `at_least` lets a JPEG be decoded at a smaller scale, by a power of two in the DCT, with no side shorter than
    `at_least`. That is several times faster for photographs.

    Raises:
        Unreachable: the disk is gone, or too many files are open.
        BadImage: the file is unreadable, corrupt, truncated or no image; or the image has more than `MAX_PIXELS`, is
            longer than `MAX_RATIO` times its width, or has a side shorter than `MIN_SIDE`.
    """
    try:
        return _decode(raw, at_least)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels, which may be a decompression bomb") from None
    except OSError as error:
        raise fault(error, raw if isinstance(raw, Path) else None) from None
    # On corrupt files Pillow's plugins raise nearly everything: OSError, SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        raise BadImage(f"corrupt or truncated ({str(error) or type(error).__name__})") from None


def fault(error: OSError, path: Path | None, what: str = "the file") -> BadImage | Unreachable:
    """The error to raise for an error of the file system: is the image bad, or its disk unreachable?

    Args:
        error: the error that reading raised.
        path: the file, if it is on a local disk.
        what: what to call it in the message.
    """
    if isinstance(error, Unreachable):
        return error
    if isinstance(error, FileNotFoundError):
        if path is not None and not path.parent.is_dir():
            return Unreachable(f"The folder {path.parent} is gone, or its disk.")
        return BadImage(f"{what} is gone")
    if isinstance(error, PermissionError):
        return BadImage(f"no permission to read {what}")
    if error.errno in _PASSING:
        return Unreachable(error.errno, f"{path or 'An image'}: {error.strerror}")
    return BadImage(f"corrupt or truncated ({error})")


def _decode(raw: Raw, at_least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    image = _open(raw)
    width, height = image.size
    # Only the header has been read; no memory for the picture is allocated yet.
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} is over {MAX_PIXELS:,} pixels, which may be a decompression bomb")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{width}x{height} is too small: the short side needs {MIN_SIDE} pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadImage(f"{width}x{height} is too elongated: the long side may be {MAX_RATIO} times the short one")
    if at_least is not None and not isinstance(raw, Image.Image):  # the caller's own image must not change
        image.draft(None, (at_least, at_least))
    drafted = image.size != (width, height)
    image.load()
    if not drafted:
        width, height = image.size  # Pillow turns TIFFs upright while it loads them
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return rgb, (height, width)


def _open(raw: Raw) -> Image.Image:
    match raw:
        case Image.Image():
            return raw
        case np.ndarray():
            return Image.fromarray(raw)
        case Path():
            # Read whole: one request for each image suits network disks, and no file stays open.
            return _open(raw.read_bytes())
        case bytes():
            kind = sniff(raw[:HEAD])
            if kind is None:
                raise BadImage("not an image of a known format")
            if (cure := missing(kind)) is not None:
                raise BadImage(f"a {kind.name} image, which needs a package: run `{cure}`")
            return Image.open(io.BytesIO(raw), formats=(kind.plugin,) if kind.plugin else ())


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF around sound pixels counts as no EXIF
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image), 65535.0)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return Image.fromarray(_to_8_bits(values, _white(values))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    return np.rint(values.astype(np.float64) * (255.0 / white)).clip(0, 255).astype(np.uint8)


def _white(values: np.ndarray) -> float:
    """The value of white in a 32-bit image: the first of 1, 255 and 65535 that no value exceeds, else the maximum."""
    top = float(values.max())
    integers = bool((values == np.rint(values)).all())
    usual = (255.0, 65535.0) if integers and top > 1 else (1.0, 255.0, 65535.0)
    return next((white for white in usual if top <= white), top)
