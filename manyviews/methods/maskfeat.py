"""MaskFeat: predict histograms of oriented gradients of hidden patches.

A learned token takes the place of some patches. A linear layer on the encoder's features predicts what the edges of
each hidden patch look like: a histogram of their orientations in each cell of 8 pixels, for each color.

Masked Feature Prediction for Self-Supervised Visual Pre-Training, Wei et al. 2022.

    L = mean over the masked patches of  mean over bins of (prediction - HOG)^2

9 orientations; each histogram has an L2 norm of 1, so that contrast does not matter. A patch of 16 pixels has 2 x 2
cells, hence 108 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.methods import Method, Terms, exactly
from manyviews.objectives import hog, masked_mse, patchify
from manyviews.types import Progress
from manyviews.views import Blocks, Crop, Global, Masking, Views


class MaskFeat(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer or a Swin, trained and kept.
        view: the view type, one of each image.
        masking: the hidden patches.
        cell: side of a histogram's cell, pixels; a divisor of the patch size.
        orientations: bins of a histogram.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.5, 1.0), color=None),
        masking: Masking = Blocks((0.4, 0.4), p=1.0),
        cell: int = 8,
        orientations: int = 9,
    ) -> None:
        super().__init__()
        self.views, self.encoder, self.masking = (exactly(view, 1, "MaskFeat"),), encoder, masking
        if encoder.patch_size % cell:
            raise UserError(
                f"Cells of {cell} pixels do not tile patches of {encoder.patch_size}: set method.cell to a divisor of "
                "the patch size."
            )
        self.cell, self.orientations, self.cells = cell, orientations, encoder.patch_size // cell
        self.token = nn.Parameter(0.02 * torch.randn(encoder.token_dim))
        self.head = nn.Linear(encoder.patch_dim, self.cells**2 * encoder.channels * orientations)

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        prediction = self.head(self.encoder.features(x, hide=mask.hidden, token=self.token).patches)
        yield {"gradients": masked_mse(prediction, self.targets(x), mask.hidden, normalize=False)}

    def targets(self, x: Tensor) -> Tensor:
        """The histograms of each patch of images, `b n cells**2*c*orientations`."""
        histograms = hog(x, self.cell, self.orientations).flatten(3).permute(0, 3, 1, 2)
        return patchify(histograms, self.cells)
