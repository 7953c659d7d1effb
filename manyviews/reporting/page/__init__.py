"""A page about runs: how they trained, how good they are, what they see. It opens from disk, without a network."""

from manyviews.reporting.page.build import write

__all__ = ["write"]
