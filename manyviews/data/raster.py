"""Pictures that Pillow cannot hold: many bands, wide numbers, stacks. Read as they are stored, upright."""

from __future__ import annotations

import io
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from manyviews.data.formats import BadImage, install, installed
from manyviews.data.reading import Reading
from manyviews.errors import printable

for _name in ("tifffile", "PIL.TiffImagePlugin"):  # they report odd tags of sound pictures
    logging.getLogger(_name).addHandler(logging.NullHandler())

MIN_SIDE = 4
"""The shortest side of an image."""

Check = Callable[[int, int, int], None]
"""Called with (width, height, bytes in memory) before pixels are read; raises `BadImage` if they are too many."""


@dataclass(frozen=True)
class Raster:
    """One picture of a file, as it is stored.

    Attributes:
        values: numbers of any type, `h w bands`, upright.
        format: the file's format, for messages.
        whole: the least and the largest value that the type, or its used bits, can hold; None if that says nothing
            about black and white, as for floats, signed and 32-bit integers.
        alpha: whether the last band is opacity, and whether the other bands were multiplied by it.
        inverted: whether large values are dark.
        nodata: the value of pixels that hold nothing, beside those that are not finite.
        frames: how many pictures the file holds.
        inks: whether the bands are cyan, magenta, yellow and black.
    """

    values: np.ndarray
    format: str
    whole: tuple[float, float] | None
    alpha: Literal["straight", "multiplied"] | None = None
    inverted: bool = False
    nodata: float | None = None
    frames: int = 1
    inks: bool = False

    @property
    def bands(self) -> int:
        """The number of bands without opacity."""
        return int(self.values.shape[2]) - (self.alpha is not None)

    @property
    def narrow(self) -> bool:
        """Whether its values have 8 bits or fewer. These keep their own black and white."""
        return self.whole is not None and self.whole[0] == 0 and self.whole[1] <= 255

    @property
    def words(self) -> str:
        """What it is, for messages."""
        count = self.values.shape[2]
        return f"a {self.format} of {count} band{'s' * (count != 1)} ({self.values.dtype})"

    def holds_something(self, values: np.ndarray) -> np.ndarray:
        """Whether each of some of its values means something: finite, and not `nodata`."""
        good = np.isfinite(values)
        return np.asarray(good if self.nodata is None else good & (values != self.nodata))


def whole_range(kind: np.dtype[Any], bits: int | None = None) -> tuple[float, float] | None:
    """The range of a type with `bits` used bits; None if it says nothing about black and white."""
    if kind == np.bool_:
        return 0.0, 1.0
    if kind.kind != "u" or kind.itemsize > 2:
        return None
    return 0.0, float(2 ** (bits or 8 * kind.itemsize) - 1)


def chosen_frame(frames: int, reading: Reading, number: int | None) -> int:
    """Which of a file's pictures to take: the one of this number, or the one that the reading wants."""
    if number is not None:
        return number
    return frames // 2 if reading.frames == "middle" else 0


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array `h w ...` turned as EXIF's orientation says."""
    match orientation:
        case 2:
            return values[:, ::-1]
        case 3:
            return values[::-1, ::-1]
        case 4:
            return values[::-1]
        case 5:
            return values.swapaxes(0, 1)
        case 6:
            return values.swapaxes(0, 1)[:, ::-1]
        case 7:
            return values[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return values.swapaxes(0, 1)[::-1]
    return values


# TIFF

_NODATA_TAG = 42113  # GDAL's
_DNG_TAG = 50706
_MASK, _REDUCED = 4, 1  # bits of the tag NewSubfileType
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOR, _PALETTE, _INKS, _LUMA = 0, 1, 2, 3, 5, 6
_PILLOWS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)  # compressions that every Pillow reads
_SENSOR = (32803, 34892)
_LARGE = re.compile(r"""\b(?:NumPlanes|PlaneCount|IFD|First\w|Size\w|Start|End|Step)\s*=\s*["'][^"']*(?:\d{8}|[eE])""")
_CAMERA = "a camera's raw picture, which is not developed yet: convert it to TIFF or JPEG"


