"""Exported files, loaded by the software that they are for, give the encoder's features."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import Reading
from manyviews.errors import UserError
from manyviews.evaluation.features import test_transform as to_test_pixels
from manyviews.weights import FORMATS, Pretrained, write
from manyviews.weights.card import card
from manyviews.weights.export import facts
from tests.weights.test_recognize import lively

VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}
PLAIN, DINOV3 = ("vit_tiny_patch16_224", VIT), ("vit_small_patch16_dinov3_qkvb", VIT)


def weights(name, settings, size=32):
    torch.manual_seed(0)
    encoder = Encoder(name, **settings).eval()
    lively(encoder.model)
    mean, std = (tuple(0.1 * (i % 5) + low for i in range(encoder.channels)) for low in (0.2, 0.3))
    return Pretrained(encoder, mean, std, size, "ours")


def images(found, size=32, b=3):
    return torch.rand(b, found.encoder.channels, size, size)


@torch.no_grad()
def features(found, x):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (found.mean, found.std))
    return found.encoder((x - mean) / std)


def near(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


# -- programs ------------------------------------------------------------------------------------------------------


DESCRIPTOR = ("resnet18", {"channels": (8, 8, 16, 16), "descriptor": 12})  # pooled and projected on its own


@pytest.mark.parametrize("case", [("vit_tiny_patch16_224", VIT | {"in_chans": 13}), DINOV3, DESCRIPTOR])
@torch.no_grad()
def test_graphs_of_their_own_size_resize_nothing(case, tmp_path):
    import onnx
    import onnxruntime

    ours = weights(*case)
    found = write(ours, "onnx", tmp_path / "m.onnx")
    graph = onnx.load(found.path)
    assert not any(node.op_type == "Resize" for node in graph.graph.node)
    x = images(ours, b=5)
    session = onnxruntime.InferenceSession(found.path)
    near(session.run(None, {"images": x.numpy()})[0], features(ours, x))
    told = {p.key: p.value for p in graph.metadata_props}
    assert json.loads(told["mean"]) == list(ours.mean) and json.loads(told["std"]) == list(ours.std)
    assert (told["size"], told["channels"]) == ("32", str(ours.encoder.channels)) and "in [0, 1]" in told[
        "preprocessing"
    ]
    assert session.get_modelmeta().custom_metadata_map == told
    assert (told["library"], told["version"], "recipe" in told) == ("manyviews", mv.__version__, False)
    assert 0 <= found.difference < 1e-4 * found.scale and float(told["difference"]) == pytest.approx(
        found.difference, 0.01
    )
    assert "greatest difference" in found.notes[0]


@pytest.mark.parametrize("size", [32, 96])  # shown whole, and cropped from a short side of 109
def test_the_documented_program_gives_the_features_of_embed(size, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    image = Image.effect_mandelbrot((150, 121), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    image = Image.merge("RGB", [band.rotate(90 * k) for k, band in enumerate(image.split())])
    (turned := Image.Exif())[0x0112] = 6
    image.save(tmp_path / "photos" / "a.jpg", exif=turned)
    image.putalpha(image.getchannel("G"))
    image.resize((80, 200)).save(tmp_path / "photos" / "b.png")
    image.convert("P").save(tmp_path / "photos" / "c.gif", transparency=0)
    image.convert("L").save(tmp_path / "photos" / "d.jpg")
    names = ["a.jpg", "b.png", "c.gif", "d.jpg"]
    ours = weights("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, size)
    mv.embed(ours, tmp_path / "photos", tmp_path / "features.npy")
    assert json.loads((tmp_path / "features.npy.json").read_text())["id"] == names
    mv.export(ours, "onnx", tmp_path / "backbone.onnx")
    told = (Path(__file__).parents[2] / "docs" / "weights.md").read_text().partition("## Features elsewhere")[2]
    program = "\n".join(re.findall(r"```python\n(.*?)```", told, re.DOTALL))
    asked = '["photos/a.jpg", "photos/b.jpg"]'
    assert asked in program
    monkeypatch.chdir(tmp_path)
    exec(program.replace(asked, f"{[f'photos/{name}' for name in names]}"), found := {})
    near(found["features"], torch.from_numpy(np.load(tmp_path / "features.npy")))

    steps = re.search(r"```python\n(import numpy.*?)```", card(ours), re.DOTALL)[1]
    exec(steps.replace("photo.jpg", "photos/a.jpg"), found := {})
    with torch.no_grad():
        near(ours.encoder(torch.from_numpy(found["x"])[None]), torch.from_numpy(np.load(tmp_path / "features.npy")[:1]))


@torch.no_grad()
def test_graphs_of_any_size(tmp_path):
    import onnxruntime

    ours = weights(*PLAIN)
    session = onnxruntime.InferenceSession(mv.export(ours, "onnx", tmp_path / "m.onnx", dynamic_size=True))
    for size in (32, 48):
        x = images(ours, size)
        near(session.run(None, {"images": x.numpy()})[0], features(ours, x))
    swin = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    for case, format, message in (
        (("swin_tiny_patch4_window7_224", swin), "onnx", "takes only images of 32 pixels"),
        (PLAIN, "torch", "--dynamic-size is for onnx, torch_export"),
    ):
        with pytest.raises(UserError, match=message):
            write(weights(*case), format, tmp_path / "none", dynamic_size=True)
    assert not (tmp_path / "none").exists()


@torch.no_grad()
def test_programs_of_pytorch(tmp_path):
    ours = weights(*PLAIN)
    x = images(ours, b=4)
    traced = write(ours, "torchscript", tmp_path / "m.pt")
    extra = {"manyviews.json": ""}
    near(torch.jit.load(traced.path, _extra_files=extra)(x), features(ours, x))
    assert json.loads(extra["manyviews.json"])["encoder"]["name"] == ours.encoder.name
    program = write(ours, "torch_export", tmp_path / "m.pt2", dynamic_size=True)
    near(torch.export.load(program.path).module()(x), features(ours, x))
    near(torch.export.load(program.path).module()(images(ours, 48)[:1] * 0), features(ours, images(ours, 48)[:1] * 0))
    stages = weights("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, 64)
    program = write(stages, "torch_export", tmp_path / "stages.pt2", dynamic_size=True)
    near(
        torch.export.load(program.path).module()(images(stages, 96)[:2] * 0),
        features(stages, images(stages, 96)[:2] * 0),
    )
    for found in (traced, program):
        with pytest.raises(UserError, match=r"holds a .*program.*never run here"):
            mv.load(found.path)


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from manyviews.weights import programs

    right = programs.normalized

    def wrong(found, dynamic_size):
        model, encoder = right(found, dynamic_size)
        model.mean += 1
        return model, encoder

    monkeypatch.setattr(programs, "normalized", wrong)
    with pytest.raises(UserError, match="gives other features than the network: they differ by"):
        write(weights(*PLAIN), "torchscript", tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


# -- folders and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [DINOV3, ("resnet18", {"channels": (8, 8, 16, 16), "in_chans": 13})])
@torch.no_grad()
def test_the_hubs_folder_is_read_by_transformers_timm_and_here(case, tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    ours = weights(*case)
    folder = mv.export(ours, "huggingface", tmp_path / "hub")
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "README.md",
    }
    x = torch.randn(2, ours.encoder.channels, 32, 32)
    wanted = ours.encoder(x)
    near(AutoModel.from_pretrained(folder).eval()(x).pooler_output, wanted)
    near(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x), wanted)
    again = mv.load(folder)
    near(again.encoder(x), wanted)
    assert (again.mean, again.std, again.test_size) == (ours.mean, ours.std, 32) and "Assumed" not in again.note
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n") and "| Training data | unknown |" in card
    if ours.encoder.channels == 3:
        image = Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 100).convert("RGB")
        seen = AutoImageProcessor.from_pretrained(folder)(image)["pixel_values"][0]
        pixels = torch.from_numpy(to_test_pixels(image, 32)) / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.mean, ours.std))
        torch.testing.assert_close(seen, (pixels - mean) / std)


def test_the_card_of_a_run_has_its_recipe_and_its_numbers(tmp_path):
    import shutil

    run = Path(shutil.copytree(Path(__file__).parents[1] / "data" / "run_93ea1ef", tmp_path / "a|b_run"))
    loaded = mv.load(run)
    native = Pretrained(Encoder("resnet18", channels=(8, 8, 8, 8)), loaded.mean, loaded.std, 32, loaded.name)
    text = (mv.export(native, "huggingface", tmp_path / "hub") / "README.md").read_text()
    assert facts(native)["recipe"] == mv.Run(run).recipe.name
    for wanted in (
        "# a\\|b\\_run",
        "| Method | byol |",
        "| Training data | demo:train |",
        "| Training images | 1967 |",
    ):
        assert wanted in text
    assert "| knn | trained | 65.6 % | 50.0 to 81.2 % |" in text


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"layers": (1, 1, 1, 1)}),
        ("resnet50", {"layers": (1, 1, 1, 1), "cardinality": 4, "base_width": 8}),
        ("vit_tiny_patch16_224", VIT),
    ],
)
@torch.no_grad()
def test_torchvisions_own_networks_load_the_export(name, settings, tmp_path):
    ours = weights(name, settings, 64)
    found = write(ours, "torchvision", tmp_path / "tv.pth")
    scope = {"torchvision": torchvision, "torch": torch, "file": found.path}
    exec(found.notes[0].partition(": ")[2].replace("; ", "\n"), scope)  # as the note says, strictly
    x = torch.randn(2, 3, 64, 64)
    near(scope["model"].eval()(x), ours.encoder(x))
    near(mv.load(found.path, **({"num_heads": 3} if "vit" in name else {})).encoder(x), ours.encoder(x))


def test_detectron2s_names_of_a_resnet(tmp_path):
    ours = weights("resnet50", {"layers": (1, 1, 1, 1)}, 64)
    found = torch.load(mv.export(ours, "detectron2", tmp_path / "d2.pth"), weights_only=True)
    state = ours.encoder.model.state_dict()
    for theirs, timms in (
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.0.conv3.norm.bias", "layer1.0.bn3.bias"),
        ("res5.0.shortcut.weight", "layer4.0.downsample.0.weight"),
        ("res5.0.shortcut.norm.weight", "layer4.0.downsample.1.weight"),
    ):
        assert torch.equal(found["model"][theirs], state[timms])
    assert found["matching_heuristics"] is True and not any("bn" in k for k in found["model"])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        near(mv.load(tmp_path / "d2.pth").encoder(x), ours.encoder(x))


@pytest.mark.parametrize(
    ("format", "case", "message"),
    [
        ("torchvision", ("convnext_atto", {}), "convnext_atto has no counterpart"),
        ("torchvision", ("vit_tiny_patch16_224", VIT | {"reg_tokens": 2}), "torchvision has no network like vit_tiny"),
        ("torchvision", ("resnet18", {"in_chans": 4}), "it has 4 channels, and torchvision's has 3"),
        ("detectron2", ("vit_tiny_patch16_224", VIT), "detectron2 has no network like vit_tiny"),
        ("detectron2", ("resnet18", {"stem": "small"}), "for ResNets with their usual stem"),
        ("huggingface", ("resnet18", {"stem": "small"}), "timm cannot build the stem 'small'"),
        ("onxx", ("resnet18", {}), "Did you mean 'onnx'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(format, case, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        write(weights(*case), format, tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


# -- what our own files remember -----------------------------------------------------------------------------------


def test_reading_and_any_number_of_channels_stay_with_the_weights(tmp_path):
    reading = Reading(channels=(7, 3, 1, 0), range=(-1000.0, 3000.0), frames="all")
    made = weights("resnet18", {"in_chans": 4, "stem": "small", "channels": (8, 8, 8, 8)})
    ours = Pretrained(made.encoder, made.mean, made.std, 32, "ours", reading=reading)
    again = mv.load(mv.export(ours, "safetensors", tmp_path / "m.safetensors"))
    assert again.reading == reading and (again.mean, again.std) == (ours.mean, ours.std)
    x = images(ours)
    near(features(again, x), features(ours, x))


TRICKY = {
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_small_patch16_dinov3": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,
    "deit3_small_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {
        "img_size": 56,
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 3, 3),
    },
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "test_efficientnet": {},
    "test_mambaout": {},
    "mobilenetv3_small_050": {},
}


@pytest.mark.parametrize("name", TRICKY)
@torch.no_grad()
def test_round_trips(name, tmp_path):
    """What timm saves, and what is exported here, is loaded again: the same features."""
    size = TRICKY[name].get("img_size", 64)
    ours = weights(name, TRICKY[name], size)
    x = torch.randn(2, 3, size, size)
    wanted = ours.encoder(x)
    torch.save(ours.encoder.model.state_dict(), tmp_path / "timm.pth")
    for file, settings in (
        (tmp_path / "timm.pth", {"backbone": name, **TRICKY[name]}),
        (mv.export(ours, "torch", tmp_path / "m.pth"), {"backbone": name, **TRICKY[name]}),
        (mv.export(ours, "safetensors", tmp_path / "m.safetensors"), {}),
        (mv.export(ours, "timm", tmp_path / "folder"), {}),
    ):
        found = mv.load(file, **settings)
        torch.testing.assert_close(found.encoder(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_every_format_is_named_in_the_shell():
    from typing import get_args, get_type_hints

    from manyviews.cli.use import export

    assert set(get_args(get_type_hints(export)["format"])) == set(FORMATS)
    assert np.all([found.about for found in FORMATS.values()])
