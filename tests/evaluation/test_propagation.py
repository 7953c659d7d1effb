import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation

from manyviews.errors import UserError
from manyviews.evaluation.dense import boundary, propagate, propagate_labels, region
from manyviews.evaluation.dense.propagation import _follow, _harden, _one_hot, contour
from manyviews.evaluation.dense.videos import open_videos

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
QUICK = {"mean": MEAN, "std": STD, "stages": (1, 2, 3), "test_size": 16, "radius": 3}


# -- measures ----------------------------------------------------------------------------------------------------


def square(top, left, side=10, h=40, w=50):
    mask = np.zeros((h, w), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def slow_boundary(said, true):
    """DAVIS's F in loops: contours, and for each of their pixels whether the other one has a pixel in a disk."""

    def pixels(mask):
        h, w = mask.shape
        found = []
        for y in range(h):
            for x in range(w):
                others = {(y, x + 1), (y + 1, x), (y + 1, x + 1)}
                inside = [(b, a) for b, a in others if b < h and a < w]
                if y == h - 1 and x == w - 1:
                    continue
                found += [(y, x)] if any(mask[y, x] != mask[p] for p in inside) else []
        return found

    reach = math.ceil(0.008 * math.hypot(*true.shape))
    ours, theirs = pixels(said), pixels(true)
    if not ours or not theirs:
        return 1.0 if not ours and not theirs else 0.0

    def near(a, b):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in b) for y, x in a) / len(a)

    precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_the_boundary_measure_is_that_of_slow_loops():
    rng = np.random.default_rng(0)
    for _ in range(4):
        true = binary_dilation(rng.random((30, 40)) < 0.01, iterations=4)
        said = np.roll(true, rng.integers(-2, 3, 2), (0, 1)) ^ binary_dilation(
            rng.random((30, 40)) < 0.002, iterations=2
        )
        assert boundary(said, true) == pytest.approx(slow_boundary(said, true))
    empty, whole = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    for said in (empty, whole, true):
        for wanted in (empty, whole, true):
            assert boundary(said, wanted) == slow_boundary(said, wanted)


def test_boundaries_of_squares_by_hand():
    true = square(10, 10)  # the diagonal is 64 pixels, so that one pixel away is near enough
    assert boundary(true, true) == 1
    assert boundary(square(11, 10), true) == 1
    assert boundary(square(10, 30), true) == 0
    # A contour of 11 x 11 squares on its upper left: 10 above, 10 below, and so on, 40 in all.
    assert contour(true).sum() == 40
    assert (contour(true) == (square(9, 9, 11) & ~square(10, 10, 9))).all()
    # Two columns to the right, all but the two sides are near: 2 x 9 of 40 pixels and some at the corners.
    assert boundary(square(10, 12), true) == pytest.approx(slow_boundary(square(10, 12), true))
    assert 0.4 < boundary(square(10, 12), true) < 0.6


def test_regions_by_hand():
    true = square(10, 10)
    assert region(true, true) == 1
    assert region(square(10, 15), true) == pytest.approx(50 / 150)
    assert region(np.zeros_like(true), true) == 0
    assert region(np.zeros_like(true), np.zeros_like(true)) == 1


def test_void_pixels_do_not_count():
    true, void = square(10, 10), square(0, 25, 40)
    assert region(square(10, 10, 10) | square(20, 30), true, void) == 1
    assert boundary(square(10, 10, 10) | square(20, 30), true, void) == 1
    assert region(square(20, 30), true, void) == 0


