"""data2vec: predict, for hidden patches, the features that a moving copy of the network gives the whole image.

A learned token replaces blocks of patches. For each of them the network predicts the mean of the copy's last layers,
each normalized, so that targets depend on the whole image and not on the patch alone.

data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language, Baevski et al. 2022.

    L = mean over hidden patches of  smooth L1( head(student's patch), LN( mean over last K layers of LN(layer) ) )

The paper's targets are the outputs of each block's MLP before they are added to its input; these are the blocks'
outputs. The copy has patch projection and positions of its own. The backbone is a plain ViT instead of BEiT's, with
neither relative positions nor layer scale. The student is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from manyviews.backbones import Encoder, take
from manyviews.heads import Watch
from manyviews.methods import Method, Terms, depth, exactly
from manyviews.objectives import latent_error, layer_average
from manyviews.schedules import Schedule
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import DATA2VEC, Blocks, Crop, Global, Masking, Views


class Data2Vec(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, trained and kept; its moving average gives the targets.
        view: the view type, one of each image, which both networks see.
        masking: the patches that the trained network does not see.
        layers: last layers of the moving average whose mean is the target.
        beta: error at which the smooth L1 distance turns straight; None for the squared distance.
        momentum: momentum of the moving average. The paper's runs on speech and text warm it up, such as by
            `Linear(0.999, 0.9999, epochs=10)`.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, color=DATA2VEC),
        masking: Masking = Blocks((0.6, 0.6), p=1.0),
        layers: int = 6,
        beta: float | None = 2.0,
        momentum: Schedule | float = 0.9998,
    ) -> None:
        super().__init__()
        self.views, self.masking, self.encoder = (exactly(view, 1, "data2vec"),), masking, encoder
        encoder.transformer("hide patches")
        encoder.grid(view.size)
        self.target = EMA(encoder, momentum)
        self.token = nn.Parameter(torch.zeros(encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, encoder.embed_dim)
        self.layers, self.beta, self.watch = depth(encoder, layers), beta, Watch()

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        x, mask = views[self.views[0].name, 0], self.mask(views)
        where = mask.blocks[0]
        whole = self.target.features(x, layers=self.layers)
        targets = take(layer_average([layer.patches for layer in whole.layers], over="features"), where)
        self.watch.targets(whole.layers[-1].patches)
        student = self.encoder.features(x, hide=mask.hidden, token=self.token)
        prediction = self.head(take(student.patches, where))
        yield {"prediction": latent_error(prediction, targets, mask.hidden.gather(1, where), beta=self.beta)}
