"""The compiled views of a CPU against the batched operations, which other tests hold against torchvision and PIL."""

import itertools
from dataclasses import replace

import pytest
import torch

from manyviews.types import Batch, Canvases
from manyviews.views import Color, Composed, Draws, Global, compiled, hashing
from manyviews.views import color as ops
from manyviews.views.distort import Distorting, Distortion, distort, draw_distortion
from manyviews.views.draws import _GOLDEN, _mix
from manyviews.views.geometry import crop_resize
from tests.views.test_geometry import boxes_of, pictures

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def batched(pixels, boxes, flip, size, mean, std, paint=None):
    x = crop_resize(pixels, boxes, size, flip)
    if paint is not None:
        x = distort(x, paint.color, paint.drawn)
    return ops.normalize(x, mean, std, torch.empty_like(x))


def render(pixels, *rest):
    return compiled.render(Canvases.dense(pixels), *rest)


def some(b, side, size):
    pixels, boxes = pictures(b, side), boxes_of(b, (side, side), (0.05, 1.0))
    boxes[0], boxes[1] = torch.tensor([0, 0, side, side]), torch.tensor([side - 1, side - 1, 1, 1])
    boxes[2], boxes[3] = torch.tensor([0, side - 2, side, 2]), torch.tensor([1, 0, 3, side])
    return pixels, boxes, torch.arange(b) % 2 == 0, size


@pytest.mark.parametrize(("side", "size"), [(32, 32), (40, 17), (16, 48), (64, 96), (200, 24), (9, 5)])
def test_crops(side, size):
    """Up and down, boxes of a single pixel, and of fewer pixels than the kernel reaches."""
    arguments = pixels, boxes, flip, _ = some(24, side, size)
    expected = batched(*arguments, MEAN, STD)
    found = render(*arguments, MEAN, STD)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=4e-5, rtol=0)
    found = compiled.crop(Canvases.dense(pixels), boxes, size, flip)
    torch.testing.assert_close(found, crop_resize(pixels, boxes, size, flip))


def one_change(b, **changed):
    no = torch.zeros(b, dtype=torch.bool)
    drawn = Distortion(no, torch.ones(b, 4), torch.arange(4).expand(b, 4), no, no, torch.ones(b), no)
    return replace(drawn, **changed)


ALL = {"jitter": 1.0, "gray": 1.0, "blur": 1.0, "solarize": 1.0}


def compare(drawn, b=24, color=None, atol=1e-5, side=48, size=40):
    arguments, color = some(b, side, size), color or Color(**ALL)
    expected = batched(*arguments, NO_MEAN, NO_STD, Distorting(color, drawn))
    found = render(*arguments, NO_MEAN, NO_STD, Distorting(color, drawn))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    assert not torch.equal(found, render(*arguments, NO_MEAN, NO_STD)), "nothing was changed"


def test_jitter_in_every_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    factors = torch.rand(24, 4, generator=torch.Generator().manual_seed(0)) * 2 - torch.tensor([0, 0, 0, 1.5])
    factors[:, 3] /= 3
    # Where the resampling left gray but for its last bits, the hue is that of the last bits: it has no effect.
    compare(one_change(24, jitter=torch.ones(24, dtype=torch.bool), factors=factors, order=orders), atol=3e-5)


@pytest.mark.parametrize("hue", [-0.5, -0.2, 0.0, 1e-3, 0.5])
def test_hue_alone(hue):
    factors = torch.ones(24, 4)
    factors[:, 3] = hue
    arguments = some(24, 48, 40)
    drawn = one_change(24, jitter=torch.ones(24, dtype=torch.bool), factors=factors)
    paint = Distorting(Color(**ALL), drawn)
    expected = batched(*arguments, NO_MEAN, NO_STD, paint)
    torch.testing.assert_close(render(*arguments, NO_MEAN, NO_STD, paint), expected, atol=3e-5, rtol=0)


def test_gray():
    compare(one_change(24, gray=torch.arange(24) % 3 == 0))


@pytest.mark.parametrize("kernel", [None, 3, 23, 61])
def test_blur(kernel):
    sigma = torch.linspace(0.1, 8, 24)
    compare(one_change(24, blur=torch.ones(24, dtype=torch.bool), sigma=sigma), color=Color(kernel=kernel, **ALL))


def test_solarize():
    arguments, drawn = some(24, 48, 40), one_change(24, solarize=torch.arange(24) % 2 == 0)
    paint = Distorting(Color(threshold=0.3, **ALL), drawn)
    plain = batched(*arguments, NO_MEAN, NO_STD)
    away = (plain - 0.3).abs() > 1e-5  # the last bits of a value at the threshold decide about it
    expected, found = (f(*arguments, NO_MEAN, NO_STD, paint) for f in (batched, render))
    torch.testing.assert_close(found[away], expected[away], atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 0.5


@pytest.mark.parametrize(("side", "size"), [(32, 32), (96, 64)])
def test_everything_as_it_is_drawn(side, size):
    b = 200
    arguments, color = some(b, side, size), Color(0.8, 0.8, 0.8, 0.2, solarize=0.0)
    paint = Distorting(color, draw_distortion(Draws(3, 1, torch.arange(b)), color))
    expected, found = (f(*arguments, MEAN, STD, paint) for f in (batched, render))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_a_probability_of_zero_is_never():
    """The draws are made whatever the settings; the settings decide."""
    arguments = some(24, 32, 32)
    yes = torch.ones(24, dtype=torch.bool)
    drawn = Distortion(yes, torch.zeros(24, 4), torch.arange(4).expand(24, 4), yes, yes, torch.ones(24), yes)
    paint = Distorting(Color(jitter=0, gray=0, blur=0, solarize=0), drawn)
    assert torch.equal(render(*arguments, MEAN, STD, paint), render(*arguments, MEAN, STD))


def test_views_do_not_depend_on_threads_or_on_the_rest_of_the_batch():
    b = 70
    canvases = Batch.of(pictures(b, 64))
    kind, draws = Global(1, 48), Draws(0, 0, canvases.index)

    def rendered(rows):
        boxes, flip = kind.crop(canvases[rows], replace(draws, index=rows))
        paint = kind.paint(0, replace(draws, index=rows))
        return compiled.render(canvases[rows].canvases, boxes, flip, 48, MEAN, STD, paint)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rendered(torch.arange(b))
        torch.set_num_threads(3)
        assert torch.equal(rendered(torch.arange(b)), one)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rendered(torch.tensor([5, 3, 60])), one[[5, 3, 60]])


