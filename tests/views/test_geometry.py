"""Crops: drawn like torchvision's, and resampled like torchvision's and PIL's."""

import math

import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from manyviews.types import Canvases
from manyviews.views import Draws, compiled
from manyviews.views.geometry import crop_resize, draw_boxes

RATIO = (3 / 4, 4 / 3)


def boxes_of(n, extent, area, ratio=RATIO, seed=0):
    return draw_boxes(Draws(seed, 0, torch.arange(n)), torch.tensor(extent).expand(n, 2), area, ratio)


def theirs(n, side, area, ratio=RATIO):
    transform, image = v2.RandomResizedCrop(8, scale=area, ratio=ratio), torch.empty(3, *side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        p = [transform.make_params([image]) for _ in range(n)]
    return torch.tensor([[q["top"], q["left"], q["height"], q["width"]] for q in p])


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.05, 0.25), (0.9, 1.0)])
def test_square_images_are_cropped_as_by_torchvision(area):
    ours, their = boxes_of(4000, (256, 256), area).double(), theirs(4000, (256, 256), area).double()
    for name, f in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "vertical place": lambda b: b[:, 0] / (257 - b[:, 2]),
        "horizontal place": lambda b: b[:, 1] / (257 - b[:, 3]),
        "center": lambda b: b[:, 0] + b[:, 2] / 2,
    }.items():
        assert stats.ks_2samp(f(ours), f(their)).pvalue > 1e-3, name


@pytest.mark.parametrize("extent", [(400, 1000), (900, 300)])
def test_images_of_other_shapes_are_cropped_as_by_torchvision(extent):
    ours, their = boxes_of(4000, extent, (0.08, 1.0)).double(), theirs(4000, extent, (0.08, 1.0)).double()
    for name, f in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "place": lambda b: b[:, 0] / (extent[0] + 1 - b[:, 2]) + b[:, 1] / (extent[1] + 1 - b[:, 3]),
    }.items():
        assert stats.ks_2samp(f(ours), f(their)).pvalue > 1e-3, name


def test_small_canvases_round_as_torchvision():
    ours, their = boxes_of(6000, (32, 32), (0.2, 1.0)), theirs(6000, (32, 32), (0.2, 1.0))
    for column in (2, 3):
        table = torch.stack([torch.bincount(b[:, column], minlength=33) for b in (ours, their)])
        assert stats.chi2_contingency(table[:, table.sum(0) > 10]).pvalue > 1e-3


def test_boxes_lie_within_the_canvas():
    for extent in ((4, 4), (30, 500), (32, 32), (1, 1000)):
        b = boxes_of(5000, extent, (0.05, 1.0))
        assert b.dtype == torch.int64
        assert (b >= 0).all() and (b[:, 2:] > 0).all() and (b[:, :2] + b[:, 2:] <= torch.tensor(extent)).all()


@pytest.mark.parametrize("extent", [(64, 64), (64, 512), (512, 64)])
def test_a_central_crop_when_no_try_fits(extent):
    """Areas of the whole image in one aspect ratio only fit images of that ratio."""
    their = theirs(1, extent, (1.0, 1.0), (1.2, 1.5))
    assert torch.equal(boxes_of(1, extent, (1.0, 1.0), (1.2, 1.5)), their)


def test_the_first_try_that_fits_is_taken():
    draws, extent = Draws(0, 0, torch.arange(500)), torch.tensor([[100, 160]]).expand(500, 2)
    area, ratio = (0.3, 1.0), (0.5, 2.0)
    boxes = draw_boxes(draws, extent, area, ratio)
    areas = draws.uniform("area", 10, *area).tolist()
    logs = draws.uniform("ratio", 10, math.log(ratio[0]), math.log(ratio[1])).tolist()
    late = 0
    for box, a, r in zip(boxes.tolist(), areas, logs, strict=True):
        tries = [
            (round(math.sqrt(16000 * x / math.exp(y))), round(math.sqrt(16000 * x * math.exp(y))))
            for x, y in zip(a, r, strict=True)
        ]
        fitting = [t for t in tries if t[0] <= 100 and t[1] <= 160]
        assert tuple(box[2:]) == (fitting[0] if fitting else (100, 160))
        late += tries[0] not in fitting
    assert late > 20


# -- resampling ------------------------------------------------------------------------------------------------------


def pictures(n: int, side: int) -> torch.Tensor:
    """Smooth shapes, noise and hard black-and-white edges, on which bicubic overshoots."""
    g = torch.Generator().manual_seed(side)
    noise = torch.rand(n, 3, side, side, generator=g)
    smooth = torch.nn.functional.interpolate(noise[..., :4, :4], size=(side, side), mode="bilinear")
    kinds = torch.stack([noise, smooth, (noise > 0.5).float()])[torch.arange(n) % 3, torch.arange(n)]
    return (kinds * 255).round().to(torch.uint8)


