import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch.nn import functional as F

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.data.reading import Reading
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation import Features, extract
from manyviews.evaluation.unlabeled import duplicates
from manyviews.evaluation.unlabeled.aligned import SAME, likeness, small
from manyviews.evaluation.unlabeled.copies import KINDS, copies_of, planted
from manyviews.evaluation.unlabeled.duplicates import Gray, Group, Pair, Pairs, across, grouped, similar, to_csv
from manyviews.reporting.groups import render
from manyviews.weights import Pretrained

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def features(x, ids=None):
    index = torch.arange(len(x))
    return Features(x, None, index, ids or [f"{i:03}.png" for i in index.tolist()], [])


def pairs_above(x, limit):
    rows, values = similar(x, x, limit)
    return Pairs(rows, values, values, torch.zeros(len(rows), dtype=torch.bool))


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_those_of_complete_linkage():
    x = torch.randn(150, 3)
    cosine = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).double().numpy()
    found, between = grouped(features(x), pairs_above(x, 0.97))
    distance = squareform(1 - cosine, checks=False)
    labels = fcluster(linkage(distance, "complete"), 0.03, "distance")
    wanted = [tuple(np.flatnonzero(labels == k).tolist()) for k in set(labels)]
    assert {g.index for g in found} == {g for g in wanted if len(g) > 1} and len(found) > 10
    assert [len(g.ids) for g in found] == sorted((len(g.ids) for g in found), reverse=True)
    for group in found:
        assert len(group.pairs) == len(group.ids) * (len(group.ids) - 1) // 2
        assert min(cosine[i, j] for i in group.index for j in group.index) >= 0.97 - 1e-6
    inside = {(i, j) for g in found for i in g.index for j in g.index if i < j}
    above = set(map(tuple, np.argwhere(np.triu(cosine >= 0.97, 1)).tolist()))
    assert set(between) == above - inside and between  # said, not lost


