"""Captions and labels as further columns of a batch, from everything that has them."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from manyviews.data import Loader, open_source, prepare
from manyviews.data.columns import LONGEST
from manyviews.errors import UserError
from tests.data.remote import STREAMED, encoded, packed

CAPTIONS = [("a",), ("two",), ("three", "drei", "trois"), ("vier é",), ("five", "cinq"), ("six",)]
"""Of six images, each of its own gray level."""


def picture(k):
    return Image.new("RGB", (8, 8), (k, k, k))


def folder(root, captions=CAPTIONS, name="captions.csv"):
    root.mkdir()
    for k in range(len(captions)):
        picture(k).save(root / f"{k}.png")
    rows = [f'{k}.png,"{caption}"' for k, several in enumerate(captions) for caption in several]
    (root / name).write_text("\n".join(["path,caption", *rows]), encoding="utf-8")
    return root


def tar(path, captions, ending):
    rows = [json.dumps({"caption": caption}) if ending == "json" else caption for caption in captions]
    members = [m for k, row in enumerate(rows) for m in ((f"{k}.png", encoded(k)), (f"{k}.{ending}", row.encode()))]
    path.write_bytes(packed(members))
    return path


def texts(batch):
    return [bytes(row).rstrip(b"\0").decode() for row in batch.columns["text"].numpy()]


def test_captions_from_everything_that_has_them(tmp_path):
    images = np.stack([np.asarray(picture(k)) for k in range(6)])
    firsts = [(item[0],) for item in CAPTIONS]
    for name, values in {"many": [list(item) for item in CAPTIONS], "one": [item[0] for item in CAPTIONS]}.items():
        table = pa.table({"image": [encoded(k) for k in range(6)], "text": values, "alt": [["x"]] * 6})
        pq.write_table(table, tmp_path / f"{name}.parquet")

    class Pairs:  # torchvision's CocoCaptions
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return picture(i), list(CAPTIONS[i])

    in_folder = folder(tmp_path / "folder")
    elsewhere = folder(tmp_path / "elsewhere", name="pairs.csv")
    (elsewhere / "captions.csv").write_text("not read")
    prepare(open_source(in_folder), tmp_path / "canvases", 8)
    wanted = {
        "folder": (open_source(in_folder), CAPTIONS),
        "file": (open_source(elsewhere, captions=elsewhere / "pairs.csv"), CAPTIONS),
        "prepared": (open_source(tmp_path / "canvases"), CAPTIONS),
        "lists in Parquet": (open_source(tmp_path / "many.parquet"), CAPTIONS),
        "texts in Parquet": (open_source(tmp_path / "one.parquet"), firsts),
        "another column": (open_source(tmp_path / "one.parquet", captions="alt"), [("x",)] * 6),
        "tar": (open_source(tar(tmp_path / "a.tar", ["a", "7", "  ", "007", "d", "e"], "txt")), "a 7 _ 007 d e"),
        "json": (open_source(tar(tmp_path / "b.tar", list("abcdef"), "json")), "a b c d e f"),
        "data set": (open_source(Pairs()), CAPTIONS),
        "arrays": (open_source(images, captions=CAPTIONS), CAPTIONS),
    }
    for name, (source, captions) in wanted.items():
        if isinstance(captions, str):
            captions = [() if c == "_" else (c,) for c in captions.split()]
        assert source.captions == captions, name
        if name != "data set":
            source = pickle.loads(pickle.dumps(source))
        assert source.subset([4, 1]).captions == [captions[4], captions[1]], name
    assert open_source(images).captions is None


@pytest.mark.parametrize("memory", [None, STREAMED])
def test_a_batch_has_the_captions_of_its_own_images(tmp_path, memory):
    """Ranks, a resumed epoch and canvases on disk give the same rows, and each caption of an image gets its turn."""
    root = folder(tmp_path / "folder", CAPTIONS * 4)
    source = open_source(root)
    prepare(source, tmp_path / "canvases", 8)
    how = {"columns": ("text", "label"), "seed": 3, "memory": memory}
    labels = np.arange(24)
    annotate = {"annotate": lambda: (labels, [str(k) for k in range(24)])}
    source, ready = (replace(s, **annotate) for s in (source, open_source(tmp_path / "canvases")))
    whole, seen = Loader(source, 8, 6, **how), [set() for _ in range(24)]
    longest = len("vier é".encode())
    for epoch in range(12):
        for batch in whole.batches(epoch):
            assert batch.columns["text"].shape == (6, longest) and batch.columns["text"].dtype == torch.uint8
            assert torch.equal(batch.columns["label"], batch.index) and batch.index.dtype == torch.int64
            for i, text in zip(batch.index.tolist(), texts(batch), strict=True):
                seen[i].add(text)
    number = {name: int(name.removesuffix(".png")) for name in source.ids}
    assert seen == [set(CAPTIONS[number[name] % 6]) for name in source.ids]

    def rows(loader, *where):
        return [(b.index.tolist(), texts(b), b.columns["label"].tolist()) for b in loader.batches(*where)]

    assert rows(Loader(source, 8, 6, **how), 2, 1) == rows(whole, 2)[1:]
    assert rows(Loader(ready, 8, 6, **how), 2) == rows(whole, 2)
    halves = [rows(Loader(source, 8, 3, rank=r, world_size=2, **how), 2) for r in range(2)]
    assert [tuple(a + b for a, b in zip(*ab, strict=True)) for ab in zip(*halves, strict=True)] == rows(whole, 2)
    (plain, *_), (batch, *_) = (list(loader.batches(0)) for loader in (Loader(source, 8, 6, seed=3), whole))
    assert not plain.columns and torch.equal(plain.pixels, batch.pixels)


def test_left_out_and_cut_captions_are_counted():
    long = "é" * (LONGEST // 2) + "!"  # one byte more than there is room for
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    source = open_source(images, captions=["x" + long, "one", "", None, ["", "two"]])
    loader = Loader(source, 8, 3, columns=("text",))
    (batch,) = loader.batches(0)
    assert batch.columns["text"].shape == (3, LONGEST - 1)
    wanted = {0: "x" + "é" * (LONGEST // 2 - 1), 1: "one", 4: "two"}
    assert dict(zip(batch.pixels[:, 0, 0, 0].tolist(), texts(batch), strict=True)) == wanted
    assert batch.index.sort().values.tolist() == [0, 1, 2]  # of what is left
    assert [note.split(" images")[0].split(" captions")[0] for note in loader.notes] == ["2 of the 5", "1 of the 3"]
    assert Loader(source, 8, 3).notes == []


def test_what_cannot_be_a_column(tmp_path):
    def message(source, column, **how):
        with pytest.raises(UserError) as error:
            Loader(open_source(source, **how), 8, 2, columns=(column,))
        return str(error.value)

    images = np.zeros((3, 8, 8, 3), np.uint8)
    assert "no captions: give" in message(images, "text")
    assert "no captions: give" in message(images, "text", captions=["", " ", None])
    assert "no labels" in message(images, "label")
    assert "'label'" in message(images, "labels")
    assert "3 images and 2 captions" in message(images, "text", captions=["a", "b"])
    assert "list of texts" in message(images, "text", captions=[1, 2, 3])
    root = folder(tmp_path / "folder")
    (root / "captions.csv").write_text("path,caption\n9.png,nine\n")
    assert "1 of the 1 paths in the captions file" in message(root, "text")
    assert Loader(open_source(root), 8, 2).notes == []  # nobody asked
    (root / "captions.csv").write_text("path,text\n0.png,nine\n")
    assert "path,text" in message(root, "text")
    assert "captions: leave" in message("demo", "text", captions="x.csv")
    assert "'subtitle'" in message(tar(tmp_path / "a.tar", ["a"] * 3, "txt"), "text", captions="subtitle")
