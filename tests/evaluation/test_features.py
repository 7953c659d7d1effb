import dataclasses
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from manyviews import distributed, machine
from manyviews.backbones import Encoder
from manyviews.data import BadImage, Source, open_source
from manyviews.errors import UserError
from manyviews.evaluation import Pixels, evaluate, features, linear
from manyviews.evaluation.features import encode, extract, extract_all, frozen, weights_digest
from manyviews.verbs.embed import embed
from manyviews.weights import Pretrained
from tests.ranks import on_ranks

LOOK = {"test_size": 12, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Dropout(), nn.Linear(500, 7))


@pytest.mark.parametrize("shape", [(300, 200), (201, 333), (224, 224), (100, 37)])
@pytest.mark.parametrize(("size", "short"), [(224, 256), (96, 109), (64, 64), (32, 32)])
def test_an_image_is_shown_as_torchvision_would(shape, size, short):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    bicubic = v2.InterpolationMode.BICUBIC
    wanted = v2.Compose([v2.Resize(short, bicubic), v2.CenterCrop(size), v2.PILToTensor()])(image)
    assert np.array_equal(features.test_transform(image, size), wanted.numpy())


def test_a_small_square_image_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(features.test_transform(Image.fromarray(image), 32), image.transpose(2, 0, 1))


def test_features_are_those_of_a_frozen_encoder_one_image_at_a_time(net, pictures):
    source = pictures(11)
    net.train()
    net[1].eval()  # a part that is frozen already stays so
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = extract(net, source, batch_size=4, **LOOK)
    assert [m.training for m in net.children()] == [True, False, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    net.eval()
    normal = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(LOOK["mean"], LOOK["std"])]
    )
    with torch.no_grad():
        wanted = torch.cat([net(normal(source.load(i))[None]) for i in range(11)])
    torch.testing.assert_close(found.x, wanted, rtol=1e-5, atol=1e-5)
    assert found.x.dtype == torch.float32
    assert found.labels.tolist() == source.labels.tolist()
    assert found.ids == source.ids
    assert found.bad == []
    found.x.requires_grad_()  # an inference tensor would refuse


def test_images_in_memory_give_the_same_features(net, pictures):
    source = pictures(9)
    pixels = torch.cat([p for p, _, _ in features.test_images(source, 12, batch_size=4)])
    torch.testing.assert_close(
        encode(net, pixels, mean=LOOK["mean"], std=LOOK["std"], batch_size=5), extract(net, source, **LOOK).x
    )


def test_evaluation_is_exact_float32_whatever_surrounds_it(net, pictures):
    source = pictures(5)
    wanted = extract(net, source, **LOOK).x
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), frozen(net):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(extract(net, source, **LOOK).x, wanted)
        assert torch.get_float32_matmul_precision() == "medium"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # the other way to say it
        extract(net, source, **LOOK)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "tf32"  # the two ways disagree now
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with frozen(net):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.conv.fp32_precision = "tf32"


def test_an_encoder_gets_its_modes_back_after_an_error(pictures):
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("out of memory")

    net = Broken(2, 2).train()
    with pytest.raises(RuntimeError):
        extract(net, pictures(5), **LOOK)
    assert net.training


def encoded(seed):
    image = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(root, count, bad=()):
    for i in range(count):
        name = root / ("cat", "dog")[i % 2] / f"{i:02}.png"
        name.parent.mkdir(exist_ok=True, parents=True)
        name.write_bytes(b"not an image" if i in bad else encoded(i))
    return open_source(root)


def test_bad_images_are_counted_and_skipped_and_labels_stay_with_their_images(tmp_path):
    source = folder_of(tmp_path / "data", 10, bad=(0, 5, 6))
    found = extract(Pixels(), source, batch_size=3, **LOOK)
    assert len(found) == len(found.labels) == len(found.ids) == 7
    assert sorted(where.rsplit("/", 1)[-1] for where, _ in found.bad) == ["00.png", "05.png", "06.png"]
    for name, label in zip(found.ids, found.labels.tolist(), strict=True):
        assert name.startswith(source.classes[label])
    assert [source.ids[i] for i in found.index.tolist()] == found.ids


