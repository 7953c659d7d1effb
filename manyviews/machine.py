"""The cores, memory and device that this process may use; in a container, only its share of them."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from manyviews.errors import UserError, unknown

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


def cache_folder(name: str) -> Path:
    """The folder of that name in the user's cache, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manyviews" / name


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


KINDS = ("cuda", "xpu", "mps", "cpu")
"""Types of devices, the first that is there is taken: NVIDIA's or AMD's GPU, Intel's, Apple's, and the processor."""

DEVICE = "MANYVIEWS_DEVICE"
"""Environment variable: one of `KINDS` to take instead."""


@contextmanager
def using(kind: str | None) -> Iterator[None]:
    """Compute on a device of this type, one of `KINDS`, while the context lasts; None changes nothing."""
    before = os.environ.get(DEVICE)
    if kind is not None:
        os.environ[DEVICE] = kind  # processes that are started meanwhile compute there too
    try:
        yield
    finally:
        if kind is not None:
            os.environ.pop(DEVICE)
            if before is not None:
                os.environ[DEVICE] = before


def device() -> torch.device:
    """The device to compute on: the first of `KINDS` that PyTorch sees, or the one that `MANYVIEWS_DEVICE` names.

    Raises:
        UserError: the variable holds another word, or a device that is not here.
    """
    import torch

    asked = os.environ.get(DEVICE)
    if not asked:
        return torch.device(next(kind for kind in KINDS if available(kind)))
    if asked not in KINDS:
        raise unknown(f"device in the environment variable {DEVICE}", asked, KINDS)
    if not available(asked):
        there = ", ".join(kind for kind in KINDS if available(kind))
        raise UserError(
            f"PyTorch {torch.__version__} sees no device '{asked}' here, only {there}: choose one of these, or leave "
            f"out --device and {DEVICE}."
        )
    return torch.device(asked)


@contextmanager
def flushed() -> Iterator[None]:
    """Inside, this thread takes numbers below 1.2e-38 for zero.

    Processors take many times as long for them. The probabilities of a classifier that is sure of itself become such
    numbers, and so does the momentum of what has stopped to move: see `benchmarks/probe.py`.
    """
    import torch

    kept = bool(torch.full((), 1e-40) * 1 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)


def available(kind: str) -> bool:
    """Whether PyTorch sees a device of this type here."""
    import torch

    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu" or bool((torch.cuda if kind == "cuda" else torch.xpu).is_available())


def exact(device: torch.device | str) -> torch.device:
    """The device itself if it computes in float64, else the CPU: Apple's GPUs and some of Intel's do not."""
    import torch

    device = torch.device(device)
    lacks = device.type == "mps" or (
        device.type == "xpu" and not getattr(torch.xpu.get_device_properties(device), "has_fp64", True)
    )
    return torch.device("cpu") if lacks else device


def name(device: torch.device) -> str:
    """The device, for people."""
    import torch

    if device.type in ("cuda", "xpu"):
        found: str = (torch.cuda if device.type == "cuda" else torch.xpu).get_device_name(device)
        return found
    return "Apple's GPU" if device.type == "mps" else "this processor"


def wait(device: torch.device) -> None:
    """Wait for everything that the device has been told to do, so that a time is that of the work."""
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators, of the CPU and of the device, begin at `seed`; afterwards they are as they were."""
    import torch

    several = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
    state = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng([device] if several else [], device_type=device.type if several else "cuda"):
            torch.default_generator.manual_seed(seed)
            if several:
                with several.device(device):
                    several.manual_seed(seed)
            if state is not None:
                torch.mps.manual_seed(seed)
            yield
    finally:
        if state is not None:
            torch.mps.set_rng_state(state)


def limits(device: torch.device) -> str | None:
    """One line about what the device lacks; None if nothing that matters here."""
    if device.type == "mps":
        fallback = (
            ""
            if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
            else (" If an operation is missing, set PYTORCH_ENABLE_MPS_FALLBACK=1: the processor computes it then.")
        )
        return (
            "Apple's GPU has no float64: what needs it is computed on the processor. It is not tested on such a "
            f"machine; --device cpu does without it.{fallback}"
        )
    if exact(device) != device:
        return f"{name(device)} has no float64: what needs it is computed on the processor."
    return None


def describe(device: torch.device) -> str:
    """The device and the versions behind a measured number, in one line."""
    import torch
    import torchvision

    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' * (threads > 1)}"
    where = cpu if device.type == "cpu" else name(device)
    return (
        f"{where}, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )
