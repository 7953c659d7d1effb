"""Rankings: against loops, scikit-learn, lists done by hand, and the protocols' own definitions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from manyviews.data.source import unlabeled
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Pixels, Task, extract
from manyviews.evaluation.linear import Standardizer
from manyviews.evaluation.protocols import copy_detection, retrieval
from manyviews.evaluation.protocols._images import comparable
from manyviews.evaluation.protocols.copy_detection import (
    CopyDetection,
    Pooled,
    distorted,
    micro_average_precision,
    pool,
)
from manyviews.evaluation.protocols.retrieval import Retrieval, by_class
from manyviews.evaluation.rankings import average_precision, average_precisions, mean_average_precision, revisited

from .conftest import measured

LOOK = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def image_task(encoder, known, test, held=10, progress=None):
    a, b = (extract(encoder, s, test_size=12, **LOOK) for s in (known, test))
    n = len(a) - held
    frozen = Task(a.x[:n], a.labels[:n], a.x[n:], a.labels[n:], b.x, len(known.classes))
    hidden = [dataclasses.replace(s, annotate=unlabeled) for s in (known, test)]
    return ImageTask(encoder, frozen, *hidden, 12, *LOOK.values(), torch.device("cpu"), progress), b.labels


# -- average precision -----------------------------------------------------------------------------------------------


def test_what_is_not_found_counts():
    """Ranks 1 and 4 of three relevant items; over the two that were found it would be 0.75."""
    assert average_precision([1, 4], 3) == pytest.approx(0.5)
    assert average_precision([1, 2, 3], 3) == 1 and average_precision([], 3) == 0


def test_trapezoids_by_hand():
    """Before rank 1 the precision is 1; before rank 4, 1/3, and with it 2/4. Before rank 2 alone it is 0."""
    assert average_precision([1, 4], 2, trapezoidal=True) == pytest.approx(((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert average_precision([2], 1, trapezoidal=True) == pytest.approx((0 + 1 / 2) / 2)
    assert average_precision([1, 2, 3], 3, trapezoidal=True) == 1


def test_average_precisions_are_scikit_learns():
    similarity = torch.randn(20, 50)
    relevant = torch.rand(20, 50) < torch.rand(20, 1)
    relevant[:, 7] = True
    found = average_precisions(similarity, [row.nonzero()[:, 0].tolist() for row in relevant])
    wanted = [average_precision_score(r, s) for r, s in zip(relevant, similarity, strict=True)]
    assert found.tolist() == pytest.approx(wanted)


def test_junk_is_as_if_it_were_not_there():
    similarity = torch.randn(6, 30)
    positives, junk = [[1, 5, 9]] * 6, [[0, 5 + 5, 20, 21]] * 6
    without = [i for i in range(30) if i not in junk[0]]
    found = average_precisions(similarity, positives, junk, trapezoidal=True)
    places = [without.index(i) for i in positives[0]]
    torch.testing.assert_close(
        found, average_precisions(similarity[:, without], [places] * 6, trapezoidal=True), rtol=0, atol=0
    )
    assert not torch.equal(found, average_precisions(similarity, positives, trapezoidal=True))


def test_equals_are_no_gain():
    """Where all are equally similar, the relevant ones come last."""
    assert mean_average_precision(torch.zeros(1, 10), [[0, 1]]) == pytest.approx((1 / 9 + 2 / 10) / 2)


def test_queries_for_which_nothing_is_relevant_are_left_out():
    similarity = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert average_precisions(similarity, [[], [1]]).isnan().tolist() == [True, False]
    assert mean_average_precision(similarity, [[], [1]]) == 0.5


def the_protocols_map(ranking, positives, junk, k):
    """The revisited protocol in its authors' words: junk is taken out, trapezoids, precision at k or at the last."""
    kept = [i for i in ranking if i not in junk]
    area, found = 0.0, 0
    for place, item in enumerate(kept):
        if item in positives:
            before = 1.0 if place == 0 else found / place
            found += 1
            area += (before + found / (place + 1)) / 2 / len(positives)
    last = max(place for place, item in enumerate(kept) if item in positives) + 1
    depth = min(k, last)
    return area, sum(item in positives for item in kept[:depth]) / depth


def test_the_revisited_protocol():
    similarity = torch.randn(5, 40)
    places = [torch.randperm(40).tolist() for _ in range(5)]
    easy, hard, junk = ([p[a:b] for p in places] for a, b in ((0, 4), (4, 9), (9, 15)))
    easy[2] = []  # a query without easy positives is left out of Easy
    found = revisited(similarity, easy, hard, junk)
    setups = {
        "easy": (easy, [j + h for j, h in zip(junk, hard, strict=True)]),
        "medium": ([e + h for e, h in zip(easy, hard, strict=True)], junk),
        "hard": (hard, [j + e for j, e in zip(junk, easy, strict=True)]),
    }
    for name, (positives, ignored) in setups.items():
        rankings = similarity.argsort(1, descending=True).tolist()
        rows = [
            the_protocols_map(r, p, i, 5) for r, p, i in zip(rankings, positives, ignored, strict=True) if len(p) > 0
        ]
        assert found[f"{name} mAP"] == pytest.approx(np.mean([a for a, _ in rows]))
        assert found[f"{name} mP@5"] == pytest.approx(np.mean([p for _, p in rows]))
    assert math.isnan(revisited(similarity, [[]] * 5, hard, junk)["easy mAP"])


