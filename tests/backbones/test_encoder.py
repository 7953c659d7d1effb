from __future__ import annotations

import inspect
import json
import math

import pytest
import timm
import torch

from manyviews.backbones import Encoder, names, sincos
from manyviews.errors import UserError

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def vit(**settings) -> Encoder:
    return Encoder("vit_tiny_patch16_224", **{**VIT, **settings}).eval()


def images(size: int = 32, b: int = 2) -> torch.Tensor:
    return torch.randn(b, 3, size, size)


ARCHITECTURES = {
    "resnet10t small": ("resnet10t", {"stem": "small"}, 32, 512),
    "resnet18": ("resnet18", {}, 64, 512),
    "resnet18 narrow": ("resnet18", {"stem": "half", "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, 32, 16),
    "resnet50": ("resnet50", {}, 64, 2048),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}, 32, 192),
    "convnext": ("convnext_femto", {}, 64, 384),
    "efficientnet": ("efficientnet_b0", {}, 64, 1280),
    "mobilenet": ("mobilenetv3_small_050", {}, 64, 1024),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 56, "window_size": 7}, 56, 768),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_features_weights_and_settings_of_many_architectures(case: str):
    name, settings, size, dim = ARCHITECTURES[case]
    encoder = Encoder(name, **settings).eval()
    x = images(size)
    features, patches = encoder(x), encoder.patches(x)
    assert encoder.embed_dim == dim and features.shape == (2, dim)
    assert patches.ndim == 3 and patches.shape[0] == 2 and patches.shape[2] == encoder.patch_dim

    plain = timm.create_model(name, num_classes=0, **encoder.timm_kwargs).eval()
    weights = encoder.model.state_dict()
    if settings.get("stem") == "half":  # a narrow 3x3 convolution where timm has a wide 7x7
        theirs = plain.state_dict()
        assert weights.keys() <= theirs.keys()
        assert {k for k, v in weights.items() if v.shape != theirs[k].shape} == {
            "conv1.weight",
            "layer1.0.conv1.weight",
            *(f"bn1.{k}" for k in ("weight", "bias", "running_mean", "running_var")),
        }
    else:
        plain.load_state_dict(weights, strict=True)
    if "stem" not in settings:
        assert torch.equal(plain(x), features)

    again = Encoder.from_spec(json.loads(json.dumps(encoder.spec))).eval()
    assert again.spec == encoder.spec
    again.load_weights(weights)
    assert torch.equal(again(x), features)


def test_patches_average_to_the_pooled_features():
    """Row by row, in any memory layout: the pool of ResNet and Swin is the mean over places."""
    for name, size, settings in (("resnet18", 64, {}), ("swin_tiny_patch4_window7_224", 56, {"img_size": 56})):
        encoder, x = Encoder(name, **settings).eval(), images(size)
        torch.testing.assert_close(encoder.patches(x).mean(1), encoder(x), atol=1e-4, rtol=1e-4)


def test_patches_of_a_feature_map_go_row_by_row():
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval()
    x = images(64)
    found = encoder.model.forward_features(x)
    assert torch.equal(encoder.patches(x)[:, 8 * 2 + 5], found[:, :, 2, 5])


def test_a_specification_from_a_file_fetches_nothing(tmp_path):
    """The header of a file of weights is other people's text."""
    Encoder.from_spec({"name": "resnet18", "stem": "native", "pretrained": True})  # no download, no error
    for key in ("checkpoint_path", "pretrained_cfg", "cache_dir"):
        with pytest.raises(UserError, match=key):
            Encoder.from_spec({"name": "resnet18", key: str(tmp_path / "x.bin")})


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_small_stems_are_as_wide_as_the_first_stage(name: str):
    encoder = Encoder(name, stem="small", channels=(8, 16, 16, 16)).train()
    first = encoder.model.layer1[0]
    assert encoder.model.conv1.out_channels == encoder.model.bn1.num_features == first.conv1.in_channels == 8
    assert (first.downsample is None) == (name == "resnet18")  # a bottleneck still widens its block
    encoder(images(32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_small_stems_keep_the_resolution():
    for name in ("resnet18", "resnet10t"):
        sizes = {}
        for stem in ("native", "half", "small"):
            encoder = Encoder(name, stem=stem).eval()
            sizes[stem] = encoder.model.forward_features(images(32)).shape[-1]
            assert encoder.test_size == 32 or stem == "native"
        assert sizes == {"native": 1, "half": 2, "small": 4}


# -- vision transformers -------------------------------------------------------------------------------------------


def seen_by_blocks(encoder: Encoder, *args) -> list[int]:
    lengths: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda _, a: lengths.append(a[0].shape[1])) for b in encoder.model.blocks]
    encoder.tokens(*args)
    for hook in hooks:
        hook.remove()
    return lengths


def test_dropped_tokens_never_enter_the_blocks():
    encoder, x = vit(), images()
    keep = torch.rand(2, 64).argsort(1)[:, :16]
    assert encoder.tokens(x, keep).shape == (2, 17, 24)
    assert seen_by_blocks(encoder, x, keep) == [17, 17]
    assert seen_by_blocks(encoder, x) == [65, 65]


