"""Corruptions against SciPy, PIL, colorsys and loops; and what is measured with them, by hand."""

import colorsys
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from manyviews.data import open_source
from manyviews.data.source import unlabeled
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Pixels, Task, encode, extract, linear_probe, neighbors, vote
from manyviews.evaluation import corrupt as c
from manyviews.evaluation.corrupt import KINDS, SEVERITIES, corrupt
from manyviews.evaluation.linear import Standardizer
from manyviews.evaluation.protocols._probe import classifier
from manyviews.evaluation.protocols.corruptions import Corruptions
from manyviews.evaluation.protocols.shifted import Shifted
from manyviews.views import Draws

from .conftest import measured

LOOK = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def images(count, side, seed=0):
    """Soft blobs with some texture: float32 `count 3 side side` in [0, 1], whole gray levels."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=(count, 3, side, side)), (0, 0, side / 10, side / 10), mode="wrap")
    x = 0.45 + 0.18 * soft / soft.std() + 0.04 * rng.normal(size=soft.shape)
    return torch.from_numpy((x.clip(0, 1) * 255).round() / 255).float()


def levels(x):
    return (x * 255).round().to(torch.uint8)


def draws(count, name="x"):
    return Draws(0, 0, torch.arange(count)).at(name)


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_stay_images_and_noise_is_their_own(kind):
    """Not the batch's, not its position's; and the seed's."""
    for side in (24, 80):
        pixels = levels(images(2, side))
        before = pixels.clone()
        for severity in (1, 5):
            found = corrupt(pixels, kind, severity)
            assert found.dtype == torch.uint8 and found.shape == pixels.shape
        assert not torch.equal(found, pixels)
        assert torch.equal(corrupt(pixels, kind, 0), before) and torch.equal(pixels, before)
    pixels, index = levels(images(6, 32)), torch.tensor([5, 900, 3, 44, 2, 7])
    whole = corrupt(pixels, kind, 3, index)
    some = torch.tensor([4, 1])
    assert (corrupt(pixels[some], kind, 3, index[some]).int() - whole[some].int()).abs().max() <= 1
    assert torch.equal(corrupt(pixels, kind, 3, index), whole)
    drawn = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")
    assert torch.equal(corrupt(pixels, kind, 3, index, seed=1), whole) != drawn


def psnr(kind, severity, pixels):
    """Mean over images, in dB."""
    error = (corrupt(pixels, kind, severity).double() - pixels.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp(min=1e-3))).mean().item()


# Elastic, glass and snow trade one parameter for another as they get more severe.
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"elastic", "glass_blur", "snow"}))
@pytest.mark.parametrize("side", [32, 96])
def test_severity_takes_images_further_away(kind, side):
    pixels = levels(images(12 if side == 32 else 4, side))
    found = [psnr(kind, severity, pixels) for severity in SEVERITIES]
    # Motion blur of 6 and of 8 pixels, with the same deviation, hardly differ.
    assert all(a > b - 0.05 for a, b in itertools.pairwise(found)) and found[0] > found[-1] + 0.5


@pytest.mark.parametrize(
    "kind, parameters",
    [
        ("gaussian_noise", 0.0),
        ("impulse_noise", 0.0),
        ("defocus_blur", (0, 0)),
        ("glass_blur", (0.0, 1, 0)),
        ("motion_blur", (0, 1)),
        ("zoom_blur", (1.01, 0.01)),
        ("snow", (-10, 0.1, 1, 0.5, 8, 3, 1.0)),
        ("fog", (0.0, 3)),
        ("brightness", 0.0),
        ("contrast", 1.0),
        ("elastic", (0, 0, 0)),
        ("pixelate", 1.0),
    ],
)
def test_nothing_of_it_is_nothing(kind, parameters):
    x = images(4, 32)
    torch.testing.assert_close(c._OPERATIONS[kind](x, parameters, 1.0, draws(4)), x, rtol=0, atol=2e-5)


def test_lengths_grow_with_the_image(monkeypatch):
    seen = []
    monkeypatch.setitem(c._OPERATIONS, "motion_blur", lambda x, p, scale, d: seen.append((p, scale)) or x)
    for side in (16, 32, 64, 65, 224):
        corrupt(torch.zeros(1, 3, side, side, dtype=torch.uint8), "motion_blur", 2)
    small, large = (6, 1.5), (15, 5)
    assert seen == [(small, 0.5), (small, 1.0), (small, 2.0), (large, 65 / 224), (large, 1.0)]