def test_bits_are_those_of_other_devices():
    index = torch.tensor([0, 1, 7, 2**40, -3, 2**63 - 1])
    for stream in (0, 12345, -(2**62), 2**63 - 1):
        columns = torch.arange(1, 6) * _GOLDEN
        assert torch.equal(hashing.bits(index, stream, 5), _mix(_mix(index + stream)[:, None] + columns))


@pytest.mark.parametrize("box", [(-1, 0, 8, 8), (0, 0, 0, 4), (4, 0, 29, 8), (0, 30, 8, 3)])
def test_boxes_outside_the_canvas_are_refused(box):
    boxes = torch.tensor([box])
    for crop in (compiled.crop, lambda p, b, s, f: compiled.render(p, b, f, s, MEAN, STD)):
        with pytest.raises(ValueError, match="within the canvas"):
            crop(Canvases.dense(pictures(1, 32)), boxes, 16, torch.tensor([False]))


def test_what_a_gpu_runs_compiles_to_one_graph(monkeypatch):
    """A break in the graph costs more than it saves; here with what a GPU does in place of choosing images."""
    monkeypatch.setattr(
        "manyviews.views.distort.apply_to", lambda m, f, x, *p: torch.where(m[:, None, None, None], f(x, *p), x)
    )
    color, x = Color(0.8, 0.8, 0.8, 0.2, solarize=0.2), torch.rand(8, 3, 24, 24)
    drawn = draw_distortion(Draws(0, 0, torch.arange(8)), color)
    compiled_graph = torch.compile(distort, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_graph(x.clone(), color, drawn), distort(x.clone(), color, drawn))


def test_what_would_be_read_outside_of_an_array_is_refused():
    pixels, boxes, flip, size = some(8, 32, 4)
    wide = Distorting(Color(kernel=23, **ALL), one_change(8, blur=torch.ones(8, dtype=torch.bool)))
    with pytest.raises(ValueError, match="too wide"):
        render(pixels, boxes, flip, size, MEAN, STD, wide)
    orders = one_change(8, order=torch.full((8, 4), 7))
    with pytest.raises(ValueError, match="order"):
        render(pixels, boxes, flip, size, MEAN, STD, Distorting(Color(**ALL), orders))
    whole = Canvases.dense(pixels)
    lost = replace(whole, start=whole.start + 1)
    for changed, match in ((Canvases.dense(pixels.float()), "uint8"), (whole[:4], "for each"), (lost, "outside")):
        with pytest.raises(ValueError, match=match):
            compiled.crop(changed, boxes, size, flip)
    with pytest.raises(ValueError, match="as many means"):
        render(pixels, boxes, flip, size, MEAN[:1], STD)


def test_canvases_of_floats_and_empty_batches_are_views_too():
    pixels = pictures(8, 32)
    bytes_, floats = map(Batch.of, (pixels, pixels.float().div(255)))
    for kind in (Global(1, 24), Composed(1, 24)):
        a, b = (kind.make(c, 0, kind.place(Draws(0, 0, c.index), 0), MEAN, STD) for c in (bytes_, floats))
        torch.testing.assert_close(a, b, atol=2e-2 if isinstance(kind, Composed) else 2e-4, rtol=0)
        none = bytes_[torch.arange(0)]
        assert kind.make(none, 0, kind.place(Draws(0, 0, none.index), 0), MEAN, STD).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_any_number_of_channels(channels):
    """Brightness, contrast, blur and solarization of each channel; what needs RGB leaves them alone."""
    pixels = torch.cat([pictures(24, 48)] * 5, 1)[:, :channels].contiguous()
    boxes, flip = boxes_of(24, (48, 48), (0.3, 1.0)), torch.arange(24) % 2 == 0
    mean, std = (0.4,) * channels, tuple(0.2 + 0.01 * k for k in range(channels))
    color = Color(0.8, 0.8, 0.8, 0.2, solarize=0.0)
    paint = Distorting(color, draw_distortion(Draws(3, 1, torch.arange(24)), color))
    expected, found = (f(pixels, boxes, flip, 40, mean, std, paint) for f in (batched, render))
    assert found.shape == (24, channels, 40, 40) and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    # By hand, without a crop: contrast about a channel's own mean, after brightness.
    once = one_change(2, jitter=torch.ones(2, dtype=torch.bool), factors=torch.tensor([[0.8, 0.5, 0.0, 0.3]] * 2))
    whole, x = torch.tensor([[0, 0, 48, 48]] * 2), pixels[:2] / 255 * 0.8
    mean, std = (0.0,) * channels, (1.0,) * channels
    found = render(pixels[:2], whole, flip[:2] & False, 48, mean, std, Distorting(Color(**ALL | {"gray": 0.0}), once))
    torch.testing.assert_close(found, (x + x.mean((2, 3), keepdim=True)) / 2, atol=1e-5, rtol=0)
