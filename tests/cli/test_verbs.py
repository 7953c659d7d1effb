"""Every verb, once, as the documentation shows it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import manyviews as mv
from manyviews import cli

from .conftest import TINY


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_has_examples(manyviews, verb: str):
    result = manyviews(verb, "--help")
    assert result.code == 0
    assert "For example:" in result.out
    assert f"manyviews {verb}" in result.out


def test_the_overview_has_every_verb(manyviews):
    result = manyviews("--help")
    assert result.code == 0
    assert all(verb in result.out for verb in cli.VERBS)
    assert manyviews().code == 2


def test_help_answers_without_torch():
    code = "import sys\nfrom manyviews import cli\ntry: cli.main(['--help'])\nfinally: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("what", ["methods", "recipes", "views", "protocols", "backbones"])
def test_list(manyviews, what: str, tmp_path: Path):
    result = manyviews("list", what, "--json", tmp_path / "list.json")
    assert result.code == 0
    names = json.loads((tmp_path / "list.json").read_text())
    expected = {
        "methods": "byol",
        "recipes": "byol_tiny",
        "views": "Cutout",
        "protocols": "knn",
        "backbones": "resnet18",
    }
    assert expected[what] in names and expected[what] in result.out


def test_pretrain_evaluate_embed_show(manyviews, photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    result = manyviews("pretrain", photos, *TINY, "--out", run, "--json", tmp_path / "pretrain.json")
    assert result.code == 0, result.err
    assert str(run) in result.out
    facts = json.loads((tmp_path / "pretrain.json").read_text())
    assert facts["summary"]["images"] == 120 and facts["recipe"]["epochs"] == 1

    result = manyviews("evaluate", run, "--data", photos, "--json", tmp_path / "report.json")
    assert result.code == 0, result.err
    assert "untrained" in result.out and "pixels" in result.out
    json.loads((tmp_path / "report.json").read_text())
    assert (run / "evaluations" / "1" / "report.json").exists()

    result = manyviews("embed", run, photos, "--out", tmp_path / "features.parquet")
    assert result.code == 0, result.err
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    assert len(table["id"]) == 120
    assert set(table["label"]) == {"plain", "red", "green"}
    loaded = mv.load(run)
    from manyviews.data import open_source
    from manyviews.evaluation import extract

    exact = extract(loaded.encoder, open_source(photos), test_size=32, mean=loaded.mean, std=loaded.std)
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), exact.x.numpy())

    assert manyviews("show", run).code == 0
    settings = manyviews("show", run, "--settings").out
    assert "data.batch_size=16" in settings.splitlines()


def test_resume_of_a_finished_run_says_so(manyviews, run_folder: Path):
    assert manyviews("resume", run_folder).code == 0


def test_exports_compute_what_the_encoder_computes(manyviews, run_folder: Path, tmp_path: Path):
    import onnxruntime
    import safetensors.torch

    loaded = mv.load(run_folder)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        exact = loaded.encoder(
            (images - torch.tensor(loaded.mean).view(3, 1, 1)) / torch.tensor(loaded.std).view(3, 1, 1)
        )

    def export(form: str, name: str) -> Path:
        result = manyviews("export", run_folder, "--format", form, "--out", tmp_path / name)
        assert result.code == 0, result.err
        return tmp_path / name

    session = onnxruntime.InferenceSession(export("onnx", "m.onnx"))
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], exact.numpy(), rtol=1e-3, atol=1e-4)

    weights = loaded.encoder.model.state_dict()
    for found in (
        safetensors.torch.load_file(export("safetensors", "m.safetensors")),
        torch.load(export("torch", "m.pt"), weights_only=True),
    ):
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[k], weights[k]) for k in weights)

    again = mv.load(tmp_path / "m.safetensors")
    assert (again.mean, again.std, again.test_size) == (loaded.mean, loaded.std, loaded.test_size)
    assert all(torch.equal(v, weights[k]) for k, v in again.encoder.model.state_dict().items())


def test_timms_own_loader_reads_the_export(manyviews, photos: Path, tmp_path: Path):
    import timm

    native = ("--set", "backbone.stem=native", "--out", tmp_path / "run")
    assert manyviews("pretrain", photos, *TINY, *native).code == 0
    result = manyviews("export", tmp_path / "run", "--format", "timm", "--out", tmp_path / "timm")
    assert result.code == 0, result.err
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    loaded = mv.load(tmp_path / "run")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), loaded.encoder(x))
    config = timm.data.resolve_data_config({}, model=model)
    assert config["mean"] == pytest.approx(loaded.mean) and config["std"] == pytest.approx(loaded.std)
    # And its own transform looks at images as an evaluation does.
    from PIL import Image

    from manyviews.evaluation.features import test_transform as ours

    image = Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    seen = timm.data.create_transform(**config, is_training=False)(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    torch.testing.assert_close(seen, (torch.from_numpy(ours(image, 32)) / 255 - mean) / std)


def test_a_stem_that_timm_cannot_build_is_refused(manyviews, run_folder: Path, tmp_path: Path):
    result = manyviews("export", run_folder, "--format", "timm", "--out", tmp_path / "timm")
    assert result.code == 2 and "stem" in result.err
    assert not (tmp_path / "timm").exists()


def test_prepare_decodes_once_and_what_it_wrote_can_be_trained_on(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "7.png").write_bytes(b"broken")
    arguments = ["prepare", str(tmp_path / "photos"), "--out", str(tmp_path / "canvases"), "--canvas", "32", "--verify"]
    for _ in range(2):  # the second time there is nothing left to do
        cli.main(arguments)
        out = capsys.readouterr().out
        assert "39 canvases of 32 pixels" in out and "7.png" in out and "checksums are right" in out
    run = mv.pretrain(tmp_path / "canvases", "simclr_tiny", epochs=1, out=tmp_path / "run")
    direct = mv.pretrain(tmp_path / "photos", "simclr_tiny", epochs=1, out=tmp_path / "direct")
    assert run.summary["images"] == direct.summary["images"] - 1
    shard = next((tmp_path / "canvases").glob("shard-*"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(SystemExit) as e:
        cli.main(arguments)
    assert e.value.code == 2 and "damaged" in capsys.readouterr().err
