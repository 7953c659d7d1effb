"""Tampering: JPEG as Pillow saves it, frames, overlays and turns as closed forms have them, and mixed views."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from manyviews.types import Batch
from manyviews.views import COPIED, Copied, Draws
from manyviews.views import tampering as T
from manyviews.views.augmentations import HorizontalFlip, ResizedCrop

OPS = (T.Lettering(), T.Sticker(), T.Border(), T.QuarterTurn(), T.Jpeg())


def images(n: int = 6, size: int = 32, channels: int = 3) -> torch.Tensor:
    """Smooth pictures in 8 bits."""
    x = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 1) * 255).round() / 255


def draws(n: int, first: int = 0) -> Draws:
    return Draws(3, 1, torch.arange(first, first + n))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_contract_of_an_augmentation(op):
    x = images()
    before, parameters = x.clone(), op.draw(draws(6), 32)
    out = op.apply(x, parameters)
    assert torch.equal(x, before) and out.shape == x.shape and out.min() >= 0 and out.max() <= 1
    assert not torch.equal(out, x) and op.apply(images(6, 32, 1), parameters).shape == (6, 1, 32, 32)
    alone = torch.cat([op(x[i : i + 1], draws(1, i)) for i in range(6)])
    torch.testing.assert_close(alone, out, atol=2e-6, rtol=0)
    meta = Draws(0, 0, torch.arange(4, device="meta"))
    assert op.apply(torch.empty(4, 3, 32, 32, device="meta"), op.draw(meta, 32)).shape == (4, 3, 32, 32)


@pytest.mark.parametrize("quality", [15, 50, 90])
@pytest.mark.parametrize("size", [32, 27])
def test_jpeg_is_pillows(quality: int, size: int):
    x = images(2, size)
    made = T.jpeg(x, torch.full((2,), float(quality)))
    for picture, found in zip(x, made, strict=True):
        file = io.BytesIO()
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
        wanted = np.asarray(Image.open(file), dtype=np.float32)
        off = np.abs(found.permute(1, 2, 0).numpy() * 255 - wanted)
        assert off.mean() < 0.7 and (off <= 2).mean() > 0.9  # libjpeg computes in integers
        assert np.abs(pixels - wanted).mean() > 2 * off.mean() or quality == 90


def test_a_frame_holds_the_smaller_image_and_a_turn_turns():
    x = images(1)
    found = T.Border().apply(x, torch.tensor([[4.0, 2.0, 20.0, 25.0, 0.1, 0.2, 0.3]]))
    small = F.interpolate(x, size=(20, 25), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[:, :, 4:24, 2:27], small, atol=1e-5, rtol=0)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[4:24, 2:27] = False
    torch.testing.assert_close(found[0, :, outside], torch.tensor([0.1, 0.2, 0.3])[:, None].expand(-1, 524))
    for turns in (1, 2, 3):
        assert torch.equal(T.QuarterTurn().apply(x, torch.tensor([[float(turns)]])), x.rot90(turns, (2, 3)))


def test_overlays_stay_within_their_boxes():
    x = torch.full((200, 3, 32, 32), 0.5)
    for op, most in ((T.Lettering(opacity=(1.0, 1.0)), 0.6), (T.Sticker(opacity=(1.0, 1.0)), 0.8)):
        parameters = op.draw(draws(200), 32)
        top, left, tall, wide = parameters[:, :4].T
        assert (top >= 0).all() and (left >= 0).all() and (top + tall <= 32.001).all() and (left + wide <= 32.001).all()
        changed = (op.apply(x, parameters) != 0.5).any(1)
        y, column = (changed.any(d) for d in (2, 1))
        for i in range(200):
            rows, columns = y[i].nonzero()[:, 0], column[i].nonzero()[:, 0]
            assert len(rows) == 0 or (rows[0] >= top[i] - 1 and rows[-1] <= top[i] + tall[i] + 1)
            assert len(columns) == 0 or (columns[0] >= left[i] - 1 and columns[-1] <= left[i] + wide[i] + 1)
        share = changed.float().mean((1, 2)) * 32**2 / (tall * wide)
        assert 0.2 < share.mean() < most


def test_mixed_views_hold_their_neighbors_and_say_so():
    """Images of one color: the mean color of a view tells its share of the neighbor."""
    n = 400
    level = torch.where(torch.arange(n) % 2 == 0, 0, 250).byte()
    batch = Batch.of(level[:, None, None, None].expand(n, 3, 8, 8).clone())
    kind = Copied(1, size=8, augmentations=(ResizedCrop(), HorizontalFlip()), mix=0.25)
    place = kind.place(draws(n), 0)
    view = kind.make(batch, 0, place, (0.0,) * 3, (1.0,) * 3).mean((1, 2, 3)) * 255 / 250
    own = kind.parameters(place)[:, 0]
    share = torch.where(torch.arange(n) % 2 == 0, 1 - view, view)  # of the image's own color
    assert torch.all((share < 0.999) == (own < 1)) and 0.15 < (own < 1).float().mean() < 0.35
    exact = (share - own).abs() < 1e-3
    assert 0.3 < exact[own < 1].float().mean() < 0.8  # MixUp; a square is cut off at the border
    assert (share[own < 1] >= own[own < 1] - 0.2).all() and abs(float(own[own < 1].mean()) - 0.5) < 0.08
    assert {a.name for a in COPIED} >= {"jpeg", "sticker", "lettering", "border"}
