"""iBOT and I-JEPA: what is hidden stays hidden, and the loss is the papers' sum."""

import copy

import pytest
import torch
from torch.nn import functional as F

from manyviews.engine.build import build_method
from manyviews.objectives import cross_entropy, sharpen
from manyviews.recipes import get
from manyviews.reporting.views import views_of
from manyviews.settings import override
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Blocks, Views

AT = Progress(3, 20, 5)


def terms(method, views) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for some in method.loss(views, AT):
        for name, t in some.items():
            found[name] = found.get(name, 0) + t.detach()
    return found


def test_ibot_is_dino_on_class_tokens_and_a_mean_over_hidden_patches():
    method, batch = build_method(get("ibot_tiny")).train(), pictures(6)
    with torch.no_grad():  # a center and a teacher of their own
        method.center.value.normal_(std=0.1)
        method.patch_center.value.normal_(std=0.1)
        for p in method.teacher.parameters():
            p += 0.1 * torch.randn_like(p)
        method.student.token.normal_()
    views = Views(batch, method.views, seed=5)
    student, teacher = method.student, method.teacher.module
    masks = [method.mask(views, i).hidden for i in range(2)]
    assert any(m.any() for m in masks) and not all(m.any(1).all() for m in masks)
    x = views.all("global")
    t = [teacher.encoder.features(v) for v in x]
    s = [student.encoder.features(v, hide=m, token=student.token) for v, m in zip(x, masks, strict=True)]
    local = [student(v) for v in views.all("local")]
    tau = 0.04 + 0.03 * 3 / 150
    p = [sharpen(teacher.projector(f.pooled), method.center.value, tau) for f in t]
    heads = [student.projector(f.pooled) for f in s]
    pairs = [cross_entropy(p[i], heads[1 - i], 0.1) for i in (0, 1)]
    locals_ = [cross_entropy(p[i], z, 0.1) for i in (0, 1) for z in local]
    patches = []
    for f, g, m in zip(t, s, masks, strict=True):
        each = []
        for b in range(6):
            hidden = m[b].nonzero()[:, 0].tolist()
            total = 0.0
            for i in hidden:
                q = sharpen(teacher.projector(f.patches[b, i][None]), method.patch_center.value, tau)
                total += cross_entropy(q, student.projector(g.patches[b, i][None]), 0.1).item() / len(hidden)
            each.append(total)
        patches.append(sum(each) / 6)
    found = terms(method, views)
    assert found["global"].item() == pytest.approx(sum(pairs).item() / 6, rel=1e-4)
    assert found["local"].item() == pytest.approx(sum(locals_).item() / 6, rel=1e-4)
    assert found["patches"].item() == pytest.approx(sum(patches) / 2, rel=1e-4)


def test_the_order_of_the_view_types_does_not_matter():
    """Masks are those of the global views, wherever they stand."""
    recipe = get("ibot_tiny")
    found = []
    for kinds in (recipe.method.settings["views"], recipe.method.settings["views"][::-1]):
        method = build_method(override(recipe, "method.views", kinds)).train()
        found.append(terms(method, Views(pictures(), method.views, seed=5)))
    assert found[0] == found[1]


def test_nothing_hidden_costs_nothing_and_the_teacher_sees_everything():
    recipe = override(get("ibot_tiny"), "method.masking", Blocks((0.1, 0.5), p=0.0))
    method = build_method(recipe).train()
    views = Views(pictures(), method.views, seed=5)
    assert terms(method, views)["patches"] == 0
    # The teacher's outputs do not depend on what the student is shown.
    masked = copy.deepcopy(method)
    masked.masking = Blocks((0.4, 0.5), p=1.0)
    heard: list[list[torch.Tensor]] = [[], []]
    for m, into in zip((method, masked), heard, strict=True):
        m.teacher.register_forward_hook(lambda _, a, out, into=into: into.append(out[0]))
        terms(m, views)
    torch.testing.assert_close(heard[0], heard[1])


def test_ijepa_is_the_mean_over_blocks_and_its_context_shows_none_of_them():
    method, batch = build_method(get("ijepa_tiny")).train(), pictures(4)
    with torch.no_grad():
        for p in method.target.parameters():
            p += 0.1 * torch.randn_like(p)
    views = Views(batch, method.views, seed=5)
    mask = method.mask(views)
    x = views["global", 0]
    whole = method.target.module.features(x).patches
    context = method.encoder.features(x, keep=mask.kept).patches
    total = 0.0
    for block in mask.blocks:
        predicted = method.predictor(context, mask.kept, block)
        for b in range(4):
            for n, i in enumerate(block[b].tolist()):
                target = F.layer_norm(whole[b, i], whole.shape[-1:])
                total += F.smooth_l1_loss(predicted[b, n], target).item() / block.shape[1] / 4 / len(mask.blocks)
    assert terms(method, views)["prediction"].item() == pytest.approx(total, rel=1e-4)
    # A prediction depends neither on what the hidden patches show nor on the order of a block.
    hidden = mask.hidden.view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    again = method.encoder.features(torch.where(hidden, 9.0, x), keep=mask.kept).patches
    torch.testing.assert_close(again, context)
    block = mask.blocks[0]
    torch.testing.assert_close(
        method.predictor(context, mask.kept, block.flip(1)), method.predictor(context, mask.kept, block).flip(1)
    )


@pytest.mark.parametrize("name", ["mae", "ibot", "ijepa"])
def test_hidden_patches_are_gray_in_the_picture_of_the_views(name: str):
    method, batch = build_method(get(f"{name}_tiny")), pictures()
    found = views_of(method, batch, get(f"{name}_tiny"))
    (x,) = found["seen"]
    side = 32 // method.kept_encoder.grid(32)[0]
    empty = F.max_pool2d(x.abs().sum(1, keepdim=True), side).flatten(1) == 0
    recipe = get(f"{name}_tiny")
    views = Views(batch, method.views, recipe.seed, mean=recipe.data.mean, std=recipe.data.std, progress=1.0)
    assert torch.equal(empty, method.mask(views).hidden) and empty.any()
    assert found["global"][0].abs().sum(1).gt(0).all()