def test_all_tokens_are_the_models_own():
    encoder, x = vit(), images()
    everything = torch.arange(64).expand(2, 64)
    expected = encoder.model.forward_features(x)
    assert torch.equal(encoder.tokens(x), expected)
    assert torch.equal(encoder.tokens(x, everything), expected)
    assert torch.equal(encoder.tokens(x, everything)[:, 0], encoder(x))
    assert torch.equal(encoder.patches(x), expected[:, 1:])
    order = torch.randperm(64)
    torch.testing.assert_close(encoder.tokens(x, everything[:, order])[:, 1:], expected[:, 1:][:, order])


def test_kept_tokens_do_not_know_what_the_dropped_patches_show():
    encoder, x = vit(), images()
    keep = torch.tensor([[0, 9, 63], [1, 2, 40]])
    changed = torch.randn_like(x)
    for b in range(2):
        for n in keep[b].tolist():
            rows, columns = slice(n // 8 * 4, n // 8 * 4 + 4), slice(n % 8 * 4, n % 8 * 4 + 4)
            changed[b, :, rows, columns] = x[b, :, rows, columns]
    torch.testing.assert_close(encoder.tokens(changed, keep), encoder.tokens(x, keep))
    assert not torch.allclose(encoder.tokens(changed), encoder.tokens(x))


def test_positions_are_added_before_dropping():
    """The same picture in another patch gives another token."""
    encoder = vit()
    x = images(4).repeat(1, 1, 8, 8)
    one, other = (encoder.tokens(x, torch.full((2, 1), n))[:, 1] for n in (0, 63))
    assert not torch.allclose(one, other)


def test_register_tokens_are_prefix_tokens():
    encoder = vit(reg_tokens=4)
    assert encoder.num_prefix_tokens == 5
    assert encoder.tokens(images(), torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 8, 24)
    assert encoder.patches(images()).shape == (2, 64, 24)


def test_transformers_take_local_crops():
    encoder = vit()
    assert encoder(images(16)).shape == (2, 24) and encoder.patches(images(16)).shape == (2, 16, 24)
    assert (encoder.patch_size, encoder.grid, encoder.test_size) == (4, (8, 8), 32)
    for call in (encoder, encoder.patches, encoder.tokens):
        with pytest.raises(UserError, match="Patches of 4 pixels do not tile an image of 18 x 18"):
            call(images(18))


def test_a_frozen_patch_projection_gets_no_gradient():
    encoder = vit()
    encoder.freeze_patch_embed()
    encoder(images()).sum().backward()
    without = {n for n, p in encoder.model.named_parameters() if p.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_a_frozen_patch_projection_is_initialized_as_moco_v3s():
    encoder = vit()
    encoder.freeze_patch_embed()
    weight, bias = encoder.model.patch_embed.proj.weight, encoder.model.patch_embed.proj.bias
    bound = math.sqrt(6 / (weight[0].numel() + len(weight)))
    assert 0.98 * bound < weight.abs().max() <= bound and weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not bias.any()
    encoder = vit()
    encoder.load_weights(vit().model.state_dict())  # what came from elsewhere stays
    before = encoder.model.patch_embed.proj.weight.clone()
    encoder.freeze_patch_embed()
    assert torch.equal(encoder.model.patch_embed.proj.weight, before)


def test_several_maps_are_no_map():
    encoder = Encoder("crossvit_tiny_240", img_size=240)
    with pytest.raises(UserError, match="no single map"):
        encoder.patches(images(240, 1))


def test_sincos_positions():
    found = sincos((3, 5), 8)
    for row in range(3):
        for column in range(5):
            expected = [f(p * w) for p in (row, column) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            torch.testing.assert_close(found[5 * row + column], torch.tensor(expected))
    encoder = vit(position="sincos")
    assert not encoder.model.pos_embed.requires_grad
    assert torch.equal(encoder.model.pos_embed[0, 0], torch.zeros(24))
    assert torch.equal(encoder.model.pos_embed[0, 1:], sincos((8, 8), 24))


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 4}, {"position": "sincos"}])
def test_kinds_of_features_are_dinos(settings: dict):
    """What hooks see after each block, through the final norm."""
    encoder, x = vit(depth=6, **settings), images()
    blocks: list[torch.Tensor] = []
    for block in encoder.model.blocks:
        block.register_forward_hook(lambda *a: blocks.append(a[2]))
    with torch.no_grad():
        torch.nn.init.normal_(encoder.model.norm.weight)
        pooled = encoder(x)
        last = [encoder.model.norm(b) for b in blocks[-4:]]
        prefix = 1 + settings.get("reg_tokens", 0)
        wanted = {
            "pooled": pooled,
            "last4": torch.cat([t[:, 0] for t in last], 1),
            "cls_mean": torch.cat([last[-1][:, 0], last[-1][:, prefix:].mean(1)], 1),
        }
        assert torch.equal(encoder.features(x), pooled)
        for kind, features in wanted.items():
            torch.testing.assert_close(encoder.features(x, kind), features)
            assert encoder.width(kind) == features.shape[1]
        assert encoder.features(images(16), "last4").shape == (2, 96)
    with pytest.raises(UserError, match="do not tile an image of 18 x 18"):
        encoder.features(images(18), "cls_mean")


