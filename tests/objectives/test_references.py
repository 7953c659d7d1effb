"""Every objective against its paper's sum, written in loops over plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from manyviews import objectives
from manyviews.objectives import contrastive


def cos(a: Tensor, b: Tensor) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True))) / math.sqrt(float(sum(a * a)) * float(sum(b * b)))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_alignment():
    p, z = randn(5, 7), randn(5, 7)
    cosines = [cos(a, b) for a, b in zip(p, z, strict=True)]
    assert objectives.negative_cosine(p, z).item() == pytest.approx(-sum(cosines) / 5, abs=1e-12)
    units = [(a / a.norm() - b / b.norm()).square().sum().item() for a, b in zip(p, z, strict=True)]
    assert objectives.squared_distance(p, z).item() == pytest.approx(sum(units) / 5, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(temperature: float):
    za, zb = randn(4, 6), randn(4, 6)
    z = [row for two in zip(za, zb, strict=True) for row in two]  # 2k and 2k+1 are partners, as in the paper
    total = 0.0
    for i in range(8):
        partner = i ^ 1
        denominator = sum(math.exp(cos(z[i], z[k]) / temperature) for k in range(8) if k != i)
        total -= math.log(math.exp(cos(z[i], z[partner]) / temperature) / denominator)
    assert objectives.nt_xent(za, zb, temperature).item() == pytest.approx(total / 8, abs=1e-10)


def test_info_nce():
    q, k, queue = randn(4, 6), randn(4, 6), torch.nn.functional.normalize(randn(9, 6))
    total = 0.0
    for a, b in zip(q, k, strict=True):
        own = math.exp(cos(a, b) / 0.2)
        total -= math.log(own / (own + sum(math.exp(cos(a, r) / 0.2) for r in queue)))
    assert objectives.info_nce(q, k, queue, 0.2).item() == pytest.approx(total / 4, abs=1e-10)


def test_cross_info_nce():
    q, k = randn(5, 6), randn(5, 6)
    total = 0.0
    for i in range(5):
        total -= math.log(softmax([cos(q[i], k[j]) / 0.2 for j in range(5)])[i])
    assert objectives.cross_info_nce(q, k, 0.2).item() == pytest.approx(2 * 0.2 * total / 5, abs=1e-10)


@pytest.mark.parametrize(("block", "keys"), [(1, 1), (12, 4), (100, 7), (10**6, 1024)])
@pytest.mark.parametrize("leave_out", [False, True])
def test_blocks_of_any_size_add_up_to_the_whole(block: int, keys: int, leave_out: bool, monkeypatch):
    """Value and both gradients against the plain formula, with blocks that do and do not divide the sizes."""
    monkeypatch.setattr(contrastive, "_BLOCK", block)
    monkeypatch.setattr(contrastive, "_KEYS", keys)
    q, k = randn(13, 5).requires_grad_(), randn(17, 5).requires_grad_()
    left_out = torch.randint(0, 17, (13, 2)) if leave_out else None
    found = contrastive.similarities_logsumexp(q, k, 0.3, left_out)
    plain = q @ k.T / 0.3
    if left_out is not None:
        plain = plain.masked_fill((torch.arange(17) == left_out[:, :, None]).any(1), -math.inf)
    torch.testing.assert_close(found, plain.logsumexp(1))
    weights = randn(13)
    ours = torch.autograd.grad((found * weights).sum(), (q, k))
    theirs = torch.autograd.grad((plain.logsumexp(1) * weights).sum(), (q, k))
    torch.testing.assert_close(ours, theirs)


def test_no_matrix_of_all_similarities_is_held():
    """NT-Xent of 2 x 3,000 rows: autograd keeps less than a tenth of the 6,000 x 6,000 similarities."""
    kept = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel()
        return x

    za, zb = torch.randn(3000, 8, requires_grad=True), torch.randn(3000, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        objectives.nt_xent(za, zb, 0.1).backward()
    assert kept < 6000**2 / 10


def test_distillation():
    t, s, center = randn(3, 5), randn(3, 5), randn(5)
    probs = [softmax(((row - center) / 0.04).tolist()) for row in t]
    found = objectives.sharpen(t, center, 0.04)
    torch.testing.assert_close(found, torch.tensor(probs, dtype=torch.float64))
    loss = 0.0
    for p, row in zip(probs, s, strict=True):
        loss -= sum(a * math.log(b) for a, b in zip(p, softmax((row / 0.1).tolist()), strict=True))
    assert objectives.cross_entropy(found, s, 0.1).item() == pytest.approx(loss / 3, abs=1e-10)


def test_swapped_prediction():
    scores, codes = randn(3, 5), randn(3, 5).softmax(1)
    loss = 0.0
    for row, q in zip(scores, codes, strict=True):
        loss -= sum(a * math.log(b) for a, b in zip(q.tolist(), softmax((row / 0.1).tolist()), strict=True))
    assert objectives.swapped_prediction(scores, codes, 0.1).item() == pytest.approx(loss / 3, abs=1e-10)


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_papers_products(iterations: int):
    scores = randn(6, 4).tanh()
    q = [[math.exp(x / 0.25) for x in row] for row in scores.tolist()]
    for _ in range(iterations):
        uses = [sum(row[k] for row in q) for k in range(4)]
        q = [[row[k] / uses[k] / 4 for k in range(4)] for row in q]
        q = [[x / sum(row) / 6 for x in row] for row in q]
    codes = objectives.sinkhorn(scores, 0.25, iterations)
    torch.testing.assert_close(codes, 6 * torch.tensor(q, dtype=torch.float64))


def test_vicreg():
    za, zb = randn(6, 3), 0.5 * randn(6, 3)
    pairs = [(za[i, j] - zb[i, j]).item() ** 2 for i in range(6) for j in range(3)]
    assert objectives.invariance(za, zb).item() == pytest.approx(sum(pairs) / 18, abs=1e-12)
    for z in (za, zb):
        mean = [sum(z[:, j].tolist()) / 6 for j in range(3)]
        cov = [
            [sum((z[i, j].item() - mean[j]) * (z[i, k].item() - mean[k]) for i in range(6)) / 5 for k in range(3)]
            for j in range(3)
        ]
        hinge = sum(max(0.0, 1 - math.sqrt(cov[j][j] + 1e-4)) for j in range(3)) / 3
        assert objectives.variance(z).item() == pytest.approx(hinge, abs=1e-12)
        off = sum(cov[j][k] ** 2 for j in range(3) for k in range(3) if j != k) / 3
        assert objectives.covariance(z).item() == pytest.approx(off, abs=1e-12)


def test_cross_correlation():
    za, zb = randn(6, 3), 5 + 0.5 * randn(6, 3)
    found = objectives.cross_correlation(za, zb)
    expected = np.corrcoef(za.T, zb.T)[:3, 3:]  # of both sets of dimensions: the block between them
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # but for what is added to the variances
    torch.testing.assert_close(objectives.cross_correlation(zb, za), found.T)
    torch.testing.assert_close(objectives.cross_correlation(300 * za - 1, 200 * zb + 7), found, rtol=1e-3, atol=0)


def test_patchify_keeps_rows_columns_and_channels_in_order():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = objectives.patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                wanted = [
                    x[b, c, 2 * row + i, 2 * column + j].item() for i in range(2) for j in range(2) for c in range(3)
                ]
                assert patches[b, 3 * row + column].tolist() == wanted


def test_masked_mse():
    pred, target = randn(2, 4, 6), randn(2, 4, 6)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    plain, standardized = [], []
    for b, n in mask.nonzero().tolist():
        t, p = target[b, n].tolist(), pred[b, n].tolist()
        plain.append(sum((x - y) ** 2 for x, y in zip(p, t, strict=True)) / 6)
        mean = sum(t) / 6
        std = math.sqrt(sum((x - mean) ** 2 for x in t) / 5 + 1e-6)
        standardized.append(sum((x - (y - mean) / std) ** 2 for x, y in zip(p, t, strict=True)) / 6)
    assert objectives.masked_mse(pred, target, mask, normalize=False).item() == pytest.approx(sum(plain) / 6)
    assert objectives.masked_mse(pred, target, mask, normalize=True).item() == pytest.approx(sum(standardized) / 6)


def test_directed_info_nce_and_clip():
    q, k, t = randn(5, 6), randn(5, 6), 0.2
    rows = [-math.log(softmax([cos(q[i], k[j]) / t for j in range(5)])[i]) for i in range(5)]
    columns = [-math.log(softmax([cos(q[j], k[i]) / t for j in range(5)])[i]) for i in range(5)]
    assert objectives.directed_info_nce(q, k, t).item() == pytest.approx(sum(rows) / 5, abs=1e-10)
    log_scale = torch.tensor(math.log(1 / t), dtype=torch.float64)
    assert objectives.clip(q, k, log_scale).item() == pytest.approx(sum(rows + columns) / 10, abs=1e-10)
    assert objectives.clip(k, q, log_scale).item() == pytest.approx(sum(rows + columns) / 10, abs=1e-10)


def test_masked_cross_entropy():
    p, s = randn(3, 4, 5).softmax(-1), randn(3, 4, 5)
    mask = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    total = 0.0
    for b in range(3):
        chosen = [i for i in range(4) if mask[b, i]]
        for i in chosen:
            q = softmax([x / 0.1 for x in s[b, i].tolist()])
            total -= sum(x * math.log(y) for x, y in zip(p[b, i].tolist(), q, strict=True)) / len(chosen)
    assert objectives.masked_cross_entropy(p, s, mask, 0.1).item() == pytest.approx(total / 3, abs=1e-10)


def test_latent_error():
    pred, target = 2 * randn(2, 3, 6), randn(2, 3, 6)
    total = 0.0
    for a, b in zip(pred.view(-1, 6).tolist(), target.view(-1, 6).tolist(), strict=True):
        mean = sum(b) / 6
        std = math.sqrt(sum((x - mean) ** 2 for x in b) / 6 + 1e-5)
        for x, y in zip(a, b, strict=True):
            d = abs(x - (y - mean) / std)
            total += d * d / 2 if d < 1 else d - 0.5
    assert objectives.latent_error(pred, target).item() == pytest.approx(total / 36, abs=1e-10)


def test_koleo():
    z = randn(6, 4)
    units = [row / row.norm() for row in z]
    nearest = [min(float((a - b).norm()) for j, b in enumerate(units) if j != i) for i, a in enumerate(units)]
    assert objectives.koleo(z).item() == pytest.approx(-sum(map(math.log, nearest)) / 6, abs=1e-10)
    assert objectives.koleo(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-0.693147, abs=1e-6)
    assert objectives.koleo(torch.eye(5)).item() == pytest.approx(-0.346574, abs=1e-6)
    angles = torch.arange(8) * math.pi / 4
    assert objectives.koleo(torch.stack([angles.cos(), angles.sin()], 1)).item() == pytest.approx(0.267400, abs=1e-5)


@pytest.mark.parametrize("n", [4, 256])
def test_clip_of_equal_and_of_orthogonal_pairs(n: int):
    assert objectives.clip(torch.ones(n, 8), torch.ones(n, 8), torch.tensor(1.0)).item() == pytest.approx(math.log(n))
    found = objectives.clip(torch.eye(n), torch.eye(n), torch.tensor(2.0)).item()
    assert found == pytest.approx(math.log1p((n - 1) * math.exp(-math.exp(2.0))), rel=1e-4)
