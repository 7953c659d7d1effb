"""How long a strategy will take on this machine: measured before it starts."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from manyviews import machine
from manyviews.backbones import Encoder, ExternalEncoder
from manyviews.data.canvas import sample
from manyviews.data.source import Source
from manyviews.engine.precision import resolve
from manyviews.evaluation.features import frozen, test_images
from manyviews.tuning.strategies import MLP, Strategy, Unfreeze

_IMAGES, _BATCH = 32, 16


@dataclass(frozen=True)
class Pace:
    """Seconds for one image on this machine.

    Attributes:
        read: reading and decoding it.
        encode: a look at it.
        learn: a step of the whole encoder.
    """

    read: float
    encode: float
    learn: float

    def features(self, images: int) -> float:
        """Seconds until the features of so many images are there."""
        return images * (self.read + self.encode)

    def most(self, strategy: Strategy, images: int, validation: int) -> float:
        """Seconds of a strategy, if it does not stop early.

        Args:
            strategy: with its settings.
            images: number of training images.
            validation: number of validation images.
        """
        if isinstance(strategy, MLP):
            return strategy.crops * images * self.encode
        descent = getattr(strategy, "descent", None)
        if descent is None:
            return 0.0
        per_epoch = math.ceil(images / descent.batch)
        epochs: int = max(descent.epochs, math.ceil(descent.fewest / per_epoch))
        stages: int = strategy.blocks if isinstance(strategy, Unfreeze) else 1
        return stages * epochs * (images * self.learn + validation * self.encode)


def measure(encoder: Encoder | ExternalEncoder, source: Source, size: int, device: torch.device) -> Pace:
    """Read a few images, look at a few, and learn a step from noise with a copy of the encoder.

    A module from outside may not be able to learn: three looks stand for its step.
    """
    begun, few = time.monotonic(), source.subset(sample(source)[:_IMAGES])
    for _ in test_images(few, size, len(few)):
        pass
    read = (time.monotonic() - begun) / len(few)
    x = torch.rand(_BATCH, encoder.channels, size, size, device=device).to(memory_format=torch.channels_last)
    learns = isinstance(encoder, Encoder)
    net = copy.deepcopy(encoder).to(device).to(memory_format=torch.channels_last).requires_grad_(learns)
    low = torch.autocast(device.type, torch.bfloat16, enabled=resolve("auto", device) == "bfloat16")

    def look() -> float:
        start = time.monotonic()
        with frozen(net):
            net(x)
        machine.wait(device)
        return (time.monotonic() - start) / _BATCH

    def learn() -> float:
        start = time.monotonic()
        with low:
            found = net(x)
        F.mse_loss(found.float(), torch.zeros_like(found, dtype=torch.float32)).backward()
        machine.wait(device)
        return (time.monotonic() - start) / _BATCH

    net.eval()  # BatchNorm as most strategies have it
    look()  # the first of a size allocates
    encode = min(look(), look())
    if not learns:
        return Pace(read, encode, 3 * encode)
    learn()
    return Pace(read, encode, min(learn(), learn()))
