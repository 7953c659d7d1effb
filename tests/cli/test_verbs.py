"""Every verb, once, as the documentation shows it."""

import csv
import functools
import inspect
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews import cli, recipes
from manyviews.backbones import Encoder
from manyviews.checkpoint import load_tensors, save_tensors
from manyviews.data import Reading, open_source
from manyviews.evaluation import extract
from manyviews.evaluation.features import test_transform as to_test_pixels
from manyviews.settings import override
from manyviews.weights import Pretrained

from .conftest import TINY, pictures


def examples(verb: str) -> list[list[str]]:
    """The arguments of each command in the help of a verb."""
    lines = (cli.VERBS[verb].__doc__ or "").replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if " manyviews " in line and not line.strip()[0].isupper()]
    return [w[w.index("manyviews") + 1 :] for w in words]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_examples_in_the_help_work(manyviews, verb: str, monkeypatch):
    result = manyviews(verb, "--help")
    assert result.code == 0 and "For example:" in result.out
    calls = []

    def recorded(name, function):
        @functools.wraps(function)
        def record(*args, **named):
            calls.append((name, inspect.signature(function).bind(*args, **named).arguments))

        return record

    monkeypatch.setattr(cli, "VERBS", {k: recorded(k, v) for k, v in cli.VERBS.items()})
    found = examples(verb)
    assert verb in [args[0] for args in found]
    for args in found:
        assert manyviews(*args).code == 0, args
    for name, given in calls:
        if name in ("pretrain", "sweep"):
            varied = [v.split(",")[0] for v in given.get("vary", ())]
            for more in (varied, given.get("baseline", ())):
                name = given.get("recipe", "auto")
                recipe = recipes.get("photos_cpu_small" if name == "auto" else name)
                for path, value in cli._settings((*given.get("set", ()), *more)).items():
                    recipe = override(recipe, path, value)


def test_the_overview_has_every_verb_and_needs_no_torch(manyviews):
    code = "import sys\nfrom manyviews import cli\ntry: cli.main(['--help'])\nfinally: sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0 and all(verb in result.stdout for verb in cli.VERBS)
    assert manyviews().code == 2


def test_a_verb_has_the_same_name_in_python():
    shell_only = {"show", "list", "demo"}
    assert all(callable(getattr(mv, verb)) for verb in cli.VERBS if verb not in shell_only)
    with pytest.warns(DeprecationWarning, match=r"manyviews\.report"):
        assert mv.page is mv.report


def test_list(manyviews, tmp_path: Path):
    some = {"methods": "byol", "recipes": "byol_tiny", "views": "Cutout", "protocols": "knn", "backbones": "resnet18"}
    for what, name in some.items():
        result = manyviews("list", what, "--json", tmp_path / "list.json")
        assert result.code == 0
        assert name in json.loads((tmp_path / "list.json").read_text()) and name in result.out


def test_pretrain_evaluate_embed_show(manyviews, photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    result = manyviews("pretrain", photos, *TINY, "--out", run, "--json", tmp_path / "pretrain.json")
    assert result.code == 0, result.err
    assert str(run) in result.out
    facts = json.loads((tmp_path / "pretrain.json").read_text())
    assert facts["summary"]["images"] == 90 and facts["recipe"]["epochs"] == 1
    assert {p.name for p in (run / "plots").iterdir()} == {"views.png", "loss.png"}

    result = manyviews("evaluate", run, "--data", photos, "--protocol", "knn", "--json", tmp_path / "report.json")
    assert result.code == 0, result.err
    assert "untrained" in result.out and "pixels" in result.out
    assert (run / "evaluations" / "1" / "report.json").read_text() == (tmp_path / "report.json").read_text()

    result = manyviews("evaluate", run, "--data", photos, "--protocol", "knn", "--no-baselines")
    assert result.code == 0 and "untrained" not in result.out

    result = manyviews("embed", run, photos, "--out", tmp_path / "features.parquet")
    assert result.code == 0, result.err
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    assert len(table["id"]) == 90 and set(table["label"]) == {"plain", "red", "green"}
    loaded = mv.load(run)
    exact = extract(loaded.encoder, open_source(photos), test_size=32, mean=loaded.mean, std=loaded.std)
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), exact.x.numpy())

    assert manyviews("show", run).code == 0
    assert "data.batch_size=16" in manyviews("show", run, "--settings").out.splitlines()
    assert manyviews("resume", run).code == 0  # nothing is left to do
    result = manyviews("resume", run, "--epochs", 0.5, "--out", tmp_path / "longer")
    assert result.code == 0 and "starts from the weights of" in result.err
    assert mv.Run(tmp_path / "longer").summary["steps"] > 0


