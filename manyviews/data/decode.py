"""Any image file to eight bits a channel, upright, as a `Reading` says; or the reason why not."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

# Only these of Pillow's plugins read files: some of the others run programs.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from manyviews.data import raster as rasters
from manyviews.data.files import Unreachable
from manyviews.data.formats import EXTENSIONS as EXTENSIONS
from manyviews.data.formats import HEAD, install, installed, missing, sniff
from manyviews.data.formats import BadImage as BadImage
from manyviews.data.raster import MIN_SIDE, Check, Raster
from manyviews.data.reading import MAX_PIXELS as MAX_PIXELS
from manyviews.data.reading import RGB, Reading
from manyviews.data.room import ROOM


@dataclass(frozen=True)
class Frame:
    """One of the pictures of a file that holds several.

    Attributes:
        raw: the file.
        number: which picture, from 0.
    """

    raw: Path | bytes
    number: int


Raw = Path | bytes | Frame | Image.Image | np.ndarray
"""An image before decoding: a file, its bytes, one of its pictures, or a decoded image (arrays: `h w c` or `h w`)."""

Picture = Image.Image | np.ndarray
"""A decoded image: PIL's "RGB" for three channels and "L" for one; uint8 `h w c` for another number."""

MAX_RATIO = 100
"""Largest ratio of sides. A longer picture of a few kilobytes would become gigabytes at a useful short side."""

# The plugins' own doors. `Image.open` has a limit of pixels for the whole process; ours is the reading's.
_OPEN = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

PLUGINS = tuple(_OPEN)
"""Names of the plugins of Pillow that may read files, for `Image.open`."""

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
_ROWS = 2**22  # values scaled at a time
_FILE = 2**30  # bytes of a file that is read whatever the limit of pixels
_GUESSED = 2**24  # values of which a range is guessed, spread over larger pictures


def decode(raw: Raw, at_least: int | None = None, reading: Reading = RGB) -> tuple[Picture, tuple[int, int]]:
    """An image of eight bits a channel with its EXIF orientation applied, and the upright picture's (height, width).

    For one and three channels, gray is copied or color becomes luma, alpha is composited on white, and inks become
    color. Other channels are the file's own bands. Values of more than eight bits are scaled by the reading's range,
    or by the whole range of their type, and clipped; values that mean nothing (not a number, "no data") become 0.
    Floats, signed and 32-bit integers have no such range. Without one from the reading, it is guessed from this
    picture alone, with a warning: see `manyviews.data.measure` for the range of a data set.

    `at_least` lets a JPEG be decoded at a smaller scale, by a power of two in the DCT, with no side shorter than
    `at_least`. That is several times faster for photographs.

    Raises:
        Unreachable: the disk is gone, or too many files are open.
        BadImage: the file is unreadable, corrupt, truncated or no image; it needs a package; it has other channels than
            the reading wants; or the image has more pixels than the reading allows, is longer than `MAX_RATIO` times
            its width, or has a side shorter than `MIN_SIDE`.
    """
    with translated(raw, reading):
        found = opened(raw, at_least, reading)
        ROOM.claim(found.size(), "copy")
        return found.picture(), found.extent


class translated:
    """A context in which everything that reading an image can raise becomes `BadImage` or `Unreachable`.

    The memory that the image claims is given back at its end: see `ROOM`.
    """

    def __init__(self, raw: Raw, reading: Reading = RGB) -> None:
        self.path = raw.raw if isinstance(raw, Frame) else raw
        self.reading = reading
        self._turn = ExitStack()

    def __enter__(self) -> None:
        self._turn.enter_context(ROOM.turn())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._turn.close()
        if error is None or isinstance(error, BadImage) or not isinstance(error, Exception):
            return
        if isinstance(error, UnidentifiedImageError):
            raise BadImage("not an image of a known format") from None
        if isinstance(error, Image.DecompressionBombError):
            raise BadImage(_too_large("it", self.reading)) from None
        if isinstance(error, MemoryError):
            raise BadImage("there is not enough memory to decode it") from None
        if isinstance(error, OSError):
            raise fault(error, self.path if isinstance(self.path, Path) else None) from None
        # On corrupt files the packages raise nearly everything: SyntaxError, struct.error, KeyError, ...
        raise BadImage(f"corrupt or truncated ({str(error) or type(error).__name__})") from None


