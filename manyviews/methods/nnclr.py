"""NNCLR: an image's positive is its nearest neighbor among earlier images, and not its own other view.

Each projection is replaced by the most similar one in a queue of earlier batches' projections. The prediction of the
image's other view must pick it out among the predictions of the whole batch, on all ranks. Positives then differ by
more than an augmentation can change.

With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning, Dwibedi et al. 2021.

    L = 1/2 [ l(NN(z_a), p_b) + l(NN(z_b), p_a) ],   l(n, p) = -log( exp(n_i.p_i / t) / sum_k exp(n_i.p_k / t) )

The cookbook prints the loss without logarithm and temperature; both are the paper's. Neighbors are sought before the
batch's own first views enter the queue, and receive no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, exactly, paired
from manyviews.objectives import directed_info_nce
from manyviews.targets import Queue
from manyviews.types import Progress
from manyviews.views import SIMCLR, Global, View, Views


class NNCLR(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type, two of each image.
        hidden_dim: width of the projector's two hidden layers.
        output_dim: dimensions of the contrasted space.
        prediction_dim: width of the predictor's hidden layer.
        queue_size: projections among which neighbors are sought.
        temperature: temperature of the softmax over cosine similarities.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, color=SIMCLR),
        hidden_dim: int = 2048,
        output_dim: int = 256,
        prediction_dim: int = 4096,
        queue_size: int = 98304,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.views = paired(exactly(view, 2, "NNCLR"))
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim, last_norm="bn"))
        self.predictor = mlp(output_dim, prediction_dim, output_dim)
        self.queue = Queue(queue_size, output_dim)
        self.temperature = temperature

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        za, zb = views.map(self.online)
        na, nb = self.queue.nearest(za), self.queue.nearest(zb)
        pa, pb = self.predictor(za), self.predictor(zb)
        self.queue.push(za)
        yield {
            "info_nce": (directed_info_nce(na, pb, self.temperature) + directed_info_nce(nb, pa, self.temperature)) / 2
        }
