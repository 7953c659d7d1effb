"""Canvases on disk: the same as decoded ones, written whole or not at all, by one process or by many."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manyviews.data import Loader, Source, load_canvases, open_source, prepare, prepared, verify
from manyviews.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images of several shapes in two classes, two of them broken."""
    folder = tmp_path / "photos"
    draw = np.random.default_rng(0)
    for i in range(40):
        where = folder / ("cat" if i % 2 else "dog")
        where.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (20 + i, 30 + 2 * (i % 5), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(where / f"{i:02}.png")
    (folder / "cat" / "03.png").write_bytes(b"broken")
    (folder / "dog" / "39.png").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD", 7 * 3 * 16 * 23)  # seven canvases of 16 pixels, as large as most


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("pixels", "extent"))


def test_prepared_canvases_are_the_decoded_ones(photos: Path, tmp_path: Path):
    source = open_source(photos)
    folder = prepare(source, tmp_path / "out", 16)
    ready = open_source(folder)
    decoded, bad = load_canvases(source, 16)
    assert len(ready) == len(decoded) == len(source) - len(bad) == 39
    assert same(load_canvases(ready, 16)[0], decoded)
    good = decoded.index.numpy()
    assert ready.ids == [source.ids[i] for i in good]
    assert ready.classes == source.classes and ready.labels.tolist() == source.labels[good].tolist()
    assert len(list(folder.glob("shard-*.safetensors"))) == 6
    assert json.loads((folder / "canvases.json").read_text())["bad"] == [list(b) for b in bad]
    assert verify(folder) == []
    some = ready.subset([30, 2, 11])
    assert same(some.canvases(np.array([2, 0])), decoded[torch.tensor([11, 30])])
    assert some.canvases(np.array([2, 0])).index.tolist() == [2, 0]


def test_canvases_with_other_labels_are_other_canvases(photos: Path, tmp_path: Path):
    source = open_source(photos)
    prepare(source, tmp_path / "out", 16)
    rows = "".join(f"{name},{'even' if i % 4 else 'odd'}\n" for i, name in enumerate(source.ids))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    other = open_source(photos, tmp_path / "labels.csv")
    assert other.ids == source.ids
    with pytest.raises(UserError, match="other images, labels"):
        prepare(other, tmp_path / "out", 16)