def test_mistakes_are_named():
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match="Did you mean 'motion_blur'"):
        corrupt(pixels, "motion_blurr", 1)
    with pytest.raises(UserError, match="from 0 to 5, not 6"):
        corrupt(pixels, "fog", 6)


# -- noise -----------------------------------------------------------------------------------------------------------


def test_gaussian_noise_is_normal():
    x = torch.full((4, 3, 64, 64), 0.5)
    found = (c.gaussian_noise(x, 0.08, 1.0, draws(4)) - x) / 0.08
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("level, photons", [(255, 3), (128, 60), (20, 12)])
def test_shot_noise_is_poissons(level, photons):
    x = torch.full((2, 3, 96, 96), level / 255)
    counts = (c.shot_noise(x, photons, 1.0, draws(2)) * photons).round().long().flatten().numpy()
    rate = photons * level / 255
    edges = np.unique(stats.poisson.ppf(np.linspace(0.1, 0.9, 6), rate))
    seen = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    shares = np.diff([0, *stats.poisson.cdf(edges, rate), 1])
    assert stats.chisquare(seen, shares * len(counts)).pvalue > 0.01
    assert not c.shot_noise(torch.zeros(2, 3, 8, 8), photons, 1.0, draws(2)).any()


def test_impulses_are_black_and_white_and_leave_the_rest():
    x = images(4, 96).clamp(0.1, 0.9)
    found = c.impulse_noise(x, 0.2, 1.0, draws(4))
    black, white = ((found == v).double().mean().item() for v in (0, 1))
    assert black == pytest.approx(0.1, abs=0.004) and white == pytest.approx(0.1, abs=0.004)
    untouched = (found != 0) & (found != 1)
    assert torch.equal(found[untouched], x[untouched])


# -- blurs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma, truncate", [(0.4, 4.0), (1.5, 4.0), (6.4, 3.0), (60.0, 3.0)])
def test_gaussians_are_scipys(sigma, truncate):
    x = images(2, 40)
    for reflect, mode in ((False, "nearest"), (True, "reflect")):
        wanted = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode=mode, truncate=truncate)
        found = c.gaussian(x, sigma, reflect, truncate)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("radius, smooth", [(0.3, 0.4), (4, 0.5), (10, 0.5)])
def test_defocus_is_a_smoothed_disk(radius, smooth):
    side = 2 * math.ceil(radius) + 7
    t = np.arange(side) - side // 2
    flat = (t**2 + t[:, None] ** 2 <= radius**2).astype(float)
    # Cut off as OpenCV's blur of 3 and 5 pixels is.
    kernel = ndimage.gaussian_filter(flat / flat.sum(), smooth, radius=2 if radius > 8 else 1)
    x = images(2, 40)
    wanted = ndimage.correlate(x.double().numpy(), kernel[None, None], mode="mirror")
    np.testing.assert_allclose(c.defocus_blur(x, (radius, smooth), 1.0, draws(2)), wanted, atol=1e-5)


def test_a_smear_is_its_loop():
    x, angle = images(3, 20), torch.tensor([0.0, 33.0, -90.0])
    found = c.smear(x, 2.2, 1.5, angle)
    weights = [math.exp(-(i**2) / (2 * 1.5**2)) for i in range(7)]  # 2 * ceil(2.2) + 1
    for b, theta in enumerate(angle.deg2rad().tolist()):
        for h, w in itertools.product((0, 7, 19), repeat=2):
            total = torch.zeros(3)
            for i, weight in enumerate(weights):
                down, right = math.ceil(i * math.sin(theta) - 0.5), math.ceil(i * math.cos(theta) - 0.5)
                total += weight / sum(weights) * x[b, :, min(max(h + down, 0), 19), min(max(w + right, 0), 19)]
            torch.testing.assert_close(found[b, :, h, w], total)


@pytest.mark.parametrize("factor", [1.0, 1.31, 4.5])
def test_zooms_are_scipys(factor):
    x = images(2, 40)
    seen = math.ceil(40 / factor)
    top = (40 - seen) // 2
    wanted = ndimage.zoom(x[..., top : top + seen, top : top + seen].double().numpy(), (1, 1, factor, factor), order=1)
    trim = (wanted.shape[-1] - 40) // 2
    np.testing.assert_allclose(c.zoom(x, factor), wanted[..., trim : trim + 40, trim : trim + 40], atol=1e-5)


