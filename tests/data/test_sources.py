"""Everything that holds images, and everything that only seems to."""

import dataclasses
import io
import json
import os
import pickle
import tempfile
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from manyviews.data import BadImage, load_canvases, open_source
from manyviews.data.files import shown
from manyviews.data.folder import PAGE
from manyviews.errors import UserError


def picture(value, size=(8, 6)):
    return Image.new("RGB", size, (value, 255 - value, 7))


def encoded(value):
    file = io.BytesIO()
    picture(value).save(file, "PNG")
    return file.getvalue()


def fill(root, *paths):
    for k, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(file)
    return root


def value(source, i):
    return source.load(i).getpixel((0, 0))[0]


def message(*arguments):
    with pytest.raises(UserError) as error:
        open_source(*arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


# Folders


def test_folder_is_scanned_at_any_depth_in_order(tmp_path):
    fill(tmp_path, "b/x/1.png", "a.JPG", "b/2.JpEg", "c.tiff")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.ids == ["a.JPG", "b/2.JpEg", "b/x/1.png", "c.tiff"]
    assert len(source) == 4
    assert source.name == tmp_path.name
    assert value(source, 2) == 0
    assert source.where(1) == "b/2.JpEg"
    assert source.labels is None
    assert source.classes is None


def test_first_level_folders_are_labels(tmp_path):
    source = open_source(str(fill(tmp_path, "dog/1.png", "cat/deep/2.png", "cat/3.png")))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int64


def test_images_outside_the_folders_mean_no_labels(tmp_path):
    assert open_source(fill(tmp_path, "dog/1.png", "2.png")).labels is None


def test_hidden_and_junk_files_are_ignored(tmp_path):
    fill(tmp_path, "a.png", ".hidden.png", "._a.png", ".cache/b.png", "__MACOSX/._a.png")
    assert open_source(tmp_path).ids == ["a.png"]


def test_run_folders_among_the_images_are_ignored(tmp_path):
    fill(tmp_path, "a.png", "runs/first/plots/views.png", "runs/mine.png")
    for name in ("recipe.json", "run.json"):
        (tmp_path / "runs" / "first" / name).write_text("{}")
    assert open_source(tmp_path).ids == ["a.png", "runs/mine.png"]
    assert open_source(tmp_path / "runs" / "first").ids == ["plots/views.png"]  # asked for by name


def test_sweeps_subspaces_and_pages_among_the_images_are_ignored(tmp_path):
    fill(tmp_path, "a.png", "sweep/sweep.png", "masks/masks.png", "page/pictures/0.webp", "page/map/sheet-0.webp")
    fill(tmp_path, "site/pictures/b.png")
    (tmp_path / "site" / "index.html").write_text("no page of ours")
    for name in ("sweep/sweep.json", "masks/subspaces.json", f"page/{PAGE}"):
        (tmp_path / name).write_text("{}")
    assert open_source(tmp_path).ids == ["a.png", "site/pictures/b.png"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    fill(tmp_path, "data/z/1.png", "elsewhere/2.png")
    for name in ("a_link_to_z", "zz_link_to_z"):  # before and after what it points to
        (tmp_path / "data" / name).symlink_to(tmp_path / "data" / "z")
    (tmp_path / "data" / "z" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "outside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "data" / "itself.png").symlink_to("itself.png")
    assert open_source(tmp_path / "data").ids == ["outside/2.png", "z/1.png"]


def test_missing_folder_suggests_its_neighbor(tmp_path):
    fill(tmp_path, "photos/1.png")
    text = message(tmp_path / "photo")
    assert "photo'" in text
    assert str(tmp_path / "photos") in text
    assert str(tmp_path / "photos") in message(tmp_path / "photoz" / "deeper" / "down")


def test_empty_folder(tmp_path):
    assert "is empty" in message(tmp_path)


def test_folder_of_text_files(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    text = message(tmp_path)
    assert "no images" in text
    assert "readme.txt" in text


def test_single_image_and_unknown_file(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "a.doc").write_bytes(b"PK")
    assert "folder that holds" in message(tmp_path / "a.png")
    assert "unknown kind" in message(tmp_path / "a.doc")


def test_unreadable_folder(without_privileges):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        locked = fill(Path(folder), "set/locked/1.png") / "set"
        (locked / "locked").chmod(0)
        with without_privileges():
            assert "permission" in message(locked)
        (locked / "locked").chmod(0o755)


# Labels from CSV


def csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_gives_labels_and_chooses_images(tmp_path):
    root = fill(tmp_path / "data", "1.png", "x/2.png", "3.png")
    source = open_source(root, csv(tmp_path / "l.csv", "\ufeffpath,source,label\nx/2.png,me,dog\n./1.png,me,cat\n"))
    assert source.ids == ["1.png", "x/2.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1]
    assert value(source, 1) == 1


def test_csv_that_does_not_fit(tmp_path):
    root = fill(tmp_path / "data", "1.png")
    table = tmp_path / "labels.csv"
    assert "file,class" in message(root, csv(table, "file,class\n1.png,cat\n"))
    text = message(root, csv(table, "path,label\n1.png,cat\n2.png,dog\n"))
    assert "2.png" in text
    assert "1 of the 2" in text
    assert "Line 2" in message(root, csv(table, "path,label\n1.png,\n"))
    assert "Line 3" in message(root, csv(table, "path,label\n1.png,cat\n1.png\n"))
    assert "Line 3 of" in message(root, csv(table, "path,label\n1.png,cat\n,dog\n"))
    assert "no rows" in message(root, csv(table, "path,label\n"))
    assert "(none)" in message(root, csv(table, ""))
    assert "cannot be read" in message(root, fill(tmp_path, "not_a_table.png") / "not_a_table.png")
    assert str(table) in message(root, tmp_path / "label.csv")


def test_csv_gives_several_labels(tmp_path):
    root = fill(tmp_path / "data", "1.png", "x/2.png", "3.png", "4.png")
    rows = ["3.png,cat", "1.png,emu", "x/2.png,", "3.png,dog", "./3.png,cat", "1.png,"]
    source = open_source(root, csv(tmp_path / "l.csv", "\n".join(["path,label", *rows])))
    assert source.ids == ["1.png", "3.png", "x/2.png"]
    assert source.several and source.labels is None and source.classes == ["cat", "dog", "emu"]
    wanted = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 0]], bool)
    assert source.targets.dtype == bool and (source.targets == wanted).all()

    part = source.subset([2, 1])
    assert part.several and (part.targets == wanted[[2, 1]]).all() and part.classes == source.classes
    other = part.with_classes(["dog", "ant", "cat"])  # emu is of none of its images
    assert other.classes == ["dog", "ant", "cat"] and other.targets.tolist() == [[False] * 3, [True, False, True]]
    with pytest.raises(UserError, match="'emu'"):
        source.with_classes(["dog", "cat"])
    copy = pickle.loads(pickle.dumps(part))
    assert (copy.targets == part.targets).all()


def test_one_label_each_has_targets_too(tmp_path):
    source = open_source(fill(tmp_path, "cat/1.png", "dog/2.png", "cat/3.png"))
    assert source.ids == ["cat/1.png", "cat/3.png", "dog/2.png"]
    assert not source.several and source.targets.tolist() == [[True, False], [True, False], [False, True]]
    assert source.with_classes(["emu", "dog", "cat"]).targets.tolist()[1] == [False, False, True]
    flat = open_source(fill(tmp_path / "flat", "1.png"))
    assert not flat.several and flat.targets is None


# Parquet


def hugging_face(path, values, names=("cat", "dog"), labels=None, paths=None, group=2):
    paths = paths or [None] * len(values)
    rows = [{"bytes": encoded(v), "path": p} for v, p in zip(values, paths, strict=True)]
    images = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    labels = [v % len(names) for v in values] if labels is None else labels
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({"image": images, "label": labels}, metadata=metadata), path, row_group_size=group)
    return path


def test_hugging_face_layout(tmp_path):
    names = [f"data/{v}.png" for v in range(7)]
    source = open_source(hugging_face(tmp_path / "train.parquet", range(7), paths=names))
    assert len(source) == 7
    assert [value(source, i) for i in (6, 0, 3, 2, 6)] == [6, 0, 3, 2, 6]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert source.ids == names
    assert source.where(5) == "train.parquet row 5"


def test_class_names_keep_their_order(tmp_path):
    source = open_source(hugging_face(tmp_path / "a.parquet", range(3), names=("zebra", "ant")))
    assert source.classes == ["zebra", "ant"]


def test_folder_of_parquet_files(tmp_path):
    hugging_face(tmp_path / "b.parquet", [4, 5])
    hugging_face(tmp_path / "a.parquet", [1, 2, 3])
    (tmp_path / "README.md").write_text("a data set card")
    source = open_source(tmp_path)
    assert [value(source, i) for i in range(5)] == [1, 2, 3, 4, 5]
    assert source.labels.tolist() == [1, 0, 1, 0, 1]
    assert source.where(4) == "b.parquet row 1"


def test_ids_are_content_hashes_where_paths_are_missing_or_shared(tmp_path):
    plain = open_source(hugging_face(tmp_path / "a.parquet", [1, 2, 3, 1]))
    shared = open_source(hugging_face(tmp_path / "b.parquet", [2, 3, 1], paths=["x.png"] * 3))
    assert plain.ids[0] == plain.ids[3]
    assert len(set(plain.ids)) == 3
    assert shared.ids == [plain.ids[1], plain.ids[2], plain.ids[0]]  # wherever the image lies


def test_plain_bytes_column_and_string_labels(tmp_path):
    columns = {"id": [1, 2], "picture": [encoded(9), encoded(8)], "label": ["dog", "cat"], "breed": ["x", "y"]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    source = open_source(path)
    assert [value(source, i) for i in range(2)] == [9, 8]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0]
    assert open_source(path, "breed").classes == ["x", "y"]
    assert "'label'" in message(path, "lable")


def test_integer_labels_without_names_become_classes_by_size(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [encoded(v) for v in range(3)], "label": [10, 2, 10]}), path)
    source = open_source(path)
    assert source.classes == ["2", "10"]
    assert source.labels.tolist() == [1, 0, 1]