def as_rgb(seen: Picture) -> Image.Image:
    """A decoded image for people: of more than three channels the first three, of two the first."""
    if isinstance(seen, Image.Image):
        return seen if seen.mode == "RGB" else seen.convert("RGB")
    return Image.fromarray(np.ascontiguousarray(seen[..., :3] if seen.shape[2] > 2 else seen[..., [0, 0, 0]]))


def examine(raw: Raw, reading: Reading = RGB) -> Raster:
    """A picture of a file as it is stored: its bands, the type of its values, and how many pictures the file holds.

    Raises:
        Unreachable, BadImage: as `decode`.
    """
    with translated(raw, reading):
        found, frames = _opened(raw, reading)
        if isinstance(found, Raster):
            return found
        _load(found, reading)
        return rasters.as_raster(found, frames)


def count_frames(raw: Path | bytes, reading: Reading = RGB) -> int:
    """How many pictures a file holds; 1 for one that cannot be read."""
    try:
        with translated(raw):
            with raw.open("rb") if isinstance(raw, Path) else io.BytesIO(raw) as file:
                kind = sniff(file.read(HEAD))
                file.seek(0)
                match kind.name if kind else "":  # the first two may be large scenes, of which this reads the headers
                    case "TIFF" if installed("tifffile"):
                        with rasters.open_tiff(file) as tiff:
                            return rasters.tiff_layout(tiff, reading).frames
                    case "DICOM":
                        from pydicom import dcmread

                        header = dcmread(file, force=True, stop_before_pixels=True)
                        return int(header.get("NumberOfFrames", 1) or 1)
            return _opened(raw, reading)[1]
    except BadImage:
        return 1


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


@dataclass(frozen=True)
class Opened:
    """A picture whose pixels are in memory as its file stores them, before it is turned and gets a reading's channels.

    Attributes:
        found: the pixels.
        reading: how they become a picture.
        orientation: EXIF's.
        extent: height and width of the upright picture, before a JPEG was decoded at a smaller scale.
    """

    found: Image.Image | Raster
    reading: Reading
    orientation: int
    extent: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels in memory."""
        if isinstance(self.found, Raster):
            return self.found.values.shape[0], self.found.values.shape[1]
        return self.found.height, self.found.width

    def size(self) -> int:
        """About how many bytes more `picture` takes."""
        image = self.found
        plain = isinstance(image, Image.Image) and image.mode in ("RGB", "L") and "transparency" not in image.info
        return (4 if plain else 16) * self.shape[0] * self.shape[1]

    def picture(self) -> Picture:
        """The whole picture, upright."""
        seen = picture(self.found, self.reading) if isinstance(self.found, Raster) else _seen(self.found, self.reading)
        if self.orientation not in _UPRIGHT:
            return seen
        if isinstance(seen, Image.Image):
            return seen.transpose(_UPRIGHT[self.orientation])
        return self.upright(seen)

    def rows(self) -> Iterator[np.ndarray]:
        """The picture from the top, as it is stored: some rows at a time, uint8 `r w c`."""
        height, width = self.shape
        some = max(1, _ROWS // (4 * width))
        if isinstance(self.found, Raster):
            raster, reading = self.found, self.reading
            if raster.whole is None and reading.range is None:
                reading = replace(reading, range=_guessed(raster))
            for top in range(0, height, some):
                yield _pixels(picture(replace(raster, values=raster.values[top : top + some]), reading))
            return
        for top in range(0, height, some):
            part = self.found.crop((0, top, width, min(height, top + some)))
            part.info = {k: v for k, v in self.found.info.items() if k == "transparency"}
            yield _pixels(_seen(part, self.reading))

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels `h w c` of this picture or of a smaller copy of it, turned upright."""
        return np.ascontiguousarray(rasters.upright(pixels, self.orientation))


