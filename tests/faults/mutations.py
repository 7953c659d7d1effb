"""Pictures of every format that is read, and ways to break them. Everything follows from a seed.

As a program, it breaks pictures among good ones and reads them all as a folder of images:
`python -m tests.faults.mutations NUMBER SEED FOLDER` prints what became of them as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MEMORY = 2**31
"""Free memory that the program under test is told: it may use half of it for large pictures."""

_SIDE = 40


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def _dicom(pixels: np.ndarray, compressed: bool) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = pixels.astype("<u2").tobytes()
    if compressed:
        file.compress(pydicom.uid.RLELossless)
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def seeds() -> dict[str, bytes]:
    """A small picture of each kind that the library reads, by a name that ends as such files do."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (_SIDE // 4, _SIDE // 4 + 2, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((4, 4, 1), dtype=np.uint8))
    color, deep = Image.fromarray(pixels), pixels[..., 0].astype(np.uint16) * 257
    gray, clear = color.convert("L"), color.convert("RGBA")
    clear.putalpha(gray)
    frames = [color.quantize(31), color.transpose(Image.Transpose.ROTATE_180).quantize(31)]
    animated = {"save_all": True, "append_images": frames[1:]}
    turned = Image.Exif()
    turned[0x0112] = 6
    heif = io.BytesIO()
    pillow_heif.from_pillow(color).save(heif)
    return {
        "color.png": _saved(color, "PNG"),
        "palette.png": _saved(color.quantize(17), "PNG", transparency=3),
        "bits.png": _saved(color.convert("1"), "PNG"),
        "wide.png": _saved(Image.fromarray(deep), "PNG"),
        "deep.png": bytes(imagecodecs.png_encode(np.stack([deep] * 4, 2))),
        "animated.png": _saved(frames[0], "PNG", **animated),
        "color.jpg": _saved(color, "JPEG", exif=turned),
        "progressive.jpg": _saved(color, "JPEG", progressive=True),
        "inks.jpg": _saved(color.convert("CMYK"), "JPEG"),
        "gray.jpg": _saved(gray, "JPEG"),
        "animated.gif": _saved(frames[0], "GIF", **animated),
        "lossy.webp": _saved(color, "WEBP"),
        "clear.webp": _saved(clear, "WEBP", lossless=True),
        "animated.webp": _saved(color, "WEBP", save_all=True, append_images=[gray.convert("RGB")]),
        "color.avif": _saved(color, "AVIF"),
        "color.heic": heif.getvalue(),
        "color.jxl": bytes(imagecodecs.jpegxl_encode(pixels)),
        "color.jp2": _saved(color, "JPEG2000"),
        "color.bmp": _saved(color, "BMP"),
        "palette.bmp": _saved(color.quantize(9), "BMP"),
        "color.ppm": _saved(color, "PPM"),
        "text.pgm": f"P2\n{_SIDE} 8\n255\n{' '.join(str(k % 256) for k in range(8 * _SIDE))}\n".encode(),
        "deep.ppm": f"P6 {_SIDE} 8 65535\n".encode() + rng.bytes(6 * 8 * _SIDE),
        "plain.tif": _saved(color, "TIFF"),
        "packed.tif": _saved(color, "TIFF", compression="tiff_lzw"),
        "tiles.tif": _tiff(pixels, tile=(16, 16), compression="deflate", predictor=True),
        "wide.tif": _tiff(deep, compression="zlib"),
        "floats.tif": _tiff(pixels[..., 0].astype(np.float32)),
        "bands.tif": _tiff(np.moveaxis(np.concatenate([pixels] * 2, 2), 2, 0), planarconfig="separate"),
        "stack.tif": _tiff(np.stack([pixels[..., 0]] * 3)),
        "big.tif": _tiff(pixels, bigtiff=True),
        "jpeg.tif": _tiff(pixels, compression="jpeg", tile=(16, 16)),
        "ome.tif": _tiff(np.stack([deep] * 2), ome=True, metadata={"axes": "ZYX"}),
        "plain.dcm": _dicom(deep, False),
        "rle.dcm": _dicom(deep, True),
    }


# -- ways to break a file ------------------------------------------------------------------------------------------

Random = np.random.Generator


def _bits(raw: bytes, rng: Random) -> bytes:
    found = bytearray(raw)
    for _ in range(int(rng.integers(1, 20))):
        found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
    return bytes(found)


def _cut(raw: bytes, rng: Random) -> bytes:
    return raw[: int(rng.integers(len(raw)))]


