"""Images in zip files, read from the archive without unpacking it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from manyviews.data.archive import Archives, Index, Wanted, indexed, opened
from manyviews.data.decode import EXTENSIONS, BadImage
from manyviews.data.files import File
from manyviews.data.folder import LOOKED, is_unknown
from manyviews.data.formats import HEAD
from manyviews.data.left import EMPTY, ENCRYPTED, PACKED, REPLACED, Left
from manyviews.data.room import ROOM
from manyviews.data.source import Source
from manyviews.errors import UserError

_HEADER = 30  # bytes of a member's own header before its name
_LARGEST = 2**31  # bytes of an image file in a zip
_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_zips(
    files: Sequence[File], label: str | None = None, caption: str | None = None, split: str | None = None
) -> Source:
    """The images in zip files, in the order in which they are stored.

    First-level folders are the labels, as in a folder of images; a folder around all others does not count. The names
    of the members are read once, from the end of the file, and stay in the user's cache folder until it changes.

    Raises:
        UserError: a file is no zip or damaged, there are no images, or no such split.
    """
    if label is not None or caption is not None:
        what = "labels" if label is not None else "captions"
        raise UserError(f"Of zip files only folders are read as labels: leave --{what} out, or unpack {files[0]}.")
    found = indexed(files, _scan, "zip")
    if not any(index["names"] for index in found):
        said = " ".join(note for index in found for note in Left(index["left"]).notes())
        raise UserError(f"{files[0]} holds no images; they end in {', '.join(sorted(EXTENSIONS))}. {said}".strip())
    source, zips, short = opened(files, found, partial(Archives, files, what="the zip", unpack=unpack), split)
    keys = partial(_keys, zips.names, short)
    return replace(source, identify=keys if len(files) == 1 else partial(_below, zips, keys))


def _keys(names: Sequence[str], short: dict[str, str]) -> list[str]:
    """The members' paths as those of a folder of the same images."""
    found = []
    for name in names:
        folder, _, last = name.rpartition("/")
        found.append(f"{short[folder]}/{last}" if short.get(folder) else last)
    return found


def _below(zips: Archives, keys: Any) -> list[str]:
    return zips.ids(keys())


def _scan(file: File) -> Index:
    """The images of a zip. See `Index`; `packs` are each image's compression, size there, size, and checksum."""
    wanted = Wanted()
    images: dict[str, tuple[int, int, list[int]]] = {}
    try:
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            starts = sorted({member.header_offset for member in members} | {archive.start_dir})
            ends = dict(pairwise(starts))
            looked = 0
            for member in members:
                name = member.filename.removeprefix("./")
                if member.header_offset < 0:
                    raise zipfile.BadZipFile("its directory does not fit it")
                if not name or name.endswith("/"):  # a folder, or nothing that can be named
                    continue
                image = wanted.is_image(name)
                readable = not member.flag_bits & 1 and member.compress_type in _READ
                if image is None and readable and file.local and is_unknown(name) and looked < LOOKED:
                    looked += 1
                    image = wanted.is_image_inside(name, _head(archive, member))
                if not image:
                    continue
                if not readable:
                    wanted.left.add(ENCRYPTED if member.flag_bits & 1 else PACKED, name)
                    continue
                if not member.file_size:
                    wanted.left.add(EMPTY, name)
                if name in images:
                    wanted.left.add(REPLACED, name)
                pack = [member.compress_type, member.compress_size, member.file_size, member.CRC]
                images[name] = member.header_offset, ends[member.header_offset], pack
    except (zipfile.BadZipFile, NotImplementedError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} is not a zip that can be read ({error}); it may be damaged or half downloaded."
        ) from None
    found = sorted((start, stop, name, pack) for name, (start, stop, pack) in images.items())
    names = [name for _, _, name, _ in found]
    return {
        "names": names,
        "keys": names,
        "starts": [start for start, *_ in found],
        "stops": [stop for _, stop, *_ in found],
        "values": [None] * len(found),
        "packs": [pack for *_, pack in found],
        "left": wanted.left.to_dict(),
    }


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as content:
            return content.read(HEAD)
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, zlib.error):
        return b""


def unpack(member: bytes, pack: Sequence[int]) -> bytes:
    """The content of a member with its own header.

    Args:
        member: bytes from the member's header on.
        pack: the compression (0 none, 8 deflate), packed size, size, and checksum (CRC-32), as the directory has them.

    Raises:
        BadImage: the member is damaged.
    """
    method, packed, size, checksum = pack
    if size > _LARGEST:
        raise BadImage(f"the zip holds {size / 1e9:.1f} GB here, which is no image: unpack it")
    ROOM.claim(size, "file")
    # The own header's name and extra field may be longer than those in the directory; its sizes may be missing.
    start = _HEADER + int.from_bytes(member[26:28], "little") + int.from_bytes(member[28:30], "little")
    content = member[start : start + packed]
    if method == zipfile.ZIP_DEFLATED:
        try:
            # At most one byte more than promised: a bomb stays small.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise BadImage(f"the zip is damaged here ({error})") from None
    if member[:4] != b"PK\3\4" or len(content) != size or zlib.crc32(content) != checksum:
        raise BadImage("the zip is damaged here")
    return content
