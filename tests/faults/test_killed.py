"""SIGKILL at any moment: resume ends with the same bits, and no line of the log is lost or doubled."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import SEED, TIMES
from tests.faults.harness import Server, contents, differences
from tests.faults.states import STATES, command

pytestmark = pytest.mark.faults

RANDOM, NTH = max(1, round(27 * TIMES)), max(1, round(50 * TIMES))  # for each of 13 kinds of state: a thousand


def again(server: Server, state: str, images: Path, out: Path, whole: Callable) -> str | None:
    """Continue a run that was killed, or begin it again if it had not begun; what was lost, if anything."""
    if (out / "recipe.json").exists():
        ended = server.run("resume", out)
    else:  # there was nothing to lose yet: the same command takes over what is there
        weights = whole("hidden patches")[0] if state == "adaptation" else None
        ended = server.run(*command(state, images, out, weights))
    if ended.code:
        return f"exit code {ended.code}: {ended.text[-600:]}"
    found = differences(whole(state)[1], contents(out))
    return "; ".join(found) or None


@pytest.mark.parametrize("state", STATES)
@pytest.mark.timeout(3600)
def test_killed_at_a_random_moment(state, server, images, scratch, whole, count):
    _, _, seconds = whole(state)
    weights, draws, lost = whole("hidden patches")[0], random.Random(f"{SEED} {state}"), []
    for k in range(RANDOM):
        out, at = scratch / f"killed {state} {k}", draws.uniform(0, seconds)
        ended = server.run(*command(state, images, out, weights), signals=[(at, "SIGKILL")])
        # A resumed run is killed as well, now and then.
        while ended.code == -9 and draws.random() < 0.3 and (out / "recipe.json").exists():
            ended = server.run("resume", out, signals=[(draws.uniform(0, seconds), "SIGKILL")])
        found = again(server, state, images, out, whole)
        if found:
            lost.append(f"{state}, killed after {at:.3f} s: {found}")
        else:
            shutil.rmtree(out)
    count("SIGKILL at a random moment", RANDOM, lost)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.timeout(3600)
def test_killed_at_the_nth_write(state, server, images, scratch, whole, count):
    """Among them opening, writing half of it, syncing and renaming of checkpoints, logs, recipes and summaries."""
    record, weights = scratch / f"writes of {state}.txt", whole("hidden patches")[0]
    out = scratch / f"recorded {state}"
    server.run(
        *command(state, images, out, weights), fault={"kind": "files", "folder": str(out), "record": str(record)}
    )
    writes, lost = record.read_text().splitlines(), []
    assert not differences(whole(state)[1], contents(out))
    shutil.rmtree(out)
    for at in sorted(random.Random(f"{SEED} {state}").sample(range(len(writes)), min(NTH, len(writes)))):
        out = scratch / f"killed {state} at {at}"
        ended = server.run(*command(state, images, out, weights), fault={"kind": "files", "folder": str(out), "at": at})
        assert ended.code == -9, ended.text
        found = again(server, state, images, out, whole)
        if found:
            lost.append(f"{state}, killed at {writes[at]} ({at}): {found}")
        else:
            shutil.rmtree(out)
    count("SIGKILL during a write of a checkpoint, log or other file", min(NTH, len(writes)), lost)
