"""Checkpoints that are cut short or whose bits are flipped: resume says which file, and continues from the one before.

Whatever the byte, the run ends with the uninterrupted run's bits, or the command ends with one sentence.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import SEED, TIMES
from tests.faults.harness import Server, contents, differences
from tests.faults.states import command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def stopped(server: Server, images: Path, out: Path, state: str = "queue") -> Path:
    """A run that was killed in its last step but one, with two checkpoints."""
    server.run(*command(state, images, out), fault={"kind": "step", "step": 3, "then": "SIGKILL"})
    assert (out / "checkpoint.safetensors").exists()
    return out


def flip(path: Path, draws: random.Random) -> str:
    at, bit = draws.randrange(path.stat().st_size), draws.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))
    return f"bit {bit} of byte {at} flipped"


def cut(path: Path, draws: random.Random) -> str:
    to = draws.randrange(path.stat().st_size)
    os.truncate(path, to)
    return f"cut to {to} bytes"


@pytest.mark.parametrize(("how", "name"), [(flip, "one flipped bit"), (cut, "cut short")])
def test_a_damaged_checkpoint(
    how: Callable[[Path, random.Random], str], name: str, server, images, scratch, whole, count
):
    source, draws, lost = stopped(server, images, scratch / f"to be {name}"), random.Random(f"{SEED} {name}"), []
    times = max(4, round(40 * TIMES))
    for k in range(times):
        out = scratch / f"{name} {k}"
        shutil.copytree(source, out)
        done = how(out / "checkpoint.safetensors", draws)
        ended = server.run("resume", out)
        if ended.code:
            lost.append(f"{done}: exit code {ended.code}: {ended.text[-400:]}")
        elif "checkpoint.safetensors" not in ended.text or "Traceback" in ended.text:
            lost.append(f"{done}: nothing is said: {ended.text[-300:]}")
        elif found := differences(whole("queue")[1], contents(out)):
            lost.append(f"{done}: {'; '.join(found)}")
        else:
            shutil.rmtree(out)
    count(f"checkpoint with {name}" if name.startswith("one") else f"checkpoint {name}", times, lost)


def test_a_damaged_encoder_is_refused(server, images, scratch, whole, count):
    draws, lost, times = random.Random(f"{SEED} encoder"), [], max(4, round(40 * TIMES))
    for k in range(times):
        path = scratch / f"encoder {k}.safetensors"
        shutil.copy(whole("queue")[0] / "encoder.safetensors", path)
        done = flip(path, draws)
        ended = server.run("embed", path, images, "--out", scratch / f"encoder {k}.npy")
        if ended.code != 2 or "Traceback" in ended.text or path.name not in ended.text:
            lost.append(f"{done}: exit code {ended.code}: {ended.text[-300:]}")
    count("encoder with one flipped bit, embedded with", times, lost)