def simple_tiff(image: Image.Image) -> bool:
    """Whether Pillow reads exactly what a TIFF holds: one picture of gray, color or palette in 8 bits or fewer."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    samples = tags.get(277, 1)
    bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
    extra = tags.get(338, ())
    description = tags.get(270, "")
    described = isinstance(description, str) and ("<OME" in description or description.startswith("ImageJ="))
    layout = {1: ("1", "L", "P"), 2: ("LA",), 3: ("RGB", "YCbCr", "LAB"), 4: ("RGBA", "RGBa", "CMYK")}
    return (
        tags.get(259, 1) in _PILLOWS
        and max(bits) <= 8
        and all(kind in (1, 4) for kind in kinds)
        and image.mode in layout.get(samples, ())
        and extra in ((), (1,), (2,))
        and getattr(image, "n_frames", 1) == 1
        and not described
        and not _is_camera(tags)
    )


def _is_camera(tags: Any) -> bool:
    return _DNG_TAG in tags or tags.get(262) in _SENSOR or (bool(tags.get(254, 0) & _REDUCED) and 330 in tags)


def gray_tiff(image: Image.Image, reading: Reading, number: int | None, check: Check) -> Raster | None:
    """A TIFF of one band that Pillow opened, for those without tifffile; None if Pillow would lose something of it."""
    if image.mode not in ("1", "L", "I", "F", "I;16", "I;16B", "I;16L"):
        return None
    frames = getattr(image, "n_frames", 1)
    image.seek(chosen_frame(frames, reading, number))
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(277, 1) != 1 or (image.mode == "L" and tags.get(339, (1,))[0] == 2) or _is_camera(tags):
        return None
    bits, orientation = tags.get(258, (1,))[0], tags.get(274, 1)
    check(image.width, image.height, 4 * image.width * image.height)
    stored = (image.width, image.height)
    image.load()
    values = np.asarray(image)
    if image.size == stored and orientation < 5:  # Pillow turns pictures while it loads them
        orientation = 1
    deep = tags.get(262) == _WHITE_IS_ZERO and image.mode.startswith("I;16")  # the others Pillow has inverted
    text = tags.get(_NODATA_TAG)
    nodata = _number(text) if isinstance(text, str) else None
    unsigned = image.mode not in ("I", "F")
    whole = whole_range(values.dtype, bits) if unsigned else None
    return Raster(values[..., None], "TIFF", whole, None, deep, nodata, frames)


def read_tiff(content: bytes, reading: Reading, number: int | None, check: Check) -> Raster:
    """Any TIFF, through tifffile.

    Raises:
        BadImage: it is corrupt, or of a kind that is not read.
    """
    if content[8:10] == b"CR":
        raise BadImage(_CAMERA)
    with open_tiff(io.BytesIO(content)) as file:
        return _read_open_tiff(file, reading, number, check)


def open_tiff(content: BinaryIO) -> Any:
    """An open `tifffile.TiffFile` that reads no other file: OME's metadata may name some, anywhere on the disk."""
    import tifffile

    return tifffile.TiffFile(content, _multifile=False)


def _read_open_tiff(file: Any, reading: Reading, number: int | None, check: Check) -> Raster:
    layout = tiff_layout(file, reading)
    page, k = layout.page, chosen_frame(layout.frames, reading, number)
    height, width, bands = layout.shape
    # A palette becomes three colors of 16 bits. Tiles may be larger than the picture.
    colors = 6 if int(page.photometric) == _PALETTE else bands * page.dtype.itemsize
    tile = page.tilelength * page.tilewidth * page.samplesperpixel if page.is_tiled else 0
    check(width, height, max(height * width * colors, tile * page.dtype.itemsize))
    values = layout.read(k)
    values = upright(values, tiff_orientation(page))
    return described_tiff(page, np.ascontiguousarray(values), layout.frames)


