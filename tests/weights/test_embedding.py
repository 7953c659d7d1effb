"""Features of images that a program holds: an array back, a row for each image, nothing written."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.weights import Pretrained

MEAN, STD, SIZE = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), 32
SEEN = transforms.Compose(
    [
        transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder("resnet18", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1)).eval()
    return Pretrained(encoder, MEAN, STD, SIZE, "small")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(weights: Pretrained, pixels: np.ndarray) -> np.ndarray:
    """torchvision's transform and the encoder."""
    with torch.no_grad():
        return weights.encoder(torch.stack([SEEN(Image.fromarray(p)) for p in pixels])).numpy()


@pytest.fixture(scope="module")
def files(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    names = ["b.png", "a.png", "c.png"]  # in another order than a folder has
    for name, p in zip(names, pixels, strict=True):
        Image.fromarray(p).save(folder / name)
    return [folder / name for name in names]


def test_everything_that_is_an_image_has_the_same_features(weights, pixels, expected, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    forms = {
        "array": pixels,
        "floats": pixels.astype(np.float64) / 255,
        "tensor": first,
        "float tensor": first / 255,
        "list of arrays": list(pixels),
        "list of tensors": list(first.float() / 255),
        "PIL images": [Image.fromarray(p) for p in pixels],
        "paths": [str(f) for f in files],
        "array of paths": np.array([str(f) for f in files]),
        "objects": np.array([str(f) for f in files], object)[:, None],
        "mixed": [files[0], Image.fromarray(pixels[1]), pixels[2]],
        "bytes": [f.read_bytes() for f in files],
        "folder, by name": files[0].parent,
    }
    for form, images in forms.items():
        found = weights.embed(images)
        assert found.dtype == np.float32 and found.shape == expected.shape, form
        order = [1, 0, 2] if form.startswith("folder") else [0, 1, 2]
        np.testing.assert_allclose(found, expected[order], rtol=1e-4, atol=1e-5, err_msg=form)
    for form, image in {
        "array": pixels[0],
        "floats": pixels[0] / np.float32(255),
        "tensor": first[0],
        "PIL image": Image.fromarray(pixels[0]),
        "path": str(files[0]),
    }.items():
        np.testing.assert_allclose(weights.embed(image), expected[:1], rtol=1e-4, atol=1e-5, err_msg=form)
    assert not list(tmp_path.iterdir())


def test_gray_and_transparent_images_are_read_as_their_files(weights, pixels, tmp_path: Path):
    gray, clear = pixels[..., 0], np.concatenate([pixels, pixels[..., :1]], 3)
    for i, image in enumerate((gray[0], clear[0])):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    exact = weights.embed(tmp_path)
    for images in ([gray[0], clear[0]], [gray[0][..., None], torch.from_numpy(clear[0]).permute(2, 0, 1)]):
        np.testing.assert_allclose(weights.embed(images), exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights.embed(np.stack([gray[0]] * 2))[1], exact[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "list of images is empty"),
        (np.zeros((0, 32, 32, 3), np.uint8), "holds no images"),
        (np.zeros((3, 32, 32), np.uint8), "channels at the other end"),
        (np.zeros((2, 32, 32, 5), np.uint8), "with 1 or 3 or 4 channels"),
        (np.zeros((2, 2, 32, 32, 3), np.uint8), "give n h w c, or one image"),
        (np.full((2, 32, 32, 3), 3.0), "floats from 3 to 3"),
        (np.full((2, 32, 32, 3), np.nan), "floats from nan to nan"),
        (-torch.ones(2, 3, 32, 32), "leave out your own normalization"),
        (np.zeros((2, 32, 32, 3), np.int64), "is of int64"),
        ([np.zeros((32, 32, 3), np.uint8), 7], r"images\[1\] is of type int"),
        ([np.zeros((2, 32, 32, 3), np.uint8)], "which is 2 images"),
        (["none.jpg", "no.jpg"], "2 of 2 paths are no files: none.jpg, no.jpg"),
        ("none/", "There is no 'none'"),
    ],
)
def test_what_is_no_image_is_refused_before_the_work(weights, images, says: str):
    with pytest.raises(mv.UserError, match=says):
        weights.embed(images)


def test_an_unreadable_image_is_named_or_has_a_row_of_nan(weights, files, expected, tmp_path: Path, capfd):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    paths = [files[0], tmp_path / "bad.png", files[1]]
    with pytest.raises(mv.UserError, match=r"1 of 3 images cannot be read: \S*bad\.png .*unreadable=\"nan\""):
        weights.embed(paths)
    found = weights.embed(paths, unreadable="nan")
    assert np.isnan(found[1]).all() and "1 of 3 images cannot be read" in capfd.readouterr().err
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 1]], rtol=1e-4, atol=1e-5)


def test_a_list_of_paths_is_written_under_its_names(weights, files, expected, tmp_path: Path):
    mv.embed(weights, files, tmp_path / "f.npz", labels=["x", "y", "x"])
    written = np.load(tmp_path / "f.npz")
    assert written["id"].tolist() == [str(f) for f in files] and written["label"].tolist() == ["x", "y", "x"]
    np.testing.assert_allclose(written["embedding"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(mv.UserError, match="3 paths and 1 labels"):
        mv.embed(weights, files, tmp_path / "g.npz", labels=["x"])


# -- scikit-learn ------------------------------------------------------------------------------------------------


def test_a_pipeline_learns_classes_from_images(weights, tmp_path: Path):
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    dark, light = (rng.integers(low, low + 100, (24, 32, 32, 3), dtype=np.uint8) for low in (0, 150))
    images = np.where(y[:, None, None, None], light, dark)
    pipeline = make_pipeline(mv.sklearn.Embedder(weights), LogisticRegression())
    assert cross_val_score(pipeline, images, y, cv=3).min() == 1
    again = pickle.loads(pickle.dumps(clone(pipeline).fit(images[:12], y[:12])))
    assert (again.predict(images[12:]) == y[12:]).all()
    names = again[0].get_feature_names_out()
    assert list(names) == [f"embedder{i}" for i in range(weights.encoder.embed_dim)]


def test_scikit_learns_checks_that_apply_to_images(weights, pixels, expected):
    from sklearn.utils import estimator_checks as checks

    made = mv.sklearn.Embedder(weights)
    for check in (
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_no_attributes_set_in_init,
    ):
        check("Embedder", made)
    np.testing.assert_allclose(made.transform(pixels), expected, rtol=1e-4, atol=1e-5)  # without fit
    assert made.get_params() == {"weights": weights} and made.fit(pixels) is made
    frame = made.set_output(transform="default").fit_transform(pixels)
    assert isinstance(frame, np.ndarray)
