"""What a run and an evaluation came to, for people: a screen of text, and pictures."""

from manyviews.reporting import plots, summary

__all__ = ["plots", "summary"]