def test_zoom_blur_counts_the_image_twice():
    """Once as it is, and once as its zoom by 1: six zooms and the image are seven parts."""
    x = images(2, 32)
    wanted = (2 * x + sum(c.zoom(x, f) for f in (1.02, 1.04, 1.06, 1.08, 1.1))) / 7
    torch.testing.assert_close(c.zoom_blur(x, (1.11, 0.02), 1.0, draws(2)), wanted)


def test_glass_is_its_loop():
    x, own = images(2, 10), draws(2)
    found = c.glass_blur(x, (0.0, 2, 2), 1.0, own)
    x = (x * 255).floor() / 255
    for k in range(2):
        steps = (own.uniform(f"steps {k}", 2 * 6 * 6) * 4).floor().long().view(2, 6, 6, 2) - 2
        for b, (i, h), (j, w) in itertools.product(range(2), enumerate(range(8, 2, -1)), enumerate(range(8, 2, -1))):
            dy, dx = steps[b, i, j].tolist()
            x[b, :, h, w] = x[b, :, h + dy, w + dx]
    torch.testing.assert_close(found, x, rtol=0, atol=0)
    assert steps.min() == -2 and steps.max() == 1


# -- weather and the rest --------------------------------------------------------------------------------------------


def test_clouds_are_the_diamond_square_algorithms():
    side, decay, own = 8, 1.7, draws(2)
    found = c.plasma(own, side, decay)
    for b in range(2):
        grid, step, height = np.zeros((side, side)), side, 1.0
        while step >= 2:
            half, n = step // 2, side // step
            noise = {k: own.uniform(f"{k} {step}", n * n, -1, 1).view(2, n, n)[b] for k in ("square", "across", "down")}
            cells = list(itertools.product(range(n), repeat=2))
            for name, (dy, dx) in (("square", (half, half)), ("across", (0, half)), ("down", (half, 0))):
                for i, j in cells:
                    y, x = i * step + dy, j * step + dx
                    reach = [(a, d) for a in (-half, half) for d in (-half, half)]
                    if name != "square":
                        reach = [(half, 0), (-half, 0), (0, half), (0, -half)]
                    near = [grid[(y + a) % side, (x + d) % side] for a, d in reach]
                    grid[y, x] = np.mean(near) + height * noise[name][i, j].item()
            step, height = half, height / decay**2
        wanted = (grid - grid.min()) / (grid.max() - grid.min())
        np.testing.assert_allclose(found[b], wanted, atol=1e-5)


def test_fog_keeps_the_brightest_value_below_what_it_was():
    x = images(4, 32)
    found = c.fog(x, (1.5, 2), 1.0, draws(4))
    cloud = c.plasma(draws(4), 32, 2)[:, None]
    white = x.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, (x + 1.5 * cloud) * white / (white + 1.5))
    assert (found.amax((1, 2, 3)) <= white.flatten() + 1e-6).all()


def test_snow_is_white_and_falls():
    black = torch.zeros(30, 3, 64, 64)
    found = c.snow(black, (0.1, 0.3, 2, 0.5, 12, 6, 1.0), 1.0, draws(30))
    assert found.min() == 0 and found.max() > 0.2 and torch.equal(found[:, 0], found[:, 2])
    torch.testing.assert_close(found, found.rot90(2, (2, 3)))
    down, across = found.diff(dim=2).abs().mean(), found.diff(dim=3).abs().mean()
    assert down < 0.8 * across


def test_brightness_is_hsvs_value():
    x = images(1, 12)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 1  # black becomes gray
    found = c.brightness(x, 0.3, 1.0, draws(1))
    for h, w in itertools.product(range(12), repeat=2):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, h, w].tolist())
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        assert found[0, :, h, w].tolist() == pytest.approx(wanted, abs=1e-6)


def test_contrast_keeps_means():
    x = images(3, 20)
    found = c.contrast(x, 0.3, 1.0, draws(3))
    torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), 0.3 * x.std((2, 3)))