# -- propagation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "radius"), [(1, 1), (5, 2), (50, 1), (3, 100)])
def test_propagation_is_that_of_slow_loops(k, radius, monkeypatch):
    torch.manual_seed(0)
    t, d, c, h, w = 3, 5, 4, 4, 6
    query, keys, labels = torch.randn(d, h, w), torch.randn(t, d, h, w), torch.rand(t, c, h, w)
    wanted = torch.zeros(c, h, w)
    for y in range(h):
        for x in range(w):
            near = [
                (torch.cosine_similarity(query[:, y, x], keys[i, :, v, u], dim=0).item(), labels[i, :, v, u])
                for i in range(t)
                for v in range(max(0, y - radius), min(h, y + radius + 1))
                for u in range(max(0, x - radius), min(w, x + radius + 1))
            ]
            best = sorted(near, key=lambda pair: -pair[0])[:k]
            weights = [math.exp(s / 0.1) for s, _ in best]
            wanted[:, y, x] = sum(a * label for a, (_, label) in zip(weights, best, strict=True)) / sum(weights)
    found = propagate_labels(query, keys, labels, k=k, radius=radius, temperature=0.1)
    torch.testing.assert_close(found, wanted)
    monkeypatch.setattr("manyviews.evaluation.dense.propagation._TILE", 3)
    torch.testing.assert_close(propagate_labels(query, keys, labels, k=k, radius=radius, temperature=0.1), found)


def test_a_square_whose_patches_can_be_told_apart_is_followed_exactly():
    """Features that name the patch of the square, or of the background: it moves by a patch a frame."""
    h, w, scale = 6, 9, 4

    def frame(i):
        x = torch.zeros(5, h, w)
        x[4] = 1
        for k, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            x[:, 1 + dy, 1 + i + dx] = torch.eye(5)[k]
        return i, x, (h * scale, w * scale)

    def truth(i):
        mask = np.zeros((h * scale, w * scale), np.int32)
        mask[scale : 3 * scale, (1 + i) * scale : (3 + i) * scale] = 7
        return mask

    def nearest(x, keys, labels):
        assert len(keys) <= 3  # the first frame and the last two
        return propagate_labels(x, keys, labels, k=1, radius=2, temperature=0.1)

    # The memory of the first frame alone would lose it: after three frames it is out of reach.
    for frames, lost in ((2, False), (0, True)):
        found = dict(_follow(iter([frame(i) for i in range(6)]), truth(0), [7], nearest, frames, True))
        assert list(found) == list(range(6))
        j = [region(said == 1, truth(i) == 7) for i, said in found.items()]
        # Bilinear upsampling takes the corner pixels off the four corners.
        assert j[:3] == [1, 60 / 64, 60 / 64]
        assert (j[5] == 0) if lost else (j[3:] == [60 / 64] * 3)


def test_labels_of_the_first_frame_are_those_at_the_centers_of_patches():
    mask = np.zeros((8, 12), np.int32)
    mask[2:4, 5:7] = 3
    mask[6, 10] = 9
    mask[0, 0] = 9  # between the centers
    found = _one_hot(mask, [3, 9], (2, 3))
    assert found[1].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert found[2].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert found.sum(0).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_small_objects_win_when_maps_are_rescaled():
    soft = torch.stack([torch.full((3, 3), 0.8), torch.zeros(3, 3)])
    soft[0, 1, 1], soft[1, 1, 1] = 0.6, 0.4
    assert _harden(soft, (3, 3), rescale=False).sum() == 0
    assert _harden(soft, (3, 3), rescale=True).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


# -- sequences ---------------------------------------------------------------------------------------------------


