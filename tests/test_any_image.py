"""From what people have on their disks to features in another program: pretrain, embed, export, the same features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import manyviews as mv
from manyviews.data import open_source, read_as
from manyviews.errors import UserError
from manyviews.evaluation import test_transform as shown  # pytest would run it under its own name

tifffile = pytest.importorskip("tifffile")
pydicom = pytest.importorskip("pydicom")
pillow_heif = pytest.importorskip("pillow_heif")
onnxruntime = pytest.importorskip("onnxruntime")

COUNT = 16


def draw(i: int, height: int = 40, width: int = 56, bands: int = 1) -> np.ndarray:
    """A smooth picture, float64 `h w bands` in [0, 1]."""
    rng = np.random.default_rng(i)
    coarse = [Image.fromarray(rng.random((4, 4), dtype=np.float32)) for _ in range(bands)]
    planes = [np.asarray(x.resize((width, height), Image.Resampling.BICUBIC)) for x in coarse]
    return np.stack(planes, axis=-1).clip(0, 1).astype(np.float64)


def bands(folder: Path) -> None:
    """Reflectances of 13 bands as float32, with pixels of no data."""
    for i in range(COUNT):
        values = (draw(i, bands=13) * 0.4).astype(np.float32)
        values[:3] = -9999
        tag = (42113, "s", 0, "-9999", True)
        tifffile.imwrite(folder / f"{i}.tif", values, photometric="minisblack", planarconfig="contig", extratags=[tag])


def twelve_bits(folder: Path) -> None:
    for i in range(COUNT):
        Image.fromarray((draw(i)[..., 0] * 4095).astype(np.uint16)).save(folder / f"{i}.png")


def dicom(folder: Path) -> None:
    """A series of computed tomography, in Hounsfield units after rescaling."""
    for i in range(COUNT):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
        one.Rows, one.Columns = 40, 56
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (draw(i)[..., 0] * 4095).astype("<u2").tobytes()
        one["PixelData"].VR = "OW"
        one.save_as(folder / f"slice{i}", enforce_file_format=True)


def panorama(folder: Path) -> None:
    """Tiles of a panorama, made by `prepare`."""
    scenes = folder.parent / "scenes"
    scenes.mkdir()
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (13, 20, 3), dtype=np.uint8)).resize((340, 220))
    tifffile.imwrite(scenes / "p.tif", np.asarray(pixels), tile=(64, 64), photometric="rgb", compression="deflate")
    mv.prepare(scenes, folder, tile=64, overlap=8)


def phone(folder: Path) -> None:
    """HEIC and JPEG, some upright by EXIF alone."""
    for i in range(COUNT):
        image = Image.fromarray((draw(i, bands=3) * 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        if i % 2:
            image.save(folder / f"{i}.jpg", quality=95, exif=exif)
        else:
            pillow_heif.from_pillow(image).save(folder / f"{i}.heic", quality=90)


@pytest.mark.parametrize(
    ("make", "settings", "count", "said", "exported"),
    [
        (bands, {"data.channels": 13}, 13, "hold no data", True),
        # An export takes long; tests/weights exports other numbers of channels.
        (twelve_bits, {"data.channels": 1, "data.range": "0,4095"}, 1, "none of the values", False),
        (dicom, {"data.channels": 1}, 1, "(measured)", False),
        (panorama, {}, 3, "", False),
        (phone, {}, 3, "", False),
    ],
    ids=["13 bands", "12 bits", "DICOM", "panorama", "HEIC"],
)
def test_any_image_reaches_onnxruntime(
    make: Callable[[Path], None], settings: dict, count: int, said: str, exported: bool, tmp_path: Path, capfd
):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    few = {"data.batch_size": 8, "data.holdout": 0.0, "monitor.epochs": 0, **settings}
    run = mv.pretrain(folder, "simclr_tiny", epochs=1, settings=few, out=tmp_path / "run")
    assert said in capfd.readouterr().err

    reading = run.recipe.data.reading
    assert reading.count == count == len(run.recipe.data.mean)
    assert mv.load(run.folder).reading == reading  # so that evaluation and export see the same
    table = pq.read_table(run.embed(folder, tmp_path / "features.parquet"))
    features = np.stack(table["embedding"].to_numpy())
    assert np.isfinite(features).all()
    assert features.std(0).max() > 0  # not all of them the same

    if not exported:
        return
    graph = onnxruntime.InferenceSession(str(run.export("onnx", tmp_path / "encoder.onnx")))
    source = read_as(open_source(folder), reading)
    size = run.recipe.test_size
    pixels = np.stack([shown(source.load(i), size) for i in range(len(source))]).astype(np.float32) / 255
    assert pixels.shape[1:] == (count, size, size)
    assert pixels.std() > 0.05  # neither black nor white
    (got,) = graph.run(None, {graph.get_inputs()[0].name: pixels})
    order = [source.ids.index(name) for name in table["id"].to_pylist()]
    np.testing.assert_allclose(got[order], features, atol=2e-4, rtol=1e-3)


def test_a_run_measures_once_and_others_follow(tmp_path: Path, capfd):
    """The test images have other values: their own range would look the same, the run's range does not."""
    for name, factor in (("train", 1.0), ("test", 0.5)):
        (tmp_path / name).mkdir()
        for i in range(COUNT):
            tifffile.imwrite(tmp_path / name / f"{i}.tif", (draw(i)[..., 0] * factor).astype(np.float32))
    few = {"data.batch_size": 8, "data.holdout": 0.0, "monitor.epochs": 0, "data.channels": 1}
    run = mv.pretrain(tmp_path / "train", "simclr_tiny", epochs=1, settings=few, out=tmp_path / "run")
    low, high = run.recipe.data.range
    assert (low, high) == pytest.approx((0, 1), abs=0.02)
    capfd.readouterr()
    mv.embed(run.folder, tmp_path / "test", tmp_path / "f.parquet")
    assert "(given)" in capfd.readouterr().err  # not measured again
    source = read_as(open_source(tmp_path / "test"), mv.load(run.folder).reading)
    expected = (np.clip((draw(0)[..., 0] * 0.5 - low) / (high - low), 0, 1) * 255).mean()
    assert np.asarray(source.load(source.ids.index("0.tif"))).mean() == pytest.approx(expected, abs=0.5)
    with pytest.raises(UserError, match="'corruptions' changes colors, and images of 1 channels have none"):
        mv.evaluate(run.folder, tmp_path / "train", protocols=["corruptions"])