def test_the_label_column_may_be_named_by_a_path(tmp_path):
    """The command line cannot know whether --labels is a file or a column."""
    table = pa.table({"image": [encoded(1), encoded(2)], "breed": ["pug", "husky"]})
    pq.write_table(table, tmp_path / "dogs.parquet")
    assert open_source(tmp_path / "dogs.parquet", Path("breed")).classes == ["husky", "pug"]


def test_negative_or_missing_labels_mean_unlabeled(tmp_path):
    assert open_source(hugging_face(tmp_path / "a.parquet", [1, 2], labels=[-1, -1])).labels is None
    assert open_source(hugging_face(tmp_path / "b.parquet", [1, 2], labels=[None, 1])).labels is None


def test_row_without_an_image_is_bad(tmp_path):
    pq.write_table(pa.table({"image": pa.array([encoded(1), None], pa.binary())}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    with pytest.raises(BadImage, match="no image"):
        source.load(1)
    _, bad = load_canvases(source, 8)
    assert bad == [("t.parquet row 1", "the row holds no image")]


def test_parquet_that_does_not_fit(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert "text" in message(path)
    pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), path)
    assert "left, right" in message(path)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    assert "no rows" in message(path)
    path.write_bytes(b"PAR1 and then nothing")
    assert "damaged" in message(path)
    hugging_face(path, [1])
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "u.parquet")
    assert "other columns" in message(tmp_path)