@pytest.mark.parametrize(
    ("encoder", "kind", "message"),
    [
        (lambda: Encoder("resnet18", stem="small"), "last4", "resnet18 cannot give features 'last4': choose a plain"),
        (lambda: Encoder("resnet18", stem="small"), "last", "no kind of features 'last'. Did you mean 'last4'"),
        (lambda: vit(depth=3), "last4", "has 3 blocks: take 'cls_mean'"),
        (lambda: vit(class_token=False, global_pool="avg"), "cls_mean", "has no class token: take 'pooled'"),
    ],
)
def test_features_that_a_backbone_does_not_have_are_refused(encoder, kind: str, message: str):
    made = encoder()
    for ask in (lambda: made.features(images(), kind), lambda: made.width(kind)):
        with pytest.raises(UserError, match=message):
            ask()
    assert made.features(images()).shape == (2, made.width("pooled"))


@pytest.mark.parametrize("ask", ["tokens", "patch_size", "grid", "num_prefix_tokens", "freeze_patch_embed"])
def test_convolutional_networks_say_what_they_cannot(ask: str):
    encoder = Encoder("resnet18", channels=(8, 8, 8, 8), stem="small")
    with pytest.raises(UserError, match=r"resnet18 cannot .*such as vit_small_patch16_224"):
        found = getattr(encoder, ask)
        found(images()) if ask == "tokens" else found()


# -- names, settings, weights --------------------------------------------------------------------------------------


def test_names_are_timms():
    assert len(names()) > 1000 and names() == sorted(names())
    assert names("resnet1?") == ["resnet18"]
    assert all(n.startswith("vit_") for n in names("vit_*"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet81", {}, r"no backbone 'resnet81'\. Did you mean resnet18,.*`manyviews list backbones`"),
        ("resnet18", {"patch_size": 4}, r"cannot make the backbone resnet18 with \{'patch_size': 4\}: .*patch_size"),
        ("vit_tiny_patch16_224", {"embed_dim": 32, "num_heads": 3}, "divisible by num_heads"),
        ("resnet18.no_such_weights", {}, "Invalid pretrained tag"),
        ("resnet18", {"num_classes": 10}, "num_classes of resnet18 cannot be changed"),
        ("resnet18", {"in_chans": 1}, "in_chans of resnet18 cannot be changed"),
        ("resnet18", {"norm_layer": torch.nn.GroupNorm}, "numbers, texts or tuples"),
        ("convnext_femto", {"stem": "small"}, "convnext_femto has no small stem"),
        ("resnet18", {"position": "sincos"}, "cannot have sine-cosine positions"),
        ("vit_tiny_patch16_224", {"position": "sincos", "pos_embed": "none"}, "no positions to fix"),
        ("resnet18", {"stem": "small", "pretrained": True}, "native stem"),
    ],
)
def test_unsuitable_settings_are_refused(name: str, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        Encoder(name, **settings)


def test_a_classifier_in_the_weights_is_left_out():
    with_classifier = timm.create_model("resnet18")
    encoder = Encoder("resnet18")
    encoder.load_weights(with_classifier.state_dict())
    x = images(64)
    torch.testing.assert_close(
        encoder.eval()(x), with_classifier.eval().forward_head(with_classifier.forward_features(x), pre_logits=True)
    )


def test_weights_of_another_architecture_are_recognized():
    encoder = Encoder("resnet50")
    before = encoder.model.state_dict()["conv1.weight"].clone()
    with pytest.raises(UserError, match=r"\d+ weights do not fit resnet50's 318 .*seem to be of resnet18\."):
        encoder.load_weights(timm.create_model("resnet18").state_dict())
    assert torch.equal(encoder.model.state_dict()["conv1.weight"], before)


def test_weights_of_other_settings_or_names_are_told_apart():
    encoder = Encoder("resnet18", stem="small")
    weights = timm.create_model("resnet18").state_dict()
    with pytest.raises(
        UserError, match=r"1 weights .*\(the first is conv1.weight\): they were made with other settings"
    ):
        encoder.load_weights(weights)
    with pytest.raises(UserError, match="other names than timm's"):
        encoder.load_weights({f"module.{k}": v for k, v in weights.items()})


def test_normalization_and_size_are_those_of_timms_weights():
    encoder = Encoder("vit_tiny_patch16_224")
    assert (encoder.mean, encoder.std, encoder.test_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert Encoder("resnet18").mean == (0.485, 0.456, 0.406)


def test_the_constructors_own_settings_can_be_listed():
    """Recipes write out the defaults of keyword-only parameters."""
    own = {k for k, p in inspect.signature(Encoder).parameters.items() if p.kind == p.KEYWORD_ONLY}
    assert own == {"stem", "pretrained", "position"}
