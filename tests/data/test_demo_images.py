"""The images that ship with the package."""

import re
import time
from collections import Counter

import numpy as np
import pytest

from manyviews.data import demo, load_canvases, open_source
from manyviews.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return {name: demo.source(name) for name in ("train", "test")}


@pytest.fixture(scope="module")
def canvases(splits):
    return {name: load_canvases(source, 64) for name, source in splits.items()}


def test_the_file_is_small_enough_to_ship():
    assert demo.FILE.stat().st_size < 8 * 2**20
    credits = (demo.FILE.parent / "CREDITS").read_text(encoding="utf-8")
    assert "public domain" in credits
    assert "@" not in credits


def test_it_opens_and_decodes_in_seconds():
    start = time.process_time()
    source = open_source("demo")
    _, bad = load_canvases(source, 64)
    assert source.labels is not None
    assert bad == []
    assert time.process_time() - start < 10


def test_classes_are_in_both_splits(splits):
    train, test = splits["train"], splits["test"]
    assert train.classes == test.classes
    assert 10 <= len(train.classes) <= 12
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.25
    counts = {name: Counter(source.labels.tolist()) for name, source in splits.items()}
    for label in range(len(train.classes)):
        assert counts["train"][label] >= 40
        assert counts["test"][label] >= 10
        assert counts["train"][label] < 0.25 * len(train)


def test_names(splits):
    assert open_source("demo").ids == splits["train"].ids
    assert open_source("demo:test").ids == splits["test"].ids
    assert not set(splits["train"].ids) & set(splits["test"].ids)


def test_pictures_are_drawn_in_color_on_white(canvases):
    for held, _ in canvases.values():
        assert (held.extent == 64).all()
        pixels = held.pixels.numpy()
        border = np.concatenate([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], axis=2)
        assert border.min() > 200
        assert (pixels.min(axis=1) < 240).mean(axis=(1, 2)).min() > 0.04


def test_no_test_picture_has_a_near_copy_in_training(splits, canvases):
    # An independent look: the nearest training picture by root mean square difference at 32 by 32.
    small = {}
    for name, (held, _) in canvases.items():
        pixels = held.pixels.numpy().astype(np.float32) / 255
        small[name] = pixels.reshape(len(pixels), 3, 32, 2, 32, 2).mean(axis=(3, 5)).reshape(len(pixels), -1)
    train, test = small["train"], small["test"]
    squares = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    nearest = np.sqrt(np.maximum(squares, 0) / train.shape[1]).min(axis=1)
    assert nearest.min() > 0.04
    # Pictures whose names differ only in what follows a number are a series.
    series = {name: set(filter(None, map(stem, source.ids))) for name, source in splits.items()}
    assert not series["train"] & series["test"]


def stem(path):
    found = re.match(r"(.*/[^/\d]+)\d", path)
    return found and found[1]


def test_unknown_split_is_named():
    with pytest.raises(UserError, match="Did you mean 'train'"):
        open_source("demo:trian")
