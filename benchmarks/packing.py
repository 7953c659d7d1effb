"""What packing crops and skipping dropped branches save: the time of a DINOv2 step one way over another.

python benchmarks/packing.py [--out benchmarks/packing.json]

ViT-S/16 on 2 crops of 112 and 8 of 48 pixels, forward and backward without the making of views, on one thread of a CPU
or on a GPU. *Packed* sends all crops of the student through one pass (`step.backward=joint`); *by size* takes those of
one size together; *by crop* is the default, which backpropagates each global crop by itself and small ones in groups
of fewer pixels. *Skipped* computes only the images that keep a residual branch; *masked* is timm's own, which computes
all and multiplies some by zero; crop by crop, all blocks with one rate, as in DINOv2.

The ways alternate in one process, on the same images. Reported are the fewest seconds of the processor (of the clock
on a GPU), and the median and quartiles of the ratios of neighbors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import torch
from torch import nn

from manyviews.backbones import Encoder
from manyviews.engine.step import backpropagate
from manyviews.methods import get
from manyviews.types import Backward, Batch, Progress
from manyviews.views import Global, Local, Views

AT = Progress(3, 10, 5)
KINDS = (Global(2, size=112, area=(0.32, 1.0), color=None), Local(8, size=48, area=(0.05, 0.32), color=None))


class Made(Views):
    """Views that are made beforehand."""

    def make_all(self) -> Made:
        self.made = {(kind.name, i): super(Made, self)._make(kind, i) for kind in self.kinds for i in range(kind.count)}
        return self

    def _make(self, kind: Any, i: int) -> Any:
        return self.made[kind.name, i]


def stepper(
    batch: Batch, backward: Backward, rate: float = 0.0, changed: Callable[[Any], None] | None = None
) -> Callable[[], float]:
    """A function that takes one step, and says how many seconds it took."""
    torch.manual_seed(0)
    depth = {"drop_path_rate": rate, "drop_path_uniform": True}
    encoder = Encoder("vit_small_patch16_224", img_size=112, init_values=1e-5, **depth)
    method = get("dinov2")(encoder, views=KINDS, prototypes=4096)
    if changed is not None:
        changed(method)
    device = batch.index.device
    method = method.to(device).train()
    views = Made(batch, method.views, backward=backward).make_all()
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        method.zero_grad(set_to_none=True)
        backpropagate(method, [lambda: views], AT, precision="auto")
        method.after_update(AT)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    return step


def mask(method: nn.Module) -> None:
    """timm's own stochastic depth."""
    for m in method.modules():
        if type(m).__name__.startswith("Skipping"):
            m.__class__ = type(m).__mro__[1]


def by_size(method: Any) -> None:
    """No packing: views of each size by themselves."""
    method.student.__class__ = type("Unpacked", (type(method.student),), {"packs": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = _bench.facts(device, "manyviews", "torch", "timm")
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.batch, 3, 128, 128), dtype=torch.uint8, generator=draw)
    batch = Batch.of(pixels).to(device)
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "packed / by size": (stepper(batch, "joint"), stepper(batch, "joint", changed=by_size)),
        "packed / by crop": (stepper(batch, "joint"), stepper(batch, "per_view")),
    }
    for rate in (0.3, 0.4):
        ways = stepper(batch, "per_view", rate), stepper(batch, "per_view", rate, mask)
        cases[f"skipped / masked, rate {rate}"] = ways
    rows = []
    for name, (ours, theirs) in cases.items():
        ours(), theirs()  # the first steps allocate
        pairs = [(ours(), theirs()) if i % 2 else (theirs(), ours())[::-1] for i in range(options.rounds)]
        low, median, high = _bench.ratios([a for a, _ in pairs], [b for _, b in pairs])
        seconds = [round(min(times), 3) for times in zip(*pairs, strict=True)]
        rows.append({"ways": name, "seconds": seconds, "ratio": [low, median, high]})
        print(f"{name:28} {seconds[0]:6.2f} and {seconds[1]:6.2f} s, {median:.3f} times ({low:.3f} to {high:.3f})")
    settings = {"batch": options.batch, "rounds": options.rounds}
    _bench.write(options.out, {**facts, **settings, "rows": rows})


if __name__ == "__main__":
    main()
