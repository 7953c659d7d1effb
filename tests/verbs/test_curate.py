"""Curation: copies, outliers, images like a curated set, balance; and the list that other verbs read."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import normalize

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation.unlabeled import curation, sketches, stages
from manyviews.evaluation.unlabeled.duplicates import Limits, similar
from manyviews.evaluation.unlabeled.whitening import Whitening
from manyviews.verbs import curate as verb
from manyviews.weights import Pretrained

COPIES = {
    "copy_exact.png": "03.png",
    "copy_crop.png": "05.png",
    "copy_saved.jpg": "08.png",
    "copy_mirror.jpg": "10.png",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 pictures of smooth noise, four copies of them, and a broken file. Do not change them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(24):
        noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        picture = noise.resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:02}.png")
        name = {v: k for k, v in COPIES.items()}.get(f"{i:02}.png", "")
        if name == "copy_exact.png":
            picture.save(folder / name)
        elif name == "copy_crop.png":
            picture.crop((4, 4, 93, 94)).save(folder / name)
        elif name == "copy_saved.jpg":
            picture.filter(ImageFilter.GaussianBlur(1)).save(folder / name, quality=60)
        elif name:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / name, quality=80)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1))
    return Pretrained(encoder.eval(), (0.5,) * 3, (0.25,) * 3, 32, "a network")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def x():
    """300 features in clusters of very different sizes."""
    g = torch.Generator().manual_seed(0)
    home = torch.cat([torch.zeros(200), torch.ones(60), torch.full((30,), 2), torch.full((10,), 3)]).long()
    return normalize(torch.randn(4, 16, generator=g)[home] + 0.1 * torch.randn(300, 16, generator=g)).half()


def test_copies_are_found_the_better_one_is_kept_and_files_stay_as_they_are(photos, weights, tmp_path):
    def state():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}

    before = state()
    found = verb.write(photos, weights, tmp_path / "list.parquet")
    assert state() == before
    rows = {row["id"]: row for row in pq.read_table(found.path).to_pylist()}
    assert {name: row["duplicate_of"] for name, row in rows.items() if row["reason"] == "duplicate"} == COPIES
    assert rows["broken.png"]["reason"] == "unreadable" and not rows["broken.png"]["kept"]
    assert found.dropped == {"unreadable": 1, "duplicate": 4}
    assert found.kept == 24 == sum(row["kept"] for row in rows.values()) and found.images == 29
    assert all(row["kept"] == (row["reason"] is None) for row in rows.values())
    page = found.page.read_text(encoding="utf-8")
    assert page.count("<img") == 24 + 8 and "Duplicates" in page and "default-src 'none'" in page
    with pytest.raises(mv.UserError, match="exists"):
        mv.curate(photos, weights, found.path)


def test_the_largest_copy_is_kept_and_of_equally_large_ones_the_least_compressed(photos, tmp_path):
    original = Image.open(photos / "03.png")
    original.resize((48, 48)).save(tmp_path / "a_small.png")
    original.save(tmp_path / "b_compressed.jpg", quality=50)
    original.save(tmp_path / "c_original.jpg", quality=90)
    framed = Image.new("RGB", (116, 116), "white")
    framed.paste(original, (10, 10))
    framed.save(tmp_path / "d_framed.jpg", quality=60)
    source = open_source(tmp_path)
    assert [source.ids[verb.keep_of(source, group)][0] for group in ([0, 1], [1, 2], [2, 3], [0, 1, 2, 3])] == list(
        "bccc"
    )


def test_stages_follow_one_another_and_are_counted(photos, weights, tmp_path):
    seeds = [photos / "00.png", photos / "01.png"]
    out = tmp_path / "list.csv"
    found = verb.write(photos, weights, out, duplicates="off", outliers=0.25, like=seeds, near=6, most=7, balance=5)
    assert found.dropped == {"unreadable": 1, "outlier": 7, "unlike": 28 - 7 - 7, "balance": 7 - 5} and found.kept == 5
    assert len(open_source(out)) == 5
    with pytest.raises(mv.UserError, match="give them as --like"):
        mv.curate(photos, weights, tmp_path / "other.csv", near=3)


def test_pretrain_prepare_and_embed_read_a_list(photos, weights, tmp_path):
    made = mv.curate(photos, weights, tmp_path / "list.parquet", duplicates="off", like=photos / "07.png", near=16)
    wanted = open_source(made).ids
    assert len(wanted) == 16 and "07.png" in wanted
    run = mv.pretrain(made, recipe="simclr_tiny", out=tmp_path / "run", epochs=1, settings={"data.batch_size": 8})
    assert run.facts["images"] == 16
    canvases = mv.prepare(made, tmp_path / "canvases", canvas=32)
    assert open_source(canvases).ids == wanted
    features = mv.embed(weights, made, tmp_path / "features.parquet")
    assert pq.read_table(features)["id"].to_pylist() == wanted


def test_images_like_others_are_those_of_brute_force(x):
    wanted = normalize(x[[5, 290]].float() + 0.05)
    sims = (wanted @ normalize(x.float()).T).numpy()
    near, closest = stages.nearest(x, wanted, 7)
    assert near.nonzero()[:, 0].tolist() == sorted({int(i) for row in sims for i in np.argsort(-row)[:7]})
    np.testing.assert_allclose(closest, sims.max(0), atol=1e-5)
    choice = stages.Choice(300, torch.arange(300))
    least = float(np.sort(sims[0])[-20])
    stages.keep_alike(choice, x, wanted, by="images", near=50, similarity=least, most=9, seed=0)
    assert choice.left.tolist() == sorted(sorted(range(300), key=lambda i: -sims[:, i].max())[:9])
    levels = curation.tree(x)
    clusters, home = stages.in_clusters(levels, wanted), levels.parents[0]
    assert clusters.any() and not clusters[200:290].any()  # clusters that hold a seed, and no others
    assert all(bool(clusters[home == k].all()) == bool(clusters[home == k].any()) for k in home.unique())


def test_cells_compare_as_everything_does_when_all_are_probed(x, monkeypatch):
    monkeypatch.setattr(curation, "EXACT", 100)
    monkeypatch.setattr(curation, "PROBES", 1000)
    monkeypatch.setattr(curation, "_NEAR", 1000)
    grays = torch.randn(300, 65, generator=torch.Generator().manual_seed(1))
    grays[150:] = grays[:150]
    where = curation.cells(x)
    assert len(where) > 4
    found = curation.pairs(x, grays, Limits(0.9, 0.9), where)
    rows, values = similar(x, x, 0.9, grays=(grays, 0.9))
    wanted = dict(zip(map(tuple, rows.tolist()), values.tolist(), strict=True))
    got = dict(zip(map(tuple, found.rows.tolist()), found.similarity.tolist(), strict=True))
    assert len(wanted) > 0 and got.keys() == wanted.keys() and len(found) == len(got)
    z = x.double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    sims = z @ z.T
    np.fill_diagonal(sims, -2)
    slow = 1 - np.sort(sims, axis=1)[:, -10:].mean(1)
    np.testing.assert_allclose(curation.isolation(x, where), slow, atol=1e-4)
    monkeypatch.setattr(curation, "PROBES", 3)
    few = curation.pairs(x, grays, Limits(0.9, 0.9), curation.cells(x))
    assert set(map(tuple, few.rows.tolist())) <= wanted.keys()  # fewer cells lose pairs, and invent none


def test_a_sketch_loses_as_many_pairs_as_it_says():
    g = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(4000, 48, generator=g), dim=1)
    other = torch.randn(4000, 48, generator=g)
    other = normalize(other - (other * x).sum(1, keepdim=True) * x, dim=1)
    both = torch.cat([x, 0.8001 * x + (1 - 0.8001**2) ** 0.5 * other])
    rows, near = sketches.Sketches(both, 0.8).near(torch.arange(4000), torch.arange(4000, 8000))
    found = set(map(tuple, rows.tolist()))
    assert 4000 - 15 <= sum((i, i + 4000) in found for i in range(4000)) < 4000  # 1 in 1,000
    torch.testing.assert_close(near, (both[rows[:, 0]] * both[rows[:, 1]]).sum(1))
    few = x[:300]
    dense, _ = sketches.Sketches(few, 0.01).near(torch.arange(300))  # nearly half of all pairs: no sketch helps
    wanted, _ = similar(few, few, 0.01)
    assert {*map(tuple, dense.tolist())} == {*map(tuple, wanted.tolist())}


def test_planted_copies_choose_how_many_cells_are_probed():
    x = torch.eye(6)
    where = curation.Cells(x, torch.tensor([[i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6] for i in range(6)]))
    copies = normalize(x + 0.9 * x.roll(1, 0) + 1.1 * x.roll(3, 0), dim=1)  # nearest to another cell than the original
    narrow, met = where.meeting(copies, torch.arange(6))
    assert narrow.probes.shape[1] == 2 and met == 1
    assert where.meeting(x, torch.arange(6))[0].probes.shape[1] == 1


def test_whitened_features_have_no_correlations():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=g) @ torch.randn(6, 6, generator=g) + 3
    whiten = Whitening.of(x)
    assert whiten is not None and Whitening.of(x[:20]) is None
    torch.testing.assert_close(((x - whiten.mean) @ whiten.matrix).T.cov(), torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(whiten(x.half()).float().norm(dim=1), torch.ones(4000), atol=1e-2, rtol=0)
    flat = Whitening.of(torch.cat([x, torch.zeros(4000, 1)], 1))  # a direction without variance is not blown up
    assert flat is not None and flat.matrix.isfinite().all() and flat.matrix[-1, -1] < 10


def _one_by_one(tree, n):
    """Images of each leaf of nested lists of sizes, given one at a time to the branch that has fewest."""
    if isinstance(tree, int):
        return [n]
    size = [sum(np.ravel(_leaves(child))) for child in tree]
    share = [0] * len(tree)
    for _ in range(n):
        share[min((k for k in range(len(tree)) if share[k] < size[k]), key=lambda k: (share[k], k))] += 1
    return [count for child, s in zip(tree, share, strict=True) for count in _one_by_one(child, s)]


def _leaves(tree):
    return [tree] if isinstance(tree, int) else [leaf for child in tree for leaf in _leaves(child)]


def test_a_sample_is_shared_out_from_the_top_as_one_by_one():
    shape = [[40, 40, 4], [12], [3, 50]]
    leaves = torch.tensor([0, 0, 0, 1, 2, 2])
    home = torch.repeat_interleave(torch.arange(6), torch.tensor(_leaves(shape)))
    # 36 images: 12 for each branch. The first gives 4, 4, 4, the second 12, the third 3 and 9.
    chosen = curation.balanced((home, leaves), 36)
    assert torch.bincount(home[chosen], minlength=6).tolist() == [4, 4, 4, 12, 3, 9] == _one_by_one(shape, 36)
    for n in (1, 8, 50, 77, 148, 149, 200):
        counts = torch.bincount(home[curation.balanced((home, leaves), n, seed=n)], minlength=6)
        assert int(counts.sum()) == min(n, 149)
        branches = torch.zeros(3, dtype=torch.int64).index_add_(0, leaves, counts).tolist()
        slow = _one_by_one(shape, min(n, 149))
        wanted = [sum(slow[:3]), slow[3], sum(slow[4:])]
        assert max(abs(a - b) for a, b in zip(branches, wanted, strict=True)) <= 1  # chance places the rest


def test_a_balanced_sample_has_more_of_what_is_rare(x):
    tree = curation.tree(x)
    assert len(tree.parents) == 2 and all(int(torch.bincount(parent).min()) > 0 for parent in tree.parents)
    chosen = curation.balanced(tree.parents, 40)
    assert int(chosen.sum()) == 40
    assert chosen[290:].float().mean() > 3 * chosen[:200].float().mean()
