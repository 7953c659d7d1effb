"""What rescuing easy samples costs: the time of a step with it over that of a step without.

python benchmarks/rescue.py [--out benchmarks/rescue.json]

k = N/64 strong views come on top of 2N ordinary ones: 1/128 of the work, and what choosing and augmenting them takes.
Steps with and without alternate in one process, on the same images; the ratio is that of neighbors, and what is
reported is its median and quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import _bench
import torch

from manyviews.backbones import Encoder
from manyviews.engine.step import backpropagate
from manyviews.methods import get
from manyviews.regularizers import Regularized, Rescue
from manyviews.types import Batch, Progress
from manyviews.views import MOCO_V2, Global, Views

AT = Progress(3, 10, 5)
HEADS = {"simclr": {"hidden_dim": 512}, "moco_v3": {"hidden_dim": 512}}


def stepper(name: str, rescue: bool, canvases: Batch, size: int) -> Callable[[], float]:
    """A function that takes one step, forward and backward, and says how many seconds it took."""
    torch.manual_seed(0)
    looks = Global(2, size=size, color=MOCO_V2)
    settings = {"simclr": {"view": looks}, "moco_v3": {"tasks": (looks,)}}[name]
    method = get(name)(Encoder("resnet18"), **settings, **HEADS[name])
    if rescue:
        method = Regularized(method, (Rescue(scale=0.5, k=len(canvases) // 64),))
    device = canvases.pixels.device
    method = method.to(device, memory_format=torch.channels_last).train()

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        method.zero_grad(set_to_none=True)
        backpropagate(method, [lambda: Views(canvases, method.views)], AT, precision="auto")
        method.after_update(AT)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8, generator=draw)
    extent = torch.full((options.batch, 2), options.size)
    canvases = Batch.of(pixels, extent, torch.arange(options.batch)).to(device)
    rows = []
    print(f"ResNet-18, batch {options.batch}, {options.size} pixels, k = {options.batch // 64}")
    for name in HEADS:
        without, with_ = (stepper(name, rescue, canvases, options.size) for rescue in (False, True))
        without(), with_()  # the first steps allocate
        # Which of the two comes first changes from round to round: a machine that slows down favors neither.
        pairs = [(without(), with_()) if i % 2 else (with_(), without())[::-1] for i in range(options.rounds)]
        low, median, high = statistics.quantiles([b / a for a, b in pairs], n=4)
        seconds = statistics.median(a for a, _ in pairs)
        rows.append({"method": name, "seconds": round(seconds, 3), "ratio": [round(r, 4) for r in (low, median, high)]})
        print(f"{name:8} {seconds:6.2f} s a step without; with it {median:.3f} times (quartiles {low:.3f}, {high:.3f})")
    facts = _bench.facts(device, "manyviews", "torch", "timm", "numba")
    settings = {"batch": options.batch, "size": options.size, "rounds": options.rounds}
    _bench.write(options.out, {**facts, **settings, "rows": rows})


if __name__ == "__main__":
    main()
