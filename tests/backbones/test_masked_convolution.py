"""Networks with a pyramid of maps that see a part of an image: nothing of the rest may reach what is visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.backbones import Encoder
from manyviews.errors import UserError

SMALL = {"patch_size": 1, "depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8), "kernel_sizes": 3}
SWIN = {
    **{"img_size": 32, "strict_img_size": False, "window_size": 2, "embed_dim": 8, "depths": (2, 2)},
    **{"num_heads": (2, 2), "drop_path_rate": 0.0},
}


def convnext(name: str = "convnextv2_atto", **settings: object) -> Encoder:
    """In double precision, with weights that are all alive: timm's global response norms start at zero."""
    torch.manual_seed(0)
    encoder = Encoder(name, **{**SMALL, **settings}).double().eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return encoder


def hidden_of(b: int, n: int, seed: int = 1) -> Tensor:
    """Half of the places of each image."""
    order = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order < n // 2


def enlarged(hidden: Tensor, rows: int, side: int) -> Tensor:
    """Which pixels are in hidden places, `b 1 h w`."""
    return hidden.view(-1, 1, rows, rows).repeat_interleave(side, 2).repeat_interleave(side, 3)


@pytest.mark.parametrize(
    ("name", "settings"), [("convnextv2_atto", {}), ("convnextv2_atto", {"conv_mlp": False}), ("convnext_atto", {})]
)
def test_no_visible_feature_depends_on_a_hidden_pixel(name: str, settings: dict[str, object]):
    encoder = convnext(name, **{**settings, "kernel_sizes": 7})
    x, hidden = torch.randn(3, 3, 32, 32, dtype=torch.float64), hidden_of(3, 16)
    assert encoder.grid(32) == (4, 4) and encoder.patch_size == 8
    other = torch.where(enlarged(hidden, 4, 8), 50 * torch.randn_like(x), x)
    found, again = (encoder.features(v, hide=hidden).patches for v in (x, other))
    assert torch.equal(found, again) and found[~hidden].abs().min(1).values.max() > 0
    assert not torch.equal(found, encoder.features(x).patches)
    seen = torch.where(enlarged(hidden, 4, 8), x, 50 * torch.randn_like(x))
    assert not torch.allclose(found, encoder.features(seen, hide=hidden).patches)
    nothing = torch.zeros_like(hidden)
    torch.testing.assert_close(encoder.features(x, hide=nothing).patches, encoder.features(x).patches)


def test_masked_maps_equal_a_convolution_over_visible_places_alone():
    """The paper's sparse convolution, place by place: a sum over the neighbors that are there."""
    encoder = convnext(conv_mlp=False)
    model = encoder.model
    x, hidden = torch.randn(1, 3, 16, 16, dtype=torch.float64), torch.tensor([[False, True, True, False]])
    found = encoder.features(x, hide=hidden).patches
    there = ~enlarged(hidden, 2, 8)[0, 0]
    x = model.stem(x)[0]
    sites = {(i, j): x[:, i, j] for i, j in there.nonzero().tolist()}
    for stage in model.stages:
        if len(list(stage.downsample.children())):
            norm, step = stage.downsample
            after = {}
            for i, j in {(i // 2, j // 2) for i, j in sites}:
                square = torch.stack([torch.stack([sites[2 * i + k, 2 * j + m] for m in (0, 1)], 1) for k in (0, 1)], 1)
                after[i, j] = F.conv2d(norm(square[None]), step.weight, step.bias)[0, :, 0, 0]
            sites = after
        (block,) = stage.blocks
        wide = {}
        for (i, j), _ in sites.items():
            y = block.conv_dw.bias.clone()
            for k in (-1, 0, 1):
                for m in (-1, 0, 1):
                    if (i + k, j + m) in sites:
                        y = y + block.conv_dw.weight[:, 0, k + 1, m + 1] * sites[i + k, j + m]
            wide[i, j] = F.gelu(block.mlp.fc1(block.norm(y)))
        norms = torch.stack(list(wide.values())).square().sum(0).sqrt()
        relative = norms / (norms.mean() + 1e-6)
        for place, y in wide.items():
            grn = block.mlp.grn
            y = block.mlp.fc2(y + grn.bias + grn.weight * y * relative)
            sites[place] = sites[place] + y
    for (i, j), feature in sites.items():
        torch.testing.assert_close(found[0, 2 * i + j], feature)
    assert len(sites) == 2


def test_networks_that_would_leak_are_refused():
    x, hidden = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    with pytest.raises(UserError, match="overlaps"):
        Encoder("convnextv2_atto", **{**SMALL, "stem_type": "overlap"}).features(x, hide=torch.zeros(1, 1).bool())
    with pytest.raises(UserError, match="do not tile an image of 24"):
        Encoder("convnextv2_atto", **SMALL).features(x[..., :24, :24], hide=hidden)
    with pytest.raises(UserError, match="take fcmae"):
        _ = Encoder("convnextv2_atto", **SMALL).token_dim
    with pytest.raises(UserError, match="cannot hide patches"):
        _ = Encoder("resnet18").token_dim


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_swin_sees_a_token_in_hidden_places_and_a_smaller_image_of_those_that_are_kept(name: str):
    torch.manual_seed(0)
    encoder = Encoder(name, **SWIN).double().eval()
    assert (encoder.patch_size, encoder.grid(32), encoder.token_dim, encoder.embed_dim) == (8, (4, 4), 8, 16)
    x, hidden, token = torch.randn(2, 3, 32, 32).double(), hidden_of(2, 16), torch.randn(8).double()
    other = torch.where(enlarged(hidden, 4, 8), 9.0, x)
    found = encoder.features(x, hide=hidden, token=token).patches
    assert found.shape == (2, 16, 16)
    assert torch.equal(found, encoder.features(other, hide=hidden, token=token).patches)
    assert not torch.equal(found, encoder.features(x, hide=hidden, token=2 * token).patches)
    # Of each 2 x 2 places one stays: these are an image of half the size, place by place.
    within = torch.randint(4, (2, 4))
    cell = torch.arange(4)
    keep = 8 * (cell // 2) + 2 * (cell % 2) + within // 2 * 4 + within % 2
    small = torch.zeros(2, 3, 16, 16).double()
    for b in range(2):
        for k, place in enumerate(keep[b].tolist()):
            top, left, row, column = 8 * (k // 2), 8 * (k % 2), 8 * (place // 4), 8 * (place % 4)
            small[b, :, top : top + 8, left : left + 8] = x[b, :, row : row + 8, column : column + 8]
    torch.testing.assert_close(encoder.features(x, keep=keep).patches, encoder.features(small).patches)
    both = encoder.features(x, keep=keep, hide=hidden, token=token).patches
    wanted = encoder.features(small, hide=hidden.gather(1, keep), token=token).patches
    torch.testing.assert_close(both, wanted)
    with pytest.raises(UserError, match=r"Uniform\(\)"):
        encoder.features(x, keep=keep[:, :3])
    with pytest.raises(UserError, match="strict_img_size=False"):
        Encoder(name, **{**SWIN, "strict_img_size": True}).features(x.float(), keep=keep)
