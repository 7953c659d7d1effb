"""Regularizers: terms that are added to the loss of any method, around it."""

from manyviews.regularizers.rescue import Rescued

__all__ = ["Rescued"]
