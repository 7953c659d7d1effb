"""Parts of a method that are no parameters, and move by themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manyviews.types import Progress


class Moving(nn.Module):
    """A part of a method that moves once in every step, after the optimizer. A method moves all that it has.

    Attributes:
        restarted: trained parameters that the last move gave fresh values.
    """

    restarted: Sequence[nn.Parameter] = ()

    def move(self, at: Progress) -> None:
        """Move: the step `at` is over, and the parameters have their new values."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was collected during a step that does not count, because its gradient was not finite."""
