"""Images that change or disappear while they are read, and reads that never end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, Server, pictures
from tests.faults.states import command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

ANEW = ["--set=data.memory_gb=0", "--set=data.holdout=0"]  # images are read in each epoch


@pytest.mark.parametrize("how", ["deleted", "truncated", "replaced"])
def test_images_that_change_while_a_run_reads_them(how, server, scratch, count):
    images, out = pictures(scratch / f"images {how}"), scratch / f"{how}"
    names = ["bright/000.png", "dark/017.png", "bright/030.png"]
    fault = {"kind": "change", "folder": str(images), "how": how, "names": names, "step": 3}
    ended = server.run(*command("images read anew", images, out), *ANEW, "--set=epochs=4", fault=fault)
    lost = []
    if ended.code:
        lost.append(f"exit code {ended.code}: {ended.text[-600:]}")
    else:
        summary = json.loads((out / "summary.json").read_text())
        bad = {where for where, _ in summary["bad"]}
        if summary["bad_images"] != len(names) or bad != set(names) or not all(name in ended.text for name in names):
            lost.append(f"counted {summary['bad']}, said {ended.text[-400:]}")
    count("images deleted, cut short or replaced while a run reads them", len(names), lost)


def test_an_archive_that_is_replaced_while_a_run_reads_it(server, scratch, images, count):
    archive, lost = scratch / "images.zip", []
    paths = sorted(images.rglob("*.png"))

    def pack(chosen: list[Path]) -> None:
        with zipfile.ZipFile(archive, "w") as file:
            for path, name in zip(chosen, paths, strict=True):
                file.write(path, str(name.relative_to(images)))

    pack(paths)
    from manyviews.data import open_source

    source = open_source(archive)
    pack(paths[::-1])
    os.utime(archive, ns=(1, 1))
    try:
        source.read(0)
        lost.append("it was read")
    except Exception as error:
        if "has changed since it was opened" not in str(error):
            lost.append(str(error))
    count("archive replaced while it is read", 1, lost)


def test_a_folder_that_disappears_while_a_run_reads_it_costs_nothing(server, scratch, count):
    images, out = pictures(scratch / "images gone"), scratch / "gone"
    names = [str(p.relative_to(images)) for p in images.rglob("*.png")]
    # All are gone, with their folders: a network disk that is unmounted.
    fault = {"kind": "change", "folder": str(images), "how": "away", "names": names, "step": 3}
    ended = server.run(*command("images read anew", images, out), *ANEW, "--set=epochs=4", fault=fault)
    lost = []
    if ended.code != 2 or "last good checkpoint, of step" not in ended.text:
        lost.append(f"exit code {ended.code}: {ended.text[-600:]}")
    Path(f"{images} away").rename(images)
    whole = scratch / "not gone"
    server.run(*command("images read anew", images, whole), *ANEW, "--set=epochs=4")
    resumed = server.run("resume", out)
    if resumed.code or (whole / "encoder.safetensors").read_bytes() != (out / "encoder.safetensors").read_bytes():
        lost.append(f"resumed to something else: {resumed.text[-400:]}")
    count("folder of images that disappears while a run reads it", 1, lost)


def test_a_read_that_hangs_is_named(server: Server, images, scratch, count):
    out, lost = scratch / "hang", []
    fault = {"kind": "hang", "name": "017.png", "seconds": 1.5, "patience": 0.5}
    ended = server.run(*command("images read anew", images, out), *ANEW, fault=fault)
    named = [line for line in ended.text.splitlines() if "017.png has been read for" in line]
    if ended.code or not named:
        lost.append(f"exit code {ended.code}: {ended.text[-600:]}")
    count("read of an image that hangs", 1, lost)


def test_a_pipe_in_place_of_an_image_can_be_stopped(images, scratch, whole, count):
    """The image turns into a pipe that nobody writes to. A first signal saves, and SIGKILL ends the rest."""
    folder, out, lost = scratch / "images with a pipe", scratch / "pipe", []
    shutil.copytree(images, folder)
    program = (
        "import os, sys, threading, time\n"
        "from manyviews.data import slow\n"
        "from manyviews.engine import loop\n"
        "slow.PATIENCE, real, calls = 1.0, loop.backpropagate, []\n"
        "def backpropagate(*args, **more):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        f"        for name in os.listdir({str(folder / 'dark')!r}):\n"
        f"            path = os.path.join({str(folder / 'dark')!r}, name)\n"
        "            os.unlink(path); os.mkfifo(path)\n"
        "    return real(*args, **more)\n"
        "loop.backpropagate = backpropagate\n"
        "from manyviews.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = [*command("images read anew", folder, out), *ANEW, "--set=epochs=9"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
    )
    heard = list[str]()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            heard.append(line)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not any("has been read for" in line for line in heard):
        time.sleep(0.2)
    if not any("dark/" in line and "has been read for" in line for line in heard):
        lost.append("nothing was said: " + "".join(heard)[-500:])
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    (out / "checkpoint.safetensors").unlink(missing_ok=True)  # so that one can only come from the signal
    process.terminate()
    while time.monotonic() < deadline and not (out / "checkpoint.safetensors").exists():
        time.sleep(0.1)
    process.kill()
    process.wait()
    if not (out / "checkpoint.safetensors").exists():
        lost.append(f"nothing was saved after step {steps[-1]}: " + "".join(heard)[-500:])
    count("read of an image that hangs", 1, lost)
