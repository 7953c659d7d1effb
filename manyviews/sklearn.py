"""A transformer of scikit-learn: images in, features of a pretrained encoder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from manyviews.weights import Pretrained, load


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The features of images, as a step of a scikit-learn pipeline.

    It learns nothing: `fit` loads the weights. `X` is a list or an array of images or of paths, as
    `Pretrained.embed` takes it, one row for each. An image that cannot be read is an error that names it.

    Args:
        weights: a run folder, a file of weights, "timm:NAME", or what `manyviews.load` returned.

    Attributes:
        pretrained_: the encoder and how it sees images, after `fit`.
    """

    def __init__(self, weights: str | Path | Pretrained) -> None:
        self.weights = weights

    def fit(self, X: Any = None, y: Any = None) -> Embedder:
        """Load the weights. Images and labels are not looked at."""
        self.pretrained_ = self.weights if isinstance(self.weights, Pretrained) else load(self.weights)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of images: float32, `n d`."""
        if not hasattr(self, "pretrained_"):  # there is nothing to learn, so nobody need call fit first
            self.fit()
        return self.pretrained_.embed(X)

    @property
    def _n_features_out(self) -> int:
        return int(self.pretrained_.encoder.embed_dim)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pretrained_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags
