"""Black, white, mean and standard deviation of a data set, against NumPy over all of its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

import manyviews as mv
from manyviews.data import Reading, mean_and_std, measured, open_source, read_as
from manyviews.errors import UserError
from manyviews.settings import Data


def folder(path, images, ending="tif", **options):
    path.mkdir()
    for i, x in enumerate(images):
        if ending == "tif":
            tifffile.imwrite(path / f"{i}.tif", x, **options)
        else:
            Image.fromarray(x).save(path / f"{i}.{ending}")
    return open_source(path)


def values(kind="f4", low=0.0, high=1.0, count=6, seed=0):
    rng = np.random.default_rng(seed)
    return [(low + rng.random((40, 50)) * (high - low)).astype(kind) for _ in range(count)]


def test_one_range_for_all_pictures_of_a_set(tmp_path):
    """A dark and a bright picture stay dark and bright; a few hot pixels decide nothing."""
    images = [x * (1 + i) for i, x in enumerate(values(high=0.2))]
    images[0][0, 0] = 1e6
    source = folder(tmp_path / "x", images)
    reading, (note,) = measured(source, Reading(1))
    low, high = np.percentile(np.concatenate(images), (0.1, 99.9))
    assert reading.range == pytest.approx((low, high), rel=1e-5)
    assert "float32" in note and "0.21 %" in note  # the share that is clipped
    seen = read_as(source, reading)
    means = [np.asarray(seen.load(i)).mean() / 255 * (high - low) + low for i in range(6)]
    assert means == pytest.approx([np.clip(x, low, high).mean() for x in images], rel=0.02)


@pytest.mark.parametrize("sentinel", [-9999, -3.4028234663852886e38, np.nan, np.inf])
@pytest.mark.parametrize("tagged", [False, True])
def test_no_data_is_no_value(sentinel, tagged, tmp_path):
    images = values(low=2, high=3)
    for x in images:
        x[:4] = sentinel
    tags = {"extratags": [(42113, "s", 0, repr(sentinel), True)]} if tagged else {}
    source = folder(tmp_path / "x", images, **tags)
    reading, (note,) = measured(source, Reading(1))
    assert reading.range == pytest.approx((2, 3), abs=0.01)
    assert "10 % hold no data" in note
    assert np.asarray(read_as(source, reading).load(0))[:4].max() == (255 if sentinel == np.inf else 0)


def test_types_with_a_range_keep_it_and_a_dark_set_is_reported_with_the_cure(tmp_path):
    images = values("u2", 0, 4095)
    source = folder(tmp_path / "x", images, "png")
    reading, (note,) = measured(source, Reading(1), "type", "--set data.range={}")
    assert reading.range is None
    assert "--set data.range=auto, or --set data.range=0,4095" in note
    reading, (note,) = measured(source, Reading(1), "auto")
    assert reading.range == pytest.approx(np.percentile(images, (0.1, 99.9)))
    assert measured(folder(tmp_path / "y", values("u2", 0, 60000), "png"), Reading(1)) == (Reading(1), [])


def test_eight_bits_keep_black_and_white_beside_others(tmp_path):
    source = folder(tmp_path / "x", [*values("u1", 0, 255, 3), *values("u2", 0, 4095, 3)], "png")
    reading, (note,) = measured(source, Reading(1), "auto")
    assert "3 files of 8 bits keep 0 and 255" in note
    seen = read_as(source, reading)
    assert all(np.asarray(seen.load(i)).mean() == pytest.approx(127, abs=4) for i in range(6))


def test_mean_and_std_are_those_of_all_pixels(tmp_path):
    images = [np.stack([x, x**2, 0 * x + 0.25], axis=-1) for x in values()]
    images = [np.concatenate([x, x], axis=-1)[..., :5] for x in images]
    source = folder(tmp_path / "x", images, photometric="minisblack", planarconfig="contig")
    reading = Reading(5, (0, 1))
    mean, std, count = mean_and_std(source, reading)
    pixels = np.rint(np.concatenate(images).astype(np.float64) * 255).reshape(-1, 5) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=1e-6)
    assert std == pytest.approx([*pixels.std(0)[:2], 1, *pixels.std(0)[3:]], abs=1e-6)  # a band that never changes
    assert count == 6


def test_stacks_are_counted_and_their_pictures_are_images_if_asked(tmp_path):
    stacks = [np.stack([np.full((20, 20), 50 * i + 10 * k, np.uint8) for k in range(3)]) for i in range(2)]
    source = folder(tmp_path / "x", stacks, photometric="minisblack")
    _, (note,) = measured(source, Reading(1))
    assert "2 of 2 files" in note and "up to 3" in note and "data.frames" in note
    every = read_as(source, Reading(1, frames="all"))
    assert every.ids == ["0.tif#0", "0.tif#1", "0.tif#2", "1.tif#0", "1.tif#1", "1.tif#2"]
    assert [np.asarray(every.load(i)).max() for i in range(6)] == [0, 10, 20, 50, 60, 70]
    assert measured(source, Reading(1, frames="all"))[1] == []


def test_canvases_remember_bands_and_range(tmp_path, capsys):
    """Prepared once, with bands in another order, and read by a run that must not choose bands from them again."""
    images = [np.stack([x, x + 1, x + 2, x + 3], axis=-1) for x in values(count=20)]
    source = folder(tmp_path / "x", images, photometric="minisblack", planarconfig="contig")
    out = mv.prepare(tmp_path / "x", tmp_path / "canvases", 32, channels=(2, 0, 3), range=(0, 4))
    ready = open_source(out)
    assert ready.reading == Reading((2, 0, 3), (0, 4))
    i = ready.ids.index("3.tif")
    expected = np.asarray(read_as(source, ready.reading).load(source.ids.index("3.tif"))).mean((0, 1))
    np.testing.assert_allclose(np.asarray(ready.load(i)).mean((0, 1)), expected, atol=1.5)
    np.testing.assert_allclose(np.asarray(ready.canvases([i]).canvases.image(0)).mean((1, 2)), expected, atol=1.5)
    few = {"data.batch_size": 8, "data.holdout": 0.0, "monitor.epochs": 0}
    run = mv.pretrain(out, "simclr_tiny", epochs=1, settings=few, out=tmp_path / "run")
    assert run.recipe.data.reading == Reading((2, 0, 3), (0, 4))
    with pytest.raises(UserError, match="prepare the images with --channels 1"):
        mv.pretrain(out, "simclr_tiny", settings={**few, "data.channels": 1}, out=tmp_path / "other")


@pytest.mark.parametrize("bad", [{"channels": 0}, {"channels": ()}, {"range": (2.0, 1.0)}, {"max_pixels": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError):
        Data(**bad)