def test_other_images_of_the_same_names_are_other_canvases(photos: Path, tmp_path: Path):
    """As the frames of two videos."""
    prepare(open_source(photos), tmp_path / "out", 16)
    for file in photos.rglob("*.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(file)
    with pytest.raises(UserError, match="canvases of other images"):
        prepare(open_source(photos), tmp_path / "out", 16)


def test_training_batches_are_the_same_from_disk_from_memory_and_decoded_anew(photos: Path, tmp_path: Path):
    (photos / "cat" / "03.png").unlink()
    (photos / "dog" / "39.png").unlink(missing_ok=True)
    source = open_source(photos)
    ready = open_source(prepare(source, tmp_path / "out", 16))
    loaders = [Loader(s, 16, 5, memory=m) for s in (source, ready) for m in (0, 2**30)]
    assert [loader.in_memory for loader in loaders] == [False, True, False, True]
    for batches in zip(*(loader.batches(1, 2) for loader in loaders), strict=True):
        for batch in batches[1:]:
            assert same(batch, batches[0]) and torch.equal(batch.index, batches[0].index)


def test_an_image_comes_back_in_its_own_proportions(photos: Path, tmp_path: Path):
    source = open_source(photos)
    ready = open_source(prepare(source, tmp_path / "out", 16))
    first = ready.load(0)
    height, width = source.load(source.ids.index(ready.ids[0])).size[::-1]
    assert min(first.size) == 16 and first.size[0] / first.size[1] == pytest.approx(width / height, rel=0.05)


def test_large_canvases_are_stored_as_jpegs_that_views_cannot_tell_from_the_original(tmp_path: Path, monkeypatch):
    """And a JPEG that needs no change is not compressed again."""
    monkeypatch.setattr(prepared, "_RAW", 1000)
    smooth = torch.rand(12, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, x in enumerate(torch.nn.functional.interpolate(smooth, (60, 90), mode="bicubic").clamp(0, 1)):
        image = Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy())
        image.resize((90, 60) if i < 6 else (45, 30)).save(folder / f"{i:02}.{'png' if i % 2 else 'jpg'}", quality=60)
    source = open_source(folder)
    out = prepare(source, tmp_path / "out", 40)
    assert json.loads((out / "canvases.json").read_text())["encoding"] == "jpeg"
    ready, decoded = open_source(out), load_canvases(source, 40)[0]
    found = ready.canvases(np.arange(12))
    assert torch.equal(found.extent, decoded.extent) and found.extent[0].tolist() == [40, 60]
    for i in range(12):
        error = (found.canvases.image(i).float() - decoded.canvases.image(i)).square().mean()
        assert 10 * torch.log10(255**2 / error) > 40
        kept = i >= 6 and i % 2 == 0
        assert (ready.read(i) == (folder / f"{i:02}.jpg").read_bytes()) == kept if i % 2 == 0 else True
    for a, b in zip(Loader(ready, 40, 4, memory=0).batches(0), Loader(ready, 40, 4).batches(0), strict=True):
        assert same(a, b) and torch.equal(a.index, b.index)
    assert verify(out) == []


def test_a_killed_preparation_continues_and_is_not_mistaken_for_a_finished_one(
    photos: Path, tmp_path: Path, monkeypatch
):
    source, out, written = open_source(photos), tmp_path / "out", []
    write, turn = prepared._write, threading.Lock()

    def dies(source, rows, size, encoding, file, progress):
        with turn:
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(file)
        write(source, rows, size, encoding, file, lambda done, total: None)

    monkeypatch.setattr(prepared, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, 16)
    with pytest.raises(UserError, match="not finished"):
        open_source(out)
    stamps = {f: f.stat().st_mtime_ns for f in written}
    monkeypatch.setattr(prepared, "_write", write)
    prepare(source, out, 16)
    assert stamps == {f: f.stat().st_mtime_ns for f in written}
    assert same(load_canvases(open_source(out), 16)[0], load_canvases(source, 16)[0])
    for changed in (lambda: prepare(source, out, 24), lambda: prepare(source.subset(range(9)), out, 16)):
        with pytest.raises(UserError, match="other images, labels, captions, sizes"):
            changed()
    with pytest.raises(UserError, match="not an empty folder"):
        prepare(source, photos, 16)


def test_an_interruption_does_not_wait_for_whole_shards(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD", 5000 * 3 * 16**2)
    met, picture = [], Image.new("RGB", (16, 16))

    def slow(i: int) -> Image.Image:
        met.append(i)
        if len(met) == 100:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.005)
        return picture

    source = Source("slow", 10_000, slow, lambda: [str(i) for i in range(10_000)])
    # A process that a shell started in the background ignores the signal, and so would its tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", 16)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(met) < 1000
    assert not list((tmp_path / "out").glob("shard-*.safetensors"))


def at_work(photos: Path, out: Path) -> None:
    prepared._SHARD = 7 * 3 * 16**2
    prepare(open_source(photos), out, 16)


def test_several_processes_share_the_work(photos: Path, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=at_work, args=(photos, tmp_path / "out")) for _ in range(3)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert same(load_canvases(open_source(tmp_path / "out"), 16)[0], load_canvases(open_source(photos), 16)[0])


def test_more_shards_than_files_may_be_open(photos: Path, tmp_path: Path, monkeypatch):
    import resource

    monkeypatch.setattr(prepared, "_SHARD", 3 * 16**2)  # a canvas in each
    ready = open_source(prepare(open_source(photos), tmp_path / "out", 16))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limits[1]))
    try:
        found = ready.canvases(np.arange(len(ready)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert same(found, load_canvases(ready, 16)[0])


def test_a_shard_that_was_removed_is_written_again(photos: Path, tmp_path: Path):
    """With what a killed process left beside it."""
    folder = prepare(open_source(photos), tmp_path / "out", 16)
    shard = sorted(folder.glob("shard-*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.unlink()
    left = folder / f".{shard.name}.x1y2"
    left.write_bytes(whole[:100])
    prepare(open_source(photos), folder, 16)
    assert shard.read_bytes() == whole and not left.exists()
    shard.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(UserError, match="header is damaged"):
        open_source(folder)


def test_damage_is_found(photos: Path, tmp_path: Path):
    folder = prepare(open_source(photos), tmp_path / "out", 16)
    shards = sorted(folder.glob("shard-*.safetensors"))
    assert not verify(folder)
    for shard, name in ((shards[1], "data"), (shards[2], "extent")):
        offset, header = prepared._layout(shard)
        raw = bytearray(shard.read_bytes())
        raw[offset + header[name]["data_offsets"][0] + 8] ^= 1
        shard.write_bytes(raw)
    name = prepared._header(shards[3])[1]["ids"][0].encode()
    assert shards[3].read_bytes().count(name) == 1
    shards[3].write_bytes(shards[3].read_bytes().replace(name, name[:-1] + b"?"))
    assert verify(folder) == shards[1:4]
    shards[4].write_bytes(shards[4].read_bytes()[:-200])
    with pytest.raises(UserError, match="cut short"):
        open_source(folder)
    shards[0].unlink()
    with pytest.raises(UserError, match="prepare the images again"):
        open_source(folder)


def test_canvases_that_are_loaded_some_at_a_time_are_the_same(photos: Path, tmp_path: Path, monkeypatch):
    """Memory for the largest of a whole shard of small pictures may be more than there is."""
    source = open_source(photos)
    whole = open_source(prepare(source, tmp_path / "whole", 16)).canvases(np.arange(38))
    monkeypatch.setattr(prepared, "_AT_ONCE", 3 * 3 * 4 * 16**2)
    parts = open_source(prepare(source, tmp_path / "parts", 16)).canvases(np.arange(38))
    assert same(whole, parts) and verify(tmp_path / "parts") == []


def test_a_file_that_is_gone_is_left_out_of_jpegs_too(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepared, "_RAW", 1)
    source = open_source(photos)
    (photos / "dog" / "38.png").unlink()
    manifest = json.loads((prepare(source, tmp_path / "out", 16) / "canvases.json").read_text())
    assert manifest["encoding"] == "jpeg" and [reason for where, reason in manifest["bad"] if "38" in where] == [
        "the file is gone"
    ]