# Data sets and arrays


class Toy:
    """A data set in torchvision's manner."""

    def __init__(self, n, make=picture, **attributes):
        self.n, self.make = n, make
        self.asked = []
        self.__dict__.update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked.append(i)
        if i == 3:
            raise RuntimeError("disk on fire")
        return self.make(i), i % 2


def test_data_set_of_images():
    source = open_source(Toy(3))
    assert [value(source, i) for i in range(3)] == [0, 1, 2]
    assert source.labels.tolist() == [0, 1, 0]
    assert source.classes == ["0", "1"]
    assert source.ids == open_source(Toy(3)).ids
    assert len(set(source.ids)) == 3
    assert source.where(2) == "Toy[2]"


def test_data_set_targets_and_classes_are_used_without_reading_images():
    toy = Toy(6, targets=[1, 0, 1, 0, 1, 0], classes=["no", "yes"])
    source = open_source(toy)
    assert source.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert source.classes == ["no", "yes"]
    assert toy.asked == [0]


def test_data_set_that_raises_has_a_bad_image():
    canvases, bad = load_canvases(open_source(Toy(5)), 8)
    assert canvases.index.tolist() == [0, 1, 2, 4]
    assert bad == [("Toy[3]", "the data set raised RuntimeError: disk on fire")]


class Odd:
    """A data set of other people: three items, of which the first cannot be read, each with something beside it."""

    def __init__(self, beside):
        self.beside = beside

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i == 0:
            raise OSError("broken")
        return picture(i), self.beside[i]


