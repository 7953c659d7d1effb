"""Runs and evaluations for people to read: a screen of text, plots, and a page."""

from manyviews.reporting import plots, summary

__all__ = ["plots", "summary"]
