"""View types: settings that cannot be wrong silently, and what sets the cutout apart."""

import dataclasses
import json

import pytest
import torch
from scipy import stats

from manyviews.errors import UserError
from manyviews.types import Canvases
from manyviews.views import BYOL_PAIR, MULAN, SIMCLR, Color, Cutout, Draws, Global, Local, View, Views
from manyviews.views.geometry import draw_blocks
from manyviews.views.masks import apply_to, erase


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
        (lambda: Cutout(hole=(0.4, 0.2)), "Cutout.hole"),
        (lambda: Cutout(hole_ratio=(0.0, 1.0)), "Cutout.hole_ratio"),
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
    assert [k().name for k in (Global, Local, Cutout)] == ["global", "local", "cutout"]


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
    canvases = Canvases(torch.full((16, 3, 40, 40), 255, dtype=torch.uint8), torch.full((16, 2), 40), torch.arange(16))
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
    class Turned(View):
        def transform(self, x, draws):
            turns = (draws.uniform("turns", 1, 0, 4)[:, 0]).long()
            return torch.stack([i.rot90(int(t), (1, 2)) for i, t in zip(x, turns, strict=True)])

    canvases = Canvases(
        torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.full((4, 2), 16), torch.arange(4)
    )
    views = Views(canvases, (Global(1, 16, color=SIMCLR), Turned(2, 16, (1.0, 1.0))))
    assert [(k.name, i, x.shape[-1]) for k, i, x in views.each()] == [
        ("global", 0, 16),
        ("turned", 0, 16),
        ("turned", 1, 16),
    ]
