"""I-JEPA: predict the features of hidden blocks of an image from one visible block, without any augmentation.

The encoder sees the visible patches alone. A narrow transformer predicts, block by block, the features that a slowly
moving copy of the encoder gives the hidden patches, having seen the whole image.

Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, Assran et al. 2023.

    L = mean over blocks of  mean over a block's patches of  d( prediction, features of the moving copy )

The paper's d is the squared distance; its authors trained with the smooth L1 distance of normalized features, and so do
we. Their schedules are those of runs a quarter longer than they are (`Stretched`). The moving copy is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyviews.backbones import Encoder, take
from manyviews.heads import Decoder, Watch
from manyviews.methods import Method, Terms, exactly, mean_of
from manyviews.objectives import latent_error
from manyviews.schedules import Linear, Schedule, Stretched
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import Crop, Global, Masking, MultiBlock, Views


class IJEPA(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, which is trained; its moving average is kept.
        view: the view type, one of each image: a crop without changes of color.
        masking: the visible block and the blocks to predict.
        predictor_dim: width of the predictor.
        predictor_depth: transformer blocks of the predictor; 6 in the paper's ViT-B, 12 in its larger networks.
        predictor_heads: attention heads of the predictor; as many as the encoder has.
        momentum: momentum of the moving average.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.3, 1.0), color=None, flip=0.0),
        masking: Masking = MultiBlock(),
        predictor_dim: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        momentum: Schedule | float = Stretched(Linear(0.996, 1.0)),
    ) -> None:
        super().__init__()
        encoder.transformer("drop patches")
        self.views, self.masking, self.encoder = (exactly(view, 1, "I-JEPA"),), masking, encoder
        self.target = EMA(encoder, momentum)
        d, grid = encoder.embed_dim, encoder.grid(view.size)
        self.predictor = Decoder(d, grid, d, predictor_dim, predictor_depth, predictor_heads)
        self.watch = Watch()

    @property
    def kept_encoder(self) -> Encoder:
        return self.target.module

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        features = self.target.features(x).patches
        self.watch.targets(features)
        context = self.encoder.features(x, keep=mask.kept).patches
        predictions = ((self.predictor(context, mask.kept, block), take(features, block)) for block in mask.blocks)
        yield {"prediction": mean_of(latent_error(p, t) for p, t in predictions)}