def _header(raw: bytes, rng: Random) -> bytes:
    found, at = bytearray(raw), int(rng.integers(4, min(200, len(raw))))
    found[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(found)


def _sizes(raw: bytes, rng: Random) -> bytes:
    """Large numbers where a format may have its sizes. A PNG's checksum is made right again."""
    found = bytearray(raw)
    large = int(rng.choice([2**31 - 1, 2**32 - 1, 2**16 - 1, 2**15, 13_000, 30_000, 100_000]))
    if raw[:4] == b"\x89PNG" and rng.random() < 0.8:
        found[16:24] = struct.pack(">II", *((large, large) if rng.random() < 0.5 else (large, 64)))
        found[29:33] = struct.pack(">I", zlib.crc32(found[12:29]))
        return bytes(found)
    for _ in range(int(rng.integers(1, 4))):
        at = 2 * int(rng.integers(2, max(3, min(150, len(found) // 2 - 2))))
        kind = str(rng.choice(["<I", ">I", "<H", ">H"]))
        value = struct.pack(kind, large % 2 ** (8 * struct.calcsize(kind)))
        found[at : at + len(value)] = value
    return bytes(found)


def _numbers(raw: bytes, rng: Random) -> bytes:
    """Other digits where a header is text."""
    found, digits = bytearray(raw), [i for i, c in enumerate(raw[:2000]) if 48 <= c < 58]
    for i in rng.permutation(digits)[:3] if digits else ():
        found[int(i) : int(i) + 1] = b"9" * int(rng.integers(1, 9))
    return bytes(found) if digits else _bits(raw, rng)


def _repeated(raw: bytes, rng: Random) -> bytes:
    start, stop = sorted(rng.integers(0, len(raw), 2).tolist())
    return raw[:stop] + raw[start:stop] * int(rng.integers(1, 40)) + raw[stop:]


def _dropped(raw: bytes, rng: Random) -> bytes:
    start, stop = sorted(rng.integers(0, len(raw), 2).tolist())
    return raw[:start] + raw[stop:]


WAYS: dict[str, Callable[[bytes, Random], bytes]] = {
    "flipped bits": _bits,
    "cut short": _cut,
    "another header": _header,
    "huge sizes": _sizes,
    "other numbers": _numbers,
    "a part repeated": _repeated,
    "a part missing": _dropped,
    "nothing": lambda raw, rng: b"",
    "random bytes": lambda raw, rng: rng.bytes(int(rng.integers(1, 4000))),
    "random after a head": lambda raw, rng: raw[: int(rng.integers(4, 64))] + rng.bytes(int(rng.integers(1, 4000))),
    "another ending": lambda raw, rng: raw,
}


def broken(number: int, seed: int) -> list[tuple[str, str, bytes]]:
    """That many broken pictures: the way, the name that they pretend to have, and their bytes."""
    rng, known = np.random.default_rng(seed), seeds()
    names, ways = list(known), list(WAYS)
    found = []
    for k in range(number):
        name, way = names[int(rng.integers(len(names)))], ways[k % len(ways)]
        raw = WAYS[way](known[name], rng)
        if rng.random() < 0.3 and way != "another ending":
            raw = WAYS[ways[int(rng.integers(7))]](raw, rng) if len(raw) > 20 else raw
        ending = Path(names[int(rng.integers(len(names)))] if way == "another ending" else name).suffix
        found.append((way, f"{k:05}_{Path(name).stem}{ending}", raw))
    return found


# -- the program ---------------------------------------------------------------------------------------------------


def digest(pixels: np.ndarray) -> str:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def read(number: int, seed: int, folder: Path, good_every: int = 20) -> dict[str, Any]:
    """Write broken pictures among good ones into a folder, and read it as images to train on.

    Returns counts of ways and of reasons; good pictures whose pixels differ from those of the file alone; seconds of
    the slowest picture; and bytes of memory at the most, beyond those before.
    """
    from manyviews.data import canvas, open_source
    from manyviews.data.reading import RGB
    from manyviews.data.room import ROOM

    ROOM._free = lambda: MEMORY
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: raw for name, raw in seeds().items() if name not in ("bands.tif",)}  # of six bands
    alone = {name: digest(canvas.decoded(raw, 32, RGB)) for name, raw in known.items()}
    ways, good = {}, {}
    for k, (way, name, raw) in enumerate(broken(number, seed)):
        (folder / name).write_bytes(raw)
        ways[name] = way
        if k % good_every == 0:
            which = list(known)[k // good_every % len(known)]
            good[f"{k:05}_good_{which}"] = alone[which]
            (folder / f"{k:05}_good_{which}").write_bytes(known[which])
    before, slowest = _most(), 0.0
    decoded = canvas.decoded

    def timed(*args: Any) -> np.ndarray:
        nonlocal slowest
        start = time.monotonic()
        try:
            return decoded(*args)
        finally:
            slowest = max(slowest, time.monotonic() - start)

    canvas.decoded = timed
    try:
        source = open_source(folder)
        found, bad = canvas.load_canvases(source, 32)
    finally:
        canvas.decoded = decoded
    usable = {source.ids[int(i)]: found.canvases.image(k) for k, i in enumerate(found.index)}
    reasons = dict(bad)
    changed = [n for n, d in good.items() if n not in usable or digest(usable[n].permute(1, 2, 0).numpy()) != d]
    lost = [name for name in (*ways, *good) if (name in usable) == bool(reasons.get(name))]
    refused = Counter(ways[name] for name in reasons if name in ways)
    return {
        "ways": {way: [sum(w == way for w in ways.values()), refused[way]] for way in WAYS},
        "good": len(good),
        "changed": changed,
        "lost": lost,
        "reasons": Counter(reason.split("(")[0].strip() for reason in reasons.values()).most_common(12),
        "slowest": slowest,
        "memory": _most() - before,
    }


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(read(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
