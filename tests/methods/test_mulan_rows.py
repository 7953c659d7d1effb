"""Rows of MULAN's and the rescue's tables: their recipes' settings, and what makes their comparisons controlled.

And the numerical corners of the losses beneath them.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyviews import cli, methods, objectives, recipes, schedules
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.evaluation import protocols
from manyviews.heads import DINOHead, Predictors
from manyviews.regularizers import KoLeo, Rescue
from manyviews.settings import override
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Cutout, Views


def tasks_loss(name: str, distance: float = 1.0) -> float:
    """The loss of a recipe with tasks, if every pair of a prediction and a target is at the same distance."""
    settings = recipes.get(name).method.settings
    tasks = settings["tasks"]
    predictors = Predictors(tasks, 2, lambda dim: nn.Identity(), "own", settings["weights"])
    views = Views(pictures(2), tasks)
    z = torch.ones(2, 2)
    targets = {task.name: [z] * task.count for task in tasks}
    term = predictors.term(views, targets, lambda p, target: torch.tensor(distance))
    return sum(term(task, i, z).item() for task in predictors.tasks for i in range(task.count))


def test_simsiam_is_compared_under_one_scale_of_the_loss():
    """With SGD and weight decay, the scale of the loss is a learning rate (appendix A: "strictly controlled")."""
    rows = ("simsiam_imagenet", "simsiam_multicrop", "simsiam_mulan")
    assert [tasks_loss(name) for name in rows] == pytest.approx([1.0, 1.0, 1.0])
    optimizers = {recipes.get(name).optimizer for name in rows}
    assert len(optimizers) == 1


def test_byols_and_moco_v3s_scales_are_their_authors():
    """LARS and AdamW take no notice of the scale of a weight's gradient; the authors' tasks weigh 1 each."""
    for method in ("byol", "moco_v3"):
        rows = (f"{method}_imagenet", f"{method}_multicrop", f"{method}_mulan")
        assert [tasks_loss(name) for name in rows] == pytest.approx([2.0, 2.0, 3.0])
        assert len({recipes.get(name).optimizer for name in rows}) == 1


def test_four_global_views_have_two_targets_and_two_predictors():
    """Table 5: 2 pairs among the targets, and 4 of the further views with them; the loss has the baseline's scale."""
    recipe = recipes.get("byol_global4")
    first, more = recipe.method.settings["tasks"]
    assert (first.count, more.count, first.area, more.area) == (2, 2, (0.25, 1.0), (0.25, 1.0))
    assert (more.target, more.color.blur, more.color.solarize, more.size) == ("global", 0.5, 0.0, 224)
    predictors = Predictors((first, more), 2, lambda dim: nn.Linear(dim, 2), "own")
    assert set(predictors.of) == {"global", "more"} and predictors.targets == ("global",)
    views, z = Views(pictures(2), (first, more)), torch.ones(2, 2)
    targets = {"global": [z, z]}
    pairs = {k.name: sum(len([*predictors.pairs(views, k, i, z, targets)]) for i in range(2)) for k in (first, more)}
    assert pairs == {"global": 2, "more": 4}
    assert tasks_loss("byol_global4") == tasks_loss("byol_imagenet") == 2.0


def test_mulans_recipes_cut_the_hole_as_its_authors_do():
    cut = {
        (name, task.cut, task.hole, task.hole_of)
        for name in recipes.names()
        if name.startswith(("byol", "simsiam", "moco_v3")) and not name.endswith("_tiny")
        for task in recipes.get(name).method.settings["tasks"]
        if isinstance(task, Cutout) and task.color is not None
    }
    assert len(cut) >= 8 and {c[1:] for c in cut} == {("first", (0.2, 0.4), "view")}


def test_the_rescues_third_method_has_the_papers_settings():
    """Its section 4, and DINOv2's short configuration, whose 100 epochs are of 1,250 steps (the paper lost a digit)."""
    recipe = recipes.get("dinov2_rescue")
    images, batch = 1_281_167, recipe.data.batch_size
    assert recipe.backbone.name == "vit_large_patch16_224" and batch == 2048
    assert recipe.epochs * images / batch == pytest.approx(100 * 1250, rel=2e-3)
    peak = optim.peak_lr(recipe.optimizer, batch)
    assert peak == pytest.approx(0.004 * (2048 / 1024) ** 0.5) and recipe.optimizer.weight_decay == 0.04
    assert recipe.regularizers == (KoLeo(0.1, on="features", first=2), Rescue(scale=1.0, k=16))
    steps = images // batch
    at = Progress(10 * 1250, recipe.epochs * steps, steps)
    assert schedules.value(recipe.optimizer.schedule, at) == pytest.approx(1, abs=1e-3)
    last = Progress(recipe.epochs * steps - 1, recipe.epochs * steps, steps)
    assert peak * schedules.value(recipe.optimizer.schedule, last) == pytest.approx(1e-6, rel=0.05)
    warm = Progress(30 * 1250, recipe.epochs * steps, steps)
    assert schedules.value(recipe.method.settings["teacher_temperature"], warm) == pytest.approx(0.07, abs=1e-4)
    default = methods.DINOv2.__init__.__kwdefaults__["views"]
    assert [v.color for v in recipe.method.settings["views"]] == [v.color for v in default]
    assert recipe.method.settings["shared_head"] and recipe.method.settings["centering"] == "center"


