"""What a method may look at: the base of every kind of view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from manyviews.errors import UserError, require
from manyviews.types import Batch
from manyviews.views.draws import Draws

Range = tuple[float, float]
Values = tuple[float, ...]
"""One number for each channel."""


@dataclass(frozen=True)
class View(ABC):
    """A kind of view, as a frozen setting: whatever can be made of a batch, several times for each image.

    A view of pixels is a `Crop`. Anything else, such as a caption, derives from this class and says in `needs` of which
    columns of a batch it is made.

    Attributes:
        count: views of each image.
        name: the kind's name among a method's views; the class's name in lower case if empty. Two kinds of one class
            need names of their own.

    Raises:
        UserError: a value out of its range.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    count: int = 1
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        require(self.count >= 1, self, "count", "1 or more")
        if not self.name:
            object.__setattr__(self, "name", type(self).__name__.lower())

    @property
    def target(self) -> str:
        """The name of the kind whose targets these views predict."""
        return "global"

    def place(self, draws: Draws, i: int) -> Draws:
        """The draws of view `i`."""
        return draws.at(f"{self.name}/{i}")

    @abstractmethod
    def make(self, batch: Batch, i: int, draws: Draws, mean: Values, std: Values) -> Any:
        """View `i` of every image.

        Args:
            batch: the images, with the columns in `needs`.
            i: number of the view among the kind's.
            draws: the view's own, from `place`.
            mean, std: per channel in [0, 1], for views of pixels, which are normalized.

        Returns:
            a tensor with a row for each image, without gradient.
        """

    def parameters(self, draws: Draws) -> Tensor:
        """Numbers of about 1 that a predictor may be told of the view: float32, `b p`; here none."""
        return torch.empty(len(draws.index), 0, device=draws.index.device)

    def blend(self, targets: Tensor, draws: Draws) -> Tensor:
        """A view's target, given the targets of the batch's images, `b d`: here that of its own image.

        `targets` must not be written to.
        """
        return targets


def distinct(kinds: Sequence[View]) -> tuple[View, ...]:
    """The kinds of view themselves, if no two have the same name. Raises UserError otherwise."""
    names = [k.name for k in kinds]
    if len(set(names)) < len(names):
        raise UserError(
            f"View types must have distinct names, not {', '.join(names)}: use `count` for more views of a kind, or "
            "give each a `name`."
        )
    return tuple(kinds)
