"""Files on disk or behind a URL, given one by one, by a folder, or by a pattern."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from manyviews.errors import UserError, printable

THREADS = 16
"""Requests at a time. They wait for a network, not for a core."""

_BUFFER = 2**22  # bytes read at once, as a request takes long
_WAITS = (1.0, 5.0)  # seconds before another try; networks fail for a moment
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
# Facts that change with a file, the most reliable first.
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
_MOST = 100_000  # files that braces may name: their product would fill any memory
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def shown(address: object) -> str:
    """A path or a URL for people, without the user, password and query, which may be secret."""
    text = re.sub(r"(https?://[^?]*)\?.*", r"\1", str(address))
    # In Azure's URLs the part before the @ is the container.
    return re.sub(r"(\w+)://[^/@]*@", lambda m: m[0] if m[1].startswith(("abfs", "wasb")) else f"{m[1]}://", text)


class Unreachable(OSError):
    """A file system that does not answer. That is not the images' fault, so they must not be skipped."""


@dataclass(frozen=True)
class File:
    """A file of a file system of fsspec. Pickles.

    Attributes:
        fs: its file system.
        path: its path there.
        size: its size, bytes.
        stamp: a text that changes when the file does.
    """

    fs: AbstractFileSystem
    path: str
    size: int
    stamp: str

    def __str__(self) -> str:
        """For people: see `shown`."""
        return self.path if self.local else shown(self.fs.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        return os.path.basename(self.path) if self.local else str(self).rpartition("/")[2]

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes in [start, stop), in one request; fewer at the end of the file.

        Raises:
            Unreachable: the file system does not answer after a few tries, or denies a file that it has listed, as when
                credentials expire.
            FileNotFoundError: the file is gone.
            OSError: a local file that cannot be read.
        """
        for wait in (*_WAITS, None):
            try:
                content: bytes = self.fs.cat_file(self.path, start=start, end=stop)
            except FileNotFoundError:
                raise
            except Exception as error:  # each file system has its own
                if self.local:
                    raise
                if wait is None or isinstance(error, PermissionError):
                    raise Unreachable(f"{self} cannot be read ({type(error).__name__}: {error})") from error
                time.sleep(wait)
            else:
                break
        if len(content) > stop - start:
            raise Unreachable(f"{self} is on a server that gives whole files only; copy it to disk")
        return content

    def open(self) -> BinaryIO:
        """The file as a seekable stream, which asks a distant server for pieces of some megabytes."""
        return open(self.path, "rb") if self.local else io.BufferedReader(Ranges(self), _BUFFER)


def names_below(files: Sequence[File]) -> list[str]:
    """The files' paths below their common folder, which do not depend on where that folder is."""
    names = [str(file) for file in files]
    common = os.path.commonprefix([name.rpartition("/")[0] + "/" for name in names])  # noqa: RUF071 - cut back to a folder
    return [name[common.rfind("/") + 1 :] for name in names]


class Ranges(io.RawIOBase):
    """A file that makes one request for each read."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.size)
        content = self._file.read(self._at, stop) if stop > self._at else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def local(path: Path) -> File:
    """A file on disk."""
    path = path.absolute()
    found = path.stat()
    return File(LocalFileSystem(), path.as_posix(), found.st_size, str(found.st_mtime_ns))


def is_pattern(path: str) -> bool:
    """Whether a path has braces, as in `shard-{000..099}.tar`, or wildcards."""
    return _BRACES.search(path) is not None or _is_glob(path)


_why_local: list[str] = []


@contextmanager
def only_local(why: str) -> Iterator[None]:
    """Inside, no server is contacted: an address on the network is an error, which ends in this sentence."""
    _why_local.append(why)
    try:
        yield
    finally:
        _why_local.pop()


def find(where: str) -> list[File]:
    """The files that a path or a URL names; those of a folder or a wildcard are sorted.

    Raises:
        UserError: the protocol is unknown, its package is missing, or there is no such file.
    """
    names = _expand(where)
    with ThreadPoolExecutor(THREADS) as pool:
        files = [file for found in pool.map(_find, names) for file in found]
    if not files:
        raise UserError(f"Nothing matches {where}; look for a typing error in it.")
    return files


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it.

    Raises:
        UserError: the protocol is unknown, or its package is missing.
    """
    if _why_local and not url.startswith(("file://", "local://")):
        raise UserError(f"{shown(url)} is on the network: {_why_local[-1]}")
    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        if protocol in _PACKAGES:
            raise UserError(f"{url} needs a package: run `pip install {_PACKAGES[protocol]}`.") from None
        raise UserError(f"{url} needs a package ({error}).") from None
    except ValueError as error:
        if "not known" in str(error):
            raise UserError(
                f"{url} begins with '{protocol}://', which is no known protocol; give a path, or a URL with s3, gs, "
                "https, or another of fsspec's protocols."
            ) from None
        raise UserError(f"{url} is not a URL that can be opened ({error}).") from None
    return fs, path


def _find(where: str) -> list[File]:
    fs, path = file_system(where) if "://" in where else (LocalFileSystem(), os.path.abspath(where))
    try:
        if _is_glob(path):
            entries = fs.glob(path, detail=True)
        else:
            info = fs.info(path)
            entries = fs.find(path, detail=True) if info["type"] == "directory" else {path: info}
        return [_file(fs, name, info) for name, info in sorted(entries.items()) if info["type"] == "file"]
    except FileNotFoundError:
        reached = ", or its server does not answer" if "://" in where else ""
        raise UserError(f"There is no {where}{reached}; look for a typing error in it.") from None
    except PermissionError:
        raise UserError(f"There is no permission to read {where}.") from None
    except Exception as error:  # each file system has its own: no network, no credentials, no such bucket
        raise UserError(f"{where} cannot be opened ({type(error).__name__}: {error}).") from None


def _file(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> File:
    if isinstance(fs, LocalFileSystem):
        return local(Path(path))
    if info.get("size") is None:  # some listings leave it out
        info = fs.info(path)
    if info.get("size") is None:
        raise UserError(f"{path} is on a server that does not say how large it is; copy it to disk.")
    stamp = next((info[k] for k in _STAMPS if info.get(k)), "")
    # Listings give the same time in another form.
    return File(fs, path, int(info["size"]), str(stamp.timestamp() if isinstance(stamp, datetime) else stamp))


def _is_glob(path: str) -> bool:
    # In a web URL a question mark begins the query.
    return any(c in path for c in ("*" if path.startswith(("http://", "https://")) else "*?["))


def _expand(pattern: str) -> list[str]:
    """Expand braces as a shell does: `{000..099}` counts and `{a,b}` chooses; others are literal.

    Raises:
        UserError: they stand for more files than there can be.
    """
    parts: list[Sequence[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        parts += [[pattern[end : match.start()]], _choices(match)]
        end = match.end()
    if prod(map(len, parts)) > _MOST:
        raise _too_many(pattern)
    return ["".join(chosen) for chosen in product(*parts, [pattern[end:]])]


def _choices(match: re.Match[str]) -> Sequence[str]:
    if count := _RANGE.fullmatch(match[1]):
        first, last = count.groups()
        wide = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        if int(last) - int(first) >= _MOST:
            raise _too_many(match[0])
        return [str(k).zfill(wide) for k in range(int(first), int(last) + 1)]
    return match[1].split(",") if "," in match[1] else [match[0]]


def _too_many(pattern: str) -> UserError:
    return UserError(
        f"The braces in {printable(pattern, 200)} stand for more than {_MOST:,} files: give a folder, or a wildcard."
    )
