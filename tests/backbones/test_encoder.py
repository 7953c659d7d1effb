from __future__ import annotations

import inspect
import json
import math

import pytest
import timm
import torch

from manyviews.backbones import Encoder, names, patch_features, represent, sincos, take, width
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
    features, patches = encoder(x), patch_features(encoder, x)
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
        torch.testing.assert_close(patch_features(encoder, x).mean(1), encoder(x), atol=1e-4, rtol=1e-4)


def test_patches_of_a_feature_map_go_row_by_row():
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval()
    x = images(64)
    found = encoder.model.forward_features(x)
    assert torch.equal(patch_features(encoder, x)[:, 8 * 2 + 5], found[:, :, 2, 5])


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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"stem": "small", "channels": (4, 4, 8, 8)}),
        ("resnet26d", {"stem": "half"}),
        ("vit_tiny_patch16_224", VIT),
        ("convnext_atto", {}),
    ],
)
def test_any_number_of_channels(name: str, settings: dict):
    encoder = Encoder(name, in_chans=13, **settings).eval()
    again = Encoder.from_spec(json.loads(json.dumps(encoder.spec))).eval()
    again.load_weights(encoder.model.state_dict())
    x = torch.randn(2, 13, 32, 32)
    with torch.no_grad():
        assert again.channels == 13 and torch.equal(again(x), encoder(x)) and again(x).shape[1] == encoder.embed_dim
    assert len(encoder.mean) == len(encoder.std) == 13 and encoder.mean[12] == encoder.mean[0]
    assert Encoder("resnet18", in_chans=1).mean == pytest.approx((0.449,), abs=1e-3)  # the average of three


def test_small_stems_keep_the_resolution():
    for name in ("resnet18", "resnet10t"):
        sizes = {}
        for stem in ("native", "half", "small"):
            encoder = Encoder(name, stem=stem).eval()
            sizes[stem] = encoder.model.forward_features(images(32)).shape[-1]
            assert encoder.test_size == 32 or stem == "native"
        assert sizes == {"native": 1, "half": 2, "small": 4}


# -- vision transformers -------------------------------------------------------------------------------------------


