"""iBOT, DINOv2 and DINOv3: the losses in slow steps, and what each part may see or change."""

import copy
import dataclasses
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from manyviews.adaptation import Full
from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.errors import UserError
from manyviews.methods.dinov3 import DINOv3
from manyviews.objectives import gram, koleo, sinkhorn
from manyviews.recipes import get
from manyviews.recipes.dinov2 import KOLEO
from manyviews.regularizers import KoLeo, inner
from manyviews.settings import override
from manyviews.targets import Snapshot
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Blocks, Draws, Global, Local, Scattered, Views
from tests.methods.test_execution import saved_bytes
from tests.methods.test_ranks import Exact

AT = Progress(3, 20, 5)


def exact(views: Views) -> Views:
    return Exact(views)


def built(name: str, **changes):
    """A method in float64 whose teacher, tokens and copies differ from the student; with KoLeo, if its recipes have it.

    The tiny recipes have none: each process spreads its own images, so two ranks do not take the step of one.
    """
    recipe = get(f"{name}_tiny")
    recipe = dataclasses.replace(recipe, regularizers=() if name == "ibot" else (KOLEO,))
    for path, to in changes.items():
        recipe = override(recipe, path.replace("__", "."), to)
    method = build_method(recipe).train().double()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in inner(method).parameters():
            p += 0.1 * torch.randn_like(p)
    return method


def terms(method, views: Views, at: Progress = AT) -> dict[str, float]:
    found: dict[str, float] = {}
    for some in method.loss(views, at):
        for name, t in some.items():
            found[name] = found.get(name, 0.0) + t.item()
    return found


