"""Compositions of single augmentations: which are applied to which image, and that they are what is applied."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from manyviews.errors import UserError
from manyviews.types import Batch
from manyviews.views import MAST_5, MAST_15, Composed, Draws, Global, Strong, Views
from manyviews.views.augmentations import Equalize, GaussianBlur, Identity, Invert, ResizedCrop


def canvases(n: int = 8, size: int = 40) -> Batch:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=draw)
    pixels = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return Batch.of((pixels * 255).byte(), torch.full((n, 2), size))


def look(kind, n: int = 8, progress: float = 0.0, **settings) -> Views:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Views(canvases(n), (kind, Global(1, 32, (1.0, 1.0), None, (1.0, 1.0), 0.0)), progress=progress, **plain)


def drawn(kind: Composed, progress: float, n: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = Draws(seed, 0, torch.arange(n), progress=progress)
    return kind.applied(draws.at("composed/0")), kind.applied(draws.at("composed/1"))


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.49])
def test_in_the_first_half_an_image_has_one_augmentation_in_one_view_or_in_both(progress: float):
    a, b = drawn(Composed(augmentations=MAST_15), progress)
    either = a | b
    assert (either.sum(1) == 1).all()
    assert stats.chisquare(either.sum(0)).pvalue > 1e-3  # all equally often
    for column, augmentation in enumerate(MAST_15):
        mine = either[:, column]
        # Surely in one of the two, in the other with its own probability.
        both = (a & b)[mine, column].float().mean().item()
        assert both == pytest.approx(augmentation.p, abs=4 * (0.25 / mine.sum().item()) ** 0.5)
        if augmentation.p < 1:
            first = a[mine, column].float().mean().item()
            assert first == pytest.approx((1 + augmentation.p) / 2, abs=4 * (0.25 / mine.sum().item()) ** 0.5)


def test_in_the_second_half_the_sets_grow_linearly_to_all():
    always = tuple(type(x)(p=1.0) for x in MAST_15)
    means = [drawn(Composed(augmentations=always), p)[0].sum(1).float().mean().item() for p in (0.5, 0.6, 0.75, 1.0)]
    assert means == pytest.approx([1.0, 1 + 14 * 0.2, 1 + 14 * 0.5, 15.0], abs=0.05)
    assert (drawn(Composed(augmentations=always, staged=False), 0.0)[0]).all()


def test_each_view_of_a_set_draws_with_the_augmentations_own_probability():
    a, b = drawn(Composed(staged=False), 0.0)
    for column, augmentation in enumerate(MAST_5):
        for view in (a, b):
            assert view[:, column].float().mean() == pytest.approx(augmentation.p, abs=0.03)
    assert not torch.equal(a, b)


def test_a_set_can_be_the_same_for_a_whole_batch_and_differ_between_steps():
    kind = Composed(augmentations=MAST_15, choose="batch")
    sets = [torch.stack(drawn(kind, p)).any(0) for p in (0.1, 0.1001, 0.1002, 0.1003, 0.1004)]
    assert all((s == s[0]).all() for s in sets)
    assert len({tuple(s[0].tolist()) for s in sets}) > 1


def test_a_view_is_its_augmentations_one_after_the_other():
    """Against the single operators applied one by one to the image's own crop."""
    kind = Composed(1, 32, augmentations=(Invert(p=0.6), Equalize(p=0.5), GaussianBlur(p=0.5)), staged=False)
    views = look(kind, 24)
    x, plain, draws = views["composed", 0], views["global", 0], views.draws.at("composed/0")
    applied = kind.applied(draws)
    assert 0 < applied.float().mean() < 1
    for n in range(24):
        one, of_one = plain[n : n + 1], Draws(0, 0, torch.tensor([n])).at("composed/0")
        for k, a in enumerate(kind.augmentations):
            if applied[n, k]:
                one = a.apply(one, a.draw(of_one.at(a.name), 32))
        torch.testing.assert_close(x[n : n + 1], one, atol=1e-6, rtol=0)


def test_a_crop_and_a_flip_are_taken_from_the_canvas():
    kind = Composed(1, 32, augmentations=(*MAST_5[2:3], ResizedCrop(area=(0.3, 0.5))), staged=False)
    views = look(kind, 16)
    x, draws = views["composed", 0], views.draws.at("composed/0")
    boxes = ResizedCrop(area=(0.3, 0.5)).boxes(draws.at("resized_crop"), canvases(16).extent)
    flips = kind.applied(draws)[:, 0]
    assert 0 < flips.sum() < 16
    from manyviews.views.geometry import crop_resize

    torch.testing.assert_close(x, crop_resize(canvases(16).pixels, boxes, 32, flips), atol=1e-6, rtol=0)


def test_the_views_say_what_was_applied_in_each():
    kind = Composed(2, 32, staged=False)
    views = look(kind)
    a, b = (kind.applied(views.draws.at(f"composed/{i}")) for i in (0, 1))
    assert torch.equal(views.applied("composed"), torch.stack([a, b]))
    with pytest.raises(UserError, match="use Composed views"):
        views.applied("global")


def test_strong_views_apply_operations_at_random_and_a_hole():
    plain = look(Strong(1, 32, operations=0, hole=None), 64)
    torch.testing.assert_close(plain["strong", 0], plain["global", 0])
    only = look(Strong(1, 32, augmentations=(Invert(), Identity()), operations=1, hole=None), 64)
    x, y = only["strong", 0], only["global", 0]
    inverted = (x - (1 - y)).abs().amax((1, 2, 3)) < 1e-6
    same = (x - y).abs().amax((1, 2, 3)) < 1e-6
    assert (inverted ^ same).all() and 16 < inverted.sum() < 48
    twice = look(Strong(1, 32, augmentations=(Invert(), Identity()), operations=2, hole=None), 64)["strong", 0]
    once_each = (twice - y).abs().amax((1, 2, 3)) < 1e-6
    assert 16 < once_each.sum() < 48  # two inversions, or none
    holes = look(Strong(1, 32, operations=0), 200)["strong", 0] == 0.5
    sides = holes.all(1).float().sum((1, 2)).sqrt()
    assert sides.max() <= 16 and sides.std() > 2


def test_strong_views_do_not_depend_on_who_else_is_in_the_batch():
    kind = Strong(1, 32)
    views = look(kind, 32)
    rows = torch.tensor([30, 2, 9])
    torch.testing.assert_close(views.of(views.batch[rows], (kind,))["strong", 0], views["strong", 0][rows])
    assert views["strong", 0].min() >= 0 and views["strong", 0].max() <= 1


def test_bad_compositions_are_refused():
    for make, says in [
        (lambda: Composed(augmentations=()), "Composed.augmentations"),
        (lambda: Composed(augmentations=(Invert(), Invert(p=0.1))), "Composed.augmentations"),
        (lambda: Composed(choose="epoch"), "Composed.choose"),
        (lambda: Strong(operations=-1), "Strong.operations"),
    ]:
        with pytest.raises(UserError, match=says):
            make()