def test_elastic_is_scipys_map():
    x, side = images(2, 30), 30
    parameters, own = (4.0, 3.0, 2.5), draws(2)
    found = c.elastic(x, parameters, 1.0, own)
    shift = own.uniform("points", 6, -1, 1).double().view(2, 3, 2).numpy() * 2.5
    noise = own.uniform("displacements", 2 * side * side, -1, 1).double().view(2, 2, side, side).numpy()
    down, across = np.mgrid[:side, :side].astype(float)
    for b in range(2):
        points = np.array([[25.0, 25], [25, 5], [5, 5]])  # about the center, a third of the side away, as (x, y)
        ahead = np.linalg.solve(np.c_[points, np.ones(3)], points + shift[b])  # maps points to where they are moved
        back = np.linalg.inv(np.c_[ahead, [0, 0, 1]])
        px, py, _ = np.moveaxis(np.stack([across, down, np.ones_like(down)], 2) @ back, 2, 0)
        dx, dy = (4.0 * ndimage.gaussian_filter(n, 3.0, mode="reflect", truncate=3) for n in noise[b])
        for channel in range(3):
            moved = ndimage.map_coordinates(x[b, channel].double().numpy(), [py, px], order=1, mode="mirror")
            wanted = ndimage.map_coordinates(moved, [down + dy, across + dx], order=1, mode="reflect")
            np.testing.assert_allclose(found[b, channel], wanted, atol=1e-4)


