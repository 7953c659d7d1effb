"""What learns, what stays, and that plain timm names come out: in a training run, end to end."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import manyviews as mv
from manyviews.adaptation import LPFT, Frozen, Full, LastBlocks, LoRA
from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.recipes import get
from manyviews.settings import from_json, override, to_json
from manyviews.types import Progress

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)


def vit() -> Encoder:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return Encoder("vit_tiny_patch16_224", **small)


def learning(encoder: Encoder) -> set[str]:
    return {name.split(".")[0] for name, p in encoder.model.named_parameters() if p.requires_grad}


def test_what_learns_is_what_was_asked_for():
    assert not learning(Frozen().begin(vit()))
    assert learning(LastBlocks(1).begin(vit())) == {"blocks", "norm"}
    names = {n for n, p in LastBlocks(2).begin(vit()).model.named_parameters() if p.requires_grad}
    assert {n[:9] for n in names} == {"blocks.1.", "blocks.2.", "norm.weig", "norm.bias"}
    resnet = LastBlocks(1).begin(Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)))
    assert learning(resnet) == {"layer4"}
    with pytest.raises(UserError, match="has 3 blocks"):
        LastBlocks(4).begin(vit())
    encoder, at = vit(), Progress(3, 10, 5)
    parameters = list(encoder.parameters())
    LPFT(0.5).before_step(encoder, parameters, at)
    assert not learning(encoder)
    LPFT(0.3).before_step(encoder, parameters, at)
    assert learning(encoder) == learning(vit())


def test_batchnorm_of_what_stays_stays():
    encoder = LastBlocks(1).begin(Encoder("resnet18", stem="small", channels=(8, 8, 16, 16))).train()
    before = copy.deepcopy(encoder.state_dict())
    encoder(torch.randn(8, 3, 32, 32))
    moved = {k.split(".")[1] for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"layer4"}


def test_layers_learn_slower_the_deeper_they_lie():
    """The scales that timm gives a fine-tuned network with a head."""
    from timm.optim import param_groups_layer_decay

    encoder = vit()
    found = {id(p): g["lr_scale"] for g in Full(0.7).groups(encoder) for p in g["params"]}
    encoder.model.add_module("head_of_ours", torch.nn.Linear(24, 3))
    for group in param_groups_layer_decay(encoder.model, layer_decay=0.7):
        for p in group["params"]:
            assert found.get(id(p), 1.0) == pytest.approx(group["lr_scale"])
    recipe = override(get("mae_tiny"), "adaptation", "Full(layer_decay=0.5)")
    method = build_method(recipe)
    optimizer = optim.build(method, recipe.optimizer, torch.device("cpu"), recipe.adaptation)
    lr = optim.schedule(optimizer, recipe.optimizer, 32, Progress(3, 10, 5))
    rates = {id(p): g["lr"] / lr for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(method.decoder.embed.weight)] == 1
    assert rates[id(method.encoder.model.norm.weight)] == pytest.approx(0.5)
    assert rates[id(method.encoder.model.patch_embed.proj.weight)] == pytest.approx(0.5**3)


@pytest.mark.parametrize(
    "adaptation", [Frozen(), LPFT(1.0), LoRA(rank=2), LastBlocks(1)], ids=lambda a: type(a).__name__
)
def test_a_run_changes_what_learns_and_writes_plain_names(adaptation, tmp_path):
    recipe = override(get("mae_tiny"), "adaptation", adaptation)
    assert from_json(to_json(recipe)) == recipe
    settings = {"monitor.epochs": 0, "data.holdout": 0.0, "step.precision": "float32"}
    run = mv.pretrain(PIXELS, recipe, settings=settings, out=tmp_path / "run")
    plain = build_method(get("mae_tiny")).kept_encoder
    written = load_file(tmp_path / "run" / "encoder.safetensors")
    assert set(written) == set(plain.model.state_dict())
    changed = {k for k, v in plain.model.state_dict().items() if not torch.equal(v, written[k])}
    if isinstance(adaptation, (Frozen, LPFT)):
        assert not changed
    elif isinstance(adaptation, LoRA):
        assert changed and all("blocks" in name and name.endswith("weight") for name in changed)
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(mv.load(tmp_path / "run").encoder.eval()(x), run.method.kept_encoder.eval()(x))
    else:
        assert {".".join(name.split(".")[:2]) for name in changed} <= {"blocks.1", "norm.weight", "norm.bias"}
