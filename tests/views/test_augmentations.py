"""Augmentations: each as torchvision, PIL or a closed form has it, for every image with parameters of its own."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from manyviews.errors import UserError
from manyviews.views import Draws
from manyviews.views import augmentations as A
from manyviews.views import color as ops
from manyviews.views.filters import adjust_sharpness, motion_blur, sobel
from manyviews.views.geometry import affine, crop_resize, draw_boxes

BILINEAR = v2.InterpolationMode.BILINEAR
EACH = tuple(dict.fromkeys((*A.MAST_19, *A.RANDAUGMENT)))
each = pytest.mark.parametrize("op", EACH, ids=lambda op: op.name)


def images(n: int = 12, height: int = 24, width: int = 24) -> torch.Tensor:
    """In 8 bits: noise, smooth shapes, hard edges, dark, pale, few values, and one that is flat."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, height, width, generator=g)
    smooth = torch.nn.functional.interpolate(x[..., :4, :4], size=(height, width), mode="bilinear")
    kinds = (x, smooth, (x > 0.5).float(), smooth * 0.3, 0.6 + smooth * 0.4, (smooth * 5).round() / 5)
    x = torch.stack(kinds)[torch.arange(n) % 6, torch.arange(n)]
    x[3, 1] = 0.4
    return (x * 255).round() / 255


def pil(image: torch.Tensor) -> Image.Image:
    return F.to_pil_image((image * 255).round().to(torch.uint8))


def levels(image: Image.Image) -> torch.Tensor:
    return F.pil_to_tensor(image).float()


def draws_of(n: int, first: int = 0) -> Draws:
    return Draws(3, 1, torch.arange(first, first + n))


# -- the contract ----------------------------------------------------------------------------------------------------


@each
def test_stays_in_range_and_leaves_its_input_alone(op):
    for x in (images(), torch.rand(12, 3, 33, 33)):
        before = x.clone()
        out = op(x, draws_of(12))
        assert torch.equal(x, before)
        assert out.shape == x.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1
        assert op.name == "identity" or not torch.equal(out, x)


@each
def test_a_batch_is_its_images_one_by_one(op):
    x = images()
    parameters = op.draw(draws_of(12), 24)
    assert parameters.dtype == torch.float32 and parameters.shape[0] == 12
    together = op.apply(x, parameters)
    for i in range(12):
        alone = draws_of(1, i)
        assert torch.equal(op.draw(alone, 24)[0], parameters[i])
        assert torch.allclose(op(x[i : i + 1], alone)[0], together[i], atol=2e-6)


@each
def test_runs_on_any_device_without_a_look_at_its_values(op):
    """Meta tensors have no values: asking for one fails, and so does mixing in a tensor of the CPU."""
    draws = Draws(0, 0, torch.arange(4, device="meta"))
    parameters = op.draw(draws, 24)
    out = op.apply(torch.empty(4, 3, 24, 24, device="meta"), parameters)
    assert parameters.device.type == out.device.type == "meta" and out.shape == (4, 3, 24, 24)


@each
def test_settings_are_plain_data(op):
    settings = json.loads(json.dumps(dataclasses.asdict(op)))
    assert type(op)(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}) == op


