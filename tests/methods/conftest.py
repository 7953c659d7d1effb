"""One batch of small random pictures for every method."""

import pytest

from manyviews.recipes import get
from manyviews.testing import pictures
from manyviews.types import Batch
from manyviews.views import CutMix, Cutout, Global, Local, Rotation, Shuffle

TASKS = (
    Global(2, 32, (0.25, 1.0)),
    Local(2, 16),
    Cutout(1, 32),
    Rotation(1, 32),
    Shuffle(1, 32),
    CutMix(1, 32),
)
"""Every spatial transformation as a task."""


canvases = pictures


def pairs(name: str) -> bool:
    """Whether a method compares two views of an image."""
    settings = get(f"{name}_tiny").method.settings
    several = settings.get("views", settings.get("tasks"))
    return (settings["view"] if several is None else several[0]).count > 1


@pytest.fixture
def batch() -> Batch:
    return canvases()
