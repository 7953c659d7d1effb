"""The order of the images, and that nothing but (seed, epoch) changes it."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from manyviews.data import Loader, Source, open_source
from manyviews.data.order import order
from manyviews.errors import UserError

STREAMED = 0  # bytes of memory for canvases


@pytest.fixture(scope="module")
def numbered():
    """23 images of their own numbers and shapes."""
    return open_source(np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 10, 3), dtype=np.uint8))


@pytest.fixture
def flawed(tmp_path):
    """12 images, of which 3, 4 and the last are bad."""
    for k in range(12):
        Image.new("RGB", (8 + k, 9), (k, 0, 0)).save(tmp_path / f"{k:02}.png")
    for k in (3, 4, 11):
        (tmp_path / f"{k:02}.png").write_bytes(b"broken")
    return open_source(tmp_path)


def indices(batches):
    return [batch.index.tolist() for batch in batches]


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        for field in ("pixels", "extent", "index"):
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    seen = {tuple(order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(seen) == 25
    assert all(sorted(o) == list(range(50)) for o in seen)


def test_order_is_the_same_everywhere():
    # Written down once. A change here breaks the exact resumption of every run begun before.
    assert order(0, 0, 10).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert order(-1, 3, 6).tolist() == [2, 0, 3, 4, 1, 5]


def test_order_is_uniform():
    count = np.zeros((6, 6))
    for epoch in range(3000):
        count[np.arange(6), order(7, epoch, 6)] += 1
    # Chi-squared with 25 degrees of freedom; 52.6 has probability 0.001.
    assert ((count - 500) ** 2 / 500).sum() < 52.6


def test_an_epoch_has_each_image_once_and_drops_the_rest(numbered):
    loader = Loader(numbered, 8, 5)
    assert loader.steps_per_epoch == 4
    seen = list(itertools.chain(*indices(loader.batches(0))))
    assert len(seen) == len(set(seen)) == 20
    assert seen != sorted(seen)
    assert indices(loader.batches(1)) != indices(loader.batches(0))


def test_pixels_extent_and_index_belong_together(numbered):
    for batch in Loader(numbered, 6, 5).batches(2):
        assert batch.pixels.shape == (5, 3, 6, 8)
        assert batch.pixels.dtype == torch.uint8
        assert (batch.pixels == batch.index[:, None, None, None]).all()
        assert batch.extent.tolist() == [[6, 8]] * 5
        assert batch.extent.dtype == batch.index.dtype == torch.int64


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_ranks_share_the_global_batch(numbered, memory):
    whole = Loader(numbered, 8, 6, seed=3).batches(1)
    ranks = [Loader(numbered, 8, 3, seed=3, rank=r, world_size=2, memory=memory).batches(1) for r in range(2)]
    for batch, left, right in zip(whole, *ranks, strict=True):
        assert batch.index.tolist() == [*left.index.tolist(), *right.index.tolist()]
        assert torch.equal(batch.pixels, torch.cat([left.pixels, right.pixels]))


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_nor_does_it_depend_on_the_ranks_which_image_stands_for_a_bad_one(flawed, memory):
    for epoch in range(8):
        whole = indices(Loader(flawed, 8, 4, memory=memory).batches(epoch))
        ranks = [Loader(flawed, 8, 2, rank=r, world_size=2, memory=memory).batches(epoch) for r in range(2)]
        assert whole == [a + b for a, b in zip(*map(indices, ranks), strict=True)]


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_resuming_in_the_middle_of_an_epoch(numbered, memory):
    for start in (0, 2, 4):
        uninterrupted = list(Loader(numbered, 8, 5, seed=1).batches(3))[start:]
        assert_same(Loader(numbered, 8, 5, seed=1, memory=memory).batches(3, start), uninterrupted)


def test_streaming_gives_the_same_batches_as_memory(flawed):
    held, streamed = Loader(flawed, 8, 4, seed=5), Loader(flawed, 8, 4, seed=5, memory=STREAMED)
    assert held.in_memory
    assert not streamed.in_memory
    for epoch in range(2):
        assert_same(held.batches(epoch), streamed.batches(epoch))


def test_threads_share_a_parquet_file_that_is_open_already():
    source = open_source("demo:test")
    source.load(0)
    assert_same(Loader(source, 16, 60).batches(0), Loader(source, 16, 60, memory=STREAMED).batches(0))


def test_the_memory_budget_decides(numbered):
    assert Loader(numbered, 8, 4, memory=23 * 3 * 80).in_memory
    assert not Loader(numbered, 8, 4, memory=23 * 3 * 80 - 1).in_memory


def test_a_few_small_images_do_not_promise_that_all_fit():
    """What turns out to be larger than a sample said is streamed, and the batches are the same."""
    shapes = [(8, 8) if i % 8 == 0 else (8, 24) for i in range(257)]  # the sample is of every eighth
    images = [Image.new("RGB", (w, h), (i % 256, 0, 0)) for i, (h, w) in enumerate(shapes)]
    source = Source("grows", len(images), images.__getitem__, lambda: [str(i) for i in range(257)])
    loader = Loader(source, 8, 16, memory=257 * 3 * 100)
    assert not loader.in_memory
    assert_same(loader.batches(0), Loader(source, 8, 16).batches(0))


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_a_good_image_of_the_next_step_stands_for_a_bad_one(flawed, memory):
    loader = Loader(flawed, 8, 4, memory=memory)
    for epoch in range(4):
        wanted = order(0, epoch, 12).reshape(3, 4)
        column = wanted.T.ravel().tolist()
        good = [next(i for i in column[k:] + column[:k] if i not in (3, 4, 11)) for k in range(12)]
        wanted = np.array(good).reshape(4, 3).T.tolist()
        assert indices(loader.batches(epoch)) == wanted
        assert indices(loader.batches(epoch, 2)) == wanted[2:]


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_no_image_fills_the_places_of_a_whole_folder_of_bad_ones(tmp_path, memory):
    for k in range(64):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / f"{k:02}.png")
        if 16 <= k < 40:
            (tmp_path / f"{k:02}.png").write_bytes(b"half downloaded")
    for batch in indices(Loader(open_source(tmp_path), 8, 8, memory=memory).batches(0)):
        assert not {*range(16, 40)} & set(batch)
        assert max(batch.count(i) for i in batch) <= 2


def test_fewer_good_images_than_a_batch(flawed):
    with pytest.raises(UserError, match=r"Of the 12 images .* only 9 can be used, fewer than one batch of 10"):
        Loader(flawed, 8, 10)


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_bad_images_are_reported_once(flawed, memory):
    loader = Loader(flawed, 8, 4, memory=memory)
    for epoch in range(2):
        list(loader.batches(epoch))
    assert [name for name, _ in loader.bad] == ["03.png", "04.png", "11.png"]
    assert all("format" in reason for _, reason in loader.bad)


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_nothing_but_bad_images(tmp_path, memory):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"None of the 4 images .* 0\.png"):
        list(Loader(open_source(tmp_path), 8, 2, memory=memory).batches(0))


def test_fewer_images_than_a_batch(numbered):
    with pytest.raises(UserError, match="has 23 images, fewer than one batch of 24; set the batch size to 23 or less"):
        Loader(numbered, 8, 12, world_size=2)


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_global_random_numbers_are_left_alone(numbered, memory):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(Loader(numbered, 8, 5, memory=memory).batches(0))
    assert torch.equal(torch.rand(3), expected)


def test_leaving_an_epoch_early_and_starting_another(numbered):
    loader = Loader(numbered, 8, 5, memory=STREAMED)
    next(iter(loader.batches(0)))
    assert indices(loader.batches(1)) == indices(Loader(numbered, 8, 5).batches(1))
