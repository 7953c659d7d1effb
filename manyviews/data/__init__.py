"""Images from anywhere, as batches of canvases."""

from manyviews.data.canvas import load_canvas, load_canvases, to_canvas
from manyviews.data.decode import BadImage, decode
from manyviews.data.loader import Loader
from manyviews.data.measure import mean_and_std, measured, read_as
from manyviews.data.prepared import prepare, verify
from manyviews.data.reading import RGB, Reading
from manyviews.data.source import Source
from manyviews.data.sources import open_source
from manyviews.data.split import split, spread_out
from manyviews.data.tiles import tile

__all__ = [
    "RGB",
    "BadImage",
    "Loader",
    "Reading",
    "Source",
    "decode",
    "load_canvas",
    "load_canvases",
    "mean_and_std",
    "measured",
    "open_source",
    "prepare",
    "read_as",
    "split",
    "spread_out",
    "tile",
    "to_canvas",
    "verify",
]
