"""The old name of `manyviews.weights`, kept for one release."""

import warnings

from manyviews.weights import FORMATS, TIMM, Pretrained, load, write

__all__ = ["FORMATS", "TIMM", "Pretrained", "load", "write"]

warnings.warn("manyviews.pretrained is now manyviews.weights", DeprecationWarning, stacklevel=2)
