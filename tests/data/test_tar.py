"""Tars agree with a folder of the same images, on disk and behind a URL, whole or damaged."""

import io
import itertools
import json
import pickle
import sys
import tarfile
import time
from importlib import import_module

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import manyviews as mv
from manyviews.data import BadImage, Loader, load_canvases, open_source, tar
from manyviews.data.files import Unreachable
from manyviews.errors import UserError
from tests.data.remote import STREAMED, encoded, indices, number, packed, put, samples, shards


def message(*arguments):
    with pytest.raises(UserError) as error:
        open_source(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("root", ["{tmp}/tars", "memory://bucket/tars"])
def test_tars_agree_with_a_folder_of_the_same_images(tmp_path, root):
    (tmp_path / "tars").mkdir()
    for k in range(60):
        (tmp_path / "folder" / str(k % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(k % 3) / f"{k:03}.png").write_bytes(encoded(k))
    folder, source = open_source(tmp_path / "folder"), open_source(shards(root.format(tmp=tmp_path)))
    assert len(source) == len(folder) == 60
    assert source.name == "tars" and source.where(41) == "set-02.tar: 041.png"
    assert source.ids == [f"set-{k // 20:02}/{k:03}" for k in range(60)]
    assert source.classes == folder.classes == ["0", "1", "2"]
    theirs = {name.rpartition("/")[2]: i for i, name in enumerate(folder.ids)}
    for k in range(60):
        same = theirs[f"{k:03}.png"]
        np.testing.assert_array_equal(np.asarray(source.load(k)), np.asarray(folder.load(same)))
        assert source.labels[k] == folder.labels[same]
    for one in (source, source.subset([1, 2])):  # what reading opened must not be in the way
        copy = pickle.loads(pickle.dumps(one))
        assert number(copy, 0) == number(one, 0)
        assert copy.ids == one.ids and copy.labels.tolist() == one.labels.tolist()
        assert copy.blocks.tolist() == one.blocks.tolist()


def test_tars_that_plain_tar_writes(tmp_path):
    """A folder, packed in any order, with folders, links, Mac's shadow files, labels far from their images."""
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name, kind in (("./photos", tarfile.DIRTYPE), ("./photos/c.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.PNG"
            archive.addfile(member)
        for name, content in (
            ("./photos/b.cls", b"dog\n"),
            ("./photos/._a.jpg", b"shadow"),
            ("./photos/a.PNG", encoded(1)),
            ("./photos/b.png", encoded(2)),
            ("./photos/README", b"no ending"),
            ("./photos/a.cls", b" cat "),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = open_source(tmp_path / "photos.tar")
    assert source.ids == ["photos/photos/a", "photos/photos/b"]
    assert source.where(0) == "photos.tar: photos/a.PNG"
    assert [number(source, i) for i in range(2)] == [1, 2]
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 1]


def test_one_image_of_a_sample_and_the_last_of_a_name(tmp_path):
    members = [("1.mask.png", encoded(9)), ("1.png", encoded(1)), ("1.depth.png", encoded(9))]
    members += [("3.png", encoded(9)), ("3.png", encoded(3))]  # as `tar --update` leaves it
    (tmp_path / "a.tar").write_bytes(packed(members))
    source = open_source(tmp_path / "a.tar")
    assert [number(source, i) for i in range(len(source))] == [1, 3]
    assert [note.split(" (")[0] for note in source.notes] == [
        "Left out 1 image that a later one of the same name replaces",
        "Left out 2 images beside the image of a sample",
    ]


def test_dots_in_names_are_no_endings(tmp_path):
    """webdataset #237, #288; datasets #6888: split at the first dot, five images were two."""
    names = ["IMG_2020.01.02_a.jpg", "IMG_2020.01.03_b.jpg", "IMG_2020.05.04_c.jpg", "cat.v1.jpg", "cat.v2.jpg"]
    members = [(name, encoded(k)) for k, name in enumerate(names)]
    members += [(name.removesuffix("jpg") + "cls", str(k).encode()) for k, name in enumerate(names)]
    (tmp_path / "d.tar").write_bytes(packed(members))
    source = open_source(tmp_path / "d.tar")
    assert source.ids == [f"d/{name.removesuffix('.jpg')}" for name in names]
    assert [number(source, i) for i in range(5)] == source.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(source.notes) == 1 and source.notes[0].startswith("Took 5 images with the same name up to the first dot")
    # Views of one sample share its label.
    (tmp_path / "e.tar").write_bytes(packed([("2.left.png", encoded(2)), ("2.right.png", encoded(3)), ("2.cls", b"x")]))
    assert open_source(tmp_path / "e.tar").classes == ["x"] and len(open_source(tmp_path / "e.tar")) == 2


def test_labels_in_json_and_under_another_name(tmp_path):
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


# Where they are


def test_patterns(tmp_path, monkeypatch):
    shards(tmp_path, 12, 1)
    (tmp_path / "notes.txt").write_text("no tar")
    ids = [f"set-{k:02}/{k:03}" for k in range(12)]
    assert open_source(f"{tmp_path}/set-{{00..11}}.tar").ids == ids
    assert open_source(f"{tmp_path}/set-{{02,05}}.tar").ids == [ids[2], ids[5]]
    assert open_source(f"{tmp_path}/set-{{0,1}}{{0..1}}.tar").ids == [*ids[:2], *ids[10:]]
    assert open_source(f"{tmp_path}/*-0?.tar").ids == ids[:10]
    assert open_source(f"file://{tmp_path}/set-0[34].tar").ids == ids[3:5]
    monkeypatch.chdir(tmp_path)
    assert open_source("set-{03..04}.tar").ids == ids[3:5]
    shards("memory://many", 12, 1)
    assert open_source("memory://many/set-{08..11}.tar").ids == ids[8:]
    assert open_source("memory://many/set-1*.tar").ids == ids[10:]
    (tmp_path / "odd{1,2}.tar").write_bytes(packed(samples([0])))
    assert open_source(tmp_path / "odd{1,2}.tar").ids == ["odd{1,2}/000"]  # an existing file is not expanded
    for name in ("x/train/a", "x/test/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / f"{name}.tar").write_bytes(packed(samples([0])))
    assert open_source(tmp_path / "x").ids == ["a/000"] == open_source(f"{tmp_path}/x:test").ids
    both = open_source(f"{tmp_path}/x/{{train,test}}/*.tar")  # a pattern chooses itself
    assert len(both) == 2 and "together (2 files)" in both.notes[0]
    assert open_source(tmp_path / "x", split="all").ids == ["test/a/000", "train/a/000"]


def test_files_that_are_not_there_and_protocols_that_need_a_package(tmp_path, monkeypatch):
    shards(tmp_path, 2, 1)
    assert "set-02.tar" in message(f"{tmp_path}/set-{{00..05}}.tar")
    assert "Nothing matches" in message(f"{tmp_path}/nope-*.tar")
    assert "memory://void/a.tar" in message("memory://void/a.tar")
    put("memory://pictures/1.png", encoded(1))
    assert "no .tar, .zip or .parquet" in message("memory://pictures")
    assert "'s4://'" in message("s4://bucket/a.tar")
    # As if they were not installed, wherever this runs.
    for package in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, package, None)
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")):
        monkeypatch.delitem(import_module("fsspec.registry")._registry, protocol, raising=False)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
        assert f"pip install {package}" in message(f"{protocol}://bucket/a-{{0..3}}.tar")


def test_compressed_tars_and_tars_without_images(tmp_path):
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
        assert name in text and "decompress" in text
    put("memory://packed/a.tar.gz", (tmp_path / "a.tar.gz").read_bytes())
    assert "decompress" in message("memory://packed/a.tar.gz")
    for content, reason in (
        (packed([]), "no images"),
        (packed([("1.txt", b"hello")]), "no images"),
        (b"", "not a tar"),
        (b"not a tar" * 1000, "not a tar"),
    ):
        (tmp_path / "f.tar").write_bytes(content)
        assert reason in message(tmp_path / "f.tar")


# Damage


def test_bad_members_are_counted_and_skipped(tmp_path):
    members = samples(range(12))
    members[6] = ("003.png", b"broken")
    members[10] = ("005.png", encoded(5)[:20])
    members[22] = ("011.png", b"")
    (tmp_path / "a.tar").write_bytes(packed(members))
    for memory in (None, STREAMED):
        loader = Loader(open_source(tmp_path / "a.tar"), 8, 4, memory=memory)
        seen = list(itertools.chain(*indices(loader.batches(0))))
        assert set(seen) == set(range(11)) - {3, 5}
        assert [name for name, _ in loader.bad] == [f"a.tar: {k:03}.png" for k in (3, 5, 11)]


@pytest.mark.parametrize("root", ["{tmp}", "memory://cut"])
def test_a_tar_that_is_cut_short_gives_the_images_before(tmp_path, root):
    root = root.format(tmp=tmp_path)
    whole = packed(samples(range(4)))
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"\x89PNG"]
    header, content = starts[2] - 300, starts[2] + 30  # in the middle of a header, and of an image
    for cut, name in ((header, "(the rest)"), (starts[2] - 512, "(the rest)"), (content, "002.png")):
        source = open_source(put(f"{root}/a.tar", whole[:cut]))
        canvases, bad = load_canvases(source, 8)
        assert canvases.index.tolist() == [0, 1]
        assert bad == [(f"a.tar: {name}", "the tar is cut short or damaged here")]
        assert source.labels is not None and source.labels[:2].tolist() == [0, 1]  # those before the cut are known
    assert "may be damaged" in message(put(f"{root}/a.tar", whole[:100]))
    damaged = bytearray(whole)
    damaged[starts[2] - 512 : starts[2] - 400] = b"\xaa" * 112
    _, bad = load_canvases(open_source(put(f"{root}/a.tar", damaged)), 8)
    assert [name for name, _ in bad] == ["a.tar: (the rest)"]


def test_a_file_that_goes_away_and_a_network_that_fails(monkeypatch):
    """A failing network must not make every image count as bad; a file that is gone must."""
    url = put("memory://gone/a.tar", packed(samples(range(4))))
    original, failures, waits = MemoryFileSystem.cat_file, [], []

    def cat_file(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return original(self, *arguments, **options)

    source = open_source(url)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(time, "sleep", waits.append)
    failures += [TimeoutError("slow")] * 2
    assert number(source, 1) == 1  # the third try
    assert len(waits) == 2 and waits == sorted(waits)
    for error, name in (
        (TimeoutError("slow"), r"memory:///gone/a\.tar"),
        (PermissionError("expired token"), "expired"),
    ):
        source = open_source(url)
        failures[:], waits[:] = [error] * 50, []
        with pytest.raises(Unreachable, match=name):
            list(Loader(source, 8, 2, memory=STREAMED).batches(0))
        failures.clear()
    assert not waits  # another try does not renew a token
    source = open_source(url)
    MemoryFileSystem.store.clear()
    with pytest.raises(BadImage, match="gone"):
        source.load(0)


# The index


def test_the_index_is_kept_and_made_anew_when_the_tar_changes(tmp_path, monkeypatch, requests):
    scanned, original = [], tar._scan
    monkeypatch.setattr(tar, "_scan", lambda file, **kinds: scanned.append(file.name) or original(file, **kinds))
    for root in (tmp_path, "memory://indexed"):
        url = put(f"{root}/a.tar", packed(samples(range(200))))
        first, again = open_source(url), open_source(url)
        assert again.ids == first.ids and again.labels.tolist() == first.labels.tolist()
        open_source(root if root == tmp_path else f"{root}/*.tar")  # the same file, listed
        assert scanned == ["a.tar"] and len(requests) <= 1  # one request for all headers
        assert number(again, 3) == 3
        open_source(put(f"{root}/a.tar", packed(samples([7, 8, 9, 6]))))
        assert number(open_source(url), 0) == 7
        assert scanned == ["a.tar"] * 2
        scanned.clear(), requests.clear()


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
    put(tmp_path / "a.tar", packed([(f"{k}.png", b"\0" * 2**20) for k in range(10)]))
    got = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            got.append(super().readinto(buffer))
            return got[-1]

    monkeypatch.setattr(tar.File, "open", lambda file: io.BufferedReader(Counting(file.path)))
    assert len(open_source(tmp_path / "a.tar")) == 10
    assert 10 * 512 < sum(got) < 10**6


def test_a_run_remembers_the_address_of_its_images(tmp_path):
    url = f"{shards('memory://bucket/run', 1, 40)}/set-{{00..00}}.tar"
    small = {"data.batch_size": 16, "data.holdout": 0.0, "monitor.epochs": 0}
    run = mv.pretrain(url, "simclr_tiny", epochs=0.5, settings=small, out=tmp_path / "run")
    assert run.facts["data"] == url
