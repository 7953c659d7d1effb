from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from manyviews.errors import UserError
from manyviews.heads import Decoder, DINOHead, Predictors, Prototypes, comparable, mlp, others, task_weights
from manyviews.views import Composed, Cutout, Global, Local


def kinds(module: nn.Sequential) -> list[str]:
    return [type(m).__name__ for m in module]


def test_mlp_is_byols_head():
    """Grill et al. 2020: linear, BatchNorm, ReLU, linear; a ResNet-50's projector."""
    head = mlp(2048, 4096, 256)
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert sum(p.numel() for p in head.parameters()) == 2048 * 4096 + 2 * 4096 + 4096 * 256 + 256
    assert head(torch.randn(2, 2048)).shape == (2, 256)


def test_mlp_is_simsiams_projector():
    head = mlp(8, 16, 16, 4, last_norm="bn_no_affine")
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert head[-1].weight is None and head[-2].bias is None
    z = head(torch.randn(32, 8))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert mlp(8, 4, last_norm="bn")[-1].weight is not None


def test_mlp_without_norm_is_mocos_head():
    assert kinds(mlp(8, 16, 4, norm=False)) == ["Linear", "ReLU", "Linear"]
    assert all(m.bias is not None for m in mlp(8, 16, 4, norm=False) if isinstance(m, nn.Linear))


def test_prototypes_give_cosines():
    head = Prototypes(6, 9)
    z = 5 * torch.randn(4, 6)
    expected = torch.nn.functional.cosine_similarity(z[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(z), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(z), head(z.double().float())) and head(z.bfloat16()).dtype == torch.float32


def test_prototypes_are_normalized_in_place():
    head = Prototypes(6, 9)
    weight = head.weight
    with torch.no_grad():
        weight.mul_(torch.rand(9, 1) + 0.5)
    direction = normalize(weight.detach())
    head.normalize_()
    assert head.weight is weight
    torch.testing.assert_close(weight.detach(), direction)


def test_dino_head_scores_by_directions():
    head = DINOHead(8, 16, 12, 6)
    x = torch.randn(5, 8)
    scores = head(x)
    assert scores.shape == (5, 16) and scores.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.last.weight.mul_(torch.rand(16, 1) + 0.5)  # a gain would change the scores
    torch.testing.assert_close(head(x), scores)
    reference = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 16, bias=False))
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1)
        reference.parametrizations.weight.original1.copy_(head.last.weight)
    torch.testing.assert_close(reference(normalize(head.mlp(x))), scores)


def test_dino_heads_last_layer_freezes_alone():
    head = DINOHead(8, 16, 12, 6)
    head(torch.randn(3, 8)).square().sum().backward()
    head.last.zero_grad()
    assert {n for n, p in head.named_parameters() if p.grad is None} == {"last.weight"}


# -- decoder -----------------------------------------------------------------------------------------------------


def test_decoder_puts_tokens_and_mask_tokens_in_their_places():
    """Without blocks, a patch's prediction depends on its own token, or the mask token, and its position."""
    decoder = Decoder(5, (3, 3), 12, 8, 0, 2).eval()
    kept = torch.tensor([[1, 4, 8], [7, 0, 3]])
    tokens = torch.randn(2, 3, 5)
    found = decoder(tokens, kept)
    assert found.shape == (2, 9, 12)
    for b in range(2):
        for n in range(9):
            at = kept[b].tolist()
            token = decoder.embed(tokens[b, at.index(n)]) if n in at else decoder.mask[0, 0]
            expected = decoder.head(decoder.norm(token + decoder.place[0, n]))
            torch.testing.assert_close(found[b, n], expected)