def opened(raw: Raw, at_least: int | None, reading: Reading) -> Opened:
    """An image with its pixels in memory: see `decode`. To be called within `translated`, which holds their memory."""
    found, _ = _opened(raw, reading)
    if isinstance(found, Raster):
        height, width = found.values.shape[:2]
        _check(reading)(width, height, 0)
        return Opened(found, reading, 1, (height, width))
    image = found
    width, height = image.size
    # Only the header has been read; no memory for the picture is allocated yet.
    _check(reading)(width, height, 0)
    if at_least is not None and not isinstance(raw, Image.Image):  # the caller's own image must not change
        image.draft(None, (at_least, at_least))
    drafted = image.size != (width, height)
    _load(image, reading)
    if not drafted:
        width, height = image.size  # Pillow turns TIFFs upright while it loads them
    orientation = _orientation(image)
    extent = (width, height) if orientation in _UPRIGHT and orientation >= 5 else (height, width)
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    own = rasters.as_raster(image) if wide or reading.channels not in (1, 3) else image
    return Opened(own, reading, orientation, extent)


# Bytes of a pixel that Pillow and the codec behind it take: most kinds of color take four. These codecs decode into
# memory of their own first.
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_CODECS = {"WEBP": 12, "AVIF": 12, "JPEG2000": 8, "HEIF": 8}


def _load(image: Image.Image, reading: Reading) -> None:
    """Read an image's pixels, once there is memory for them."""
    _check(reading)(*image.size, 0)
    each = _BYTES.get(image.mode, 4) + _CODECS.get(image.format or "", 0)
    ROOM.claim(each * image.width * image.height, "pixels")
    image.load()


def _pixels(seen: Picture) -> np.ndarray:
    """uint8 `h w c`."""
    found = np.asarray(seen)
    return found if found.ndim == 3 else found[..., None]


def _seen(image: Image.Image, reading: Reading) -> Picture:
    """A loaded picture of up to eight bits in one or three channels."""
    if reading.channels == 1 and image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    rgb = _to_rgb(image)
    return rgb if reading.channels == 3 else rgb.convert("L")


def _check(reading: Reading) -> Check:
    """What a picture's size must pass before its pixels are read."""

    def check(width: int, height: int, size: int) -> None:
        # A color picture of the largest size is not more than three times as many bytes; twelve for wide bands.
        if width * height > reading.max_pixels or size > 12 * reading.max_pixels:
            raise BadImage(_too_large(f"{width}x{height}", reading))
        if min(width, height) < MIN_SIDE:
            raise BadImage(f"{width}x{height} is too small: the short side needs {MIN_SIDE} pixels")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise BadImage(f"{width}x{height} is too elongated: the long side may be {MAX_RATIO} times the short one")
        ROOM.claim(size, "pixels")

    return check


def _too_large(what: str, reading: Reading) -> str:
    return (
        f"{what} is over {reading.max_pixels:,} pixels, which may be a decompression bomb: if it is not, cut it up "
        "with `manyviews prepare --tile`, or raise data.max_pixels"
    )


def _opened(raw: Raw, reading: Reading) -> tuple[Image.Image | Raster, int]:
    """A picture that Pillow has opened but not loaded, or one that was read otherwise; and the file's pictures."""
    number = None
    if isinstance(raw, Frame):
        number = raw.number
        raw = raw.raw
    match raw:
        case Image.Image():
            return raw, 1
        case np.ndarray():
            if raw.dtype == np.uint8 and (raw.ndim == 2 or raw.shape[2] == 3):
                return Image.fromarray(raw), 1
            values = raw if raw.ndim == 3 else raw[..., None]
            return Raster(values, "array", rasters.whole_range(values.dtype)), 1
        case Path():
            return _opened_bytes(whole(raw, reading), reading, number)
        case bytes():
            return _opened_bytes(raw, reading, number)


def whole(path: Path, reading: Reading) -> bytes:
    """A file's bytes: one request for each image suits network disks, and no file stays open. See `translated`."""
    with suppress(OSError):  # reading it says why
        size = os.stat(path).st_size
        if size > max(_FILE, 12 * reading.max_pixels):
            raise BadImage(f"its file has {size / 1e9:.1f} GB: cut it up with `manyviews prepare --tile`")
        ROOM.claim(size, "file")
    return path.read_bytes()


