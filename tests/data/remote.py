"""Tars and tables of numbered images, on disk or behind memory://."""

import io
import tarfile
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STREAMED = 0  # bytes of memory for canvases


def encoded(k):
    """An image of its number, in a shape of its own."""
    file = io.BytesIO()
    Image.new("RGB", (8 + k % 3, 6), (k % 256, k // 256, 7)).save(file, "PNG")
    return file.getvalue()


def number(source, i):
    red, green, _ = source.load(i).getpixel((0, 0))
    return red + 256 * green


def packed(members):
    """A tar of (name, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def samples(numbers):
    return [m for k in numbers for m in ((f"{k:03}.png", encoded(k)), (f"{k:03}.cls", str(k % 3).encode()))]


def put(url, content):
    with fsspec.open(str(url), "wb") as file:
        file.write(content)
    return str(url)


def shards(root, count=3, each=20):
    """Tars in a folder or at a URL, of images 0, 1, 2, ..."""
    for s in range(count):
        put(f"{root}/set-{s:02}.tar", packed(samples(range(s * each, (s + 1) * each))))
    return str(root)


def table(url, numbers, group):
    """A Parquet file with row groups of this size."""
    file = io.BytesIO()
    columns = {"image": [encoded(k) for k in numbers], "label": [k % 3 for k in numbers]}
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return put(url, file.getvalue())


def in_blocks(source, size, near):
    """The same items in blocks of another size."""
    return replace(source, blocks=np.unique([*range(size, len(source), size), len(source)]), window=near)


def indices(batches):
    return [batch.index.tolist() for batch in batches]