@dataclass(frozen=True)
class TiffLayout:
    """Which pages of a TIFF are its pictures, and which are their bands.

    Attributes:
        page: the first page, whose tags count.
        shape: (height, width, bands) of a picture as it is stored.
        frames: the number of pictures.
        read: picture `k`, `h w bands`.
        pages: the pages of picture `k` if each page holds whole pictures or bands of one; None if it is otherwise.
    """

    page: Any
    shape: tuple[int, int, int]
    frames: int
    read: Callable[[int], np.ndarray]
    pages: Callable[[int], list[Any]] | None = None


def tiff_layout(file: Any, reading: Reading) -> TiffLayout:
    """What an open `tifffile.TiffFile` holds.

    Several pages of one size are a stack of pictures, or the bands of one if just so many channels are asked for and
    this is not the number of color or gray.
    Overviews, masks and a slide's label are no pictures of the stack.
    """
    if not len(file.pages):
        raise BadImage("a TIFF without a picture")
    first = file.pages.first
    if _is_camera({tag.code: tag.value for tag in first.tags.values()}):
        raise BadImage(_CAMERA)
    if file.is_ome and (large := _LARGE.search(file.ome_metadata or "")):
        raise BadImage(f"its OME metadata says {printable(large[0], 40)}, of which tifffile would make a list")
    series = file.series[0]
    if series.kind in ("generic", "uniform"):
        return _plain_layout(file, reading)
    axes, shape = series.axes, series.shape
    first = series.keyframe
    if "Y" not in axes or "X" not in axes:
        raise BadImage(f"a TIFF of the axes {axes}, which is no picture")
    bands = [a for a in axes if a in "SC"]
    rest = [a for a in axes if a not in "SCYX"]
    size = dict(zip(axes, shape, strict=True))
    asked = reading.channels if reading.channels not in (1, 3) else 0
    flat = series.kind == "shaped" and not bands and len(rest) == 1 and len(axes) == 3
    if flat and (asked == shape[2] or shape[2] < MIN_SIDE):
        # NumPy arrays `h w bands` that were written without saying so: tifffile takes each row for a page.
        return TiffLayout(first, shape, 1, lambda k: np.asarray(series.asarray(maxworkers=1)))
    count = int(np.prod([size[a] for a in bands], dtype=int))
    frames = int(np.prod([size[a] for a in rest], dtype=int))
    if count == 1 and frames > 1 and asked == frames:
        bands, rest, count, frames = rest, [], frames, 1
    order = [axes.index(a) for a in [*rest, "Y", "X", *bands]]
    picture = (size["Y"], size["X"], count)

    # Pages hold the last axes, and the others number the pages.
    inside = first.axes
    outside = axes[: len(axes) - len(inside)] if axes.endswith(inside) else None
    numbers = None
    if outside is not None and len(series.pages) == int(np.prod(shape[: len(outside)], dtype=int)):
        grid = np.arange(len(series.pages)).reshape(shape[: len(outside)])
        sorted_axes = [a for a in rest if a in outside] + [a for a in bands if a in outside]
        if all(a in outside for a in rest):
            grid = grid.transpose([outside.index(a) for a in sorted_axes])
            numbers = grid.reshape(frames, -1)

    def read(k: int) -> np.ndarray:
        if numbers is not None and frames > 1:
            stored = (
                series.asarray(maxworkers=1)
                if len(series.pages) == 1
                else file.asarray(key=[int(n) for n in numbers[k]], series=0, maxworkers=1)
            )
            part = [a for a in axes if a not in rest]
            stored = np.asarray(stored).reshape([size[a] for a in part])
            return stored.transpose([part.index(a) for a in ["Y", "X", *bands]]).reshape(picture)
        stored = np.asarray(series.asarray(maxworkers=1)).reshape(shape).transpose(order)
        return np.asarray(stored.reshape(frames, *picture)[k])

    def pages(k: int) -> list[Any]:
        assert numbers is not None
        return [series.pages[int(n)] for n in numbers[k]]

    return TiffLayout(first, picture, frames, read, None if numbers is None else pages)


