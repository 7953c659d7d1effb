"""SimMIM: predict the raw pixels of hidden patches with one linear layer.

A learned token takes the place of random squares of 32 pixels, 60 % of the image, and the encoder sees all places. A
linear layer on its features predicts the pixels of the hidden patches.

SimMIM: a Simple Framework for Masked Image Modeling, Xie et al. 2022.

    L = mean over the masked patches of  mean over pixels of |prediction - pixels|

Pixels are normalized by the data's mean and deviation. A patch of a Swin is a place of its last map, 32 pixels wide.
The number of hidden squares is rounded here, and rounded up by the authors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.heads import Watch
from manyviews.methods import Method, Terms, exactly
from manyviews.objectives import masked_l1, patchify
from manyviews.types import Progress
from manyviews.views import Crop, Global, Mask, Masking, Random, Views


class SimMIM(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer or a Swin, trained and kept.
        view: the view type, one of each image.
        masking: the hidden patches.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.67, 1.0), color=None),
        masking: Masking = Random(0.6, side=2),
    ) -> None:
        super().__init__()
        self.views, self.encoder, self.masking = (exactly(view, 1, "SimMIM"),), encoder, masking
        self.patch_size, self.watch = encoder.patch_size, Watch()
        self.token = nn.Parameter(0.02 * torch.randn(encoder.token_dim))
        self.head = nn.Linear(encoder.patch_dim, encoder.channels * self.patch_size**2)

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        error = partial(masked_l1, self._predict(x, mask), patchify(x, self.patch_size))
        self.watch.note("visible_error", lambda: error(~mask.hidden))
        yield {"reconstruction": error(mask.hidden)}

    def predicted_pixels(self, views: Views) -> Tensor:
        return self._predict(views[self.views[0].name, 0], self.mask(views))

    def _predict(self, x: Tensor, mask: Mask) -> Tensor:
        """Pixels of all patches, `b n p`."""
        found: Tensor = self.head(self.encoder.features(x, hide=mask.hidden, token=self.token).patches)
        return found
