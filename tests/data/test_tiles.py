"""Tiles put together are the scene."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

import manyviews as mv
from manyviews.data import Reading, open_source, read_as, tile
from manyviews.data.decode import examine
from manyviews.data.tiles import open_scene
from manyviews.errors import UserError

SIDE, OVERLAP = 64, 8
RNG = np.random.default_rng(0)
COLOR = RNG.integers(1, 255, (150, 230, 3), dtype=np.uint8)
BANDS = RNG.random((150, 230, 5), dtype=np.float32)
TAG = [(42113, "s", 0, "-9999", True)]
for scene in (COLOR, BANDS):
    scene[:SIDE, :SIDE] = 7 if scene is COLOR else -9999  # one tile of nothing

SCENES = {
    "png": lambda f: Image.fromarray(COLOR).save(f"{f}.png"),
    "tiles": lambda f: tifffile.imwrite(f"{f}.tif", COLOR, photometric="rgb", tile=(32, 48), compression="deflate"),
    "strips": lambda f: tifffile.imwrite(f"{f}.tif", COLOR, photometric="rgb", rowsperstrip=7, compression="lzw"),
    "mapped": lambda f: tifffile.imwrite(f"{f}.tif", COLOR, photometric="rgb", byteorder=">"),
    "planes": lambda f: tifffile.imwrite(
        f"{f}.tif",
        BANDS.transpose(2, 0, 1).copy(),
        photometric="minisblack",
        planarconfig="separate",
        tile=(32, 32),
        compression="zstd",
        extratags=TAG,
    ),
    "pages": lambda f: tifffile.imwrite(
        f"{f}.tif", BANDS.transpose(2, 0, 1).copy(), ome=True, metadata={"axes": "CYX"}
    ),
}


@pytest.mark.parametrize("kind", SCENES)
def test_tiles_put_together_are_the_scene(kind, tmp_path):
    (tmp_path / "scenes" / "north").mkdir(parents=True)
    SCENES[kind](tmp_path / "scenes" / "north" / "a")
    scene = BANDS if kind in ("planes", "pages") else COLOR
    source = read_as(open_source(tmp_path / "scenes"), Reading(scene.shape[2]))
    (cut,) = tile(source, tmp_path / "tiles", SIDE, OVERLAP)
    assert (cut.tiles, cut.empty, cut.reason) == (3 * 4 - 1, 1, "")

    found = open_source(tmp_path / "tiles")
    whole, seen = np.zeros_like(scene), np.zeros(scene.shape[:2], bool)
    for i, name in enumerate(found.ids):
        assert name.startswith("north/a.")  # the folder stays the label
        y, x = (int(part[1:]) for part in name.rpartition(".")[0].split("_")[-2:])
        values = examine(found.read(i), Reading(scene.shape[2])).values
        assert values.shape[:2] == (SIDE, SIDE)  # those at the edge are shifted inwards
        whole[y : y + SIDE, x : x + SIDE] = values
        seen[y : y + SIDE, x : x + SIDE] = True
    np.testing.assert_array_equal(whole[seen], scene[seen])
    assert not seen[: SIDE - OVERLAP, : SIDE - OVERLAP].any()
    assert seen.sum() == seen.size - (SIDE - OVERLAP) ** 2


def test_a_slide_is_cut_at_its_largest_level(tmp_path):
    """A pyramid in SubIFDs, as OME-TIFF has it, with tiles compressed as JPEG."""
    (tmp_path / "scenes").mkdir()
    coarse = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((256, 192), Image.Resampling.BICUBIC))
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 95}}
    with tifffile.TiffWriter(tmp_path / "scenes" / "s.svs") as file:
        file.write(smooth, subifds=1, **options)
        file.write(smooth[::2, ::2], subfiletype=1, **options)
    (cut,) = tile(open_source(tmp_path / "scenes"), tmp_path / "tiles", 64)
    assert cut.tiles == 12
    found = open_source(tmp_path / "tiles")
    assert all(name.endswith(".jpg") for name in found.ids)
    part = np.asarray(found.load(found.ids.index("s.svs_y000064_x000128.jpg"))).astype(int)
    assert np.abs(part - smooth[64:128, 128:192]).mean() < 6


@pytest.mark.parametrize("bits", [12, 16])
def test_values_keep_their_brightness(bits, tmp_path):
    """A tile cannot say that only 12 of its 16 bits are used, so they are spread."""
    (tmp_path / "scenes").mkdir()
    values = RNG.integers(0, 2**bits, (80, 90)).astype(">u2")
    (tmp_path / "scenes" / "x.pgm").write_bytes(b"P5 90 80 %d\n" % (2**bits - 1) + values.tobytes())
    tile(open_source(tmp_path / "scenes"), tmp_path / "tiles", 64)
    found = read_as(open_source(tmp_path / "tiles"), Reading(1))
    got = np.asarray(found.load(found.ids.index("x.pgm_y000016_x000026.png"))).astype(int)
    np.testing.assert_allclose(got, values[16:, 26:] / (2**bits - 1) * 255, atol=0.51)


def test_cutting_continues_and_names_what_is_left_out(tmp_path, monkeypatch):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for name in "ab":
        Image.fromarray(COLOR).save(scenes / f"{name}.png")
    Image.fromarray(COLOR[-20:, -30:]).save(scenes / "small.png")
    (scenes / "torn.png").write_bytes((scenes / "a.png").read_bytes()[:5000])
    source = open_source(scenes)

    def interrupted(raw, *rest):
        if raw.name == "b.png":
            raise KeyboardInterrupt
        return open_scene(raw, *rest)

    with monkeypatch.context() as broken:
        broken.setattr("manyviews.data.tiles.open_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tile(source, tmp_path / "tiles", SIDE, OVERLAP)
    with pytest.raises(UserError, match="is not finished"):
        open_source(tmp_path / "tiles")
    first = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "tiles").glob("a.*")}
    cuts = {cut.scene: cut for cut in tile(source, tmp_path / "tiles", SIDE, OVERLAP)}
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "tiles").glob("a.*")} == first
    assert cuts["b.png"].tiles == 11
    assert cuts["small.png"].small and cuts["small.png"].tiles == 1
    assert "truncated" in cuts["torn.png"].reason
    assert json.loads((tmp_path / "tiles" / "tiles.json").read_text())["tile"] == SIDE
    with pytest.raises(UserError, match="other images or sizes"):
        tile(source, tmp_path / "tiles", SIDE, 0)


def test_a_scene_over_the_limit_is_left_out_with_the_cure(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="over 1,000 pixels"):
        mv.prepare(tmp_path / "a.png", tmp_path / "tiles", tile=64, max_pixels=1000)
    assert mv.prepare(tmp_path / "a.png", tmp_path / "more", tile=64).joinpath("tiles.json").exists()


def test_tiles_stay_in_their_folder(tmp_path):
    """Whatever an archive calls its members; and of scenes from anywhere, none is written beside the scene."""
    file, scene = io.BytesIO(), Image.fromarray(COLOR)
    scene.save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        for name in (str(tmp_path / "evil.png"), "../up.png", "fine/a.png"):
            archive.writestr(name, file.getvalue())
    cuts = tile(open_source(tmp_path / "scenes.zip"), tmp_path / "one" / "tiles", SIDE)
    assert {bool(cut.tiles) for cut in cuts} == {False, True}
    assert all("leads out of the folder" in cut.reason for cut in cuts if not cut.tiles)
    assert {path.name for path in tmp_path.iterdir()} == {"scenes.zip", "one"}
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["tiles"]
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        scene.save(tmp_path / name / "a.png")
    tile(
        open_source([tmp_path / "north" / "a.png", tmp_path / "south" / "a.png"]), tmp_path / "one" / ".." / "two", SIDE
    )
    assert [len(list((tmp_path / name).iterdir())) for name in ("north", "south")] == [1, 1]
    assert sorted({tile.split("/")[0] for tile in open_source(tmp_path / "two").ids}) == ["north", "south"]
