"""Low-rank matrices: how many there are, that merging them changes nothing; rates of blocks."""

import copy

import pytest
import torch
from torch import nn

from manyviews.adaptation import LastBlocks, LoRA
from manyviews.adaptation.adaptation import blocks_of
from manyviews.backbones import Encoder
from manyviews.errors import UserError


def vit() -> Encoder:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return Encoder("vit_tiny_patch16_224", **small)


def resnet() -> Encoder:
    """Wide enough for oneDNN's kernels, so that no convolution is another one in disguise."""
    return Encoder("resnet18", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16))


def learning(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize(("rank", "count"), [(1, 36_864), (4, 147_456), (8, 294_912), (16, 589_824)])
def test_attention_has_the_published_number_of_parameters(rank: int, count: int):
    """Queries and values of ViT-B: 12 blocks, 2 layers of 768 x 768, rank (768 + 768) each; or one of 768 x 2304."""
    with torch.device("meta"):
        encoder = Encoder("vit_base_patch16_224")
        assert learning(LoRA(rank=rank, layers="attention").begin(encoder)) == count


def test_every_layer_has_rank_times_its_sides():
    for encoder in (vit(), resnet()):
        kinds = (nn.Linear,) if encoder.is_transformer else (nn.Linear, nn.Conv2d)
        weights = [m.weight for name, m in encoder.model.named_modules() if isinstance(m, kinds) and name != "conv1"]
        expected = sum(2 * (len(w) + w[0].numel()) for w in weights)
        lengths = sum(len(w) for w in weights)
        assert learning(LoRA(rank=2).begin(copy.deepcopy(encoder))) == expected
        assert learning(LoRA(rank=2, magnitude=True).begin(encoder)) == expected + lengths
    with pytest.raises(UserError, match="no attention"):
        LoRA(layers="attention").begin(resnet())


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("make", [vit, resnet])
def test_merged_equals_unmerged(make, magnitude: bool):
    """At the start it is the encoder that came; after learning, one of plain names with the same features."""
    encoder = make()
    for m in encoder.modules():  # statistics and scales as those of a trained network
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    x, names = torch.randn(20, 3, 32, 32), set(encoder.model.state_dict())
    encoder.eval()
    with torch.no_grad():
        before = encoder(x)
        how = LoRA(rank=2, magnitude=magnitude)
        changed = how.begin(copy.deepcopy(encoder)).eval()
        torch.testing.assert_close(changed(x), before, rtol=1e-5, atol=1e-5)
        for name, p in changed.named_parameters():
            if ".lora_B" in name:
                p.normal_(std=0.05)
            if "magnitude" in name:
                p.mul_(torch.empty_like(p).uniform_(0.9, 1.1))
        learned = changed(x)
        merged = how.finish(changed).eval()
        assert set(merged.model.state_dict()) == names
        assert (learned - before).abs().max() > 1e-3
        torch.testing.assert_close(merged(x), learned, rtol=1e-5, atol=1e-5)


def test_statistics_stay_while_matrices_learn():
    encoder = LoRA(rank=2).begin(resnet()).train()
    before = copy.deepcopy(dict(encoder.named_buffers()))
    encoder(torch.randn(8, 3, 32, 32)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in encoder.named_buffers())


@pytest.mark.parametrize("make", [vit, resnet])
def test_blocks_have_rates_that_fall_with_depth(make):
    """Block i from the top learns at gamma ** i; what follows the blocks, at the whole rate; nothing twice."""
    encoder = LastBlocks(3, decay=0.8, keep_statistics=True).begin(make()).train()
    scale = {id(p): g["lr_scale"] for g in LastBlocks(3, decay=0.8).groups(encoder) for p in g["params"]}
    names = blocks_of(encoder)[::-1]
    found = {}
    for name, p in encoder.model.named_parameters():
        block = next((i for i, b in enumerate(names) if name.startswith(f"{b}.")), None)
        if block is not None and block < 3:
            found.setdefault(block, set()).add(scale[id(p)])
        else:
            assert scale.get(id(p)) == (1.0 if name.startswith("norm") else None), name
            assert p.requires_grad == name.startswith("norm")
    assert found == {i: {0.8**i} for i in range(3)}
    before = copy.deepcopy(dict(encoder.named_buffers()))
    encoder(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in encoder.named_buffers())


def test_convolutions_that_standardize_their_weights_are_refused():
    with torch.device("meta"), pytest.raises(UserError, match="standardize"):
        LoRA(rank=2).begin(Encoder("resnetv2_50x1_bit"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_small_patch16_dinov3_qkvb", {"img_size": 32, "patch_size": 8}),
        ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8}),
        ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4, "depths": (1, 1), "num_heads": (1, 1)}),
    ],
)
def test_layers_learn_whose_biases_timm_keeps_apart(name: str, settings: dict):
    """timm then uses the weight of the layer by itself, and what is beside it is not called."""
    if "depths" not in settings:
        settings = {**settings, "embed_dim": 24, "depth": 2, "num_heads": 2}
    encoder = Encoder(name, **{"embed_dim": 24, **settings}).eval()
    for m in encoder.modules():  # Swin v2 begins with branches that add nothing
        if isinstance(m, nn.LayerNorm):
            nn.init.normal_(m.weight, 1, 0.1)
    x = torch.randn(2, 3, settings["img_size"], settings["img_size"])
    before = encoder(x).detach()
    changed = LoRA(rank=2).begin(copy.deepcopy(encoder)).eval()
    torch.testing.assert_close(changed(x), before, rtol=1e-5, atol=1e-5)
    for n, p in changed.named_parameters():
        if ".lora_" in n:
            torch.nn.init.normal_(p, std=0.1)
    changed(x).square().sum().backward()
    assert not [n for n, p in changed.named_parameters() if ".lora_" in n and (p.grad is None or not p.grad.any())]
    torch.testing.assert_close(LoRA(rank=2).finish(changed)(x), changed(x), rtol=1e-4, atol=1e-4)