PEAKS = {
    "dino_imagenet": (2e-3, 1e-5),
    "dino_vit_b": (3e-3, 2e-6),
    "dino_resnet50": (0.3 * 4080 / 256, 0.0048),
    "ibot_imagenet": (3e-3, 2e-6),
    "swav_imagenet": (4.8, 0.0048),
    "moco_v3_vit_s": (2.4e-3, 0.0),
}


@pytest.mark.parametrize("name", PEAKS)
def test_rates_of_prior_work_are_their_authors(name: str):
    recipe = recipes.get(name)
    peak, end = PEAKS[name]
    assert optim.peak_lr(recipe.optimizer, recipe.data.batch_size) == pytest.approx(peak)
    assert peak * schedules.value(recipe.optimizer.schedule, Progress(10**6 - 1, 10**6, 1000)) == pytest.approx(
        end, rel=0.01, abs=1e-7
    )


def test_swav_warms_up_from_0_3():
    recipe = recipes.get("swav_imagenet")
    assert 4.8 * schedules.value(recipe.optimizer.schedule, Progress(0, 800_000, 1000)) == pytest.approx(0.3, rel=0.01)


def test_dinos_head_for_resnets_has_batchnorm_between_its_layers():
    torch.manual_seed(0)
    head = DINOHead(6, 5, hidden_dim=4, bottleneck_dim=3, norm=True)
    x = torch.randn(16, 6)
    h = x
    first, second, last = (m for m in head.mlp if isinstance(m, nn.Linear))
    for layer in (first, second):
        h = h @ layer.weight.T + layer.bias
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        h = nn.functional.gelu(h)
    h = nn.functional.normalize(h @ last.weight.T + last.bias)
    torch.testing.assert_close(head(x), h @ nn.functional.normalize(head.last.weight).T)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in DINOHead(6, 5, 4, 3).modules())


# -- docstrings ----------------------------------------------------------------------------------------------------

PROMISES = re.compile(r"\b(linear|k-NN)(?: top-1 on ImageNet:)? (\d\d\.\d|3\.4)\b")
CITED = ("byol", "simsiam", "moco_v2", "moco_v3", "simclr", "swav", "barlow_twins", "dino", "dinov2", "ibot", "ijepa")
PROMISING = [
    n
    for n in recipes.names()
    if n.startswith(CITED) and "imagenet/train" in recipes.describe(n) and PROMISES.search(recipes.describe(n))
]


def test_the_promising_recipes_are_found():
    assert len(PROMISING) >= 35


@pytest.mark.parametrize("name", PROMISING)
def test_a_recipe_that_promises_a_number_names_its_protocol(name: str, monkeypatch: pytest.MonkeyPatch):
    """The commands below `pretrain` parse, and together measure all that the docstring promises."""
    text = recipes.describe(name)
    asked: dict[str, str] = {}
    verb = cli.VERBS["evaluate"]

    @functools.wraps(verb)
    def evaluate(*args: Any, **named: Any) -> None:
        given = inspect.signature(verb).bind(*args, **named).arguments
        asked.update(dict.fromkeys(given["protocol"].split(","), given.get("features", "pooled")))

    monkeypatch.setattr(cli, "VERBS", {**cli.VERBS, "evaluate": evaluate})
    for line in re.findall(r"^manyviews (evaluate .*)$", text, re.MULTILINE):
        cli.main(line.split())
    promised = {kind for kind, _ in PROMISES.findall(text)}
    assert asked and set(asked) <= set(protocols.names())
    assert "linear" not in promised or {"linear_augmented", "linear_grid"} & set(asked)
    assert "k-NN" not in promised or {"knn", "knn_majority"} & set(asked)
    backbone = recipes.get(name).backbone.name
    features = {"vit_small_patch16_224": "last4", "vit_base_patch16_224": "cls_mean"}.get(backbone)
    if name.startswith(("byol", "dino_")) and features:
        assert asked["linear_augmented"] == features and asked.get("knn", asked.get("knn_majority")) == "pooled"