def write(frames, masks, count=5, seed=0, scale=1):
    """A red and a blue square on noise, which move in opposite directions by a step of a 32nd of the width."""
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    noise = np.random.default_rng(seed).normal(0, 12, (32 * scale, 48 * scale, 3))
    for i in range(count):
        mask = np.zeros((32, 48), np.uint8)
        mask[4:12, 4 + 2 * i : 12 + 2 * i] = 1
        mask[20:28, 32 - 2 * i : 40 - 2 * i] = 5
        mask = mask.repeat(scale, 0).repeat(scale, 1)
        colors = np.zeros((6, 3))
        colors[[0, 1, 5]] = (110, 110, 110), (220, 50, 50), (50, 50, 220)
        pixels = (colors[mask] + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(frames / f"{i:05}.png")
        Image.fromarray(mask).save(masks / f"{i:05}.png")


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "set"
    for seed, name in enumerate("ab"):
        write(root / "frames" / name, root / "masks" / name, seed=seed)
    return root


def test_moving_squares_are_followed(encoder, tmp_path):
    calls = []
    for seed, name in enumerate("ab"):
        write(tmp_path / "frames" / name, tmp_path / "masks" / name, seed=seed, scale=2)
    whole = QUICK | {"test_size": None, "radius": 5}
    report = propagate(encoder, tmp_path, **whole, progress=lambda done, total, note="": calls.append((done, total)))
    assert report.metric == "J&F"
    assert report.value > 0.98
    assert report.value > report.baselines["the first mask, unmoved"] + 0.3
    assert list(report.per_class) == ["a/1", "a/5", "b/1", "b/5"]
    assert report.value == pytest.approx((report.details["J mean"] + report.details["F mean"]) / 2)
    assert report.interval[0] <= report.value <= report.interval[1]
    assert calls[-1] == (10, 10)
    # The squares move by 4 of 16 pixels a frame: 12, 8 and then 4 columns are where they were.
    still = np.mean([columns / (32 - columns) for columns in (12, 8, 4)])
    true = square(8, 8, 16, 64, 96)
    edges = np.mean([boundary(true, square(8, 8 + 4 * i, 16, 64, 96)) for i in range(1, 4)])
    assert report.baselines["the first mask, unmoved"] == pytest.approx((still + edges) / 2)


def test_the_first_and_the_last_frame_are_not_judged(encoder, videos):
    first = propagate(encoder, videos, **QUICK)
    for name in "ab":
        Image.new("L", (48, 32)).save(videos / "masks" / name / "00004.png")
    assert propagate(encoder, videos, **QUICK).per_class == first.per_class
    Image.new("L", (48, 32)).save(videos / "masks" / "a" / "00003.png")
    assert propagate(encoder, videos, **QUICK).value < first.value


def test_sequences_may_lie_as_in_davis(encoder, videos, tmp_path):
    root = tmp_path / "DAVIS"
    shutil.copytree(videos / "frames", root / "JPEGImages" / "480p")
    shutil.copytree(videos / "masks", root / "Annotations" / "480p")
    assert propagate(encoder, root, **QUICK).per_class == propagate(encoder, videos, **QUICK).per_class
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("b\n")
    assert [v.name for v in open_videos(root)[0]] == ["b"]


def test_what_is_bad_is_left_out_and_named(encoder, videos):
    frames, masks = videos / "frames", videos / "masks"
    for name in "cdefg":
        write(frames / name, masks / name)
    (frames / "a" / "00002.png").write_bytes(b"no image")
    Image.new("L", (5, 5)).save(masks / "a" / "00003.png")
    (masks / "b" / "00002.png").unlink()  # a frame that is not annotated
    (frames / "c" / "00000.png").write_bytes(b"no image")
    (masks / "d" / "00000.png").unlink()
    for path in sorted((frames / "e").iterdir())[2:]:
        path.unlink()
    Image.new("L", (48, 32)).save(masks / "f" / "00000.png")
    Image.new("L", (9, 6), 1).save(masks / "g" / "00000.png")
    report = propagate(encoder, videos, **QUICK)
    assert list(report.per_class) == ["a/1", "a/5", "b/1", "b/5"]
    assert report.images["test"] == 4 + 5
    reasons = {where.rpartition("set/")[2]: reason for where, reason in report.bad}
    assert "not an image" in reasons["frames/a/00002.png"]
    assert "another size than its frame" in reasons["masks/a/00003.png"]
    assert "not an image" in reasons["frames/c/00000.png"] or "first frame" in reasons["frames/c/00000.png"]
    assert "has no mask" in reasons["d"]
    assert "has 2 frames" in reasons["e"]
    assert "marks nothing" in reasons["frames/f/00000.png"]
    assert "another size" in reasons["frames/g/00000.png"]
    assert len(reasons) == 7


def test_what_cannot_be_done_is_said(encoder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        propagate(encoder, tmp_path / "none", **QUICK)
    with pytest.raises(UserError, match="k must be 1 or more"):
        propagate(encoder, tmp_path, **QUICK, k=0)
    with pytest.raises(UserError, match="needs sequences"):
        propagate(encoder, tmp_path, **QUICK)
    write(tmp_path / "frames" / "a", tmp_path / "masks" / "a", count=2)
    with pytest.raises(UserError, match="no sequence with masks"):
        propagate(encoder, tmp_path, **QUICK)
