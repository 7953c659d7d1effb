"""Memory between steps."""

import platform
import re
from pathlib import Path

import pytest
import torch

from manyviews.engine.allocator import keeping


def resident() -> float:
    """MiB of memory that this process holds."""
    (kib,) = re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kib) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_inside_and_given_back_afterwards():
    before = resident()
    with keeping():
        torch.ones(200 * 2**18)  # 200 MiB
        assert resident() > before + 150
    assert resident() < before + 50
    torch.ones(200 * 2**18)
    assert resident() < before + 50
