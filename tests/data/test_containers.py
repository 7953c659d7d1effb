"""Folders and archives as people have them: what is left out is counted, splits are no classes, zips are folders."""

import io
import itertools
import os
import struct
import subprocess
import threading
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import BadImage, Loader, folder, load_canvases, open_source
from manyviews.errors import UserError
from manyviews.evaluation.sets import check_labels
from manyviews.weights import Pretrained
from tests.data.remote import STREAMED, encoded, indices, number, put


def fill(root, *paths):
    for k, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(k))
    return root


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def message(*arguments, **options):
    with pytest.raises(UserError) as error:
        open_source(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def noted(source, *parts):
    """Exactly these sentences, each known by a part."""
    assert len(source.notes) == len(parts), source.notes
    for part in parts:
        assert sum(part in note for note in source.notes) == 1, (part, source.notes)


# What is left out


def test_files_of_systems_are_left_out_and_counted(tmp_path):
    """immich #30690, photoprism #555: thumbnails of a network drive were images, and a class."""
    fill(tmp_path, "cat/a.jpg", "dog/b.jpg", "@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", "dog/#recycle/c.jpg")
    fill(tmp_path, "$RECYCLE.BIN/d.jpg", "System Volume Information/e.jpg", "__MACOSX/dog/f.jpg", "lost+found/g.jpg")
    fill(tmp_path, "Thumbs/h.jpg", ".Trash-1000/i.jpg", "cat/._a.jpg", "thumbs/j.jpg")
    source = open_source(tmp_path)
    assert source.ids == ["cat/a.jpg", "dog/b.jpg", "thumbs/j.jpg"]  # thumbs may be hands
    assert source.classes == ["cat", "dog", "thumbs"]
    noted(source, "7 system folders", "1 hidden folder (.Trash-1000)", "1 hidden picture (cat/._a.jpg)")


def test_pictures_that_cannot_be_read_are_counted_with_the_cure(tmp_path, monkeypatch):
    """PhotoMapAI #364, clip-interrogator-ext #50: silently not there."""
    from manyviews.data import formats

    monkeypatch.setattr(formats, "installed", lambda package: package != "pillow_heif")
    fill(tmp_path, "0.jpg", "1.heic", "2.HEIC", "3.nef", "4.mp4")
    source = open_source(tmp_path)
    assert source.ids == ["0.jpg"]
    heic = 'HEIC, HEIF needs a package, run `pip install "manyviews['
    noted(source, f"Left out 2 .heic files (the first: 1.heic): {heic}", "1 .nef file (3.nef)", "1 .mp4 file (4.mp4)")
    (tmp_path / "0.jpg").unlink()
    assert "pip install" in message(tmp_path) and "2 .heic" in message(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_the_content_decides_where_the_name_does_not(tmp_path, packed):
    names = {"a.png": encoded(0), "b": encoded(1), "c.image": encoded(2), "README": b"text", "d.dat": b"numbers"}
    if packed:
        source = open_source(zipped(tmp_path / "x.zip", names.items()))
    else:
        for name, content in names.items():
            (tmp_path / name).write_bytes(content)
        source = open_source(tmp_path)
    assert source.ids == ["a.png", "b", "c.image"] and [number(source, i) for i in range(3)] == [0, 1, 2]
    noted(source, "Took 2 files as images by content, not by name (the first: b)")


def test_pictures_that_were_cut_short_are_counted_before_training(tmp_path):
    """An interrupted copy, in each of the two common formats. A film behind a photograph is no damage."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "b.jpg", "c.png", "moving.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
    for name in ("b.jpg", "c.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with (tmp_path / "moving.jpg").open("ab") as file:
        file.write(bytes(10_000))
    source = open_source(tmp_path)
    noted(source, "2 images are cut short or damaged (the first: b.jpg)")
    assert load_canvases(source, 8)[0].index.tolist() == [0, 3]


def test_of_many_files_without_an_ending_a_sample_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LOOKED", 8)
    fill(tmp_path, *(f"{k:02}" for k in range(20)))
    for k in range(20):
        (tmp_path / f"{k:02}.raw1").write_bytes(b"no image")
    source = open_source(tmp_path)
    assert len(source) == 20
    noted(source, "Took 20 files")


def test_broken_links_and_empty_files_are_counted(tmp_path):
    """micasense/imageprocessing #58: 'The folder is empty', and it had three links."""
    for k in range(3):
        os.symlink(f"/nowhere/{k}.jpg", tmp_path / f"ln{k}.jpg")
    text = message(tmp_path)
    assert "3 broken links (the first: ln" in text and "is empty" not in text
    fill(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "again").symlink_to(tmp_path)
    source = open_source(tmp_path)
    noted(source, "3 broken links", "1 image is empty (b.png)", "1 link to folders that are read already (again)")
    assert load_canvases(source, 8)[0].index.tolist() == [0]


def test_a_locked_folder_is_counted(tmp_path, without_privileges):
    root = Path("/tmp") / f"locked-{os.getpid()}"
    try:
        fill(root, "a.png", "shut/b.png")
        root.chmod(0o755)
        (root / "shut").chmod(0)
        with without_privileges():
            noted(open_source(root), "1 folder that may not be read (shut)")
    finally:
        (root / "shut").chmod(0o755)
        for path in sorted(root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        root.rmdir()


def test_archives_among_images_are_counted(tmp_path):
    fill(tmp_path, "a.png")
    zipped(tmp_path / "b.zip", [("1.png", encoded(1))])
    noted(open_source(tmp_path), "1 .zip file among the images (b.zip)")


# Labels


def test_a_stray_picture_takes_the_labels_and_is_named(tmp_path):
    """datasets #5153, pytorch/vision #446: 'no labels: put its images into one folder for each class'."""
    fill(tmp_path, *(f"{c}/{k}.png" for c in "ab" for k in range(12)), "overview.png")
    source = open_source(tmp_path)
    assert source.labels is None
    noted(source, "overview.png lies outside of the class folders, so there are no labels: move it.")
    with pytest.raises(UserError, match=r"overview\.png lies outside of the class folders.*: move it"):
        check_labels(source)
    fill(tmp_path, *(f"{k}.png" for k in range(30)))
    assert not open_source(tmp_path).notes  # a folder of photos with some albums is nothing odd


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_as_in_image_folders_of_hugging_face(tmp_path, ending):
    fill(tmp_path, "train/1.png", "train/2.png", "test/3.png")
    for part, rows in (("train", [("1.png", 10, "a dog"), ("2.png", 9, "")]), ("test", [("3.png", 10, "a cat")])):
        if ending == "csv":
            text = "file_name,label,text\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
        else:
            text = "".join(f'{{"file_name": "{a}", "label": {b}, "text": "{c}"}}\n' for a, b, c in rows)
        (tmp_path / part / f"metadata.{ending}").write_text(text)
    source = open_source(tmp_path)
    assert source.ids == ["1.png", "2.png"] and source.classes == ["9", "10"] and source.labels.tolist() == [1, 0]
    assert source.captions == [("a dog",), ()]
    assert open_source(tmp_path, split="test").labels.tolist() == [0]
    fill(tmp_path, "train/4.png")
    source = open_source(tmp_path)
    assert source.labels is None and any("1 of 3 images have no label" in note for note in source.notes)


# Splits


@pytest.mark.parametrize(
    "pattern", ["{split}/{c}/{k}.png", "set/{split}/{c}/{k}.png", "{c}/{split}/{k}.png", "{split}2017/{c}/{k}.png"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_splits_are_no_classes(tmp_path, pattern, packed):
    paths = [
        pattern.format(split=split, c=c, k=k)
        for split, n in (("Train", 3), ("validation", 2), ("test", 1))
        for c in ("cat", "dog")
        for k in range(n)
    ]
    data = tmp_path / "photos"
    if packed:
        data = zipped(tmp_path / "photos.zip", [(path, encoded(k)) for k, path in enumerate(paths)])
    else:
        fill(data, *paths)
    source = open_source(data)
    assert source.name == "photos:train" and source.splits == ("train", "val", "test")
    assert sorted(source.ids) == [f"{c}/{k}.png" for c in ("cat", "dog") for k in range(3)]
    assert source.classes == ["cat", "dog"] and sorted(source.labels.tolist()) == [0] * 3 + [1] * 3
    assert sorted(number(source, i) for i in range(6)) == list(range(6))
    (note,) = source.notes
    assert "6 images" in note and "(4)" in note and "(2)" in note and "':test'" in note
    for name, count in (("val", 4), ("validation", 4), ("test", 2), ("all", 12)):
        part = open_source(f"{data}:{name}")
        assert len(part) == count and part.classes == ["cat", "dog"] and not part.notes and not part.splits


def test_splits_with_something_beside_them_and_without(tmp_path):
    fill(tmp_path / "a", "train/cat/1.png", "test/cat/2.png", "unlabeled/3.png", "overview.png")
    source = open_source(tmp_path / "a")
    assert source.ids == ["cat/1.png"]
    assert "unlabeled/ (1)" in source.notes[0] and "the top folder" in source.notes[0]
    assert open_source(fill(tmp_path / "b", "train/1.png", "car/2.png")).classes == ["car", "train"]  # COCO's trains
    assert open_source(fill(tmp_path / "c", "val/a/1.png", "test/b/2.png")).classes == ["a", "b"]
    assert "has no splits" in message(f"{tmp_path}/b:test")
    assert "no split 'val'" in message(f"{tmp_path}/a:val")
    assert "--labels" in message(f"{tmp_path}/a", tmp_path / "a" / "train" / "cat" / "1.png", split="test")


def test_masks_beside_images_are_not_trained_on(tmp_path):
    fill(tmp_path, "images/train/1.png", "masks/train/1.png", "images/val/2.png", "masks/val/2.png")
    source = open_source(tmp_path)
    assert source.ids == ["1.png"]
    noted(source, "2 images in folders of masks", "Took images/train/ (1 image), not images/val/ (1)")


def test_verbs_take_their_splits_and_say_so_once(tmp_path, capsys, monkeypatch):
    for split, n in (("train", 40), ("test", 12)):
        fill(tmp_path / "d", *(f"{split}/{c}/{k:02}.png" for k in range(n) for c in ("cat", "dog")))
    given = {}
    verb = import_module("manyviews.verbs.pretrain")
    monkeypatch.setattr(verb, "train", lambda method, recipe, source, *rest: given.update(source=source))
    monkeypatch.setattr(verb, "conclude", lambda folder: folder)
    monkeypatch.setattr(verb, "draw_views", lambda *_: None)
    mv.pretrain(tmp_path / "d", "simclr_tiny", epochs=1, settings={"data.batch_size": 16}, out=tmp_path / "run")
    assert len(given["source"]) == 80 and given["source"].classes == ["cat", "dog"]
    assert capsys.readouterr().err.count("not test/ (24)") == 1

    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval()
    weights = Pretrained(encoder, mean=(0.5,) * 3, std=(0.25,) * 3, test_size=12, name="mine")
    report = mv.evaluate(weights, tmp_path / "d", protocols=["knn"], baselines=False)
    assert report.images["test"] == 24
    said = capsys.readouterr().err
    assert "The test images are d:test (24 images)" in said and said.count("not test/ (24)") == 1
    mv.embed(weights, tmp_path / "d", tmp_path / "f.parquet")
    assert len(pq.read_table(tmp_path / "f.parquet")) == 104


# Zips


@pytest.mark.parametrize("root", ["{tmp}", "memory://zips"])
def test_zips_agree_with_a_folder_of_the_same_images(tmp_path, root, requests):
    paths = [f"{c}/{k:02}.png" for k in range(30) for c in ("cat", "dog")]
    fill(tmp_path / "folder", *paths)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for k, path in enumerate(paths):  # stored and deflated, and with a comment and a folder around all
            archive.writestr(f"photos/{path}", encoded(k), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[k % 2])
        archive.comment = b"holidays"
    source = open_source(put(f"{root.format(tmp=tmp_path)}/z.zip", file.getvalue()))
    whole = open_source(tmp_path / "folder")
    assert source.classes == whole.classes and source.name == "z"
    theirs = {name: i for i, name in enumerate(whole.ids)}
    assert set(source.ids) == set(theirs)
    requests.clear()
    for i, name in enumerate(source.ids):
        assert np.array_equal(np.asarray(source.load(i)), np.asarray(whole.load(theirs[name])))
        assert source.labels[i] == whole.labels[theirs[name]]
    assert sum(path.endswith(".zip") for path, *_ in requests) == 1  # one block
    wrong, seen = [], np.zeros(60, int)

    def read(start):
        for i in range(start, 60, 3):
            seen[i] += 1
            if number(source, i) != paths.index(source.ids[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(3)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert not wrong and (seen == 1).all()
    loader = Loader(source, 8, 10, memory=STREAMED)
    assert sorted(itertools.chain(*indices(loader.batches(0)))) == list(range(60))


def test_zips_that_other_programs_write(tmp_path):
    """Sizes behind the content, as streams have them, and longer fields before it than in the directory."""
    path = tmp_path / "a.zip"
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")  # a program that unpacks itself

        class Pipe(io.RawIOBase):
            def writable(self):
                return True

            def write(self, content):
                return file.write(content)

        with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:
            for k in range(3):
                with archive.open(f"{k}.png", "w", force_zip64=True) as member:
                    member.write(encoded(k))
    source = open_source(path)
    assert [number(source, i) for i in range(3)] == [0, 1, 2]


def test_bad_members_of_zips_are_counted(tmp_path):
    members = [(f"{k}.png", encoded(k)) for k in range(4)]
    members += [("__MACOSX/._0.png", b"x"), ("4.png", b""), ("5.lzma.png", b"")]
    path = zipped(tmp_path / "a.zip", members)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        starts = [info.header_offset for info in archive.infolist()]
        directory = archive.start_dir
    content[starts[1] + 60] ^= 255  # a wrong checksum
    at = directory
    for k in range(7):
        assert content[at : at + 4] == b"PK\1\2"
        if k == 2:
            content[at + 8] |= 1  # encrypted
        if k == 6:
            content[at + 10] = 14  # LZMA
        at += 46 + sum(struct.unpack_from("<HHH", content, at + 28))
    path.write_bytes(content)
    source = open_source(path)
    assert source.ids == ["0.png", "1.png", "3.png", "4.png"]
    noted(source, "1 encrypted image (2.png)", "in an uncommon compression", "is empty (4.png)", "in system folders")
    canvases, bad = load_canvases(source, 8)
    assert canvases.index.tolist() == [0, 2]
    assert bad[0] == ("a.zip: 1.png", "the zip is damaged here") and bad[1][0] == "a.zip: 4.png"
    path.write_bytes(content[:-10])
    assert "half downloaded" in message(path)
    assert "--labels" in message(zipped(path, members[:1]), "breed")
    assert "holds no images" in message(zipped(path, [("a.txt", b"")]))


def test_a_bomb_does_not_fill_the_memory():
    from manyviews.data.zip import unpack

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(10**8)) + packer.flush()
    header = b"PK\3\4" + bytes(26)
    with pytest.raises(BadImage, match="damaged"):
        unpack(header + bomb, [8, len(bomb), 1000, 0])


def test_several_zips(tmp_path):
    for name, ks in (("train_a", (0, 1)), ("train_b", (2, 3)), ("val", (4,))):
        zipped(tmp_path / f"{name}.zip", [(f"{('cat', 'dog')[k % 2]}/{k}.png", encoded(k)) for k in ks])
    source = open_source(tmp_path)
    assert source.ids == ["train_a/cat/0.png", "train_a/dog/1.png", "train_b/cat/2.png", "train_b/dog/3.png"]
    assert source.classes == ["cat", "dog"] and len(open_source(tmp_path, split="val")) == 1
    (tmp_path / "own").mkdir()
    for k in range(2):  # a folder of its own in each archive is no class
        zipped(tmp_path / "own" / f"{k}.zip", [(f"part{k}/{k}.png", encoded(k))])
    source = open_source(tmp_path / "own")
    assert source.labels is None and "not taken for classes" in source.why_unlabeled


def test_tars_of_class_folders_have_labels(tmp_path):
    fill(tmp_path / "photos", "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
    subprocess.run(["tar", "cf", tmp_path / "photos.tar", "photos"], cwd=tmp_path, check=True)
    source = open_source(tmp_path / "photos.tar")
    assert source.classes == ["cat", "dog"] and sorted(source.labels.tolist()) == [0, 1]
    assert len(open_source(f"{tmp_path}/photos.tar:val")) == 1


@pytest.mark.shared_data
def test_real_zips(shared_data):
    source = open_source(shared_data / "clothing10_192.zip")
    assert len(source) == 3068 and len(source.classes) == 10 and source.load(3067).size
    assert len(open_source(f"{shared_data}/clothing10_192.zip:test")) == 372


def test_scan_costs_no_call_per_file(tmp_path, monkeypatch):
    """A folder of a million images must open as fast as its names can be listed."""
    fill(tmp_path, *(f"{c}/{k}.png" for c in "ab" for k in range(50)))
    calls = []
    monkeypatch.setattr(folder, "LOOKED", 10)
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or original(*a, **k))
    assert len(open_source(tmp_path)) == 100
    assert len(calls) < 30
