"""Blocks of tars and row groups of Parquet: each is read about once, ahead of need, in an order that mixes."""

import errno
import gc
import itertools
import os
import pickle
import threading
import time
import weakref
from dataclasses import replace
from importlib import import_module

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from manyviews.data import BadImage, Loader, archive, blocks, open_source
from manyviews.data.blocks import Blocks, window
from manyviews.data.files import Unreachable
from manyviews.data.order import nearby, order
from manyviews.errors import UserError
from manyviews.evaluation import features
from tests.data.remote import STREAMED, encoded, in_blocks, indices, number, packed, put, samples, shards, table

# Blocks in memory


def numbered(batch):
    """Whether every picture has the color of its number."""
    return all((batch.canvases.image(i)[0] == n).all() for i, n in enumerate(batch.index.tolist()))


def test_a_block_is_a_stretch_of_one_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_BLOCK", 4000)
    monkeypatch.setattr(archive, "_MOST", 7)
    put(tmp_path / "a.tar", packed(samples(range(20))))
    put(tmp_path / "b.tar", packed([(f"{k:03}.png", encoded(k) + b"\0" * 3000 * (k % 2)) for k in range(20)]))
    source = open_source(tmp_path)
    assert source.blocks[-1] == 40 and 20 in source.blocks
    assert (np.diff(source.blocks[source.blocks <= 20], prepend=0) <= 7).all()  # at 1.5 kB each, two or three
    assert [number(source, i) for i in range(40)] == [*range(20)] * 2


def test_a_subset_keeps_the_rest_of_each_block(tmp_path):
    source = in_blocks(open_source(shards(tmp_path)), 10, 2)
    assert source.subset([3, 4, 9, 10, 35, 59]).blocks.tolist() == [3, 4, 5, 6]
    assert source.subset(range(60)).blocks.tolist() == source.blocks.tolist()
    # Two parts, one after the other, and then one of them: each reads a block twice at most.
    parts = source.subset([*range(0, 60, 2), *range(1, 60, 2)])
    assert parts.blocks.tolist() == [*range(5, 61, 5)]
    assert parts.subset(range(25)).blocks.tolist() == [5, 10, 15, 20, 25]
    assert source.subset(np.random.default_rng(0).permutation(60)).blocks is None
    assert source.subset([]).blocks.tolist() == []