def _plain_layout(file: Any, reading: Reading) -> TiffLayout:
    """Pages without any word on what they are to each other."""
    pages = [page for page in (file.pages[k] for k in range(len(file.pages))) if page.ndim in (2, 3)]
    whole = [page for page in pages if not int(_tag(page, 254, 0)) & (_REDUCED | _MASK)] or pages[:1]
    first = whole[0].keyframe
    bands = first.samplesperpixel
    picture = (first.imagelength, first.imagewidth, bands)
    alike = all((p.imagelength, p.imagewidth, p.samplesperpixel) == picture for p in whole)
    asked = reading.channels if reading.channels not in (1, 3) else 0
    if bands == 1 and len(whole) > 1 and asked == len(whole) and alike:
        return TiffLayout(
            first,
            (*picture[:2], len(whole)),
            1,
            lambda k: np.concatenate([_page(page) for page in whole], axis=2),
            lambda k: whole,
        )

    return TiffLayout(first, picture, len(whole), lambda k: _page(whole[k]), lambda k: [whole[k]])


def _page(page: Any) -> np.ndarray:
    """The pixels of a page, `h w bands`."""
    values = np.asarray(page.asarray(maxworkers=1))
    if values.ndim == 2:
        return values[..., None]
    return np.moveaxis(values, 0, 2) if page.axes.startswith("S") else values


def described_tiff(page: Any, values: np.ndarray, frames: int = 1) -> Raster:
    """Pixels of a page, `h w bands`, with what its tags say about them. A palette is looked up.

    Raises:
        BadImage: its bands are of a kind that is not read.
    """
    meaning = int(page.photometric)
    if meaning == _PALETTE:
        table = np.asarray(page.colormap)  # 3 by levels, 16 bits
        return Raster(np.moveaxis(table[:, values[..., 0]], 0, 2), "TIFF", (0.0, 65535.0), frames=frames)
    if meaning not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOR, _INKS, _LUMA):
        name = getattr(page.photometric, "name", meaning)
        raise BadImage(f"a TIFF of the kind {name}, which is not read: convert it to RGB")
    extra = [int(x) for x in page.extrasamples]
    alpha: Literal["straight", "multiplied"] | None = None
    if extra in ([1], [2]) and values.shape[2] in (2, 4):
        alpha = "multiplied" if extra == [1] else "straight"
    text = _tag(page, _NODATA_TAG, None)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else None
    kind = values.dtype
    if kind.kind == "c":
        raise BadImage(f"a TIFF of complex numbers ({kind}), which are no picture")
    whole = whole_range(kind, bits)
    nodata = _number(text) if text is not None else None
    if nodata is not None and kind.kind == "f":
        nodata = float(kind.type(nodata))  # -3.4e38 in text is not quite float32's
    return Raster(
        values,
        "TIFF",
        whole,
        alpha,
        meaning == _WHITE_IS_ZERO,
        nodata,
        frames,
        meaning == _INKS and values.shape[2] == 4,
    )


def tiff_orientation(page: Any) -> int:
    """The tag of EXIF's orientation, 1 for upright."""
    return int(_tag(page, 274, 1))