def test_the_papers_sets():
    assert A.MAST_15[:5] == A.MAST_5 and A.MAST_19[:15] == A.MAST_15
    assert [op.name for op in A.MAST_19] == [
        *("color_jitter", "gaussian_blur", "horizontal_flip", "grayscale", "resized_crop"),
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "invert"),
        *("sharpness", "gaussian_noise", "sobel", "erase"),
        *("solarize", "equalize", "posterize", "motion_blur"),
    ]
    assert [op.p for op in A.MAST_19] == [0.8, 0.5, 0.5, 0.2, 1.0] + [0.5] * 14
    assert len({op.name for op in A.RANDAUGMENT}) == len(A.RANDAUGMENT) == 14


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: A.Invert(p=1.1), "Invert.p must be between 0 and 1"),
        (lambda: A.ColorJitter(contrast=-1), "ColorJitter.contrast"),
        (lambda: A.ColorJitter(hue=0.6), "ColorJitter.hue"),
        (lambda: A.GaussianBlur(sigma=(0.0, 1.0)), "GaussianBlur.sigma"),
        (lambda: A.GaussianBlur(kernel=4), "GaussianBlur.kernel"),
        (lambda: A.MotionBlur(kernel=1), "MotionBlur.kernel"),
        (
            lambda: A.MotionBlur(direction=(-2.0, 0.0)),
            "MotionBlur.direction must be an increasing pair between -1 and 1",
        ),
        (lambda: A.MotionBlur(angle=(90.0, 0.0)), "MotionBlur.angle"),
        (lambda: A.ResizedCrop(area=(0.0, 0.5)), "ResizedCrop.area"),
        (lambda: A.ResizedCrop(ratio=(2.0, 1.0)), "ResizedCrop.ratio"),
        (lambda: A.ShearX(magnitude=(-0.3, 0.3)), "ShearX.magnitude must be an increasing pair of 0 or more"),
        (lambda: A.Rotate(magnitude=(30.0, 0.0)), "Rotate.magnitude"),
        (lambda: A.Sharpness(factor=(-0.1, 1.0)), "Sharpness.factor"),
        (lambda: A.Posterize(bits=(0, 8)), "Posterize.bits"),
        (lambda: A.Posterize(bits=(4, 9)), "Posterize.bits"),
        (lambda: A.Posterize(bits=(4.5, 8)), "Posterize.bits must be whole numbers"),
        (lambda: A.Solarize(threshold=(0.0, 1.5)), "Solarize.threshold"),
        (lambda: A.Erase(side=(0.0, 1.5)), "Erase.side"),
        (lambda: A.GaussianNoise(std=(-0.1, 0.1)), "GaussianNoise.std"),
    ],
)
def test_bad_settings_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


# -- what is drawn ---------------------------------------------------------------------------------------------------

N = 20_000


def uniform(values: torch.Tensor, low: float, high: float) -> bool:
    return stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("op", "ranges"),
    [
        (A.ColorJitter(), [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]),
        (A.GaussianBlur(), [(0.1, 2.0)]),
        (A.ShearX(), [(-0.3, 0.3)]),
        (A.ShearY(), [(-0.3, 0.3)]),
        (A.TranslateX(), [(-0.3, 0.3)]),
        (A.TranslateY(), [(-0.3, 0.3)]),
        (A.Rotate(), [(-30.0, 30.0)]),
        *((f(), [(0.05, 0.95)]) for f in (A.Brightness, A.Contrast, A.Saturation, A.Sharpness)),
        (A.Solarize(), [(0.0, 1.0)]),
        (A.GaussianNoise(std=(0.1, 0.2)), [(0.1, 0.2), (0.0, 2.0**24)]),
    ],
)
def test_magnitudes_are_uniform(op, ranges):
    parameters = op.draw(draws_of(N), 224)
    for column, (low, high) in zip(parameters.T, ranges, strict=False):
        assert low <= column.min() and column.max() <= high and uniform(column, low, high)


def test_signs_are_even_and_independent_of_the_magnitude():
    drawn = A.Rotate(magnitude=(10.0, 30.0)).draw(draws_of(N), 224)[:, 0]
    assert drawn.abs().min() >= 10 and uniform(drawn.abs(), 10, 30)
    assert stats.binomtest(int((drawn > 0).sum()), N, 0.5).pvalue > 1e-3
    assert stats.ks_2samp(drawn[drawn > 0], -drawn[drawn < 0]).pvalue > 1e-3


def test_whole_numbers_are_even_with_both_ends():
    assert (A.MotionBlur().draw(draws_of(N), 32)[:, 0] == 3).all()
    for column, expected in [
        (A.Posterize().draw(draws_of(N), 224), [4, 5, 6, 7, 8]),
        (A.MotionBlur(kernel=9).draw(draws_of(N), 224)[:, :1], [3, 5, 7, 9]),
    ]:
        values, counts = column.unique(return_counts=True)
        assert values.tolist() == expected and stats.chisquare(counts).pvalue > 1e-3


