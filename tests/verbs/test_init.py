"""Runs that start from weights, end to end: what is taken, what learns, what stays, and what comes out."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import manyviews as mv
from manyviews import checkpoint, cli
from manyviews.adaptation import Frozen, Full, LastBlocks, Warmed
from manyviews.backbones import Encoder
from manyviews.engine import loop
from manyviews.engine.build import build_method
from manyviews.engine.folder import CHECKPOINT
from manyviews.errors import UserError
from manyviews.settings import override
from manyviews.verbs import start
from manyviews.weights import Pretrained

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
SETTINGS = {"data.batch_size": 16, "monitor.epochs": 0, "data.holdout": 0.0, "step.precision": "float32"}
RESNET = {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """No pictures, and no steps to measure the pace."""
    monkeypatch.setattr("manyviews.verbs.pretrain.draw_views", lambda *args: None)
    monkeypatch.setattr("manyviews.verbs.pretrain.plots.training", lambda *args: [])
    monkeypatch.setattr("manyviews.verbs.pretrain.measure", lambda *args: None)


def pretrain(out, recipe="simclr_tiny", epochs=1.0, images=PIXELS, **options) -> mv.Run:
    options["settings"] = SETTINGS | options.get("settings", {})
    return mv.pretrain(images, recipe, epochs=epochs, out=out, **options)


def saved(path, name="vit_tiny_patch16_224", seed=3, size=32, **settings):
    """A file of weights in this library's own form."""
    torch.manual_seed(seed)
    encoder = Encoder(name, **settings)
    with torch.no_grad():
        for p in encoder.parameters():  # nothing is zero or one, as it is in new norms
            p.add_(0.05 * torch.randn_like(p))
    mv.export(Pretrained(encoder, (0.3,) * encoder.channels, (0.2,) * encoder.channels, size, "x"), "safetensors", path)
    return encoder.model.state_dict()


def at_start(run: mv.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "start.safetensors")


def first_method(monkeypatch) -> list:
    """The state of the method before the first step of every run."""
    found, real = [], loop.begin

    def begin(method, *args, **kwargs):
        context = real(method, *args, **kwargs)

        class Begin:
            def __enter__(self):
                run = context.__enter__()
                found.append({k: v.clone() for k, v in run.method.state_dict().items()})
                return run

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Begin()

    monkeypatch.setattr(loop, "begin", begin)
    return found


def test_teacher_and_student_start_from_a_file_of_another_library(tmp_path, monkeypatch, capsys):
    """A bare state dict as `torch.save` writes it, which says nothing of its images; resuming needs it no more."""
    torch.manual_seed(1)
    weights = Encoder("resnet18", **RESNET).model.state_dict()
    torch.save(weights, tmp_path / "other.pth")
    seen = first_method(monkeypatch)
    run = pretrain(tmp_path / "run", "dino_tiny", init=tmp_path / "other.pth")
    said = capsys.readouterr().err
    assert "other.pth, which holds resnet18" in said and "Assumed the mean and std of" in said
    assert "learning rate of" in said and "before the encoder moves" in said
    for name, x in weights.items():
        held = [v for k, v in seen[0].items() if k.endswith(f"encoder.model.{name}")]
        assert len(held) == 2 and all(torch.equal(v, x) for v in held), name
    assert all(torch.equal(x, weights[k]) for k, x in at_start(run).items())
    recipe = mv.recipes.get("dino_tiny")
    assert run.recipe.optimizer.lr == pytest.approx(recipe.optimizer.lr / 10, rel=0.01)
    assert run.recipe.adaptation == start.WARM
    same = pretrain(tmp_path / "same", run.recipe)  # the recipe says everything
    assert all(torch.equal(x, run.encoder.state_dict()[k]) for k, x in same.encoder.state_dict().items())
    (tmp_path / "other.pth").unlink()
    (run.folder / "summary.json").unlink()
    assert mv.resume(run.folder, PIXELS).summary["steps"] == run.summary["steps"]


def test_what_a_person_says_is_not_changed(tmp_path, capsys):
    saved(tmp_path / "w.safetensors", "resnet18", **RESNET)
    given = {"optimizer.lr": 0.5, "adaptation": "Full(layer_decay=0.5)", "data.mean": (0.1, 0.2, 0.3)}
    run = pretrain(tmp_path / "run", epochs=0.5, init=tmp_path / "w.safetensors", settings=given)
    assert (run.recipe.optimizer.lr, run.recipe.adaptation) == (0.5, Full(0.5))
    assert (run.recipe.data.mean, run.recipe.data.std) == ((0.1, 0.2, 0.3), (0.2,) * 3)
    assert "For a start from weights" not in capsys.readouterr().err
    recipe = override(mv.recipes.get("simclr_tiny"), "optimizer.lr", 0.25)  # a recipe of one's own
    own = pretrain(tmp_path / "own", recipe, 0.5, settings={start.SETTING: str(tmp_path / "w.safetensors")})
    assert (own.recipe.optimizer.lr, own.recipe.adaptation) == (0.25, Full())
    with pytest.raises(UserError, match=r"--init and --set backbone\.pretrained both say"):
        pretrain(tmp_path / "no", init="a", settings={start.SETTING: "b"})


