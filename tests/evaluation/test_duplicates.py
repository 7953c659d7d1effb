import csv
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from manyviews.data import open_source
from manyviews.errors import UserError
from manyviews.evaluation import Features, extract
from manyviews.evaluation.unlabeled import duplicates
from manyviews.evaluation.unlabeled.duplicates import Group, across, exact, similar, to_csv
from manyviews.evaluation.unlabeled.duplicates import duplicates as find

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def features(x, ids=None):
    index = torch.arange(len(x))
    return Features(x, None, index, ids or [f"{i:03}.png" for i in index.tolist()], [])


@pytest.fixture
def planted():
    """100 directions; 7 has two copies, 20 one, and 40, 41, 42 are a chain whose ends are less alike."""
    x = torch.randn(100, 64)
    x[[70, 71]], x[30] = 3 * x[7], x[20] + 0.01 * torch.randn(64)
    step = F.normalize(torch.randn(64), dim=0) * x[40].norm() * 0.3
    x[41], x[42] = x[40] + step, x[40] + 2 * step
    return x


def test_planted_copies_are_found(planted):
    found = find(features(planted), 0.95)
    assert [g.index for g in found] == [(7, 70, 71), (20, 30), (40, 41, 42)]
    assert [g.ids[0] for g in found] == ["007.png", "020.png", "040.png"]
    assert found[0].similarity == pytest.approx((1, 1, 1))
    first, second = (F.cosine_similarity(planted[i], planted[i + 1], dim=0).item() for i in (40, 41))
    assert F.cosine_similarity(planted[40], planted[42], dim=0) < 0.95 <= min(first, second)
    assert found[2].similarity == pytest.approx((first, max(first, second), second))


def test_groups_are_those_of_a_loop():
    """Merging until nothing changes."""
    x = torch.randn(80, 3)
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    groups = [{i} for i in range(80)]
    for i, j in itertools.combinations(range(80), 2):
        if cosine[i, j] >= 0.98:
            a, b = (next(g for g in groups if k in g) for k in (i, j))
            if a is not b:
                groups.remove(b)
                a |= b
    wanted = sorted(tuple(sorted(g)) for g in groups if len(g) > 1)
    assert [g.index for g in find(features(x), 0.98)] == wanted and len(wanted) > 3


def test_blocks_change_nothing(planted, monkeypatch):
    whole = find(features(planted), 0.95)
    pairs, values = similar(planted, planted[50:], 0.2)
    monkeypatch.setattr(duplicates, "_BLOCK", 13)
    assert [g.index for g in find(features(planted), 0.95)] == [g.index for g in whole]
    others, theirs = similar(planted, planted[50:], 0.2)
    cosine = F.normalize(planted, dim=1) @ F.normalize(planted[50:], dim=1).T
    wanted = {(i, j): cosine[i, j].item() for i, j in (cosine >= 0.2).nonzero().tolist()}
    for p, v in ((pairs, values), (others, theirs)):
        found = dict(zip(map(tuple, p.tolist()), v.tolist(), strict=True))
        assert found == pytest.approx(wanted) and len(found) == len(p)


def test_the_order_is_of_no_importance(planted):
    names = features(planted).ids
    order = torch.randperm(100).tolist()
    one, other = find(features(planted), 0.95), find(features(planted[order], [names[i] for i in order]), 0.95)
    assert [g.ids for g in one] == [g.ids for g in other]
    assert [tuple(order[i] for i in g.index) for g in other] == [g.index for g in one]
    np.testing.assert_allclose(
        np.concatenate([g.similarity for g in one]), np.concatenate([g.similarity for g in other])
    )


def test_after_removal_there_are_none(planted):
    gone = {i for g in find(features(planted), 0.95) for i in g.index[1:]}
    left = [i for i in range(100) if i not in gone]
    assert len(gone) == 5 and find(features(planted[left]), 0.95) == []


def test_places_are_those_in_the_source(planted):
    some = features(planted)
    moved = Features(some.x, None, some.index * 2 + 1, some.ids, [])
    assert find(moved, 0.95)[0].index == (15, 141, 143)


def test_a_threshold_out_of_range_or_too_low_is_refused(planted, monkeypatch):
    for threshold in (0.0, 1.0, -0.5, 2.0, float("nan")):
        with pytest.raises(UserError, match="above 0 and below 1"):
            find(features(planted), threshold)
    with pytest.raises(UserError, match="raise the threshold"):
        similar(planted, planted, -1, most=1000)


def test_a_table_survives_names_of_any_kind(planted):
    names = [f"{i:03}.png" for i in range(100)]
    names[7], names[20], names[30] = 'a "b", c.png', "new\nline.png", b"caf\xe9.png".decode("utf-8", "surrogateescape")
    text = to_csv(find(features(planted, names), 0.95))
    text.encode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r["keep"] for r in rows].count("yes") == 3 and len(rows) == 8
    assert {r["id"] for r in rows if r["group"] == rows[-1]["group"]} >= {"new\nline.png"}
    assert [r["id"] for r in rows][:3] == ["040.png", "041.png", "042.png"] and rows[0]["keep"] == "yes"
    assert float(rows[0]["similarity"]) > 0.95


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


def test_exact_copies_have_the_same_pixels(folder):
    steps = []
    found = exact(open_source(folder / "set"), lambda done, total: steps.append((done, total)))
    assert [g.ids for g in found] == [("a.png", "c.bmp", "d.png")] and found[0].similarity == (1, 1, 1)
    assert steps[-1] == (6, 6)


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


def test_a_name_begins_no_line_of_the_table():
    evil = "a\r7,precious.jpg,no,1.0000\r8,b.jpg"
    text = to_csv([Group((0, 1), (evil, "c.jpg"), (1.0, 1.0))])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(r["id"], r["keep"]) for r in rows] == [(evil, "yes"), ("c.jpg", "no")]
