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
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.modules.batchnorm import _BatchNorm

from manyviews import distributed
from manyviews.errors import UserError, require
from manyviews.methods import Method, Terms
from manyviews.objectives import consistency
from manyviews.regularizers.regularized import Heard, projection
from manyviews.settings import Regularizer
from manyviews.types import Batch, Canvases
from manyviews.views import Crop, Strong, Views, frozen_statistics

_FEW = 8  # images over which a BatchNorm begins to be one


@dataclass(frozen=True)
class Rescue(Regularizer):
    """A term that makes the easiest images of each batch harder ("Rescuing easy samples", Wang et al.), on any method.

    The strong views are drawn after the images are chosen, on the device: the extra work is that of k more views. (A
    method that trains on one view, MoCo v2, has to project the other one as well, without gradient.)

    Attributes:
        scale: weight of the term in the loss, the paper's s.
        k: images that are rescued, of all in a batch; N/64 if None, and at least 8 where there is BatchNorm.
        view: the strong views; RandAugment and a hole, at the size of the method's first view, if None.
    """

    scale: float
    k: int | None = None
    view: Strong | None = None

    def __post_init__(self) -> None:
        require(self.scale >= 0, self, "scale", "0 or more")
        require(self.k is None or self.k >= 2, self, "k", "2 or more")

    def check(self, method: Method) -> None:
        first = method.views[0]
        if method.online is None or not isinstance(first, Crop):
            raise UserError(f"{type(method).__name__} compares no views of an image: leave out Rescue.")
        if first.count < 2:
            raise UserError(f"To rescue easy images takes two {first.name} views of each: set its count to 2.")

    def check_batch(self, batch: int, shares: int) -> None:
        if self.k is not None and (self.k % shares or self.k > batch):
            raise UserError(
                f"{self.k} images cannot be rescued of a batch of {batch}, shared evenly in {shares} parts: change the "
                "k of Rescue."
            )

    def fewer(self, images: int) -> Rescue:
        return self if self.k is None else replace(self, k=min(self.k, max(2, images // 4)))

    def views(self, method: Method) -> tuple[Strong, ...]:
        return (self._strong(method),)

    def terms(self, method: Method, views: Views, heard: Heard, parts: int) -> Terms:
        if heard.turn > 0:
            return {}
        za = heard.online[0]
        zb = next((z[1] for z in (heard.target, heard.online) if len(z) > 1), None)
        if zb is None:  # a method that trains on one view and shuffles the other one's batch
            with torch.no_grad(), frozen_statistics(method.online):
                zb = projection(method.online(views[method.views[0].name, 1]))
        return {"rescue": self.scale * self._term(method, views, za, zb.detach(), parts)}

    def _term(self, method: Method, views: Views, za: Tensor, zb: Tensor, parts: int) -> Tensor:
        """Eq. 1 on the easiest images of all ranks, on every rank: `za` and `zb` are `b d`."""
        branch, view = method.online, self._strong(method)
        b, world, rank = len(za), distributed.world_size(), distributed.rank()
        k = self.count(branch, b * world, world, parts)
        with torch.no_grad():
            similarity = distributed.gather(cosine_similarity(za.float(), zb.float(), dim=1))
            easiest = similarity.topk(k).indices
            row = easiest - rank * b
            ours = (row >= 0) & (row < b)
            row = row.clamp(0, b - 1)
            # Each rank gives what it holds of them, and takes an even share: they may all have been on one rank.
            chosen = views.batch[row]
            if world > 1:
                chosen = _from_all(chosen, ours)
        x = views.of(chosen.chunk(world)[rank], (view,))[view.name, 0]
        with frozen_statistics(branch):
            z = branch(x)
        zs = distributed.gather(projection(z))
        return consistency(distributed.add(za[row] * ours[:, None]), zs)

    def count(self, branch: nn.Module, n: int, world: int, parts: int) -> int:
        """How many of n images, so that every rank has as many."""
        norms = [m for m in branch.modules() if isinstance(m, _BatchNorm)]
        norm = bool(norms)
        shared = all(isinstance(m, (nn.SyncBatchNorm, distributed.SyncBatchNorm)) for m in norms)
        if self.k is None:
            least = 1 if shared else _FEW  # on each rank: its statistics are of them alone
            return min(n, world * max(least, math.ceil(max(_FEW if norm else 1, n / 64) / world)))
        k, least = self.k // parts, max(2 if norm else 1, world * (1 if shared else 2))
        if k % world or not least <= k <= n:
            raise UserError(
                f"Of {n} images on {world} processes, {k} cannot be rescued: set the k of Rescue to a multiple of "
                f"{world * parts} from {least * parts} to {n * parts}."
            )
        return k

    def _strong(self, method: Method) -> Strong:
        first = method.views[0]
        assert isinstance(first, Crop)
        return self.view or Strong(size=first.size)


def _from_all(batch: Batch, ours: Tensor) -> Batch:
    """The images of which each rank holds those of `ours`, bool `b`, on every rank."""

    def total(x: Tensor) -> Tensor:
        return distributed.total(x * ours.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))

    height, width = (-distributed.least(-side) for side in batch.canvases.room)
    canvases = Canvases.dense(total(batch.canvases.padded((height, width))), total(batch.extent))
    return Batch(total(batch.index), canvases, {name: total(x) for name, x in batch.columns.items()})
