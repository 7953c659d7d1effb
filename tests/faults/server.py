"""A process that imports the library once, and forks a child for each run that a fault is injected into.

It reads one request a line from standard input, as JSON, and answers each with a line on standard output. A child costs
milliseconds in place of seconds, so a thousand are affordable. The parent never computes, hence starts no threads.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


def serve(scratch: str) -> None:
    import matplotlib.pyplot  # noqa: F401
    import sklearn.linear_model
    import sklearn.pipeline
    import sklearn.preprocessing  # noqa: F401
    import torch

    import manyviews.cli  # noqa: F401

    torch.set_num_threads(1)
    # Children find every module and every compiled loop in memory: a first one tells which modules a run imports.
    names = Path(scratch) / "modules.txt"
    if (child := os.fork()) == 0:
        _first(names)
    os.waitpid(child, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names.read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        _compile()
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            answers.close()
            _run(request)
        code, used = _wait(child, begun, request)
        print(json.dumps({"code": code, "seconds": used}), file=answers, flush=True)


def _wait(child: int, begun: float, request: dict[str, Any]) -> tuple[int, float]:
    """The exit code of a child, or minus the signal that ended it, and its seconds on a processor.

    Signals are sent at their times, in seconds on a processor: others use the machine as well.
    """
    clock = (~child << 3) | 2  # a Linux process's own
    due, end = sorted((float(at), name) for at, name in request.get("signals", ())), begun + request["limit"]
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if due and time.clock_gettime(clock) >= due[0][0]:
            os.kill(child, signal.Signals[due.pop(0)[1]])
        if time.monotonic() > end:  # a hang shows as this
            os.kill(child, signal.SIGABRT)
        time.sleep(0.002)


def _run(request: dict[str, Any]) -> NoReturn:
    code, begun = 70, False
    try:
        out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(request.get("environment", {}))
        from tests.faults import inject

        if request.get("brief"):
            _without_pictures()
        if request.get("fault"):
            inject.install(**request["fault"])
        from manyviews.cli import main

        begun = True
        try:
            main(request["args"])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        # A signal that comes before the command begins is Python's to answer.
        if begun or not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
    finally:
        os._exit(code)


def _first(names: Path) -> NoReturn:
    """One run of each kind of network, and the names of the modules that it has imported."""
    import manyviews as mv

    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    _without_pictures()
    for recipe in ("simclr_tiny", "mae_tiny"):
        with contextlib.redirect_stderr(io.StringIO()):
            settings = {"data.batch_size": 16, "data.holdout": 0.3}
            mv.pretrain(pixels, recipe, epochs=1, out=names.with_name(recipe), settings=settings)
    names.write_text("\n".join(m for m in list(sys.modules) if m != "__main__" and not m.startswith("tests.")))
    os._exit(0)


def _compile() -> None:
    """Read the compiled loops that make views from Numba's cache, without starting threads."""
    import torch

    from manyviews import recipes
    from manyviews.engine.build import build_method
    from manyviews.types import Batch, Canvases
    from manyviews.views import Views

    images = [np.zeros((32, 32, 3), dtype=np.uint8)] * 2
    for name in ("byol_tiny", "mast_tiny", "mae_tiny"):
        method = build_method(recipes.get(name))
        batch = Batch(torch.arange(2), Canvases.packed(images))
        views = Views(batch, method.views, 0, 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        for view in method.views:
            views[view.name, 0]


def _without_pictures() -> None:
    """No plots, and no steps to measure the pace: most of the time of a run of seconds."""
    from manyviews.verbs import pretrain, resume

    for module in (pretrain, resume):
        module.draw_views = lambda *args: None
        module.draw_reconstructions = None
    pretrain.plots.training = lambda *args: []
    pretrain.measure = lambda *args: None


if __name__ == "__main__":
    serve(sys.argv[1])