class TiffParts:
    """Parts of a page of a TIFF. Only the tiles or strips that a part touches are read and decoded.

    Args:
        page: a page of an open `tifffile.TiffFile`.
        path: the file, if it is one on disk: pixels that are stored as they are are mapped, not read.
        memory: bytes of decoded tiles or strips to keep, for parts that touch them too.
    """

    def __init__(self, page: Any, path: Path | None, memory: int) -> None:
        self.page, self.memory = page, memory
        self.key = page.keyframe
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.planes, self.samples = int(self.key.shaped[0]), int(self.key.shaped[4])
        self.mapped: np.ndarray | None = None
        if path is not None and page.is_memmappable and not self.key.is_tiled:
            shape = (self.planes, self.key.imagelength, self.key.imagewidth, self.samples)
            kind = np.dtype(self.key.dtype).newbyteorder(page.parent.byteorder)
            self.mapped = np.memmap(path, kind, "r", page.dataoffsets[0], shape)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The part at (top, left), `height width bands`."""
        key = self.key
        if self.mapped is not None:
            found = self.mapped[:, top : top + height, left : left + width].astype(key.dtype)
            return np.ascontiguousarray(found.transpose(1, 2, 0, 3)).reshape(height, width, -1)
        tall, wide = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)
        across, down = -(-key.imagewidth // wide), -(-key.imagelength // tall)
        found = np.zeros((self.planes, height, width, self.samples), dtype=key.dtype)
        for plane in range(self.planes):
            for row in range(top // tall, -(-(top + height) // tall)):
                for column in range(left // wide, -(-(left + width) // wide)):
                    y, x = row * tall, column * wide
                    segment = self._segment((plane * down + row) * across + column)
                    segment = segment[: key.imagelength - y, : key.imagewidth - x]
                    above, before = max(top, y), max(left, x)
                    below, after = min(top + height, y + segment.shape[0]), min(left + width, x + segment.shape[1])
                    if segment.size:
                        found[plane, above - top : below - top, before - left : after - left] = segment[
                            above - y : below - y, before - x : after - x
                        ]
        return np.ascontiguousarray(found.transpose(1, 2, 0, 3)).reshape(height, width, -1)

    def _segment(self, index: int) -> np.ndarray:
        """A decoded tile or strip, `h w samples`, with its padding; empty if it was never written."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        key, file = self.key, self.page.parent.filehandle
        # All of these may read the file, and so move its position.
        offset, size, decode = self.page.dataoffsets[index], self.page.databytecounts[index], key.decode
        if not size:
            return np.empty((0, 0, 0))
        file.seek(offset)
        segment, _, _ = decode(
            file.read(size),
            index,
            jpegtables=self.page.jpegtables,
            jpegheader=key.jpegheader,
        )
        found: np.ndarray = np.empty((0, 0, 0)) if segment is None else segment[0]
        self.kept[index] = found
        while sum(part.nbytes for part in self.kept.values()) > self.memory and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return found


def _tag(page: Any, code: int, default: Any) -> Any:
    tag = page.keyframe.tags.get(code) if page.keyframe is not page else page.tags.get(code)
    return default if tag is None else tag.value


def _number(text: Any) -> float | None:
    try:
        value = float(str(text).strip().rstrip("\0"))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


# DICOM

_JPEG = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",
    "1.2.840.10008.1.2.4.51": "jpeg_decode",
    "1.2.840.10008.1.2.4.57": "ljpeg_decode",
    "1.2.840.10008.1.2.4.70": "ljpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.201": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.202": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.203": "jpeg2k_decode",
}


def read_dicom(content: bytes, reading: Reading, number: int | None, check: Check) -> Raster:
    """A picture of a DICOM file, with its rescaling applied: Hounsfield units for computed tomography."""
    from pydicom import dcmread

    file = dcmread(io.BytesIO(content), force=True)
    if "PixelData" not in file and "FloatPixelData" not in file and "DoubleFloatPixelData" not in file:
        raise BadImage("a DICOM file without a picture")
    frames = int(file.get("NumberOfFrames", 1) or 1)
    height, width, samples = int(file.Rows), int(file.Columns), int(file.get("SamplesPerPixel", 1))
    check(width, height, 4 * height * width * samples)
    k = chosen_frame(frames, reading, number)
    values = _dicom_pixels(file, k, frames).reshape(height, width, -1)
    meaning = str(file.get("PhotometricInterpretation", "MONOCHROME2"))
    if meaning == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        values = apply_color_lut(values[..., 0], file)[..., :3]
        return Raster(values, "DICOM", whole_range(values.dtype), frames=frames)
    padding: Any = file.get("PixelPaddingValue")
    nodata = None if padding is None else float(padding)
    whole = whole_range(values.dtype, int(file.get("BitsStored", 8 * values.dtype.itemsize)))
    slope, intercept = _rescale(file, k)
    if "ModalityLUTSequence" in file:
        from pydicom.pixels.processing import apply_modality_lut

        values, whole, nodata = apply_modality_lut(values, file).astype(np.float32), None, None
    elif (slope, intercept) != (1.0, 0.0):
        values, whole = values.astype(np.float32) * np.float32(slope) + np.float32(intercept), None
        nodata = None if nodata is None else float(np.float32(nodata) * np.float32(slope) + np.float32(intercept))
    return Raster(values, "DICOM", whole, None, meaning == "MONOCHROME1", nodata, frames)


