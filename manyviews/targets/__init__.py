"""Targets: what else moves. Small modules whose state decides what is learned, and is saved with it."""

from manyviews.targets.balance import Balance
from manyviews.targets.center import Center
from manyviews.targets.ema import EMA
from manyviews.targets.moving import Moving
from manyviews.targets.queue import Queue
from manyviews.targets.snapshot import Snapshot
from manyviews.targets.stages import StagedTeacher
from manyviews.targets.teacher import Teacher

__all__ = ["EMA", "Balance", "Center", "Moving", "Queue", "Snapshot", "StagedTeacher", "Teacher"]