def test_a_data_set_may_begin_with_a_bad_item():
    source = open_source(Odd([5, 3, 5]))
    assert source.labels.tolist()[1:] == [0, 1]
    with pytest.raises(BadImage, match="broken"):
        source.load(0)
    assert value(source, 2) == 2
    assert value(pickle.loads(pickle.dumps(source)), 2) == 2


@pytest.mark.parametrize("beside", [[{"boxes": 1}] * 3, [[0, 1]] * 3, [[0], [0, 1], []], [picture(1)] * 3])
def test_what_is_no_label_is_none(beside):
    """Attributes, boxes and masks: raveled, they would be labels of other images."""
    assert open_source(Odd(beside)).labels is None


def test_a_data_set_with_a_transform_is_refused():
    assert "without a transform" in message(Toy(2, make=lambda i: torch.zeros(3, 4, 4)))
    assert "empty" in message(Toy(0))


class HuggingFace:
    """A data set as Hugging Face's `datasets.Dataset`: items are dicts, columns are read by name."""

    column_names = ["img", "fine_label", "label", "text"]  # noqa: RUF012
    features = {"label": types.SimpleNamespace(names=["zebra", "ant"])}  # noqa: RUF012

    def __init__(self, decoded=True):
        self.decoded, self.asked = decoded, []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.asked.append(i)
        columns = {"label": [i % 2 for i in range(4)], "text": ["a", "b", "", "d"]}
        if isinstance(i, str):
            return columns[i]
        image = picture(i) if self.decoded else {"bytes": encoded(i), "path": None}
        return {"img": image, "fine_label": 7, "label": i % 2, "text": columns["text"][i]}


@pytest.mark.parametrize("decoded", [True, False])
def test_data_sets_of_hugging_face(decoded):
    """lightly #1569: items are dicts, and 'make it without a transform' was wrong advice."""
    data = HuggingFace(decoded)
    source = open_source(data)
    assert source.classes == ["zebra", "ant"] and source.labels.tolist() == [0, 1, 0, 1]
    assert source.captions == [("a",), ("b",), (), ("d",)]
    assert data.asked == [0, "label", "text"]  # no image is decoded for them
    assert [value(pickle.loads(pickle.dumps(source)), i) for i in range(4)] == [0, 1, 2, 3]


def test_data_sets_of_dicts():
    class Dicts(Toy):
        def __getitem__(self, i):
            return {"image": self.make(i), "label": i % 2}

    source = open_source(Dicts(5))
    assert source.labels.tolist() == [0, 1, 0, 1, 0] and value(source, 3) == 3 and source.captions is None
    assert "with_format(None)" in message(Dicts(2, make=lambda i: torch.zeros(3, 4, 4)))

    class Texts(Toy):
        def __getitem__(self, i):
            return {"text": "a", "id": i}

    assert "text, id, without an image" in message(Texts(2))


def test_a_dict_of_splits_and_a_stream():
    parts = {"train": Toy(3), "validation": Toy(2), "test": Toy(1)}
    source = open_source(parts)
    assert len(source) == 3 and source.splits == ("train", "val", "test")
    assert source.notes == ("Took the split 'train' of train, validation, test.",)
    assert len(open_source(parts, split="val")) == 2
    assert "one of its values" in message({"a": Toy(3)})
    assert "streaming" in message(picture(i) for i in range(3))


def test_split_names_in_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    for name, values in (("train-00000-of-00002", [1, 2]), ("train-00001-of-00002", [3]), ("test-00000-of-00001", [9])):
        hugging_face(tmp_path / "data" / f"{name}.parquet", values)
    source = open_source(tmp_path)
    assert [value(source, i) for i in range(3)] == [1, 2, 3] and len(source) == 3
    assert source.notes == (
        "Took train (2 files), not test (1); write ':test' or ':all' after the path to take others.",
    )
    assert len(open_source(f"{tmp_path}:test")) == 1 and len(open_source(f"{tmp_path}:all")) == 4


def test_torchvision_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    fill(tmp_path, "dog/1.png", "cat/2.png")
    source, folder = open_source(ImageFolder(tmp_path)), open_source(tmp_path)
    assert source.ids == folder.ids == ["cat/2.png", "dog/1.png"]
    assert source.classes == folder.classes
    assert source.labels.tolist() == folder.labels.tolist()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_arrays(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    for images in (pixels, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))):
        source = open_source((kind(images), [3, 1, 3, 1, 1]))
        np.testing.assert_array_equal(np.asarray(source.load(4)), pixels[4])
        assert source.labels.tolist() == [1, 0, 1, 0, 0]
    gray = open_source(kind(pixels[..., 0].copy()))
    np.testing.assert_array_equal(np.asarray(gray.load(2)), np.stack([pixels[2, ..., 0]] * 3, axis=-1))
    assert gray.labels is None