def balanced(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sinkhorn's algorithm with products, as SwAV prints it: three times columns, then rows."""
    q = (scores / temperature).exp()
    b, k = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / k
        q = q / q.sum(1, keepdim=True) / b
    return q * b


def entropy(target: torch.Tensor, logits: torch.Tensor) -> float:
    """-sum p log softmax(logits / 0.1) of one row, in plain numbers."""
    total = sum(math.exp(x / 0.1) for x in logits.tolist())
    return -sum(p * (x / 0.1 - math.log(total)) for p, x in zip(target.tolist(), logits.tolist(), strict=True))


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_the_loss_is_the_papers_sum(name: str):
    method = built(name)
    plain, batch = inner(method), pictures(5)
    views = exact(Views(batch, method.views, seed=5))
    found = terms(method, views)
    student, teacher = plain.student, plain.teacher.module
    masks = [plain.mask(views, i).hidden for i in (0, 1)]
    assert any(m.any() for m in masks) and not all(m.any(1).all() for m in masks)
    x = views.all("global")
    with torch.no_grad():
        t = [teacher.encoder.features(v) for v in x]
        s = [student.encoder.features(v, hide=m, token=student.token) for v, m in zip(x, masks, strict=True)]
        local = [student.projector(student.encoder(v)) for v in views.all("local")]
        temperature = 0.04 + 0.03 * 3 / 5
        tokens = balanced(torch.cat([teacher.projector(f.pooled) for f in t]), temperature).split(5)
        # One balance over the hidden patches of both views, and over nothing else.
        where = [(v, b, i) for v in (0, 1) for b in range(5) for i in masks[v][b].nonzero()[:, 0].tolist()]
        patches = torch.stack([teacher.patch_projector(t[v].patches[b, i]) for v, b, i in where])
        targets = dict(zip(where, balanced(patches, 0.04 + 0.03 * 3 / (150 if name == "dinov2" else 50)), strict=True))
        heads = [student.projector(f.pooled) for f in s]
        pairs, locals_ = 0.0, 0.0
        for b in range(5):
            pairs += sum(entropy(tokens[1 - v][b], heads[v][b]) for v in (0, 1)) / 5
            locals_ += sum(entropy(tokens[v][b], z[b]) for v in (0, 1) for z in local) / 5
        total = 0.0
        for v, b, i in where:
            z = student.patch_projector(s[v].patches[b, i])
            total += entropy(targets[v, b, i], z) / masks[v][b].sum().item() / 5 / 2
        spread = sum(koleo(f.pooled) for f in s).item()
    assert found["global"] == pytest.approx(pairs / 6, rel=1e-6)
    assert found["local"] == pytest.approx(locals_ / 6, rel=1e-6)
    assert found["patches"] == pytest.approx(total, rel=1e-6)
    assert found["koleo"] == pytest.approx(0.1 * spread, rel=1e-6)
    assert set(found) == {"global", "local", "patches", "koleo", *(["gram"] if name == "dinov3" else [])}
    if name == "dinov3":
        size, anchored = plain.gram_size, 0.0
        assert size == 48
        with torch.no_grad():
            for v in (0, 1):
                larger = views.resized("global", v, size)
                maps = plain.gram_teacher.module.features(larger).patches.mT.reshape(5, -1, 6, 6)
                g = torch.nn.functional.interpolate(maps, (4, 4), mode="bicubic").flatten(2).mT
                for b in range(5):
                    for i in range(16):
                        for j in range(16):
                            a = torch.cosine_similarity(s[v].patches[b, i], s[v].patches[b, j], dim=0)
                            c = torch.cosine_similarity(g[b, i], g[b, j], dim=0)
                            anchored += (a - c).item() ** 2 / 256 / 5 / 2
        assert found["gram"] == pytest.approx(2.0 * anchored, rel=1e-6)


# -- heads, masks, targets ---------------------------------------------------------------------------------------


def test_a_head_of_their_own_gives_patches_nothing_of_the_class_tokens():
    method = built("dinov2")
    views = exact(Views(pictures(5), method.views, seed=5))
    before = terms(method, views)
    with torch.no_grad():
        for p in inner(method).student.patch_projector.parameters():
            p.add_(torch.randn_like(p))
    after = terms(method, views)
    assert before["patches"] != after["patches"]
    assert all(before[name] == after[name] for name in ("global", "local", "koleo"))
    # With a shared head both change, and the last layers of all heads stay at first.
    shared = built("ibot")
    assert shared.student.patch_projector is None
    assert not any("patch_projector" in name for name in shared.state_dict())
    untied = built("ibot", method__shared_head="false", method__patch_prototypes="48", method__freeze_epochs="1")
    assert untied.student.patch_projector.last.weight.shape == (48, 32)
    backpropagate(untied, [lambda: exact(Views(pictures(5), untied.views))], AT)
    untied.before_update(AT)
    assert untied.student.projector.last.weight.grad is None and untied.student.patch_projector.last.weight.grad is None
    with pytest.raises(UserError, match="one number of prototypes"):
        built("ibot", method__patch_prototypes="48")


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_the_teachers_never_see_the_mask(name: str):
    method = inner(built(name, method__masking="Blocks((0.1,0.5),p=0.0)"))
    masked = copy.deepcopy(method)
    masked.masking = Blocks((0.4, 0.5), p=1.0)
    heard: list[list[torch.Tensor]] = [[], []]
    for m, into in zip((method, masked), heard, strict=True):
        m.teacher.register_forward_hook(lambda _, a, out, into=into: into.append(out[0]))
        m.eval()  # the same outputs again, whatever is drawn while training
        if name == "dinov3":
            features = m.gram_teacher.module.features
            m.gram_teacher.module.features = lambda x, f=features, into=into: [into.append(x), f(x)][1]
        found = terms(m, exact(Views(pictures(5), m.views, seed=5)))
        assert (found["patches"] == 0) == (m is method)
    torch.testing.assert_close(heard[0], heard[1])
    assert len(heard[0]) == (3 if name == "dinov3" else 1)


def test_scattered_masks_hide_drawn_shares_of_some_images_anywhere():
    mask = Scattered((0.1, 0.5), p=0.6).draw((14, 14), Draws(3, 1, torch.arange(3000)))
    count = mask.hidden.sum(1)
    some = count > 0
    assert abs(some.double().mean().item() - 0.6) < 0.04
    assert count[some].min() >= 20 and count.max() <= 98 and abs(count[some].double().mean().item() - 0.3 * 196) < 3
    (order,) = mask.blocks
    assert torch.equal(mask.hidden.gather(1, order), torch.arange(98) < count[:, None])
    # Each patch equally often, and as often beside a hidden patch as elsewhere.
    maps = mask.hidden[some].view(-1, 14, 14).double()
    assert (maps.mean(0) - 0.3).abs().max() < 0.06
    beside = (maps[:, 1:] * maps[:, :-1]).sum() / maps[:, 1:].sum()
    assert beside < 0.4  # E[r^2] / E[r] = 0.344 for shares between 0.1 and 0.5; blocks have more than 0.7


def test_rows_that_do_not_count_leave_the_balance_to_the_others():
    scores, counts = torch.randn(9, 4, dtype=torch.float64), torch.rand(9) < 0.6
    found = sinkhorn(scores, 0.3, 3, counts)
    torch.testing.assert_close(found[counts], sinkhorn(scores[counts], 0.3, 3))
    torch.testing.assert_close(found.sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(found[counts], balanced(scores[counts], 0.3))
    assert sinkhorn(scores, 0.3, 3, counts & False).isfinite().all()  # no image hides anything


def test_koleo_spreads_class_tokens_of_the_first_views_alone():
    found = {}
    for way in ("per_view", "joint"):
        method = built("dinov2")
        seen: list[torch.Tensor] = []
        method.online.projector.register_forward_pre_hook(lambda _, x, seen=seen: seen.extend(x[0].split(5)))
        found[way] = terms(method, exact(Views(pictures(5), method.views, seed=5, backward=way)))["koleo"]
        assert len(seen) == 4
        assert found[way] == pytest.approx(0.1 * sum(koleo(z).item() for z in seen[:2]), rel=1e-9)
    # The same on projections of another method.
    method = build_method(override(get("simclr_tiny"), "regularizers", "(KoLeo(1.0, first=1),)")).train()
    heard: list[torch.Tensor] = []
    method.online.register_forward_hook(lambda _, x, z: heard.extend(z.split(8)))
    assert terms(method, Views(pictures(), method.views, seed=5))["koleo"] == pytest.approx(koleo(heard[0]).item())


# -- Gram anchoring ----------------------------------------------------------------------------------------------


def test_gram_anchors_similarities_and_nothing_else():
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    assert gram(x, x).item() == pytest.approx(0, abs=1e-15)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    length = torch.rand(3, 7, 1, dtype=torch.float64) + 0.1
    assert gram(x @ rotation, x * length).item() == pytest.approx(0, abs=1e-15)
    for p in (2, 6, 196):
        assert gram(torch.eye(p)[None], torch.ones(1, p, 3)).item() == pytest.approx(1 - 1 / p, rel=1e-5)
    s, t = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    gram(s, t.double()).backward()
    assert s.grad is not None and t.grad is None
    assert torch.autograd.gradcheck(lambda s: gram(s, t.double()), s)


def test_the_gram_teacher_is_the_teacher_of_given_epochs():
    encoder = torch.nn.Linear(2, 2)
    copied = Snapshot(encoder, (0.4, 2.0))
    seen = []
    for step in range(15):
        with torch.no_grad():
            encoder.weight.fill_(step)
        copied.move(Progress(step, 15, 5))
        seen.append(copied.module.weight[0, 0].item())
    assert seen[2:9] == [1.0] * 7 and seen[9:] == [9.0] * 6  # after two steps and after ten
    assert seen[0] == pytest.approx(Snapshot(encoder, ()).module.weight[0, 0].item(), abs=99) and seen[1] == 1.0


def test_anchoring_begins_at_its_epoch_and_reaches_the_student_alone():
    method = built("dinov3", method__gram_start="1", regularizers="()")
    views = exact(Views(pictures(5), method.views, seed=5))
    assert "gram" not in terms(method, views, Progress(4, 20, 5))
    assert "gram" in terms(method, views, Progress(5, 20, 5))
    backpropagate(method, [lambda: views], Progress(5, 20, 5))
    assert all(p.grad is None for part in (method.teacher, method.gram_teacher) for p in part.parameters())
    with pytest.raises(UserError, match="a teacher that does not exist yet"):
        built("dinov3", method__gram_copies="(2.0,)")
    with pytest.raises(UserError, match="do not tile 50"):
        built("dinov3", method__gram_size="50")


def test_positions_jitter_for_the_student_while_it_trains():
    recipe = override(get("dinov3_tiny"), "backbone.rope_rescale_coords", "2.0")
    method = inner(build_method(recipe).train())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(method.student.encoder(x), method.student.encoder(x))
        for still in (method.teacher.module.encoder, method.gram_teacher.module):
            assert torch.equal(still(x), still(x))
        method.eval()
        assert torch.equal(method.student.encoder(x), method.student.encoder(x))


# -- execution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_packed_crops_give_the_gradients_of_crop_by_crop(name: str):
    """All of the student's views in one pass, in float64."""
    built_, gradients, passes = built(name), {}, {}
    for way in ("per_view", "joint"):
        method, sizes = copy.deepcopy(built_), []
        inner(method).student.register_forward_hook(lambda m, x, y, sizes=sizes: sizes.append(x[0]))
        backpropagate(method, [lambda w=way, m=method: exact(Views(pictures(5), m.views, seed=5, backward=w))], AT)
        gradients[way] = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
        passes[way] = len(sizes)
    assert passes == {"per_view": 3, "joint": 1}
    for word, g in gradients["per_view"].items():
        torch.testing.assert_close(gradients["joint"][word], g, rtol=1e-9, atol=1e-12, msg=word)


def test_memory_does_not_grow_with_local_views():
    batch = pictures()
    few, *more = (saved_bytes("dinov2_tiny", n, "per_view", batch) for n in (1, 3, 6))
    assert max(more) <= few
    assert saved_bytes("dinov2_tiny", 6, "joint", batch) > 1.5 * max(more)


def test_patches_projection_and_layers_have_rates_of_their_own():
    recipe = get("dinov2_tiny")
    method = build_method(recipe)
    by_name = {id(p): n for n, p in method.named_parameters()}
    found = {by_name[id(p)]: g["lr_scale"] for g in optim.groups(method, recipe.adaptation) for p in g["params"]}
    model = "student.encoder.model"
    assert found[f"{model}.patch_embed.proj.weight"] == pytest.approx(0.2 * 0.9**3)  # below two blocks and the heads
    assert found[f"{model}.pos_embed"] == pytest.approx(0.9**3)
    assert found[f"{model}.blocks.1.mlp.fc1.bias"] == pytest.approx(0.9)
    assert found["student.projector.mlp.0.weight"] == found["student.token"] == 1.0
    groups = Full(patch_embed=0.5).groups(method.online.encoder)
    assert [g["lr_scale"] for g in groups] == [0.5, 1.0] and len(groups[0]["params"]) == 2
    with pytest.raises(UserError, match="choose a plain vision transformer"):
        Full(patch_embed=0.2).begin(Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)))


