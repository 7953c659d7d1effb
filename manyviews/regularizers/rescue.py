"""Rescuing easy samples: strong views of those images whose two views are already nearly the same to the network.

Of all images in a batch, the k whose two projections are most similar are augmented once more, strongly, from the
original; their strong views' projections are pulled to those of the first views.

Rescuing Easy Samples in Self-Supervised Pretraining, Wang et al., algorithm 1 and eq. 1 and 2.

    L = L_SSL + s L_topk,   L_topk = -mean over the k images of cos(z_a, z_s)

It is the same for every method that projects two views of an image. z_a and z_b are projections of the first two views
as they come out of the projector, before a predictor: z_a the trained network's, z_b the target network's where a
method has one (but for MoCo v2, whose keys are of a shuffled batch). As printed, the gradient goes through z_a as well
as z_s. The paper says nothing about ranks: the k are the easiest of all ranks, and the ranks share the work on them
evenly. Nor about BatchNorm: strong views are normalized by their own statistics, of which running ones learn nothing.
Its k is a 64th of a batch of thousands; of small batches more are taken, because a BatchNorm over two images would make
their projections exactly opposite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.modules.batchnorm import _BatchNorm

from manyviews import distributed
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.methods import Method
from manyviews.methods.method import Branch, Terms
from manyviews.objectives import consistency
from manyviews.settings import Rescue
from manyviews.types import Progress
from manyviews.views import Strong, Views, frozen_statistics

_FEW = 8  # images over which a BatchNorm begins to be one


class Rescued(Method):
    """A method whose easiest images are rescued: a method itself.

    The strong views are drawn after the images are chosen, on the device: the extra work is that of k more views. (A
    method that trains on one view, MoCo v2, has to project the other one as well, without gradient.)

    Args:
        method: whose loss is added to.
        settings: of the term.
        parts: that a batch is accumulated in: each rescues its share of k.

    Raises:
        UserError: the method does not project two views of an image.
    """

    def __init__(self, method: Method, settings: Rescue, parts: int = 1) -> None:
        super().__init__()
        self.parts = parts
        self.method = method
        self.settings = settings
        self.views = method.views
        self.view = settings.view or Strong(size=method.views[0].size)
        self.constant_lr = tuple(f"method.{prefix}" for prefix in method.constant_lr)
        if not any(map(_trained_branch, method.modules())):
            raise UserError(f"{type(method).__name__} compares no views of an image: leave out rescue.")
        if sum(kind.count for kind in method.views if kind.name == method.views[0].name) < 2:
            raise UserError(
                f"To rescue easy images takes two {method.views[0].name} views of each: set its count to 2."
            )

    @property
    def kept_encoder(self) -> Encoder:
        return self.method.kept_encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        branch = next(m for m in self.method.modules() if _trained_branch(m))
        seen: list[Tensor] = []
        targets: list[Tensor] = []
        # The method is not asked to hand out its projections: whatever it does with them, they pass through here.
        listening = [
            m.register_forward_hook(lambda _, x, z, heard=heard: heard.extend(_projection(z).split(len(views))))
            for m in self.method.modules()
            if isinstance(m, Branch)
            for heard in (seen if m is branch else targets,)
        ]
        try:
            steps = self.method.loss(views, at)
            terms = next(steps)
            for hook in listening:
                hook.remove()
            za, zb = seen[0], next((z[1] for z in (targets, seen) if len(z) > 1), None)
            if zb is None:  # a method that trains on one view and shuffles the other one's batch
                with torch.no_grad(), frozen_statistics(branch):
                    zb = _projection(branch(views[self.views[0].name, 1]))
            yield terms | {"rescue": self.settings.scale * self._term(branch, views, za, zb.detach())}
            del terms, za, zb
            seen.clear()
            yield from steps
        finally:
            for hook in listening:
                hook.remove()

    def _term(self, branch: Any, views: Views, za: Tensor, zb: Tensor) -> Tensor:
        """Eq. 1 on the easiest images of all ranks, on every rank: `za` and `zb` are `b d`."""
        b, world, rank = len(za), distributed.world_size(), distributed.rank()
        k = self._k(branch, b * world, world)
        with torch.no_grad():
            similarity = distributed.gather(cosine_similarity(za.float(), zb.float(), dim=1))
            easiest = similarity.topk(k).indices
            row = easiest - rank * b
            ours = (row >= 0) & (row < b)
            row = row.clamp(0, b - 1)
            # Each rank gives what it holds of them, and takes an even share: they may all have been on one rank.
            chosen = views.canvases[row].map(
                lambda x: distributed.total(x * ours.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))
            )
        x = views.of(chosen.chunk(world)[rank], (self.view,))[self.view.name, 0]
        with frozen_statistics(branch):
            z = branch(x)
        zs = distributed.gather(_projection(z))
        return consistency(distributed.add(za[row] * ours[:, None]), zs)

    def _k(self, branch: nn.Module, n: int, world: int) -> int:
        """How many of n images, so that every rank has as many."""
        norms = [m for m in branch.modules() if isinstance(m, _BatchNorm)]
        norm = bool(norms)
        shared = all(isinstance(m, (nn.SyncBatchNorm, distributed.SyncBatchNorm)) for m in norms)
        if self.settings.k is None:
            least = 1 if shared else _FEW  # on each rank: its statistics are of them alone
            return min(n, world * max(least, math.ceil(max(_FEW if norm else 1, n / 64) / world)))
        k, least = self.settings.k // self.parts, max(2 if norm else 1, world * (1 if shared else 2))
        if k % world or not least <= k <= n:
            raise UserError(
                f"Of {n} images on {world} processes, {k} cannot be rescued: set rescue.k to a multiple of "
                f"{world * self.parts} from {least * self.parts} to {n * self.parts}."
            )
        return k

    def before_update(self, at: Progress) -> None:
        self.method.before_update(at)

    def after_update(self, at: Progress) -> None:
        self.method.after_update(at)


def _projection(z: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Of a Gaussian, its mean."""
    return z[0] if isinstance(z, tuple) else z


def _trained_branch(module: Any) -> bool:
    """Whether this is the network that maps views to projections, and not a target that follows it."""
    return isinstance(module, Branch) and any(p.requires_grad for p in module.parameters())