def test_decoder_does_not_care_in_which_order_tokens_come():
    decoder = Decoder(5, (4, 4), 12, 8, 2, 2).eval()
    kept, tokens = torch.tensor([[1, 4, 8, 15]]), torch.randn(1, 4, 5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(decoder(tokens[:, order], kept[:, order]), decoder(tokens, kept))


def test_decoder_sees_every_visible_patch_from_every_place():
    decoder = Decoder(5, (4, 4), 12, 8, 1, 2).eval()
    kept, tokens = torch.tensor([[1, 4, 8, 15]]), torch.randn(1, 4, 5, requires_grad=True)
    decoder(tokens, kept)[0, 6].sum().backward()  # a hidden patch
    assert (tokens.grad.abs().sum(-1) > 0).all()


def test_decoder_computes_in_half_precision_under_autocast():
    decoder = Decoder(5, (4, 4), 12, 8, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(torch.randn(1, 4, 5), torch.tensor([[1, 4, 8, 15]])).isfinite().all()


def test_decoder_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="divisible by its 3"):
        Decoder(5, (4, 4), 12, 8, 1, 3)
    with pytest.raises(UserError, match="divisible by 4, not 6"):
        Decoder(5, (4, 4), 12, 6, 1, 2)


# -- predictors --------------------------------------------------------------------------------------------------

TASKS = (Global(2), Local(3), Cutout(1))


def test_predictors_are_one_each_or_one_for_all():
    own = Predictors(TASKS, 4, lambda dim: nn.Linear(dim, 4), "own")
    shared = Predictors(TASKS, 4, lambda dim: nn.Linear(dim, 4), "shared")
    told = Predictors(TASKS, 4, lambda dim: nn.Linear(dim, 4), "conditioned")
    assert len({id(m) for m in own.of.values()}) == len({id(m) for m in told.of.values()}) == 3
    assert len({id(m) for m in shared.of.values()}) == 1
    assert {k: m.in_features for k, m in told.of.items()} == {"global": 9, "local": 9, "cutout": 13}
    composed = Composed(1)  # is told which of its augmentations were applied
    told = Predictors((Global(2), composed), 4, lambda dim: nn.Linear(dim, 4), "conditioned")
    assert told.of["composed"].in_features == 9 + len(composed.augmentations)


def test_every_view_is_compared_with_every_global_target_but_its_own():
    targets = [torch.tensor(0.0), torch.tensor(1.0)]
    listed = {t.name: [(i, j, z.item()) for i in range(t.count) for j, z in others(targets, t, i)] for t in TASKS}
    assert listed["global"] == [(0, 1, 1.0), (1, 0, 0.0)]
    assert listed["local"] == [(i, j, float(j)) for i in range(3) for j in (0, 1)]
    assert listed["cutout"] == [(0, 0, 0.0), (0, 1, 1.0)]


def test_a_lone_global_view_is_a_target_only_and_a_symmetric_cutout_is_its_own():
    def predictors(*tasks):
        found = Predictors(tasks, 4, lambda dim: nn.Linear(dim, 4), "own")
        return [t.name for t in found.tasks], found.targets

    assert predictors(Global(1), Cutout(2)) == (["cutout"], ("global",))
    assert predictors(Cutout(2, symmetric=True)) == (["cutout"], ("cutout",))
    assert predictors(Global(2), Cutout(2, symmetric=True)) == (["global", "cutout"], ("global", "cutout"))


def test_tasks_without_anything_to_compare_are_refused():
    for tasks, says in [
        ((Global(1),), "set its count to 2"),
        ((Local(2),), "need a global type"),
        ((), "need a global type"),
        ((Global(2), Global(2)), "distinct names"),
    ]:
        with pytest.raises(UserError, match=says):
            comparable(tasks)
    assert comparable((Global(1), Cutout(1))) == (Global(1), Cutout(1))


def test_weights_are_one_for_each_task_or_one_for_all():
    assert task_weights(TASKS, 2) == {"global": 2.0, "local": 2.0, "cutout": 2.0}
    assert task_weights(TASKS, (1.0, 0.5, 0.0)) == {"global": 1.0, "local": 0.5, "cutout": 0.0}
    with pytest.raises(UserError, match="3 tasks and 2 weights"):
        task_weights(TASKS, (1.0, 0.5))


def test_decoder_starts_near_zero_predictions_of_the_right_scale():
    """Targets are standardized: a fresh decoder must not start far above an error of one."""
    found = Decoder(192, (8, 8), 48, 128, 2, 4).eval()(torch.randn(4, 16, 192), torch.arange(16).expand(4, 16))
    assert 0 < found.square().mean().item() < 3 and not math.isnan(found.sum().item())
