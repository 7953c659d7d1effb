"""MAE: rebuild an image from a quarter of its patches.

Three quarters of the patches are dropped at random. The encoder sees the rest only, so it is four times shorter; a
small decoder fills in a mask token for each missing patch and predicts their pixels.

Masked Autoencoders Are Scalable Vision Learners, He et al. 2022. For pyramids such as Swin: Uniform Masking, Li et al.
2022, which keeps one patch of each 2 x 2 and so an image of half the size, and hides some of these by tokens.

    L = mean over the masked patches of  mean over pixels of (prediction - normalized pixels)^2

Targets are the patch's P*P*3 pixels, standardized within the patch. A patch of a Swin is a place of its last map.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import Decoder, Watch
from manyviews.methods import Method, Terms, exactly, visible
from manyviews.objectives import masked_mse, patchify
from manyviews.types import Progress
from manyviews.views import Crop, Global, Mask, Masking, Random, Uniform, Views


class MAE(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept; a Swin with `masking=Uniform()`.
        view: the view type, one of each image.
        masking: the hidden patches, equally many of every image.
        mask_tokens: put a token in the place of hidden patches and encode all, in place of dropping them. It costs time
            and accuracy: a row of the paper's table.
        decoder_dim: width of the decoder.
        decoder_depth: transformer blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        normalize_pixels: standardize the target within each patch.
    """

    online = None  # type: ignore[assignment]
    token: nn.Parameter | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.2, 1.0), color=None),
        masking: Masking = Random(0.75),
        mask_tokens: bool = False,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_pixels: bool = True,
    ) -> None:
        super().__init__()
        if encoder.skips_places:
            raise UserError(f"{encoder.name} cannot drop patches: choose a vision transformer, or the method fcmae.")
        self.views, self.encoder, self.masking = (exactly(view, 1, "MAE"),), encoder, masking
        self.patch_size, self.grid, self.mask_tokens = encoder.patch_size, encoder.grid(view.size), mask_tokens
        replaces = mask_tokens or (isinstance(masking, Uniform) and masking.secondary > 0)
        self.token = nn.Parameter(0.02 * torch.randn(encoder.token_dim)) if replaces else None
        self.decoder = Decoder(
            encoder.patch_dim,
            self.grid,
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
        target = patchify(x, self.patch_size)
        error = partial(masked_mse, self._predict(x, mask), target, normalize=self.normalize_pixels)
        self.watch.note("visible_error", lambda: error(~mask.hidden))
        yield {"reconstruction": error(mask.hidden)}

    def predicted_pixels(self, views: Views) -> Tensor:
        return self._predict(views[self.views[0].name, 0], self.mask(views))

    def _predict(self, x: Tensor, mask: Mask) -> Tensor:
        """Pixels of all patches, `b n p`, from those that are not hidden."""
        if self.mask_tokens:
            everywhere = torch.arange(mask.hidden.shape[1], device=x.device).expand(len(x), -1)
            tokens = self.encoder.features(x, hide=mask.hidden, token=self.token).patches
            found: Tensor = self.decoder(tokens, everywhere)
            return found
        kept = visible(mask)
        hide = None if self.token is None else mask.hidden
        tokens = self.encoder.features(x, keep=kept, hide=hide, token=self.token).patches
        found = self.decoder(tokens, kept)
        return found