@pytest.mark.parametrize("ending", ["parquet", "CSV", "npz", "npy", "safetensors"])
def test_features_are_written_as_the_ending_says(
    ending: str, manyviews, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch
):
    """In a form that other software reads, with a map of them; the labels are those of the folders."""
    monkeypatch.setattr("manyviews.verbs.embed.lay_out", lambda x: (x[:, :2].numpy(), "its first dimensions"))
    out, beside = tmp_path / f"f.{ending}", tmp_path / f"f.{ending}.json"
    result = manyviews("embed", run_folder, photos, "--out", out, "--map", "--json", tmp_path / "said.json")
    assert result.code == 0 and "x and y are a map by its first dimensions." in result.out, result.err
    if ending == "parquet":
        table = pq.read_table(out).to_pydict()
        x = np.array(table["embedding"], np.float32)
    elif ending == "CSV":
        with out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = {k: [row[k] for row in rows] for k in rows[0]}
        x = np.array([table[f"e{i}"] for i in range(len(table) - 4)], np.float32).T
    elif ending == "npz":
        table = dict(np.load(out, allow_pickle=False))
        x = table["embedding"]
    else:
        table = json.loads(beside.read_text())
        x = np.load(out, allow_pickle=False) if ending == "npy" else load_tensors(out)[0]["embedding"].numpy()
        assert str(beside) in result.out
    loaded = mv.load(run_folder)
    exact = extract(loaded.encoder, open_source(photos), test_size=32, mean=loaded.mean, std=loaded.std)
    assert x.dtype == np.float32 and np.array_equal(x, exact.x.numpy())
    assert list(table["id"]) == exact.ids and [name.split("/")[0] for name in table["id"]] == list(table["label"])
    assert np.array_equal(np.array([table["x"], table["y"]], np.float32).T, x[:, :2])
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["images"] == 90 and set(said["columns"]) == {"id", "label", "embedding", "x", "y"}
    if beside.exists():
        out.unlink()
        assert "exists already" in manyviews("embed", run_folder, photos, "--out", out).err


def test_features_are_not_written_under_another_ending(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    for name in ("features.xlsx", "features"):
        result = manyviews("embed", run_folder, photos, "--out", tmp_path / name)
        assert result.code == 2 and ".parquet, .csv, .npz, .npy, .safetensors" in result.err
        assert not (tmp_path / name).exists()


def test_exports_compute_what_the_encoder_computes(manyviews, run_folder: Path, tmp_path: Path):
    import onnxruntime
    import safetensors.torch

    loaded = mv.load(run_folder)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        exact = loaded.encoder(normalized(images, loaded))

    def export(form: str, name: str) -> Path:
        result = manyviews("export", run_folder, "--format", form, "--out", tmp_path / name)
        assert result.code == 0, result.err
        return tmp_path / name

    session = onnxruntime.InferenceSession(export("onnx", "m.onnx"))
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], exact.numpy(), rtol=1e-3, atol=1e-4)
    weights = loaded.encoder.model.state_dict()
    again = mv.load(export("safetensors", "m.safetensors"))
    assert (again.mean, again.std, again.test_size) == (loaded.mean, loaded.std, loaded.test_size)
    for found in (
        again.encoder.model.state_dict(),
        safetensors.torch.load_file(tmp_path / "m.safetensors"),
        torch.load(export("torch", "m.pt"), weights_only=True),
    ):
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[k], weights[k]) for k in weights)
    result = manyviews("export", run_folder, "--format", "timm", "--out", tmp_path / "timm")
    assert result.code == 2 and "stem" in result.err and not (tmp_path / "timm").exists()  # timm lacks this stem


def normalized(images: torch.Tensor, weights: Pretrained) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (weights.mean, weights.std))
    return (images - mean) / std


def test_timms_own_loader_reads_the_export(tmp_path: Path):
    import timm

    ours = Pretrained(Encoder("resnet18", channels=(8, 8, 16, 16)).eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), 32, "ours")
    mv.export(ours, "timm", tmp_path / "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), ours.encoder(x))
    # Its own transform makes the same pixels of an image as an evaluation.
    image = Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    seen = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)(image)
    torch.testing.assert_close(seen, normalized(torch.from_numpy(to_test_pixels(image, 32)) / 255, ours))