def test_a_batch_of_bad_images_only_is_no_problem(tmp_path):
    source = folder_of(tmp_path / "data", 8, bad=(0, 2, 4))  # the three first cats
    assert len(extract(Pixels(), source, batch_size=3, **LOOK)) == 5


def test_no_good_image_is_an_error(tmp_path):
    with pytest.raises(UserError, match="None of the 4 images of data could be read"):
        extract(Pixels(), folder_of(tmp_path / "data", 4, bad=range(4)), **LOOK)


def test_raw_pixels_are_flattened_or_averaged_down_to_32():
    small = torch.rand(2, 3, 24, 24)
    assert torch.equal(Pixels()(small), small.flatten(1))
    large = torch.rand(2, 3, 64, 64)
    wanted = v2.functional.resize(large, [32, 32], antialias=True).flatten(1)
    torch.testing.assert_close(Pixels()(large), wanted)


class Counting(nn.Module):
    """Counts the images it sees, with one weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.scale * x.flatten(1)[:, :6]


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.labels, b.labels) and a.ids == b.ids and a.bad == b.bad


def test_the_cache_is_found_by_weights_images_and_transform(tmp_path):
    net, data, cache = Counting(), tmp_path / "data", tmp_path / "cache"
    first = extract(net, folder_of(data, 10, bad=(3,)), cache=cache, **LOOK)
    assert net.seen == 9
    again = extract(net, open_source(data), cache=cache, **LOOK)
    assert net.seen == 9
    assert same(first, again)

    with torch.no_grad():
        net.scale += 1e-6
    assert not torch.equal(extract(net, open_source(data), cache=cache, **LOOK).x, first.x)
    assert net.seen == 18
    extract(net, open_source(data), cache=cache, **LOOK | {"std": (0.2, 0.25, 0.31)})
    assert net.seen == 27
    extract(net, open_source(data), cache=cache, **LOOK | {"test_size": 13})
    assert net.seen == 36
    folder_of(data, 11, bad=(3,))  # one more image
    extract(net, open_source(data), cache=cache, **LOOK)
    assert net.seen == 46
    (data / "cat" / "00.png").write_bytes(encoded(99))  # another image under the same name
    extract(net, open_source(data), cache=cache, **LOOK)
    assert net.seen == 56


def test_encoders_of_other_numbers_of_heads_are_not_each_other():
    """Which have the same weights, and are printed alike."""
    one, other = (
        Encoder("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=n).eval() for n in (2, 4)
    )
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) != weights_digest(other)
    other = Encoder.from_spec(one.spec)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)


def test_an_image_that_was_repaired_is_read_again(tmp_path):
    """Of 40 images, of which a sample alone is looked at to know the others by."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    net = Counting()
    assert len(extract(net, folder_of(data, 40, bad=(3,)), cache=cache, **LOOK)) == 39
    for path in sorted(data.rglob("*03*")):
        path.write_bytes(encoded(7))
    assert len(extract(net, open_source(data), cache=cache, **LOOK)) == 40


def test_rows_are_of_the_same_images_for_all_encoders(tmp_path, pictures, monkeypatch):
    """A disk that fails for a moment, between two evaluations that share their cache."""
    source, old, new = pictures(30), Counting(), Counting()
    with torch.no_grad():
        new.scale += 1

    def flaky(i):
        if i == 17:
            raise BadImage("a moment's trouble")
        return source.read(i)

    assert len(extract(old, dataclasses.replace(source, read=flaky), cache=tmp_path, **LOOK)) == 29
    both = extract_all({"old": old, "new": new}, source, cache=tmp_path, **LOOK)
    assert torch.equal(both["old"].index, both["new"].index)
    assert len(both["old"]) == 30


def test_a_new_encoder_does_not_make_an_old_one_compute_again(tmp_path, pictures):
    old, new = Counting(), Counting()
    with torch.no_grad():
        new.scale += 1
    extract(old, pictures(6), cache=tmp_path, **LOOK)
    both = extract_all({"old": old, "new": new}, pictures(6), cache=tmp_path, **LOOK)
    assert (old.seen, new.seen) == (6, 6)
    assert torch.equal(2 * both["old"].x, both["new"].x)


