"""data2vec 2.0: many masks of each image predict the features that a moving copy gave it once.

The moving copy sees the whole image, which costs most; its features are the target of several masks. For each mask the
network sees the few visible patches alone, and a small convolutional decoder predicts the features of the others.

Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech and Language, Baevski
et al. 2023.

    L = mean over masks of  [ mean over hidden patches of |decoder(visible) - y|^2 + w |head(class) - mean z|^2 ]
    y = LN( mean over last K layers of IN(layer) ),  z = LN( mean over last K layers of LN(layer) )

IN standardizes each feature over the patches of the image. Each mask is a term of its own, so memory does not grow with
them. The paper's class token predicts the mean of y over the patches, of which IN leaves almost nothing; here it
predicts that of data2vec's targets z. The paper fills the places of hidden patches with noise of deviation 0.01; here a
learned token, of that size at first, takes them. Targets are the blocks' outputs, where the paper has those of their
MLPs. The student is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from manyviews.backbones import Encoder, take
from manyviews.errors import UserError
from manyviews.heads import GridDecoder, Watch
from manyviews.methods import Method, Terms, depth, exactly, visible
from manyviews.objectives import latent_error, layer_average
from manyviews.schedules import Linear, Schedule
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import Crop, Global, InverseBlocks, Mask, Masking, Views


class Data2Vec2(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept; its moving average gives the targets.
        view: the view type, one of each image, which both networks see.
        masking: the patches that the trained network does not see.
        masks: masks of each image, each drawn anew.
        layers: last layers of the moving average whose mean is the target.
        decoder_dim: width of the decoder; a multiple of its 16 groups, as the encoder's must be.
        decoder_depth: convolutions of the decoder.
        class_weight: weight of the class token's term. A network without class or register tokens has none.
        momentum: momentum of the moving average.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.2, 1.0), color=None),
        masking: Masking = InverseBlocks(0.8),
        masks: int = 16,
        layers: int = 10,
        decoder_dim: int = 768,
        decoder_depth: int = 6,
        class_weight: float = 0.01,
        momentum: Schedule | float = Linear(0.9998, 0.99999, epochs=40),
    ) -> None:
        super().__init__()
        if masks < 1:
            raise UserError(f"data2vec 2.0 needs a mask of each image, not {masks}: set method.masks to 1 or more.")
        self.views, self.masking, self.encoder = (exactly(view, 1, "data2vec 2.0"),), masking, encoder
        self.target = EMA(encoder, momentum)
        encoder.transformer("drop patches")
        d = encoder.embed_dim
        self.decoder = GridDecoder(d, encoder.grid(view.size), d, decoder_dim, decoder_depth)
        self.class_head = nn.Linear(d, d) if encoder.num_prefix_tokens and class_weight else None
        self.masks, self.layers, self.class_weight = masks, depth(encoder, layers), class_weight
        self.watch = Watch()

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x = views[self.views[0].name, 0]
        whole = self.target.features(x, layers=self.layers)
        layers = [layer.patches for layer in whole.layers]
        targets, summary = layer_average(layers, over="patches"), layer_average(layers, over="features").mean(1)
        self.watch.targets(layers[-1])
        del whole, layers
        for i in range(self.masks):
            yield {name: t / self.masks for name, t in self._terms(x, self.mask(views, i), targets, summary).items()}

    def _terms(self, x: Tensor, mask: Mask, targets: Tensor, summary: Tensor) -> Terms:
        kept, (hidden,) = visible(mask), mask.blocks
        student = self.encoder.features(x, keep=kept)
        prediction = take(self.decoder(student.patches, kept), hidden)
        found = {"prediction": latent_error(prediction, take(targets, hidden), beta=None)}
        if self.class_head is not None:
            error = latent_error(self.class_head(student.prefix[:, 0]), summary, beta=None, normalize=False)
            found["class"] = self.class_weight * error
        return found
