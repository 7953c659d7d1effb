"""View types: settings that cannot be wrong silently, and what sets the cutout apart."""

import dataclasses
import json

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from manyviews.errors import UserError
from manyviews.types import Batch
from manyviews.views import (
    BYOL_PAIR,
    MULAN,
    SIMCLR,
    Color,
    Composed,
    Crop,
    CutMix,
    Cutout,
    Draws,
    Global,
    Local,
    Rotation,
    Shuffle,
    Strong,
    View,
    Views,
)
from manyviews.views.augmentations import GaussianBlur
from manyviews.views.geometry import draw_blocks
from manyviews.views.regions import apply_to, erase


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Global(0), "Global.count"),
        (lambda: Global(size=0), "Global.size"),
        (lambda: Local(area=(0.0, 0.5)), "Local.area"),
        (lambda: Local(area=(0.5, 0.1)), "Local.area"),
        (lambda: Local(area=(0.5, 1.5)), "Local.area"),
        (lambda: Global(ratio=(2.0, 1.0)), "Global.ratio"),
        (lambda: Global(flip=1.5), "Global.flip"),
        (lambda: Global(3, color=BYOL_PAIR), "3 views and 2 colors"),
        (lambda: Global(size=8, color=Color(kernel=17)), "too small for a blur of 17"),
        (lambda: Composed(size=8, augmentations=(GaussianBlur(kernel=17),)), "too small for a blur of 17"),
        (lambda: Strong(size=8, augmentations=(GaussianBlur(kernel=17),)), "too small for a blur of 17"),
        (lambda: Cutout(hole=(0.4, 0.2)), "Cutout.hole"),
        (lambda: Cutout(hole_ratio=(0.0, 1.0)), "Cutout.hole_ratio"),
        (lambda: Cutout(1, symmetric=True), "Cutout.count"),
        (lambda: Rotation(degrees=(10.0, -10.0)), "Rotation.degrees"),
        (lambda: Shuffle(size=30), "Shuffle.grid"),
        (lambda: Color(hue=0.6), "Color.hue"),
        (lambda: Color(jitter=-0.1), "Color.jitter"),
        (lambda: Color(contrast=-1), "Color.contrast"),
        (lambda: Color(sigma=(0.0, 1.0)), "Color.sigma"),
        (lambda: Color(kernel=4), "Color.kernel"),
        (lambda: Color(threshold=2), "Color.threshold"),
    ],
)
def test_bad_settings_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_settings_are_plain_data():
    for kind in (Global(2, color=BYOL_PAIR), Local(color=MULAN), Cutout(color=None)):
        assert json.dumps(dataclasses.asdict(kind))
        assert hash(kind) == hash(dataclasses.replace(kind))
    kinds = (Global, Local, Cutout, Rotation, Shuffle, CutMix)
    assert [k().name for k in kinds] == ["global", "local", "cutout", "rotation", "shuffle", "cutmix"]


def test_blur_is_a_tenth_of_the_view():
    assert [Color().kernel_at(s) for s in (224, 160, 96, 64, 32, 16)] == [23, 17, 9, 7, 3, 3]
    for size in range(30, 400):
        assert abs(Color().kernel_at(size) - size / 10) <= 1
    assert Color(kernel=5).kernel_at(224) == 5


def test_holes_have_the_stated_areas_and_shapes():
    n, side = 8000, 224
    top, left, height, width = draw_blocks(Draws(0, 0, torch.arange(n)), side, (0.2, 0.4), (3 / 4, 4 / 3)).T.double()
    area = height * width / side**2
    slack = 2 / side
    assert 0.2 - slack < area.min() < 0.21 and 0.39 < area.max() < 0.4 + slack
    assert stats.kstest(area, "uniform", (0.2, 0.2)).pvalue > 1e-3
    ratio = torch.log(width / height)
    bound = torch.tensor(4 / 3).log().item()
    assert ratio.abs().max() < bound + slack
    assert stats.kstest(ratio, "uniform", (-bound, 2 * bound)).pvalue > 1e-3
    for corner, length in ((top, height), (left, width)):
        assert corner.min() >= 0 and (corner + length).max() <= side
        assert stats.kstest((corner + 0.5) / (side - length + 1), "uniform").pvalue > 1e-3


