"""dVAE: an autoencoder whose code is one of k tokens for each patch: BEiT's tokenizer.

An encoder gives each patch a distribution over k codes. A sample of it, relaxed so that gradients pass, picks a vector
of a codebook, and a small decoder rebuilds the image. As the temperature falls, the sample becomes one code.

Zero-Shot Text-to-Image Generation, Ramesh et al. 2021, section 2.1; for BEiT, Bao et al. 2022.

    L = mean over pixels of (reconstruction - pixels)^2  +  w KL( q(code | patch), uniform )

The authors' encoder and decoder are ResNets, and they assume logit-Laplace noise. Here any network with patches
encodes, ConvNeXt blocks decode, and the noise is Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.heads import MapDecoder
from manyviews.methods import Method, Terms, exactly
from manyviews.objectives import code_divergence, gumbel_softmax, masked_mse, patchify
from manyviews.schedules import Cosine, Schedule, value
from manyviews.types import Progress
from manyviews.views import Crop, Global, Views


class Tokenizer(nn.Module):
    """An encoder with a distribution over codes for each of its patches.

    Attributes:
        mean, std: per channel, in [0, 1]: how the images were normalized that it learned from.
        loaded: whether its weights came from a file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, codes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.patch_dim, codes)
        self.register_buffer("mean", torch.full((encoder.channels,), 0.5))
        self.register_buffer("std", torch.full((encoder.channels,), 0.25))
        self.loaded = False
        self.register_load_state_dict_post_hook(_mark)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the codes, `b n codes`, for normalized images."""
        found: Tensor = self.head(self.encoder.features(x).patches)
        return found

    @torch.no_grad()
    def tokens(self, x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """The best code of each patch, int64 `b n`, for images that were normalized by this mean and std."""
        theirs, spread = (x.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
        ours, own = (v.to(x.dtype).view(-1, 1, 1) for v in (self.mean, self.std))
        scores: Tensor = self((x * spread + theirs - ours) / own)
        return scores.argmax(-1)


def _mark(tokenizer: Any, _: object) -> None:
    tokenizer.loaded = True


class DVAE(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, a ConvNeXt or a Swin, trained and kept.
        view: the view type, one of each image.
        codes: number of codes.
        dim: dimensions of a code's vector, and width of the decoder.
        depth: ConvNeXt blocks of the decoder.
        temperature: temperature of the relaxed sample.
        divergence: weight w of the divergence from using all codes alike.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.5, 1.0), color=None),
        codes: int = 8192,
        dim: int = 256,
        depth: int = 4,
        temperature: Schedule | float = Cosine(1.0, 0.0625),
        divergence: float = 0.001,
    ) -> None:
        super().__init__()
        self.views, self.patch_size = (exactly(view, 1, "dVAE"),), encoder.patch_size
        self.tokenizer = Tokenizer(encoder, codes)
        self.codebook = nn.Parameter(torch.randn(codes, dim))
        pixels = encoder.channels * self.patch_size**2
        self.decoder = MapDecoder(dim, encoder.grid(view.size), pixels, dim, depth, mask=False)
        self.temperature, self.divergence = temperature, divergence

    @property
    def kept_encoder(self) -> Encoder:
        return self.tokenizer.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x = views[self.views[0].name, 0]
        for buffer, told in ((self.tokenizer.mean, views.mean), (self.tokenizer.std, views.std)):
            buffer.copy_(torch.as_tensor(told))
        logits = self.tokenizer(x)
        b, n, k = logits.shape
        u = views.draws.uniform("gumbel", n * k).view(b, n, k)
        sample = gumbel_softmax(logits, u, value(self.temperature, at))
        everywhere = torch.ones(b, n, dtype=torch.bool, device=x.device)
        rebuilt, target = self.decoder(sample @ self.codebook), patchify(x, self.patch_size)
        yield {
            "pixels": masked_mse(rebuilt, target, everywhere, normalize=False),
            "codes": self.divergence * code_divergence(logits),
        }

    def predicted_pixels(self, views: Views) -> Tensor:
        found: Tensor = self.decoder(self.codebook[self.tokenizer(views[self.views[0].name, 0]).argmax(-1)])
        return found
