"""Targets of masked image modeling, against slow loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from manyviews import objectives
from manyviews.errors import UserError


def slow_hog(channel: Tensor, cell: int, orientations: int) -> list[list[list[float]]]:
    """Dalal and Triggs's histograms of one channel, pixel by pixel."""
    h, w = channel.shape
    x = channel.tolist()
    found = [[[0.0] * orientations for _ in range(w // cell)] for _ in range(h // cell)]
    for i in range(h):
        for j in range(w):
            down = x[i + 1][j] - x[i - 1][j] if 0 < i < h - 1 else 0.0
            right = x[i][j + 1] - x[i][j - 1] if 0 < j < w - 1 else 0.0
            angle = math.degrees(math.atan2(down, right)) % 180
            found[i // cell][j // cell][int(angle // (180 / orientations)) % orientations] += math.hypot(down, right)
    for histogram in (histogram for row in found for histogram in row):
        sums = [v / cell**2 for v in histogram]
        norm = math.sqrt(sum(v * v for v in sums) + 1e-10)
        histogram[:] = [v / norm for v in sums]
    return found


def test_histograms_of_gradients_equal_a_slow_loop_and_scikit_image():
    images = torch.rand(2, 3, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[0, 0, :8] = 0.5  # cells without a gradient have no direction
    found = objectives.hog(images, 8)
    assert found.shape == (2, 3, 2, 3, 9)
    for b in range(2):
        for c in range(3):
            wanted = torch.tensor(slow_hog(images[b, c], 8, 9), dtype=torch.float64)
            torch.testing.assert_close(found[b, :, :, c], wanted)
    assert found[0, 0, :, 0].max() < 1e-3 or found[0, 0, :, 0].isfinite().all()
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    settings = {"orientations": 9, "pixels_per_cell": (8, 8), "cells_per_block": (1, 1), "block_norm": "L2"}
    theirs = feature.hog(images[1, 2].numpy(), feature_vector=False, **settings)
    torch.testing.assert_close(found[1, :, :, 2], torch.from_numpy(theirs)[:, :, 0, 0])


def test_histograms_do_not_see_contrast_and_refuse_parts_of_cells():
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(objectives.hog(3 * x + 1), objectives.hog(x))
    vertical = torch.arange(16.0).expand(1, 1, 16, 16)  # an edge to the right: 0 degrees, the first bin
    assert objectives.hog(vertical)[0, 0, 0, 0].tolist() == pytest.approx([1.0] + [0.0] * 8)
    with pytest.raises(UserError, match="Cells of 8 pixels do not tile"):
        objectives.hog(torch.rand(1, 1, 12, 16))


def test_token_error_is_a_mean_over_hidden_patches_and_then_over_images():
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 5, dtype=torch.float64, generator=draw, requires_grad=True)
    tokens = torch.randint(5, (3, 4), generator=draw)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    total = 0.0
    for b in range(3):
        rows = mask[b].nonzero()[:, 0].tolist()
        for i in rows:
            total -= math.log(logits[b, i].softmax(0)[tokens[b, i]].item()) / len(rows) / 3
    assert objectives.token_error(logits, tokens, mask).item() == pytest.approx(total)
    assert torch.autograd.gradcheck(lambda x: objectives.token_error(x, tokens, mask), logits)
    uniform = objectives.token_error(torch.zeros(2, 4, 8192), torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4))
    assert uniform.item() == pytest.approx(9.010913, abs=1e-5)


def test_a_relaxed_sample_has_the_category_s_probability_and_becomes_one_code():
    logits = torch.tensor([1.0, 0.0, -1.0]).log_softmax(0).expand(40_000, 3)
    u = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(2))
    warm, cold = (objectives.gumbel_softmax(logits, u, t) for t in (1.0, 0.01))
    torch.testing.assert_close(warm.sum(1), torch.ones(40_000))
    rates = torch.nn.functional.one_hot(warm.argmax(1), 3).double().mean(0)
    # 40,000 trials: standard deviation below 0.0025.
    assert (rates - logits[0].exp()).abs().max() < 0.01
    assert torch.equal(warm.argmax(1), cold.argmax(1)) and cold.max(1).values.mean() > 0.98
    assert objectives.gumbel_softmax(logits, torch.zeros_like(u), 0.1).isfinite().all()


def test_the_divergence_of_codes_lies_between_zero_and_log_k():
    assert objectives.code_divergence(torch.zeros(2, 3, 512)).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.zeros(4, 512).index_fill_(1, torch.tensor([7]), 200.0)
    assert objectives.code_divergence(certain).item() == pytest.approx(math.log(512), abs=1e-4)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    p = x.softmax(1)
    torch.testing.assert_close(objectives.code_divergence(x), (p * (4 * p).log()).sum(1).mean())
    assert torch.autograd.gradcheck(objectives.code_divergence, x)


def test_absolute_error_of_hidden_patches_and_images_of_patches():
    pred, target = torch.randn(2, 2, 3, 12, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    each = [(pred[b, i] - target[b, i]).abs().mean().item() for b, i in mask.nonzero().tolist()]
    assert objectives.masked_l1(pred, target, mask).item() == pytest.approx(sum(each) / 3)
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(objectives.unpatchify(objectives.patchify(images, 4), 4, (8, 12)), images)
    # A perfect prediction of standardized pixels gives the image back.
    patches = objectives.patchify(images, 4)
    mean, std = patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(objectives.restored((patches - mean) / std, patches), patches)
