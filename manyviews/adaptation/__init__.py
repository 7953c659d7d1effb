"""Adaptation: which parts of an encoder learn, and what is added to them. Frozen settings for any training."""

from manyviews.adaptation.adaptation import LPFT, Adaptation, Frozen, Full, LastBlocks, Warmed
from manyviews.adaptation.lora import LoRA

__all__ = ["LPFT", "Adaptation", "Frozen", "Full", "LastBlocks", "LoRA", "Warmed"]
