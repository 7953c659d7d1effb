"""What a launcher tells a process about the others: torchrun, or SLURM's `srun` alone. Read without PyTorch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

_PORTS = (12_000, 20_000)  # first and number: below those that systems give to anybody


class Place(NamedTuple):
    """This process among all of a run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number among those of its machine.
        here: how many its machine has.
        address: host name and port of the first one, where they meet.
    """

    rank: int
    world: int
    local: int
    here: int
    address: tuple[str, int]


def place(env: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands, as torchrun or else SLURM says; None for one that was started alone.

    In a batch script there is SLURM, but no step of several tasks: only `srun` starts these.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        here = int(env.get("LOCAL_WORLD_SIZE", "1"))
        where = env.get("MASTER_ADDR", "localhost"), int(env.get("MASTER_PORT", "0"))
        return Place(int(env["RANK"]), world, int(env.get("LOCAL_RANK", "0")), here, where)
    if "SLURM_PROCID" not in env or "SLURM_STEP_ID" not in env:
        return None
    world = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost"
    tasks = tasks_of_nodes(env.get("SLURM_STEP_TASKS_PER_NODE") or str(world))
    node = int(env.get("SLURM_NODEID", "0"))
    job = int(env.get("SLURM_JOB_ID", "0")) + 31 * int(env["SLURM_STEP_ID"])
    port = int(env.get("MASTER_PORT") or _PORTS[0] + job % _PORTS[1])
    return Place(
        int(env["SLURM_PROCID"]),
        world,
        int(env.get("SLURM_LOCALID", "0")),
        tasks[node] if node < len(tasks) else 1,
        (env.get("MASTER_ADDR") or first_node(nodes), port),
    )


def announce(found: Place) -> None:
    """Set the variables that PyTorch reads, if torchrun has not."""
    if "RANK" in os.environ:
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    os.environ.update({name: str(value) for name, value in zip(names, found, strict=False)})
    os.environ.update({"MASTER_ADDR": found.address[0], "MASTER_PORT": str(found.address[1])})


def alone() -> None:
    """Let this process work as if it had been started alone."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_ID"):
        os.environ.pop(name, None)


def restarts() -> int:
    """How often torchrun (`--max-restarts`) or SLURM (a requeued job) has started this command again."""
    return max(int(os.environ.get(name) or "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def first_node(nodes: str) -> str:
    """The first host of SLURM's short form.

    >>> first_node("gpu[003-007,012],login1"), first_node("rack[1-2]node[05,07]"), first_node("here")
    ('gpu003', 'rack1node05', 'here')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def tasks_of_nodes(text: str) -> list[int]:
    """The number of tasks of each node, in SLURM's short form.

    >>> tasks_of_nodes("4(x2),3")
    [4, 4, 3]
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(n) for n, times in found for _ in range(int(times or 1))]