def test_from_a_run_of_the_same_method_everything_is_taken_and_else_the_encoder(tmp_path, monkeypatch, capsys):
    first = pretrain(tmp_path / "first", "moco_v2_tiny")
    seen = first_method(monkeypatch)
    capsys.readouterr()
    again = pretrain(tmp_path / "again", "moco_v2_tiny", init=first.folder)
    assert "takes all of it: encoder, heads, and what moves" in capsys.readouterr().err
    kept = {k.removeprefix("method."): v for k, v in checkpoint.load_tensors(first.folder / CHECKPOINT)[0].items()}
    assert any("queue" in k for k in seen[0]) and all(torch.equal(v, kept[k]) for k, v in seen[0].items())
    assert again.recipe.adaptation == Full()  # its heads know their task
    smaller = {"method.queue_size": 32} if "queue_size" in first.recipe.method.settings else {"method.output_dim": 8}
    for recipe, settings, words in (
        ("moco_v2_tiny", smaller, "encoder alone: .* of its weights have other names or shapes"),
        ("byol_tiny", {}, "encoder alone: it is a run of moco_v2, and this one of byol"),
    ):
        run = pretrain(tmp_path / recipe, recipe, 0.5, init=first.folder, settings=settings)
        assert at_start(run).keys() == first.encoder.model.state_dict().keys()
        assert all(torch.equal(v, first.encoder.model.state_dict()[k]) for k, v in at_start(run).items())
        assert run.recipe.adaptation == start.WARM
        assert re.search(words, capsys.readouterr().err)


def test_timms_weights_from_its_cache(tmp_path, monkeypatch, capsys):
    import timm

    weights, asked, real = saved(tmp_path / "w.safetensors", seed=5), [], timm.create_model

    def create(name, pretrained=False, **settings):
        model = real(name, pretrained=False, **settings)
        if pretrained:
            asked.append(name)
            model.load_state_dict(weights)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr("manyviews.verbs.pretrain.train", lambda *args, **kwargs: None)
    monkeypatch.setattr("manyviews.verbs.pretrain.conclude", mv.Run)
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    settings = {"method.view.size": 32, "test_size": 32}
    run = pretrain(tmp_path / "run", init=f"timm:{name}", settings=settings)
    assert (run.recipe.backbone.name, run.recipe.backbone.settings["pretrained"], set(asked)) == (name, True, {name})
    assert run.recipe.data.mean == (0.5,) * 3  # this set's own, not ImageNet's
    assert all(torch.equal(x, weights[k]) for k, x in at_start(run).items())
    said = capsys.readouterr().err
    assert "Starts from timm's weights" in said and "for images of 224 pixels, and the views have 32" in said


