"""Which folders are classes while training, and which are how people keep photographs."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from manyviews.data import open_source
from manyviews.data.layout import doubt
from manyviews.engine.build import cautions, with_fitting_batch
from manyviews.engine.monitor import prepare, uses_classes
from manyviews.recipes import get
from manyviews.settings import override

CLASSES = (
    "cat dog horse",
    "0 1 2 3 4 5 6 7 8 9",
    "1 2 10 102",
    "n02086240 n02087394 n02088364",
    "NORMAL PNEUMONIA",
    "good other",
    "001.Black_footed_Albatross 002.Laysan_Albatross",
    "001_ak47 101_cats",
    "Audi_S4_Sedan_2012 BMW_M3_Coupe_2012 Ford_F-150_2007",
    "737-400 A320 DH-82",
    "Apple___Black_rot Apple___healthy Tomato___mold",
    "00000 00001 00002",
    "march_hare mayfly junebug",
    "100 200 500",
    "beach forest misc",
)
KEPT = (
    "misc,Camera Roll,2019",
    "2021-05-03,2021-05-04,2021-06-01",
    "20210503,20210611",
    "2019 Italy,2020_garden,IMG",
    "100CANON,101CANON,102_PANA",
    "DCIM,Screenshots,WhatsApp Images",
    "January,February,May 2021",
    "New folder,New folder (2),Untitled",
    "wedding,Downloads,2018,unsorted,Photos",
    "batch_1,batch_2,batch_3",
    "03.05.2021,04.05.2021",
)


@pytest.mark.parametrize("names", CLASSES)
def test_names_of_classes_are_believed(names):
    assert doubt(dict.fromkeys(names.split(), 50)) == ""


@pytest.mark.parametrize("names", KEPT)
def test_names_of_places_are_not(names):
    assert "named as people keep photographs" in doubt(dict.fromkeys(names.split(","), 50))


def test_counts_speak_too():
    assert "98 % of its images are in one folder (all)" in doubt({"all": 980, "cat": 10, "dog": 10})
    assert doubt({"healthy": 90, "ill": 10}) == ""
    assert "hold one or two images" in doubt({f"person {k}": 1 + k % 2 for k in range(300)})
    assert doubt({f"letter {k}": 20 for k in range(300)}) == "" and doubt({"2019": 50}) == "" and doubt({}) == ""


def fill(folder, names, count=20):
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([k, i]).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_folders_are_measured_with_when_plausible_or_asked(tmp_path):
    fill(tmp_path / "kept", ("misc", "Camera Roll", "2019"))
    fill(tmp_path / "known", ("oak", "ash", "elm"))
    with zipfile.ZipFile(tmp_path / "kept.zip", "w") as archive:
        for path in sorted((tmp_path / "kept").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "kept"))
    recipe = override(get("simclr_tiny"), "data.holdout", 0.4)
    asked, never = (override(recipe, "monitor.classes", word) for word in ("yes", "no"))
    for name in ("kept", "kept.zip"):
        kept = open_source(tmp_path / name)
        assert kept.labels is not None  # for those who ask for them
        train, held = kept.subset(range(0, 60, 2)), kept.subset(range(1, 60, 2))
        assert prepare(train, held, recipe, 16).labels is None and prepare(train, held, asked, 16).labels is not None
        (_, text) = cautions(recipe, kept)
        assert "Camera Roll" in text and "not taken as classes" in text and "monitor.classes=yes" in text
    known = open_source(tmp_path / "known")
    assert uses_classes(known, recipe) and not uses_classes(known, never)
    assert "its 3 folders (ash, elm, oak) are classes" in cautions(recipe, known)[1]
    listed = tmp_path / "labels.csv"
    listed.write_text("path,label\n" + "".join(f"misc/{i}.png,{i % 2}\n" for i in range(20)))
    assert uses_classes(open_source(tmp_path / "kept", listed), never)  # labels that were given are no folders


def test_twenty_photographs_train_in_a_batch_that_fits(tmp_path):
    fill(tmp_path / "few", ("a", "b"), 10)
    recipe = override(get("simclr_tiny"), "data.batch_size", 256)
    few = open_source(tmp_path / "few")
    assert with_fitting_batch(recipe, few).data.batch_size == 16
    assert with_fitting_batch(override(recipe, "step.accumulate", 3), few).data.batch_size == 12
    assert with_fitting_batch(override(recipe, "data.batch_size", 4), few).data.batch_size == 4
    assert "20 images" in cautions(recipe, few)[0] and "--init FILE" in cautions(recipe, few)[0]
