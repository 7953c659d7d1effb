"""Memory between the steps of a CPU: what one step frees, the next one asks for again."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


@contextmanager
def keeping() -> Iterator[None]:
    """Inside, glibc keeps what is freed, and afterwards gives it back; other libraries do as they do.

    Else it gives large tensors back to the kernel, which fills every page with zeros when they come anew. The process
    holds no more than at its peak, which returns with every step.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    c = ctypes.CDLL(None)
    c.mallopt(_TRIM_THRESHOLD, -1)
    c.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        c.mallopt(_MMAP_MAX, 65536)  # the default
        c.mallopt(_TRIM_THRESHOLD, 2**26)  # where it ends up by itself where there are large tensors
        c.malloc_trim(0)
