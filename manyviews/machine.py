"""What this process may use of its machine: cores and memory, in a container no more than its share of them."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def cores() -> int:
    """Cores this process may use."""
    found = _visible()
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(found, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return found


def _visible() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads() -> None:
    """Before PyTorch is imported: no more threads than cores. It counts those it sees, and knows of no container."""
    if cores() < _visible() and "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def free_memory() -> int:
    """Bytes that the machine can still give."""
    free = [sys.maxsize]
    with suppress(AttributeError, OSError, KeyError, ValueError):  # not Linux
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, KeyError, ValueError):  # no container, or no limit ("max")
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # What caches files is given back when it is needed; what lies in /dev/shm is not.
        free.append(limit - used + int(held["active_file"]) + int(held["inactive_file"]))
    return min(free)