def test_another_size_of_views_goes_on_from_the_same_weights():
    """The last phase at a high resolution: positions are interpolated, and all weights fit."""
    recipe = get("dinov2_tiny")
    larger = override(override(recipe, "method.views.global.size", "64"), "method.views.local.size", "32")
    method = build_method(larger)
    method.load_state_dict(build_method(recipe).state_dict())
    found = terms(method.train(), Views(pictures(4), method.views, seed=5))
    assert all(math.isfinite(t) for t in found.values())


def ablation() -> list[tuple[str, str]]:
    """The rows of the page's table: what is added, and the settings that make it."""
    page = (Path(__file__).parents[2] / "docs" / "methods" / "dinov2.md").read_text()
    return re.findall(r"^\| \+ ([^|]+?) \| (?:`([^`]+)`|-) \|", page, re.MULTILINE)


def test_the_rows_of_the_ablation_build_one_on_the_other():
    recipe = get("ibot_imagenet")
    rows = ablation()
    assert len(rows) == 11
    words: list[str] = []
    for _, line in rows:
        words += [w for w in shlex.split(line) if w != "--set"]
        found = recipe
        for word in words:
            path, _, text = word.partition("=")
            found = override(found, path, text)
        # The same in small: width and depth are no part of the table.
        for path, text in (("embed_dim", "32"), ("depth", "2"), ("num_heads", "2")):
            found = override(found, f"backbone.{path}", text)
        found = override(override(found, "method.hidden_dim", "32"), "method.bottleneck_dim", "16")
        method = inner(build_method(found))
        side = 4 * method.online.encoder.patch_size
        assert method.online.encoder(torch.zeros(1, 3, side, side)).shape == (1, 32)
    student = method.student
    assert student.projector.last.weight.shape[0] == 131072 and student.patch_projector is not None
    assert student.encoder.patch_size == 14 and type(student.encoder.model.blocks[0].mlp).__name__ == "GluMlp"
    assert found.data.batch_size == 3072 and found.regularizers == (KoLeo(0.1, on="features", first=2),)


def test_dinov3s_defaults_are_the_papers():
    with torch.device("meta"):
        method = DINOv3(Encoder("vit_small_patch16_dinov3"))
    assert method.student.projector.last.weight.shape == (262144, 512)
    assert method.student.patch_projector.last.weight.shape == (98304, 512)
    assert [type(v) for v in method.views] == [Global, Local] and method.gram_weight == 2.0
