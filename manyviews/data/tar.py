"""Images in tar files, in webdataset's layout, read by ranges of bytes.

Members whose file names agree up to the first dot are one sample: an image, and perhaps its label and caption.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from manyviews.data.archive import REST, Archives, Index, Wanted, indexed, opened
from manyviews.data.decode import EXTENSIONS
from manyviews.data.files import File, Unreachable
from manyviews.data.folder import LOOKED, is_unknown
from manyviews.data.formats import HEAD
from manyviews.data.left import REPLACED
from manyviews.data.source import Captions, Source, as_captions
from manyviews.errors import UserError, from_json

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of compressed tars, which cannot be read from the middle."""

_LABELS = ("cls", "label")
_LABEL_BYTES = 2**20  # a longer member is no label or caption
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_BESIDE = "Left out {n} image{s} beside the image of a sample ({first})."
_DOTTED = "Took {n} image{s} with the same name up to the first dot as images of their own ({first})."


def open_tars(
    files: Sequence[File], label: str | None = None, caption: str | None = None, split: str | None = None
) -> Source:
    """The images in tar files, in order.

    A sample's image is the first with a single ending: `7.jpg`, not `7.mask.png`. If a sample has several images and
    none of that kind, each is a sample of its own: `cat.v1.jpg` and `cat.v2.jpg`. A sample's label is its member
    `.cls`, an integer or text, or the field `label` of its `.json`; the argument `label` names another ending and
    field. If no sample has one, first-level folders in the tar are the labels. A sample's caption is its member
    `.txt`, or the field `caption`; the argument `caption` names another ending and field. A tar that is cut short
    gives the samples before the cut, and one bad image for the rest.

    The headers of each tar are read once. The positions of its images stay in the user's cache folder until the file
    changes.

    Raises:
        UserError: a tar is compressed, or no tar, or there are no images or no such labels or split.
    """
    packed = next((file for file in files if file.name.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise _compressed(packed)
    found = _indices(files, *((_LABELS, _LABELS) if label is None else ((label.lower(),), (label,))))
    if not any(index["names"] for index in found):
        raise UserError(f"{files[0]} holds no images; they end in {', '.join(sorted(EXTENSIONS))}.")
    if label is not None and all(value is None for index in found for value in index["values"]):
        raise UserError(f"No sample of {files[0]} has the label '{label}', as a member or as a field of its .json.")
    source, tars, _ = opened(files, found, partial(Archives, files, what="the tar"), split)
    return replace(source, identify=partial(tars.ids, tars.keys), describe=partial(_captions, tars, caption))


def _captions(tars: Archives, caption: str | None) -> Captions | None:
    """The samples' texts. Reads the headers of each tar once more, because few runs need captions."""
    kinds = (("txt",), ("caption",)) if caption is None else ((caption.lower(),), (caption,))
    found = [dict(zip(index["names"], index["values"], strict=True)) for index in _indices(tars.files, *kinds)]
    values = [found[tars.file_of(i)][name] for i, name in enumerate(tars.names)]
    if all(value is None for value in values):
        if caption is None:
            return None
        raise UserError(
            f"No sample of {tars.files[0]} has the caption '{caption}', as a member or a field of its .json."
        )
    return as_captions([None if value is None else str(value) for value in values])


def _indices(files: Sequence[File], endings: tuple[str, ...], fields: tuple[str, ...]) -> list[Index]:
    return indexed(files, partial(_scan, endings=endings, fields=fields), f"tar {endings} {fields}")


def _parts(name: str) -> tuple[str, str]:
    """A member's sample, and its ending without the first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _scan(file: File, endings: tuple[str, ...], fields: tuple[str, ...]) -> Index:
    """The images of a tar. See `Index`; `keys` are the samples' names.

    A sample's value is the text of its member with one of the `endings`, else one of the `fields` of its .json, an
    integer or text; None if it has neither. If the tar is cut short or damaged, one more image stands for the rest.
    """
    images: dict[str, dict[str, tuple[int, int]]] = {}
    values: dict[str, Any] = {}
    wanted, whole, looked = Wanted(), False, 0
    with file.open() as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    name = member.name.removeprefix("./")
                    if member.size < 0:
                        raise tarfile.ReadError("a member of less than nothing")
                    if not member.isreg():
                        continue  # folders, links
                    image = wanted.is_image(name)
                    sample, ending = _parts(name)
                    if image is None and file.local and is_unknown(name) and looked < LOOKED:
                        looked += 1
                        content = tar.extractfile(member)
                        image = content is not None and wanted.is_image_inside(name, content.read(HEAD))
                    if image:
                        known = images.setdefault(sample, {})
                        if name in known:  # as `tar --update` leaves it
                            wanted.left.add(REPLACED, name)
                        # A size that no file has is one that this file does not hold.
                        known[name] = member.offset_data, min(member.offset_data + member.size, file.size + 1)
                        continue
                    # `cat.v1.cls` belongs to the sample `cat.v1`, if `cat.v1.jpg` turns out to be one.
                    for key, kind in {(sample, ending), _split(name)}:
                        if kind in endings and (text := _text(tar, member)) is not None:
                            values[key] = text
                        elif kind == "json" and (value := _field(tar, member, fields)) is not None:
                            values.setdefault(key, value)
                whole = _ends_at(stream, tar.offset)
        except Unreachable:
            raise
        except Exception as error:  # tarfile raises nearly everything on damaged headers
            if not images:
                raise _no_tar(file, error) from None
    found = [
        (*where, name, key, values.get(key, values.get(sample)))
        for sample, known in images.items()
        for name, key, where in _of_sample(sample, known, wanted)
    ]
    found.sort(key=lambda one: one[:3])
    if images and not whole and found[-1][1] <= file.size:
        found.append((file.size, file.size + 1, REST, REST, None))
    columns = zip(*found, strict=True) if found else ((),) * 5
    lists = {
        key: list(column) for key, column in zip(("starts", "stops", "names", "keys", "values"), columns, strict=True)
    }
    return lists | {"left": wanted.left.to_dict()}


def _of_sample(
    sample: str, known: dict[str, tuple[int, int]], wanted: Wanted
) -> list[tuple[str, str, tuple[int, int]]]:
    """The images of a sample: member, name of the sample that it is, place."""
    if len(known) == 1:
        return [(name, sample, where) for name, where in known.items()]
    plain = next((name for name in known if _plain(name)), None)
    if plain is not None:
        beside = next(name for name in known if name != plain)
        wanted.left.add(_BESIDE, beside, len(known) - 1)
        return [(plain, sample, known[plain])]
    wanted.left.add(_DOTTED, next(iter(known)), len(known))
    stems = [_split(name)[0] for name in known]
    keys = stems if len(set(stems)) == len(stems) else list(known)
    return [(name, key, where) for key, (name, where) in zip(keys, known.items(), strict=True)]


def _split(name: str) -> tuple[str, str]:
    """A member's name up to its last dot, and the rest."""
    stem, dot, ending = name.rpartition(".")
    return (stem, ending.lower()) if dot else (name, "")


def _plain(name: str) -> bool:
    """Whether its whole ending is that of an image: `7.jpg`, not `7.mask.jpg`."""
    return "." + _parts(name)[1] in EXTENSIONS


def _ends_at(stream: BinaryIO, offset: int) -> bool:
    """Whether a tar's end mark, a block of zeros, is at `offset`."""
    stream.seek(offset)
    return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    content = tar.extractfile(member) if member.size <= _LABEL_BYTES else None
    try:
        return None if content is None else content.read().decode().strip() or None
    except UnicodeDecodeError:
        return None


def _field(tar: tarfile.TarFile, member: tarfile.TarInfo, names: Iterable[str]) -> int | str | None:
    content = tar.extractfile(member) if member.size <= _LABEL_BYTES else None
    try:
        found = None if content is None else from_json(content.read())
    except ValueError:
        return None
    values = [found[name] for name in names if name in found] if isinstance(found, dict) else []
    value: object = values[0] if values else None
    return value.strip() or None if isinstance(value, str) else value if type(value) is int else None


def _no_tar(file: File, error: Exception) -> UserError:
    if file.read(0, 8).startswith(_MAGIC):
        return _compressed(file)
    return UserError(f"{file} is not a tar that can be read ({error}); it may be damaged or half downloaded.")


def _compressed(file: File) -> UserError:
    return UserError(f"{file} is compressed, and cannot be read from the middle: decompress it to a .tar.")
