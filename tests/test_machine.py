"""A container's share of cores and memory."""

import os
import sys

import pytest

from manyviews import machine


@pytest.fixture
def container(tmp_path, monkeypatch):
    """On a machine of seven cores, with half a megabyte left, of which files could give back 400 kB more."""
    files = {
        "cpu.max": "max 100000",
        "memory.max": "3000000",
        "memory.current": "2500000",
        "memory.stat": "anon 1500000\nfile 900000\nshmem 500000\ninactive_file 300000\nactive_file 100000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 7), ("250000 100000", 3), ("50000 100000", 1)])
def test_cores_are_the_containers_and_pytorch_is_told(quota, cores, container, monkeypatch):
    (container / "cpu.max").write_text(quota)
    assert machine.cores() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.limit_threads()  # PyTorch has started: it would not look
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    machine.limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS", "7") == str(cores)


def test_memory_is_what_the_container_has_left(container):
    assert machine.free_memory() == 900_000
    (container / "memory.max").write_text("max")
    assert machine.free_memory() > 10**8
    (container / "memory.max").unlink()
    assert machine.free_memory() > 10**8
