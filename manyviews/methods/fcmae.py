"""FCMAE: a masked autoencoder of convolutions, which skip what is hidden.

60 % of the places of a ConvNeXt V2's last map, each 32 pixels wide, are hidden. No visible feature depends on a hidden
pixel: maps are zero in hidden places before every depthwise convolution, and the global response norm counts visible
places alone. One ConvNeXt block with a mask token predicts the pixels.

ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders, Woo et al. 2023.

    L = mean over the masked patches of  mean over pixels of (prediction - normalized pixels)^2

Features are computed densely and masked, which gives what the authors' sparse convolutions give, without their speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import MapDecoder, Watch
from manyviews.methods import Method, Terms, exactly
from manyviews.objectives import masked_mse, patchify
from manyviews.types import Progress
from manyviews.views import Crop, Global, Mask, Masking, Random, Views


class FCMAE(Method):
    """See the module's docstring.

    Args:
        encoder: a ConvNeXt V2, or a ConvNeXt, trained and kept.
        view: the view type, one of each image.
        masking: the hidden places of the last map, equally many of every image.
        decoder_dim: width of the decoder.
        decoder_depth: ConvNeXt blocks of the decoder.
        normalize_pixels: standardize the target within each patch.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.2, 1.0), color=None),
        masking: Masking = Random(0.6),
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        normalize_pixels: bool = True,
    ) -> None:
        super().__init__()
        if not encoder.skips_places:
            raise UserError(
                f"{encoder.name} cannot skip hidden patches: choose a ConvNeXt V2, such as convnextv2_atto."
            )
        self.views, self.encoder, self.masking = (exactly(view, 1, "FCMAE"),), encoder, masking
        # The pooled features' norm, for which there is no loss, stays as it is: places are predicted without it.
        encoder.model.head.requires_grad_(False)
        self.patch_size, grid = encoder.patch_size, encoder.grid(view.size)
        pixels = encoder.channels * self.patch_size**2
        self.decoder = MapDecoder(encoder.patch_dim, grid, pixels, decoder_dim, decoder_depth)
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
        found: Tensor = self.decoder(self.encoder.features(x, hide=mask.hidden).patches, mask.hidden)
        return found
