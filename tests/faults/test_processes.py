"""Processes that die, are stopped and started again, as SLURM and torchrun do it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manyviews as mv

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SETTINGS = {
    **{"data.batch_size": 16, "data.holdout": 0, "monitor.steps": 1, "monitor.epochs": 0, "step.precision": "float32"},
    **{"monitor.checkpoint_minutes": 0, "optimizer.lr": 3e-4, "epochs": 3},
}
SET = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]

DIES = """
import os, signal, sys, time
from manyviews.cli import main
from manyviews.engine import loop
real, calls = loop.backpropagate, []
def backpropagate(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4 and os.environ["RANK"] == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
loop.backpropagate = backpropagate
main(sys.argv[1:])
"""

SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
words[0] = sys.executable
tasks = []
for rank in range(2):
    slurm = dict(PROCID=rank, NTASKS=2, LOCALID=rank, NODEID=0, STEP_ID=0)
    slurm |= dict(STEP_TASKS_PER_NODE=2, JOB_NODELIST="localhost")
    env = os.environ | {{f"SLURM_{{k}}": str(v) for k, v in slurm.items()}}
    tasks.append(subprocess.Popen(words, env=env))
signal.signal(signal.SIGTERM, lambda *_: [t.send_signal(signal.SIGTERM) for t in tasks])
sys.exit(max(abs(t.wait()) for t in tasks))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(48):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + 128 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    mv.pretrain(images, "simclr_tiny", out=out, settings=SETTINGS)
    return out


def environment(**more: str) -> dict[str, str]:
    taken = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in taken and not k.startswith("SLURM_")}
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return kept | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | more


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def together(script: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and error of two processes that a launcher would start."""
    port = free_port()
    tasks = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        env = environment(**told, MASTER_ADDR="localhost", MASTER_PORT=port)
        tasks.append(
            subprocess.Popen(
                [sys.executable, *script], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    said = [task.communicate(timeout=600) for task in tasks]
    return [(task.returncode, *words) for task, words in zip(tasks, said, strict=True)]


def curve(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [row for row in rows if "loss" in row]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))  # none lost, none doubled
    return [row["loss"] for row in found]


def test_slurm_stops_the_job_in_time_queues_it_again_and_it_ends_as_one_process_does(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    programs, run, queued = tmp_path / "bin", tmp_path / "run", tmp_path / "queued"
    programs.mkdir()
    (programs / "srun").write_text(SRUN.format(python=sys.executable))
    (programs / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {queued}\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    job = [str(ROOT / "examples/cluster/pretrain.sbatch"), str(images), str(run), "--recipe", "simclr_tiny", *SET]
    env = environment(SLURM_JOB_ID=free_port(), PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    first = subprocess.Popen(["bash", *job], env=env, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and (
        not (run / "log.jsonl").exists() or '"step": 2' not in (run / "log.jsonl").read_text()
    ):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)[1]
    assert first.returncode == 0, said
    assert queued.read_text().startswith("requeue") and not (run / "summary.json").exists() and "saved" in said
    second = subprocess.run(["bash", *job], env=env | {"SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True)
    assert second.returncode == 0 and "goes on with the run" in second.stderr, second.stderr
    assert (run / "summary.json").exists() and len(queued.read_text().splitlines()) == 1
    np.testing.assert_allclose(curve(run), curve(whole), rtol=1e-5)


def test_a_killed_process_is_named_and_torchrun_starts_all_again_from_the_checkpoint(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    words = ["pretrain", str(images), "--recipe", "simclr_tiny", "--out", str(tmp_path / "run"), *SET]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    torchrun += ["--master-port", free_port(), str(tmp_path / "dies.py"), *words]
    found = subprocess.run(torchrun, env=environment(), capture_output=True, text=True, timeout=600)
    assert found.returncode == 0 and "goes on with the run" in found.stderr, found.stderr
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(whole), rtol=1e-5)


def test_without_a_restart_the_others_say_who_is_gone_and_what_to_do(images: Path, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    run = tmp_path / "run"
    words = ["pretrain", str(images), "--recipe", "simclr_tiny", "--out", str(run), *SET]
    (code, _, said), (killed, _, _) = together([str(tmp_path / "dies.py"), *words])
    assert killed == -signal.SIGKILL and code == 1
    assert "process 1 of 2 has ended" in said and f"manyviews resume {run}" in said and "is intact" in said
    assert "Traceback" not in said


def test_verbs_work_once_however_many_processes_there_are(images: Path, whole: Path, tmp_path: Path) -> None:
    first, second = together(["-m", "manyviews", "evaluate", str(whole), "--data", str(images), "--protocol", "knn"])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "k-NN" in first[1] and not second[1] and not second[2].strip()
    assert len(list((whole / "evaluations").iterdir())) == 1


def test_files_are_written_once_and_features_keep_their_bits(images: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "several.py"
    script.write_text(
        "import sys\nfrom manyviews.cli import main\n"
        f"main(['embed', {str(whole)!r}, {str(images)!r}, '--out', {str(tmp_path / 'two.npz')!r}])\n"
        f"main(['export', {str(whole)!r}, '--format', 'safetensors', '--out', {str(tmp_path / 'x.safetensors')!r}])\n"
        f"main(['report', {str(whole)!r}, '--out', {str(tmp_path / 'page')!r}])\n"
    )
    first, second = together([str(script)])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert (tmp_path / "page" / "index.html").exists() and (tmp_path / "x.safetensors").exists() and not second[1]
    mv.embed(whole, images, tmp_path / "one.npz")
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in ("id", "embedding", "label"))
