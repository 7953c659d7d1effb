"""How image files become pixels: which channels, between which values, which pictures of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from manyviews.errors import require

MAX_PIXELS = 178_956_970
"""Pillow's own limit, half a gigabyte of RGB. A larger image counts as a decompression bomb."""


@dataclass(frozen=True)
class Reading:
    """How image files become pixels of eight bits. It belongs to a trained encoder as its mean and std do.

    Attributes:
        channels: 3 for RGB, 1 for gray, another number for so many bands as they come; or the bands to take, in this
            order, counted from 0.
        range: the values that become black (0) and white (255), for all images alike; None for the whole range of the
            files' type.
        frames: which pictures of a file that holds several (a stack, pages, an animation).
        max_pixels: an image of more pixels is not read.

    Raises:
        UserError: a value out of its range.
    """

    channels: int | tuple[int, ...] = 3
    range: tuple[float, float] | None = None
    frames: Literal["first", "middle", "all"] = "first"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        chosen = self.channels
        good = chosen >= 1 if isinstance(chosen, int) else len(chosen) > 0 and min(chosen) >= 0
        require(good, self, "channels", "a number of 1 or more, or the bands to take, counted from 0")
        pair = self.range is None or (len(self.range) == 2 and self.range[0] < self.range[1])
        require(pair, self, "range", "an increasing pair")
        require(self.max_pixels >= 1, self, "max_pixels", "1 or more")

    @property
    def count(self) -> int:
        """The number of channels."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @property
    def words(self) -> str:
        """Its channels and its range, for messages."""
        if isinstance(self.channels, int):
            channels = f"{self.channels} channel{'s' * (self.channels != 1)}"
        else:
            channels = f"the bands {', '.join(map(str, self.channels))}"
        return channels + ("" if self.range is None else f" between {self.range[0]:g} and {self.range[1]:g}")

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Reading:
        """What `to_dict` gave, perhaps by way of JSON."""
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**found)


RGB = Reading()
"""Color images of eight bits a channel: what nearly all files are."""
