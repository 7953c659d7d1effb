"""MAE: rebuild an image from a quarter of its patches.

Three quarters of the patches are dropped at random. The encoder sees the rest only, so it is four times shorter; a
small decoder fills in a mask token for each missing patch and predicts their pixels.

Masked Autoencoders Are Scalable Vision Learners, He et al. 2022.

    L = mean over the masked patches of  mean over pixels of (prediction - normalized pixels)^2

Targets are the patch's P*P*3 pixels, standardized within the patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from manyviews.backbones import Encoder
from manyviews.heads import Decoder, Watch
from manyviews.methods import Method, Terms, exactly
from manyviews.objectives import masked_mse, patchify
from manyviews.types import Progress
from manyviews.views import Crop, Global, Masking, Random, Views


class MAE(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept.
        view: the view type, one of each image.
        masking: the hidden patches, equally many of every image.
        decoder_dim: width of the decoder.
        decoder_depth: transformer blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        normalize_pixels: standardize the target within each patch.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.2, 1.0), color=None),
        masking: Masking = Random(0.75),
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_pixels: bool = True,
    ) -> None:
        super().__init__()
        self.views, self.encoder, self.masking = (exactly(view, 1, "MAE"),), encoder, masking
        self.patch_size = encoder.patch_size
        self.decoder = Decoder(
            encoder.embed_dim,
            encoder.grid(view.size),
            encoder.channels * self.patch_size**2,
            decoder_dim,
            decoder_depth,
            decoder_heads,
        )
        self.normalize_pixels, self.watch = normalize_pixels, Watch()

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        prediction = self.decoder(self.encoder.features(x, keep=mask.kept).patches, mask.kept)
        target = patchify(x, self.patch_size)
        error = partial(masked_mse, prediction, target, normalize=self.normalize_pixels)
        self.watch.note("visible_error", lambda: error(~mask.hidden))
        yield {"reconstruction": error(mask.hidden)}
