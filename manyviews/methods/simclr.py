"""SimCLR: pick the other view of the same image out of all other views in the batch.

Two views of each image are encoded and projected; the normalized temperature-scaled cross-entropy attracts the two
and repels the other 2(N-1) views of the batch, on all ranks.

A Simple Framework for Contrastive Learning of Visual Representations, Chen et al. 2020.

    L = mean over the 2N views i, with partner j, of  -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) )

Beyond the paper: with more than two views of an image, the loss is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, mean_of, paired
from manyviews.objectives import nt_xent
from manyviews.types import Progress
from manyviews.views import SIMCLR, Global, View, Views


class SimCLR(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type, two or more of each image.
        hidden_dim: width of the projector's hidden layer.
        output_dim: dimensions of the contrasted space.
        temperature: temperature of the softmax over cosine similarities.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, color=SIMCLR),
        hidden_dim: int = 2048,
        output_dim: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.views = paired(view)
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, output_dim, last_norm="bn_no_affine"))
        self.temperature = temperature

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        pairs = combinations(views.map(self.online), 2)
        yield {"nt_xent": mean_of(nt_xent(za, zb, self.temperature) for za, zb in pairs)}
