"""Every format and mode against pixels computed by hand."""

import errno
import io
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms.v2 import functional as tv

from manyviews.data.canvas import load_canvas, to_canvas
from manyviews.data.decode import MAX_PIXELS, BadImage, Frame, count_frames, decode
from manyviews.data.files import Unreachable
from manyviews.data.reading import Reading
from manyviews.data.source import Source


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(raw):
    image, extent = decode(raw)
    assert image.mode == "RGB"
    assert extent == (image.height, image.width)
    return np.asarray(image).astype(int)


def noise(height=9, width=13, channels=3, seed=0):
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blocks(colors, side=16):
    """Squares of the given colors in a row, which JPEG keeps almost exactly."""
    return np.repeat(np.repeat(np.array([colors], dtype=np.uint8), side, axis=0), side, axis=1)


def png(width, height, depth, kind, rows):
    """A PNG file written by hand, for what Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Formats and modes


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_lossless_color_comes_back(kind, options):
    image = noise()
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(image), kind, **options)), image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_color_comes_back_nearly(kind):
    image = blocks([(250, 10, 20), (10, 200, 30), (20, 30, 240)])
    got = pixels(encode(Image.fromarray(image), kind, quality=95))
    assert np.abs(got - image)[:, 4:12].max() <= 6  # inside the first block: chroma is subsampled across edges
    assert np.abs(got - image).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_is_copied_to_three_channels(kind):
    gray = noise(channels=1)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(gray), kind)), np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(kind):
    bits = noise(channels=1) > 127
    got = pixels(encode(Image.fromarray(bits), kind))
    np.testing.assert_array_equal(got, np.stack([bits * 255] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_is_looked_up(kind):
    table, numbers = noise(1, 16)[0], noise(channels=1) % 16
    image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    image.frombytes(numbers.tobytes())
    image.putpalette(table.tobytes())
    np.testing.assert_array_equal(pixels(encode(image, kind)), table[numbers])


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 30, 40])
    image.putpixel((2, 3), 0)
    for kind in ("PNG", "GIF"):
        got = pixels(encode(image, kind, transparency=0))
        assert got[3, 2].tolist() == [255, 255, 255]
        assert got[0, 0].tolist() == [200, 30, 40]


def test_transparent_gray_and_color_are_white():
    gray = Image.new("L", (8, 8), 70)
    gray.putpixel((1, 1), 33)
    assert pixels(encode(gray, "PNG", transparency=33))[1, 1].tolist() == [255] * 3
    color = Image.new("RGB", (8, 8), (1, 2, 3))
    color.putpixel((1, 1), (9, 8, 7))
    got = pixels(encode(color, "PNG", transparency=(9, 8, 7)))
    assert got[1, 1].tolist() == [255] * 3
    assert got[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(kind, channels):
    image = noise(channels=channels)
    if kind == "WEBP" and channels == 2:
        image = np.concatenate([image[..., :1]] * 3 + [image[..., 1:]], axis=-1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = pixels(encode(Image.fromarray(image), kind, **options))
    alpha = image[..., -1:] / 255
    expected = np.broadcast_to(image[..., :-1] * alpha + 255 * (1 - alpha), got.shape)
    np.testing.assert_allclose(got, expected, atol=1)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_ink_on_white(kind):
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    image = (
        Image.fromarray(blocks(inks), mode="CMYK")
        if kind == "TIFF"
        else Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(blocks(inks), -1, 0)])
    )
    got = pixels(encode(image, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {})))
    seen = got[8, 8::16]
    np.testing.assert_allclose(seen, [(255,) * 3, (0, 255, 255), (255, 0, 255), (255, 255, 0), (0,) * 3], atol=4)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in [(250, 0, 0), (0, 250, 0)]]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        raw = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(raw)[4, 4].tolist() == [250, 0, 0]


# More than eight bits

LEVELS = np.array([[0, 128, 129, 257, 1000, 32768, 40000, 65278, 65407, 65535]] * 5, dtype=np.uint16)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_gray_is_scaled(order):
    expected = np.rint(LEVELS / 65535 * 255)
    raw = png(10, 5, 16, 0, [row.astype(">u2").tobytes() for row in LEVELS])
    np.testing.assert_array_equal(pixels(raw)[..., 0], expected)
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (10, 5), LEVELS.astype(order).tobytes())
    np.testing.assert_array_equal(pixels(encode(image, "TIFF"))[..., 0], expected)


def test_dark_sixteen_bit_image_stays_dark():
    image = Image.frombytes("I;16", (8, 8), np.full((8, 8), 200, "<u2").tobytes())
    assert pixels(encode(image, "TIFF")).max() == 1  # 200 of 65535, not 200 of 255


def test_sixteen_bit_color_is_scaled():
    rows = [np.stack([row, row[::-1], row], axis=-1).astype(">u2").tobytes() for row in LEVELS]
    got = pixels(png(10, 5, 16, 2, rows))
    expected = LEVELS / 65535 * 255
    assert np.abs(got[..., 0] - expected).max() <= 1
    assert np.abs(got[..., 1] - expected[:, ::-1]).max() <= 1


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "f4"), (255.0, "f4"), (65535.0, "f4"), (90000.0, "f4")])
def test_the_white_of_one_float_picture_is_guessed_with_a_warning(scale, kind):
    values = np.linspace(0, 1, 40).reshape(5, 8)
    with pytest.warns(UserWarning, match="guessed from one picture"):
        got = pixels(encode(Image.fromarray((values * scale).astype(kind)), "TIFF"))
    np.testing.assert_allclose(got[..., 0], values * 255, atol=0.51)


def test_a_few_pixels_above_one_do_not_make_the_others_black():
    values = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    values[0, 0] = 1.01
    with pytest.warns(UserWarning, match="guessed"):
        got = pixels(encode(Image.fromarray(values), "TIFF"))
    assert len(np.unique(got)) == 256
    np.testing.assert_allclose(got[1:, :, 0], values[1:] * 255, atol=0.51)


def test_values_without_meaning_are_zero_and_others_are_clipped():
    values = np.array([[np.nan, -np.inf, -3.0, 0.5, 1.0, np.inf]] * 4, dtype=np.float32)
    got, _ = decode(encode(Image.fromarray(values), "TIFF"), reading=Reading(range=(0, 1)))
    assert np.asarray(got)[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<i4", "<u4", "<f2", "<f4", "<f8", ">u2"])
def test_black_and_white_are_those_of_the_reading(kind):
    """Hounsfield units and others, in both orders of bytes, through a lookup or blockwise."""
    low, high = (0, 3000) if kind[1] == "u" else (-1000, 1000)
    values = np.linspace(low - (low < 0) * 500, high + 500, 60).reshape(6, 10).astype(kind)
    raw = tiff(values, byteorder=kind[0] if kind[0] in "<>" else "<")
    got, _ = decode(raw, reading=Reading(1, (low, high)))
    expected = np.rint((values.astype(float) - low) / (high - low) * 255).clip(0, 255)
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_an_integer_picture_with_negative_values_keeps_its_levels():
    values = (np.random.default_rng(0).random((64, 64)) * 4095 - 1024).astype(np.int16)
    with pytest.warns(UserWarning, match="guessed"):
        got = pixels(tiff(values))
    assert len(np.unique(got)) > 250


def test_twelve_bits_become_all_levels_with_a_range():
    values = (np.random.default_rng(0).random((64, 64)) * 4095).astype(np.uint16)
    raw = encode(Image.fromarray(values), "PNG")
    assert np.asarray(decode(raw)[0]).max() == 16  # the default keeps the brightness
    got = np.asarray(decode(raw, reading=Reading(range=(0, 4095)))[0])[..., 0]
    np.testing.assert_array_equal(got, np.rint(values / 4095 * 255))


# Channels


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


LAYOUTS = [
    {"planarconfig": "contig"},
    {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib", "predictor": True, "bigtiff": True},
    {"planarconfig": "contig", "compression": "zstd", "rowsperstrip": 5},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_all_bands_of_a_tiff(layout, kind):
    values = (np.random.default_rng(0).random((40, 48, 13)) * 255).astype(kind)
    stored = values if layout["planarconfig"] == "contig" else values.transpose(2, 0, 1).copy()
    raw = tiff(stored, photometric="minisblack", **layout)
    reading = Reading(13, (0, 255) if kind == "f4" else None)
    got, size = decode(raw, reading=reading)
    assert size == (40, 48)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.rint(values * (255 / {"u1": 255, "u2": 65535, "f4": 255}[kind])))
    chosen, _ = decode(raw, reading=Reading((3, 2, 1), reading.range))
    assert chosen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(chosen), got[..., [3, 2, 1]])


@pytest.mark.parametrize("stored", ["h w bands", "bands h w", "OME"])
def test_pages_are_bands_if_so_many_channels_are_asked_for(stored):
    """As tifffile writes an array of bands when nobody says what its axes are."""
    values = np.random.default_rng(0).random((40, 48, 13), dtype=np.float32)
    swapped = values.transpose(2, 0, 1).copy()
    raw = tiff(values) if stored == "h w bands" else tiff(swapped)
    raw = tiff(swapped, ome=True, metadata={"axes": "CYX"}) if stored == "OME" else raw
    got, _ = decode(raw, reading=Reading(13, (0, 1)))
    np.testing.assert_array_equal(got, np.rint(values * 255))


@pytest.mark.parametrize(
    ("bands", "options", "channels", "words"),
    [
        (8, {}, 3, "8 bands (uint8), where 3 channels are asked for: take all with data.channels=8"),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, 3, "4 bands"),  # near infrared is no opacity
        (8, {}, 13, "8 bands (uint8), where 13 channels are asked for: set data.channels=8"),
        (5, {}, (0, 7), "without the band 7"),
    ],
)
def test_other_bands_than_asked_for_are_refused_with_the_cure(bands, options, channels, words):
    values = np.random.default_rng(0).integers(0, 256, (20, 20, bands), dtype=np.uint8)
    raw = tiff(values, **({"photometric": "minisblack", "planarconfig": "contig"} | options))
    with pytest.raises(BadImage) as error:
        decode(raw, reading=Reading(channels))
    assert words in error.value.reason


def test_gray_stays_one_channel_and_color_becomes_luma():
    gray, color = noise(channels=1), noise()
    one = Reading(1)
    got, _ = decode(encode(Image.fromarray(gray), "PNG"), reading=one)
    assert got.mode == "L"
    np.testing.assert_array_equal(np.asarray(got), gray)
    got, _ = decode(encode(Image.fromarray(color), "PNG"), reading=one)
    np.testing.assert_allclose(np.asarray(got), color @ [0.299, 0.587, 0.114], atol=0.51)  # ITU-R BT.601
    deep, _ = decode(tiff(color * np.uint16(257)), reading=one)  # 16 bits a channel, the same color
    np.testing.assert_array_equal(np.asarray(deep), np.asarray(got))


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_wide_gray_of_a_tiff_that_says_what_white_is(kind):
    values = np.array([[0, 1000, 65535]] * 4, np.uint16).repeat(2, 1)
    got = np.asarray(decode(tiff(values, photometric=kind), reading=Reading(1))[0])[0, ::2]
    expected = np.array([0, 4, 255])
    np.testing.assert_array_equal(got, expected if kind == "minisblack" else 255 - expected)


def test_deep_color_of_png_keeps_its_lower_bits():
    values = (np.random.default_rng(0).random((20, 30, 3)) * 4095).astype(np.uint16)
    raw = png(30, 20, 16, 2, [row.astype(">u2").tobytes() for row in values])
    got, _ = decode(raw, reading=Reading(range=(0, 4095)))
    np.testing.assert_array_equal(np.asarray(got), np.rint(values / 4095 * 255))


# Formats beyond Pillow's usual ones


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF", "JPEG XL"])
def test_modern_formats_are_read_whatever_their_ending(kind, tmp_path):
    image = np.repeat(np.repeat(noise(3, 4), 16, 0), 16, 1)
    if kind == "HEIF":
        pillow_heif.from_pillow(Image.fromarray(image)).save(tmp_path / "x.jpg", format="HEIF", quality=95, chroma=444)
    elif kind == "JPEG XL":
        (tmp_path / "x.jpg").write_bytes(imagecodecs.jpegxl_encode(image, lossless=True))
    else:
        Image.fromarray(image).save(tmp_path / "x.jpg", kind)
    got = pixels(tmp_path / "x.jpg")
    assert np.abs(got - image).mean() < 6


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_netpbm_of_any_depth(top, kind):
    values = (np.random.default_rng(0).random((6, 8, 1 if kind == b"P5" else 3)) * top).astype(int)
    raw = b"%b\n# made by hand\n8 6\n%d\n" % (kind, top) + values.astype(">u2" if top > 255 else "u1").tobytes()
    np.testing.assert_allclose(pixels(raw), np.broadcast_to(values / top * 255, (6, 8, 3)), atol=1)


def dicom(values, syntax="1.2.840.10008.1.2.1", **facts):
    """A DICOM file of one picture, or of several if values has three axes."""
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = syntax
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    one.Rows, one.Columns = values.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 12, 11
    one.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3:
        one.NumberOfFrames = len(values)
    for name, value in facts.items():
        setattr(one, name, value)
    one.PixelData = values.tobytes()
    one["PixelData"].VR = "OW"
    if syntax == "1.2.840.10008.1.2.4.70":
        one.PixelData = pydicom.encaps.encapsulate([imagecodecs.ljpeg_encode(values, bitspersample=12)])
        one["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    one.save_as(file, enforce_file_format=True)
    return file.getvalue()


STORED = np.random.default_rng(0).integers(0, 4096, (20, 30), dtype=np.uint16)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"])  # raw, and lossless JPEG
def test_dicom_takes_its_own_bits_and_knows_negatives(syntax):
    got = np.asarray(decode(dicom(STORED, syntax), reading=Reading(1))[0])
    np.testing.assert_array_equal(got, np.rint(STORED / 4095 * 255))
    negative = dicom(STORED, syntax, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(np.asarray(decode(negative, reading=Reading(1))[0]), 255 - got)


def test_dicom_in_hounsfield_units():
    raw = dicom(STORED, RescaleSlope=2, RescaleIntercept=-1024, PixelPaddingValue=int(STORED[0, 0]))
    got = np.asarray(decode(raw, reading=Reading(1, (-160, 240)))[0])
    expected = np.rint((2 * STORED.astype(float) - 1024 + 160) / 400 * 255).clip(0, 255)
    expected[STORED[0, 0] == STORED] = 0  # padding
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("wanted", ["first", "middle", 4])
@pytest.mark.parametrize("kind", ["TIFF", "OME", "DICOM", "GIF"])
def test_pictures_of_a_stack(kind, wanted):
    stack = np.stack([np.full((20, 24), 10 * k, np.uint16) for k in range(5)])
    match kind:
        case "TIFF":
            raw = tiff(stack, photometric="minisblack")
        case "OME":
            raw = tiff(stack[:, None].repeat(3, 1), ome=True, metadata={"axes": "ZCYX"})
        case "DICOM":
            raw = dicom(stack)
        case _:
            frames = [Image.fromarray(x.astype(np.uint8)) for x in stack]
            raw = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert count_frames(raw) == 5
    one = Frame(raw, wanted) if isinstance(wanted, int) else raw
    reading = Reading(range=(0, 255), frames=wanted if isinstance(wanted, str) else "first")
    assert set(np.unique(np.asarray(decode(one, reading=reading)[0]))) == {{"first": 0, "middle": 20, 4: 40}[wanted]}


@pytest.mark.parametrize(("hidden", "raw", "extra"), [("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic")])
def test_a_missing_package_is_named(hidden, raw, extra, monkeypatch):
    monkeypatch.setattr("manyviews.data.formats.installed", lambda package: package != hidden)
    assert f'pip install "manyviews[{extra}]"' in reason(raw + bytes(100))


def test_a_tiff_without_tifffile_names_it_or_is_read_by_pillow(monkeypatch):
    monkeypatch.setattr(sys.modules[decode.__module__], "installed", lambda package: False)
    assert "manyviews[tiff]" in reason(
        tiff(np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    )
    values = LEVELS.astype(np.float32) / 65535
    got, _ = decode(encode(Image.fromarray(values), "TIFF"), reading=Reading(1, (0, 1)))
    np.testing.assert_array_equal(np.asarray(got), np.rint(values * 255))


def test_a_cameras_raw_file_is_no_picture_of_its_thumbnail():
    raw = tiff(np.zeros((9, 9, 3), np.uint8), photometric="rgb", extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    assert "raw picture" in reason(raw)


# Orientation

ROW_AND_COLUMN = {  # EXIF 2.3, tag 274: where the stored row 0 and column 0 are in the upright picture
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def stored(upright, orientation):
    """The array a camera writes so that its viewer shows `upright`, one pixel at a time."""
    height, width, _ = upright.shape
    row, column = ROW_AND_COLUMN[orientation]
    swapped = row in ("left", "right")
    out = np.zeros((width, height, 3) if swapped else upright.shape, dtype=np.uint8)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            if swapped:
                x, y = (r if row == "left" else width - 1 - r), (c if column == "top" else height - 1 - c)
            else:
                x, y = (c if column == "left" else width - 1 - c), (r if row == "top" else height - 1 - r)
            out[r, c] = upright[y, x]
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    upright = np.concatenate([blocks([(250, 10, 20), (10, 200, 30)]), blocks([(20, 30, 240), (250, 250, 40)])])
    upright = np.concatenate([upright, upright[:, :16]], axis=1)  # 32 by 48
    image = Image.fromarray(stored(upright, orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        np.testing.assert_array_equal(pixels(encode(image, kind, exif=exif, **options)), upright)
    got = pixels(encode(image, "JPEG", exif=exif, quality=100, subsampling=0))
    assert got.shape == upright.shape
    assert np.abs(got - upright).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_picture():
    image = Image.fromarray(noise())
    raw = encode(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(pixels(raw), np.asarray(image))


# What must be refused


def reason(raw):
    with pytest.raises(BadImage) as error:
        decode(raw)
    return error.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_bad(kind, share):
    raw = encode(Image.fromarray(noise(120, 90)), kind)
    decode(raw)
    reason(raw[: int(len(raw) * share)])


def test_truncated_progressive_jpeg_is_bad():
    raw = encode(Image.fromarray(noise(120, 90)), "JPEG", progressive=True)
    assert "truncated" in reason(raw[: int(len(raw) * 0.6)])


def test_flipped_bits_in_a_png_are_bad():
    raw = bytearray(encode(Image.fromarray(noise(60, 60)), "PNG"))
    raw[len(raw) // 2] ^= 0xFF
    assert "corrupt" in reason(bytes(raw))


@pytest.mark.parametrize("raw", [b"", b"hello, world", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(50)])
def test_what_is_no_image_is_bad(raw):
    reason(raw)


def test_a_disk_that_is_gone_is_no_property_of_its_images(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with pytest.raises(BadImage, match="gone"):
        decode(tmp_path / "photos" / "1.png")
    with pytest.raises(Unreachable, match="gone, or its disk"):
        decode(tmp_path / "unmounted" / "1.png")

    def exhausted(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(Path, "read_bytes", exhausted)
    with pytest.raises(Unreachable, match="Too many open files"):
        decode(tmp_path / "photos" / "1.png")


def test_formats_that_run_programs_are_not_opened():
    assert "format" in reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n")


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_bomb_is_refused_before_its_pixels_are_read(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # another library may have lifted Pillow's limit
    assert "bomb" in reason(png(20_000, 20_000, 8, 2, []))  # with its pixels missing: reading them would say so


def test_the_limit_of_pixels_is_a_setting():
    raw = png(300, 200, 8, 0, [bytes(300)] * 200)
    with pytest.raises(BadImage, match=r"over 59,999 pixels.*raise data\.max_pixels"):
        decode(raw, reading=Reading(max_pixels=59_999))
    assert decode(raw, reading=Reading(max_pixels=60_000))[1] == (200, 300)


def test_large_image_under_the_limit_is_no_bomb():
    side = int((MAX_PIXELS / 4) ** 0.5)
    got, _ = decode(png(side, side, 1, 0, [bytes((side + 7) // 8)] * side))
    assert got.size == (side, side)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3)])
def test_too_small_is_bad(size):
    assert "too small" in reason(encode(Image.new("RGB", size), "PNG"))


def test_four_pixels_are_enough():
    assert decode(encode(Image.new("RGB", (4, 4)), "PNG"))[1] == (4, 4)


def test_metadata_bomb_is_bad():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 70_000_000, zip=True)
    reason(encode(Image.new("RGB", (8, 8)), "PNG", pnginfo=text))


def test_missing_file_is_bad(tmp_path):
    assert "gone" in reason(tmp_path / "nothing.png")


def test_unreadable_file_is_bad(without_privileges):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "secret.png")
        Image.new("RGB", (8, 8)).save(path)
        path.chmod(0)
        with without_privileges():
            assert "permission" in reason(path)


# Batch


def test_a_canvas_has_the_proportions_of_its_image_and_is_never_enlarged():
    image = noise(200, 75)
    canvas = to_canvas(Image.fromarray(image), 32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    height, width = round(image.shape[0] * 32 / 75), 32
    expected = tv.resize(pixels, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
    assert canvas.shape == (height, width, 3) and canvas.dtype == np.uint8
    assert np.abs(canvas.astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert np.array_equal(to_canvas(Image.fromarray(image), 75), image)
    assert np.array_equal(to_canvas(Image.fromarray(image), 1000), image)
    long = to_canvas(np.zeros((10, 1000, 5), np.uint8), 10)  # which would take as much memory as ten squares
    assert long.shape == (2, 200, 5)


def test_scaled_decoding_of_a_jpeg_keeps_the_extent_and_the_look():
    y, x = np.mgrid[0:900, 0:1200]
    image = np.stack([x * 255 // 1200, y * 255 // 900, ((x // 60 + y // 60) % 2) * 255], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encode(Image.fromarray(image), "JPEG", quality=95, exif=exif)
    small, extent = decode(raw, at_least=100)
    assert extent == (1200, 900)
    assert small.size == (113, 150)
    canvas = load_canvas(Source("one", 1, lambda _: raw, list), 0, 100)
    assert canvas.shape == (150, 113, 3)  # an eighth, which is near enough
    whole = np.asarray(decode(raw)[0].resize((113, 150), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(canvas.astype(int) - whole).mean() < 4  # of the hard edges, which the DCT shrinks otherwise


def test_an_elongated_image_is_bad():
    """Resized to a useful short side, a few kilobytes would become gigabytes."""
    file = io.BytesIO()
    Image.new("RGB", (4, 401)).save(file, "PNG")
    with pytest.raises(BadImage, match="elongated"):
        decode(file.getvalue())
    assert decode(np.zeros((400, 4, 3), np.uint8))[1] == (400, 4)


def test_an_image_of_the_caller_is_not_shrunk():
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "JPEG")
    image = Image.open(file)
    decode(image, at_least=32)
    assert image.size == (256, 256)
