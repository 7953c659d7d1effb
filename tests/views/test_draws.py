"""The random stream: what it is, that it is uniform, and that nothing but its keys matters."""

import hashlib
import itertools

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from manyviews.types import Batch
from manyviews.views import MAST_15, SIMCLR, Composed, Cutout, Draws, Global, Strong
from manyviews.views.distort import Distorting

N = 20_000
INDEX = torch.arange(N)
MASK = 2**64 - 1


def splitmix_finalizer(x: int) -> int:
    """Steele, Lea and Flood 2014, in Python's unbounded integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def test_bits_are_the_hash_in_unbounded_integers():
    draws = Draws(7, 3, torch.tensor([0, 5, 2**40])).at("global/1")
    stream = int.from_bytes(hashlib.blake2b(b"(7, 3, ('global/1',), 'crop')", digest_size=8).digest(), "little")
    expected = [
        [splitmix_finalizer(splitmix_finalizer(i + stream & MASK) + c * 0x9E3779B97F4A7C15 & MASK) for c in (1, 2, 3)]
        for i in (0, 5, 2**40)
    ]
    assert [[b & MASK for b in row] for row in draws.bits("crop", 3).tolist()] == expected


def test_the_stream_never_changes():
    """Pinned: a change here changes every run that is resumed or repeated."""
    draws = Draws(0, 0, torch.tensor([0, 1])).at("global/0")
    assert draws.bits("crop", 2).tolist() == [
        [-4619937206951278691, 6801559149949848941],
        [4169420069093166931, 640957114507850618],
    ]
    assert draws.permutation("order", 4).tolist() == [[1, 2, 0, 3], [2, 1, 0, 3]]


def test_uniform_is_uniform_over_images_and_over_columns():
    for u in (Draws(0, 0, INDEX).uniform("a", 1)[:, 0], Draws(0, 0, torch.tensor([3])).uniform("a", N)[0]):
        assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
        counts = torch.histc(u, 100, 0, 1)
        assert stats.chisquare(counts).pvalue > 1e-3
        assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_low_bits_are_uniform_too():
    counts = torch.bincount(Draws(0, 0, INDEX).bits("a", 1)[:, 0] & 63, minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_one_is_never_reached():
    u = Draws(0, 0, torch.arange(2_000_000)).uniform("a", 1)
    assert u.max() < 1 and u.max() > 1 - 1e-5
    assert torch.equal(u * 2**24, (u * 2**24).round())


STREAMS = {
    "image": Draws(0, 0, INDEX + 1).uniform("a", 1),
    "far image": Draws(0, 0, INDEX + 2**33).uniform("a", 1),
    "seed": Draws(1, 0, INDEX).uniform("a", 1),
    "epoch": Draws(0, 1, INDEX).uniform("a", 1),
    "name": Draws(0, 0, INDEX).uniform("b", 1),
    "view": Draws(0, 0, INDEX).at("a").uniform("a", 1),
    "view and name": Draws(0, 0, INDEX).at("b").uniform("a", 1),
    "nested": Draws(0, 0, INDEX).at("a").at("b").uniform("a", 1),
    "column": Draws(0, 0, INDEX).uniform("a", 2)[:, 1:],
    "itself": Draws(0, 0, INDEX).uniform("a", 1),
}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(STREAMS, 2)))
def test_streams_are_uncorrelated(a, b):
    x, y = STREAMS[a][:, 0], STREAMS[b][:, 0]
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4 / N**0.5
    joint = torch.histogramdd(torch.stack([x, y], 1), bins=[8, 8], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert stats.chisquare(joint.flatten()).pvalue > 1e-4


def test_order_and_split_of_the_batch_do_not_matter():
    index = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    whole = Draws(5, 2, torch.arange(300)).at("v").uniform("a", 7)
    assert torch.equal(Draws(5, 2, index).at("v").uniform("a", 7), whole[index])
    parts = [Draws(5, 2, part).at("v").uniform("a", 7) for part in torch.arange(300).split(41)]
    assert torch.equal(torch.cat(parts), whole)
    strided = [Draws(5, 2, torch.arange(rank, 300, 4)).at("v").uniform("a", 7) for rank in range(4)]
    assert torch.equal(torch.stack(strided, 1).flatten(0, 1), whole)


def test_more_columns_leave_the_first_alone():
    draws = Draws(0, 0, INDEX[:10])
    assert torch.equal(draws.uniform("a", 9)[:, :4], draws.uniform("a", 4))


def test_range_and_probability():
    draws = Draws(0, 0, INDEX)
    u = draws.uniform("a", 1, -3.0, 5.0)
    assert stats.kstest(u[:, 0], "uniform", (-3, 8)).pvalue > 1e-3
    assert draws.bernoulli("b", 1.0).all() and not draws.bernoulli("b", 0.0).any()
    assert stats.binomtest(int(draws.bernoulli("b", 0.2).sum()), N, 0.2).pvalue > 1e-3


def test_permutations_are_uniform():
    orders = Draws(0, 0, INDEX).permutation("order", 4)
    assert torch.equal(orders.sort(1).values, torch.arange(4).expand(N, 4))
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3


KINDS = [
    Global(2, 32, color=SIMCLR),
    Cutout(1, 32),
    Composed(2, 32, augmentations=MAST_15),
    Strong(1, 32),
]


def drawn(kind, canvases, draws):
    """All that decides a view, but for the pixels."""
    place = draws.at(f"{kind.name}/0")
    paint = kind.paint(0, place)
    colors = list(vars(paint.drawn).values()) if isinstance(paint, Distorting) else []
    single = [a.draw(place.at(a.name), 32) for a in getattr(kind, "augmentations", ())]
    return [*kind.crop(canvases, place), *colors, *single, kind.parameters(place)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_other_devices_draw_the_same_numbers(kind, monkeypatch):
    """There the hash is written out in tensor operations, of all names of a place at once."""
    canvases = Batch.of(
        torch.zeros(50, 3, 40, 40).byte(), torch.tensor([[30, 40]]).repeat(50, 1), torch.arange(50) * 7919
    )
    draws = Draws(3, 2, canvases.index, progress=0.8)
    ours = drawn(kind, canvases, draws)
    monkeypatch.setattr("manyviews.views.draws._compiles", lambda index: False)
    theirs = drawn(kind, canvases, draws)
    assert len(ours) > 2 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Operations(TorchDispatchMode):
    """Counts what would be a kernel on a GPU: all that is neither a view of a tensor nor an allocation."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kernel = not (function.is_view or function.overloadpacket.__name__.startswith(("empty", "split")))
        self.count += kernel
        return function(*args, **(kwargs or {}))


def test_few_kernels_draw_a_view(monkeypatch):
    """A hash of its own for each of 14 names took 459, one for each place 185."""
    monkeypatch.setattr("manyviews.views.draws._compiles", lambda index: False)
    canvases = Batch.of(torch.zeros(8, 3, 40, 40).byte(), torch.tensor([[30, 40]]).repeat(8, 1))
    with Operations() as operations:
        drawn(Global(2, 32, color=SIMCLR), canvases, Draws(0, 0, canvases.index))
    assert operations.count < 240