@pytest.mark.parametrize("side, factor", [(32, 0.95), (60, 0.6)])
def test_pixelate_is_pils(side, factor):
    x = images(3, side)
    found = levels(c.pixelate(x, factor, 1.0, draws(3)))
    for image, ours in zip(levels(x), found, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((int(side * factor),) * 2, Image.Resampling.BOX)
        wanted = np.asarray(small.resize((side, side), Image.Resampling.BOX)).astype(int)
        assert np.abs(ours.permute(1, 2, 0).numpy() - wanted).max() <= 1


def test_jpeg_is_pils():
    pixels = levels(images(3, 24))
    found = c.jpeg(pixels, torch.tensor([80, 10, 40]))
    for image, ours, quality in zip(pixels, found, (80, 10, 40), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(Image.open(file)), ours.permute(1, 2, 0))


# -- measures --------------------------------------------------------------------------------------------------------


def image_task(encoder, known, test, held=15, progress=None):
    a, b = (extract(encoder, s, test_size=12, **LOOK) for s in (known, test))
    n = len(a) - held
    frozen = Task(a.x[:n], a.labels[:n], a.x[n:], a.labels[n:], b.x, len(known.classes))
    hidden = [dataclasses.replace(s, annotate=unlabeled) for s in (known, test)]
    return ImageTask(encoder, frozen, *hidden, 12, *LOOK.values(), torch.device("cpu"), progress), b.labels


@pytest.fixture
def problem(encoder, pictures, few_steps):
    return image_task(encoder, pictures(75), pictures(40, seed=1))


def test_a_linear_classifier_is_the_protocols(problem):
    frozen = problem[0].frozen
    shifted = dataclasses.replace(frozen, train_x=frozen.train_x + 5, val_x=frozen.val_x + 5, test_x=frozen.test_x + 5)
    for task in (frozen, shifted):
        wanted = linear_probe(task, seed=4)
        found = classifier(task, "linear", 4)
        torch.testing.assert_close(found.classify(task.test_x), wanted.logits, rtol=1e-3, atol=1e-3)
        assert found.setting == wanted.setting


def test_neighbors_are_the_protocols(problem):
    task = problem[0].frozen
    x, y = torch.cat([task.train_x, task.val_x]), torch.cat([task.train_y, task.val_y])
    similarity, index = neighbors(x, task.test_x, 20)
    found = classifier(task, "knn", 0)
    assert torch.equal(found.classify(task.test_x).argmax(1), vote(similarity, y[index], 3, 0.1)[:, 0])
    assert found.setting == {"k": 20, "temperature": 0.1}
    with pytest.raises(UserError, match="no probe 'svm'"):
        classifier(task, "svm", 0)


def test_accuracies_are_those_of_each_corruption(problem):
    task, y = problem
    kinds, severities = ("gaussian_noise", "contrast"), (1, 5)
    found = measured(Corruptions(kinds=kinds, severities=severities), task, y, 3)
    model = classifier(task.frozen, "linear", 3)
    pixels = torch.stack([torch.tensor(np.asarray(task.test.load(i))).permute(2, 0, 1) for i in range(40)])
    each = {
        (k, s): (model.classify(encode(task.encoder, corrupt(pixels, k, s, seed=3), **LOOK)).argmax(1) == y).double()
        for k, s in itertools.product(kinds, severities)
    }
    assert found.value == pytest.approx(torch.stack(list(each.values())).mean().item())
    for k in kinds:
        assert found.details[k] == pytest.approx(np.mean([each[k, s].mean() for s in severities]))
    for s in severities:
        assert found.details[f"severity {s}"] == pytest.approx(np.mean([each[k, s].mean() for k in kinds]))
    clean = (model.classify(task.frozen.test_x).argmax(1) == y).double().mean().item()
    assert found.details["clean"] == pytest.approx(clean)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.setting == {**model.setting, "images": 40}


def test_a_part_of_the_images_repeats(encoder, pictures):
    steps = []
    task, y = image_task(
        encoder, pictures(75), pictures(40, seed=1), progress=lambda done, total, note="": steps.append((done, total))
    )
    settings = {"kinds": ("impulse_noise", "jpeg"), "severities": (2,), "images": 25, "probe": "knn"}
    found = measured(Corruptions(**settings), task, y)
    assert found.setting["images"] == 25 and steps[-1] == (50, 50)
    assert found == measured(Corruptions(**settings), task, y) != measured(Corruptions(**settings), task, y, 1)


def test_raw_pixels_are_standardized(pictures):
    task, y = image_task(Pixels(), pictures(75), pictures(40, seed=1))
    known = task.frozen
    standard = Standardizer.of(torch.cat([known.train_x, known.val_x]))
    new = dataclasses.replace(known, **{k: standard(getattr(known, k)) for k in ("train_x", "val_x", "test_x")})
    found = measured(Corruptions(kinds=("brightness",), severities=(1,), probe="knn"), task, y)
    right = classifier(new, "knn", 0).classify(new.test_x).argmax(1) == y
    assert found.details["clean"] == pytest.approx(right.double().mean().item())


# -- other sets ------------------------------------------------------------------------------------------------------


def test_on_the_test_images_nothing_falls(problem, pictures):
    task, y = problem
    found = measured(Shifted(pictures(40, seed=1)), task, y)
    assert found.value == found.details["on the test images"] == found.details["among all classes"]
    assert found.details["difference"] == 0 and found.interval[0] < found.value < found.interval[1]
    right = classifier(task.frozen, "linear", 0).classify(task.frozen.test_x).argmax(1) == y
    assert found.value == pytest.approx(right.double().mean().item())


def test_the_probe_chooses_among_the_classes_of_the_other_set(problem, pictures):
    task, y = problem
    other = pictures(60, seed=2, noise=120)
    some = other.subset(np.flatnonzero(other.labels != 1))
    found = measured(Shifted(some, "knn"), task, y)
    seen = extract(task.encoder, some, test_size=12, **LOOK)
    scores = classifier(task.frozen, "knn", 0).classify(seen.x)
    among_all = (scores.argmax(1) == seen.labels).double().mean().item()
    scores[:, 1] = -1
    assert (
        found.value == pytest.approx((scores.argmax(1) == seen.labels).double().mean().item())
        and found.value > among_all
    )
    assert found.details["among all classes"] == pytest.approx(among_all)
    assert found.setting["classes"] == 2 and found.setting["images"] == 40
    assert found.details["difference"] == pytest.approx(found.value - found.details["on the test images"])


def test_a_set_without_labels_is_refused(problem, pictures):
    with pytest.raises(UserError, match="has no labels"):
        measured(Shifted(dataclasses.replace(pictures(10), annotate=unlabeled)), *problem)


@pytest.mark.shared_data
def test_real_images(shared_data):
    """How far from the image, for what is known."""
    test = open_source(shared_data / "cifar10_test.parquet").subset(range(100))
    pixels = torch.stack([torch.tensor(np.asarray(test.load(i))).permute(2, 0, 1) for i in range(100)])

    # gaussian noise of deviation 0.04 and 0.1 by theory, less what is cut off at black and white
    assert psnr("gaussian_noise", 1, pixels) == pytest.approx(-20 * math.log10(0.04), abs=0.4)
    assert psnr("gaussian_noise", 5, pixels) == pytest.approx(-20 * math.log10(0.1), abs=0.8)
    assert psnr("jpeg", 1, pixels) > psnr("jpeg", 5, pixels) > psnr("fog", 5, pixels)
    assert psnr("brightness", 5, pixels) == pytest.approx(-20 * math.log10(0.3), abs=3)
