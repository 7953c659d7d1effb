"""Averaging gradients over processes: ours, after the backward passes, or DistributedDataParallel's.

python benchmarks/ddp.py [--out benchmarks/ddp.json]

Two gloo processes on this machine, one thread each. A network and a head for each of two views take a step on made-up
images: *together*, with one backward pass of both views, as DistributedDataParallel expects; *per view*, with one
backward pass for each, as our methods do to keep the activations of one view only. DistributedDataParallel then skips
its reduction in the first pass (`no_sync`), and must look for parameters that the last one does not reach
(`find_unused_parameters`). The ways take turns, step by step, on the same images; the order changes from round to
round. Reported are the fewest and the median seconds of a step, quartiles of the ratios of neighbors, the largest
difference of gradients relative to their largest entry, and how much the peak memory of a process grew with a network
and the first steps of a way, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import _bench
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manyviews import distributed
from manyviews.backbones import Encoder

SMALL = {
    "resnet": ("resnet18", {"stem": "half", "channels": (32, 64, 128, 256), "layers": (1, 1, 1, 1)}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 6}),
}
LARGE = {"vit": ("vit_small_patch16_224", {"img_size": 32, "patch_size": 8})}
WAYS: dict[str, dict[str, Any] | None] = {
    "ours": None,
    "ddp": {},
    "ddp, gradients in buckets": {"gradient_as_bucket_view": True},
}


class Net(nn.Module):
    """An encoder with a head for each of two views."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = Encoder(name, **settings)
        self.heads = nn.ModuleList(nn.Linear(self.encoder.embed_dim, 128) for _ in range(2))

    def forward(self, views: list[Tensor], which: list[int]) -> Tensor:
        losses = [self.heads[i](self.encoder(x)).square().mean() for x, i in zip(views, which, strict=True)]
        return torch.stack(losses).sum()


def stepper(sizes: tuple[str, dict[str, Any]], way: str, order: str, batch: int) -> tuple[Callable[[], float], Net]:
    torch.manual_seed(0)
    net = distributed.sync_batchnorm(Net(*sizes).train(), torch.device("cpu"))
    torch.manual_seed(1 + distributed.rank())
    views = [torch.randn(batch, 3, 32, 32) for _ in range(2)]
    options = WAYS[way]
    wrapped: Any = net
    if options is not None:
        wrapped = DistributedDataParallel(net, find_unused_parameters=order == "per view", **options)

    def step() -> float:
        dist.barrier()
        begun = time.perf_counter()
        net.zero_grad(set_to_none=True)
        if order == "together":
            wrapped(views, [0, 1]).backward()
        else:
            for i in range(2):
                with wrapped.no_sync() if options is not None and i == 0 else nullcontext():
                    wrapped(views[i : i + 1], [i]).backward()
        if options is None:
            distributed.mean_gradients(net.parameters())
        return time.perf_counter() - begun

    return step, net


def compare(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sizes in SMALL.items():
        for order in ("together", "per view"):
            steps = {way: stepper(sizes, way, order, 16) for way in WAYS}
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for step, _ in steps.values():
                step(), step()
            ours = {k: p.grad.clone() for k, p in steps["ours"][1].named_parameters()}
            for i in range(rounds):
                for way in list(WAYS)[:: 1 if i % 2 else -1]:
                    seconds[way].append(steps[way][0]())
            found[f"{name}, {order}"] = {
                way: {
                    "fewest": min(seconds[way]),
                    "median": statistics.median(seconds[way]),
                    "ours over it": _bench.ratios(seconds["ours"], seconds[way]),
                    "difference": max(
                        float((p.grad - ours[k]).abs().max() / ours[k].abs().max().clamp(min=1e-12))
                        for k, p in steps[way][1].named_parameters()
                    ),
                }
                for way in WAYS
            }
    return found


def memory(way: str) -> float:
    """How much the peak memory of this process grew with the network and its first three steps, MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, _ = stepper(LARGE["vit"], way, "together", 2)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def run(rank: int, folder: str, name: str, *args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=2)
    found = {"compare": compare, "memory": memory}[name.partition("-")[0]](*args)
    if rank == 0:
        torch.save(found, Path(folder) / f"{name}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:

        def answer(name: str, *words: Any) -> Any:
            mp.spawn(run, (folder, name, *words), nprocs=2)
            return torch.load(Path(folder) / f"{name}.pt")

        times = answer("compare", args.rounds)
        grown = {way: answer(f"memory-{i}", way) for i, way in enumerate(WAYS)}
    for case, ways in times.items():
        print(case)
        for way, n in ways.items():
            low, middle, high = n["ours over it"]
            print(
                f"  {way:28} fewest {n['fewest'] * 1000:6.1f} ms  median {n['median'] * 1000:6.1f} ms  "
                f"ours/it {middle:.2f} ({low:.2f} to {high:.2f})  difference {n['difference']:.1e}"
            )
    print("peak memory of a network and its first steps, ViT-S, MB:", {way: round(mb) for way, mb in grown.items()})
    found = {"times": times, "memory_mb": grown, "load": os.getloadavg()}
    _bench.write(args.out, _bench.facts(torch.device("cpu")) | found)


if __name__ == "__main__":
    main()
