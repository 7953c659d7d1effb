"""Self-supervised visual pretraining: a folder of unlabeled images in, a backbone you can trust out.

    import manyviews as mv

    run = mv.pretrain("photos/")
    report = run.evaluate("labeled/")
    run.export("timm", "backbone/")

Each part also works alone, in any training loop: `mv.views.Global`, `mv.methods.BYOL`, `mv.objectives.nt_xent`.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

from manyviews import machine

# Use huge pages for CPU tensors. Must be set before the first one. Otherwise Linux zeroes memory 4 KiB at a time,
# a third of the time of making views.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

machine.limit_threads()

# A verb has the same name here and on the command line, and a file of its own.
_VERBS = (
    "adapt",
    "choose",
    "curate",
    "detect",
    "diagnose",
    "distill",
    "duplicates",
    "embed",
    "evaluate",
    "export",
    "finish",
    "predict",
    "prepare",
    "pretrain",
    "propagate",
    "report",
    "reproduce",
    "resume",
    "search",
    "segment",
    "select",
    "serve",
    "subspaces",
    "sweep",
    "transfer",
)
_FUNCTIONS = {verb: f"manyviews.verbs.{verb}" for verb in _VERBS} | {
    "Run": "manyviews.verbs.run",
    "load": "manyviews.weights",
    "Pretrained": "manyviews.weights",
    "UserError": "manyviews.errors",
}
_STAGES = (
    "backbones",
    "data",
    "engine",
    "evaluation",
    "heads",
    "methods",
    "objectives",
    "recipes",
    "reporting",
    "schedules",
    "sklearn",
    "targets",
    "tuning",
    "views",
    "weights",
)
_RENAMED = {"page": "report"}  # kept for one release

__all__ = [*_FUNCTIONS, *_STAGES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and timm take seconds, and `manyviews --help` needs neither.
    if name in _RENAMED:
        warnings.warn(f"manyviews.{name} is now manyviews.{_RENAMED[name]}.", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _STAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