def test_threads_fetch_a_block_once_and_different_ones_at_once():
    held, fetched, together = Blocks(), [], threading.Barrier(3, timeout=20)

    def fetch(block):
        together.wait()  # passes only when all three are being fetched
        fetched.append(block)
        return np.full(10, block)

    found = [None] * 12
    threads = [threading.Thread(target=lambda k=k: found.__setitem__(k, held.get(k % 3, fetch))) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == [0, 1, 2]
    assert [int(x[0]) for x in found] == [0, 1, 2] * 4


def test_the_last_blocks_stay_within_their_bytes(monkeypatch):
    monkeypatch.setattr(blocks, "HELD", 1000)
    held, fetched = Blocks(), []

    def fetch(block, size):
        fetched.append(block)
        return np.zeros(size, dtype=np.uint8)

    for block in (0, 1, 2, 0, 3, 0, 2, 1):  # four of 300 are too many; the least recently used one goes
        held.get(block, lambda b: fetch(b, 300))
    assert fetched == [0, 1, 2, 3, 1]
    fetched.clear()
    for block in (5, 6, 5, 6, 7, 6, 5):  # two stay, however large
        held.get(block, lambda b: fetch(b, 5000))
    assert fetched == [5, 6, 7, 5]
    copy = pickle.loads(pickle.dumps(held))
    copy.get(5, lambda b: fetch(b, 10))
    assert fetched == [5, 6, 7, 5, 5]  # a copy begins empty
    assert [window(np.array(s)) for s in ([50] * 100, [100] * 999 + [1], [10**6])] == [10, 5, 1]


def test_a_forked_worker_does_not_wait_for_its_parents_threads(monkeypatch):
    held = Blocks()
    held._lock.acquire()  # by a thread that is not in the worker
    monkeypatch.setattr(blocks.os, "getpid", lambda: -1)
    assert held.get(0, lambda b: np.ones(3)).sum() == 3


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_bad_sector_is_skipped_and_a_failing_disk_stops(kind, tmp_path, monkeypatch):
    if kind == "tar":
        (tmp_path / "a.tar").write_bytes(packed(samples(range(4))))
        reader, name = LocalFileSystem, "cat_file"
    else:
        pq.write_table(pa.table({"image": [encoded(k) for k in range(4)]}), tmp_path / "a.parquet")
        reader, name = pq, "ParquetFile"
    numbers = [errno.EIO, errno.ESTALE, errno.EMFILE]
    sources = [open_source(tmp_path) for _ in (*numbers, None)]

    def fail(*arguments, **options):
        raise OSError(numbers[0], os.strerror(numbers[0]))

    monkeypatch.setattr(reader, name, fail)
    for source, error in zip(sources, (BadImage, Unreachable, Unreachable), strict=False):
        with pytest.raises(error):
            source.load(0)
        numbers.pop(0)
    monkeypatch.undo()
    (tmp_path / f"a.{kind}").unlink()
    with pytest.raises(BadImage, match="is gone"):
        sources[-1].load(0)


def test_a_bad_block_stays_bad_and_other_failures_are_tried_again(monkeypatch):
    held, tries = Blocks(), []

    def fail(block):
        tries.append(block)
        raise BadImage("cut") if block == 0 else Unreachable("later")

    monkeypatch.setattr(blocks, "HELD", 0)
    for block, error in [(0, BadImage), (1, Unreachable)] * 2:
        with pytest.raises(error):
            held.get(block, fail)
    assert tries == [0, 1, 1]
    assert held.get(1, lambda b: np.full(3, b)).sum() == 3

    class Caller:
        """Whoever met the error: its traceback must not keep a whole batch in memory."""

        def meet(self):
            with pytest.raises(BadImage):
                held.get(0, fail)

    caller = Caller()
    left = weakref.ref(caller)
    caller.meet()
    del caller
    gc.collect()
    assert left() is None


# The order


def test_nearby_is_a_permutation_shared_evenly():
    sizes = np.random.default_rng(0).integers(1, 40, 50)
    ends = np.cumsum(sizes)
    for ranks in (1, 2, 7):
        shares = [nearby(3, 1, ends, 4, r, ranks) for r in range(ranks)]
        assert {len(share) for share in shares} == {ends[-1] // ranks}
        together = np.concatenate(shares)
        assert len(set(together.tolist())) == len(together)
        assert together.min() >= 0 and together.max() < ends[-1]
    whole = nearby(3, 1, ends, 4, 0, 1)
    assert sorted(whole.tolist()) == list(range(ends[-1]))
    assert whole.tolist() != nearby(3, 2, ends, 4, 0, 1).tolist()
    assert whole.tolist() != nearby(4, 1, ends, 4, 0, 1).tolist()


def test_nearby_is_the_same_everywhere():
    # Written down once. A change here breaks the exact resumption of every run begun before.
    assert nearby(0, 0, np.array([3, 5, 9, 12]), 2, 0, 1).tolist() == [6, 8, 4, 7, 5, 0, 2, 3, 1, 11, 9, 10]
    assert nearby(5, 2, np.array([3, 5, 9, 12]), 2, 1, 2).tolist() == [2, 6, 5, 7, 8, 1]


def test_nearby_mixes_a_bounded_number_of_blocks():
    size, count, near = 50, 400, 40
    items = nearby(0, 0, np.arange(size, size * count + 1, size), near, 0, 1)
    block = items // size
    opened = np.zeros(len(items) + 1)
    for b in range(count):
        first, last = np.flatnonzero(block == b)[[0, -1]]
        opened[first] += 1
        opened[last + 1] -= 1
    assert np.cumsum(opened).max() <= near + 1
    # Neighbors share a block as often as chance has it among those at hand, and are seldom consecutive.
    assert (block[1:] == block[:-1]).mean() < 1.5 / near
    assert (np.abs(np.diff(items)) == 1).mean() < 2 / (near * size) * 2
    # In a set sorted by class, a batch has as many classes as its images have blocks at random places.
    classes = items.reshape(-1, 200) // (size * count // 100)  # 100 classes, each in 4 blocks
    assert np.mean([len(set(batch)) for batch in classes[5:-5].tolist()]) > 25  # in order, one or two


@pytest.fixture
def many():
    """180 images at a URL in blocks of 10, of which 3 may be read in turns."""
    return in_blocks(open_source(shards("memory://bucket/many", 3, 60)), 10, 3)


def test_ranks_share_an_epoch_of_blocks_and_resume_in_it(many):
    ranks = [{"seed": 4, "rank": r, "world_size": 2} for r in range(2)]
    streamed, held = ([Loader(many, 8, 8, memory=m, **how) for how in ranks] for m in (STREAMED, None))
    assert streamed[0].steps_per_epoch == 11 and held[0].in_memory and not streamed[0].in_memory
    for epoch in range(2):
        left, right = (list(loader.batches(epoch)) for loader in streamed)
        seen = [*itertools.chain(*indices(left), *indices(right))]
        assert len(left) == len(right) == 11 and len(seen) == len(set(seen)) == 176
        assert all(numbered(b) for b in left + right)
        # Each rank has its own blocks, except for one that both have a part of.
        shared = {i // 10 for b in indices(left) for i in b} & {i // 10 for b in indices(right) for i in b}
        assert len(shared) <= 1
        assert [indices(loader.batches(epoch)) for loader in held] == [indices(left), indices(right)]
        for start in (1, 10, 11):
            resumed = streamed[0].batches(epoch, start)
            for one, other in itertools.zip_longest(resumed, left[start:]):
                assert torch.equal(one.pixels, other.pixels) and torch.equal(one.index, other.index)


def test_few_or_small_blocks_keep_the_usual_order(many):
    usual = order(0, 0, 180)[:176].reshape(-1, 8).tolist()
    for source in (in_blocks(many, 10, 18), in_blocks(many, 1, 3), replace(many, blocks=None)):
        assert indices(Loader(source, 8, 8, memory=STREAMED).batches(0)) == usual
    assert indices(Loader(many, 8, 8, memory=STREAMED).batches(0)) != usual


def small_blocks(monkeypatch, held):
    """Tars in blocks of ten images, of which so many are held."""
    monkeypatch.setattr(archive, "_MOST", 10)
    monkeypatch.setattr(blocks, "HELD", held * len(packed(samples(range(10)))))


def test_each_block_is_fetched_about_once_an_epoch(monkeypatch, requests):
    small_blocks(monkeypatch, 8)
    source = open_source(shards("memory://bucket/once", 4, 50))
    assert len(source.blocks) == 20 and 4 <= source.window <= 8
    for run in (
        lambda: list(Loader(source, 8, 8, memory=STREAMED).batches(0)),
        lambda: [list(Loader(source, 8, 8, rank=r, world_size=2, memory=STREAMED).batches(1)) for r in range(2)],
        lambda: Loader(source, 8, 8),  # into memory
    ):
        requests.clear()
        run()
        # Without locality ten times as many. A thread that the machine holds up may find its block gone again.
        assert 0 < len(requests) <= 32


def test_waiting_for_a_distant_disk_is_shared(monkeypatch):
    small_blocks(monkeypatch, 32)
    source = open_source(shards("memory://bucket/slow", 4, 50))
    original, under_way, most = MemoryFileSystem.cat_file, [], []

    def slow(self, path, start=None, end=None, **options):
        under_way.append(path)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.pop()
        return original(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow)
    for memory in (STREAMED, None):
        most.clear()
        list(Loader(source, 8, 8, memory=memory).batches(0))
        assert max(most) >= 4  # several blocks are on their way at once
        source = pickle.loads(pickle.dumps(source))


def test_an_evaluation_reads_each_block_once_and_ahead(monkeypatch):
    monkeypatch.setattr(archive, "_MOST", 5)
    source = open_source(put("memory://bucket/c.tar", packed(samples(range(60)))))
    original, under_way, seen, most = MemoryFileSystem.cat_file, [], [], []

    def cat_file(self, path, start=None, end=None, **options):
        under_way.append(start)
        seen.append(start)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.remove(start)
        return original(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(import_module("manyviews.data.canvas"), "cores", lambda: 1)
    found = list(features.test_images(source, 8, 16))
    assert [i for _, good, _ in found for i in good] == list(range(60))
    assert len(seen) == len(set(seen)) == 12
    assert max(most) > 2  # more than the one thread that decodes


# Parquet


def test_parquet_behind_a_url_agrees_with_the_same_on_disk(tmp_path, requests):
    for root in (tmp_path, "memory://bucket/tables"):
        table(f"{root}/a.parquet", range(40), 10)
        table(f"{root}/b.parquet", range(40, 60), 10)
    disk, distant = open_source(tmp_path), open_source("memory://bucket/tables")
    assert distant.name == disk.name and distant.ids == disk.ids
    assert distant.labels.tolist() == disk.labels.tolist()
    assert distant.where(41) == disk.where(41) == "b.parquet row 1"
    assert distant.blocks.tolist() == disk.blocks.tolist() == [10, 20, 30, 40, 50, 60]
    assert [number(distant, i) for i in range(60)] == list(range(60))
    assert open_source("memory://bucket/tables/{a,b}.parquet").ids == disk.ids
    copy = pickle.loads(pickle.dumps(distant))
    requests.clear()
    assert (number(copy, 25), number(copy, 21)) == (25, 21)
    assert len(requests) == 1  # the row group's images, and neither footer nor labels


def test_row_groups_are_blocks(tmp_path, monkeypatch):
    read, original = [], pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda s, **k: read.extend(k["row_groups"]) or original(s, **k))
    monkeypatch.setattr(blocks, "HELD", 1)
    source = open_source(table(tmp_path / "a.parquet", range(60), 10))
    assert source.window == 1 and read == []
    batches = list(Loader(source, 8, 5, memory=STREAMED).batches(0))
    assert sorted(read) == [0, 1, 2, 3, 4, 5]
    assert sorted(itertools.chain(*indices(batches))) == list(range(60))
    assert all(numbered(b) for b in batches)


def test_distant_parquet_that_cannot_be_read(monkeypatch):
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_source(put("memory://bucket/x.parquet", b"PAR1 and then nothing"))
    url = table("memory://bucket/y.parquet", range(4), 2)
    source = open_source(url)

    def fail(self, *arguments, **options):
        raise TimeoutError("slow")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"memory:///bucket/y.parquet cannot be read"):
        open_source(url)
    with pytest.raises(Unreachable):
        source.load(0)


def test_names_of_much_parquet_are_found_without_its_images(requests, monkeypatch):
    for name in ("a/z.parquet", "a/b/z.parquet", "a/b/y.parquet"):
        table(f"memory://bucket/{name}", range(12), 4)
    one, several = open_source("memory://bucket/a/b"), open_source("memory://bucket/a")
    opened = len(requests)
    monkeypatch.setattr(import_module("manyviews.data.parquet"), "_HASHED", 1000)
    assert one.ids == [f"{name}.parquet row {i}" for name in "yz" for i in range(12)]
    assert len(set(several.ids)) == 36
    assert {"z.parquet row 3", "b/z.parquet row 3"} < set(several.ids)
    assert len(requests) == opened
