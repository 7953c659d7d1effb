"""Cut a panorama of 20,000 x 15,000 pixels into tiles, and report time and peak memory of each kind of file.

python scripts/cut_panorama.py [FOLDER] [--width 20000] [--height 15000] [--tile 512]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import manyviews as mv

TIFF: dict[str, dict[str, Any]] = {
    "TIFF, tiles, deflate": {"tile": (256, 256), "compression": "deflate"},
    "TIFF, strips, LZW": {"rowsperstrip": 16, "compression": "lzw"},
    "TIFF, not compressed": {},
    "TIFF, tiles, JPEG": {"tile": (256, 256), "compression": "jpeg"},
}


def panorama(width: int, height: int) -> np.ndarray:
    """Smooth colors with some noise, uint8 `height width 3`."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 400, width // 400, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    for rows in np.array_split(pixels, 20):
        rows += rng.integers(0, 4, rows.shape, dtype=np.uint8)
    return pixels


def memory() -> float:
    """Peak memory of this process, MiB. Linux only."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024


def cut(file: Path, out: Path, tile: int) -> tuple[float, float, float]:
    """In a process of its own: seconds, and peak memory in MiB before and after."""
    with tempfile.TemporaryDirectory() as small:  # loads all packages
        Image.effect_noise((600, 600), 50).convert("RGB").save(f"{small}/x.png")
        mv.prepare(f"{small}/x.png", f"{small}/out", tile=512)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = memory(), time.perf_counter()
    mv.prepare(file, out, tile=tile)
    return time.perf_counter() - start, before, memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    for name, value in (("width", 20_000), ("height", 15_000), ("tile", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    pixels = panorama(args.width, args.height)
    found = {}
    for name, options in [*TIFF.items(), ("JPEG", None), ("PNG", None)]:
        file = folder / f"panorama{len(found)}.{'tif' if options is not None else name.lower()}"
        if options is None:
            Image.fromarray(pixels).save(file, quality=90, compress_level=1)
        else:
            tifffile.imwrite(file, pixels, photometric="rgb", **options)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            out = folder / f"tiles{len(found)}"
            seconds, before, peak = pool.submit(cut, file, out, args.tile).result()
        tiles = sum(c["tiles"] for c in json.loads((folder / f"tiles{len(found)}/tiles.json").read_text())["cuts"])
        found[name] = {"tiles": tiles, "seconds": round(seconds, 1), "MiB": round(peak - before)}
        print(name, found[name], flush=True)
        file.unlink()


if __name__ == "__main__":
    main()