CASES = [(32, 32), (40, 17), (16, 48), (64, 96), (96, 32)]


@pytest.mark.parametrize(("side", "size"), CASES)
def test_within_one_gray_level_of_torchvision(side, size):
    pixels, boxes = pictures(24, side), boxes_of(24, (side, side), (0.05, 1.0))
    boxes[0] = torch.tensor([0, 0, side, side])
    boxes[1] = torch.tensor([side - 1, side - 1, 1, 1])
    boxes[2] = torch.tensor([0, side - 2, side, 2])
    flip = torch.arange(24) % 2 == 0
    ours = crop_resize(pixels, boxes, size, flip)
    assert ours.dtype == torch.float32 and ours.min() >= 0 and ours.max() <= 1
    for x, y, (top, left, height, width), flipped in zip(pixels, ours, boxes.tolist(), flip, strict=True):
        expected = F.resized_crop(
            x, top, left, height, width, [size, size], v2.InterpolationMode.BICUBIC, antialias=True
        )
        expected = F.horizontal_flip(expected) if flipped else expected
        assert ((y * 255).round() - expected).abs().max() <= 1


@pytest.mark.parametrize(("side", "size"), CASES)
def test_equals_torchs_float_resampling(side, size):
    """Tighter than 8 bits allow: a wrong kernel constant or a shift by a hundredth of a pixel fails here."""
    pixels, boxes = pictures(12, side), boxes_of(12, (side, side), (0.05, 1.0), seed=1)
    ours = crop_resize(pixels, boxes, size)
    for x, y, (top, left, height, width) in zip(pixels, ours, boxes.tolist(), strict=True):
        x = x[None, :, top : top + height, left : left + width].double() / 255
        for shape in ((height, size), (size, size)):
            x = torch.nn.functional.interpolate(x, shape, mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.allclose(y.double(), x[0], atol=2e-5)


def test_within_one_gray_level_of_pil():
    pixels, boxes = pictures(9, 50), boxes_of(9, (50, 50), (0.1, 1.0), seed=2)
    for x, y, (top, left, height, width) in zip(pixels, crop_resize(pixels, boxes, 24), boxes.tolist(), strict=True):
        image = Image.fromarray(x.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        expected = F.pil_to_tensor(image.resize((24, 24), Image.Resampling.BICUBIC))
        assert ((y * 255).round() - expected).abs().max() <= 1


def test_the_whole_canvas_at_its_own_size_is_itself():
    pixels = pictures(3, 32)
    out = crop_resize(pixels, torch.tensor([[0, 0, 32, 32]] * 3), 32)
    assert torch.equal((out * 255).round(), pixels.float())
    assert torch.allclose(out, pixels / 255, atol=1e-7)


def test_nothing_outside_the_box_is_seen():
    pixels, boxes = pictures(6, 32), boxes_of(6, (32, 32), (0.1, 0.5))
    inside = torch.zeros(6, 1, 32, 32, dtype=torch.bool)
    for mask, (top, left, height, width) in zip(inside, boxes.tolist(), strict=True):
        mask[:, top : top + height, left : left + width] = True
    other = torch.where(inside, pixels, 255 - pixels)
    assert torch.equal(crop_resize(pixels, boxes, 20), crop_resize(other, boxes, 20))


def test_images_of_several_shapes_in_one_batch():
    """Each is cropped as if it came alone, where canvases lie tight in one pool and where they are padded."""
    g = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8) for h, w in ((40, 60), (90, 20), (7, 7))]
    tight = Canvases.packed([x.permute(1, 2, 0).contiguous().numpy() for x in images])
    padded = Canvases.dense(tight.padded(), tight.extent)
    boxes = draw_boxes(Draws(0, 0, torch.arange(3)), tight.extent, (0.3, 1.0), RATIO)
    flip = torch.tensor([True, False, True])
    expected = torch.cat([crop_resize(x[None], boxes[i : i + 1], 16, flip[i : i + 1]) for i, x in enumerate(images)])
    alone = torch.nn.functional.pad(boxes[:, 2:], (2, 0))
    for canvases in (tight, padded, padded[torch.arange(3)].alone()):
        assert torch.equal(crop_resize(canvases.cut(boxes, canvases.room), alone, 16, flip), expected)
        torch.testing.assert_close(compiled.crop(canvases, boxes, 16, flip), expected, atol=2e-6, rtol=0)
    backwards = tight[torch.tensor([2, 1, 0])]
    assert all(torch.equal(backwards.image(2 - i), x) for i, x in enumerate(images))
