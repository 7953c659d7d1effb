"""Peak memory of a training step against the number of views, and that the cheap step has the same gradient.

python benchmarks/memory.py [--out benchmarks/memory.json]

Each case runs in a process of its own: on the CPU its peak is the growth of the resident set over that of a process
which has built the method, on a GPU `max_memory_allocated`. BYOL and DINO backpropagate large views one by one; SimCLR
and VICReg, which couple their views, recompute each branch. "joint" keeps every activation until the end, as other
libraries do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import _bench
import torch

from manyviews.backbones import Encoder
from manyviews.engine.step import backpropagate
from manyviews.machine import describe
from manyviews.methods import Method, get
from manyviews.types import Batch, Progress
from manyviews.views import Cutout, Global, Local, Views

# Views: global, local and, for MULAN's three tasks, cutout.
CASES = [
    *(("byol", views, backward) for backward in ("per_view", "joint") for views in ("2", "2+2+1", "2+4", "2+8")),
    *(("dino", views, backward) for backward in ("per_view", "joint") for views in ("2", "2+4", "2+8")),
    *(
        (name, views, backward)
        for name in ("simclr", "vicreg")
        for backward in ("recompute", "joint")
        for views in "248"
    ),
]
# Every tensor in memory of its own that is given back at once: what the process holds is then what the step holds, and
# the same in every repetition.
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "THP_MEM_ALLOC_ENABLE": "0",  # rounds up to 2 MiB
}
HEADS = {
    "byol": {"hidden_dim": 512},
    "dino": {"hidden_dim": 512, "prototypes": 4096},
    "simclr": {"hidden_dim": 512},
    "vicreg": {"hidden_dim": 512, "output_dim": 512},
}


def build(name: str, views: str, size: int) -> Method:
    """A method on a ResNet-18 that looks at so many global, local and cutout views."""
    torch.manual_seed(0)
    encoder = Encoder("resnet18")
    count, locals_, cutouts = [*map(int, views.split("+")), 0, 0][:3]
    if name in ("byol", "dino"):
        parts = ((Global, count, size), (Local, locals_, size // 2), (Cutout, cutouts, size))
        kinds = tuple(kind(n, size=side) for kind, n, side in parts if n)
        return get(name)(encoder, **{"byol": {"tasks": kinds}, "dino": {"views": kinds}}[name], **HEADS[name])
    return get(name)(encoder, view=Global(count, size=size, color=Global().color), **HEADS[name])


def resident() -> int:
    """Peak resident set in bytes since the last `reset`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, views: str, backward: str, batch: int, size: int) -> dict[str, float | str | int]:
    """One case: peak MiB of a step, and how far its gradient is from the plain step's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=draw)
    canvases = Batch.of(pixels, torch.full((batch, 2), size), torch.arange(batch)).to(device)

    def gradient(backward: str) -> torch.Tensor:
        method = build(name, views, size).to(device, memory_format=torch.channels_last).train()
        trained = [p for p in method.parameters() if p.requires_grad]
        for p in trained:  # gradients are held either way: they are not what is compared
            p.grad = torch.zeros_like(p)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
        else:
            reset()
            start = resident()
        looks = Views(canvases, method.views, backward=backward)
        backpropagate(method, [lambda: looks], Progress(0, 10, 5), precision="float32")
        end = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident()
        peaks.append((end - start) / 2**20)
        return torch.cat([p.grad.flatten() for p in trained]).cpu()

    peaks: list[float] = []
    gradient(backward)  # the first step imports, compiles and tries kernels, which takes memory once
    peaks.clear()
    ours = gradient(backward)
    # In double precision the two steps would agree to the last digits; in float32 sums are taken in another order.
    plain = gradient("joint")
    error = ((ours - plain).norm() / plain.norm()).item()
    return {"method": name, "views": views, "memory": backward, "peak_mib": round(peaks[0], 1), "gradient_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, help="one case, in this process: method, views, memory")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case, options.batch, options.size)))
        return
    rows = []
    print(f"{'method':8} {'views':>6} {'memory':9} {'peak MiB':>9}  relative error of the gradient")
    for case in CASES:
        sizes = ["--batch", str(options.batch), "--size", str(options.size)]
        command = [sys.executable, __file__, "--case", *map(str, case), *sizes]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENV).stdout)
        rows.append(row)
        print(
            f"{row['method']:8} {row['views']:>6} {row['memory']:9} {row['peak_mib']:9.1f}  {row['gradient_error']:.1e}"
        )
    if options.out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = _bench.facts(device, "manyviews", "torch", "timm", "numba")
        torch.set_num_threads(1)  # as in the cases
        facts |= {"machine": describe(device), "batch": options.batch, "size": options.size}
        _bench.write(options.out, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