# -- images of the same class ----------------------------------------------------------------------------------------


@pytest.fixture
def data():
    """Features with some structure, of 4 classes of different sizes."""
    x = torch.randn(360, 12)
    y = (x[:, :4] * torch.tensor([1, 1, 1, 2.0]) + 0.8 * torch.randn(360, 4)).argmax(1)
    return x[:300], y[:300], x[300:], y[300:]


def test_each_querys_numbers_are_those_of_its_ranking(data):
    train_x, train_y, test_x, test_y = data
    found = by_class(*data)
    similarity = F.normalize(test_x, dim=1) @ F.normalize(train_x, dim=1).T
    for q, (row, y) in enumerate(zip(similarity, test_y, strict=True)):
        relevant = train_y == y
        ranked = relevant[row.argsort(descending=True)]
        assert found["mAP"][q].item() == pytest.approx(average_precision_score(relevant, row))
        assert found["R-precision"][q].item() == pytest.approx(ranked[: relevant.sum()].double().mean().item())
        for k in (1, 5, 10):
            assert found[f"recall@{k}"][q].item() == ranked[:k].any().item()


def test_blocks_change_nothing(data, monkeypatch):
    whole = by_class(*data)
    queries, references, pairs = data[2], data[0], torch.tensor([[3, 8], [7, 1], [50, 2]])
    together = pool(queries, references, pairs)
    for module in (retrieval, copy_detection):
        monkeypatch.setattr(module, "_BLOCK", 700)
    for name, values in by_class(*data).items():
        torch.testing.assert_close(values, whole[name])
    torch.testing.assert_close(pool(queries, references, pairs).ahead, together.ahead)


def test_order_and_length_are_of_no_importance(data):
    train_x, train_y, test_x, test_y = data
    order = torch.randperm(300)
    other = by_class(train_x[order] * torch.rand(300, 1).add(0.1), train_y[order], test_x, test_y)
    for name, values in by_class(*data).items():
        torch.testing.assert_close(other[name], values, rtol=0, atol=1e-6)


def test_a_class_that_is_nowhere_is_named(data):
    train_x, train_y, test_x, _ = data
    with pytest.raises(UserError, match="class 9"):
        by_class(train_x, train_y, test_x, torch.full((60,), 9))
    with pytest.raises(UserError, match="class 0"):
        by_class(train_x, train_y.clamp(min=1), test_x, torch.zeros(60, dtype=torch.int64))


def test_the_measure_searches_all_training_images(encoder, pictures):
    steps = []
    task, y = image_task(
        encoder, pictures(70), pictures(30, seed=1), progress=lambda done, total, note="": steps.append((done, total))
    )
    found = measured(Retrieval(), task, y)
    known = torch.cat([task.frozen.train_x, task.frozen.val_x])
    each = by_class(known, torch.arange(70) % 3, task.frozen.test_x, y)
    assert found.value == pytest.approx(each["mAP"].mean().item()) and 1 / 3 < found.value < 1
    assert list(found.details) == ["R-precision", "recall@1", "recall@5", "recall@10"]
    means = [np.random.default_rng(i).choice(each["mAP"], 30).mean() for i in range(2000)]
    assert found.interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert steps[-1] == (30, 30) and found == measured(Retrieval(), task, y)


def test_raw_pixels_are_standardized(pictures):
    task, _ = image_task(Pixels(), pictures(40), pictures(9, seed=1))
    known = torch.cat([task.frozen.train_x, task.frozen.val_x])
    ours = comparable(task)
    torch.testing.assert_close(ours[0], Standardizer.of(known)(known))
    torch.testing.assert_close(ours[1], Standardizer.of(known)(task.frozen.test_x))


# -- distorted copies ------------------------------------------------------------------------------------------------


def pooled_by_hand(queries, references, pairs, offset):
    scores = F.normalize(queries, dim=1) @ F.normalize(references, dim=1).T - offset[:, None]
    truth = torch.zeros_like(scores)
    truth[pairs[:, 0], pairs[:, 1]] = 1
    return truth.flatten(), scores.flatten()


def test_micro_average_precision_is_that_of_one_list():
    queries, references = torch.randn(30, 8), torch.randn(90, 8)
    pairs = torch.tensor([[i, 3 * i] for i in range(20)])
    references[pairs[:, 1]] += 1.5 * queries[pairs[:, 0]]
    for offset in (torch.zeros(30), torch.rand(30)):
        truth, scores = pooled_by_hand(queries, references, pairs, offset)
        found = micro_average_precision(pool(queries, references, pairs, offset))
        assert found.item() == pytest.approx(average_precision_score(truth, scores)) and 0.05 < found < 0.9


