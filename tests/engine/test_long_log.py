"""A log is rewound at its end, without reading the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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


def test_a_run_that_starts_has_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"step": 3}\n')
    with Log(RunFolder(tmp_path)):
        pass
    assert (tmp_path / LOG).read_text() == ""