def test_another_image_size_and_other_channels(tmp_path, capsys):
    """Positions are interpolated as timm does it, and the first layer is adapted as timm does it."""
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    weights = saved(tmp_path / "w.safetensors", **VIT)
    images = np.random.default_rng(1).integers(0, 256, (32, 48, 48), dtype=np.uint8)
    sizes = {"backbone.img_size": 48, "method.view.size": 48, "test_size": 48, "data.channels": 1}
    run = pretrain(tmp_path / "run", epochs=0.5, images=images, init=tmp_path / "w.safetensors", settings=sizes)
    found = at_start(run)
    resized = resample_abs_pos_embed(weights["pos_embed"], [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(found["pos_embed"], resized)
    torch.testing.assert_close(
        found["patch_embed.proj.weight"], adapt_input_conv(1, weights["patch_embed.proj.weight"])
    )
    assert torch.equal(found["blocks.2.mlp.fc1.weight"], weights["blocks.2.mlp.fc1.weight"])
    assert len(run.recipe.data.mean) == 1 and mv.load(run.folder).encoder.channels == 1
    bands = saved(tmp_path / "bands.safetensors", in_chans=4, **VIT)
    assert bands["patch_embed.proj.weight"].shape[1] == 4
    with pytest.raises(UserError, match="for images of 4 channels"):
        pretrain(tmp_path / "no", init=tmp_path / "bands.safetensors")


@pytest.mark.parametrize(
    ("recipe", "adaptation"),
    [
        ("dino_tiny", "Frozen()"),
        ("dino_tiny", "LoRA(rank=2)"),
        ("ijepa_tiny", "LastBlocks(1)"),
        ("ijepa_tiny", "Warmed(9, LastBlocks(1))"),
    ],
)
def test_what_stays_is_bit_identical_with_a_moving_average_too(adaptation, recipe, tmp_path):
    weights = saved(tmp_path / "w.safetensors", **VIT)
    settings = {"adaptation": adaptation, "optimizer.lr": 0.01, "optimizer.schedule": "Constant(1.0)"}
    settings["method.momentum"] = 0.5
    run = pretrain(tmp_path / "run", recipe, 2, init=tmp_path / "w.safetensors", settings=settings)
    found = load_file(run.folder / "encoder.safetensors")
    assert found.keys() == weights.keys()  # plain names, of LoRA too
    moved = {k for k, v in found.items() if not torch.equal(v, weights[k])}
    if adaptation == "Frozen()":
        assert not moved
    elif "LoRA" in adaptation:
        assert moved and all("blocks." in k and k.endswith("weight") for k in moved)
        x = torch.randn(2, 3, 32, 32)
        merged, live = mv.load(run.folder).encoder, run.method.kept_encoder.eval()
        torch.testing.assert_close(merged(x), live(x), rtol=1e-5, atol=1e-5)
    else:
        assert moved and all(k.startswith(("blocks.2.", "norm.")) for k in moved)


def test_statistics_of_batchnorm_stay_in_the_teacher_too(tmp_path):
    weights = saved(tmp_path / "w.safetensors", "resnet18", **RESNET)
    for adaptation, still, moving in (
        ("LastBlocks(1)", r"(conv1|bn1|layer[123])\.", r"layer4\.0\.bn1\.running_mean"),
        ("Full(keep_statistics=True)", r".*(running_|num_batches)", r"layer1\.0\.(conv1|bn1)\.weight"),
    ):
        settings = {"adaptation": adaptation, "optimizer.lr": 0.1}
        run = pretrain(tmp_path / adaptation, "dino_tiny", init=tmp_path / "w.safetensors", settings=settings)
        found = load_file(run.folder / "encoder.safetensors")
        moved = {k for k, v in found.items() if not torch.equal(v, weights[k])}
        assert {k for k in moved if re.match(still, k)} == set()
        assert {k for k in moved if re.match(moving, k)}


def test_heads_learn_before_the_encoder_moves(tmp_path, monkeypatch):
    """Of 20 steps the first two are the heads' alone, of student and teacher; then everything moves."""
    saved(tmp_path / "w.safetensors", "resnet18", **RESNET)
    states, real = [], loop.optim.clip

    def clip(method, limit):
        states.append({k: v.clone() for k, v in method.state_dict().items()})
        return real(method, limit)

    monkeypatch.setattr(loop.optim, "clip", clip)
    settings = {"optimizer.schedule": "Constant(1.0)", "adaptation": "Warmed(1, Full(0.75))"}
    pretrain(tmp_path / "run", "byol_tiny", 10, init=tmp_path / "w.safetensors", settings=settings)
    encoder = [k for k in states[0] if ".encoder." in k]
    assert any(k.startswith("target") for k in encoder)
    assert all(torch.equal(states[0][k], states[1][k]) for k in encoder)  # the statistics of BatchNorm too
    weights = [k for k in encoder if "running" not in k and "tracked" not in k]
    assert all(torch.equal(states[0][k], states[2][k]) for k in weights)
    heads = [k for k in states[0] if "predictor" in k and k.endswith("weight")]
    assert heads and not all(torch.equal(states[0][k], states[1][k]) for k in heads)
    assert not any(torch.equal(states[2][k], states[4][k]) for k in weights if k.endswith("conv1.weight"))
    assert all(not torch.equal(states[1][k], states[2][k]) for k in encoder if k.endswith("running_mean"))


def test_layers_and_waiting_combine():
    encoder = Encoder("vit_tiny_patch16_224", **VIT)
    plain, waiting = Full(0.5).groups(encoder), Warmed(1, Full(0.5)).groups(encoder)
    assert [g["lr_scale"] for g in plain] == [g["lr_scale"] for g in waiting]
    assert Warmed(2, LastBlocks(1)).later == LastBlocks(1) and Frozen().later == Frozen()
    with pytest.raises(UserError, match="does not wait itself"):
        Warmed(1, Warmed())


def test_on_the_command_line(tmp_path):
    from PIL import Image

    for i, pixels in enumerate(PIXELS):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    torch.manual_seed(2)
    weights = Encoder("vit_tiny_patch16_224", **VIT).model.state_dict()
    torch.save({"state_dict": weights}, tmp_path / "mine.pth")
    options = [f"--set={k}={v}" for k, v in SETTINGS.items()]
    options += ["--set=adaptation=LoRA(rank=2)", "--set=backbone.num_heads=2", "--out", str(tmp_path / "run")]
    init = ["--init", str(tmp_path / "mine.pth"), "--backbone", "vit_tiny_patch16_224"]
    cli.main(["pretrain", str(tmp_path / "photos"), "--recipe", "simclr_tiny", "--epochs", "0.5", *init, *options])
    assert load_file(tmp_path / "run" / "encoder.safetensors").keys() == weights.keys()
    recipe = mv.Run(tmp_path / "run").recipe
    assert recipe.backbone.settings["num_heads"] == 2 and build_method(recipe, trained=True)
