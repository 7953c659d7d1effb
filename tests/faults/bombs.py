"""Small files of huge pictures."""

import struct
import zlib
from pathlib import Path

from PIL import Image

SIDE = 13_000


def png(side: int, depth: int, kind: int) -> bytes:
    """A black PNG, written a row at a time."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    samples = {0: 1, 2: 3, 6: 4}[kind]
    packer, row = zlib.compressobj(6), bytes(1 + (side * samples * depth + 7) // 8)
    data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def make(name: str, folder: Path) -> bytes:
    """A file of this name, which stays in the folder for the next call."""
    path = folder / name
    if not path.exists():
        kinds = {"bits.png": (1, 0), "color.png": (8, 2), "deep.png": (16, 6)}
        if name in kinds:
            path.write_bytes(png(SIDE, *kinds[name]))
        else:
            mode, side = ("P" if name.endswith(".gif") else "RGB"), (64 if name == "small.png" else SIDE)
            image = Image.new(mode, (side, side))
            if mode == "P":
                image.putpalette([0, 0, 0] * 256)
            image.save(path, compression="tiff_lzw") if name.endswith(".tif") else image.save(path)
    return path.read_bytes()
