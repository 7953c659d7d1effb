"""Who a process is among others, as a launcher says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from manyviews import launch
from manyviews.engine.alarms import OfSteps

STEP = {
    **{"SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "4711"},
    **{"SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_JOB_NODELIST": "gpu[03-04]"},
}


def test_slurm_says_who_a_process_is_and_where_all_meet() -> None:
    found = launch.place(STEP)
    assert found == (5, 7, 1, 3, ("gpu03", 12_000 + 4711))
    assert launch.place(STEP | {"SLURM_PROCID": "0"}).address == found.address  # type: ignore[union-attr]
    # Steps of one job may run side by side.
    assert launch.place(STEP | {"SLURM_STEP_ID": "1"}).address != found.address  # type: ignore[union-attr]
    # torchrun inside a step of one task per node has the last word.
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launch.place(STEP | told)[:4] == (1, 2, 1, 2)  # type: ignore[index]
    # A batch script, and a shell on a login node.
    assert launch.place({k: v for k, v in STEP.items() if k != "SLURM_STEP_ID"}) is None
    assert launch.place({}) is None


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n[3,5],m", "n3"), ("r[1-2]n[05-07]", "r1n05"), ("a,b", "a"), ("x[09]", "x09")]
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert launch.first_node(nodes) == first


def test_the_number_of_tasks_of_each_node() -> None:
    assert launch.tasks_of_nodes("2(x3),1") == [2, 2, 2, 1] and launch.tasks_of_nodes("8") == [8]


def test_a_process_that_stays_slow_is_named_once() -> None:
    hears = OfSteps()
    rows = [{"slowness": 1.5, "slowest": r} for r in (1, 0, 1, 1, 1, 1)] + [{"slowness": 1.1, "slowest": 1}]
    said = [hears.hear(row) for row in rows]
    assert [len(s) for s in said] == [0, 0, 0, 0, 1, 0, 0] and said[4][0].startswith("Process 1 is slow")


def test_the_submit_script_is_sound() -> None:
    script = Path(__file__).parents[1] / "examples" / "cluster" / "pretrain.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
