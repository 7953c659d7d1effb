"""Self-supervised visual pretraining: a folder of unlabeled images in, a backbone you can trust out.

    import manyviews as mv

    run = mv.pretrain("photos/", recipe="simclr_photos")
    report = run.evaluate("labeled/")
    run.export("timm", "backbone/")

The parts work alone, in anybody's loop: `mv.views.Global`, `mv.methods.BYOL`, `mv.objectives.nt_xent`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from manyviews import machine

# Large tensors of the CPU in large pages, which PyTorch asks for if this is set before the first tensor: Linux fills
# memory that a step takes anew in 4 KiB at a time else, for a third of the time that a batch of views takes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

machine.limit_threads()

_FUNCTIONS = {
    "prepare": "manyviews.run",
    "pretrain": "manyviews.run",
    "resume": "manyviews.run",
    "evaluate": "manyviews.run",
    "embed": "manyviews.run",
    "export": "manyviews.run",
    "subspaces": "manyviews.run",
    "Run": "manyviews.run",
    "diagnose": "manyviews.studies",
    "duplicates": "manyviews.studies",
    "page": "manyviews.studies",
    "segment": "manyviews.studies",
    "detect": "manyviews.studies",
    "propagate": "manyviews.studies",
    "select": "manyviews.selection",
    "sweep": "manyviews.sensitivity",
    "transfer": "manyviews.suite",
    "load": "manyviews.pretrained",
    "Pretrained": "manyviews.pretrained",
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
    "report",
    "schedules",
    "targets",
    "views",
)

__all__ = [*_FUNCTIONS, *_STAGES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and timm take seconds, and `manyviews --help` needs neither.
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _STAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
