"""Colors: each image as torchvision's function gives it for the same factor."""

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as F

from manyviews.views import Color, Draws
from manyviews.views import color as ops
from manyviews.views.distort import Distortion, distort, draw_distortion
from manyviews.views.filters import gaussian_blur

N = 48


@pytest.fixture
def x() -> torch.Tensor:
    """Noise, saturated primaries, grays, near-grays, black, white."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(N, 3, 13, 17, generator=g)
    x[0], x[1], x[2] = 0, 1, 0.5
    x[3] = (x[3] > 0.5).float()
    x[4] = x[4, :1]
    x[5] = x[5, :1] + torch.rand(3, 13, 17, generator=g) * 1e-6
    x[6, 0], x[7, 1], x[8, 2] = x[6, 1], x[7, 2], x[8, 0]
    x[9:20] = (x[9:20] * 255).round() / 255
    return x.clamp(0, 1)


def uniform(low: float, high: float) -> torch.Tensor:
    return torch.empty(N).uniform_(low, high, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (ops.adjust_brightness, F.adjust_brightness, uniform(0, 2)),
        (ops.adjust_contrast, F.adjust_contrast, uniform(0, 2)),
        (ops.adjust_saturation, F.adjust_saturation, uniform(0, 2)),
        (ops.adjust_hue, F.adjust_hue, uniform(-0.5, 0.5)),
        (ops.adjust_hue, F.adjust_hue, torch.tensor([-0.5, 0.5, 0.0, 1 / 6, -1 / 3, 0.2] * 8)),
    ],
)
def test_equals_torchvision(ours, theirs, factor, x):
    expected = torch.stack([theirs(image, f) for image, f in zip(x, factor.tolist(), strict=True)])
    assert torch.allclose(ours(x.clone(), factor), expected, atol=1e-5, rtol=0)


def test_hue_of_float64_equals_a_loop_over_colorsys():
    import colorsys

    x, factor = torch.rand(1, 3, 8, 8, dtype=torch.float64), torch.tensor([0.37], dtype=torch.float64)
    out = ops.adjust_hue(x, factor)
    for i in range(8):
        for j in range(8):
            h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((h + 0.37) % 1, s, v), dtype=torch.float64)
            assert torch.allclose(out[0, :, i, j], expected, atol=1e-9)


def test_grayscale_and_solarize_equal_torchvision(x):
    assert torch.allclose(ops.grayscale(x), F.rgb_to_grayscale(x, 3), atol=1e-7)
    assert torch.equal(ops.solarize(x, 0.5), F.solarize(x, 0.5))
    assert torch.equal(ops.solarize(x, 0.0), F.invert(x))


def test_jitter_equals_torchvision_in_every_order(x):
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[(orders.sort(1).values == torch.arange(4)).all(1)].repeat(2, 1)  # 24, twice
    factors = torch.stack([uniform(0.2, 1.8), uniform(0.2, 1.8).flip(0), uniform(0.2, 1.8).roll(5), uniform(-0.5, 0.5)])
    theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    out = ops.jitter(x.clone(), factors.T, orders)
    for image, result, factor, order in zip(x, out, factors.T.tolist(), orders.tolist(), strict=True):
        for op in order:
            image = theirs[op](image, factor[op])
        assert torch.allclose(result, image, atol=1e-5, rtol=0), order


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (24, 23), (13, 5), (16, 31)])
def test_blur_equals_torchvision(size, kernel):
    x = torch.rand(6, 3, size, size + 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.3, 0.7, 1.0, 1.6, 2.0])
    expected = torch.stack(
        [F.gaussian_blur(i, [kernel, kernel], [s, s]) for i, s in zip(x, sigma.tolist(), strict=True)]
    )
    assert torch.allclose(gaussian_blur(x, sigma, kernel), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gray", "n"), [(0.3, N), (0.3, 1), (1.0, N), (0.0, N)])
def test_distort_applies_what_was_drawn_in_the_papers_order(x, gray, n):
    x = x[:n, :, :13, :13]
    color = Color(0.8, 0.8, 0.8, 0.2, jitter=0.6, gray=gray, blur=0.5, kernel=5, solarize=0.4, threshold=0.6)
    drawn = draw_distortion(Draws(0, 0, torch.arange(n)), color)
    out = distort(x.clone(), color, drawn)
    theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for i, image in enumerate(x):
        if drawn.jitter[i]:
            for op in drawn.order[i].tolist():
                image = theirs[op](image, drawn.factors[i, op].item())
        if drawn.gray[i]:
            image = F.rgb_to_grayscale(image, 3)
        if drawn.blur[i]:
            image = F.gaussian_blur(image, [5, 5], [drawn.sigma[i].item()] * 2)
        if drawn.solarize[i]:
            image = F.solarize(image, 0.6)
        far = (out[i] - image).abs() > 1e-5
        # At the threshold the last bit decides on inversion.
        assert far.float().mean() < (1e-2 if drawn.solarize[i] else 1e-9), i


def test_drawn_parameters_have_the_stated_distributions():
    n = 20_000
    color = Color(0.8, 0.4, 1.5, 0.2, jitter=0.8, gray=0.2, blur=0.5, sigma=(0.1, 2.0), solarize=0.1)
    drawn = draw_distortion(Draws(0, 0, torch.arange(n)), color)
    ranges = [(0.2, 1.8), (0.6, 1.4), (0.0, 2.5), (-0.2, 0.2)]  # as ColorJitter's
    for values, (low, high) in zip([*drawn.factors.T, drawn.sigma], [*ranges, (0.1, 2.0)], strict=True):
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3
    for name, p in {"jitter": 0.8, "gray": 0.2, "blur": 0.5, "solarize": 0.1}.items():
        assert stats.binomtest(int(getattr(drawn, name).sum()), n, p).pvalue > 1e-3, name
    counts = torch.unique(drawn.order, dim=0, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3
    # One thing's draw says nothing about another's.
    table = torch.stack([getattr(drawn, k).double() for k in ("jitter", "gray", "blur", "solarize")])
    table = torch.cat([table, drawn.factors.T.double(), drawn.sigma[None].double()])
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 4 / n**0.5


def test_rows_of_a_distortion_are_those_of_the_batch():
    drawn = draw_distortion(Draws(0, 0, torch.arange(9)), Color())
    part = draw_distortion(Draws(0, 0, torch.arange(4, 7)), Color())
    assert isinstance(drawn[4:7], Distortion)
    for name, value in vars(drawn[4:7]).items():
        assert torch.equal(value, getattr(part, name)), name
