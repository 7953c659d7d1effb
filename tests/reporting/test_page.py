"""What the page says, and that nothing in people's data can harm it. Its looks and moves are tested in a browser."""

import dataclasses
import inspect
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from manyviews import methods, recipes
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.data.folder import PAGE
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.evaluation import Metric, evaluate
from manyviews.evaluation.features import Features
from manyviews.evaluation.unlabeled.spectrum import describe
from manyviews.regularizers import inner
from manyviews.reporting import embedding_map
from manyviews.reporting.page import atlas, gather, pictures, write
from manyviews.reporting.page.render import embedded
from manyviews.reporting.words import named
from manyviews.views import Crop

from .conftest import stored, untrained_run

HOSTILE = "<img src=x onerror=alert(1)>"
LABELS = [f"{HOSTILE}</script><script>alert(2)</script>", 'class="b" {{ 7*7 }}', "日本\u202e\x1b]0;x\x07"]


def curve(steps, **values):
    return [{"step": s, "epoch": s / 10, "loss": 5 - s / 50, "grad_norm": 1.0} | values for s in range(1, steps)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 noisy pictures of three colors with hostile names, and a CSV of hostile labels. Do not change them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = ["path,label"]
    for i in range(60):
        color = np.eye(3)[i % 3] * 120
        pixels = (rng.integers(0, 60, (24, 20, 3)) + color + 40).astype(np.uint8)
        name = f"{i:02} {HOSTILE}.png"
        Image.fromarray(pixels).save(folder / name)
        label = LABELS[i % 3].replace('"', '""')
        lines.append(f'{name},"{label}"')
    (folder.parent / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(photos, tmp_path_factory):
    """A page of three runs: one is evaluated, one unfinished. Without umap-learn, which takes long to start."""
    folder = tmp_path_factory.mktemp("report")
    labels = photos.parent / "labels.csv"
    observed = [{"step": s, "monitor/knn": 0.5, "monitor/spread": 0.02, "monitor/rankme": 2.0} for s in (0, 90)]
    observed.append({"step": 90, "alarm": "The features have collapsed."})
    runs = [
        untrained_run(folder / HOSTILE, images=str(photos), log=[*curve(100), *observed]),
        untrained_run(folder / "vit", "mae_tiny", images=str(photos), log=curve(50), seed=1),
        untrained_run(folder / "unfinished", finished=False, images=str(photos), log=curve(5)),
    ]
    source = open_source(photos, labels)
    recipe = runs[0].recipe
    found = evaluate(
        runs[0].encoder, source, protocols=["knn"], test_size=32, mean=recipe.data.mean, std=recipe.data.std
    )
    stored(runs[0].folder, 1, found.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        patch.setattr(embedding_map, "_TSNE", 0)
        return write(runs, folder / "page", data=photos, labels=labels, queries=photos)


class Elements(HTMLParser):
    """Every element's attributes, and the text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.found, self.words, self.scripts, self._inside = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        (self.scripts if self._inside in ("script", "style") else self.words).append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


# -- the page ----------------------------------------------------------------------------------------------------


def test_everything_it_needs_lies_beside_it_and_nothing_else_may_be_loaded(page):
    html = page.read_text(encoding="utf-8")
    parsed = Elements(html)
    needed = [a["src"] for tag in ("img", "script") for a in parsed.of(tag) if "src" in a]
    facts = json.loads(next(s for s in parsed.scripts if s.startswith("{")))
    needed += [facts["map"]["images"], *facts["map"]["sheets"], *(r["src"] for r in facts["map"]["runs"])]
    assert len(needed) > 50
    assert all((page.parent / src).is_file() for src in needed)
    assert {"index.html", "map", "pictures", PAGE} == {p.name for p in page.parent.iterdir()}
    assert all(a["href"].startswith("#") for tag in ("a", "link") for a in parsed.of(tag))
    # No attribute runs or styles anything, so that the policy can forbid it.
    assert not [k for _, attributes in parsed.found for k in attributes if k.startswith("on") or k == "style"]
    policy = next(a["content"] for a in parsed.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_names_and_labels_are_text_and_never_markup(page):
    html = page.read_text(encoding="utf-8")
    parsed = Elements(html)
    assert not [a for a in parsed.of("img") if "onerror" in a or not a["src"].startswith("pictures/")]
    assert len(parsed.of("script")) == 2  # the facts and what draws them
    assert HOSTILE in "".join(parsed.words)
    assert "{{ 7*7 }}" in "".join(parsed.words)
    assert not re.search("[\u202e\x1b\x07]", html)
    scripts = [p.read_text(encoding="utf-8") for p in page.parent.glob("map/*.js")]
    assert len(scripts) == 4 and all(s.isascii() and "<" not in s for s in scripts)
    content = json.loads(scripts[0].partition(" = ")[2].rstrip(";\n"))
    assert content.keys() >= {"positions"} or HOSTILE in content["names"]


def test_facts_in_the_page_survive_whatever_they_hold():
    content = {"</script><!--": ["<b>&amp;", "\u2028", '"\\']}
    text = embedded(content)
    assert not re.search("[<>&]", text) and json.loads(text) == content
    with pytest.raises(ValueError):
        embedded({"x": float("nan")})  # no browser can read it


def test_it_says_what_is_there_and_how_to_get_the_rest(page):
    words = " ".join("".join(Elements(page.read_text(encoding="utf-8")).words).split())
    assert "manyviews resume" in words and "unfinished, 0.4 of 2 epochs" in words
    assert "It has not been evaluated yet. manyviews evaluate" in words
    assert "At step 90: The features have collapsed" in words
    assert "umap-learn is not installed, so PCA laid out the map. pip install 'manyviews[map]'" in words
    assert "60 images of photos" in words
    assert "mean of 2 heads" in words and "head 2" in words  # of the transformer


def test_without_its_images_there_is_a_page_all_the_same(tmp_path):
    gone = untrained_run(tmp_path / "gone", "mast_tiny", images=str(tmp_path / "none"), log=curve(9))
    far = untrained_run(tmp_path / "far", images="s3://photos/", finished=False)
    for run, words in ((gone, "not where they were"), (far, "only fetched if you ask")):
        html = write([run], tmp_path / f"page {run.folder.name}").read_text(encoding="utf-8")
        assert words in html and "--data IMAGES" in html
    assert "Nothing has been logged yet" in html
    assert "Subspaces" in (tmp_path / "page gone" / "index.html").read_text(encoding="utf-8")


def test_folders_that_are_no_classes_have_no_mistakes(tmp_path, photos, capfd):
    for i, photo in enumerate(sorted(photos.glob("*.png"))[:12]):
        place = tmp_path / "kept" / ("2019", "misc")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, place / f"{i}.png")
    run = untrained_run(tmp_path / "run", images=str(tmp_path / "kept"))
    html = write([run], tmp_path / "page").read_text(encoding="utf-8")
    assert 'id="mistakes"' not in html and "are not shown as classes" in capfd.readouterr().err


def test_what_cannot_be_shown_has_a_reason(tmp_path, photos):
    run = untrained_run(tmp_path / "run", images=str(photos))
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(next(p for p in sorted(photos.rglob("*.png"))), one)
    html = write([run], tmp_path / "a", data=one).read_text(encoding="utf-8")
    assert "Fewer than two images could be read" in html
    with torch.no_grad():
        next(run.encoder.parameters()).fill_(float("nan"))
    html = write([run], tmp_path / "b", data=photos).read_text(encoding="utf-8")
    assert "features are not finite" in html and "Views" in html
    with pytest.raises(UserError, match=r"nowhere\.csv"):  # labels that were asked for must be there
        write([run], tmp_path / "c", labels=tmp_path / "nowhere.csv")
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, monkeypatch):
    run = untrained_run(tmp_path / "run")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    for out in (full, full / "mine"):
        with pytest.raises(UserError, match="exists already and is not an empty folder"):
            write([run], out)
    with pytest.raises(UserError, match="There is no folder"):
        write([run], tmp_path / "no" / "where")
    with pytest.raises(UserError, match="No run was named"):
        write([], tmp_path / "page")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert write([run], empty) == empty / "index.html"
    monkeypatch.setattr("manyviews.reporting.page.build.render", lambda facts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write([run], tmp_path / "page")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "run"]


def test_runs_are_told_apart_by_their_folders(tmp_path):
    assert gather.names([SimpleNamespace(folder=tmp_path / x) for x in ("a/one", "b/two")]) == ["one", "two"]
    assert gather.names([SimpleNamespace(folder=tmp_path / x) for x in ("a/x", "b/x")]) == ["a/x", "b/x"]
    assert gather.names([SimpleNamespace(folder=tmp_path / "a")] * 2)[1].endswith("(2)")


# -- curves ------------------------------------------------------------------------------------------------------


def test_a_long_curve_keeps_its_ends_and_its_spikes():
    y = np.random.default_rng(0).normal(size=20_000)
    y[12_345], y[777] = 50, -50
    kept = gather.thinned(y)
    assert len(kept) <= gather.MOST_POINTS and kept == sorted(set(kept))
    assert {0, 19_999, 12_345, 777} <= set(kept)
    assert gather.thinned(y[:900]) == list(range(900))


def test_curves_are_in_the_order_in_which_to_read_them(tmp_path):
    log = [
        {"step": 1, "epoch": 0.5, "loss": "nan", "loss/b": 1.0, "lr": 0.1, "own": 3.0},
        {"step": 2, "epoch": 1, "loss": 2.0},
        {"step": 2, "monitor/knn": 0.25},
    ]
    found = gather.curves([untrained_run(tmp_path, log=log)])
    assert [c["id"] for c in found] == ["loss", "monitor/knn", "loss/b", "lr", "own"]
    assert found[0]["lines"] == [{"run": 0, "x": [2], "y": [2.0]}]  # what is not finite is left out
    assert found[1]["lines"][0]["y"] == [25.0]
    assert not found[3]["noisy"]  # a schedule is what it is
    assert [c["more"] for c in found] == [False] * 4 + [True]


def test_every_number_that_is_logged_has_words():
    """A term or measurement without them would be shown under its name in the code."""
    numbers = {f"monitor/{k}" for k in describe(torch.randn(40, 8))} | {"monitor/projection_spread", "monitor/knn"}
    assert {k for k in numbers if named(k)[1] == "As logged."} == set()
    for name in methods.names():
        built = inner(build_method(recipes.get(f"{name}_tiny")))
        terms = set(re.findall(r'"(\w+)": .*[(*]', inspect.getsource(type(built).loss)))
        terms |= {k.name for k in built.views if isinstance(k, Crop) and k.name != "composed"}
        terms |= set(re.findall(r'loss\["(\w+)"\]', inspect.getsource(type(built).loss))) - {"where"}
        unknown = {
            k for k in terms - {"where", "hide", "keep", "caption"} if named(f"loss/{k}")[1] == "A term of the loss."
        }
        assert not unknown, f"{name}: {unknown}"


@pytest.mark.parametrize(
    "row, words",
    [
        ({"alarm": "The features have collapsed."}, "At step 90: The features have collapsed."),
        ({"monitor/knn": 0.3}, "best at step 30 (60.0 %) and 30.0 %"),
        ({"loss": "nan"}, "not finite in 1"),
        ({"grad_norm": 400.0, "loss": 1.0}, "jumped to 400 at step 90"),
    ],
)
def test_the_log_is_read_for_signs_of_trouble(tmp_path, row, words):
    healthy = [{"step": 0, "monitor/spread": 0.01}, *curve(60), {"step": 30, "monitor/knn": 0.6, "monitor/spread": 0.8}]
    assert gather.run_facts(untrained_run(tmp_path, finished=False, log=healthy), "x")["warnings"] == []
    warnings = gather.run_facts(untrained_run(tmp_path, finished=False, log=[*healthy, {"step": 90} | row]), "x")[
        "warnings"
    ]
    assert len(warnings) == 1 and words in warnings[0]


# -- evaluations -------------------------------------------------------------------------------------------------


def only(report, protocol, **changes):
    facts = report.to_dict()
    for part in facts["representations"].values():
        part["scores"] = {protocol: part["scores"][protocol]}
    facts["gains"] = {k: {protocol: g[protocol]} for k, g in facts["gains"].items()}
    return json.dumps(facts | changes)


def test_evaluations_of_the_same_images_complete_each_other(tmp_path, report):
    assert gather.evaluated(tmp_path) == (None, [])
    stored(tmp_path, 9, only(report, "knn"))
    stored(tmp_path, 10, only(report, "linear"))
    stored(tmp_path, 11, "no report")
    (found, parts), unreadable = gather.evaluated(tmp_path)
    assert found.protocols == ["knn"]  # which the verdict is about
    assert set(parts["trained"]["scores"]) == {"knn", "linear"}
    assert len(unreadable) == 1 and "11" in unreadable[0]
    assert gather.evaluated(tmp_path)[1][0].startswith("The evaluation 11 cannot be read")
    stored(tmp_path, 13, only(report, "knn", notes=["12 test images are training images."]))
    assert "12 test images are training images." in gather.evaluated(tmp_path)[1]
    stored(tmp_path, 14, only(report, "linear", source="other images"))
    (found, parts), _ = gather.evaluated(tmp_path)
    assert found.source == "other images" and set(parts["trained"]["scores"]) == {"linear"}


def test_several_runs_share_their_raw_pixels_only_if_these_are_the_same(tmp_path, report):
    runs = [{"name": n} for n in "ab"]
    for name in "ab":
        stored(tmp_path / name, 1, report.to_json())
    both = [gather.evaluated(tmp_path / name)[0] for name in "ab"]
    found = gather.accuracies(runs, both)
    knn = next(c for c in found["protocols"] if c["id"] == "knn")
    labels = [row["label"] for row in knn["rows"]]
    assert labels == ["a", "untrained (a)", "b", "untrained (b)", "raw pixels"]
    score = report.representations["trained"].scores["knn"]
    assert knn["rows"][0]["value"] == pytest.approx(100 * score.top1, rel=1e-5)
    assert knn["rows"][0]["low"] == pytest.approx(100 * score.interval[0], rel=1e-5)
    assert len(found["by_class"]["lines"]) == 4 and found["by_k"][0]["x"] == sorted(found["by_k"][0]["x"])
    stored(tmp_path / "b", 2, only(report, "knn", source="others"))
    found = gather.accuracies(runs, [both[0], gather.evaluated(tmp_path / "b")[0]])
    assert [r["label"] for r in found["protocols"][0]["rows"]][-2:] == ["raw pixels (a)", "raw pixels (b)"]
    assert "evaluated on different images" in found["unlike"][0]
    reports = [both[0], gather.evaluated(tmp_path / "b")[0], None]
    count = report.images["test"]
    assert gather.unlike(1, "abc", reports).startswith(f"Evaluated on {count} test images of others in 3 classes, and ")
    assert f"a on {count} test images of" in gather.unlike(1, "abc", reports)
    assert gather.unlike(0, "abc", [both[0], both[1], None]) == gather.unlike(2, "abc", reports) == ""


def test_measures_are_shown_without_accuracies_too(tmp_path, report):
    recall = {f"recall at {k}": 0.1 * k for k in (1, 2, 4, 8)}
    measures = {
        "retrieval": Metric("mAP", 0.5, None, recall, {"k": 3.0}),
        "clustering": Metric("NMI", 0.25, (0.2, 0.3), {"ARI": 0.3, "purity": 0.4}, {}),
        "other": Metric("x", float("nan"), None, {"y": float("inf")}, {}),
    }
    parts = {k: dataclasses.replace(r, scores={}, measures=measures) for k, r in report.representations.items()}
    run = untrained_run(tmp_path / "run")
    stored(run.folder, 1, dataclasses.replace(report, representations=parts, gains={}).to_json())
    found = gather.evaluated(run.folder)[0][1]["trained"]["measures"]
    assert found["retrieval"]["value"] == 0.5 and found["retrieval"]["low"] is None
    assert found["retrieval"]["curve"] == {"x": [1, 2, 4, 8], "y": [0.1, 0.2, 0.4, 0.8], "label": "recall at"}
    assert found["clustering"]["curve"] is None and found["other"]["value"] is None
    words = "".join(Elements(write([run], tmp_path / "page").read_text(encoding="utf-8")).words)
    assert "purity" in words and "0.25" in words and "No run has been evaluated" not in words


def test_settings_that_differ_are_found(tmp_path):
    runs = [untrained_run(tmp_path / "a"), untrained_run(tmp_path / "b", "mae_tiny")]
    found = gather.settings(runs)
    differ, same = dict(found["differ"]), dict(found["same"])
    assert differ["method.name"] == ["simclr", "mae"] and differ["method.masking"] == ["", "Random(ratio=0.75, side=1)"]
    assert same["seed"] == "0" and not differ.keys() & same.keys()
    assert gather.settings(runs[:1])["differ"] == []


# -- neighbors and mistakes --------------------------------------------------------------------------------------


def test_the_nearest_others_are_those_of_a_full_sort():
    x = torch.randn(50, 6)
    x[7] = x[30] = x[31] = x[3]  # copies, none of which is its own neighbor
    similarity, index = atlas.others(x, 5)
    z = torch.nn.functional.normalize(x, dim=1)
    full = (z @ z.T).fill_diagonal_(-2)
    torch.testing.assert_close(similarity, full.sort(dim=1, descending=True)[0][:, :5])
    assert (index != torch.arange(50)[:, None]).all()
    torch.testing.assert_close(full.gather(1, index), similarity)


def test_votes_are_the_sums_of_a_slow_loop():
    similarity = torch.rand(20, 7).sort(dim=1, descending=True)[0]
    labels = torch.randint(0, 4, (20, 7))
    predicted, share = atlas.votes(similarity, labels, 4)
    for i in range(20):
        weights = [0.0] * 4
        for s, y in zip(similarity[i].tolist(), labels[i].tolist(), strict=True):
            weights[y] += float(np.exp(s / 0.1))
        assert predicted[i] == int(np.argmax(weights))
        assert share[i].item() == pytest.approx(max(weights) / sum(weights), rel=1e-4)


def test_a_wrong_label_is_the_worst_mistake(tmp_path):
    y = np.arange(60) % 2
    x = torch.eye(2)[torch.from_numpy(y)].repeat(1, 4) + 0.2 * torch.randn(60, 8)
    x[11] = torch.eye(2)[1].repeat(4)
    y = y.copy()
    y[11] = 0  # a mean "1" by its looks
    source = open_source((np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8), y))
    seen = Features(x, torch.from_numpy(y), torch.arange(60), source.ids, [])
    known = atlas.atlas(source, [seen, seen], "cpu")
    found = atlas.mistakes(known, pictures.Pictures(tmp_path))
    assert len(found) == 2 and found[0]["asked"] == 60 and found[0]["wrong"] == 1
    (worst,) = found[0]["items"]
    assert worst["label"] == "0" and worst["predicted"] == "1" and worst["name"] == source.where(11)
    assert worst["share"] > 0.99 and not any(p["right"] for p in worst["nearest"])


def test_images_one_encoder_could_not_be_asked_about_are_left_out():
    source = open_source(np.zeros((6, 8, 8, 3), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None] * 40)
    x = torch.randn(6, 3)
    rows = torch.tensor([0, 1, 3, 4, 5])
    full = Features(x, None, torch.arange(6), source.ids, [])
    part = Features(x[rows], None, rows, [source.ids[i] for i in rows], [])
    known = atlas.atlas(source, [full, part], "cpu")
    assert known.source.ids == part.ids
    torch.testing.assert_close(known.x[0], known.x[1])


# -- maps --------------------------------------------------------------------------------------------------------


def blobs(n=60):
    return torch.cat([torch.randn(n // 2, 8) + 6, torch.randn(n // 2, 8) - 6])


def apart(positions, n=60):
    """Whether two halves of the points are further apart than wide."""
    a, b = positions[: n // 2], positions[n // 2 :]
    return np.linalg.norm(a.mean(0) - b.mean(0)) > 2 * max(a.std(), b.std())


def test_each_layout_separates_what_is_separate(monkeypatch):
    for how in ("UMAP", "t-SNE", "PCA"):
        positions, found = embedding_map.lay_out(blobs())
        assert found == how and positions.dtype == np.float32 and positions.shape == (60, 2) and apart(positions)
        if how == "UMAP":
            monkeypatch.setitem(sys.modules, "umap", None)
        monkeypatch.setattr(embedding_map, "_TSNE", 5_000 if how == "UMAP" else 50)
    for few in (torch.randn(3, 8), torch.randn(1, 8), torch.randn(5, 1)):
        assert np.isfinite(embedding_map.lay_out(few)[0]).all()


def test_a_turned_mirrored_and_scaled_map_is_turned_back():
    like = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    turn = np.array([[0.6, -0.8], [-0.8, -0.6]])  # a reflection
    np.testing.assert_allclose(embedding_map.turned(3 * like @ turn + 5, like), like, atol=1e-4)


def test_neighbors_on_the_map_are_neighbors_in_the_order():
    positions = np.random.default_rng(0).uniform(size=(2000, 2)).astype(np.float32)
    order = embedding_map.along_a_curve(positions)
    assert sorted(order) == list(range(2000))
    steps = np.linalg.norm(np.diff(positions[order], axis=0), axis=1)
    assert steps.mean() < 0.06  # 0.52 in any order


def test_the_largest_cluster_is_the_first():
    x = torch.cat([torch.randn(10, 4) * 0.01 + torch.eye(4)[0], torch.randn(30, 4) * 0.01 + torch.eye(4)[1]])
    found = embedding_map.clusters(x, 2)
    assert (found[:10] == 1).all() and (found[10:] == 0).all()
    assert set(embedding_map.clusters(x[:3], 8)) <= {0, 1, 2}


def test_a_sheet_holds_the_thumbnails_row_by_row(tmp_path):
    (tmp_path / "map").mkdir()
    colors = np.random.default_rng(0).integers(0, 256, (1100, 1, 1, 3), dtype=np.uint8)
    source = open_source(np.broadcast_to(colors, (1100, 8, 8, 3)))
    files = atlas.sheets(source, 16, tmp_path)
    assert files == ["map/sheet-0.webp", "map/sheet-1.webp"]
    first, second = (np.asarray(Image.open(tmp_path / f).convert("RGB")).astype(int) for f in files)
    assert first.shape == (512, 512, 3) and second.shape == (48, 512, 3)
    for sheet, i, k in ((first, 45, 45), (second, 1024, 0), (second, 1099, 75)):
        middle = sheet[16 * (k // 32) + 8, 16 * (k % 32) + 8]
        assert np.abs(middle - colors[i, 0, 0]).max() < 40  # WebP, lossy


# -- patches and views -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit():
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "reg_tokens": 2}
    return Encoder("vit_tiny_patch16_224", **settings).eval()


def test_attention_is_the_softmax_of_the_last_blocks_queries_and_keys(vit):
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = pictures.attention(vit, x)
        tokens = vit.model._pos_embed(vit.model.patch_embed(x))
        block = vit.model.blocks[1]
        inner = block.norm1(vit.model.blocks[0](vit.model.norm_pre(tokens)))
        q, k, _ = block.attn.qkv(inner).reshape(3, 19, 3, 4, 8).permute(2, 0, 3, 1, 4)
        wanted = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)[:, :, 0, 3:]
    assert found.shape == (3, 4, 16)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    before = vit(x)
    pictures.attention(vit, x)
    torch.testing.assert_close(vit(x), before)  # the block is as it was
    assert pictures.attention(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval(), x) is None


def test_attention_of_rotary_transformers_turns_queries_and_keys():
    from timm.layers import apply_rot_embed_cat

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
    encoder = Encoder("vit_small_patch16_dinov3", **settings).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = pictures.attention(encoder, x)
        tokens, rope = encoder.model._pos_embed(encoder.model.patch_embed(x))
        block = encoder.model.blocks[0]
        q, k, _ = block.attn.qkv(block.norm1(tokens)).reshape(3, 21, 3, 4, 8).permute(2, 0, 3, 1, 4)
        q, k = (torch.cat([t[:, :, :5], apply_rot_embed_cat(t[:, :, 5:], rope, half=True)], 2) for t in (q, k))
        wanted = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)[:, :, 0, 5:]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_components_are_principal_and_mean_the_same_in_every_image():
    x = torch.randn(4, 9, 7) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1])
    found = pictures.components(x)
    wanted = PCA(3).fit_transform(x.flatten(0, 1).double().numpy())
    assert found.shape == (4, 9, 3) and found.dtype == np.uint8
    for c in range(3):
        assert abs(np.corrcoef(found.reshape(-1, 3)[:, c], wanted[:, c])[0, 1]) > 0.98
    assert pictures.components(torch.zeros(2, 4, 2)).shape == (2, 4, 3)


def test_views_are_shown_by_kind_and_in_their_true_proportions(tmp_path, photos):
    recipe = recipes.get("byol_tiny")
    method = build_method(recipe)
    saver = pictures.Pictures(tmp_path)
    found = pictures.views(recipe, method, open_source(photos), saver)
    assert [k["kind"] for k in found] == ["original", "large crop", "small crop", "crop with a hole"]
    assert [k["side"] for k in found] == [None, 32, 16, 32]
    assert [len(k["columns"]) for k in found[1:]] == [k.count for k in method.views]
    column = np.asarray(Image.open(tmp_path / found[0]["columns"][0]["src"]).convert("RGBA"))
    shown = column[: column.shape[1], :, 3] > 128
    assert shown.any(1).sum() > shown.any(0).sum()  # 24 pixels high, 20 wide
    recipe = recipes.get("mae_tiny")
    found = pictures.views(recipe, build_method(recipe), open_source(photos), saver)
    assert [k["kind"] for k in found] == ["original", "large crop", "what the encoder sees"]
    seen = np.asarray(Image.open(tmp_path / found[2]["columns"][0]["src"]).convert("RGB"))
    gray = (255 * np.array(recipe.data.mean)).round()
    assert 0.5 < (np.abs(seen - gray).max(-1) < 8).mean() < 0.8  # 3/4 of the patches; WebP blurs their edges


def test_a_picture_is_written_once_and_small_ones_are_not_blown_up(tmp_path, photos):
    source, saver = open_source(photos), pictures.Pictures(tmp_path)
    assert saver.of(source, 3) is saver.of(source, 3)
    assert saver.of(source, 3)["width"] == 20 and saver.of(source, 3)["small"]
    gone = open_source(photos).subset([0])
    object.__setattr__(gone, "read", lambda i: Path("nowhere"))
    assert pictures.thumbnail(gone, 0, 16).shape == (16, 16, 3)
