"""A log is rewound at its end, without reading the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manyviews.engine import log as log_module
from manyviews.engine.folder import LOG, RunFolder
from manyviews.engine.log import Log


@pytest.mark.parametrize("torn", ["", '{"step": 9', "\n"])
@pytest.mark.parametrize("stage", [None, 1])
def test_rewinding_keeps_what_reading_everything_would_keep(tmp_path: Path, torn: str, stage: int | None) -> None:
    """A line too many is one that the run writes again; a line too few is lost."""
    steps = np.random.default_rng(0).integers(0, 3, 40).cumsum().tolist()
    rows = [{"step": s, "stage": 1 + (s > 20), "text": "x" * (s % 7)} for s in steps]
    for step in (1, steps[0], 20, 21, steps[-1], 10**6):
        path = tmp_path / LOG
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
        with Log(RunFolder(tmp_path), step, stage=stage) as log:
            log.write({"step": step, "new": 1.0})
        kept = [row for row in rows if row["step"] <= step and (stage is None or row["stage"] <= stage)]
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, {"step": step, "new": 1.0}]


@pytest.mark.parametrize("killed", ["never", "before the new file", "before the checkpoint"])
def test_files_put_aside_are_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """Rows are neither lost nor doubled, however many files a run goes back; a number is never given twice."""
    monkeypatch.setattr(log_module, "_LARGEST", 300)
    folder, rows = RunFolder(tmp_path), [{"step": step, "loss": 1 / step} for step in range(1, 101)]

    def write(begun: int, end: int) -> None:
        with Log(folder, begun) as log:
            for row in rows[begun:end]:
                log.write(row)
                if row["step"] % 5 == 0:
                    log.sync()

    write(0, 60)
    files = folder.logs
    assert len(files) > 4
    assert folder.rows == rows[:60]
    if killed == "before the new file":
        files[-1].unlink()
    again = {"never": 60, "before the new file": 50, "before the checkpoint": 12}[killed]
    (tmp_path / "log.0000x.jsonl").touch()  # not one of them
    write(again, 100)
    assert folder.rows == rows
    assert all(path.stat().st_size < 800 for path in folder.logs)

    folder.logs[0].unlink()
    kept = len(folder.rows)
    write(100, 100)
    with Log(folder, 100) as log:
        for step in range(101, 121):
            log.write({"step": step, "loss": 1.0})
            log.sync()
    assert len(folder.rows) == kept + 20


def test_a_run_that_starts_has_an_empty_log(tmp_path: Path) -> None:
    for name in (LOG, "log.0001.jsonl"):
        (tmp_path / name).write_text('{"step": 3}\n')
    with Log(RunFolder(tmp_path)):
        pass
    assert RunFolder(tmp_path).logs == [tmp_path / LOG]
    assert (tmp_path / LOG).read_text() == ""
