"""Targets: what else moves. Small modules whose state decides what is learned, and is saved with it."""

from manyviews.targets.center import Center
from manyviews.targets.ema import EMA
from manyviews.targets.moving import Moving
from manyviews.targets.queue import Queue
from manyviews.targets.stages import StagedTeacher

__all__ = ["EMA", "Center", "Moving", "Queue", "StagedTeacher"]
