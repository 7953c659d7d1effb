"""Images of several sizes in one pass, and residual branches that are skipped: the same function, less computed."""

import copy
import pickle

import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.backbones.packing import run
from manyviews.types import Packed
from manyviews.views.together import together

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
NETWORKS = {
    "registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 2, "no_embed_class": True, "init_values": 0.5}),
    "norms of queries, mean": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True, "global_pool": "avg"}),
    "rotary": ("vit_small_patch16_dinov3", {**VIT, "init_values": 0.5, "global_pool": "token"}),
    "rotary, biases, swiglu": ("eva02_tiny_patch14_224", {**VIT, "scale_attn_inner": True}),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", {**VIT}),
}


def network(name: str, **changes) -> Encoder:
    torch.manual_seed(0)
    model, settings = NETWORKS[name]
    found = Encoder(model, **settings, **changes).double()
    with torch.no_grad():  # whatever starts at zero or one
        for p in found.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return found


def images(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(b, 3, size, size, dtype=torch.float64) for b, size in shapes]


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_images_have_the_features_and_the_gradients_of_each_size_alone(name: str):
    """In float64, with hidden patches in the first size, and with tokens that belong to no patch."""
    packed, alone = (network(name).train() for _ in range(2))
    assert packed.packs
    groups, token = images((3, 32), (5, 16), (2, 24)), torch.randn(24, dtype=torch.float64)
    hide = torch.rand(3, 16) < 0.4
    found = packed.features(Packed(tuple(groups)), hide=hide, token=token)
    first, *others = [
        alone.features(x, hide=None if k else hide, token=token if k == 0 else None) for k, x in enumerate(groups)
    ]
    torch.testing.assert_close(found.pooled, torch.cat([first.pooled, *(f.pooled for f in others)]))
    torch.testing.assert_close(found.patches, first.patches)
    torch.testing.assert_close(found.prefix, first.prefix)
    weight = torch.randn_like(found.pooled)
    ((found.pooled * weight).sum() + found.patches.square().sum()).backward()
    pooled = torch.cat([first.pooled, *(f.pooled for f in others)])
    ((pooled * weight).sum() + first.patches.square().sum()).backward()
    for (word, p), q in zip(packed.named_parameters(), alone.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), word
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=word)


def test_attention_is_that_of_a_block_diagonal_mask():
    """All tokens in one sequence, with a mask that lets only those of one image attend to each other."""
    block = network("registers").model.blocks[0].eval()
    groups = [torch.randn(b, n, 24, dtype=torch.float64) for b, n in ((2, 7), (3, 4))]
    owner = torch.cat([torch.arange(2).repeat_interleave(7), 2 + torch.arange(3).repeat_interleave(4)])
    x = torch.cat([g.flatten(0, 1) for g in groups])[None]
    wanted = block(x, attn_mask=(owner[:, None] == owner)[None, None])
    torch.testing.assert_close(run(block, x[0], [(2, 7), (3, 4)], [None, None]), wanted[0])


def test_networks_with_another_pass_are_not_packed():
    assert not Encoder("resnet18").packs
    assert not Encoder("vit_tiny_patch16_224", **VIT, patch_drop_rate=0.5).packs
    again = Encoder("vit_tiny_patch16_224", **VIT)
    again.model.set_grad_checkpointing()
    assert not again.packs
    norm = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    x, y = images((2, 32), (2, 32))
    norm.double()
    assert [t.shape for t in together(norm, [x, y], pack=True)] == [(2, 4), (2, 4)]