def test_whole_numbers_never_pass_their_end(monkeypatch):
    monkeypatch.setattr(Draws, "bits", lambda self, name, n: torch.full((1, n), -1))
    assert A.Posterize().draw(draws_of(1), 224).item() == 8
    assert A.MotionBlur().draw(draws_of(1), 224)[0, 0] == 23


def test_lines_point_anywhere():
    _, angle, direction = A.MotionBlur().draw(draws_of(N), 224).T
    assert uniform(angle, 0, 180) and uniform(direction, -1, 1)


def test_erased_squares_are_centered_anywhere():
    top, left, height, width = A.Erase().draw(draws_of(N), 200).T
    assert torch.equal(height, width) and width.min() >= 0 and width.max() == 100 and uniform(width / 200, 0, 0.5)
    for corner in (top, left):
        center = corner + (width / 2).floor()
        assert center.min() == 0 and center.max() == 199
        assert stats.chisquare(torch.bincount(center.long())).pvalue > 1e-3


def test_jitter_orders_are_permutations():
    order = A.ColorJitter().draw(draws_of(N), 224)[:, 4:]
    assert len(order.unique(dim=0)) == 24 and torch.equal(order.sort(1).values[0], torch.arange(4.0))


def test_crops_are_those_of_the_views():
    op, extent = A.ResizedCrop(area=(0.2, 0.6), ratio=(0.5, 2.0)), torch.tensor([[300, 500]]).expand(50, 2)
    assert torch.equal(op.boxes(draws_of(50), extent), draw_boxes(draws_of(50), extent, op.area, op.ratio))
    square = torch.full((50, 2), 64)
    assert torch.equal(op.draw(draws_of(50), 64), op.boxes(draws_of(50), square).float())


# -- values ----------------------------------------------------------------------------------------------------------


def test_equalize_equals_pil():
    """Also where PIL does nothing: few pixels, or one value. The small images reach values that it must cut to 255."""
    for height, width in ((24, 24), (16, 20), (17, 15), (40, 56), (8, 8)):
        x = images(24, height, width)
        for image, out in zip(x, ops.equalize(x), strict=True):
            assert torch.equal(out * 255, levels(ImageOps.equalize(pil(image))))


@pytest.mark.parametrize("first", [1, 5])
def test_posterize_equals_pil_and_torchvision(first):
    x, bits = images(), torch.arange(12) % 4 + first
    for image, n, out in zip(x, bits.tolist(), ops.posterize(x, bits.float()), strict=True):
        assert torch.equal((out * 255).round(), levels(ImageOps.posterize(pil(image), n)))
        assert torch.equal((out * 255).round().byte(), F.posterize((image * 255).round().byte(), n))


def test_autocontrast_equals_torchvision_and_pil():
    x = images()
    for image, out in zip(x, ops.autocontrast(x), strict=True):
        assert torch.allclose(out, F.autocontrast(image), atol=1e-6)
        assert ((out * 255).round() - levels(ImageOps.autocontrast(pil(image)))).abs().max() <= 1


def test_autocontrast_leaves_flat_images_alone():
    x = 0.7 + torch.rand(2, 3, 9, 9) * 1e-6  # just where 8 bits round up or down
    assert torch.equal(ops.autocontrast(x), x)


def test_solarize_and_invert_equal_torchvision():
    x, threshold = images(), torch.linspace(0, 1, 12)
    for image, limit, out in zip(x, threshold.tolist(), ops.solarize(x, threshold), strict=True):
        assert torch.equal(out, F.solarize(image, limit))
    assert torch.equal(ops.solarize(x, torch.full((12,), 0.5)), ops.solarize(x, 0.5))
    assert torch.equal(ops.invert(x), F.invert(x))