def test_the_order_of_the_images_is_of_no_importance():
    x = torch.randn(80, 3)
    order = torch.randperm(80)
    names = [f"{i:03}.png" for i in range(80)]
    one, _ = grouped(features(x, names), pairs_above(x, 0.97))
    other, _ = grouped(features(x[order], [names[i] for i in order]), pairs_above(x[order], 0.97))
    assert [g.ids for g in one] == [g.ids for g in other]
    np.testing.assert_allclose([g.similarity[0] for g in one], [g.similarity[0] for g in other], atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    x = torch.randn(100, 64)
    x[30] = x[20] + 0.01 * torch.randn(64)
    grays = torch.randn(100, 65)
    wholes = [similar(x, x[50:], 0.2), similar(x, x, 0.2), similar(x, x, -1, grays=(grays, 0.1))]
    monkeypatch.setattr(duplicates, "_BLOCK", 13)
    parts = [similar(x, x[50:], 0.2), similar(x, x, 0.2), similar(x, x, -1, grays=(grays, 0.1))]
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    g = F.normalize(grays, dim=1)
    flipped = torch.stack([torch.cat([row[:64].view(8, 8).fliplr().flatten(), row[64:]]) for row in g])
    gray = torch.maximum(g @ g.T, g @ flipped.T)
    masks = [cosine[:, 50:] >= 0.2, (cosine >= 0.2).triu(1), (gray >= 0.1).triu(1)]
    for both, mask, values in zip(
        zip(wholes, parts, strict=True), masks, (cosine[:, 50:], cosine, cosine), strict=True
    ):
        wanted = {(i, j): values[i, j].item() for i, j in mask.nonzero().tolist()}
        for p, v in both:
            found = dict(zip(map(tuple, p.tolist()), v.tolist(), strict=True))
            assert found == pytest.approx(wanted, abs=1e-6) and len(found) == len(p)


def test_a_threshold_that_is_too_low_is_refused():
    with pytest.raises(UserError, match="raise the threshold"):
        similar(torch.randn(100, 64), torch.randn(100, 64), -1, most=1000)


def test_a_table_survives_names_of_any_kind():
    names = ['a "b", c.png', "new\nline.png", b"caf\xe9.png".decode("utf-8", "surrogateescape")]
    evil = "a\r7,precious.jpg,no,1.0000\r8,b.jpg"
    pair = Pair(0, 1, 0.98, 0.9, True)
    groups = [
        Group((0, 1), (names[0], names[1]), (pair,), (False, False)),
        Group((2, 3), (names[2], evil), (pair,), (True, True)),
    ]
    text = to_csv(groups)
    text.encode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == [*names[:2], "caf\\xe9.png", evil]
    assert [row["group"] for row in rows] == ["1", "1", "2", "2"]
    assert rows[1]["mirrored"] == "yes" and rows[0]["mirrored"] == "no" and rows[2]["identical"] == "yes"
    assert float(rows[0]["similarity"]) == 0.98 and float(rows[0]["pixels"]) == 0.9


# -- a second look ---------------------------------------------------------------------------------------------------


def shirt(seed, color=(240, 240, 235)):
    """A shirt on a carpet: outlines are nearly those of every other, prints and folds are its own."""
    rng = np.random.default_rng(seed)
    carpet = rng.normal(0, 6, (40, 32, 1)).repeat(5, 0).repeat(5, 1) + np.array([150, 20, 60])
    image = Image.fromarray(carpet.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    dx, dy = rng.integers(-2, 3, 2).tolist()
    draw.polygon(
        [(x + dx, y + dy) for x, y in ((30, 50), (130, 50), (120, 90), (115, 180), (45, 180), (40, 90))], color
    )
    for _ in range(30):
        x, y, w, h = rng.integers((50, 60, 4, 4), (100, 165, 12, 12)).tolist()
        draw.rectangle((x, y, x + w, y + h), tuple(int(c * rng.uniform(0.8, 1)) for c in color))
    return image


def tensors(pictures):
    return torch.from_numpy(np.stack([small(p) for p in pictures]))


@pytest.fixture(scope="module")
def shirts():
    return [shirt(seed) for seed in range(24)]


def test_edited_copies_are_the_same_and_other_shirts_are_not(shirts):
    x = tensors(shirts)
    for kind in KINDS:
        rng = np.random.default_rng(1)
        edited = tensors([planted(p, kind, rng) for p in shirts])
        found = likeness(x, edited.flip(3) if kind == "mirrored" else edited)
        assert (found >= SAME).float().mean() >= 0.9, kind
    i, j = torch.triu_indices(24, 24, 1)
    assert likeness(x[i], x[j]).max() < SAME
    raw = x.float().flatten(1)
    assert torch.corrcoef(raw)[i, j].min() > 0.9  # though their pixels correlate


def test_another_color_is_another_shirt_and_flat_pictures_are_told_by_color(shirts):
    red = tensors([shirt(0, (200, 30, 30)), shirt(0, (30, 120, 200)), shirt(0)])
    assert (likeness(red[[0, 0, 1]], red[[1, 2, 2]]) < SAME).all()
    flat = torch.stack([torch.full((3, 64, 64), v, dtype=torch.uint8) for v in (0, 2, 250)])
    assert likeness(flat[[0, 0]], flat[[1, 2]]).tolist() == [1.0, -1.0]
    assert (likeness(flat[[0, 1]], red[[0, 1]]) < SAME).all()
    assert likeness(red[:0], red[:0]).shape == (0,)


def test_flat_pictures_have_the_same_gray_ones_and_mirrors_are_near():
    x = torch.rand(3, 5, 40, 40)
    gray = Gray()
    a, b = F.normalize(gray(torch.zeros(1, 3, 8, 8)), dim=1), F.normalize(gray(torch.ones(1, 3, 8, 8)), dim=1)
    assert (a @ b.T).item() == pytest.approx(1)
    _, flipped = duplicates._grays(gray(x.flip(3)))
    assert torch.allclose((flipped * F.normalize(gray(x), dim=1)).sum(1), torch.ones(3), atol=1e-5)


def test_small_pictures_go_to_disk_where_memory_is_small(shirts, monkeypatch):
    source = open_source(np.stack([np.asarray(s) for s in shirts]))
    wanted = duplicates.look_at(source, torch.tensor([3, 1]))
    monkeypatch.setattr(duplicates.machine, "free_memory", lambda: 0)
    found = duplicates.look_at(source, torch.tensor([3, 1]))
    assert isinstance(found, np.memmap) and not isinstance(wanted, np.memmap) and np.array_equal(found, wanted)
    assert np.array_equal(wanted, np.stack([small(shirts[3]), small(shirts[1])]))
    with pytest.raises(UserError, match="TMPDIR"):
        duplicates._room((2**40, 2**20))


def test_planted_copies_of_any_channels_keep_them(shirts):
    rng = np.random.default_rng(0)
    many = rng.integers(0, 255, (2, 30, 40, 5), dtype=np.uint8)
    for count, images in ((5, many), (1, many[..., 0])):
        source = Source("x", 2, images.__getitem__, lambda: ["a", "b"], reading=Reading(count))
        copied = copies_of(source, [0, 1, 0, 1, 0, 1], 3)
        assert [name.partition(" ")[0] for name in copied.ids] == list(KINDS)
        pictures = [np.atleast_3d(np.asarray(copied.load(k))) for k in range(6)]
        assert all(p.shape[2] == count and p.dtype == np.uint8 for p in pictures)
        assert small(copied.load(0)).shape == (count, 64, 64)
        assert np.array_equal(np.asarray(copied.load(4)), np.asarray(copies_of(source, [0] * 6, 3).load(4)))


# -- the whole of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)).eval()
    return Pretrained(encoder, mean=(0.5,) * 3, std=(0.25,) * 3, test_size=32, name="untrained")


def test_planted_copies_are_found_among_look_alikes(shirts, weights, tmp_path, capsys):
    folder = tmp_path / "<b>shirts"
    folder.mkdir()
    for k, image in enumerate(shirts):
        image.save(folder / f"{k:02}.png")
    rng = np.random.default_rng(5)
    for k in range(0, 24, 2):
        Image.fromarray(planted(shirts[k], KINDS[k // 2 % 6], rng)).save(
            folder / f"{k:02} <img src=x>.webp", quality=80
        )
    shirts[1].save(folder / "01 again.png")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "30.png")
    Image.new("RGB", (60, 60), (9, 9, 9)).save(folder / "31.png")
    (folder / "broken.png").write_bytes(b"no")
    before = sorted(p.name for p in folder.iterdir())
    found = mv.duplicates(weights, folder, tmp_path / "same.csv").groups
    err = capsys.readouterr().err
    assert "planted copies are found" in err and "broken.png" in err
    assert all(len({name[:2] for name in g.ids}) == 1 or g.ids == ("30.png", "31.png") for g in found)
    assert len(found) >= 11  # of 14; the encoder was never trained
    again = next(g for g in found if "01 again.png" in g.ids)
    assert again.identical == (True, True) and again.pixels == pytest.approx((1, 1), abs=1e-3)
    assert ("30.png", "31.png") in [g.ids for g in found]
    assert sorted(p.name for p in folder.iterdir()) == before
    page = (tmp_path / "same.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == sum(len(g.ids) for g in found)
    assert "<img src=x>" not in page and "&lt;img src=x&gt;" in page and "<script" not in page
    for word in ("delete them", "remove", "more than are needed", "could be"):
        assert word not in page and word not in err
    with pytest.raises(UserError, match="exists already"):
        mv.duplicates(weights, folder, tmp_path / "same.csv")
    for threshold in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(UserError, match="above 0 and below 1"):
            mv.duplicates(weights, folder, tmp_path / "other.csv", threshold)
    high = mv.duplicates(weights, folder, tmp_path / "high.csv", 0.9999999).groups
    assert len(high) < len(found) and "0.9999999" not in err


def test_a_page_says_what_it_leaves_out(shirts, monkeypatch):
    source = open_source(np.stack([np.asarray(s) for s in shirts]))
    pairs = [Pair(0, 1, 0.98, 0.9, False)]
    groups = [Group((2 * k, 2 * k + 1), (f"{2 * k}", f"{2 * k + 1}"), tuple(pairs), (False, False)) for k in range(6)]
    monkeypatch.setattr("manyviews.reporting.single.MOST", 8)
    page = render(source, groups, [(0, 3)], 24, "words")
    assert "2 further groups are only in the table" in page and page.count('<section class="group"') == 4
    assert "1 pair was found to be the same" in page
    monkeypatch.setattr("manyviews.reporting.groups.SHOWN", 2)
    big = Group(
        (0, 1, 2), ("a", "b", "c"), tuple(Pair(i, j, 1, 1, False) for i, j in ((0, 1), (0, 2), (1, 2))), (False,) * 3
    )
    assert "and 1 more" in render(source, [big], [], 24, "words")
    assert "No two of 24 images" in render(source, [], [], 24, "words")


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Five pictures, of which `c` is `a` in another format and `d` is `a` turned, with a note to turn it back."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(3)]
    (tmp_path / "set").mkdir()
    pictures[0].save(tmp_path / "set" / "a.png")
    pictures[1].save(tmp_path / "set" / "b.png")
    pictures[0].save(tmp_path / "set" / "c.bmp")
    exif = Image.Exif()
    exif[274] = 6
    pictures[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "set" / "d.png", exif=exif)
    pictures[2].save(tmp_path / "set" / "e.png")
    (tmp_path / "set" / "f.png").write_bytes(b"no picture")
    (tmp_path / "other").mkdir()
    pictures[2].save(tmp_path / "other" / "x.tiff")
    pictures[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other" / "y.png")
    pictures[0].save(tmp_path / "other" / "z.png")
    return tmp_path


def test_test_images_among_the_training_images_are_found(folder, encoder):
    source, test = open_source(folder / "set"), open_source(folder / "other")
    wanted = [("a.png", "z.png"), ("c.bmp", "z.png"), ("d.png", "z.png"), ("e.png", "x.tiff")]
    seen, held = extract(encoder, source, **LOOK), extract(encoder, test, **LOOK)
    for given in ((), (seen, held)):
        found = across(source, test, *given)
        assert [(source.ids[i], test.ids[j]) for i, j in found] == wanted
    assert across(source.subset([1]), test) == []


def test_features_spare_the_reading(folder, encoder, monkeypatch):
    """And what they cannot tell apart but pixels can is no copy; where they tell nothing apart, all are read."""
    source, test = open_source(folder / "set"), open_source(folder / "other")
    seen, held = extract(encoder, source, **LOOK), extract(encoder, test, **LOOK)
    read = []
    digests = duplicates._digests
    monkeypatch.setattr(duplicates, "_digests", lambda s, chosen, p: read.append(list(chosen)) or digests(s, chosen, p))
    wanted = across(source, test, seen, held)
    assert read == [[0, 2, 3, 4], [0, 2]]
    held.x[1] = seen.x[1]
    assert across(source, test, seen, held) == wanted and read[2:] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    many = open_source(np.random.default_rng(0).integers(0, 255, (60, 12, 12, 3), dtype=np.uint8))
    collapsed = features(torch.ones(60, 8))
    assert across(many, many.subset(range(40, 60)), collapsed, features(torch.ones(20, 8))) == [
        (40 + i, i) for i in range(20)
    ]
    assert read[4:] == [list(range(60)), list(range(20))]


def test_rounding_hides_no_copy():
    """Features of the same pixels differ in the last digits when they were computed in another batch."""
    x = torch.randn(300, 32)
    near = x[100:150] * (1 + 3e-6 * torch.randn(50, 32))
    pairs = duplicates._indistinct(x, torch.cat([torch.randn(40, 32), near]))
    assert sorted(map(tuple, pairs.tolist())) == [(100 + i, 40 + i) for i in range(50)]
    assert duplicates._indistinct(x, torch.randn(5, 32)).shape == (0, 2)
