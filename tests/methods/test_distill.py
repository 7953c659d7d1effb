"""Distillation: its objectives in slow steps, a teacher that stays, and one look at each image."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.methods import get
from manyviews.objectives import relation_cross_entropy, softened_divergence
from manyviews.recipes import get as recipe_of
from manyviews.settings import Component, Recipe, override
from manyviews.testing import gradients_reach_what_trains, it_resumes_to_the_same_bits, pictures
from manyviews.types import Progress
from manyviews.views import CutMix, Global, Views

AT = Progress(3, 20, 5)
LABELS = {"answers": Component("mlp", {"hidden": 8, "dropout": 0.5, "classes": 3})}
TARGETS = {"features": {}, "prototypes": {"prototypes": 5}, "soft": LABELS, "hard": LABELS}


def recipe(target: str, **more) -> Recipe:
    found = recipe_of("distill_tiny")
    for name, value in {"target": target, **more}.items():
        found = override(found, f"method.{name}", value)
    return found


# -- objectives ----------------------------------------------------------------------------------------------------


def test_softened_labels_are_the_divergence_and_at_high_temperatures_half_the_squared_difference():
    torch.manual_seed(0)
    z, t = (3 * torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    for temperature in (0.5, 1.0, 4.0):
        wanted = 0.0
        for a, b in zip(z.tolist(), t.tolist(), strict=True):
            q, p = ([math.exp(v / temperature) for v in row] for row in (a, b))
            wanted += sum(x / sum(p) * (math.log(x / sum(p)) - math.log(y / sum(q))) for x, y in zip(p, q, strict=True))
        found = softened_divergence(z, t, temperature).item()
        assert found == pytest.approx(temperature**2 * wanted / 4, rel=1e-12)
    # Hinton et al. 2015, section 2.1: the gradient no longer depends on T, and becomes (z - t) / k, each less its mean.
    student = z.clone().requires_grad_()
    gradients = [torch.autograd.grad(softened_divergence(student, t, high), student)[0] for high in (1e3, 1e4)]
    wanted_gradient = ((z - z.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))) / 5 / 4
    torch.testing.assert_close(gradients[0], wanted_gradient, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(gradients[1], wanted_gradient, rtol=1e-3, atol=1e-5)
    assert softened_divergence(t, t, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_relations_are_the_papers_sum():
    torch.manual_seed(0)
    s, t, d = (torch.randn(n, 6, dtype=torch.float64) for n in (3, 3, 7))
    wanted = 0.0
    for i in range(3):
        bank = [t[i], *d]
        theirs = [math.exp(cosine_similarity(t[i], x, dim=0).item() / 0.01 - 100) for x in bank]
        ours = [math.exp(cosine_similarity(s[i], x, dim=0).item() / 0.2) for x in bank]
        wanted -= sum(p / sum(theirs) * math.log(q / sum(ours)) for p, q in zip(theirs, ours, strict=True)) / 3
    assert relation_cross_entropy(s, t, d, 0.2, 0.01).item() == pytest.approx(wanted, rel=1e-10)
    s, t, d = (x.requires_grad_() for x in (s, t, d))
    assert torch.autograd.gradcheck(lambda s: relation_cross_entropy(s, t, d, 0.2, 0.5), s)
    relation_cross_entropy(s, t, d, 0.2, 0.5).backward()
    assert t.grad is None and d.grad is None
    # A student that finds everything equally similar: log(n + 1).
    same = torch.eye(8, dtype=torch.float64)
    found = relation_cross_entropy(same[7:], same[:1], same[1:7], 0.2, 0.01)
    assert found.item() == pytest.approx(math.log(7), rel=1e-12)


# -- the method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_keeps_the_contract(target: str):
    chosen = recipe(target, **TARGETS[target])
    for check in (gradients_reach_what_trains, it_resumes_to_the_same_bits):
        check(chosen)


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_compares_the_students_view_with_the_teachers(target: str):
    method = build_method(recipe(target, **TARGETS[target], view=Global(2, 32))).train()
    batch = pictures(6)
    views = Views(batch, method.views, seed=5)
    found = sum(terms[target].detach() for terms in method.loss(views, AT))
    student = copy.deepcopy(method.online)
    wanted = torch.zeros(())
    with torch.no_grad():
        for x in views.all("global"):
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (views.mean, views.std))
            t = method.teacher.encoder((x * std + mean - 0.5) / 0.25)
            z = student(x)
            if target == "features":
                each = 2 - 2 * cosine_similarity(z, t)
            elif target == "prototypes":
                c = method.prototypes.weight
                p, q = (normalize(t) @ c.T / 0.04).softmax(1), (normalize(z) @ c.T / 0.1).log_softmax(1)
                each = -(p * q).sum(1)
            elif target == "hard":
                each = cross_entropy(z, method.teacher.head(t).argmax(1), reduction="none")
            else:
                p, q = (method.teacher.head(t) / 2).softmax(1), (z / 2).log_softmax(1)
                each = 4 * (p * (p.log() - q)).sum(1)
            wanted = wanted + each.mean() / 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["relations", "soft"])
def test_the_teacher_stays_as_it_is(target: str):
    method = build_method(recipe(target, **TARGETS.get(target, {}))).train()
    before = copy.deepcopy(method.teacher.state_dict())
    assert method.teacher.head is None or any(isinstance(m, torch.nn.Dropout) for m in method.teacher.head.modules())
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        backpropagate(method, [lambda step=step: Views(pictures(), method.views, seed=step)], AT)
        optimizer.step()
        method.after_update(AT)
        method.train()
    assert not any(m.training or p.grad is not None for m in method.teacher.modules() for p in m.parameters())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert not any(k.startswith("teacher") for k in method.kept_encoder.state_dict())


def test_clean_images_are_looked_at_once_and_found_by_their_number():
    method = build_method(recipe("features", teacher_view="clean", size=40)).train()
    method.begin(20)
    rows, calls = torch.randn(20, 16), []

    def see(network, size, mean, std):
        calls.append((network, size, mean, std))
        return rows

    method.look(see)
    assert calls == [(method.teacher.encoder, 40, [0.5] * 3, [0.25] * 3)]
    method.teacher.encoder.register_forward_hook(lambda *_: pytest.fail("the teacher is asked in a step"))
    batch = pictures(4)
    batch = dataclasses.replace(batch, index=torch.tensor([17, 3, 0, 9]))
    views = Views(batch, method.views, seed=5)
    (terms,) = method.loss(views, AT)
    with torch.no_grad():
        z = method.online(views["global", 0])
    wanted = (2 - 2 * cosine_similarity(z, rows[[17, 3, 0, 9]])).mean()
    torch.testing.assert_close(terms["features"].detach(), wanted)
    assert not any("table" in name for name in method.state_dict()), "a checkpoint does not grow with the images"


def test_prototypes_are_the_centers_of_groups_and_stay_after_a_restart():
    method = build_method(recipe("prototypes", prototypes=3)).train()
    torch.manual_seed(0)
    groups = normalize(torch.randn(3, 16))
    x = (5 * groups[:, None] + 0.2 * torch.randn(3, 10, 16)).flatten(0, 1)
    x = torch.cat([x, torch.zeros(2, 16)])  # images that could not be read
    method.look(lambda *_: x)
    near = normalize(method.prototypes.weight) @ groups.T
    assert sorted(near.argmax(1).tolist()) == [0, 1, 2] and near.amax(1).min() > 0.99
    again = build_method(recipe("prototypes", prototypes=3))
    again.load_state_dict(method.state_dict())
    again.look(lambda *_: pytest.fail("centers are a part of the checkpoint"))
    many = build_method(recipe("prototypes", prototypes=64))
    with pytest.raises(UserError, match="30 images and 64 prototypes"):
        many.look(lambda *_: x)


def test_what_a_teacher_cannot_give_is_refused():
    encoder = build_method(recipe("features")).kept_encoder
    with pytest.raises(UserError, match="set teacher_view to same"):
        get("distill")(encoder, view=CutMix(1, size=32), teacher_view="clean")
    with pytest.raises(UserError, match="a teacher with classes"):
        get("distill")(encoder, view=Global(1, size=32), target="soft")