def _dicom_pixels(file: Any, k: int, frames: int) -> np.ndarray:
    from pydicom.pixels.utils import pixel_array

    syntax = str(getattr(file.file_meta, "TransferSyntaxUID", "") or "") if hasattr(file, "file_meta") else ""
    if not syntax:
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

        file.file_meta = getattr(file, "file_meta", None) or _no_meta()
        implicit = getattr(file, "original_encoding", (True, True))[0]
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    try:
        return np.asarray(pixel_array(file, index=k))
    except RuntimeError as error:  # no package for this compression
        decoder = _JPEG.get(syntax)
        if decoder is None or not installed("imagecodecs"):
            name = getattr(file.file_meta.TransferSyntaxUID, "name", syntax)
            cure = install("tiff") if decoder else "pip install python-gdcm"
            raise BadImage(f"a DICOM picture compressed as {name}, which needs a package: run `{cure}`") from error
    import imagecodecs
    from pydicom.encaps import get_frame

    found = np.asarray(getattr(imagecodecs, decoder)(get_frame(file.PixelData, k, number_of_frames=frames)))
    if int(file.get("PixelRepresentation", 0)) and found.dtype.kind == "u":  # signed numbers, stored as unsigned ones
        shift = 8 * found.dtype.itemsize - int(file.BitsStored)
        found = (found << shift).view(f"i{found.dtype.itemsize}") >> shift
    return found


def _no_meta() -> Any:
    from pydicom.dataset import FileMetaDataset

    return FileMetaDataset()


def _rescale(file: Any, k: int) -> tuple[float, float]:
    """Slope and intercept of picture `k`, from the file itself or from the groups of a multi-frame file."""
    places = [file]
    for groups, at in (("PerFrameFunctionalGroupsSequence", k), ("SharedFunctionalGroupsSequence", 0)):
        found = file.get(groups)
        if found and at < len(found) and found[at].get("PixelValueTransformationSequence"):
            places.append(found[at].PixelValueTransformationSequence[0])
    for place in reversed(places):
        if place.get("RescaleSlope") is not None:
            return float(place.RescaleSlope), float(place.get("RescaleIntercept") or 0)
    return 1.0, 0.0


# JPEG XL, HEIC, and 16-bit color


def read_jpeg_xl(content: bytes, check: Check) -> Raster:
    """The first picture of a JPEG XL file."""
    import imagecodecs

    width, height = _jpeg_xl_size(content)
    check(width, height, 8 * width * height)
    values = np.asarray(imagecodecs.jpegxl_decode(content, index=0))
    values = values[..., None] if values.ndim == 2 else values
    alpha: Literal["straight"] | None = "straight" if values.shape[2] in (2, 4) else None
    floats = values.dtype.kind == "f"  # in this format 0 and 1 are black and white
    return Raster(values, "JPEG XL", (0.0, 1.0) if floats else whole_range(values.dtype), alpha)


def _jpeg_xl_size(content: bytes) -> tuple[int, int]:
    """(width, height) from the header, before anything is decoded."""
    stream = content
    if not content.startswith(b"\xff\x0a"):  # boxes around the code stream
        at, stream = 0, b""
        while at + 8 <= len(content):
            size, kind, begin = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], at + 8
            if size == 1:
                size, begin = int.from_bytes(content[at + 8 : at + 16], "big"), at + 16
            if kind in (b"jxlc", b"jxlp"):
                stream = content[begin + 4 * (kind == b"jxlp") :]
                break
            if size < 8:
                break
            at += size
    if not stream.startswith(b"\xff\x0a"):
        raise BadImage("corrupt or truncated (no picture in the JPEG XL file)")
    bits, at = int.from_bytes(stream[2:18], "little"), 0

    def take(n: int) -> int:
        nonlocal at
        at += n
        return (bits >> (at - n)) & ((1 << n) - 1)

    def length(small: bool) -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = bool(take(1))
    height = length(small)
    ratio = take(3)
    if ratio == 0:
        return length(small), height
    up, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * up // down, height