def test_prepare_decodes_once_and_a_run_reads_its_canvases(manyviews, tmp_path: Path):
    folder = pictures(tmp_path / "photos", 40)
    (folder / "7.png").write_bytes(b"broken")
    arguments = ("prepare", folder, "--out", tmp_path / "canvases", "--canvas", "32", "--verify")
    for _ in range(2):  # the second time there is nothing left to do
        out = manyviews(*arguments).out
        assert "39 canvases of 32 pixels" in out and "7.png" in out and "checksums are right" in out
    run = mv.pretrain(tmp_path / "canvases", "simclr_tiny", epochs=1, out=tmp_path / "run")
    assert run.summary["images"] == 39
    shard = next((tmp_path / "canvases").glob("shard-*"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    result = manyviews(*arguments)
    assert result.code == 2 and "damaged" in result.err


def test_search(manyviews, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, name = tmp_path / "found.json", sorted(photos.rglob("*.png"))[1]
    result = manyviews("search", run_folder, name, "--in", photos, "--k", "2", "--json", found)
    assert result.code == 0 and name.name in result.out and "features are kept in" in result.out
    assert json.loads(found.read_text())["queries"][0]["ids"][0].endswith(name.name)
    result = manyviews("search", run_folder, "--in", photos)
    assert result.code == 2 and "give either a query or --text" in result.err


def test_curate(manyviews, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made, args = tmp_path / "list.csv", ("curate", photos, "--with", run_folder, "--duplicates", "off")
    result = manyviews(*args, "--balance", "6", "--out", made, "--json", tmp_path / "c.json")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["kept"] == 6 and f"Kept 6 of {found['images']} images." in result.out and "list.html" in result.out
    result = manyviews("embed", run_folder, made, "--out", tmp_path / "features.csv")
    assert result.code == 0 and "Wrote the features of 6 images." in result.out
    result = manyviews("curate", photos, "--with", run_folder, "--duplicates", "none", "--out", tmp_path / "other.csv")
    assert result.code == 2 and "--duplicates is auto, off, or a similarity such as 0.9, not 'none'." in result.err


def test_duplicates(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    folder = tmp_path / "twice"
    shutil.copytree(photos / "red", folder / "red")
    shutil.copy(photos / "red" / "3.png", folder / "copy.png")
    found = tmp_path / "duplicates.csv"
    args = ("duplicates", run_folder, folder, "--out", found, "--json", tmp_path / "d.json")
    result = manyviews(*args)
    assert result.code == 0, result.err
    assert "2 of 31 images look like copies of one another, in 1 group." in result.out
    assert "planted copies are found" in result.err and str(tmp_path / "duplicates.html") in result.out
    with found.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [(row["group"], row["id"], row["identical"]) for row in rows] == [
        ("1", "copy.png", "yes"),
        ("1", "red/3.png", "yes"),
    ]
    assert json.loads((tmp_path / "d.json").read_text())["groups"][0]["ids"] == ["copy.png", "red/3.png"]
    assert "red/3.png" in (tmp_path / "duplicates.html").read_text(encoding="utf-8")
    assert manyviews(*args).code == 2  # nothing is overwritten
    for out, threshold, says in (("other.csv", 1.5, "1.5"), ("page.html", 0.9, "page.csv")):
        result = manyviews("duplicates", run_folder, folder, "--threshold", threshold, "--out", tmp_path / out)
        assert result.code == 2 and says in result.err and not (tmp_path / out).exists()


def test_transfer(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    shutil.copytree(photos, tmp_path / "sets" / "photos")
    for i in range(30):  # on both sides of the split, which goes by names
        shutil.copy(photos / "red" / f"{i}.png", tmp_path / "sets" / "photos" / "red" / f"copy {i}.png")
    (tmp_path / "sets" / "photos" / "red" / "bad.png").write_bytes(b"no image")
    out = ("--out", tmp_path / "out", "--json", tmp_path / "t.json")
    result = manyviews("transfer", run_folder, tmp_path / "sets", "--protocol", "knn", *out)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "t.json").read_text())
    assert [(r["set"], r["protocol"]) for r in found["table"]] == [("photos", "knn"), ("mean", "knn")]
    assert f"{100 * found['table'][0]['top1']:.1f} %" in result.out
    leaked, bad = found["notes"]
    assert leaked.startswith("photos: ") and leaked in " ".join(result.out.split())
    assert bad.startswith("photos: 1 images could not be read") and "bad.png" in bad
    result = manyviews("transfer", run_folder, tmp_path / "sets", "--protocol", "clustering", "--out", tmp_path / "x")
    assert result.code == 2 and "clustering" in result.err


def test_diagnose_and_select(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    result = manyviews("diagnose", run_folder, photos, "--images", 40, "--json", tmp_path / "d.json")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["verdict"] in result.out.replace("\n", " ") and 1 <= found["rankme"] <= found["dim"]
    other, broken = tmp_path / "other", tmp_path / "broken"
    shutil.copytree(run_folder, other)
    # A run of a sweep that broke down is left out.
    shutil.copytree(run_folder, broken)
    (broken / "encoder.safetensors").unlink()
    result = manyviews("select", run_folder, other, broken, "--json", tmp_path / "s.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "s.json").read_text())["chosen"] in (str(run_folder), str(other))
    assert "broken is not finished, and was left out" in result.out
    # Of two runs none is left out: one that goes on is taken as it is.
    result = manyviews("select", run_folder, broken)
    assert result.code == 0 and "left out" not in result.out, result.err
    (broken / "checkpoint.safetensors").unlink()
    result = manyviews("select", run_folder, broken)
    assert result.code == 2 and "is not finished, and has no checkpoint yet" in result.err


def test_segment_and_propagate(manyviews, run_folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    for folder, where in (("scenes", "images/train"), ("scenes", "images/test"), ("videos", "frames/one")):
        root = tmp_path / folder
        masks = root / where.replace("images", "masks").replace("frames", "masks")
        (root / where).mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(6):
            mask = np.zeros((64, 64), np.uint8)
            mask[16:48, 4 + 3 * i : 36 + 3 * i] = 1
            pixels = np.where(mask[..., None] == 1, (220, 40, 40), (40, 40, 200)) + rng.integers(-20, 20, (64, 64, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / where / f"{i:02}.png")
            Image.fromarray(mask).save(masks / f"{i:02}.png")
    args = ("segment", run_folder, tmp_path / "scenes", "--epochs", 20, "--lrs", 0.01, "--json", tmp_path / "s.json")
    result = manyviews(*args)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["value"] > 0.6 and "an untrained encoder" in found["baselines"]
    assert found["verdict"] in result.out.replace("\n", " ")
    result = manyviews("propagate", run_folder, tmp_path / "videos", "--no-baseline", "--json", tmp_path / "p.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "p.json").read_text())["value"] > 0.5
    broken = tmp_path / "broken"
    shutil.copytree(run_folder, broken)
    tensors, facts = load_tensors(broken / "encoder.safetensors")
    next(v for k, v in tensors.items() if k.endswith("weight")).fill_(float("nan"))
    save_tensors(broken / "encoder.safetensors", tensors, facts)
    for verb in (("segment", broken, tmp_path / "scenes"), ("embed", broken, "demo", "--out", tmp_path / "x.parquet")):
        result = manyviews(*verb)
        assert result.code == 2 and "its training diverged" in result.err
    for verb in ("segment", "detect", "propagate"):
        result = manyviews(verb, run_folder, tmp_path / "none")
        assert result.code == 2 and "none" in result.err


def test_report(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    args = ("report", run_folder, "--data", photos, "--images", 12, "--out", tmp_path / "page")
    result = manyviews(*args, "--json", tmp_path / "r.json")
    assert result.code == 0, result.err
    page = Path(json.loads((tmp_path / "r.json").read_text())["file"])
    assert page == tmp_path / "page" / "index.html" and "simclr" in page.read_text(encoding="utf-8")
    assert manyviews(*args).code == 2  # nothing is overwritten
    result = manyviews("report", tmp_path / "none", "--out", tmp_path / "other")
    assert result.code == 2 and "none" in result.err and not (tmp_path / "other").exists()


def test_large_images_become_tiles_and_wide_ones_canvases(manyviews, tmp_path):
    (tmp_path / "scans").mkdir()
    levels = np.random.default_rng(0).integers(0, 4096, (150, 200), dtype=np.uint16)
    levels[:100, :100] = 0
    Image.fromarray(levels).save(tmp_path / "scans" / "a.png")
    (tmp_path / "scans" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = manyviews("prepare", "scans", "--out", "tiles", "--tile", 64, "--overlap", 8, "--json", "t.json")
    assert found.code == 0, found.err
    assert "11 tiles of 1 images in tiles." in found.out
    assert "Left out 1 tiles that hold one value or no data." in found.out
    assert "Left out torn.png: corrupt or truncated" in found.out
    assert json.loads((tmp_path / "t.json").read_text())["images"] == 11
    assert manyviews("prepare", "scans", "--out", "tiles", "--tile", 32).code == 2

    found = manyviews("prepare", "tiles", "--out", "canvases", "--canvas", 32, "--channels", 1)
    assert "little contrast: use --range auto, or --range 0,4095" in found.err
    found = manyviews("prepare", "tiles", "--out", "bright", "--canvas", 32, "--channels", 1, "--range", "0,4095")
    assert found.code == 0 and "Black is 0 and white 4095 (given): none" in found.err
    assert open_source(tmp_path / "bright").reading == Reading(1, (0, 4095))
