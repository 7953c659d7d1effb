"""Encoders under the names of torchvision and detectron2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError, printable

_VIT = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


def to_torchvision(encoder: Encoder, size: int) -> tuple[dict[str, Tensor], str, str]:
    """The weights under torchvision's names, if torchvision has the network.

    torchvision's own network is made, loaded strictly and compared.

    Args:
        encoder: a ResNet or a vision transformer.
        size: side of the images that the network will see, pixels.

    Returns:
        the tensors, the call that makes the network, and the name of its classifier.

    Raises:
        UserError: torchvision has no such network.
    """
    from timm.models.resnet import ResNet
    from timm.models.vision_transformer import VisionTransformer

    model, state = encoder.model, {k: v.detach().cpu() for k, v in encoder.model.state_dict().items()}
    try:
        if isinstance(model, ResNet):
            theirs, call = _resnet(model)
            theirs.fc, head, sizes = nn.Identity(), "fc", 64
        elif isinstance(model, VisionTransformer):
            theirs, call = _vit(encoder, size)
            theirs.heads, head, sizes = nn.Identity(), "heads", size
            state = _renamed(_sized(encoder, size), _VIT)
        else:
            raise UserError(f"{encoder.name} has no counterpart for the format torchvision: export to torch or timm.")
        theirs.load_state_dict(state)
        x = torch.randn(2, encoder.channels, sizes, sizes, generator=torch.Generator().manual_seed(0))
        mode = encoder.training
        with torch.no_grad():
            wanted = encoder.eval()(x.to(next(encoder.parameters()).device)).cpu()
            found = theirs.eval()(x)
        encoder.train(mode)
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            raise ValueError("its features differ")
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as e:
        why = printable(str(e).strip().partition("\n")[0], 120)
        raise UserError(
            f"torchvision has no network like {encoder.name} with these settings ({why}): export to torch or timm."
        ) from None
    return state, call, head


def _sized(encoder: Encoder, size: int) -> dict[str, Tensor]:
    import copy

    copied = copy.deepcopy(encoder.model).cpu()
    copied.set_input_size(img_size=(size, size))
    return {k: v.detach() for k, v in copied.state_dict().items()}


def _renamed(state: Mapping[str, Tensor], pairs: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    found = {}
    for k, v in state.items():
        for pattern, name in pairs:
            k = re.sub(pattern, name, k)
        found[k] = v
    return found


def _resnet(model: Any) -> tuple[Any, str]:
    from torchvision.models import resnet

    layers = [len(getattr(model, f"layer{i}")) for i in range(1, 5)]
    block = model.layer1[0]
    deep = hasattr(block, "conv3")
    groups = block.conv2.groups
    settings = {"groups": groups, "width_per_group": block.conv2.out_channels // groups} if deep else {}
    name = "Bottleneck" if deep else "BasicBlock"
    kind = getattr(resnet, name)
    told = "".join(f", {k}={v}" for k, v in settings.items() if v != {"groups": 1, "width_per_group": 64}[k])
    call = f"torchvision.models.ResNet(torchvision.models.resnet.{name}, {layers}{told})"
    net = resnet.ResNet(kind, layers, **settings)
    if model.conv1.in_channels != 3:
        raise ValueError(f"it has {model.conv1.in_channels} channels, and torchvision's has 3")
    return net, call


def _vit(encoder: Encoder, size: int) -> tuple[Any, str]:
    from torchvision.models import VisionTransformer

    model = encoder.model
    if encoder.channels != 3:
        raise ValueError(f"it has {encoder.channels} channels, and torchvision's has 3")
    settings = {
        "image_size": size,
        "patch_size": encoder.patch_size,
        "num_layers": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": model.embed_dim,
        "mlp_dim": model.blocks[0].mlp.fc1.out_features,
    }
    call = ", ".join(f"{k}={v}" for k, v in settings.items())
    return VisionTransformer(**settings), f"torchvision.models.VisionTransformer({call})"


_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def to_detectron2(encoder: Encoder) -> dict[str, Tensor]:
    """The weights of a ResNet under detectron2's names.

    Raises:
        UserError: it is another network, or a ResNet whose stem or shortcuts detectron2 does not have.
    """
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    model: Any = encoder.model
    known = isinstance(model, ResNet)  # not asked in the condition: mypy would lose the Any
    plain = (
        known
        and encoder.spec["stem"] == "native"
        and isinstance(model.conv1, nn.Conv2d)
        and all(type(m[0]) in (BasicBlock, Bottleneck) for m in (model.layer1, model.layer2))
        and not any(k.endswith(".downsample.2.weight") or ".se." in k for k in model.state_dict())
        and not (isinstance(model.layer2[0].downsample, nn.Sequential) and len(model.layer2[0].downsample) != 2)
    )
    if not plain:
        raise UserError(
            f"detectron2 has no network like {encoder.name} with these settings: the format is for ResNets with "
            "their usual stem. Export to torch or timm."
        )
    renamed = _renamed(model.state_dict(), _DETECTRON2)
    # Frozen norms do not count their batches.
    return {k: v.detach().cpu() for k, v in renamed.items() if not k.endswith("num_batches_tracked")}
