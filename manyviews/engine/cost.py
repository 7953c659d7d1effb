"""What training costs in time, memory and traffic, from sizes alone: the model of docs/scale.md.

Pure arithmetic. Work is in FLOP (a multiplication and an addition are two), times in seconds, sizes in bytes. The speed
of a machine enters as a rate that was measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

BACKWARD = 2.0
"""Work of a backward pass, in forward passes: one product for the inputs, one for the weights."""


@dataclass(frozen=True)
class Transformer:
    """A vision transformer.

    Attributes:
        width: dimension of a token.
        depth: number of blocks.
        patch: side of a patch, pixels.
        hidden: units of a block's MLP; 0 for four times the width.
        gated: whether the MLP is a SwiGLU, which has three matrices instead of two.
        prefix: tokens besides the patches: the class token and registers.
    """

    width: int
    depth: int
    patch: int = 16
    hidden: int = 0
    gated: bool = False
    prefix: int = 1

    @property
    def block(self) -> int:
        """Parameters of a block's matrices."""
        return (4 * self.width + (2 + self.gated) * (self.hidden or 4 * self.width)) * self.width

    @property
    def parameters(self) -> int:
        """Parameters of all blocks and of the patch projection; norms, biases and positions are left out."""
        return self.depth * self.block + 3 * self.patch**2 * self.width

    def tokens(self, size: int) -> int:
        """Tokens of an image of that side."""
        return (size // self.patch) ** 2 + self.prefix

    def forward(self, size: int) -> float:
        """FLOP of a forward pass of one image of that side: matrices, and attention's two products."""
        n = self.tokens(size)
        attention = 4.0 * n * n * self.width * self.depth
        return 2.0 * n * self.depth * self.block + attention + 6.0 * (n - self.prefix) * self.patch**2 * self.width

    def activations(self, size: int, checkpointed: bool = False) -> float:
        """Bytes that a forward pass of one image keeps for its backward pass, in 16 bits with fused attention.

        34 bytes for each token, dimension and block (Korthikanti et al. 2022, equation 2, without the scores), or with
        checkpoints at blocks the input of each block, and one block whole.
        """
        each = float(self.tokens(size) * self.width)
        return each * (2 * self.depth + 34) if checkpointed else 34 * each * self.depth


def work(forward: Callable[[int], float], trained: Iterable[int], frozen: Iterable[int] = ()) -> float:
    """FLOP of a step for each image.

    Args:
        forward: FLOP of a forward pass of one view of that side.
        trained: sides of the views that the network learns from.
        frozen: sides of the views that only its moving average, or a teacher of the same size, looks at.
    """
    return (1 + BACKWARD) * sum(map(forward, trained)) + sum(map(forward, frozen))


@dataclass(frozen=True)
class Link:
    """A network between ranks.

    Attributes:
        latency: seconds of a message.
        bandwidth: bytes per second and rank.
    """

    latency: float
    bandwidth: float

    def average(self, size: float, ranks: int) -> float:
        """Seconds of averaging so many bytes over the ranks in a ring: each travels twice, less a rank's own share."""
        return 0.0 if ranks == 1 else 2 * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)

    def gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the others' bytes, `size` from each."""
        return (ranks - 1) * (self.latency + size / self.bandwidth)


def step(images: float, each: float, rate: float, traffic: float = 0.0, hidden: float = 0.0) -> float:
    """Seconds of a step.

    Args:
        images: images of a rank.
        each: FLOP for each image: see `work`.
        rate: FLOP per second that a rank reaches.
        traffic: seconds in which ranks exchange gradients.
        hidden: share of the backward passes in which they can do it meanwhile, in [0, 1].
    """
    compute = images * each / rate
    return compute + max(0.0, traffic - hidden * compute * BACKWARD / (1 + BACKWARD))


def state(parameters: float, ranks: int = 1, *, sharded: bool = False, averaged: bool = True) -> float:
    """Bytes of weights, gradients, Adam's two moments and, with `averaged`, a moving average, of a rank: all float32.

    With `sharded` (FSDP2) a rank holds its share of each, and the weights in use besides: see `gathered`.
    """
    return parameters * (20 if averaged else 16) / (ranks if sharded else 1)


def gathered(block: float) -> float:
    """Bytes of the weights in use under FSDP2: a block and the next one, in 16 bits."""
    return 2 * 2 * block


def checkpoint(parameters: float, averaged: bool = True) -> float:
    """Bytes of a checkpoint: everything of `state` except the gradients."""
    return parameters * (16 if averaged else 12)


def fit(x: Iterable[float], seconds: Iterable[float]) -> tuple[float, float]:
    """A fixed time and a time for each unit, `a + b x`, with the least relative squared errors. Both are 0 or more."""
    points = list(zip(x, seconds, strict=True))
    # Weighted least squares with weights 1/y^2, in closed form.
    w = [1 / y**2 for _, y in points]
    s, sx, sxx = sum(w), sum(v * p[0] for v, p in zip(w, points, strict=True)), 0.0
    sy, sxy = 0.0, 0.0
    for v, (p, y) in zip(w, points, strict=True):
        sxx, sy, sxy = sxx + v * p * p, sy + v * y, sxy + v * p * y
    b = (s * sxy - sx * sy) / (s * sxx - sx * sx)
    a = (sy - b * sx) / s
    return (a, b) if a >= 0 else (0.0, sxy / sxx)
