"""MAE: rebuild an image from a quarter of its patches.

Three quarters of the patches are dropped at random. The encoder sees the rest only, so it is four times shorter; a
small decoder fills in a mask token for each missing patch and predicts their pixels.

Masked Autoencoders Are Scalable Vision Learners, He et al. 2022.

    L = mean over the masked patches of  mean over pixels of (prediction - normalized pixels)^2

Targets are the patch's P*P*3 pixels, standardized within the patch.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import Decoder
from manyviews.methods.method import Method, Terms
from manyviews.objectives import masked_mse, patchify, random_masking
from manyviews.types import Progress
from manyviews.views import Global, View, Views


class MAE(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept.
        view: the view type, one of each image.
        mask_ratio: fraction of the patches that is dropped.
        decoder_dim: width of the decoder.
        decoder_depth: transformer blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        normalize_pixels: standardize the target within each patch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(1, area=(0.2, 1.0), color=None),
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_pixels: bool = True,
    ) -> None:
        super().__init__()
        if view.count != 1:
            raise UserError(f"MAE looks at one view of each image, not at {view.count}: set its count to 1.")
        self.views = (view,)
        self.encoder = encoder
        self.patch_size = encoder.patch_size
        self.patches = (view.size // self.patch_size) ** 2
        self.decoder = Decoder(
            encoder.embed_dim, self.patches, self.patch_size, decoder_dim, decoder_depth, decoder_heads
        )
        self.mask_ratio, self.normalize_pixels = mask_ratio, normalize_pixels

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x = views[self.views[0].name, 0]
        kept, mask = random_masking(views.draws.uniform("mask", self.patches), self.mask_ratio)
        prediction = self.decoder(self.encoder.features(x, keep=kept).patches, kept)
        target = patchify(x, self.patch_size)
        yield {"reconstruction": masked_mse(prediction, target, mask, normalize=self.normalize_pixels)}
