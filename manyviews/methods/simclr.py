"""SimCLR: pick the other view of the same image out of all other views in the batch.

Two views of each image are encoded and projected; the normalized temperature-scaled cross-entropy attracts the two
and repels the other 2(N-1) views of the batch, on all ranks.

A Simple Framework for Contrastive Learning of Visual Representations, Chen et al. 2020.

    L = mean over the 2N views i, with partner j, of  -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) )

SimCLR v2 (Big Self-Supervised Models are Strong Semi-Supervised Learners, Chen et al. 2020) has a head of three layers,
`layers=3`, and fine-tunes from inside of it: `manyviews adapt RUN --from-head-layer 1`.

Beyond the paper: with more than two views of an image, the loss is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from manyviews.backbones import Encoder
from manyviews.errors import UserError
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
        hidden_dim: width of the projector's hidden layers.
        output_dim: dimensions of the contrasted space.
        temperature: temperature of the softmax over cosine similarities.
        layers: number of the projector's layers.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, color=SIMCLR),
        hidden_dim: int = 2048,
        output_dim: int = 128,
        temperature: float = 0.1,
        layers: int = 2,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise UserError(f"The projector of SimCLR has 1 layer or more, not {layers}.")
        self.views = paired(view)
        dims = (encoder.embed_dim, *[hidden_dim] * (layers - 1), output_dim)
        self.online = Branch(encoder, mlp(*dims, last_norm="bn_no_affine"))
        self.temperature = temperature

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        pairs = combinations(views.map(self.online), 2)
        yield {"nt_xent": mean_of(nt_xent(za, zb, self.temperature) for za, zb in pairs)}
