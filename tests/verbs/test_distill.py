"""`distill`: any teacher into any backbone, in a run that needs no file but its own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews import cli
from manyviews.backbones import Encoder
from manyviews.checkpoint import load_tensors, save_tensors
from manyviews.engine import Stopped, training
from manyviews.engine.training import Training
from manyviews.weights import Pretrained
from tests.ranks import on_ranks

SMALL = {
    "method.view.size": 32,
    "test_size": 32,
    "data.batch_size": 16,
    "data.holdout": 0,
    "method.prototypes": 4,
    "method.queue_size": 32,
    "backbone.channels": (8, 8, 8, 8),
    "backbone.layers": (1, 1, 1, 1),
    "step.precision": "float32",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Thirty-three noisy pictures, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(33):
        pixels = rng.integers(0, 80, (40, 36, 3)) + rng.integers(0, 170, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture(scope="module")
def teacher() -> Pretrained:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", layers=(1, 1, 1, 1), channels=(16, 16, 16, 24))
    return Pretrained(encoder.eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 40, "a large network")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(run: mv.Run) -> dict[str, torch.Tensor]:
    return load_tensors(run.folder / "encoder.safetensors")[0]


def test_a_second_student_uses_the_first_ones_pass_and_a_run_needs_only_itself(photos, teacher, tmp_path, monkeypatch):
    looks, extract = [], training.extract_all

    def counted(encoders, *args, **kwargs):
        encoders[""].register_forward_hook(lambda *_: looks.append(1))
        return extract(encoders, *args, **kwargs)

    monkeypatch.setattr(training, "extract_all", counted)
    small = {"epochs": 2, "recipe": "distill_cpu"}
    first = mv.distill(teacher, photos, settings=SMALL, out=tmp_path / "first", **small)
    facts = load_tensors(first.folder / "encoder.safetensors")[1]
    assert facts["encoder"]["channels"] == [8, 8, 8, 8], "the student is exported"
    kept = load_tensors(first.folder / "checkpoint.safetensors")[0]
    for name, value in teacher.encoder.state_dict().items():
        assert torch.equal(kept[f"method.teacher.encoder.{name}"], value), name
    assert kept["method.teacher.mean"].tolist() == pytest.approx(teacher.mean)

    assert len(looks) == 1, "33 images are one batch"
    second = mv.distill(teacher, photos, settings=SMALL, out=tmp_path / "second", target="relations", **small)
    assert second.recipe.method.settings["target"] == "relations"
    assert len(looks) == 1, "the teacher looks at the images again"


def looked(photos: Path, encoder: Encoder) -> torch.Tensor:
    """What a network gives for every image, as a run asks for it."""
    source = mv.data.open_source(photos).subset(range(6, 33))
    return training._see(source, torch.device("cpu"), encoder, 40, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def test_every_rank_has_the_features_of_all_images_by_their_number(photos, teacher, cache):
    shutil.rmtree(cache, ignore_errors=True)
    first, second = on_ranks(looked, photos, teacher.encoder)
    shutil.rmtree(cache)
    alone = looked(photos, teacher.encoder)
    found = teacher.embed(sorted(photos.glob("*.png"))[6:33], unreadable="nan")
    assert np.isnan(found[1]).all() and not alone[1].any(), "07.png cannot be read"
    torch.testing.assert_close(alone, torch.from_numpy(np.nan_to_num(found)), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_bits_without_the_teachers_file(
    photos, teacher, cache, tmp_path, monkeypatch
):
    options = {"epochs": 3, "recipe": "distill_cpu", "settings": SMALL, "target": "prototypes"}
    whole = mv.distill(teacher, photos, out=tmp_path / "whole", **options)
    after = Training.after

    def stop(self, *args):
        after(self, *args)
        if self.step == 3:
            self.save()
            raise Stopped("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "after", stop)
        with pytest.raises(Stopped):
            mv.distill(teacher, photos, out=tmp_path / "parts", **options)
    shutil.rmtree(cache)
    again = mv.resume(tmp_path / "parts")
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_a_model_teaches_its_labels_and_other_teachers_are_refused(photos, teacher, tmp_path, capsys):
    labeled = tmp_path / "labeled"
    for i, path in enumerate(sorted(photos.glob("*.png"))):
        if path.name != "07.png":
            (labeled / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, labeled / "ab"[i % 2] / path.name)
    model = mv.adapt(teacher, labeled, tmp_path / "model", strategy="linear")
    more = [f"--set={k}={v}" for k, v in SMALL.items()]
    out = tmp_path / "soft"
    arguments = ["--data", str(photos), "--target", "soft", "--view", "same", "--epochs", "1", "--out", str(out)]
    cli.main(["distill", str(tmp_path / "model"), *arguments, *more])
    run = mv.Run(out)
    assert run.recipe.method.settings["answers"].settings["classes"] == 2
    kept = load_tensors(out / "checkpoint.safetensors")[0]
    assert torch.equal(kept["method.teacher.head.weight"], model.head.weight)
    assert kept["method.online.projector.weight"].shape[0] == 2
    student = mv.load(out / "model")
    assert student.classes == ("a", "b") and student.temperature == model.temperature
    assert torch.equal(student.head.weight, kept["method.online.projector.weight"])
    assert torch.equal(student.encoder.model.conv1.weight, kept["method.online.encoder.model.conv1.weight"])
    cli.main(["predict", str(out / "model"), str(photos), "--out", str(tmp_path / "p.csv")])
    assert "Predicted 32 images" in capsys.readouterr().out
    with pytest.raises(mv.UserError, match="no classes to give hard labels"):
        mv.distill(teacher, photos, target="hard")
    plain = tmp_path / "plain.safetensors"
    save_tensors(plain, teacher.encoder.model.state_dict(), {})
    with pytest.raises(mv.UserError, match="does not say what it holds"):
        mv.pretrain(photos, "distill_cpu", settings={**SMALL, "method.teacher": str(plain)})
