"""MoCo v2: contrast with a long queue of keys from a slowly moving encoder.

A query must pick out the key of the other view of its image among a queue of earlier batches' keys. The key encoder
follows the query encoder by moving average, which keeps the queue consistent.

Momentum Contrast, He et al. 2020; Improved Baselines with Momentum Contrastive Learning, Chen et al. 2020.

    L = -log( exp(q.k+ / temperature) / (exp(q.k+ / temperature) + sum_queue exp(q.k / temperature)) )

Keys are encoded from a batch that is shuffled across ranks, so that BatchNorm statistics do not betray which key
belongs to which query; on a single rank there is nothing to shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from manyviews import distributed
from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, exactly, paired
from manyviews.objectives import info_nce
from manyviews.schedules import Schedule
from manyviews.targets import EMA, Queue
from manyviews.types import Progress
from manyviews.views import MOCO_V2, Global, View, Views


class MoCoV2(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type; the first of its two views is the query, the second the key.
        hidden_dim: width of the projector's hidden layer.
        output_dim: dimensions of the contrasted space.
        queue_size: keys that serve as negatives.
        temperature: temperature of the softmax over cosine similarities.
        momentum: momentum of the key encoder's moving average.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, area=(0.2, 1.0), color=MOCO_V2),
        hidden_dim: int = 2048,
        output_dim: int = 128,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: Schedule | float = 0.999,
    ) -> None:
        super().__init__()
        self.views = paired(exactly(view, 2, "MoCo v2"))
        self.query = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, output_dim, norm=False))
        self.key = EMA(self.query, momentum)
        self.queue = Queue(queue_size, output_dim)
        self.temperature = temperature

    @property
    def online(self) -> Branch:  # type: ignore[override]
        return self.query

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        name = self.views[0].name
        with torch.no_grad():
            x, order = distributed.shuffle(views[name, 1], seed=at.step)
            k = distributed.unshuffle(self.key(x), order)  # normalized in float32, where it is used
        self.queue.push(k)
        q = self.query(views[name, 0])
        yield {"info_nce": info_nce(q, k, self.queue.rows, self.temperature)}