def _opened_bytes(content: bytes, reading: Reading, number: int | None) -> tuple[Image.Image | Raster, int]:
    kind, check = sniff(content[:HEAD]), _check(reading)
    if kind is None:
        raise BadImage("empty" if not content else "not an image of a known format")
    if (cure := missing(kind)) is not None:
        raise BadImage(f"a {kind.name} image, which needs a package: run `{cure}`")
    found: Raster | None = None
    match kind.name:
        case "DICOM":
            found = rasters.read_dicom(content, reading, number, check)
        case "JPEG XL":
            found = rasters.read_jpeg_xl(content, check)
        case "HEIC, HEIF":
            return rasters.open_heif(content, reading, number, check)
        case "TIFF":
            return _opened_tiff(content, reading, number)
        case "PNG" if rasters.deep_png(content):
            found = rasters.read_deep_png(content, reading, check)
        case "PPM, PGM, PBM":
            found = rasters.read_deep_ppm(content, check)
    if found is not None:
        return found, found.frames
    image = _pillow(content, str(kind.plugin))
    frames = 1 if kind.plugin in ("JPEG", "BMP", "PPM") else int(getattr(image, "n_frames", 1))
    wanted = rasters.chosen_frame(frames, reading, number)
    if wanted:
        check(*image.size, 0)
        image.seek(wanted)
    return image, frames


def pillow_picture(raw: Raw, reading: Reading) -> Image.Image | None:
    """A file's picture as Pillow holds it, loaded and upright; None if it holds only a part of what the file does."""
    found, _ = _opened(raw, reading)
    if isinstance(found, Raster):
        return None
    stored = found.size
    _load(found, reading)
    orientation = _orientation(found) if found.size == stored else 1
    return found.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else found


def _pillow(content: bytes, plugin: str) -> Image.Image:
    image: Image.Image = _OPEN[plugin](io.BytesIO(content), "")
    return image


def _opened_tiff(content: bytes, reading: Reading, number: int | None) -> tuple[Image.Image | Raster, int]:
    """A TIFF through Pillow if that gives all of it, else through tifffile."""
    check, able = _check(reading), installed("tifffile") and installed("imagecodecs")
    try:
        image = _pillow(content, "TIFF")
        if rasters.simple_tiff(image):
            check(*image.size, 0)
            if able:
                _load(image, reading)  # what its decoders lack, those of imagecodecs may have
            return image, 1
        if not able and (found := rasters.gray_tiff(image, reading, number, check)) is not None:
            return found, found.frames
    except (OSError, SyntaxError, KeyError, ValueError, TypeError, struct.error) as error:
        if not able:
            cure = f"other kinds of TIFF need a package: run `{install('tiff')}`"
            raise BadImage(f"a TIFF that Pillow does not read ({error}); {cure}") from None
    if not able:
        raise BadImage(f"a TIFF that Pillow does not read whole, which needs a package: run `{install('tiff')}`")
    raster = rasters.read_tiff(content, reading, number, check)
    return raster, raster.frames


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF around sound pixels counts as no EXIF
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def picture(raster: Raster, reading: Reading) -> Picture:
    """A picture as it is stored, in the channels and between the values that the reading wants.

    Raises:
        BadImage: it has other bands.
    """
    wanted, total = reading.channels, raster.values.shape[2]
    if isinstance(wanted, tuple):
        if max(wanted) >= total:
            raise BadImage(f"{raster.words}, without the band {max(wanted)} that is asked for (the first is 0)")
        return _as_picture(_eight_bits(raster, raster.values[..., list(wanted)], reading))
    if wanted not in (1, 3):
        if total != wanted:
            raise BadImage(f"{raster.words}, where {wanted} channels are asked for: set data.channels={total}")
        return _eight_bits(raster, raster.values, reading)
    if raster.bands not in (1, 3) and not raster.inks:
        channels = f"{wanted} channel{'s' * (wanted != 1)}"
        raise BadImage(
            f"{raster.words}, where {channels} are asked for: take all with data.channels={total}, or name some, such "
            f"as data.channels=({', '.join(map(str, range(min(wanted, total))))}"
            f"{',' if min(wanted, total) == 1 else ''})"
        )
    eight = _eight_bits(raster, raster.values[..., : raster.bands], reading)
    if raster.inks:
        color = Image.frombytes("CMYK", eight.shape[1::-1], eight.tobytes()).convert("RGB")
    elif raster.alpha is None:
        color = _as_picture(eight)  # type: ignore[assignment]
    else:
        opacity = _scaled(raster.values[..., -1:], *(raster.whole or (0.0, 1.0)))
        full = np.concatenate([np.broadcast_to(eight, (*eight.shape[:2], 3)), opacity], axis=2)
        if raster.alpha == "multiplied":
            color = Image.frombytes("RGBa", full.shape[1::-1], full.tobytes()).convert("RGBA")
        else:
            color = Image.fromarray(full)
        color = _on_white(color)
    mode = "RGB" if wanted == 3 else "L"
    return color if color.mode == mode else color.convert(mode)


