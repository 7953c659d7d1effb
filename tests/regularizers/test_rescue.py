"""Rescuing easy samples (Wang et al.): algorithm 1 in slow steps, on every method, on one rank and on two."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import manyviews as mv
from manyviews import distributed, methods, recipes
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.recipes import get
from manyviews.regularizers import KoLeo, Regularized, Rescue
from manyviews.settings import Recipe, Step, from_json, override, to_json
from manyviews.targets import EMA
from manyviews.types import Batch, Progress
from manyviews.views import Cutout, Global, Strong, Views
from tests.methods.conftest import canvases, pairs
from tests.methods.test_ranks import Exact
from tests.ranks import on_ranks

AT = Progress(3, 20, 5)
PAIRED = [name for name in methods.names() if pairs(name)]


def rescued(name: str, scale: float = 0.75, k: int | None = 4, **changes) -> Recipe:
    return dataclasses.replace(get(f"{name}_tiny"), regularizers=(Rescue(scale, k),), **changes)


def gradients(method, views, **how) -> dict[str, torch.Tensor]:
    backpropagate(method, [lambda: views], AT, **how)
    return {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


def test_it_is_algorithm_1():
    """SimCLR, with the strong views, the selection and the term written out."""
    batch = canvases(16)
    method = build_method(rescued("simclr", k=3)).train()
    plain = copy.deepcopy(method.method)
    (terms,) = method.loss(Views(batch, method.views), AT)
    sum(terms.values()).backward()

    branch, views = plain.online, Views(batch, plain.views)
    za, zb = (branch(x) for x in views.all("global"))
    nt_xent = next(iter(copy.deepcopy(plain).loss(Views(batch, plain.views), AT)))["nt_xent"]
    similar = [cosine_similarity(za[i], zb[i], dim=0).item() for i in range(16)]
    easiest = sorted(range(16), key=lambda i: -similar[i])[:3]
    # The same strong views as if all images had been asked for.
    strong = Views(batch, (Strong(1, 32),))["strong", 0][easiest]
    zs = branch(strong)
    term = -torch.stack([cosine_similarity(za[i], s, dim=0) for i, s in zip(easiest, zs, strict=True)]).mean()
    assert terms["nt_xent"].item() == pytest.approx(nt_xent.item(), rel=1e-5)
    assert terms["rescue"].item() == pytest.approx(0.75 * term.item(), rel=1e-5)

    from manyviews.objectives import nt_xent as objective

    (objective(za, zb, plain.temperature) + 0.75 * term).backward()
    for (word, p), q in zip(method.method.named_parameters(), plain.parameters(), strict=True):
        scale = max(1.0, q.grad.abs().max().item())  # views in one batch are summed in another order
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5 * scale, msg=word)


@pytest.mark.parametrize("name", PAIRED)
def test_every_method_with_pairs_can_be_rescued(name: str):
    batch = canvases(8)
    method = build_method(rescued(name)).train()
    plain = copy.deepcopy(method.method)
    ours = gradients(method, Views(batch, method.views))
    theirs = gradients(plain, Views(batch, plain.views))
    assert {k.removeprefix("method.") for k in ours} == set(theirs)
    assert any(not torch.allclose(g, theirs[k.removeprefix("method.")]) for k, g in ours.items())
    # What the term does not reach is as it was, and so is everything when it counts nothing.
    nothing = build_method(rescued(name, scale=0.0)).train()
    for word, g in gradients(nothing, Views(batch, nothing.views)).items():
        expected = theirs[word.removeprefix("method.")]
        torch.testing.assert_close(g, expected, rtol=1e-3, atol=2e-5 * max(1.0, expected.abs().max().item()), msg=word)
    for word, value in plain.state_dict().items():
        torch.testing.assert_close(nothing.state_dict()[f"method.{word}"], value, msg=f"{word} was changed by the term")
    for m in (method, nothing):
        m.before_update(AT)
        m.after_update(AT)
    assert not listening(method)


@pytest.mark.parametrize("name", ["byol", "dino", "ibot", "moco_v3"])
def test_the_projections_of_the_target_are_heard(name: str):
    """The second view's projection is the moving average's, whatever a paper calls it."""
    target, online = heard(name)
    assert len(target) == 2 and not any(z.requires_grad for z in target)
    assert online.requires_grad


def heard(name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    found = []

    @dataclasses.dataclass(frozen=True)
    class Listens(Rescue):
        def terms(self, method, views, heard, parts):
            found.append((list(heard.target), heard.online[0]))
            return {}

    method = Regularized(build_method(get(f"{name}_tiny")).train(), (Listens(1.0),))
    next(method.loss(Views(canvases(8), method.views), AT))
    return found[0]


def listening(method) -> list[str]:
    return [name for name, m in method.named_modules() if m._forward_hooks]


def test_nobody_listens_after_an_exception_or_a_step_that_is_given_up():
    batch = canvases(8)
    method = build_method(rescued("byol")).train()
    steps = method.loss(Views(batch, method.views), AT)
    next(steps)
    steps.close()
    assert not listening(method)
    broken = build_method(rescued("simclr")).train()
    broken.method.temperature = None  # the loss raises after both views have passed
    with pytest.raises(TypeError):
        list(broken.loss(Views(batch, broken.views), AT))
    assert not listening(broken)


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v2"])
def test_view_by_view_all_at_once_and_recomputed_steps_have_the_same_gradient(name: str):
    batch = canvases(8)
    built = build_method(rescued(name)).train()
    with torch.no_grad():
        for p in (p for m in built.modules() if isinstance(m, EMA) for p in m.parameters()):
            p += 0.3 * p.std() * torch.randn_like(p) if p.ndim > 1 else 0.0  # or its projections are the network's own
    found = {
        backward: gradients(copy.deepcopy(built), Views(batch, built.views, backward=backward))
        for backward in ("per_view", "joint", "recompute")
    }
    for backward in ("joint", "recompute"):
        for word, g in found["per_view"].items():
            torch.testing.assert_close(found[backward][word], g, rtol=1e-3, atol=2e-5 * max(1.0, g.abs().max().item()))


def on_this_rank() -> dict[str, dict[str, torch.Tensor]]:
    """Gradients with the easiest images all on the first rank, and with them spread."""
    found = {}
    batch = canvases(16)
    for name in ("simclr", "byol", "moco_v3", "moco_v2"):
        for where in ("first", "everywhere"):
            pixels = batch.pixels.clone()
            if where == "first":  # a picture of one color has equal crops
                pixels[:6] = pixels[:6].float().mean((2, 3), keepdim=True).byte()
            whole = Batch.of(pixels, batch.extent, batch.index)
            mine = whole.chunk(distributed.world_size())[distributed.rank()]
            method = build_method(rescued(name, k=4)).train().double()
            method = distributed.sync_batchnorm(method, torch.device("cpu"))
            views = ExactToo(Views(mine, method.views))
            found[f"{name} {where}"] = {k: g.clone() for k, g in gradients(method, views).items()}
    return found


class ExactToo(Exact):
    def of(self, rows, kinds):
        return Exact(super().of(rows, kinds))


def test_two_ranks_rescue_what_one_does():
    one = on_this_rank()
    for rank in on_ranks(on_this_rank):
        for case, found in one.items():
            for word, g in found.items():
                torch.testing.assert_close(rank[case][word], g, rtol=1e-4, atol=1e-7, msg=f"{case}: {word}")


def test_k_is_a_64th_of_the_batch_and_can_be_set():
    def k(name: str, n: int, world: int, k: int | None = None, parts: int = 1, shared: bool = True) -> int:
        recipe = dataclasses.replace(rescued(name, k=k), step=Step(accumulate=parts))
        method = build_method(recipe)
        if shared:
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return recipe.regularizers[0].count(method.online, n, world, parts)

    assert [k("simclr", n, 1) for n in (4096, 1024, 512, 64, 4)] == [64, 16, 8, 8, 4]
    assert [k("simclr", n, 8) for n in (4096, 640, 64)] == [64, 16, 8]
    # Where each process normalizes its own, it has no fewer.
    assert [k("simclr", n, 8, shared=False) for n in (8192, 4096, 640, 64)] == [128, 64, 64, 64]
    # Without BatchNorm there is no least number: a DINO on a transformer.
    vit = dataclasses.replace(get("dino_tiny"), backbone=get("mae_tiny").backbone, regularizers=(Rescue(1.0, 16),))
    method = build_method(override(vit, "method.views", (Global(2, 32),)))
    assert vit.regularizers[0].count(method.online, 2048, 16, 1) == 16
    assert k("simclr", 1024, 2, k=128, parts=4) == 32
    # One image on each process will do, where they normalize together.
    assert k("simclr", 64, 4, k=4) == 4
    with pytest.raises(UserError, match="multiple of 4 from 4 to 64"):
        k("simclr", 64, 4, k=6)
    with pytest.raises(UserError, match="multiple of 4 from 8 to 64"):
        k("simclr", 64, 4, k=4, shared=False)
    with pytest.raises(UserError, match="multiple of 1 from 2 to 64"):
        k("simclr", 64, 1, k=100)
    with pytest.raises(UserError, match="leave out Rescue"):
        build_method(rescued("mae"))
    alone = override(rescued("byol"), "method.tasks", (Global(1, 32), Cutout(2, 32)))
    with pytest.raises(UserError, match="two global views"):
        build_method(alone)
    for wrong, says in (((-1.0, None), "scale"), ((1.0, 1), r"Rescue\.k")):
        with pytest.raises(UserError, match=says):
            Rescue(*wrong)


def rescue_of(recipe: Recipe) -> Rescue | None:
    return next((r for r in recipe.regularizers if isinstance(r, Rescue)), None)


@pytest.mark.parametrize("name", [n for n in recipes.names() if rescue_of(recipes.get(n))])
def test_every_recipe_rescues_with_the_processes_its_command_names(name: str):
    # Of each machine, times the machines, if it takes several.
    machines, processes = re.search(
        r"torchrun (?:--nnodes (\d+) )?--nproc-per-node (\d+)", recipes.describe(name)
    ).groups("1")
    recipe, world = get(name), int(machines) * int(processes)
    k = rescue_of(recipe).k
    assert k % world == 0
    norm = "resnet" in recipe.backbone.name or recipe.method.name == "moco_v3"
    assert k >= world * (2 if norm else 1)


def test_what_cannot_be_rescued_is_refused_before_anything_is_made(tmp_path):
    pixels = np.zeros((64, 32, 32, 3), np.uint8)
    for k, says in ((100, "batch of 32"), (5, "2 parts")):
        with pytest.raises(UserError, match=says):
            settings = {"regularizers": (Rescue(0.5, k),), "step.accumulate": 2, "data.holdout": 0.0}
            mv.pretrain(pixels, "simclr_tiny", settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_is_a_setting_of_any_recipe():
    recipe = override(get("simclr_tiny"), "regularizers", "(Rescue(scale=0.5, k=4), KoLeo(0.1))")
    assert recipe.regularizers == (Rescue(0.5, 4), KoLeo(0.1))
    assert from_json(to_json(recipe)) == recipe
    assert override(recipe, "regularizers.rescue.scale", "0.25").regularizers[0] == Rescue(0.25, 4)
    assert override(recipe, "regularizers", "()").regularizers == ()
    assert isinstance(build_method(recipe), Regularized)
    strong = override(recipe, "regularizers.rescue.view", "Strong(size=32, operations=1, hole=None)")
    assert strong.regularizers[0].view == Strong(size=32, operations=1, hole=None)
    assert from_json(to_json(strong)) == strong
