"""How far the loss curves of 1, 2 and 4 processes are apart, for a method of each kind, in float32 and in bfloat16.

python benchmarks/ranks.py [--out benchmarks/ranks.json]

The tiny recipe of a method, with its own optimizer, takes 6 steps of the same 16 random pictures, shared by so many
gloo processes. Reported is the largest difference of the loss from that of one process over these steps, relative to
it; of the first step alone, before an optimizer has acted on rounded gradients; and in bfloat16 also that of one
process from float32, which is what the format itself costs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _bench
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from manyviews import distributed
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.recipes import get
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Views

STEPS, BATCH, CPU = 6, 16, torch.device("cpu")
FAMILIES = ("simclr", "byol", "swav", "vicreg", "dino", "mae", "ijepa")
"""One of each kind: negatives, a moving target, Sinkhorn, decorrelation, a center, pixels, latents."""


def curve(name: str, precision: Any) -> list[float]:
    """The loss of each step, averaged over the processes."""
    recipe = get(f"{name}_tiny")
    method = build_method(recipe).train()
    method.begin(BATCH)
    method = distributed.sync_batchnorm(method, CPU)
    optimizer = optim.build(method, recipe.optimizer, CPU, recipe.adaptation)
    mine = pictures(BATCH).chunk(distributed.world_size())[distributed.rank()]
    found = []
    for step in range(STEPS):
        at = Progress(step, 2 * STEPS, STEPS)
        optim.schedule(optimizer, recipe.optimizer, BATCH, at)
        optimizer.zero_grad(set_to_none=True)
        views = Views(mine, method.views, seed=step)
        terms = backpropagate(method, [lambda views=views: views], at, precision=precision)
        method.before_update(at)
        optim.clip(method, recipe.optimizer.clip)
        optimizer.step()
        method.after_update(at)
        found.append(float(distributed.mean(torch.stack(list(terms.values())).sum())))
    return found


def run(rank: int, folder: str, world: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for name in names:
        precisions = ("float32", "bfloat16") if world < 4 else ("float32",)
        found[name] = {precision: curve(name, precision) for precision in precisions}
    if rank == 0:
        torch.save(found, Path(folder) / f"{world}.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def apart(a: list[float], b: list[float]) -> list[float]:
    """Relative differences: of the first step, and the largest of all."""
    off = [abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True)]
    return [float(f"{x:.1e}") for x in (off[0], max(off))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", nargs="*", default=FAMILIES)
    args = parser.parse_args()
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        groups = {world: mp.spawn(run, (folder, world, args.methods), nprocs=world, join=False) for world in (1, 2, 4)}
        for world, processes in groups.items():
            while not processes.join():
                pass
            curves[world] = torch.load(Path(folder) / f"{world}.pt")
    found = {}
    for name in args.methods:
        one, two, four = (curves[world][name] for world in (1, 2, 4))
        found[name] = {
            "float32, 2": apart(two["float32"], one["float32"]),
            "float32, 4": apart(four["float32"], one["float32"]),
            "bfloat16, 2": apart(two["bfloat16"], one["bfloat16"]),
            "bfloat16 from float32": apart(one["bfloat16"], one["float32"]),
        }
        print(f"{name:14}", found[name], flush=True)
    _bench.write(args.out, _bench.facts(CPU) | {"apart": found})


if __name__ == "__main__":
    main()