@pytest.mark.parametrize(
    ("op", "theirs", "pils"),
    [
        (A.Brightness(), F.adjust_brightness, ImageEnhance.Brightness),
        (A.Contrast(), F.adjust_contrast, ImageEnhance.Contrast),
        (A.Saturation(), F.adjust_saturation, ImageEnhance.Color),
        (A.Sharpness(), F.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("most", [0.95, 1.9])
def test_enhancements_equal_torchvision_and_pil(op, theirs, pils, most):
    x, factor = images(12, 21, 26), torch.linspace(0.05, most, 12)
    for image, f, out in zip(x, factor.tolist(), op.apply(x, factor[:, None]), strict=True):
        assert torch.allclose(out, theirs(image, f), atol=1e-5)
        # PIL rounds what it blends with, and exaggerates that.
        assert ((out * 255).round() - levels(pils(pil(image)).enhance(f))).abs().max() <= 2


def test_the_five_of_simclr_equal_torchvision():
    x = images()
    jitter, blur = A.ColorJitter(), A.GaussianBlur(kernel=5)
    drawn, sigma = jitter.draw(draws_of(12), 24), torch.linspace(0.1, 2, 12)
    theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    jittered, blurred = jitter.apply(x, drawn), blur.apply(x, sigma[:, None])
    for i, image in enumerate(x):
        assert torch.allclose(blurred[i], F.gaussian_blur(image, [5, 5], [sigma[i].item()] * 2), atol=1e-5)
        for k in drawn[i, 4:].long().tolist():
            image = theirs[k](image, drawn[i, k].item())
        assert torch.allclose(jittered[i], image, atol=1e-5)
    assert torch.equal(A.HorizontalFlip()(x, draws_of(12)), F.horizontal_flip(x))
    assert torch.allclose(A.Grayscale()(x, draws_of(12)), F.rgb_to_grayscale(x, 3), atol=1e-6)


def test_resized_crop_equals_torchvision_and_the_crop_of_a_canvas():
    x, op = images(), A.ResizedCrop()
    parameters = op.draw(draws_of(12), 24)
    out = op.apply(x, parameters)
    assert torch.allclose(out, crop_resize((x * 255).round().byte(), parameters.long(), 24), atol=1e-6)
    for image, (top, left, height, width), result in zip(x, parameters.int().tolist(), out, strict=True):
        pixels = (image * 255).round().byte()
        expected = F.resized_crop(pixels, top, left, height, width, [24, 24], v2.InterpolationMode.BICUBIC)
        assert ((result * 255).round() - expected).abs().max() <= 1


def test_erase_equals_a_loop():
    op, x = A.Erase(side=(0.0, 1.0)), images(60)
    parameters = op.draw(draws_of(60), 24)
    expected = x.clone()
    for image, (top, left, height, width) in zip(expected, parameters.int().tolist(), strict=True):
        image[:, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = 0.5
    assert torch.equal(op.apply(x, parameters), expected)


# -- affine maps -----------------------------------------------------------------------------------------------------


def degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (19, 30)])
def test_affine_equals_torchvision(height, width):
    x = images(12, height, width)
    angle, *rest = (torch.empty(12).uniform_(-s, s) for s in (180, 0.5, 0.5, 0.3, 0.3))
    out = affine(
        x, **dict(zip(("angle", "shear_x", "shear_y", "translate_x", "translate_y"), (angle, *rest), strict=True))
    )
    seen = 0
    for i, (image, result) in enumerate(zip(x, out, strict=True)):
        a, shear_x, shear_y, right, down = (v[i].item() for v in (angle, *rest))
        how = (a, [right * width, down * height], 1.0, [degrees(shear_x), degrees(shear_y)], BILINEAR)
        # Around zero torchvision's fill of zeros needs no blending, so that edges are equal too.
        assert torch.allclose(result, F.affine(image - 0.5, *how) + 0.5, atol=1e-4)
        within = F.affine(torch.ones_like(image), *how) == 1
        assert torch.allclose(result[within], F.affine(image, *how, fill=[0.5] * 3)[within], atol=1e-4)
        seen += within.sum().item()
    assert seen > 0.3 * x.numel()


@pytest.mark.parametrize(
    ("op", "theirs"),
    [
        (A.ShearX(), lambda v: (0.0, [0, 0], 1.0, [degrees(v), 0.0])),
        (A.ShearY(), lambda v: (0.0, [0, 0], 1.0, [0.0, degrees(v)])),
        (A.TranslateX(), lambda v: (0.0, [24 * v, 0], 1.0, [0.0, 0.0])),
        (A.TranslateY(), lambda v: (0.0, [0, 24 * v], 1.0, [0.0, 0.0])),
        (A.Rotate(), lambda v: (v, [0, 0], 1.0, [0.0, 0.0])),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_each_affine_map_is_torchvisions_and_pils(op, theirs):
    x, parameters = images(), op.draw(draws_of(12), 24)
    for image, (v,), result in zip(x, parameters.tolist(), op.apply(x, parameters), strict=True):
        assert torch.allclose(result, F.affine(image - 0.5, *theirs(v), BILINEAR) + 0.5, atol=1e-4)
        within = F.affine(torch.ones_like(image), *theirs(v), BILINEAR) == 1
        pils = levels(F.affine(pil(image), *theirs(v), BILINEAR))
        assert ((result * 255).round() - pils)[within].abs().max() <= 1


def test_whole_steps_move_pixels_exactly():
    x = images()
    moved = affine(x, translate_x=torch.full((12,), 0.25), translate_y=torch.full((12,), -0.5))
    assert torch.allclose(moved[:, :, :12, 6:], x[:, :, 12:, :18], atol=1e-5)
    outside = torch.cat([moved[:, :, 12:].flatten(), moved[..., :6].flatten()])
    assert torch.allclose(outside, torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(affine(x, angle=torch.full((12,), 90.0)), x.rot90(-1, (2, 3)), atol=1e-5)
    assert torch.allclose(affine(x), x, atol=1e-6)


# -- filters ---------------------------------------------------------------------------------------------------------


def test_sharpness_has_a_factor_for_each_image():
    x = images()
    out = adjust_sharpness(x, torch.tensor([1.0, 0.0] * 6))
    assert torch.equal(out[::2], x[::2])
    for image, result in zip(x[1::2], out[1::2], strict=True):
        kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        expected = np.stack([ndimage.convolve(c, kernel) for c in image.numpy()])
        assert np.allclose(result[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


def test_sobel_equals_scipy_and_closed_forms():
    x = images(12, 20, 27)
    for image, out in zip(x.numpy(), sobel(x), strict=True):
        for channel, result in zip(image, out, strict=True):
            down, across = (ndimage.sobel(channel, i, mode="nearest") for i in (0, 1))
            assert np.allclose(result, np.hypot(down, across).clip(0, 4) / 4, atol=1e-5)
    line = torch.arange(20) / 40
    ramps = torch.stack(
        [line.expand(3, 20, 20), line[:, None].expand(3, 20, 20), (line + line[:, None]).expand(3, 20, 20) / 2]
    )
    slopes = torch.tensor([2 / 40, 2 / 40, 2**0.5 / 40])[:, None, None, None]
    assert torch.allclose(sobel(ramps)[:, :, 1:-1, 1:-1], slopes, atol=1e-6)
    step = (torch.arange(20) >= 10).float().expand(1, 3, 20, 20)
    assert torch.equal(sobel(step)[0, 0, 0], ((torch.arange(20) == 9) | (torch.arange(20) == 10)).float())


def lines(kernel: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widths, angles and directions: every width, each quarter turn and between."""
    width, angle, direction = torch.cartesian_prod(
        torch.arange(1, kernel + 1, 2.0),
        torch.tensor([0.0, 30.0, 45.0, 90.0, 135.0, 270.0]),
        torch.tensor([-1, 0, 0.5]),
    ).T
    return width, angle, direction


def test_motion_blur_of_an_impulse_equals_a_loop():
    width, angle, direction = lines()
    x = torch.zeros(len(width), 1, 17, 17)
    x[:, :, 8, 8] = 1
    for out, w, a, d in zip(motion_blur(x, width, angle, direction, 9), width.int(), angle, direction, strict=True):
        expected, reach = np.zeros((17, 17)), int(w) // 2
        for t in range(-reach, reach + 1):
            weight = (1 + d.item() * t / max(1, reach)) / int(w)
            column, row = 8 + t * math.cos(math.radians(a)), 8 - t * math.sin(math.radians(a))
            for i in (math.floor(row), math.floor(row) + 1):
                for j in (math.floor(column), math.floor(column) + 1):
                    expected[i, j] += weight * (1 - abs(row - i)) * (1 - abs(column - j))
        assert np.allclose(out[0], expected, atol=1e-6)


def test_motion_blur_along_rows_is_a_mean_of_neighbors():
    x, width = images(8), torch.tensor([1.0, 3, 5, 7] * 2)
    out = motion_blur(x, width, torch.tensor([0.0] * 4 + [90.0] * 4), torch.zeros(8), 7)
    for i, (image, result) in enumerate(zip(x, out, strict=True)):
        expected = ndimage.uniform_filter1d(image.numpy(), int(width[i]), axis=2 if i < 4 else 1, mode="nearest")
        assert np.allclose(result, expected, atol=1e-5)


def test_motion_blur_smears_to_where_it_points():
    x = torch.zeros(3, 3, 21, 21)
    x[:, :, 10, 10] = 1
    out = motion_blur(x, torch.full((3,), 9.0), torch.tensor([0.0, 90.0, 180.0]), torch.ones(3), 9)
    at = torch.arange(21.0) - 10
    right, down = (out[:, 0].sum(1) * at).sum(1), (out[:, 0].sum(2) * at).sum(1)
    mean = sum(t * (1 + t / 4) for t in range(-4, 5)) / 9
    assert torch.allclose(right, torch.tensor([mean, 0, -mean]), atol=1e-5)
    assert torch.allclose(down, torch.tensor([0, -mean, 0]), atol=1e-5)


def test_motion_blur_keeps_constant_images():
    width, angle, direction = lines(23)
    x = torch.rand(len(width), 3, 1, 1).expand(-1, -1, 15, 15)
    assert torch.allclose(motion_blur(x, width, angle, direction, 23), x, atol=1e-5)


# -- noise -----------------------------------------------------------------------------------------------------------


def noise_of(key: torch.Tensor, std: float = 1e-2, size: int = 63) -> torch.Tensor:
    """Standardized; the size is odd, so that the last pair of normals is cut in two."""
    x = torch.full((len(key), 3, size, size), 0.5, dtype=torch.float32)
    return (ops.gaussian_noise(x, torch.full((len(key),), std), key) - 0.5) / std


def test_noise_is_normal_and_independent():
    noise = noise_of(torch.tensor([0, 1, 2, 2**24 - 1]))
    for image in noise:
        assert stats.kstest(image.flatten(), "norm").pvalue > 1e-3
    flat = noise.flatten(1).double()
    assert abs(flat.mean()) < 4 / flat.numel() ** 0.5 and abs(flat.std() - 1) < 4 / (2 * flat.numel()) ** 0.5
    n = flat.shape[1]
    parts = [noise[:, :, 1:].flatten(), noise[:, :, :-1].flatten()], [noise[:, 0].flatten(), noise[:, 1].flatten()]
    halves = [flat[:, : n // 2].flatten(), flat[:, n // 2 : n - 1].flatten()]  # cosines and sines
    for pair in (*parts, halves, [halves[0] ** 2, halves[1] ** 2]):
        assert abs(torch.corrcoef(torch.stack(list(pair)))[0, 1]) < 4 / len(pair[0]) ** 0.5
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 4 / n**0.5


def test_noise_depends_on_its_key_alone():
    both = noise_of(torch.tensor([5, 9, 5]))
    assert torch.equal(both[0], both[2]) and not torch.equal(both[0], both[1])
    assert torch.equal(noise_of(torch.tensor([9]))[0], both[1])


def test_noise_has_the_deviation_of_each_image():
    std = torch.tensor([0.0, 0.01, 0.05, 0.1])
    x = torch.full((4, 3, 64, 64), 0.5)
    out = A.GaussianNoise().apply(x, torch.stack([std, torch.arange(4.0)], 1))
    assert torch.allclose(out.std((1, 2, 3)), std, rtol=0.03, atol=1e-7)
    assert torch.equal(out[0], x[0])
