"""SSCD: a descriptor of copies, contrasted among images that are tampered with and mixed, and spread over the sphere.

SimCLR whose encoder ends in GeM and a linear layer, which is kept: its output of length one is the descriptor. Views
are copies as people make them. Some are mixed with another image, and all views that share content are positives. The
nearest view that shares none is pushed away by an entropy, so that one threshold tells copies everywhere.

A Self-Supervised Descriptor for Image Copy Detection, Pizzi et al. 2022.

    L = mean over views i, with positives P_i and R_i = P_i + {i}, of
        1/|P_i| sum_{j in P_i} -log( exp(s_ij / t) / (exp(s_ij / t) + sum_{k not in R_i} exp(s_ik / t)) )
        - w log min_{j not in R_i} |z_i - z_j|

What differs: images mix with their neighbors in the batch, and overlays are drawn (`views.tampering`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.methods import Branch, Method, Terms, paired
from manyviews.objectives import koleo, mixed_nt_xent
from manyviews.types import Progress
from manyviews.views import Copied, View, Views
from manyviews.views.kinds import neighbor


class SSCD(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept; its pooling becomes the descriptor.
        view: the view type, two or more of each image.
        output_dim: dimensions of the descriptor.
        temperature: temperature of the softmax over cosine similarities.
        entropy: weight w of the entropy.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Copied(2),
        output_dim: int = 512,
        temperature: float = 0.05,
        entropy: float = 30.0,
    ) -> None:
        super().__init__()
        self.views = paired(view)
        encoder.describe(output_dim)
        self.online = Branch(encoder, nn.Identity())
        self.temperature, self.entropy = temperature, entropy

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        z = torch.cat(views.map(self.online))
        kind = self.views[0]
        mixed = torch.stack([(views.parameters(kind.name, i) < 1).any(1) for i in range(kind.count)])
        related, positive = relatives(mixed)
        yield {
            "mixed_nt_xent": mixed_nt_xent(z, related, positive, self.temperature),
            "koleo": self.entropy * koleo(z, related, all_ranks=True),
        }


def relatives(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The views that share content with each view.

    Args:
        mixed: bool, `v b`: whether view v of image b has content of the image's neighbor in the batch.

    Returns:
        int64, `vb 2v`, rows of the views in the order of `mixed`: all views of the image, then those of its neighbor,
        in whose place is the view itself if they share nothing; and bool, `vb 2v`, which of them are positives.
    """
    v, b = mixed.shape
    rows = torch.arange(v * b, device=mixed.device).view(v, b)
    other = neighbor(rows[0])
    itself, own, others = rows[:, :, None], rows.T.expand(v, b, v), rows[:, other].T.expand(v, b, v)
    shared = (mixed[:, :, None] | mixed[:, other].T) & (other != rows[0])[:, None]
    related = torch.cat([own, torch.where(shared, others, itself)], 2)
    return related.flatten(0, 1), torch.cat([own != itself, shared], 2).flatten(0, 1)