def test_a_damaged_cache_is_made_again(tmp_path, pictures):
    net = Counting()
    first = extract(net, pictures(6), cache=tmp_path, **LOOK)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert same(extract(net, pictures(6), cache=tmp_path, **LOOK), first)
    assert net.seen == 12
    extract(net, pictures(6), cache=tmp_path, **LOOK)
    assert net.seen == 12


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, pictures):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be cached"):
        found = extract(Counting(), pictures(6), cache=tmp_path / "file" / "cache", **LOOK)
    assert len(found) == 6


def test_progress_ends_at_the_total(pictures):
    calls = []
    extract(Pixels(), pictures(10), batch_size=4, progress=lambda done, total: calls.append((done, total)), **LOOK)
    assert calls == [(4, 10), (8, 10), (10, 10)]


# -- several processes, and images that are decoded once ---------------------------------------------------------------


def _noise(count: int):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    pixels[1::2] //= 2
    return pixels, np.arange(count) % 2


def _damaged(count: int):
    """Noise of which the ninth image cannot be read."""
    source = open_source(_noise(count))

    def read(i: int):
        if i == 8:
            raise BadImage("torn")
        return source.read(i)

    return dataclasses.replace(source, read=read)


def _shared(folder: Path):
    """What each process gets: features, through a cache too; a report; and a file."""
    torch.manual_seed(3)
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval()
    source, look = _damaged(30), {**LOOK, "batch_size": 4, "cache": folder}
    found = [extract_all({"a": encoder}, source, shared=True, **look)]
    found.append(extract_all({"a": encoder, "b": Pixels()}, source, shared=True, **look))
    few = extract_all({"a": encoder}, source.subset(range(3)), shared=True, **look)  # the second process has no batch
    report = evaluate(encoder, open_source(_noise(40)), protocols=["knn", "copy_detection"], **LOOK)
    weights = Pretrained(encoder, LOOK["mean"], LOOK["std"], 12, "net")
    embed(weights, _noise(20), folder / f"{distributed.world_size()}.npy")
    return found, few, report


def test_two_processes_find_the_features_and_the_report_of_one(tmp_path: Path):
    one, few, report = _shared(tmp_path / "one")
    (first, first_few, told), (second, second_few, same) = on_ranks(_shared, tmp_path / "two")
    assert second == [{}, {}] and second_few == {}
    for mine, theirs in zip([*one, few], [*first, first_few], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name].x, theirs[name].x)
            assert (mine[name].ids, mine[name].bad) == (theirs[name].ids, theirs[name].bad)
            assert mine[name].index.tolist() == theirs[name].index.tolist()
    assert len(one[0]["a"].bad) == 1
    assert told.to_dict() | {"seconds": 0} == same.to_dict() | {"seconds": 0} == report.to_dict() | {"seconds": 0}
    assert np.array_equal(np.load(tmp_path / "two" / "2.npy"), np.load(tmp_path / "one" / "1.npy"))


@pytest.mark.parametrize(("room", "times"), [(2**30, 1), (0, 5)])
def test_an_evaluation_decodes_each_image_once(encoder, room: int, times: int, monkeypatch):
    """For the network, its two baselines, and every protocol that sees images as the first pass does."""
    source, decoded = open_source(_noise(60)), Counter()

    def counted(source, i: int):
        decoded[source.where(i)] += 1
        return load(source, i)

    load = Source.load
    monkeypatch.setattr(Source, "load", counted)
    monkeypatch.setattr(linear, "_STEPS", 5)
    monkeypatch.setattr(machine, "free_memory", lambda: room * 4)
    names = ["knn", "linear", "rotation", "linear_grid", "layers", "copy_detection"]
    report = evaluate(encoder, source, protocols=names, **LOOK)
    assert set(report.representations) == {"trained", "untrained", "pixels"}
    assert len(decoded) == 60
    assert (max(decoded.values()) == 1) if times == 1 else (max(decoded.values()) > times)
