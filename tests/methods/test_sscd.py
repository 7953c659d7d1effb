"""SSCD: which views are positives, the loss in slow loops, and a descriptor that outlives its run."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.methods.sscd import relatives
from manyviews.objectives import koleo, mixed_nt_xent, nt_xent
from tests.methods.conftest import canvases


def content(mixed: torch.Tensor) -> list[set[int]]:
    """Images that each view shows, in the order of the rows."""
    v, b = mixed.shape
    return [{i} | ({i ^ 1} if mixed[k, i] and (i ^ 1) < b else set()) for k in range(v) for i in range(b)]


@pytest.mark.parametrize("images", [6, 5])
def test_positives_are_the_views_that_share_content(images: int):
    mixed = torch.rand(3, images, generator=torch.Generator().manual_seed(0)) < 0.4
    shown = content(mixed)
    related, positive = relatives(mixed)
    for i, mine in enumerate(shown):
        wanted = {j for j, theirs in enumerate(shown) if j != i and mine & theirs}
        assert set(related[i][positive[i]].tolist()) == wanted and len(wanted) == int(positive[i].sum())
        assert set(related[i].tolist()) == wanted | {i}


def test_the_loss_is_the_papers_sum():
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixed = torch.tensor([[True, False, False, False, False, True], [False] * 6])
    shown, u = content(mixed), normalize(z, dim=1)
    related, positive = relatives(mixed)
    total, spread = 0.0, 0.0
    for i in range(12):
        positives = [j for j in range(12) if j != i and shown[i] & shown[j]]
        others = [j for j in range(12) if not shown[i] & shown[j]]
        below = sum(math.exp(float(u[i] @ u[k]) / 0.2) for k in others)
        for j in positives:
            near = math.exp(float(u[i] @ u[j]) / 0.2)
            total -= math.log(near / (near + below)) / len(positives)
        spread -= math.log(min(float((u[i] - u[k]).norm()) for k in others))
    assert mixed_nt_xent(z, related, positive, 0.2).item() == pytest.approx(total / 12, abs=1e-10)
    assert koleo(z, related, all_ranks=True).item() == pytest.approx(spread / 12, abs=1e-10)
    assert spread / 12 > koleo(torch.eye(12), related).item()  # crowded rows cost more than orthogonal ones
    plain = relatives(torch.zeros(2, 6, dtype=torch.bool))
    torch.testing.assert_close(mixed_nt_xent(z, *plain, 0.2), nt_xent(z[:6], z[6:], 0.2))
    assert torch.autograd.gradcheck(lambda x: mixed_nt_xent(x, related, positive, 0.2), z.requires_grad_())


def test_a_run_gives_its_descriptor_and_another_network_cannot(tmp_path):
    batch = canvases(8)
    pictures = batch.canvases.padded().permute(0, 2, 3, 1).numpy()
    run = mv.pretrain(pictures, recipe="sscd_tiny", out=tmp_path / "run", epochs=1, settings={"data.batch_size": 8})
    found = mv.load(run.folder)
    x = found.embed(pictures)
    assert x.shape == (8, 16)
    torch.testing.assert_close(torch.from_numpy(x).norm(dim=1), torch.ones(8))
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        inside = run.method.eval().online(images)
        torch.testing.assert_close(found.encoder(images), inside)
        rows = normalize(
            run.method.kept_encoder.model.global_pool.proj(
                run.method.kept_encoder.features(images).patches.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
            )
        )
    torch.testing.assert_close(inside, rows)
    with pytest.raises(UserError, match="choose a ResNet"):
        Encoder("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, descriptor=8)
