"""Lists of images: written, opened as a subset of their source, and refused when they no longer fit it."""

import shutil

import numpy as np
import pytest
from PIL import Image

import manyviews as mv
from manyviews.data import open_source
from manyviews.data.lists import is_list, write_list

NAMES = ["a/0.png", "a/1.png", "b/é, 2.png", "b/3.png"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8)).save(folder / name)
    return folder


def listed(photos, path, kept=(True, False, True, True), data=""):
    ids = open_source(photos).ids
    columns = {"id": ids, "position": list(range(4)), "kept": list(kept), "similarity": [0.5, None, 0.25, None]}
    write_list(path, columns, str(photos) if data == "" else data, {"seed": 0})
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_list_opens_the_images_that_it_keeps(photos, tmp_path, ending):
    path = listed(photos, tmp_path / f"list{ending}")
    whole, source = open_source(photos), open_source(path)
    chosen = [0, 2, 3]
    assert is_list(path) and source.ids == [whole.ids[i] for i in chosen]
    assert source.classes == whole.classes and source.labels.tolist() == whole.labels[chosen].tolist()
    assert all((np.asarray(source.load(k)) == np.asarray(whole.load(i))).all() for k, i in enumerate(chosen))
    assert "3 of the 4 images that list" in source.notes[-1]
    with pytest.raises(mv.UserError, match="has no splits"):
        open_source(f"{path}:test")


def test_a_person_may_change_what_a_csv_keeps(photos, tmp_path):
    path = listed(photos, tmp_path / "list.csv")
    path.write_text(path.read_text().replace('"1","no"', '"1","yes"'))
    assert len(open_source(path)) == 4
    path.write_text(path.read_text().replace('"1","yes"', '"1","perhaps"'))
    with pytest.raises(mv.UserError, match="column kept has 'perhaps'"):
        open_source(path)


def test_images_are_found_by_name_when_the_source_has_changed(photos, tmp_path):
    path = listed(photos, tmp_path / "list.parquet")
    wanted = open_source(path).ids
    shutil.copy(photos / "a/0.png", photos / "a/00.png")  # every position but the first moves
    (photos / "a/1.png").unlink()  # was not kept
    source = open_source(path)
    assert source.ids == wanted and "1 images are not in list.parquet" in source.notes[-1]
    (photos / "b/3.png").unlink()
    with pytest.raises(mv.UserError, match=r"1 of 3 images .* b/3.png. Put them back, or run `manyviews curate` again"):
        open_source(path)


def test_a_list_that_cannot_be_used_says_what_to_do(photos, tmp_path):
    path = listed(photos, tmp_path / "list.parquet")
    photos.rename(tmp_path / "moved")
    with pytest.raises(mv.UserError, match=r"cannot be opened: There is no 'photos'.*Put them back"):
        open_source(path)
    (tmp_path / "moved").rename(photos)
    with pytest.raises(mv.UserError, match="keeps none of its 4 images"):
        open_source(listed(photos, tmp_path / "none.csv", kept=(False,) * 4))
    with pytest.raises(mv.UserError, match="were in memory"):
        open_source(listed(photos, tmp_path / "memory.csv", data=None))
