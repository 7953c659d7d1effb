"""Folders as transformers and timm write them give the features of the models that wrote them."""

import json

import pytest
import torch

import manyviews as mv
from tests.weights.test_recognize import refused

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
STAGES = {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 16, 32, 32]}
MODELS = {
    "vit": ("ViT", VIT | {"intermediate_size": 80}),
    "vit without bias": ("ViT", VIT | {"intermediate_size": 80, "qkv_bias": False, "hidden_act": "quick_gelu"}),
    "dinov2": ("Dinov2", VIT),
    "dinov2 gated": ("Dinov2", VIT | {"use_swiglu_ffn": True}),
    "dinov2 with registers": ("Dinov2WithRegisters", VIT | {"num_register_tokens": 3}),
    "dinov3": ("DINOv3ViT", VIT | {"num_register_tokens": 4, "intermediate_size": 96}),
    "dinov3 gated": (
        "DINOv3ViT",
        VIT | {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0},
    ),
    "vit mae": ("ViTMAE", VIT | {"intermediate_size": 80, "mask_ratio": 0.0}),
    "ijepa": ("IJepa", VIT | {"intermediate_size": 80}),
    "clip": ("CLIPVision", VIT | {"intermediate_size": 96, "hidden_act": "quick_gelu"}),
    "beit": ("Beit", VIT | {"intermediate_size": 80, "use_relative_position_bias": True}),
    "beit shared": (
        "Beit",
        VIT | {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True},
    ),
    "swin": ("Swin", {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32}),
    "convnext": ("ConvNext", STAGES),
    "convnextv2": ("ConvNextV2", STAGES),
    "dinov3 convnext": ("DINOv3ConvNext", STAGES),
    "resnet": ("ResNet", {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 32, 64], "layer_type": "basic"}),
    "resnet deep": ("ResNet", {"depths": [1, 2, 1, 1], "hidden_sizes": [32, 64, 64, 96], "num_channels": 5}),
}
PROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "size": {"shortest_edge": 36},
}


@torch.no_grad()
def make(case):
    kind, settings = MODELS[case]
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and "rope" not in name:
            value.add_(0.1 * torch.randn_like(value))
    return net


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_models_of_transformers(case, tmp_path):
    net = make(case)
    net.save_pretrained(tmp_path)
    channels = MODELS[case][1].get("num_channels", 3)
    shown = PROCESSOR | {k: [0.5] * channels for k in ("image_mean", "image_std") if channels != 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(shown))
    loaded = mv.load(tmp_path)
    x = torch.randn(2, channels, 32, 32)
    wanted = net(x) if case != "vit mae" else net(x, noise=torch.arange(16.0).expand(2, 16))
    found = loaded.encoder.features(x)
    last = wanted.last_hidden_state
    pooled = last[:, 0]  # the class token; what transformers calls the pooled output is a layer for classification
    if last.ndim == 4:
        pooled, last = last.mean((2, 3)), last.flatten(2).transpose(1, 2)
    if case == "ijepa":
        pooled = last.mean(1)
    elif "pooler_output" in wanted and case != "vit" and case != "vit without bias":
        pooled = wanted.pooler_output.flatten(1)
    if case == "clip":  # timm's last norm is for all tokens
        pooled, last = wanted.pooler_output, net.post_layernorm(last)
    patches = last[:, loaded.encoder.features(x).prefix.shape[1] :]
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)
    if "convnext" not in case:  # their last norm comes after the pool
        torch.testing.assert_close(found.patches, patches, rtol=1e-4, atol=1e-4)
    assert (loaded.mean, loaded.test_size) == (tuple(shown["image_mean"]), 32)
    assert "config.json says" in loaded.note and "Assumed" not in loaded.note and "nothing was missing" in loaded.note
    # The state dict of the model in memory has other names in some versions.
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(mv.load(tmp_path / "pytorch_model.bin").encoder(x), found.pooled)


