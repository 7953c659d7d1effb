"""How sharp views are, and what that costs: crops of canvases against torchvision's RandomResizedCrop of the file.

    python benchmarks/sharpness.py --out benchmarks/sharpness.json
    python benchmarks/sharpness.py --data PHOTOS --before CHECKOUT --out benchmarks/sharpness.json

Each crop is compared with torchvision's antialiased bicubic crop of the decoded file, of the same box: the share of the
gradient energy that is kept, and the peak signal-to-noise ratio. "squashed" is how canvases were made before, of 256
pixels and of 512. Photographs are scikit-learn's two, 500 pixels wide, and up to 16 of a folder of yours, as they are.

`--before` names a checkout of another commit, such as one with squashed canvases: both read the same JPEGs from disk
and make two views of 224 pixels of each, in turns, in processes of their own.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

# Area and side of the crops, as the papers have them.
CROPS = {
    "BYOL, 224": ((0.08, 1.0), 224),
    "MULAN global, 224": ((0.25, 1.0), 224),
    "MULAN local, 96": ((0.08, 0.25), 96),
    "DINO global, 224": ((0.4, 1.0), 224),
    "DINO local, 96": ((0.05, 0.4), 96),
}
RATIO = (3 / 4, 4 / 3)
EACH = 24  # crops of each photograph

RATE = """
import sys, time
import torch
from manyviews.data import Loader, open_source
from manyviews.views import SIMCLR, Global, Views
folder, canvas, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
kind = Global(2, 224, (0.08, 1.0), SIMCLR)
loader = Loader(open_source(folder), canvas, 32, memory=0)
list(Views(next(iter(loader.batches(0))), (kind,)).each())
begun, images = time.perf_counter(), 0
for epoch in range(1, 3):
    for batch in loader.batches(epoch):
        list(Views(batch, (kind,), epoch=epoch).each())
        images += len(batch)
print(images / (time.perf_counter() - begun))
"""


def energy(x: torch.Tensor) -> float:
    """Sum of the squared differences of neighboring pixels."""
    return float(x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum())


def squashed(file: bytes, side: int) -> np.ndarray:
    """The canvas of earlier versions: the whole image on a square."""
    image = Image.open(io.BytesIO(file))
    image.draft(None, (2 * side, 2 * side))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    pixels = interpolate(pixels[None], (side, side), mode="bicubic", antialias=True)[0]
    return pixels.permute(1, 2, 0).contiguous().numpy()


def kept(file: bytes, crops: dict[str, tuple[tuple[float, float], int]]) -> dict[str, dict[str, list[float]]]:
    """For each kind of canvas and crop: the gradient energy of ours and of theirs, and the PSNR in decibels."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    from manyviews.data import load_canvas
    from manyviews.data.source import Source
    from manyviews.types import Canvases
    from manyviews.views import Draws, Global
    from manyviews.views.compiled import crop
    from manyviews.views.geometry import draw_boxes

    image = Image.open(io.BytesIO(file)).convert("RGB")
    source = Source("one", 1, lambda _: file, lambda: ["one"])
    found: dict[str, dict[str, list[float]]] = {}
    for name, (area, size) in crops.items():
        largest = Global(1, size, area).resolution
        canvases = {
            "kept": load_canvas(source, 0, largest),
            "squashed 256": squashed(file, 256),
            "squashed 512": squashed(file, 512),
        }
        for kind, canvas in canvases.items():
            one = Canvases.packed([canvas])[torch.zeros(EACH, dtype=torch.int64)]
            # Boxes in the image's proportions, in pixels of the canvas.
            scale = torch.tensor([image.height, image.width]) / one.extent
            true = draw_boxes(Draws(0, 0, torch.arange(EACH)), (one.extent * scale).round().long(), area, RATIO)
            boxes = (true / scale.repeat(1, 2)).round().long()
            corner = torch.minimum(boxes[:, :2], one.extent - 1)
            boxes = torch.cat([corner, torch.minimum(boxes[:, 2:].clamp(min=1), one.extent - corner)], 1)
            # What they crop is the box that was rounded to pixels of the canvas.
            exact = (boxes * scale.repeat(1, 2)).round().long().tolist()
            ours = (crop(one, boxes, size, torch.zeros(EACH, dtype=torch.bool)) * 255).round()
            row = found.setdefault(f"{name}: {kind}", {"ours": [], "theirs": [], "psnr": []})
            for x, box in zip(ours, exact, strict=True):
                theirs = F.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
                y = F.pil_to_tensor(theirs).float()
                row["ours"].append(energy(x))
                row["theirs"].append(energy(y))
                row["psnr"].append(10 * math.log10(255**2 / max(1e-3, float((x - y).square().mean()))))
    return found


