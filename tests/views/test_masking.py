"""What is hidden: against slow loops, the papers' shares, and what a network must be able to rely on."""

import pytest
import torch

from manyviews.errors import UserError
from manyviews.types import Batch
from manyviews.views import Blocks, CutMix, Draws, Global, Grid, Local, MultiBlock, Random, Rotation, Views


def draws(n: int = 400, progress: float = 0.0) -> Draws:
    return Draws(3, 1, torch.arange(n) * 7, progress=progress)


def test_random_masks_split_the_patches():
    mask = Random(0.75).draw((4, 4), draws(4000))
    assert mask.kept.dtype == torch.int64 and mask.kept.shape == (4000, 4) and mask.blocks[0].shape == (4000, 12)
    for kept, rest, hidden in zip(mask.kept[:50].tolist(), mask.blocks[0][:50].tolist(), mask.hidden[:50], strict=True):
        assert kept == [i for i in range(16) if not hidden[i]] and rest == [i for i in range(16) if hidden[i]]
    # 4,000 trials of probability 0.75: standard deviation 0.007.
    assert (mask.hidden.double().mean(0) - 0.75).abs().max() < 0.03
    for ratio in (0.01, 0.99):
        with pytest.raises(UserError, match="some must stay"):
            Random(ratio).draw((2, 2), draws(1))


def test_a_grid_keeps_one_of_four():
    assert Grid().draw((4, 4), draws(2)).kept.tolist() == [[0, 2, 8, 10]] * 2


def test_blocks_hide_exact_shares_of_half_of_the_images_in_rectangles():
    masking, grid = Blocks((0.1, 0.5)), (14, 14)
    mask = masking.draw(grid, draws(2000))
    count = mask.hidden.sum(1)
    some = count > 0
    assert abs(some.double().mean().item() - 0.5) < 0.05
    assert count[some].min() >= 20 and count.max() <= 98
    assert abs(count[some].double().mean().item() - 0.3 * 196) < 3
    # The patches to predict begin with all that are hidden.
    order = mask.blocks[0]
    assert order.shape == (2000, 98)
    where = mask.hidden.gather(1, order)
    assert torch.equal(where, torch.arange(98) < count[:, None])
    # In blocks: of a hidden patch's neighbors far more are hidden than by chance, whose rate is the share.
    maps = mask.hidden[some].view(-1, *grid).double()
    pairs = (maps[:, 1:] * maps[:, :-1]).sum() / maps[:, 1:].sum()
    assert pairs > 0.7


def test_multi_blocks_are_rectangles_that_the_context_does_not_show():
    mask = MultiBlock().draw((14, 14), draws(60))
    sizes = {block.shape for block in mask.blocks}
    assert len(mask.blocks) == 4 and len(sizes) == 1
    target = torch.zeros(60, 196, dtype=torch.bool)
    for block in mask.blocks:
        target.scatter_(1, block, True)
        for row in block[:5]:
            y, x = row // 14, row % 14
            tall, wide = int(y.max() - y.min() + 1), int(x.max() - x.min() + 1)
            assert len(set(row.tolist())) == tall * wide == len(row)
            assert 0.12 < tall * wide / 196 < 0.23 and 0.6 < tall / wide < 1.7
    assert not target.gather(1, mask.kept).any()
    assert torch.equal(mask.kept, mask.kept.sort(1).values) and not mask.hidden.gather(1, mask.kept).any()
    # Another step has blocks of another size; the same step has the same, whatever the batch.
    again = MultiBlock().draw((14, 14), draws(7))
    assert all(torch.equal(a[:7], b) for a, b in zip(mask.blocks, again.blocks, strict=True))
    assert len({MultiBlock().draw((14, 14), draws(2, p / 10)).blocks[0].shape for p in range(10)}) > 1
    small = MultiBlock().draw((4, 4), draws(50))
    assert small.kept.shape[1] >= 4


def test_positions_are_the_patches_centers_on_the_image():
    """A picture whose pixels tell where they are, seen through its crops."""
    side, grid = 64, (4, 4)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.stack([y, x, x]).mul(4).byte().expand(20, -1, -1, -1)
    batch = Batch.of(pixels)
    kinds = (Global(2, 32, color=None), Local(1, 16, color=None), Rotation(1, 32), CutMix(1, 32, name="mixed"))
    views = Views(batch, kinds, mean=(0.0,) * 3, std=(1.0,) * 3)
    for name, i in (("global", 1), ("local", 0)):
        seen = torch.nn.functional.adaptive_avg_pool2d(views[name, i][:, :2] * 255 / 4 + 0.5, grid) / side
        found = views.positions(name, i, grid)
        assert found.shape == (20, 16, 2)
        torch.testing.assert_close(found, seen.flatten(2).transpose(1, 2), atol=0.02, rtol=0)
    for name in ("rotation", "mixed"):
        with pytest.raises(UserError, match="no places on the image"):
            views.positions(name, 0, grid)
    assert torch.equal(views.parameters("rotation", 0).square().sum(1).round(), torch.ones(20))


def test_two_kinds_of_one_class_have_names_and_draws_of_their_own():
    batch = Batch.of(torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8))
    views = Views(batch, (Global(1, 24), Global(1, 32, name="large")))
    assert views["global", 0].shape[-1] == 24 and views["large", 0].shape[-1] == 32
    assert torch.equal(views["global", 0], Views(batch, (Global(1, 24),))["global", 0])
    with pytest.raises(UserError, match="distinct names"):
        Views(batch, (Global(1, 24), Global(1, 32)))