def test_shards_and_heads(tmp_path):
    from transformers import ViTForImageClassification

    torch.manual_seed(0)
    net = ViTForImageClassification(transformers.ViTConfig(**VIT, intermediate_size=80)).eval()
    net.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = mv.load(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(x), net.vit(x).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    assert "took 'vit.' as vit_tiny" in loaded.note and "left out 2 tensors (classifier 2)" in loaded.note
    assert "Assumed the mean and std of CIFAR-10 and images of 32 pixels" in loaded.note
    next(tmp_path.glob("*-00002-*")).unlink()
    refused(tmp_path, r"names \d+ files of weights, and model-00002-of-.* is not in the folder")


def test_the_norm_of_beit_before_it_was_tuned_belongs_to_its_head(tmp_path):
    config = transformers.BeitConfig(**VIT, use_mask_token=True, use_shared_relative_position_bias=True)
    torch.manual_seed(0)
    net = transformers.BeitForMaskedImageModeling(config).eval()
    net.save_pretrained(tmp_path)
    loaded, x = mv.load(tmp_path), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = net.layernorm(net.beit(x).last_hidden_state)[:, 1:]
        torch.testing.assert_close(loaded.encoder.features(x).patches, wanted, rtol=1e-4, atol=1e-5)
    assert "left out 3 tensors (lm_head 2, embeddings 1); nothing was missing" in loaded.note


def test_clip_without_its_description_asks(tmp_path):
    torch.save({f"vision_model.{k}": v for k, v in make("clip").state_dict().items()}, tmp_path / "clip.pth")
    refused(tmp_path / "clip.pth", "CLIP's image encoder, whose activation the weights do not tell: quickgelu")
    assert mv.load(tmp_path / "clip.pth", num_heads=4, act_layer="quick_gelu").encoder.embed_dim == 48


def test_a_file_without_its_description(tmp_path):
    """Weights tell neither the heads of an odd width nor the kind of DINOv3 whose biases are zero."""
    net = make("vit")
    torch.save(net.state_dict(), tmp_path / "elsewhere.pth")
    refused(
        tmp_path / "elsewhere.pth", "of width 48, and the weights do not tell how many heads it has: give num_heads"
    )
    assert mv.load(tmp_path / "elsewhere.pth", num_heads=4).encoder.embed_dim == 48
    net = make("dinov3")
    for biased in (True, False):
        state = {
            k: v if biased or ("q_proj" not in k and "v_proj" not in k) else 0 * v for k, v in net.state_dict().items()
        }
        torch.save(state, tmp_path / "dinov3.pth")
        loaded = mv.load(tmp_path / "dinov3.pth", num_heads=4)
        assert loaded.encoder.name == "vit_small_patch16_dinov3" + "_qkvb" * biased
        assert "nothing was missing" in loaded.note


def test_descriptions_that_cannot_be_true(tmp_path):
    refused(tmp_path, "not a run folder")
    config, weights = tmp_path / "config.json", tmp_path / "pytorch_model.bin"
    config.write_text("{}")
    refused(tmp_path, r"holds config\.json and no weights: model\.safetensors or pytorch_model\.bin belongs beside it")
    torch.save(make("vit").state_dict(), weights)
    for text, message in (
        ("{", r"config\.json cannot be read as JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"model_type": "vit"}', "cannot be understood"),
        ('{"model_type": "vit", "num_attention_heads": 4, "hidden_act": "mish"}', "no vit with the activation 'mish'"),
        ('{"architecture": "resnet18", "model_args": {"checkpoint_path": "/x"}}', "checkpoint_path"),
    ):
        config.write_text(text)
        refused(tmp_path, message)
    config.write_text('{"model_type": "vit", "num_attention_heads": 4}')
    (tmp_path / "preprocessor_config.json").write_text('{"rescale_factor": 0.1}')
    refused(tmp_path, "pixels are scaled by 0.1, not by 1/255")
