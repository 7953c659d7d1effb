"""A full disk, a disk that fails, folders that may not be written: one sentence, exit code 2, and nothing is lost."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import SEED, TIMES
from tests.faults.harness import Server, contents, differences
from tests.faults.states import command
from tests.faults.test_killed import again

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def unclear(text: str, *names: str | Path) -> str | None:
    """What is wrong with the message of a failed command: a traceback, or it names no file."""
    if "Traceback" in text:
        return f"a traceback: {text[-800:]}"
    last = text.strip().splitlines()[-1] if text.strip() else ""
    if not last.startswith("manyviews: ") or not any(str(name) in last for name in names):
        return f"no file is named: {last}"
    return None


@pytest.mark.parametrize(("error", "lasting"), [("ENOSPC", True), ("EIO", False), ("EROFS", True)])
def test_an_error_at_each_write_in_turn(error, lasting, server, images, scratch, whole, count):
    record, out = scratch / f"writes before {error}.txt", scratch / f"recorded {error}"
    server.run(*command("teacher", images, out), fault={"kind": "files", "folder": str(out), "record": str(record)})
    shutil.rmtree(out)
    writes, lost = record.read_text().splitlines(), []
    chosen = range(len(writes))
    if TIMES < 1:
        chosen = sorted(random.Random(f"{SEED} {error}").sample(chosen, max(1, round(TIMES * len(writes)))))
    for at in chosen:
        out = scratch / f"{error} at {at}"
        fault = {"kind": "files", "folder": str(out), "at": at, "fault": error, "lasting": lasting}
        ended = server.run(*command("teacher", images, out), fault=fault)
        # Some failures cost nothing: of the sync of a folder, or of a plot.
        wrong = unclear(ended.text, out) if ended.code == 2 else f"exit code {ended.code}: {ended.text[-600:]}"
        if ended.code == 0:
            wrong = "; ".join(differences(whole("teacher")[1], contents(out))) or None
        elif wrong is None and (out / "checkpoint.safetensors").exists() and "last good checkpoint" not in ended.text:
            # After training has ended there is nothing to say about it.
            wrong = (
                None if "step 4" in ended.text or " at step" in ended.text else f"no checkpoint: {ended.text[-300:]}"
            )
        wrong = wrong or again(server, "teacher", images, out, whole)
        if wrong:
            lost.append(f"{error} at {writes[at]} ({at}): {wrong}")
        else:
            shutil.rmtree(out)
    names = {"ENOSPC": "full disk", "EIO": "I/O error", "EROFS": "disk that becomes read-only"}
    count(f"{names[error]}, at each write in turn", len(chosen), lost)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount, which needs the rights for it."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
        pytest.skip("this process may not mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def verbs(run: Path, other: Path, model: Path, images: Path, out: Path) -> dict[str, list[str | Path]]:
    """A command for every verb and format that writes; `other` is a run of a transformer, as timm has it."""
    formats = {"safetensors": "x.safetensors", "torch": "x.pth", "torchscript": "x.ts"}
    formats |= {"onnx": "x.onnx", "torch_export": "x.pt2"}
    found = {
        f"export --format {kind}": ["export", run, "--format", kind, "--out", out / n] for kind, n in formats.items()
    }
    found |= {f"embed to {end}": ["embed", run, images, "--out", out / f"x.{end}"] for end in ("parquet", "npy", "csv")}
    tiny = ["--recipe", "simclr_tiny", "--set=data.batch_size=16", "--set=data.holdout=0"]
    for kind in ("timm", "huggingface"):
        found[f"export --format {kind}"] = [
            "export",
            other,
            "--format",
            kind,
            "--out",
            out / kind,
        ]
    return found | {
        "pretrain": ["pretrain", images, *tiny, "--out", out / "run"],
        "prepare": ["prepare", images, "--out", out / "canvases"],
        "adapt": ["adapt", run, "--data", images, "--strategy", "linear", "--out", out / "model"],
        "predict": ["predict", model, images, "--out", out / "x.csv"],
        "curate": ["curate", images, "--with", run, "--out", out / "x.parquet"],
        "distill": ["distill", run, "--data", images, "--epochs", "1", "--out", out / "student", *tiny[2:]],
        "duplicates": ["duplicates", run, images, "--out", out / "x.csv"],
        "report": ["report", run, "--out", out / "page", "--data", images],
        "search": ["search", run, next(images.rglob("*.png")), "--in", images, "--out", out / "x.html"],
    }


@pytest.fixture(scope="module")
def model(server: Server, scratch: Path, images: Path, whole) -> Path:
    out = scratch / "model"
    arguments = ["adapt", whole("queue")[0], "--data", images, "--strategy", "linear", "--out", out]
    ended = server.run(*arguments)
    assert ended.code == 0, ended.text
    return out


def test_a_full_file_system_under_every_verb(server, images, scratch, whole, model, count):
    run, lost, injected = whole("queue")[0], [], 0
    with mounted(scratch / "small", "-t", "tmpfs", "-o", "size=64k", "none") as out:
        (out / "ballast").write_bytes(bytes(60 * 1024))
        for name, arguments in verbs(run, whole("hidden patches")[0], model, images, out).items():
            ended = server.run(*arguments, brief=name != "pretrain")
            injected += 1
            wrong = unclear(ended.text, out) if ended.code == 2 else f"exit code {ended.code}: {ended.text[-600:]}"
            left = sorted(p.name for p in out.iterdir() if p.name != "ballast")
            # These continue from what they have.
            if wrong is None and left and name not in ("pretrain", "distill", "prepare", "predict"):
                wrong = f"left behind: {left}"
            for path in out.iterdir():
                if path.name != "ballast":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if wrong:
                lost.append(f"{name}: {wrong}")
    count("full file system (tmpfs), under every verb that writes", injected, lost)


def test_a_file_system_that_fills_up_while_training(server, images, scratch, whole, count):
    lost, sizes = [], range(24, 24 + 3 * 136, 136) if TIMES < 1 else range(24, 24 + 14 * 40, 40)
    for free in sizes:  # kilobytes: from too little for the recipe to a few checkpoints
        with mounted(scratch / f"filling {free}", "-t", "tmpfs", "-o", f"size={free}k", "none") as place:
            out = place / "run"
            ended = server.run(*command("queue", images, out))
            wrong = unclear(ended.text, out) if ended.code == 2 else f"exit code {ended.code}: {ended.text[-600:]}"
            if ended.code == 0:
                wrong = None
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            wrong = wrong or again(server, "queue", images, out, whole)
        if wrong:
            lost.append(f"{free} kB: {wrong}")
    count("file system (tmpfs) that fills up while training", len(sizes), lost)


def test_folders_that_may_only_be_read(server, images, scratch, whole, model, count):
    run, lost, injected = whole("queue")[0], [], 0
    with mounted(scratch / "locked", "-t", "tmpfs", "-o", "size=64m", "none") as place:
        shutil.copytree(run, place / "run")
        shutil.copytree(images, place / "images")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for name, arguments in verbs(run, whole("hidden patches")[0], model, images, place).items():
            injected += 1
            ended = server.run(*arguments)
            wrong = unclear(ended.text, place) if ended.code == 2 else f"exit code {ended.code}: {ended.text[-600:]}"
            if wrong:
                lost.append(f"{name}: {wrong}")
        # Only reading a run, and images, needs no permission to write.
        out = scratch / "from locked"
        for arguments in (
            ["embed", place / "run", place / "images", "--out", out.with_suffix(".npy")],
            [*command("queue", place / "images", out)],
        ):
            injected += 1
            ended = server.run(*arguments)
            if ended.code:
                lost.append(f"{arguments[0]} from a folder that may only be read: {ended.text[-600:]}")
    if differences(whole("queue")[1], contents(out)):
        lost.append("training from images that may only be read ended otherwise")
    count("folder that may only be read: of the run, of the output, of the images", injected, lost)


def test_an_unfinished_run_that_may_only_be_read_says_so(server, images, scratch, whole, count):
    lost = []
    with mounted(scratch / "stopped", "-t", "tmpfs", "-o", "size=64m", "none") as place:
        out = place / "run"
        server.run(*command("queue", images, out), fault={"kind": "step", "step": 2, "then": "SIGKILL"})
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        ended = server.run("resume", out)
        wrong = unclear(ended.text, out) if ended.code == 2 else f"exit code {ended.code}: {ended.text[-600:]}"
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        lost += [text for text in (wrong or again(server, "queue", images, out, whole),) if text]
    count("folder that may only be read: of the run, of the output, of the images", 1, lost)