@pytest.mark.parametrize(("name", "half"), [("registers", 1), ("registers", 2), ("rotary", 1)])
def test_a_skipped_branch_has_the_expectation_and_the_gradient_of_a_masked_one(name: str, half: int):
    """One residual branch: each image keeps it with the right frequency, divided by that, or has none."""
    network_ = network(name, drop_path_rate=0.3).train()
    block, rope = network_.model.blocks[-1], None
    if name == "rotary":
        rope = network_.model.rope.get_embed(shape=(2, 2)).double()
    last = block.mlp.fc2 if half == 1 else block.attn.proj  # of the other branch, which gives nothing then
    torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
    n = network_.num_prefix_tokens + 4
    x = torch.randn(5, n, 24, dtype=torch.float64)
    with torch.no_grad():
        whole = copy.deepcopy(block).eval()(x, **({} if rope is None else {"rope": rope})) - x
    rows: list[int] = []
    part = block.attn if half == 1 else block.mlp
    part.register_forward_hook(lambda m, i, y: rows.append(y.shape[:-1].numel() // n))
    torch.manual_seed(0)
    kept, gradient, trials = torch.zeros(5), torch.zeros(()), 400
    for _ in range(trials):
        block.zero_grad()
        y = block(x, **({} if rope is None else {"rope": rope}))
        mask = ((y - x).abs().amax((1, 2)) > 0).double()
        torch.testing.assert_close(y - x, whole * mask[:, None, None] / 0.7)
        kept += mask
        y.sum().backward()
        gradient = gradient + (block.norm1 if half == 1 else block.norm2).weight.grad
    # Of five images 3.5 are kept: three or four. Standard deviations of the frequencies: 0.023, of the number: 0.025.
    assert set(rows) == {3, 4} and abs(sum(rows) / len(rows) - 3.5) < 0.1
    assert (kept / trials - 0.7).abs().max() < 0.09
    plain = copy.deepcopy(block).eval()
    plain.zero_grad()
    plain(x, **({} if rope is None else {"rope": rope})).sum().backward()
    wanted = (plain.norm1 if half == 1 else plain.norm2).weight.grad
    assert (gradient / trials - wanted).norm() < 0.1 * wanted.norm()


def test_skipping_changes_neither_names_nor_evaluation_and_survives_copies():
    import timm

    ours = network("registers", drop_path_rate=0.5)
    name, settings = NETWORKS["registers"]
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=0.5, **settings).double()
    theirs.load_state_dict(ours.model.state_dict())
    (x,) = images((2, 32))
    theirs.eval(), ours.eval()
    assert torch.equal(ours(x), theirs.forward_head(theirs.forward_features(x)))
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), ours(x)) and type(again.model.blocks[1]) is type(ours.model.blocks[1])


def test_packed_images_skip_branches_too():
    rates = [b.drop_path1.drop_prob for b in network("rotary", drop_path_rate=0.4, drop_path_uniform=True).model.blocks]
    assert rates == [0.4] * 3
    packed = network("registers", drop_path_rate=0.9).train()
    rows: list[int] = []
    for block in packed.model.blocks:
        block.mlp.register_forward_hook(lambda m, i, y: rows.append(y.flatten(0, -2).shape[0]))
    groups = images((4, 32), (6, 16))
    torch.manual_seed(0)
    for _ in range(20):
        packed.zero_grad()
        packed.features(Packed(tuple(groups))).pooled.sum().backward()
    tokens = 4 * (16 + 3) + 6 * (4 + 3)
    assert max(rows) == tokens  # the first block's rate is 0, and 0.45 and 0.9 follow
    assert sum(rows) / 20 == pytest.approx(tokens * (1 + 0.55 + 0.1), rel=0.15)


@pytest.mark.parametrize("name", ["registers", "rotary"])
def test_attention_without_the_fused_kernel_is_the_same_in_bfloat16(name: str):
    """Its gradient, against the fused kernel's in float32, packed and alone: to the rounding of bfloat16."""
    ours = network(name).float().train()
    x, y = (t.float() for t in images((3, 32), (2, 16)))

    def gradient(pack: bool, dtype: torch.dtype) -> tuple[torch.Tensor, bool]:
        ours.zero_grad()
        heard = []  # the fused kernel never gives its weights to this layer
        hook = ours.model.blocks[0].attn.attn_drop.register_forward_hook(lambda *_: heard.append(True))
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            z = ours(Packed((x, y))) if pack else torch.cat([ours(x), ours(y)])
        hook.remove()
        z.float().square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
        return found, not heard

    exact, fused = gradient(False, torch.float32)
    assert fused
    for pack in (False, True):
        rounded, fused = gradient(pack, torch.bfloat16)
        assert pack or not fused
        assert (rounded - exact).norm() < 0.03 * exact.norm()
