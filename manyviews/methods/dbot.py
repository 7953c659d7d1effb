"""dBOT: predict the features that any frozen teacher gives hidden patches; then the student becomes the teacher.

The encoder sees a quarter of the patches, and a small decoder predicts the teacher's features of the others. The first
teacher is random. After each stage the student's weights become the teacher's, and the student begins anew, with fresh
weights: after two or three stages it does not matter which teacher was the first.

Exploring Target Representations for Masked Autoencoders, Liu et al. 2022.

    L = mean over the masked patches of  smooth L1( prediction, normalized features of the teacher )

The stages share one run and have equal lengths. An encoder that starts from weights gives these to the first teacher
and begins anew itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

from manyviews.backbones import Encoder, take
from manyviews.heads import Decoder
from manyviews.methods import Method, Terms, exactly, visible
from manyviews.objectives import latent_error
from manyviews.targets import StagedTeacher
from manyviews.types import Progress
from manyviews.views import Crop, Global, Masking, Random, Views


class DBOT(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept. Its pretrained weights, if it has any, are the first teacher's.
        view: the view type, one of each image.
        masking: the hidden patches, equally many of every image.
        stages: number of teachers. The learning rate should begin anew with each: `optimizer.schedule=Repeat(...)`.
        decoder_dim: width of the decoder.
        decoder_depth: transformer blocks of the decoder.
        decoder_heads: attention heads of the decoder.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.2, 1.0), color=None),
        masking: Masking = Random(0.75),
        stages: int = 2,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ) -> None:
        super().__init__()
        encoder.transformer("drop patches")
        self.views, self.encoder, self.masking = (exactly(view, 1, "dBOT"),), encoder, masking
        d = encoder.patch_dim
        decoder = partial(Decoder, d, encoder.grid(view.size), d, decoder_dim, decoder_depth, decoder_heads)
        fresh = partial(Encoder.from_spec, encoder.spec)
        self.decoder = decoder()
        first = copy.deepcopy(encoder)
        (encoder if encoder.pretrained else first).load_state_dict(fresh().state_dict())
        self.teacher = StagedTeacher(first, encoder, {encoder: fresh, self.decoder: decoder}, stages)

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        kept, (hidden,) = visible(mask), mask.blocks
        target = take(self.teacher.features(x).patches, hidden)
        prediction = self.decoder(self.encoder.features(x, keep=kept).patches, kept)
        yield {"features": latent_error(take(prediction, hidden), target)}
