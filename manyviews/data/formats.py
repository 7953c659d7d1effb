"""Which image files are read: by what they begin with, through which package, and which are not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

HEAD = 160
"""So many bytes of a file tell its format."""


class BadImage(Exception):
    """An image that cannot be used. `reason` is a short phrase without the file's name, which the caller knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Format:
    """A kind of image file.

    Attributes:
        name: its name, for people.
        endings: what the names of such files end in, lower case.
        begins: whether a file begins, with its first `HEAD` bytes, as this kind does.
        plugin: Pillow's name of it, if Pillow reads it.
        package: what reads it instead, as a module, if Pillow does not.
        extra: the extra of manyviews that installs this package.
        reads: what is read of it, for people.
    """

    name: str
    endings: tuple[str, ...]
    begins: Callable[[bytes], bool]
    plugin: str | None = None
    package: str | None = None
    extra: str | None = None
    reads: str = "8 bits a channel"


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


def _webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _brands(head: bytes) -> set[bytes]:
    """The brands in the first box of a file in the format of ISO 14496-12."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _avif(head: bytes) -> bool:
    return bool(_brands(head) & {b"avif", b"avis"})


_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def _heif(head: bytes) -> bool:
    return bool(_brands(head) & _HEIF) and not _avif(head)


def _netpbm(head: bytes) -> bool:
    return head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf") and head[2:3].isspace()


def _dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    # Old files lack the preamble and begin with an element of the first groups: its type in letters, or its length.
    first = len(head) > 16 and head[0] in (2, 8) and head[1] == 0 and head[2] <= 0x20 and head[3] == 0
    return first and ((head[4:6].isalpha() and head[4:6].isupper()) or 0 < int.from_bytes(head[4:8], "little") <= 256)


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEG_XL = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")

FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), _starts(b"\xff\xd8\xff"), "JPEG"),
    Format(
        "PNG",
        (".png", ".apng"),
        _starts(b"\x89PNG\r\n\x1a\n"),
        "PNG",
        reads="1 to 16 bits; 16-bit color with a range needs `tiff`",
    ),
    Format("WebP", (".webp",), _webp, "WEBP"),
    Format("AVIF", (".avif", ".avifs"), _avif, "AVIF"),
    Format("GIF", (".gif",), _starts(b"GIF8"), "GIF"),
    Format("BMP", (".bmp", ".dib"), _starts(b"BM"), "BMP"),
    Format("PPM, PGM, PBM", (".ppm", ".pgm", ".pbm", ".pnm"), _netpbm, "PPM", reads="1 to 16 bits, text or binary"),
    Format(
        "JPEG 2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        _starts(*_JPEG_2000),
        "JPEG2000",
        reads="8 bits; 16 for gray",
    ),
    Format(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".lsm", ".stk"),
        _starts(*_TIFF),
        "TIFF",
        reads="gray and RGB; with the extra `tiff` any number of bands of any type, BigTIFF, slides",
    ),
    Format("HEIC, HEIF", (".heic", ".heif", ".hif"), _heif, None, "pillow_heif", "heic", "8 to 12 bits"),
    Format("JPEG XL", (".jxl",), _starts(*_JPEG_XL), None, "imagecodecs", "tiff", "8 and 16 bits, float"),
    Format(
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        _dicom,
        None,
        "pydicom",
        "dicom",
        "uncompressed, RLE and JPEG pictures, in Hounsfield units or what their rescaling gives",
    ),
)
"""All kinds of image files that are read."""

EXTENSIONS = frozenset(ending for one in FORMATS for ending in one.endings)
"""The endings of image files."""

UNREAD = {
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".raw"), "camera raw"),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra"), "an image editor's project"),
    **dict.fromkeys((".svg", ".eps", ".ps", ".ai", ".pdf", ".wmf", ".emf"), "drawn, not pixels"),
    **dict.fromkeys((".exr", ".hdr", ".pfm"), "high dynamic range"),
    **dict.fromkeys((".tga", ".pcx", ".qoi", ".ico", ".cur", ".icns", ".dds", ".sgi", ".xpm"), "an uncommon format"),
    **dict.fromkeys((".nii", ".mha", ".mhd", ".nrrd", ".mnc"), "a volume"),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".mrxs"), "a microscope's own format"),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5", ".nc", ".fits", ".fit"), "arrays"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "video"),
}
"""Endings of files with pictures that are not read, and what such files are. They must be converted."""


def sniff(head: bytes) -> Format | None:
    """The kind of a file that begins with these bytes, at least `HEAD` of them if it has as many; None if unknown."""
    return next((one for one in FORMATS if one.begins(head)), None)


def by_ending(name: str) -> Format | None:
    """The kind that a file's name promises; None if it ends in nothing known."""
    lower = name.lower()
    return next((one for one in FORMATS if lower.endswith(one.endings)), None)


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def missing(one: Format) -> str | None:
    """The command that installs what this kind needs and is not here; None if it can be read."""
    if one.package is None or installed(one.package):
        return None
    return install(one.extra)


def install(extra: str | None) -> str:
    """The command that installs an extra."""
    return f'pip install "manyviews[{extra}]"'
