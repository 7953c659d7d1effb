"""Run a function on several processes that form one group, as `torchrun` would."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# What takes seconds to import is imported once, by a process that has no threads and forks the others.
mp.set_forkserver_preload(["timm", "torchvision", "manyviews.verbs.pretrain", "manyviews.verbs.resume"])


def on_ranks(function: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """What `function(*args)` returns on each of `world` gloo processes, in rank order.

    The function is found by name in its module, so it stands at the module's top level. Starting the processes takes
    time: check many things in one call. An error on any rank is raised here, with that rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = function, args, folder, world, dict(os.environ)  # they are forked from one that knows an older one
        mp.start_processes(_run, started, nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _run(
    rank: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str, world: int, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
        dist.barrier()  # nobody leaves while another still reads from it
    finally:
        dist.destroy_process_group()
