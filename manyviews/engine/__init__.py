"""The loop that trains a method in a run folder."""

from manyviews.engine.stopping import Stopped

__all__ = ["Stopped"]
