"""SIGINT and SIGTERM at any moment, a scheduler's SIGKILL after its grace, and clocks that jump."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.faults.conftest import SEED, TIMES
from tests.faults.harness import contents, differences
from tests.faults.states import command
from tests.faults.test_killed import again

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_at_a_random_moment(name, server, images, scratch, whole, count):
    seconds, draws, lost = whole("queue")[2], random.Random(f"{SEED} {name}"), []
    times = max(3, round(30 * TIMES))
    for k in range(times):
        out, at = scratch / f"{name} {k}", draws.uniform(0, seconds)
        ended = server.run(*command("queue", images, out), signals=[(at, name)])
        wrong = "a traceback" if "Traceback" in ended.text else None
        wrong = wrong or again(server, "queue", images, out, whole)
        if wrong:
            lost.append(f"{name} after {at:.3f} s, exit code {ended.code}: {wrong}")
        else:
            shutil.rmtree(out)
    count(f"{name} at a random moment", times, lost)


def test_killed_a_grace_after_a_signal(server, images, scratch, whole, count):
    """Also while an observation is made, which is then made by the run that continues."""
    seconds, draws, lost = whole("queue")[2], random.Random(f"{SEED} grace"), []
    times = max(3, round(30 * TIMES))
    for k in range(times):
        out, at = scratch / f"grace {k}", draws.uniform(0, seconds)
        both = [(at, "SIGTERM"), (at + draws.choice((0.0, 0.02, 0.1)), "SIGKILL")]
        server.run(*command("queue", images, out), signals=both)
        if wrong := again(server, "queue", images, out, whole):
            lost.append(f"SIGTERM after {at:.3f} s and SIGKILL: {wrong}")
        else:
            shutil.rmtree(out)
    count("SIGTERM, and SIGKILL before the run has ended", times, lost)


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_killed_while_an_observation_is_made(nth, server, images, scratch, whole, count):
    """SIGTERM while the n-th observation is made, which then never ends: a checkpoint is written at once."""
    out = scratch / f"observed {nth}"
    ended = server.run(*command("queue", images, out), fault={"kind": "observation", "nth": nth})
    wrong = None if ended.code == -9 else f"exit code {ended.code}: {ended.text[-600:]}"
    if not (out / "checkpoint.safetensors").exists():
        wrong = wrong or "no checkpoint"
    wrong = wrong or again(server, "queue", images, out, whole)
    count("SIGTERM, and SIGKILL before the run has ended", 1, [wrong] if wrong else [])


@pytest.mark.parametrize("jumps", [[86400 * 3, -86400 * 3], [0, -86400 * 400, 86400 * 400]])
def test_the_clock_of_the_day_jumps(jumps, server, images, scratch, whole, count):
    out = scratch / f"clock {len(jumps)}"
    ended = server.run(*command("queue", images, out), fault={"kind": "clock", "jumps": jumps})
    lost = [f"exit code {ended.code}"] if ended.code else differences(whole("queue")[1], contents(out))
    count("clock that jumps by days, forward and back", 1, lost)


def test_a_budget_is_kept_by_a_clock_that_does_not_jump(server, images, scratch, count):
    out, lost = scratch / "budget", []
    arguments = ["pretrain", images, "--recipe", "simclr_tiny", "--budget", "8s", "--out", out]
    more = ["--set=data.batch_size=16", "--set=data.holdout=0.3", "--set=monitor.steps=1"]
    ended = server.run(*arguments, *more, fault={"kind": "clock", "jumps": [86400 * 3, -86400 * 3]}, brief=False)
    if ended.code:
        lost.append(ended.text[-600:])
    else:
        found = contents(out)
        steps = [row["step"] for row in found["log"] if "loss" in row]
        if steps != list(range(1, found["summary"]["steps"] + 1)):
            lost.append(f"steps {steps}")
        seconds = json.loads((out / "summary.json").read_text())["seconds"]
        if not 0 < seconds < 60:
            lost.append(f"{seconds} seconds")
    count("clock that jumps by days, forward and back", 1, lost)