def test_micro_average_precision_by_hand():
    """True pairs of scores 0.9 (query 0) and 0.5 (query 1); between them two false ones of query 2, above both none."""
    pooled = Pooled(torch.tensor([0.9, 0.5]), torch.tensor([0, 1]), torch.tensor([[0, 0, 0], [0, 0, 2]]))
    assert micro_average_precision(pooled).item() == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert micro_average_precision(pooled, torch.tensor([1.0, 1, 0]).double()).item() == 1
    weights = torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 1, 3]]).double()
    assert micro_average_precision(pooled, weights).tolist() == pytest.approx([0.75, 1 / 3, (1 + 2 / 8) / 2])


def test_one_threshold_must_do_for_all():
    """Each query's own ranking is perfect, but a stranger's scores lie between."""
    references = torch.eye(4)
    queries = torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0, 0], [0, 0, 0.8, 0]])
    queries[1, 3], queries[2, 3] = 0.5, 0.6  # cosines 0.77 and 0.8
    pairs = torch.tensor([[0, 0], [1, 1]])
    assert micro_average_precision(pool(queries, references, pairs)).item() == pytest.approx((1 + 2 / 3) / 2)


def test_copies_are_the_images_changed(pictures):
    pixels = torch.stack([torch.tensor(np.asarray(pictures(40).load(i))).permute(2, 0, 1) for i in range(40)])
    others, index = pixels.flip(0), torch.arange(40)
    found = distorted(pixels, others, index, 0)
    assert found.dtype == torch.uint8 and found.shape == pixels.shape
    changed = (found != pixels).flatten(1).double().mean(1)
    assert changed.min() > 0.3
    assert torch.equal(found, distorted(pixels, others, index, 0))
    assert not torch.equal(found, distorted(pixels, others, index, 1))
    some = torch.tensor([31, 4])
    assert (distorted(pixels[some], others[some], some, 0).int() - found[some].int()).abs().max() <= 1


def test_what_is_pasted_over_is_of_the_other_image(monkeypatch):
    monkeypatch.setattr(copy_detection, "DISTORTIONS", ())
    monkeypatch.setattr(copy_detection, "_JPEG", 0.0)
    black, white = torch.zeros(200, 3, 20, 20, dtype=torch.uint8), torch.full((200, 3, 20, 20), 255, dtype=torch.uint8)
    covered = (distorted(black, white, torch.arange(200), 0) == 255).flatten(1).double().mean(1)
    assert 0.2 < (covered > 0).double().mean() < 0.4 and covered.max() <= 0.25


def test_copies_of_an_encoder_that_sees_through_all_are_found(encoder, pictures, monkeypatch):
    """Without distortions a copy's features are its original's; a stranger's are nobody's."""
    monkeypatch.setattr(copy_detection, "DISTORTIONS", ())
    monkeypatch.setattr(copy_detection, "_OVERLAY", dataclasses.replace(copy_detection._OVERLAY, p=0.0))
    monkeypatch.setattr(copy_detection, "_JPEG", 0.0)
    task, y = image_task(encoder, pictures(60), pictures(40, seed=1))
    found = measured(CopyDetection(copies=12, distractors=15), task, y)
    assert found.value == pytest.approx(1) and found.interval == pytest.approx((1, 1))
    assert found.details["recall@1"] == found.details["recall at 90 % precision"] == 1
    assert 0.99 < found.details["threshold at 90 % precision"] <= 1.00001
    assert found.setting == {"copies": 12, "distractors": 15, "neighbors": 3}


def test_copy_detection_needs_no_labels_and_repeats(encoder, pictures):
    task, y = image_task(encoder, pictures(60), pictures(40, seed=1))
    found = measured(CopyDetection(), task, y)
    assert found.setting["copies"] == found.setting["distractors"] == 20  # half of the test images each
    assert found == measured(CopyDetection(), task, torch.zeros_like(y))
    assert found != measured(CopyDetection(), task, y, 1)
    low, high = found.interval
    assert 0 < low < found.value < high < 1
    assert all(0 <= v <= 1 for v in found.details.values())


def test_strangers_are_no_references(encoder, pictures, monkeypatch):
    """A query without an original would else find one."""
    seen = []
    monkeypatch.setattr(
        copy_detection, "pool", lambda q, r, pairs, offset=None: seen.append((q, r, pairs)) or pool(q, r, pairs)
    )
    monkeypatch.setattr(copy_detection, "distorted", lambda pixels, others, index, seed: pixels)
    task, y = image_task(encoder, pictures(30), pictures(20, seed=1))
    measured(CopyDetection(copies=6, distractors=8), task, y)
    queries, references, pairs = seen[0]
    assert len(references) == 30 + 20 - 8
    distance = torch.cdist(queries, references)
    torch.testing.assert_close(distance[:6].argmin(1), pairs[:, 1])
    assert distance[:6].amin(1).max() < 1e-3 < distance[6:].amin(1).min()


def test_a_single_test_image_is_not_enough(encoder, pictures):
    task, y = image_task(encoder, pictures(30), pictures(20, seed=1))
    alone = dataclasses.replace(task, frozen=dataclasses.replace(task.frozen, test_x=task.frozen.test_x[:1]))
    with pytest.raises(UserError, match="two test images"):
        measured(CopyDetection(), alone, y[:1])
