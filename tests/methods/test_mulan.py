"""MULAN (De Plaen et al. 2026): eq. 1 and its task structure against slow loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from manyviews.backbones import Encoder
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.methods import get
from manyviews.types import Batch, Progress
from manyviews.views import Cutout, Global, Views
from tests.methods.conftest import TASKS

AT = Progress(3, 20, 5)
SMALL = {"hidden_dim": 16, "output_dim": 8}


def build(name: str, tasks=TASKS, **settings):
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 8, 8))
    return get(name)(encoder, tasks=tasks, **SMALL, **settings).train()


def aligned(name: str, p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    if name == "moco_v3":
        return 2 * cross_entropy(normalize(p) @ normalize(z).T, torch.arange(len(p)))
    cos = torch.stack([cosine_similarity(a, b, dim=0) for a, b in zip(p, z, strict=True)]).mean()
    return 2 - 2 * cos if name == "byol" else -cos


@pytest.mark.parametrize("sharing", ["own", "shared", "conditioned"])
@pytest.mark.parametrize("name", ["byol", "moco_v3", "simsiam"])
def test_the_loss_is_eq_1_over_every_pair(name: str, sharing: str, batch: Batch):
    weights = (1.0, 0.5, 2.0, 1.0, 1.0, 3.0)
    method = build(name, predictor=sharing, weights=weights)
    found: dict[str, float] = {}
    for terms in copy.deepcopy(method).loss(Views(batch, method.views), AT):
        for k, v in terms.items():
            found[k] = found.get(k, 0.0) + v.item()
    views = Views(batch, method.views)
    target = method.online if name == "simsiam" else method.target
    with torch.no_grad():
        targets = [target(x) for x in views.all("global")]
        for task, weight in zip(TASKS, weights, strict=True):
            total, pairs = 0.0, 0
            for i in range(task.count):
                z = method.online(views[task.name, i])
                for j in (0, 1):
                    if task.name == "global" and i == j:
                        continue
                    seen = z
                    if sharing == "conditioned":
                        seen = torch.cat([z, views.relation(task.name, i, "global", j)], 1)
                    aim = targets[j]
                    if task.name == "cutmix":
                        aim = views.blend("cutmix", 0, aim)
                    total += aligned(name, method.predictors.of[task.name](seen), aim)
                    pairs += 1
            assert found[task.name] == pytest.approx(weight * float(total) / pairs, rel=1e-4, abs=1e-5), task.name


@pytest.mark.parametrize("name", ["byol", "moco_v3", "simsiam"])
def test_every_predictor_learns_from_its_own_task_alone(name: str, batch: Batch):
    for left_out in ("local", "shuffle"):
        weights = tuple(0.0 if t.name == left_out else 1.0 for t in TASKS)
        method = build(name, weights=weights)
        backpropagate(method, [lambda m=method: Views(batch, m.views)], AT)
        for task, predictor in method.predictors.of.items():
            moved = any(p.grad.abs().max() > 0 for p in predictor.parameters())
            assert moved == (task != left_out)


@pytest.mark.parametrize("name", ["byol", "moco_v3", "simsiam"])
def test_asymmetric_cutout_predicts_the_whole_and_symmetric_cutout_another_hole(name: str, batch: Batch):
    """Section 4.2: cutout as the only augmentation."""
    plain = {"area": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "color": None}
    whole, holes = Global(1, 32, **plain), Cutout(2, 32, **plain)

    def value(*tasks) -> tuple[float, float]:
        """Of the loss, and of the mean over the views with a hole and what each of them is to predict."""
        method = build(name, tasks)
        views = Views(batch, method.views)
        with torch.no_grad():
            plain = copy.deepcopy(method)
            target = plain.online if name == "simsiam" else plain.target
            online = [plain.online(x) for x in views.all("cutout")]
            targets = [target(x) for x in views.all(tasks[0].name)]
            aims = [targets[0]] * 2 if len(targets) == 1 else targets[::-1]
            expected = sum(
                aligned(name, plain.predictors.of["cutout"](z), t) for z, t in zip(online, aims, strict=True)
            )
        terms = backpropagate(method, [lambda: Views(batch, method.views)], AT)
        assert list(terms) == ["cutout"]
        return terms["cutout"].item(), float(expected) / 2

    for tasks in ((whole, holes), (Cutout(2, 32, symmetric=True, **plain),)):
        found, expected = value(*tasks)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["byol", "moco_v3", "simsiam"])
def test_a_predictor_that_is_shared_in_no_known_way_is_refused(name: str):
    with pytest.raises(UserError, match="Did you mean 'shared'"):
        build(name, predictor="sharde")


def test_the_target_network_can_be_what_is_kept():
    method = build("byol", kept="target")
    assert method.kept_encoder is method.target.module.encoder
    assert build("byol").kept_encoder.state_dict().keys() == method.kept_encoder.state_dict().keys()


def test_moco_v3s_heads_for_vision_transformers(batch: Batch):
    """Appendix E: three layers and normalized outputs, for BYOL too; a frozen patch projection does not move."""
    torch.manual_seed(0)
    vit = Encoder("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    method = get("byol")(
        vit, tasks=TASKS[:1], **SMALL, projector_layers=3, output_norm=True, freeze_patch_embed=True
    ).train()
    heads = (method.online.projector, method.predictors.of["global"])
    layers = [[type(m).__name__ for m in head].count("Linear") for head in heads]
    assert layers == [3, 2] and all(head[-1].weight is None for head in heads)
    backpropagate(method, [lambda: Views(batch, method.views)], AT)
    assert all(p.grad is None for p in vit.model.patch_embed.parameters())