def _as_picture(eight: np.ndarray) -> Picture:
    match eight.shape[2]:
        case 1:
            return Image.fromarray(np.ascontiguousarray(eight[..., 0]))
        case 3:
            return Image.fromarray(np.ascontiguousarray(eight))
    return eight


def _eight_bits(raster: Raster, values: np.ndarray, reading: Reading) -> np.ndarray:
    """Some of a raster's bands as uint8 between black and white."""
    black_white = raster.whole if raster.narrow or reading.range is None else reading.range
    if black_white is None:
        black_white = _guessed(raster)
    black, white = reversed(black_white) if raster.inverted else black_white
    return _scaled(values, black, white, raster.nodata)


def _guessed(raster: Raster) -> tuple[float, float]:
    """Black and white as `_guess` finds them, with a warning."""
    black, white = _guess(raster)
    warnings.warn(
        f"Black and white of {raster.words} were guessed from one picture, {black:g} and {white:g}: give a reading "
        "with a range.",
        stacklevel=2,
    )
    return black, white


def _guess(raster: Raster) -> tuple[float, float]:
    """Black and white of one picture whose type says nothing: usual ones, which a few pixels may exceed."""
    every = max(1, round((raster.values.size / _GUESSED) ** 0.5))
    some = raster.values[::every, ::every]
    values = some[raster.holds_something(some)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    if low < 0 and values.dtype.kind != "f":
        return low, max(high, low + 1)
    integers = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    usual = (255.0, 65535.0) if integers and high > 1 else (1.0, 255.0, 65535.0)
    return 0.0, next((white for white in usual if high <= white), float(values.max()))


def _scaled(values: np.ndarray, black: float, white: float, nodata: float | None = None) -> np.ndarray:
    """uint8 of the same shape: black to 0 and white to 255, rounded and clipped; values without meaning to 0."""
    if values.dtype == np.uint8 and (black, white) == (0.0, 255.0):
        return values
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    factor = 255.0 / (white - black)
    if values.dtype.kind in "bui" and values.dtype.itemsize <= 2:  # look them up
        kind = np.dtype(np.uint8) if values.dtype.kind == "b" else values.dtype
        info = np.iinfo(kind)
        every = np.arange(info.min, info.max + 1)
        table = np.rint((every - black) * factor).clip(0, 255).astype(np.uint8)
        if nodata is not None:
            table[every == nodata] = 0
        unsigned = values.view(f"u{kind.itemsize}")
        return np.asarray(np.roll(table, info.min)[unsigned])
    found = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _ROWS // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, len(values), rows):  # float64 of the whole picture would take eight times its memory
        part = values[start : start + rows]
        scaled = np.rint((part.astype(np.float64) - black) * factor)
        nothing = np.isnan(scaled) if nodata is None else np.isnan(scaled) | (part == nodata)
        found[start : start + rows] = np.where(nothing, 0, scaled).clip(0, 255).astype(np.uint8)
    return found