def summary(rows: list[dict[str, dict[str, list[float]]]]) -> list[dict[str, object]]:
    table = []
    for name in rows[0]:
        ours, theirs, psnr = (np.concatenate([r[name][k] for r in rows]) for k in ("ours", "theirs", "psnr"))
        share = ours / theirs
        table.append(
            {
                "crop": name,
                "crops": len(ours),
                "energy": round(float(share.mean()), 3),
                "energy_p10": round(float(np.quantile(share, 0.1)), 3),
                "psnr": round(float(psnr.mean()), 1),
                "psnr_p10": round(float(np.quantile(psnr, 0.1)), 1),
            }
        )
    return table


def rates(files: list[bytes], before: Path, rounds: int, threads: int) -> dict[str, object]:
    """Images per second from JPEGs on disk to two views of 224 pixels, this commit's and another one's, in turns."""
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(max(128, len(files))):
            Path(folder, f"{i:04}.jpg").write_bytes(files[i % len(files)])
        found: dict[str, list[float]] = {"now": [], "before": []}
        for _ in range(rounds):
            for name, root, canvas in (("now", here, 792), ("before", before, 256)):
                ran = subprocess.run(
                    [sys.executable, "-c", RATE, folder, str(canvas), str(threads)],
                    env={**os.environ, "PYTHONPATH": str(root)},
                    cwd=root,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found[name].append(float(ran.stdout.split()[-1]))
    ratio = np.array(found["now"]) / np.array(found["before"])
    quartiles = [round(float(q), 2) for q in np.quantile(ratio, [0.25, 0.5, 0.75])]
    medians = {k: round(float(np.median(v)), 1) for k, v in found.items()}
    return {"threads": threads, "images_per_second": medians, "now_over_before": quartiles, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of photographs, taken as they are")
    parser.add_argument("--before", type=Path, help="a checkout of another commit, for the images per second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from sklearn.datasets import load_sample_images

    from manyviews import machine

    small = []
    for pixels in load_sample_images().images:
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((500, 333), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        small.append(stream.getvalue())
    sets = {"500x333": small}
    if options.data:
        paths = sorted(p for p in options.data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:16]
        sets["yours"] = [p.read_bytes() for p in paths]
    report: dict[str, object] = {
        "machine": machine.describe(torch.device("cpu")),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, files in sets.items():
        sizes = sorted({Image.open(io.BytesIO(f)).size for f in files})
        table = summary([kept(file, CROPS) for file in files])
        print(f"\n{name}: {len(files)} photographs of {sizes[0]} to {sizes[-1]} pixels, {EACH} crops of each")
        print(f"{'':34}{'energy':>8}{'(10 %)':>8}{'PSNR':>7}{'(10 %)':>8}")
        for row in table:
            print(
                f"{row['crop']:34}{row['energy']:8.3f}{row['energy_p10']:8.3f}{row['psnr']:7.1f}{row['psnr_p10']:8.1f}"
            )
        report[name] = {"photographs": len(files), "sizes": sizes, "crops": table}
        if options.before:
            speed = rates(files, options.before.resolve(), options.rounds, options.threads)
            print(f"images per second: {speed}")
            report[name] = {**report[name], "speed": speed}  # type: ignore[dict-item]
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