def test_a_hole_that_never_fits_is_a_central_square_of_the_mean_area():
    boxes = draw_blocks(Draws(0, 0, torch.arange(3)), 100, (0.3, 0.42), (16.0, 20.0))
    assert boxes.tolist() == [[20, 20, 60, 60]] * 3


def test_erase_equals_a_loop():
    x = torch.rand(5, 3, 9, 11) + 1
    boxes = torch.tensor([[0, 0, 9, 11], [8, 10, 1, 1], [2, 3, 4, 5], [0, 0, 1, 1], [3, 0, 2, 11]])
    expected = x.clone()
    for image, (top, left, height, width) in zip(expected, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0
    assert torch.equal(erase(x, boxes), expected)


def test_a_cutout_is_its_crop_with_a_hole_of_zeros():
    canvases = Batch.of(torch.full((16, 3, 40, 40), 255, dtype=torch.uint8))
    x = Views(canvases, (Cutout(1, 32, color=None),), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))["cutout", 0]
    hole = x == 0
    assert torch.equal(hole[:, 0], hole[:, 1]) and torch.equal(hole[:, 0], hole[:, 2])
    assert torch.allclose(x[~hole], torch.tensor(1.0))
    share = hole.float().mean((1, 2, 3))
    assert share.min() > 0.16 and share.max() < 0.45 and share.std() > 0.02


def test_apply_to_changes_the_chosen_images_only():
    x, add = torch.rand(6, 3, 4, 4), torch.arange(6.0)
    mask = torch.tensor([True, False, True, False, False, True])
    for m in (mask, ~mask, mask | True, mask & False):
        out = apply_to(m, lambda y, a: y + a[:, None, None, None], x.clone(), add)
        assert torch.equal(out, x + (add * m)[:, None, None, None])


def test_a_new_transformation_is_one_new_view_type():
    @dataclasses.dataclass(frozen=True)
    class Turned(Crop):
        def transform(self, x, draws):
            turns = (draws.uniform("turns", 1, 0, 4)[:, 0]).long()
            return torch.stack([i.rot90(int(t), (1, 2)) for i, t in zip(x, turns, strict=True)])

    canvases = Batch.of(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    views = Views(canvases, (Global(1, 16, color=SIMCLR), Turned(2, 16, (1.0, 1.0))))
    assert [(k.name, i, x.shape[-1]) for k, i, x in views.each()] == [
        ("global", 0, 16),
        ("turned", 0, 16),
        ("turned", 1, 16),
    ]


def smooth(n: int, height: int = 48, width: int = 48) -> Batch:
    """Pictures of one shape."""
    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 5, 5, generator=draw)
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return Batch.of((pixels.clamp(0, 1) * 255).byte())


def whole(kind, **settings) -> View:
    """A view of the whole canvas, with plain colors."""
    return kind(1, 48, area=(1.0, 1.0), color=None, ratio=(1.0, 1.0), flip=0.0, **settings)


@pytest.mark.parametrize("shape", [(48, 48), (30, 48)])
def test_a_rotation_is_torchvisions(shape):
    """Also of an image in a batch with larger ones, whose color around it is no part of it."""
    canvases, kind = smooth(6, *shape), whole(Rotation)
    roomy = Batch.of(torch.nn.functional.pad(canvases.pixels, (0, 20, 0, 9), value=255), canvases.extent)
    draws = Draws(3, 0, canvases.index).at("rotation/0")
    for batch in (canvases, roomy):
        turned = kind.before(batch, draws, (0.5, 0.5, 0.5))
        for i, angle in enumerate(draws.uniform("angle", 1, -180, 180)[:, 0].tolist()):
            expected = TF.rotate(canvases.pixels[i].float(), angle, InterpolationMode.BILINEAR, fill=[127.5] * 3)
            # Where the border of the image runs through a pixel, torchvision fills in another way: on few pixels.
            error = (turned.image(i) - expected).abs()
            assert (error > 1).float().mean() < 0.08 and error.median() <= 0.5
            assert error[:, 12:18, 16:32].max() <= 0.5 + 1e-3