def tokens(encoder: Encoder, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Prefix tokens, and after them the patches."""
    found = encoder.features(x, keep=keep)
    return torch.cat([found.prefix, found.patches], 1)


def seen_by_blocks(encoder: Encoder, *args) -> list[int]:
    lengths: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda _, a: lengths.append(a[0].shape[1])) for b in encoder.model.blocks]
    encoder.features(args[0], keep=args[1] if len(args) > 1 else None)
    for hook in hooks:
        hook.remove()
    return lengths


def test_dropped_tokens_never_enter_the_blocks():
    encoder, x = vit(), images()
    keep = torch.rand(2, 64).argsort(1)[:, :16]
    assert tokens(encoder, x, keep).shape == (2, 17, 24)
    assert seen_by_blocks(encoder, x, keep) == [17, 17]
    assert seen_by_blocks(encoder, x) == [65, 65]


def test_all_tokens_are_the_models_own():
    encoder, x = vit(), images()
    everything = torch.arange(64).expand(2, 64)
    expected = encoder.model.forward_features(x)
    assert torch.equal(tokens(encoder, x), expected)
    assert torch.equal(tokens(encoder, x, everything), expected)
    assert torch.equal(tokens(encoder, x, everything)[:, 0], encoder(x))
    assert torch.equal(patch_features(encoder, x), expected[:, 1:])
    order = torch.randperm(64)
    torch.testing.assert_close(tokens(encoder, x, everything[:, order])[:, 1:], expected[:, 1:][:, order])


def test_kept_tokens_do_not_know_what_the_dropped_patches_show():
    encoder, x = vit(), images()
    keep = torch.tensor([[0, 9, 63], [1, 2, 40]])
    changed = torch.randn_like(x)
    for b in range(2):
        for n in keep[b].tolist():
            rows, columns = slice(n // 8 * 4, n // 8 * 4 + 4), slice(n % 8 * 4, n % 8 * 4 + 4)
            changed[b, :, rows, columns] = x[b, :, rows, columns]
    torch.testing.assert_close(tokens(encoder, changed, keep), tokens(encoder, x, keep))
    assert not torch.allclose(tokens(encoder, changed), tokens(encoder, x))


def eva(name: str = "vit_small_patch16_dinov3", **settings) -> Encoder:
    """A small transformer with rotary positions, as DINOv3's."""
    torch.manual_seed(0)
    return Encoder(name, **{**VIT, **settings}).eval()


def eva02(**settings) -> Encoder:
    """One with learned positions beside rotary ones, and its norm after the pool."""
    return eva("eva02_tiny_patch14_224", **settings)


@pytest.mark.parametrize(
    "make",
    [vit, lambda: eva("vit_small_patch16_dinov3_qkvb"), lambda: eva(rope_type="mixed", rope_rotate_half=False), eva02],
    ids=["vit", "dinov3", "mixed", "eva02"],
)
def test_dropping_patches_is_attention_without_them(make):
    """Kept tokens see each other alone, at their own positions: timm's full pass under a mask of the attention."""
    encoder, x = make(), images()
    keep = torch.rand(2, 64).argsort(1)[:, :16]
    prefix = encoder.num_prefix_tokens
    seen = torch.zeros(2, prefix + 64, dtype=torch.bool)
    seen[:, :prefix] = True
    seen.scatter_(1, keep + prefix, True)
    with torch.no_grad():
        wanted = encoder.model.forward_features(x, attn_mask=seen[:, None, None].expand(-1, -1, prefix + 64, -1))
        found = encoder.features(x, keep=keep)
    torch.testing.assert_close(found.prefix, wanted[:, :prefix], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches, take(wanted[:, prefix:], keep), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [vit, eva, eva02])
def test_hidden_patches_are_the_token_before_positions(make):
    """As if the patch projection had given the token there, and nobody sees what was hidden."""
    encoder, x, token = make(), images(), torch.randn(24)
    hide = torch.rand(2, 64) < 0.4
    with torch.no_grad():
        found = encoder.features(x, hide=hide, token=token, layers=1)
        hook = encoder.model.patch_embed.register_forward_hook(
            lambda _, a, y: torch.where(hide.view(*y.shape[:-1], 1), token, y)
        )
        wanted = encoder.features(x)
        hook.remove()
        changed = x + 9 * torch.kron(hide.view(2, 1, 8, 8).float(), torch.ones(1, 1, 4, 4))
        again = encoder.features(changed, hide=hide, token=token)
        none = encoder.features(x, hide=torch.zeros_like(hide), token=token)
    torch.testing.assert_close(found.patches, wanted.patches)
    torch.testing.assert_close(found.pooled, wanted.pooled)
    torch.testing.assert_close(again.patches, found.patches)
    torch.testing.assert_close(none.patches, encoder.features(x).patches)
    torch.testing.assert_close(encoder.model.norm(found.layers[0].patches), found.patches)


@pytest.mark.parametrize("make", [eva, eva02])
def test_rotary_transformers_have_class_tokens_like_others(make):
    """timm's own features of the last blocks, through the norm before the pool, or after it."""
    encoder, x = make(depth=5), images()
    everything = torch.arange(64).expand(2, 64)
    with torch.no_grad():
        norms = encoder.model.norm, encoder.model.fc_norm
        blocks = encoder.model.forward_intermediates(
            x, indices=4, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        classes = [norms[1](norms[0](prefix[:, 0])) for _, prefix in blocks]
        patches = norms[1](norms[0](blocks[-1][0]).mean(1))
        torch.testing.assert_close(represent(encoder, x, "last4"), torch.cat(classes, 1))
        torch.testing.assert_close(represent(encoder, x, "cls_mean"), torch.cat([classes[-1], patches], 1))
        torch.testing.assert_close(tokens(encoder, x, everything), encoder.model.forward_features(x))
        assert encoder.model.rope is not None and width(encoder, "last4") == 4 * 24


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layers_of_networks_of_stages_are_timms(name: str):
    encoder, x = Encoder(name).eval(), images(224, 1)
    with torch.no_grad():
        found, (_, maps) = encoder.features(x, layers=2), encoder.model.forward_intermediates(x, indices=2)
    assert [layer.prefix.shape[1] for layer in found.layers] == [0, 0]
    for layer, map_ in zip(found.layers, maps, strict=True):
        assert torch.equal(layer.patches, map_.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found.pooled, encoder(x))


def test_positions_are_added_before_dropping():
    """The same picture in another patch gives another token."""
    encoder = vit()
    x = images(4).repeat(1, 1, 8, 8)
    one, other = (tokens(encoder, x, torch.full((2, 1), n))[:, 1] for n in (0, 63))
    assert not torch.allclose(one, other)


def test_register_tokens_are_prefix_tokens():
    encoder = vit(reg_tokens=4)
    assert encoder.num_prefix_tokens == 5
    assert tokens(encoder, images(), torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 8, 24)
    assert patch_features(encoder, images()).shape == (2, 64, 24)


def test_transformers_take_local_crops():
    encoder = vit()
    assert encoder(images(16)).shape == (2, 24) and patch_features(encoder, images(16)).shape == (2, 16, 24)
    assert (encoder.patch_size, encoder.grid(), encoder.grid(16), encoder.test_size) == (4, (8, 8), (4, 4), 32)
    for call in (encoder, encoder.features):
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
        patch_features(encoder, images(240, 1))


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
        assert torch.equal(represent(encoder, x), pooled)
        for kind, features in wanted.items():
            torch.testing.assert_close(represent(encoder, x, kind), features)
            assert width(encoder, kind) == features.shape[1]
        assert represent(encoder, images(16), "last4").shape == (2, 96)
    with pytest.raises(UserError, match="do not tile an image of 18 x 18"):
        represent(encoder, images(18), "cls_mean")


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
    for ask in (lambda: represent(made, images(), kind), lambda: width(made, kind)):
        with pytest.raises(UserError, match=message):
            ask()
    assert represent(made, images()).shape == (2, width(made, "pooled"))


@pytest.mark.parametrize("ask", ["features", "patch_size", "grid", "num_prefix_tokens", "freeze_patch_embed"])
def test_convolutional_networks_say_what_they_cannot(ask: str):
    encoder = Encoder("resnet18", channels=(8, 8, 8, 8), stem="small")
    with pytest.raises(UserError, match=r"resnet18 cannot .*such as vit_small_patch16_224"):
        found = getattr(encoder, ask)
        found(images(), keep=torch.zeros(2, 1, dtype=torch.int64)) if ask == "features" else found()


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
        ("resnet18", {"features_only": True}, "features_only of resnet18 cannot be changed"),
        ("convnext_atto", {"norm_eps": ("head.norm", "x")}, "norm_eps of convnext_atto must be a number"),
        ("resnet18", {"norm_eps": 1e-5}, "norm_eps of resnet18 must be a number, or the name of a part with layer"),
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
    assert own == {"stem", "pretrained", "position", "neck", "descriptor"}