def test_array_ids_are_of_the_content_and_shape():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert open_source(pixels).ids[::-1] == open_source(pixels[::-1]).ids
    assert open_source(pixels).ids != open_source(pixels.reshape(2, 2, 8, 3)).ids


def test_arrays_that_do_not_fit():
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    assert "float32" in message(images.astype(np.float32))
    assert "(4, 8)" in message(images[..., 0, 0])
    assert "channels" in message(np.zeros((4, 8, 8, 5), dtype=np.uint8))
    assert "4 images and 3 labels" in message(images, [1, 2, 3])
    assert "empty" in message(images[:0])
    assert "int" in message(3)


# What all have in common


def test_subset_keeps_ids_and_classes(tmp_path):
    part = open_source(fill(tmp_path, "cat/1.png", "dog/2.png", "emu/3.png")).subset([2, 1])
    assert part.ids == ["emu/3.png", "dog/2.png"]
    assert part.labels.tolist() == [2, 1]
    assert part.classes == ["cat", "dog", "emu"]
    assert [value(part, i) for i in range(2)] == [2, 1]
    assert part.where(0) == "emu/3.png"


def test_labels_are_renumbered_for_the_classes_of_another_set(tmp_path):
    source = open_source(fill(tmp_path, "cat/1.png", "emu/2.png"))
    assert source.with_classes(["emu", "dog", "cat"]).labels.tolist() == [2, 0]
    with pytest.raises(UserError, match="'emu'"):
        source.with_classes(["cat"])
    with pytest.raises(UserError, match="Several classes are called 'emu'"):
        source.with_classes(["emu", "cat", "emu"])
    twice = open_source((np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 2])))
    twice = dataclasses.replace(twice, annotate=lambda: (np.array([0, 1, 2]), ["crane", "emu", "crane"]))
    assert twice.with_classes(["crane", "emu", "crane"]).labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="no labels"):
        open_source(fill(tmp_path / "flat", "1.png")).with_classes(["cat"])


def test_every_source_pickles(tmp_path):
    fill(tmp_path / "folder", "a/1.png", "b/2.png")
    sources = [
        open_source(tmp_path / "folder"),
        open_source(hugging_face(tmp_path / "t.parquet", [0, 1])),
        open_source(Toy(2)),
        open_source(np.stack([np.asarray(picture(k)) for k in range(2)]), ["x", "y"]),
        open_source("demo"),
    ]
    for source in [*sources, *(s.subset([1, 0]) for s in sources)]:
        source.load(1)  # what this opens must not be in the way
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(np.asarray(copy.load(0)), np.asarray(source.load(0)))
        assert copy.ids == source.ids
        assert copy.labels.tolist() == source.labels.tolist()


def test_canvases_of_good_images_and_names_of_bad_ones(tmp_path):
    fill(tmp_path, *(f"{k}.png" for k in range(6)))
    (tmp_path / "2.png").write_bytes(b"broken")
    picture(9, size=(1, 1)).save(tmp_path / "5.png")
    steps = []
    canvases, bad = load_canvases(open_source(tmp_path), 8, progress=lambda done, total: steps.append((done, total)))
    assert canvases.index.tolist() == [0, 1, 3, 4]
    assert canvases.pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert canvases.extent.tolist() == [[6, 8]] * 4
    assert canvases.pixels.shape == (4, 3, 6, 8)
    assert [name for name, _ in bad] == ["2.png", "5.png"]
    assert steps[-1] == (6, 6)


def test_addresses_are_shown_without_their_secrets():
    assert shown("https://user:password@host:80/a@b/x.parquet?sig=secret") == "https://host:80/a@b/x.parquet"
    assert shown("s3://bucket/{00..99}.tar") == "s3://bucket/{00..99}.tar"
    assert shown("/photos/what?.jpg") == "/photos/what?.jpg"
    assert shown("zip://a.parquet::https://me:secret@host/x.zip?sig=s") == "zip://a.parquet::https://host/x.zip"
    assert shown("abfs://images@account.dfs.core.windows.net/a") == "abfs://images@account.dfs.core.windows.net/a"
