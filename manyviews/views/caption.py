"""A view that is no picture: the caption of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from manyviews.errors import require
from manyviews.types import Batch
from manyviews.views.draws import Draws
from manyviews.views.view import Values, View


@dataclass(frozen=True)
class Caption(View):
    """The UTF-8 bytes of an image's caption.

    Attributes:
        length: bytes that are read; the rest of a longer caption is left out.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)

    length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.count == 1, self, "count", "1: an image shows one caption in each epoch")
        require(self.length >= 1, self, "length", "1 or more")

    def make(self, batch: Batch, i: int, draws: Draws, mean: Values, std: Values) -> Tensor:
        """int64, `b n`, n at most `length`: bytes, and zeros after the end."""
        return batch.columns["text"][:, : self.length].long()
