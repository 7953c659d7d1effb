"""Tars agree with a folder of the same images, on disk and behind a URL, and their blocks are read once."""

import errno
import gc
import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import threading
import time
import weakref
from dataclasses import replace
from importlib import import_module

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from manyviews.data import BadImage, Loader, blocks, load_canvases, open_source, tar
from manyviews.data.blocks import Blocks, window
from manyviews.data.files import Unreachable
from manyviews.data.order import nearby, order
from manyviews.errors import UserError
from manyviews.evaluation import features

STREAMED = 0  # bytes of memory for canvases


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch):
    """An empty store behind memory://, and a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def requests(monkeypatch):
    """(path, start, stop) of each request for bytes, in order."""
    made = []
    for kind in (MemoryFileSystem, LocalFileSystem):
        original = kind.cat_file

        def cat_file(self, path, start=None, end=None, original=original, **options):
            made.append((path, start, end))
            return original(self, path, start, end, **options)

        monkeypatch.setattr(kind, "cat_file", cat_file)
    return made


def encoded(k):
    """An image of its number, in a shape of its own."""
    file = io.BytesIO()
    Image.new("RGB", (8 + k % 3, 6), (k % 256, k // 256, 7)).save(file, "PNG")
    return file.getvalue()


def number(source, i):
    red, green, _ = source.load(i).getpixel((0, 0))
    return red + 256 * green


def packed(members, **options):
    """A tar of (name, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def samples(numbers):
    return [m for k in numbers for m in ((f"{k:03}.png", encoded(k)), (f"{k:03}.cls", str(k % 3).encode()))]


def put(url, content):
    with fsspec.open(str(url), "wb") as file:
        file.write(content)
    return str(url)


def shards(root, count=3, each=20):
    """Tars in a folder or at a URL, of images 0, 1, 2, ..."""
    for s in range(count):
        put(f"{root}/set-{s:02}.tar", packed(samples(range(s * each, (s + 1) * each))))
    return str(root)


def in_blocks(source, size, near):
    """The same items in blocks of another size."""
    return replace(source, blocks=np.unique([*range(size, len(source), size), len(source)]), window=near)


def message(*arguments):
    with pytest.raises(UserError) as error:
        open_source(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def indices(batches):
    return [batch.index.tolist() for batch in batches]


# The layout


@pytest.mark.parametrize("root", ["{tmp}/tars", "memory://bucket/tars"])
def test_tars_agree_with_a_folder_of_the_same_images(tmp_path, root):
    (tmp_path / "tars").mkdir()
    root = shards(root.format(tmp=tmp_path))
    for k in range(60):
        (tmp_path / "folder" / str(k % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(k % 3) / f"{k:03}.png").write_bytes(encoded(k))
    folder, source = open_source(tmp_path / "folder"), open_source(root)
    assert len(source) == len(folder) == 60
    assert source.name == "tars"
    assert source.ids == [f"set-{k // 20:02}/{k:03}" for k in range(60)]
    assert source.where(41) == "set-02.tar: 041.png"
    assert source.classes == folder.classes == ["0", "1", "2"]
    theirs = {name.rpartition("/")[2]: i for i, name in enumerate(folder.ids)}
    for k in range(60):
        same = theirs[f"{k:03}.png"]
        np.testing.assert_array_equal(np.asarray(source.load(k)), np.asarray(folder.load(same)))
        assert source.labels[k] == folder.labels[same]
    # One epoch: the same images, each once, whatever the order.
    for memory in (None, STREAMED):
        batches = list(Loader(source, 8, 10, memory=memory).batches(0))
        assert sorted(itertools.chain(*indices(batches))) == list(range(60))
        assert all((b.pixels[:, 0] == b.index[:, None, None]).all() for b in batches)


def test_what_plain_tar_writes_is_read(tmp_path):
    """A folder, packed in any order, with folders, links, Mac's shadow files, labels far from their images."""
    members = [
        ("./photos/b.cls", b"dog\n"),
        ("./photos/._a.jpg", b"shadow"),
        ("./photos/a.PNG", encoded(1)),
        ("./photos/notes.txt", b"no image"),
        ("./photos/b.png", encoded(2)),
        ("./photos/README", b"no ending"),
        ("./photos/a.cls", b" cat "),
    ]
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("./photos")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("./photos/c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.PNG"
        archive.addfile(folder)
        archive.addfile(link)
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = open_source(path)
    assert source.ids == ["photos/photos/a", "photos/photos/b"]
    assert source.where(0) == "photos.tar: photos/a.PNG"
    assert [number(source, i) for i in range(2)] == [1, 2]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, kind):
    name = "ä" * 20 + "/" + "x" * 90 if kind == tarfile.USTAR_FORMAT else "ä" * 90 + "/" + "x" * 150
    (tmp_path / "a.tar").write_bytes(packed([(f"{name}.png", encoded(5))], format=kind))
    source = open_source(tmp_path / "a.tar")
    assert source.ids == [f"a/{name}"]
    assert number(source, 0) == 5


def test_one_image_of_a_sample_and_the_last_of_a_name(tmp_path):
    members = [("1.mask.png", encoded(9)), ("1.png", encoded(1)), ("1.depth.png", encoded(9))]
    members += [("2.left.png", encoded(2)), ("2.right.png", encoded(9))]
    members += [("3.png", encoded(9)), ("3.png", encoded(3))]  # as `tar --update` leaves it
    (tmp_path / "a.tar").write_bytes(packed(members))
    source = open_source(tmp_path / "a.tar")
    assert [number(source, i) for i in range(len(source))] == [1, 2, 3]


def test_labels_in_json_and_of_another_name(tmp_path):
    def sample(k, **facts):
        return [(f"{k}.png", encoded(k)), (f"{k}.json", json.dumps(facts).encode()), (f"{k}.breed", b"pug")]

    path = tmp_path / "a.tar"
    path.write_bytes(packed([*sample(0, label="dog", source="me"), *sample(1, label="cat", source="you")]))
    assert open_source(path).classes == ["cat", "dog"]
    assert open_source(path).labels.tolist() == [1, 0]
    assert open_source(path, "source").classes == ["me", "you"]
    assert open_source(path, "breed").classes == ["pug"]
    assert "'kind'" in message(path, "kind")
    path.write_bytes(packed([*sample(0, label=4), ("0.cls", b"7"), *sample(1, label=12)]))
    assert open_source(path).classes == ["7", "12"]
    for bad in ([1, 2], True, None):
        path.write_bytes(packed([*sample(0, label="dog"), *sample(1, label=bad)]))
        assert open_source(path).labels is None
    path.write_bytes(packed([*samples([1]), ("2.png", encoded(2)), ("2.json", b"{ broken"), ("2.cls", b"\xff")]))
    assert open_source(path).labels is None


def test_ids_have_the_folders_where_these_differ(tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(packed(samples([0])))
    assert open_source(tmp_path).ids == ["test/a/000", "train/a/000", "train/b/000"]
    assert open_source(tmp_path / "train").ids == ["a/000", "b/000"]


def test_every_tar_source_pickles(tmp_path):
    (tmp_path / "a.tar").write_bytes(packed(samples(range(3))))
    for source in (open_source(tmp_path / "a.tar"), open_source(shards("memory://pickled"))):
        source.load(1)  # what this opens must not be in the way
        for one in (source, source.subset([1, 2])):
            copy = pickle.loads(pickle.dumps(one))
            assert number(copy, 0) == number(one, 0)
            assert copy.ids == one.ids
            assert copy.labels.tolist() == one.labels.tolist()
            assert copy.blocks.tolist() == one.blocks.tolist()


# Where they are


def test_patterns(tmp_path, monkeypatch):
    shards(tmp_path, 12, 1)
    (tmp_path / "notes.txt").write_text("no tar")
    ids = [f"set-{k:02}/{k:03}" for k in range(12)]
    assert open_source(f"{tmp_path}/set-{{00..11}}.tar").ids == ids
    assert open_source(f"{tmp_path}/set-{{02,05}}.tar").ids == [ids[2], ids[5]]
    assert open_source(f"{tmp_path}/set-{{0,1}}{{0..1}}.tar").ids == [*ids[:2], *ids[10:]]
    assert open_source(f"{tmp_path}/*-0?.tar").ids == ids[:10]
    assert open_source(tmp_path / "*").ids == ids
    assert open_source(f"file://{tmp_path}").ids == ids
    assert open_source(f"file://{tmp_path}/set-0[34].tar").ids == ids[3:5]
    monkeypatch.chdir(tmp_path)
    assert open_source("set-{03..04}.tar").ids == ids[3:5]
    shards("memory://many", 12, 1)
    assert open_source("memory://many/set-{08..11}.tar").ids == ids[8:]
    assert open_source("memory://many/set-1*.tar").ids == ids[10:]
    assert open_source("memory://many/set-07.tar").ids == ids[7:8]
    (tmp_path / "odd{1,2}.tar").write_bytes(packed(samples([0])))
    assert open_source(tmp_path / "odd{1,2}.tar").ids == ["odd{1,2}/000"]  # what is there needs no expansion


def test_what_is_not_there(tmp_path):
    shards(tmp_path, 2, 1)
    assert "set-02.tar" in message(f"{tmp_path}/set-{{00..05}}.tar")
    assert "Nothing matches" in message(f"{tmp_path}/nope-*.tar")
    assert "memory://void/a.tar" in message("memory://void/a.tar")
    assert "Nothing matches" in message("memory://void/*.tar")
    put("memory://pictures/1.png", encoded(1))
    assert "no .tar or .parquet" in message("memory://pictures")


def test_protocols_that_are_unknown_or_need_a_package(monkeypatch):
    assert "'s4://'" in message("s4://bucket/a.tar")
    # As if they were not installed, wherever this runs.
    for package in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, package, None)
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")):
        monkeypatch.delitem(import_module("fsspec.registry")._registry, protocol, raising=False)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
        assert f"pip install {package}" in message(f"{protocol}://bucket/a-{{0..3}}.tar")


def test_compressed_tars(tmp_path):
    for name, mode in (
        ("a.tar.gz", "w:gz"),
        ("b.tgz", "w:gz"),
        ("c.tar", "w:gz"),
        ("d.tar", "w:bz2"),
        ("e.tar", "w:xz"),
    ):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.addfile(tarfile.TarInfo("1.png"), io.BytesIO())
        text = message(tmp_path / name)
        assert name in text
        assert "decompress" in text
    put("memory://packed/a.tar.gz", (tmp_path / "a.tar.gz").read_bytes())
    assert "decompress" in message("memory://packed/a.tar.gz")


def test_tars_without_images(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(packed([]))
    assert "no images" in message(path)
    path.write_bytes(packed([("1.txt", b"hello")]))
    assert "no images" in message(path)
    for content in (b"", b"not a tar" * 1000):
        path.write_bytes(content)
        assert "not a tar" in message(path)


# Damage


def test_bad_members_are_counted_and_skipped(tmp_path):
    members = samples(range(12))
    members[6] = ("003.png", b"broken")
    members[10] = ("005.png", encoded(5)[:20])
    members[22] = ("011.png", b"")
    (tmp_path / "a.tar").write_bytes(packed(members))
    source = open_source(tmp_path / "a.tar")
    for memory in (None, STREAMED):
        loader = Loader(source, 8, 4, memory=memory)
        seen = list(itertools.chain(*indices(loader.batches(0))))
        assert set(seen) == set(range(11)) - {3, 5}
        assert [name for name, _ in loader.bad] == [f"a.tar: {k:03}.png" for k in (3, 5, 11)]


@pytest.mark.parametrize("root", ["{tmp}", "memory://cut"])
def test_a_tar_that_is_cut_short_gives_what_is_before(tmp_path, root):
    root = root.format(tmp=tmp_path)
    whole = packed(samples(range(4)))
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"\x89PNG"]
    header, content = starts[2] - 300, starts[2] + 30  # in the middle of a header, and of an image
    for cut, names in ((header, ["(the rest)"]), (starts[2] - 512, ["(the rest)"]), (content, ["002.png"])):
        source = open_source(put(f"{root}/a.tar", whole[:cut]))
        canvases, bad = load_canvases(source, 8)
        assert canvases.index.tolist() == [0, 1]
        assert bad == [(f"a.tar: {name}", "the tar is cut short or damaged here") for name in names]
        assert source.labels is not None and source.labels[:2].tolist() == [0, 1]  # those before the cut are known
    assert "may be damaged" in message(put(f"{root}/a.tar", whole[:100]))
    damaged = bytearray(whole)
    damaged[starts[2] - 512 : starts[2] - 400] = b"\xaa" * 112
    _, bad = load_canvases(open_source(put(f"{root}/a.tar", damaged)), 8)
    assert [name for name, _ in bad] == ["a.tar: (the rest)"]


def test_a_file_that_goes_away_and_a_network_that_fails(monkeypatch):
    source = open_source(put("memory://gone/a.tar", packed(samples(range(4)))))
    original, failures = MemoryFileSystem.cat_file, []

    def cat_file(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return original(self, *arguments, **options)

    waits = []
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(time, "sleep", waits.append)
    failures += [TimeoutError("slow")] * 2
    assert number(source, 1) == 1  # the third try
    assert waits == sorted(waits)
    assert len(waits) == 2
    source = open_source("memory://gone/a.tar")
    failures += [TimeoutError("slow")] * 50
    with pytest.raises(Unreachable, match=r"memory:///gone/a\.tar"):  # no reason to skip every image
        list(Loader(source, 8, 2, memory=STREAMED).batches(0))
    failures[:], waits[:] = [PermissionError("expired token")] * 50, []
    source = open_source("memory://gone/a.tar")
    with pytest.raises(Unreachable, match="expired token"):  # nor then
        list(Loader(source, 8, 2, memory=STREAMED).batches(0))
    assert not waits
    failures.clear()
    source = open_source("memory://gone/a.tar")
    MemoryFileSystem.store.clear()
    with pytest.raises(BadImage, match="gone"):
        source.load(0)


# The index


def test_the_index_is_kept_and_made_anew_when_the_tar_changes(tmp_path, monkeypatch):
    scanned = []
    original = tar._scan
    monkeypatch.setattr(tar, "_scan", lambda file, *kinds: scanned.append(file.name) or original(file, *kinds))
    roots = [tmp_path, "memory://indexed"]
    for root in roots:
        url = put(f"{root}/a.tar", packed(samples(range(4))))
        first, again = open_source(url), open_source(url)
        assert scanned == ["a.tar"]
        assert again.ids == first.ids
        assert again.labels.tolist() == first.labels.tolist()
        assert number(again, 3) == 3
        open_source(root if root == tmp_path else f"{root}/*.tar")  # the same file, listed
        assert scanned == ["a.tar"]
        open_source(put(f"{root}/a.tar", packed(samples([7, 8, 9, 6]))))
        assert number(open_source(url), 0) == 7
        assert scanned == ["a.tar"] * 2
        scanned.clear()


def test_an_index_that_cannot_be_kept_or_read(tmp_path, monkeypatch):
    path = put(tmp_path / "a.tar", packed(samples(range(4))))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(path)) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_source(path)
    (index,) = (tmp_path / "cache" / "manyviews" / "tars").glob("*.json")
    index.write_text("{ broken")
    assert len(open_source(path)) == 4
    assert json.loads(index.read_text())["names"][3] == "003.png"


def test_headers_are_read_without_their_contents(tmp_path, monkeypatch):
    big = b"\0" * 2**20
    put(tmp_path / "a.tar", packed([(f"{k}.png", big) for k in range(30)]))
    got = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            got.append(super().readinto(buffer))
            return got[-1]

    monkeypatch.setattr(tar.File, "open", lambda file: io.BufferedReader(Counting(file.path)))
    assert len(open_source(tmp_path / "a.tar")) == 30
    assert 30 * 512 < sum(got) < 10**6


def test_a_distant_tar_is_indexed_in_few_requests(requests):
    open_source(put("memory://far/a.tar", packed(samples(range(200)))))
    assert len(requests) == 1


# Blocks


def test_a_block_is_a_stretch_of_one_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_BLOCK", 4000)
    monkeypatch.setattr(tar, "_MOST", 7)
    long = [(f"{k:03}.png", encoded(k) + b"\0" * 3000 * (k % 2)) for k in range(20)]
    put(tmp_path / "a.tar", packed(samples(range(20))))
    put(tmp_path / "b.tar", packed(long))
    source = open_source(tmp_path)
    assert source.blocks[-1] == 40
    assert 20 in source.blocks
    assert (np.diff(source.blocks[source.blocks <= 20], prepend=0) <= 7).all()  # at 1.5 kB each, two or three
    assert (np.diff(source.blocks) >= 1).all()
    assert [number(source, i) for i in range(40)] == [*range(20)] * 2


def test_a_subset_keeps_what_is_left_of_each_block(tmp_path):
    source = in_blocks(open_source(shards(tmp_path)), 10, 2)
    assert source.subset([3, 4, 9, 10, 35, 59]).blocks.tolist() == [3, 4, 5, 6]
    assert source.subset(range(60)).blocks.tolist() == source.blocks.tolist()
    assert source.subset([4, 3]).blocks.tolist() == [2]
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

    for block in (0, 1, 2, 0, 3, 0, 2, 1):  # four of 300 are too many; the one not used for longest goes
        held.get(block, lambda b: fetch(b, 300))
    assert fetched == [0, 1, 2, 3, 1]
    fetched.clear()
    for block in (5, 6, 5, 6, 7, 6, 5):  # two stay, however large
        held.get(block, lambda b: fetch(b, 5000))
    assert fetched == [5, 6, 7, 5]
    assert len(pickle.loads(pickle.dumps(held))._held) == 0
    assert window(np.full(100, 50)) == 10
    assert window(np.array([100] * 999 + [1])) == 5
    assert window(np.array([10**6])) == 1


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


def test_a_block_that_is_bad_stays_so_and_what_else_failed_is_tried_again(monkeypatch):
    held, tries = Blocks(), []

    def fail(block):
        tries.append(block)
        raise BadImage("cut") if block == 0 else Unreachable("later")

    monkeypatch.setattr(blocks, "HELD", 0)
    for block, error in [(0, BadImage), (1, Unreachable)] * 2:
        with pytest.raises(error):
            held.get(block, fail)
    assert tries == [0, 1, 1]
    for block in (1, 2, 3):
        assert held.get(block, lambda b: np.full(3, b)).sum() == 3 * block

    class Batch:
        pass

    def meet(batch):
        with pytest.raises(BadImage):
            held.get(0, fail)

    batch = Batch()
    left = weakref.ref(batch)
    meet(batch)
    del batch
    gc.collect()
    assert left() is None
    with pytest.raises(BadImage):
        held.get(0, lambda b: np.ones(3))


# The order


def test_nearby_is_a_permutation_shared_evenly():
    sizes = np.random.default_rng(0).integers(1, 40, 50)
    ends = np.cumsum(sizes)
    for ranks in (1, 2, 7):
        shares = [nearby(3, 1, ends, 4, r, ranks) for r in range(ranks)]
        assert {len(share) for share in shares} == {ends[-1] // ranks}
        together = np.concatenate(shares)
        assert len(set(together.tolist())) == len(together)
        assert together.min() >= 0
        assert together.max() < ends[-1]
    whole = nearby(3, 1, ends, 4, 0, 1)
    assert sorted(whole.tolist()) == list(range(ends[-1]))
    assert whole.tolist() != nearby(3, 2, ends, 4, 0, 1).tolist()
    assert whole.tolist() != nearby(4, 1, ends, 4, 0, 1).tolist()


def test_nearby_is_the_same_everywhere():
    # Written down once. A change here breaks the exact resumption of every run begun before.
    assert nearby(0, 0, np.array([3, 5, 9, 12]), 2, 0, 1).tolist() == [6, 8, 4, 7, 5, 0, 2, 3, 1, 11, 9, 10]
    assert nearby(5, 2, np.array([3, 5, 9, 12]), 2, 1, 2).tolist() == [2, 6, 5, 7, 8, 1]


def test_nearby_reads_a_bounded_number_of_blocks_at_a_time():
    size, count, near = 50, 200, 8
    items = nearby(0, 0, np.arange(size, size * count + 1, size), near, 0, 1)
    block = items // size
    spans = [np.flatnonzero(block == b)[[0, -1]] for b in range(count)]
    open_at = np.zeros(len(items) + 1)
    for first, last in spans:
        open_at[first] += 1
        open_at[last + 1] -= 1
    assert np.cumsum(open_at).max() <= near + 1
    # And they do mix: neighbors share a block as often as chance has it among those at hand, and seldom a number.
    assert (block[1:] == block[:-1]).mean() < 1.5 / near
    assert (np.abs(np.diff(items)) == 1).mean() < 2 / (near * size) * 2


def test_the_shuffle_mixes():
    """A batch of a set sorted by class has as many classes as its images come from blocks at random places."""
    size, count, near = 50, 400, 40
    items = nearby(1, 0, np.arange(size, size * count + 1, size), near, 0, 1)
    classes = items.reshape(-1, 200) // (size * count // 100)  # 100 classes, each in 4 blocks
    found = np.array([len(set(batch)) for batch in classes[5:-5].tolist()])
    assert found.mean() > 25  # in order, a batch has one or two
    # Places of an image over epochs are uniform: each tenth of an epoch has it as often. Chi-squared with 9 degrees of
    # freedom; 27.9 has probability 0.001.
    ends = np.arange(10, 401, 10)
    places = [np.flatnonzero(nearby(0, epoch, ends, 4, 0, 1) == 123)[0] for epoch in range(1000)]
    tenths = np.bincount(np.array(places) // 40, minlength=10)
    assert ((tenths - 100) ** 2 / 100).sum() < 27.9


@pytest.fixture
def many():
    """180 images at a URL in blocks of 10, of which 3 may be read in turns."""
    return in_blocks(open_source(shards("memory://bucket/many", 3, 60)), 10, 3)


def test_ranks_share_an_epoch(many):
    whole = [Loader(many, 8, 8, seed=4, rank=r, world_size=2, memory=STREAMED) for r in range(2)]
    assert [loader.steps_per_epoch for loader in whole] == [11, 11]
    for epoch in range(2):
        left, right = (indices(loader.batches(epoch)) for loader in whole)
        assert len(left) == len(right) == 11
        seen = [*itertools.chain(*left, *right)]
        assert len(seen) == len(set(seen)) == 176
        # Their own blocks, but for one that both have a part of.
        assert len({i // 10 for b in left for i in b} & {i // 10 for b in right for i in b}) <= 1


def test_streamed_blocks_resume_in_the_middle_of_an_epoch(many):
    for rank in range(2):
        every = {"seed": 1, "rank": rank, "world_size": 2, "memory": STREAMED}
        uninterrupted = list(Loader(many, 8, 8, **every).batches(3))
        for start in (0, 1, 5, 10, 11):
            for one, other in itertools.zip_longest(
                Loader(many, 8, 8, **every).batches(3, start), uninterrupted[start:]
            ):
                for field in ("pixels", "extent", "index"):
                    assert torch.equal(getattr(one, field), getattr(other, field))


def test_the_order_of_many_blocks_does_not_depend_on_memory(many):
    source = in_blocks(many, 10, 3)
    held, streamed = (Loader(source, 8, 8, seed=3, memory=memory) for memory in (None, STREAMED))
    assert held.in_memory and not streamed.in_memory
    assert indices(held.batches(1)) == indices(streamed.batches(1)) != order(3, 1, 180)[:176].reshape(-1, 8).tolist()


def test_few_or_small_blocks_keep_the_usual_order(many):
    usual = order(0, 0, 180)[:176].reshape(-1, 8).tolist()
    for source in (in_blocks(many, 10, 18), in_blocks(many, 1, 3), replace(many, blocks=None)):
        assert indices(Loader(source, 8, 8, memory=STREAMED).batches(0)) == usual
    for memory in (None, STREAMED):
        canvases = Loader(many, 8, 8, memory=memory).batches(0)
        assert all((b.pixels[:, 0] == b.index[:, None, None]).all() for b in canvases)


def small_blocks(monkeypatch, held):
    """Tars in blocks of ten images, of which so many are held."""
    monkeypatch.setattr(tar, "_MOST", 10)
    monkeypatch.setattr(blocks, "HELD", held * len(packed(samples(range(10)))))


def test_each_block_is_fetched_about_once_an_epoch(monkeypatch, requests):
    small_blocks(monkeypatch, 8)
    source = open_source(shards("memory://bucket/once", 4, 100))
    assert len(source.blocks) == 40
    assert 4 <= source.window <= 8
    requests.clear()
    loader = Loader(source, 8, 16, memory=STREAMED)
    assert len(list(loader.batches(0))) == 25
    assert len(set(requests)) == 40
    # Without locality ten times as many. A thread that the machine holds up may find its block gone again.
    assert len(requests) <= 60
    requests.clear()
    ranks = [Loader(source, 8, 16, rank=r, world_size=2, memory=STREAMED) for r in range(2)]
    for loader in ranks:
        list(loader.batches(1))
    assert len(requests) <= 62  # the ranks of this test share a cache
    requests.clear()
    Loader(source, 8, 16)  # into memory
    assert len(requests) <= 60


def test_waiting_for_a_distant_disk_is_shared(monkeypatch):
    small_blocks(monkeypatch, 32)
    source = open_source(shards("memory://bucket/slow", 4, 100))
    original, under_way, most = MemoryFileSystem.cat_file, [], []

    def slow(self, path, start=None, end=None, **options):
        under_way.append(path)
        most.append(len(under_way))
        time.sleep(0.1)
        under_way.pop()
        return original(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow)
    for memory in (STREAMED, None):
        most.clear()
        start = time.monotonic()
        list(Loader(source, 8, 16, memory=memory).batches(0))
        assert time.monotonic() - start < 0.6 * 40 * 0.1  # one wait for each block would be 4 s, for each image 40 s
        assert max(most) >= 4
        source = pickle.loads(pickle.dumps(source))


def test_leaving_an_epoch_of_blocks_early(many):
    loader = Loader(many, 8, 8, memory=STREAMED)
    first = next(iter(loader.batches(0)))
    assert indices(loader.batches(0))[0] == first.index.tolist()


# Parquet


def table(url, numbers, group):
    file = io.BytesIO()
    columns = {"image": [encoded(k) for k in numbers], "label": [k % 3 for k in numbers]}
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return put(url, file.getvalue())


def test_parquet_behind_a_url_agrees_with_the_same_on_disk(tmp_path, requests):
    for root in (tmp_path, "memory://bucket/tables"):
        table(f"{root}/a.parquet", range(40), 10)
        table(f"{root}/b.parquet", range(40, 60), 10)
    disk, distant = open_source(tmp_path), open_source("memory://bucket/tables")
    assert distant.name == disk.name
    assert distant.ids == disk.ids
    assert distant.labels.tolist() == disk.labels.tolist()
    assert distant.where(41) == disk.where(41) == "b.parquet row 1"
    assert distant.blocks.tolist() == disk.blocks.tolist() == [10, 20, 30, 40, 50, 60]
    assert [number(distant, i) for i in range(60)] == list(range(60))
    assert open_source("memory://bucket/tables/{a,b}.parquet").ids == disk.ids
    copy = pickle.loads(pickle.dumps(distant))
    requests.clear()
    assert number(copy, 25) == 25
    assert number(copy, 21) == 21
    assert len(requests) == 1  # the row group's images, and neither footer nor labels


def test_row_groups_are_blocks(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", range(60), 10)
    read = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda s, **k: read.extend(k["row_groups"]) or original(s, **k))
    monkeypatch.setattr(blocks, "HELD", 1)
    source = open_source(path)
    assert source.window == 1
    batches = list(Loader(source, 8, 5, memory=STREAMED).batches(0))
    assert sorted(read) == [0, 1, 2, 3, 4, 5]
    assert sorted(itertools.chain(*indices(batches))) == list(range(60))
    assert all((b.pixels[:, 0] == b.index[:, None, None]).all() for b in batches)


def test_distant_parquet_that_cannot_be_read(monkeypatch):
    assert "not a readable Parquet file" in message(put("memory://bucket/x.parquet", b"PAR1 and then nothing"))
    url = table("memory://bucket/y.parquet", range(4), 2)
    source = open_source(url)

    def fail(self, *arguments, **options):
        raise TimeoutError("slow")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert "memory:///bucket/y.parquet cannot be read" in message(url)
    with pytest.raises(Unreachable):
        source.load(0)


def test_an_evaluation_reads_each_block_once_and_ahead(monkeypatch):
    url = put("memory://bucket/c.tar", packed(samples(range(60))))
    monkeypatch.setattr(tar, "_MOST", 5)
    source = open_source(url)
    assert len(source.blocks) == 12
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


# A run


def test_a_run_remembers_its_url(tmp_path):
    import manyviews as mv

    url = f"{shards('memory://bucket/run', 2, 30)}/set-{{00..01}}.tar"
    small = {"data.batch_size": 16, "monitor.epochs": 0}
    run = mv.pretrain(url, "simclr_tiny", epochs=1, settings=small, out=tmp_path / "run")
    assert run.facts["data"] == url
    assert run.facts["images"] == 60