# -- zero rows, and small losses -------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "negative_cosine": objectives.negative_cosine,
    "squared_distance": objectives.squared_distance,
    "consistency": objectives.consistency,
    "nt_xent": lambda a, b: objectives.nt_xent(a, b, 0.1),
    "cross_info_nce": lambda a, b: objectives.cross_info_nce(a, b, 0.2),
    "directed_info_nce": lambda a, b: objectives.directed_info_nce(a, b, 0.2),
    "info_nce": lambda a, b: objectives.info_nce(a, b, nn.functional.normalize(b.detach()).roll(1, 0), 0.2),
    "clip": lambda a, b: objectives.clip(a, b, torch.tensor(1.0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_zeros_has_no_gradient_and_disturbs_no_other(name: str):
    """A dead layer gives zeros. Divided by an epsilon, their gradient was 1e11; the others' must be as with any row
    that is orthogonal to all, which is what a row without a direction is."""
    torch.manual_seed(0)
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    a[2] = 0
    b[4] = 0
    wide = [torch.cat([x, torch.zeros(6, 2)], 1) for x in (a, b)]
    wide[0][2, 5] = wide[1][4, 6] = 1.0
    grads = []
    for x, y in ((a.clone(), b.clone()), wide):
        x.requires_grad_()
        y.requires_grad_()
        loss = LOSSES[name](x, y)
        loss.backward()
        grads.append((loss.detach(), x.grad, y.grad))
    (loss, ga, gb), (expected, wa, wb) = grads
    torch.testing.assert_close(loss, expected)
    assert (ga[2] == 0).all() and ga.isfinite().all()
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(ga[others], wa[others, :5])
    if gb is not None:
        assert (gb[4] == 0).all()
        torch.testing.assert_close(gb[[0, 1, 2, 3, 5]], wb[[0, 1, 2, 3, 5], :5])


@pytest.mark.parametrize("name", ["nt_xent", "cross_info_nce", "info_nce", "clip"])
def test_a_small_loss_keeps_its_gradient_in_float32(name: str):
    """Views that agree at temperature 0.05: a loss of about 1e-5, whose gradient a difference of logarithms got 3 %
    wrong. The reference is the same in float64."""
    torch.manual_seed(3)
    n, t = 8, 0.05
    a, b = (torch.eye(n) + 0.15 * torch.rand(n, n) for _ in range(2))
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "nt_xent": lambda x, y: objectives.nt_xent(x, y, t),
        "cross_info_nce": lambda x, y: objectives.cross_info_nce(x, y, t),
        "info_nce": lambda x, y: objectives.info_nce(x, y, torch.full((1, n), n**-0.5, dtype=x.dtype), t),
        "clip": lambda x, y: objectives.clip(x, y, torch.tensor(1 / t).log().to(x.dtype)),
    }
    found = []
    for kind in (torch.float32, torch.float64):
        x, y = a.to(kind).detach().clone().requires_grad_(), b.to(kind)
        loss = losses[name](x, y)
        loss.backward()
        found.append((loss.item(), x.grad.double()))
    (loss, grad), (exact, reference) = found
    assert exact < 2e-3
    assert loss == pytest.approx(exact, rel=1e-4)
    assert (grad - reference).norm() < 1e-4 * reference.norm()


def test_a_pair_without_negatives_costs_nothing():
    """One image on one process: no other key is left, and there is nothing to learn."""
    for loss in (objectives.nt_xent, objectives.directed_info_nce):
        x = torch.randn(1, 4, requires_grad=True)
        value = loss(x, torch.randn(1, 4), 0.1)
        value.backward()
        assert value == 0 and (x.grad == 0).all()


def test_moco_v2s_keys_are_normalized_in_float32(monkeypatch: pytest.MonkeyPatch):
    """Under autocast the key encoder gives bfloat16; in the queue there are float32 directions of those numbers."""
    method = build_method(override(recipes.get("moco_v2_tiny"), "method.queue_size", "64")).train()
    z = torch.randn(8, 32).bfloat16()
    monkeypatch.setattr(method.key, "forward", lambda x: z)
    next(iter(method.loss(Views(pictures(8), method.views), Progress(0, 10, 5))))
    method.queue.move(Progress(0, 10, 5))
    torch.testing.assert_close(method.queue.rows[:8], nn.functional.normalize(z.float()), atol=1e-6, rtol=0)


# -- documented lines ------------------------------------------------------------------------------------------------


def test_naive_multicrop_of_all_three_methods_is_a_setting():
    for name in ("simsiam_multicrop", "moco_v3_multicrop", "byol_multicrop"):
        found = override(recipes.get(name), "method.predictor", "shared")
        assert found.method.settings["predictor"] == "shared"
    assert override(recipes.get("byol_multicrop"), "method.predictor", "shared").method == (
        recipes.get("byol_naive_multicrop").method
    )
