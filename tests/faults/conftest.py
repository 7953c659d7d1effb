"""What faults share: the server of runs, pictures, and the count of what was injected, survived and lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import ROOT, Server, contents, pictures
from tests.faults.states import command

TIMES = float(os.environ.get("MANYVIEWS_FAULTS", "1"))
"""Share of the full number of random faults that is injected."""

SEED = int(os.environ.get("MANYVIEWS_FAULTS_SEED", "0"))

_COUNTED = list[tuple[str, int, list[str], str]]()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def server(scratch: Path) -> Iterator[Server]:
    found = Server(scratch)
    yield found
    found.close()


@pytest.fixture(scope="session")
def images(scratch: Path) -> Path:
    return pictures(scratch / "images")


@pytest.fixture(scope="session")
def whole(server: Server, scratch: Path, images: Path) -> Callable[[str], tuple[Path, dict[str, Any], float]]:
    """Of a kind of state: the folder of a run that nothing interrupted, its contents, and the seconds that it took."""
    known: dict[str, tuple[Path, dict[str, Any], float]] = {}

    def of(state: str) -> tuple[Path, dict[str, Any], float]:
        if state not in known:
            out = scratch / f"whole {state}"
            weights = of("hidden patches")[0] if state == "adaptation" else None
            ended = server.run(*command(state, images, out, weights))
            assert ended.code == 0, ended.text
            known[state] = out, contents(out), ended.seconds
        return known[state]

    return of


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str, int, list[str]], None]:
    """Count a fault: its name, how often it was injected, and a sentence for each time that something was lost."""

    def add(fault: str, injected: int, lost: list[str]) -> None:
        where = f"`{request.node.path.relative_to(ROOT).as_posix()}`"
        request.node.user_properties.append(("fault", [fault, injected, lost, where]))
        assert injected, f"{fault}: nothing was injected"
        assert not lost, f"{fault}: {len(lost)} of {injected} lost something; the first:\n" + "\n".join(lost[:9])

    return add


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _COUNTED.extend(tuple(value) for name, value in report.user_properties if name == "fault")  # type: ignore[misc]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it if `MANYVIEWS_FAULTS_JSON` names a file."""
    rows: dict[str, tuple[int, int, str]] = {}
    for fault, injected, lost, test in sorted(_COUNTED, key=lambda one: one[3]):
        before = rows.get(fault, (0, 0, test))
        rows[fault] = before[0] + injected, before[1] + len(lost), test
    if not rows:
        return
    terminalreporter.section("faults")
    wide = max(map(len, rows))
    terminalreporter.write_line(f"{'fault':{wide}}  injected  survived  lost")
    for fault, (injected, lost, _) in rows.items():
        terminalreporter.write_line(f"{fault:{wide}}  {injected:8}  {injected - lost:8}  {lost:4}")
    if (where := os.environ.get("MANYVIEWS_FAULTS_JSON")) is not None:
        table = [{"fault": name, "injected": n, "lost": lost, "test": test} for name, (n, lost, test) in rows.items()]
        Path(where).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