def test_a_shuffle_moves_whole_patches():
    canvases, kind = smooth(5), whole(Shuffle)
    plain = Views(canvases, (whole(Global),))["global", 0]
    views = Views(canvases, (kind,))
    x, draws = views["shuffle", 0], views.draws.at("shuffle/0")
    order, told = draws.permutation("patches", 16), kind.parameters(draws)
    for n in range(5):
        for place in range(16):
            (r, c), (y, z) = divmod(place, 4), divmod(order[n, place].item(), 4)
            patch = plain[n, :, 12 * y : 12 * y + 12, 12 * z : 12 * z + 12]
            assert torch.equal(x[n, :, 12 * r : 12 * r + 12, 12 * c : 12 * c + 12], patch)
            assert told[n, 2 * place : 2 * place + 2].tolist() == pytest.approx([2 * y / 3 - 1, 2 * z / 3 - 1])
    assert len({tuple(o) for o in order.tolist()}) == 5


def test_a_cutmix_holds_its_neighbor_by_the_share_of_its_target():
    canvases, kind = smooth(7), whole(CutMix)
    views = Views(canvases, (kind, whole(Global)))
    x, plain = views["cutmix", 0], views["global", 0]
    z = torch.eye(7)
    target = views.blend("cutmix", 0, z)
    for n, other in enumerate([1, 0, 3, 2, 5, 4, 6]):
        its = (x[n] == plain[other]).all(0) & (plain[n] != plain[other]).any(0)
        own = (x[n] == plain[n]).all(0)
        assert (its | own).all()
        expected = torch.zeros(7).index_add_(0, torch.tensor([n, other]), torch.tensor([1.0, 0.0]))
        if other != n:
            share = its.float().mean().item()
            expected[n], expected[other] = 1 - share, share
        torch.testing.assert_close(target[n], expected)
    shares = kind.parameters(Draws(0, 0, torch.arange(4000)))[:, 2:].prod(1)
    assert shares.min() >= 0 and shares.max() <= 1 and 0.3 < shares.mean() < 0.45  # less what sticks out


def test_a_view_is_placed_as_its_target_shows_it():
    """The relation against crops of a picture of coordinates: where the local view's center is in the global one."""
    side = 96
    ramp = torch.arange(side).float() * 255 / (side - 1)
    rows, columns = ramp[:, None].expand(side, side), ramp[None].expand(side, side)
    pixels = torch.stack([rows, columns, rows]).round().byte().expand(40, 3, side, side)
    canvases = Batch.of(pixels)
    kinds = (Global(2, 64, (0.3, 1.0), None), Local(1, 64, (0.08, 0.25), None))
    views = Views(canvases, kinds, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    told = views.relation("local", 0, "global", 1)
    local, target = views["local", 0], views["global", 1]

    def ends(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Center and signed extent of a view in the picture, by its coordinates: rows, then columns."""
        down, right = x[:, 0].mean(2), x[:, 1].mean(1)
        return tuple(v for line in (down, right) for v in (line.mean(1), (line[:, 60] - line[:, 3]) / 57 * 64))

    y, h, x, w = ends(local)
    ty, th, tx, tw = ends(target)
    expected = torch.stack([(y - ty) / th, (x - tx) / tw, (h / th).log(), (w / tw).abs().log(), (w * tw < 0) + 0.0], 1)
    torch.testing.assert_close(told, expected, atol=0.03, rtol=0)
    assert 0.2 < told[:, 4].mean() < 0.8
