"""The cores, memory and device that this process may use; in a container, only its share of them."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of a container."""


def cores() -> int:
    """How many cores this process may use."""
    found = _visible()
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(found, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return found


def _visible() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads() -> None:
    """Give PyTorch no more threads than cores. Call it before PyTorch is imported: it does not see container limits."""
    if cores() < _visible() and "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def free_memory() -> int:
    """How many bytes this process can still allocate."""
    free = [sys.maxsize]
    with suppress(AttributeError, OSError, KeyError, ValueError):  # not Linux
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, KeyError, ValueError):  # no container, or no limit ("max")
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # The kernel gives back memory that caches files; memory in /dev/shm it does not.
        free.append(limit - used + int(held["active_file"]) + int(held["inactive_file"]))
    return min(free)


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """The device and the versions behind a measured number, in one line."""
    import torch
    import torchvision

    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' * (threads > 1)}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return (
        f"{where}, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )
