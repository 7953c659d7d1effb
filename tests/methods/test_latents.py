"""data2vec, data2vec 2.0, MSN and I-JEPA's schedules: the papers' sums in slow steps, and what may not be seen."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from manyviews.engine.build import build_method
from manyviews.engine.optim import peak_lr
from manyviews.errors import UserError
from manyviews.heads import GridDecoder
from manyviews.objectives import latent_error, layer_average, prior_divergence
from manyviews.recipes import get
from manyviews.schedules import Cosine, Linear, Stretched, value
from manyviews.settings import override
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Blocks, Draws, Global, InverseBlocks, Random, Views

AT = Progress(3, 20, 5)


def made(name: str, **settings):
    recipe = get(f"{name}_tiny")
    for key, x in settings.items():
        recipe = override(recipe, f"method.{key}", x)
    method = build_method(recipe).train()
    with torch.no_grad():  # a moving copy of its own
        for p in method.target.parameters():
            p += 0.1 * torch.randn_like(p)
    return method


def terms(method, views) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for some in method.loss(views, AT):
        for name, t in some.items():
            found[name] = found.get(name, 0) + t.detach()
    return found


# -- objectives ------------------------------------------------------------------------------------------------------


def test_the_latent_error_is_the_papers_in_loops():
    pred, target = torch.randn(3, 4, 5, dtype=torch.float64), 3 * torch.randn(3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    for beta in (1.0, 2.0, None):
        images = []
        for b in range(3):
            each = []
            for i in range(4):
                y = (target[b, i] - target[b, i].mean()) / (target[b, i].var(correction=0) + 1e-5).sqrt()
                for e in (pred[b, i] - y).abs().tolist() if mask[b, i] else ():
                    smooth = e * e / 2 / beta if beta and e < beta else e - (beta or 0) / 2
                    each.append(e * e if beta is None else smooth)
            images.append(sum(each) / max(1, len(each)))
        assert latent_error(pred, target, mask, beta=beta).item() == pytest.approx(sum(images) / 3, rel=1e-9)
    pred.requires_grad_(), target.requires_grad_()
    latent_error(pred, target, mask).backward()
    assert target.grad is None and pred.grad is not None
    assert (pred.grad[~mask] == 0).all() and pred.grad[mask].abs().min() > 0  # only where patches count


@pytest.mark.parametrize("over", ["features", "patches"])
def test_targets_are_the_mean_of_normalized_layers(over: str):
    layers = [s * torch.randn(2, 6, 5, dtype=torch.float64) + s for s in (1.0, 10.0, 0.1)]  # of very unequal size
    axis = 2 if over == "features" else 1
    total = 0
    for x in layers:
        total = total + (x - x.mean(axis, keepdim=True)) / (x.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()
    total = total / 3
    wanted = (total - total.mean(2, keepdim=True)) / (total.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer_average(layers, over), wanted)
    torch.testing.assert_close(layer_average([x.bfloat16() for x in layers], over).double(), wanted, rtol=0.1, atol=0.1)


def test_the_divergence_from_a_power_law_has_its_closed_forms():
    k, one = 16, torch.eye(16, dtype=torch.float64)
    assert prior_divergence(one[:1].expand(5, -1)).item() == pytest.approx(math.log(k))  # one prototype takes all
    assert prior_divergence(one).item() == pytest.approx(0, abs=1e-9)  # each is used once
    law = torch.tensor([j**-0.25 for j in range(1, k + 1)], dtype=torch.float64)
    law /= law.sum()
    assert prior_divergence(law.expand(3, -1), 0.25).item() == pytest.approx(0, abs=1e-9)
    assert prior_divergence(one, 0.25).item() == pytest.approx(sum(math.log(1 / k / p) / k for p in law.tolist()))
    logits = torch.randn(4, k, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prior_divergence(x.softmax(1), 0.25), logits)


# -- masks -----------------------------------------------------------------------------------------------------------


def test_inverse_blocks_keep_squares_and_equally_many():
    draws = Draws(0, 0, torch.arange(400))
    mask = InverseBlocks(0.8).draw((14, 14), draws)
    assert mask.kept.shape == (400, 39) and (mask.hidden.sum(1) == 157).all()
    seen = (~mask.hidden).float()
    assert torch.equal(seen.gather(1, mask.kept), torch.ones(400, 39))
    assert torch.equal(mask.hidden.gather(1, mask.blocks[0]), torch.ones(400, 157).bool())
    # Neighbors of a visible patch are visible far more often than by chance, a fifth of the time.
    grid = seen.view(400, 14, 14)
    together = (grid[:, :, 1:] * grid[:, :, :-1]).sum() / grid[:, :, :-1].sum()
    alone = Random(0.8).draw((14, 14), draws).hidden.logical_not().float().view(400, 14, 14)
    assert together > 0.55 and (alone[:, :, 1:] * alone[:, :, :-1]).sum() / alone[:, :, :-1].sum() < 0.25
    # All but one square are whole: with one square only, 9 patches away from the edge.
    one = InverseBlocks(1 - 9 / 196).draw((14, 14), draws)
    maps = (~one.hidden).view(400, 14, 14)
    inner = [m for m in maps if not (m[0].any() or m[-1].any() or m[:, [0, -1]].any())]
    assert len(inner) > 100
    for row in inner:
        r, c = row.nonzero().unbind(1)
        assert (r.max() - r.min(), c.max() - c.min()) == (2, 2)
    assert seen.mean(0).min() > 0.04 and seen.mean(0).max() < 0.28  # corners are covered by fewer squares
    single = InverseBlocks(0.5, block=1).draw((6, 6), draws)
    assert single.kept.shape == (400, 18)
    with pytest.raises(UserError, match="some must stay"):
        InverseBlocks(0.99).draw((4, 4), draws)


# -- methods ---------------------------------------------------------------------------------------------------------


def test_data2vec_is_the_paper_in_slow_steps():
    method, batch = made("data2vec", masking=Blocks((0.6, 0.6), p=1.0)), pictures(4)
    with torch.no_grad():
        method.token.normal_()
    views = Views(batch, method.views, seed=5)
    x, hidden = views["global", 0], method.mask(views).hidden
    assert hidden.sum(1).tolist() == [round(0.6 * hidden.shape[1])] * 4
    whole = method.target.module.features(x, layers=2).layers
    total = 0.0
    for b in range(4):
        student = method.encoder.features(x[b : b + 1], hide=hidden[b : b + 1], token=method.token).patches[0]
        for i in hidden[b].nonzero()[:, 0].tolist():
            y = sum(F.layer_norm(layer.patches[b, i], (32,)) for layer in whole) / 2
            e = (method.head(student[i]) - F.layer_norm(y, (32,))).abs()
            total += torch.where(e < 2, e * e / 4, e - 1).mean().item() / hidden[b].sum().item() / 4
    assert terms(method, views)["prediction"].item() == pytest.approx(total, rel=1e-4)


def test_data2vec2_is_the_paper_in_slow_steps():
    method, batch = made("data2vec2", class_weight=0.5), pictures(4)
    views = Views(batch, method.views, seed=5)
    x = views["global", 0]
    whole = method.target.module.features(x, layers=2).layers
    y = sum(F.instance_norm(layer.patches.transpose(1, 2)).transpose(1, 2) for layer in whole) / 2
    y = F.layer_norm(y, (32,))
    z = sum(F.layer_norm(layer.patches, (32,)) for layer in whole) / 2
    z = F.layer_norm(z, (32,)).mean(1)
    masks = [method.mask(views, i) for i in range(2)]
    assert not torch.equal(masks[0].hidden, masks[1].hidden)
    error = summary = 0.0
    for mask in masks:
        for b in range(4):
            kept, hidden = (~mask.hidden[b]).nonzero()[:, 0], mask.hidden[b].nonzero()[:, 0]
            student = method.encoder.features(x[b : b + 1], keep=kept[None])
            found = method.decoder(student.patches, kept[None])[0]
            error += (found[hidden] - y[b, hidden]).square().mean().item() / 8
            summary += (method.class_head(student.prefix[0, 0]) - z[b]).square().mean().item() / 8
    found = terms(method, views)
    assert found["prediction"].item() == pytest.approx(error, rel=1e-4)
    assert found["class"].item() == pytest.approx(0.5 * summary, rel=1e-4)


def test_a_grid_decoder_is_its_convolutions_and_sees_places():
    decoder = GridDecoder(8, (3, 4), 5, dim=8, depth=2, groups=2)
    tokens, kept = torch.randn(2, 3, 8), torch.tensor([[0, 5, 11], [1, 2, 3]])
    maps = decoder.mask.detach().view(1, 8, 1, 1).repeat(2, 1, 3, 4)
    for b in range(2):
        for n, place in enumerate(kept[b].tolist()):
            maps[b, :, place // 4, place % 4] = tokens[b, n]
    for conv in decoder.layers:
        y = F.conv2d(maps, conv.weight, conv.bias, padding=1, groups=2)
        maps = maps + F.gelu((y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt())
    wanted = decoder.head(maps.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(decoder(tokens, kept), wanted)
    with pytest.raises(UserError, match="in 16 groups"):
        GridDecoder(24, (3, 4), 5, dim=32, depth=1)


def most_held(method, batch) -> int:
    """The most bytes that autograd holds for the backward pass at one time."""
    held: Counter[tuple[int, int]] = Counter()
    most = 0

    class Held:
        def __init__(self, x: torch.Tensor) -> None:
            nonlocal most
            self.x = x
            self.memory = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
            held[self.memory] += 1
            most = max(most, sum(size for (_, size), n in held.items() if n))

        def __del__(self) -> None:
            held[self.memory] -= 1

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda h: h.x):
        for found in method.loss(Views(batch, method.views), AT):
            torch.stack([*found.values()]).sum().backward()
            del found
    return most


def test_memory_does_not_grow_with_masks_and_the_target_is_computed_once():
    few, many = (made("data2vec2", masks=n) for n in (1, 6))
    passes = []
    many.target.module.model.norm.register_forward_hook(lambda *_: passes.append(1))
    batch = pictures()
    assert most_held(many, batch) <= 1.02 * most_held(few, batch)
    assert len(passes) == 1


@pytest.mark.parametrize("name", ["data2vec2", "msn", "ijepa"])
def test_hidden_patches_never_enter_the_encoder(name: str):
    """Neither what they show matters, nor do they take time in the blocks."""
    method, batch = made(name), pictures(4)
    views = Views(batch, method.views, seed=5)
    encoder = method.online.encoder if name == "msn" else method.encoder
    lengths: list[int] = []
    encoder.model.blocks[0].register_forward_hook(lambda m, x, y: lengths.append(y.shape[1]))
    terms(method, views)
    mask = method.mask(views)
    prefix = encoder.num_prefix_tokens
    assert prefix + mask.kept.shape[1] in lengths
    n = mask.hidden.shape[1]
    assert prefix + n not in lengths  # no anchor, and no context, is whole
    side = 32 // encoder.grid(32)[0]
    hidden = mask.hidden.view(4, 1, *encoder.grid(32)).repeat_interleave(side, 2).repeat_interleave(side, 3)
    x = views["global", 0]
    seen = encoder.features(x, keep=mask.kept).pooled
    torch.testing.assert_close(encoder.features(torch.where(hidden, 9.0, x), keep=mask.kept).pooled, seen)


@pytest.mark.parametrize("settings", [{}, {"iterations": 0, "exponent": 0.25, "weight": 2.0}], ids=["msn", "pmsn"])
def test_msn_is_the_paper_in_slow_steps(settings: dict):
    method, batch = made("msn", **settings), pictures(6)
    views = Views(batch, method.views, seed=5)
    online, target, prototypes = method.online, method.target.module, F.normalize(method.prototypes.weight)
    mask = method.mask(views)
    assert mask.kept.shape[1] == 12  # of 16
    anchors = [online(views["global", 0], mask.kept), *(online(views["local", i]) for i in range(2))]
    z = F.normalize(target(views["global", 1])) @ prototypes.T
    p = (z / 0.025).softmax(1)
    if not settings:
        for _ in range(3):  # Sinkhorn-Knopp on the probabilities, in turn
            p = p / p.sum(0)
            p = p / p.sum(1, keepdim=True)
    predictions = [(F.normalize(a) @ prototypes.T / 0.1).softmax(1) for a in anchors]
    error = sum(-(p[i] * q[i].log()).sum().item() for q in predictions for i in range(6)) / 18
    mean = torch.stack(predictions).mean((0, 1))
    prior = torch.tensor([j ** -settings.get("exponent", 0.0) for j in range(1, 65)])
    prior = prior / prior.sum()
    divergence = (mean * (mean / prior).log()).sum().item()
    found = terms(method, views)
    assert found["prediction"].item() == pytest.approx(error, rel=1e-4)
    assert found["prototypes"].item() == pytest.approx(settings.get("weight", 1.0) * divergence, rel=1e-4)
    # Gradients: none to the target, and to the prototypes from the anchors alone.
    for some in method.loss(views, AT):
        sum(some.values()).backward()
    assert all(q.grad is None for q in target.parameters())
    z_anchor = [a.detach() for a in anchors]
    w = method.prototypes.weight.detach().clone().requires_grad_()
    s = [F.normalize(a) @ w.T / 0.1 for a in z_anchor]
    again = sum(-(p.detach() * x.log_softmax(1)).sum(1).mean() for x in s) / 3
    m = torch.stack([x.softmax(1) for x in s]).mean((0, 1))
    (again + settings.get("weight", 1.0) * (m * (m / prior).log()).sum()).backward()
    torch.testing.assert_close(method.prototypes.weight.grad, w.grad, rtol=1e-3, atol=1e-6)


def test_what_does_not_fit_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="set iterations to 0"):
        made("msn", exponent=0.25)
    with pytest.raises(UserError, match="2 layers to average, not 3"):
        made("data2vec", layers=3)
    with pytest.raises(UserError, match="one view of each image"):
        made("data2vec2", view=Global(2, size=32))
    method = made("msn", masking=Blocks((0.2, 0.4), p=1.0))
    with pytest.raises(UserError, match="equally many"):
        terms(method, Views(pictures(4), method.views))


# -- I-JEPA's schedules ----------------------------------------------------------------------------------------------


def test_ijepa_has_the_papers_schedules():
    recipe = get("ijepa_imagenet")
    adamw, epoch = recipe.optimizer, 10
    at = [Progress(step, 600 * epoch, epoch) for step in (0, 15 * epoch - 1, 599 * epoch)]
    rates = [peak_lr(adamw, recipe.data.batch_size) * value(adamw.schedule, a) for a in at]
    assert rates[:2] == pytest.approx([1e-4 + 9e-4 / 150, 1e-3])
    done = (599 - 15) / (750 - 15)
    assert rates[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * done)) / 2, rel=1e-3)
    assert value(adamw.weight_decay, at[2]) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * 599 / 750)) / 2)
    momentum = recipe.method.settings["momentum"]
    assert value(momentum, at[0]) == 0.996 and value(momentum, at[2]) == pytest.approx(0.996 + 0.004 * 599 / 750)


def test_a_stretched_schedule_is_that_of_a_longer_run():
    for schedule in (Cosine(0.1, 0.9), Linear(1.0, 2.0)):
        for step in (0, 3, 9):
            assert Stretched(schedule, 1.5)(Progress(step, 10, 5)) == schedule(Progress(step, 15, 5))
