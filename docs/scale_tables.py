"""The tables of scale.md: what the cost model predicts next to what was measured, and a billion images on 64 GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyviews.engine.cost import Link, Transformer, checkpoint, fit, gathered, state, work

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

VITS = {
    "ViT-S/16": Transformer(384, 12),
    "ViT-B/16": Transformer(768, 12),
    "ViT-L/16": Transformer(1024, 24),
    "ViT-g/14": Transformer(1536, 40, patch=14, hidden=4096, gated=True),
    "ViT-7B/16": Transformer(4096, 40, hidden=8192, gated=True, prefix=5),
}

# Assumptions of the second table. None was measured by us.
GPUS, IMAGES = 64, 1_000_000_000
PEAK, REACHED = 989e12, 0.4  # an H100's dense bfloat16 by its maker's data sheet, and the share of it
LINK = Link(20e-6, 50e9)  # 400 Gbit/s for each GPU
FILE = 110e3  # bytes of an image file: ImageNet's mean


@dataclass(frozen=True)
class Point:
    """A measured point.

    Attributes:
        group: what is measured.
        what: where.
        measured: seconds, or hours of another's table.
        predicted: the same by the model.
        known: whether the group's constants were chosen by it.
    """

    group: str
    what: str
    measured: float
    predicted: float
    known: bool

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.measured - 1


def points() -> list[Point]:
    """Every point that the model is held against."""
    return [*_steps(), *_published(), *_measured()]


def _read(name: str) -> Any:
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def _steps() -> Iterator[Point]:
    """Seconds for each image of whole steps, a ResNet-18. At each size SimCLR gives the rate of convolutions."""
    rows = {(r["method"], r["size"]): r for r in _read("step")["rows"] if r["library"] == "manyviews"}
    for size, small in ((32, 16), (224, 96)):
        pair, local = [size] * 2, [small] * 6
        views = {"simclr": (pair, []), "byol": (pair, pair), "dino": (pair + local, pair)}

        def area(side: int) -> float:
            return float(side * side)

        rate = 0.0
        for method, (trained, frozen) in views.items():
            seconds = 1 / rows[method, size]["images_per_second"][1]
            each = work(area, trained, frozen)
            rate = rate or each / seconds
            what = f"{method}, {size} pixels, batch {rows[method, size]['batch']}"
            yield Point("step of a ResNet-18, two cores", what, seconds, each / rate, method == "simclr")


def _published() -> Iterator[Point]:
    """Hours of 100 epochs of DINO, ViT-S/16, on 16 GPUs: Caron et al. 2021, table 8, as in lecture 22."""
    hours = {0: 15.3, 2: 17.0, 6: 20.3, 10: 24.2}
    vit = VITS["ViT-S/16"]
    each = {n: work(vit.forward, [224] * 2 + [96] * n, [224] * 2) for n in hours}
    for n, found in hours.items():
        predicted = hours[0] * each[n] / each[0]
        yield Point("DINO's own hours, ViT-S/16, 16 GPUs", f"2 global and {n} local views", found, predicted, n == 0)


def _measured() -> Iterator[Point]:
    """Lines through every other point of each group: a fixed time, and one for each byte or FLOP."""
    found = _read("scale")
    averaged = found["averaging"]
    files = [(f"{r['side']} pixels, {r['bytes'] / 1e3:.0f} kB", r["bytes"], r["seconds"]) for r in found["decoding"]]
    groups = {"decoding a JPEG file, one core": files}
    for r in found["embedding"]:
        size = Transformer(r["width"], r["depth"]).forward(r["size"])
        groups.setdefault(f"embedding, {r['depth']} blocks of width {r['width']}, one core", []).append(
            (f"{r['size']} pixels", size, r["seconds"])
        )
    groups["averaging gradients, two processes"] = [
        (f"{size / 2**20:g} MiB", size, seconds)
        for size, seconds in zip(averaged["bytes"], averaged["seconds"], strict=True)
    ]
    for group, rows in groups.items():
        fixed, each = fit([size for _, size, _ in rows[::2]], [seconds for *_, seconds in rows[::2]])
        for i, (what, size, seconds) in enumerate(rows):
            yield Point(group, what, seconds, fixed + each * size, i % 2 == 0)


def decode_seconds() -> float:
    """Processor seconds of decoding a file of `FILE` bytes, on the machine of scale.json."""
    rows = _read("scale")["decoding"]
    fixed, each = fit([r["bytes"] for r in rows], [r["seconds"] for r in rows])
    return fixed + each * FILE


def table(head: str, rows: Iterator[list[str]] | list[list[str]]) -> str:
    columns = head.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


def predicted(page: Path) -> str:
    """Measured and predicted."""

    def rows() -> Iterator[list[str]]:
        for p in points():
            unit = (p.measured, p.predicted, "h") if "hours" in p.group else (1e3 * p.measured, 1e3 * p.predicted, "ms")
            error = "calibrates" if p.known else f"{100 * p.error:+.1f} %"
            yield [p.group, p.what, f"{unit[0]:.3g} {unit[2]}", f"{unit[1]:.3g} {unit[2]}", error]

    return table("what | point | measured | predicted | error", rows())


def billion(page: Path) -> str:
    """One pass over a billion images on 64 GPUs."""

    def rows() -> Iterator[list[str]]:
        for name, vit in VITS.items():
            local = 98 if vit.patch == 14 else 96
            each = work(vit.forward, [224] * 2 + [local] * 8, [224] * 2)
            speed = PEAK * REACHED / each  # images a second and GPU
            hours = IMAGES / speed / GPUS / 3600
            batch = 64
            compute = batch / speed
            traffic = LINK.average(4 * vit.parameters, GPUS) / compute
            shard = state(vit.parameters, GPUS, sharded=True) + gathered(vit.block)
            yield [
                name,
                f"{vit.parameters / 1e6:,.0f} M",
                f"{speed:,.0f}",
                f"{hours:,.3g} h",
                f"{hours * GPUS:,.0f}",
                f"{GPUS * speed * FILE / 1e9:,.3g} GB/s",
                f"{speed * decode_seconds():.2g}",
                f"{checkpoint(vit.parameters) / 1e9:,.3g} GB",
                f"{state(vit.parameters) / 1e9:,.3g} GB",
                f"{shard / 1e9:,.3g} GB",
                f"{batch * vit.activations(224) / 1e9:,.3g} GB",
                f"{batch * vit.activations(224, True) / 1e9:,.3g} GB",
                f"{100 * traffic:.2g} %",
                f"{IMAGES * vit.forward(224) / (PEAK * REACHED) / GPUS / 3600:.2g} h",
            ]

    return table(
        "network | parameters | images/s, GPU | one pass | GPU hours | read | cores to decode, GPU | checkpoint "
        "| state, DDP | state, FSDP2 | a view's activations | with checkpoints | averaging, of a step | embedding",
        rows(),
    )