def open_heif(content: bytes, reading: Reading, number: int | None, check: Check) -> tuple[Image.Image, int]:
    """A picture of a HEIC file, upright, with 8 bits, and how many there are."""
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=True)
    frames = len(file)
    picture = file if number is None and reading.frames == "first" else file[chosen_frame(frames, reading, number)]
    width, height = picture.size
    check(width, height, 4 * width * height)
    return picture.to_pillow(), frames


def deep_png(content: bytes) -> bool:
    """Whether a PNG has 16 bits in several channels, of which Pillow keeps 8."""
    return content[24:25] == b"\x10" and content[25:26] in (b"\x02", b"\x04", b"\x06")


def read_deep_png(content: bytes, reading: Reading, check: Check) -> Raster | None:
    """A PNG of 16 bits and several channels; None if Pillow must read it, which keeps the upper 8 bits.

    Raises:
        BadImage: a range is given, so the lower bits count, and imagecodecs is not installed.
    """
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    samples = {2: 3, 4: 2, 6: 4}[content[25]]
    check(width, height, 2 * samples * width * height)
    if not installed("imagecodecs"):
        if reading.range is None:
            return None
        raise BadImage(f"a PNG of 16-bit color, which needs a package: run `{install('tiff')}`")
    import imagecodecs

    values = np.asarray(imagecodecs.png_decode(content))
    return Raster(values, "PNG", (0.0, 65535.0), "straight" if samples in (2, 4) else None)


def read_deep_ppm(content: bytes, check: Check) -> Raster | None:
    """A binary PPM of 16 bits, of which Pillow keeps 8; None if it is another file."""
    if not content.startswith(b"P6"):
        return None
    numbers: list[int] = []
    at = 2
    while len(numbers) < 3:
        while content[at : at + 1].isspace():
            at += 1
        if content[at : at + 1] == b"#":
            at = content.index(b"\n", at)
            continue
        end = at
        while content[end : end + 1].isdigit():
            end += 1
        if end == at:
            raise BadImage("corrupt or truncated (the header is no PPM's)")
        numbers.append(int(content[at:end]))
        at = end
    width, height, top = numbers
    if not 255 < top < 65536:
        return None
    check(width, height, 6 * width * height)
    pixels = np.frombuffer(content, ">u2", 3 * width * height, at + 1).astype(np.uint16)
    return Raster(pixels.reshape(height, width, 3), "PPM", (0.0, float(top)))


def as_raster(image: Image.Image, frames: int = 1) -> Raster:
    """A picture that Pillow holds whole, by its own bands. Palettes are looked up, and other colors become RGB."""
    if image.mode.startswith("I;16"):
        return Raster(np.asarray(image)[..., None], image.format or "file", (0.0, 65535.0), frames=frames)
    if image.mode in ("I", "F"):
        values = np.asarray(image)[..., None]
        if image.format == "PPM" and image.mode == "I":  # scaled to 16 bits by Pillow
            return Raster(values.astype(np.uint16), "PPM", (0.0, 65535.0), frames=frames)
        return Raster(values, image.format or "file", None, frames=frames)
    clear = "transparency" in image.info
    kept = {"L": "LA", "RGB": "RGBA", "P": "RGBA"} if clear else {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
    mode = kept.get(image.mode, {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    values = values[..., None] if values.ndim == 2 else values
    alpha: Literal["straight"] | None = "straight" if mode.endswith("A") else None
    return Raster(values, image.format or "file", (0.0, 255.0), alpha, frames=frames)
