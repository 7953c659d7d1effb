"""Cutout: when the hole is cut, and of what its area is a fraction, against torchvision and loops."""

import pytest
import torch
from torch.nn import Linear
from torchvision.transforms.v2 import functional as TF

from manyviews.errors import UserError
from manyviews.heads import Predictors
from manyviews.testing import pictures
from manyviews.types import Batch, Canvases
from manyviews.views import IMAGENET_MEAN, IMAGENET_STD, Color, Crop, Cutout, Draws, Global, Views
from manyviews.views.geometry import draw_blocks

SIDE = 32
WHOLE = {"area": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
BLUR = Color(jitter=0.0, gray=0.0, blur=1.0, sigma=(1.5, 1.5), kernel=9)


def holes(views: Views, kind: Cutout, i: int = 0) -> torch.Tensor:
    """Where each view's hole was drawn: bool, `b 1 side side`, by a loop."""
    draws = kind.place(views.draws, i)
    boxes = draw_blocks(draws.at("hole"), kind.size, kind.hole, kind.hole_ratio)
    found = torch.zeros(len(views), 1, kind.size, kind.size, dtype=torch.bool)
    for image, (top, left, height, width) in zip(found, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = True
    return found


def filled(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    return torch.where(where, mean, x)


def pixels(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return x * std + mean


def unfused(self: Cutout, i: int, draws: Draws):
    """Colors that are changed after the crop, in a batch, as on other devices."""
    paint = Crop.paint(self, i, draws)
    return lambda x, rows: paint(x, rows)


@pytest.mark.parametrize("batched", [False, True], ids=["compiled", "batched"])
def test_a_hole_that_is_cut_first_is_blurred_with_the_view(batched: bool, monkeypatch: pytest.MonkeyPatch):
    """The authors' order. A hole that came last, or after the blur, would have sharp edges and be zero inside."""
    batch = pictures(12)
    if batched:
        monkeypatch.setattr(Cutout, "paint", unfused)
    kind = Cutout(1, SIDE, color=BLUR, cut="first", **WHOLE)
    views = Views(batch, (kind, Global(1, SIDE, color=None, **WHOLE)))
    found = pixels(views["cutout", 0])
    where = holes(views, kind)
    plain = filled(pixels(views["global", 0]), where)
    expected = torch.stack([TF.gaussian_blur(x, [9, 9], [1.5, 1.5]) for x in plain])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    edge = where & ~torch.stack([TF.gaussian_blur(w.float(), [9, 9], [1.5, 1.5]) for w in where]).gt(0.999)
    assert (views["cutout", 0] * edge).abs().max() > 0.05


def test_the_two_orders_differ_in_the_hole_and_nowhere_else():
    """Without blur, a jittered hole moves off the mean by the jitter of its view; the rest is the same crop."""
    jitter = Color(blur=0.0, gray=0.0, jitter=1.0, saturation=0.0, hue=0.0, contrast=0.0)
    kinds = [Cutout(2, SIDE, (0.3, 1.0), jitter, cut=cut) for cut in ("first", "last")]
    first, last = (torch.cat(Views(pictures(16), (kind,)).all("cutout")) for kind in kinds)
    views = Views(pictures(16), (kinds[0],))
    where = torch.cat([holes(views, kinds[0], i) for i in range(2)])
    torch.testing.assert_close(first.masked_fill(where, 0), last)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    off = set()
    for x, hole in zip(first, where, strict=True):
        inside = x[:, hole[0]]
        assert (inside - inside[:, :1]).abs().max() < 1e-5  # one color
        factor = ((inside[:, 0] * std + mean) / mean).tolist()
        assert max(factor) - min(factor) < 1e-4 and 0.6 <= factor[0] <= 1.4  # of one brightness
        off.add(round(factor[0], 3))
    assert len(off) > 20 and abs(sum(off) / len(off) - 1) < 0.1  # "an expected value of zero"


def test_the_default_is_the_sharp_hole_of_zeros():
    kind = Cutout(1, SIDE)
    views = Views(pictures(8), (kind,))
    assert kind.cut == "last" and (views["cutout", 0][holes(views, kind).expand(-1, 3, -1, -1)] == 0).all()


@pytest.mark.parametrize("cut", ["first", "last"])
def test_a_hole_may_be_a_fraction_of_the_image(cut: str):
    """A map of the image's own coordinates tells how much of it the hole hides, whatever the crop and its stretch."""
    height, width, n = 60, 80, 400
    white = torch.full((n, 3, height, width), 255, dtype=torch.uint8)
    batch = Batch(torch.arange(n), Canvases.dense(white))
    kind = Cutout(1, 64, (0.5, 1.0), None, hole=(0.2, 0.3), cut=cut, hole_of="image")
    views = Views(batch, (kind,))
    hidden = (views["cutout", 0].abs() < 1e-5).all(1).float().mean((1, 2))
    boxes, _ = kind.crop(batch, kind.place(views.draws, 0))
    shares = []
    for share, (_, _, tall, wide) in zip(hidden.tolist(), boxes.tolist(), strict=True):
        shares.append(share * tall * wide / (height * width))
    shares = torch.tensor(shares)
    assert shares.min() > 0.19 and shares.max() < 0.31
    assert abs(shares.mean() - 0.25) < 0.005 and (shares < 0.21).any() and (shares > 0.29).any()
    # Of the view it is 1 to 2 times as much.
    assert hidden.max() > 0.5 and hidden.min() < 0.3


def test_a_hole_of_the_image_that_no_crop_can_hold_is_the_central_square():
    batch = pictures(6)
    kind = Cutout(1, 40, (0.1, 0.1), None, hole=(0.3, 0.42), hole_of="image", ratio=(1.0, 1.0))
    x = Views(batch, (kind,))["cutout", 0]
    assert (x[:, :, 8:32, 8:32] == 0).all() and (x[:, :, :8] != 0).any() and (x[:, :, :, 32:] != 0).any()


def test_wrong_words_and_a_predictor_that_cannot_be_told_are_refused():
    for wrong in ({"cut": "before"}, {"hole_of": "crop"}):
        with pytest.raises(UserError, match=f"Cutout.{next(iter(wrong))}"):
            Cutout(**wrong)
    tasks = (Global(2, SIDE), Cutout(1, SIDE, hole_of="image"))
    Predictors(tasks, 4, lambda dim: Linear(dim, 4), "own")
    with pytest.raises(UserError, match="hole_of"):
        Predictors(tasks, 4, lambda dim: Linear(dim, 4), "conditioned")
