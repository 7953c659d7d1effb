"""What steps are watched by, and when it is reason for alarm."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import manyviews as mv
from manyviews.data import open_source
from manyviews.engine import monitor, optim
from manyviews.engine.alarms import OfSteps, of_measurements
from manyviews.engine.build import build_method
from manyviews.evaluation import encode, rankme
from manyviews.heads import Watch
from manyviews.recipes import get, resolve
from manyviews.reporting.page import gather
from manyviews.reporting.words import named
from manyviews.testing import pictures
from manyviews.types import Progress
from manyviews.views import Views

AT = Progress(3, 20, 5)


def watching() -> Watch:
    watch = Watch()
    watch.on = watch.due = True
    return watch


def seen(probs: torch.Tensor, scores: torch.Tensor | None = None, **how) -> dict[str, float]:
    watch = watching()
    watch.distributions(probs, probs.clamp(min=1e-9).log() if scores is None else scores, 1.0, **how)
    return watch.read()


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_of_distributions_are_their_definitions_in_loops():
    p, s = (4 * torch.randn(6, 5)).softmax(1), torch.randn(6, 5)
    p[0] = torch.tensor([0, 0, 1.0, 0, 0])
    found = seen(p, s)
    entropies, divergences = [], []
    for row, scores in zip(p.tolist(), s.tolist(), strict=True):
        total = sum(math.exp(x) for x in scores)
        entropies.append(-sum(x * math.log(x) for x in row if x > 0))
        divergences.append(sum(x * (math.log(x) - y + math.log(total)) for x, y in zip(row, scores, strict=True) if x))
    mean = [sum(row[j] for row in p.tolist()) / 6 for j in range(5)]
    use = -sum(x * math.log(x) for x in mean)
    assert found["teacher_entropy"] == pytest.approx(sum(entropies) / 6 / math.log(5), rel=1e-5)
    assert found["kl"] == pytest.approx(sum(divergences) / 6, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(use), rel=1e-5)
    assert found["information"] == pytest.approx(use - sum(entropies) / 6, rel=1e-4)
    assert found["unused"] == pytest.approx(sum(x < 0.02 for x in mean) / 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training
        assert seen(p, s) == found
    # Rows that do not count, count for nothing.
    mask = torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    wanted = seen(p[mask], s[mask])
    assert seen(p.view(2, 3, 5), s.view(2, 3, 5), mask=mask.view(2, 3)) == pytest.approx(wanted, rel=1e-4)


def test_the_ends_of_the_scales():
    one_each = torch.eye(8)
    found = seen(one_each)
    assert found == pytest.approx(
        {"teacher_entropy": 0, "kl": 0, "perplexity": 8, "unused": 0, "information": math.log(8)}, abs=1e-5
    )
    uniform = seen(torch.full((8, 8), 1 / 8))
    assert (uniform["teacher_entropy"], uniform["information"]) == pytest.approx((1, 0), abs=1e-5)
    point = seen(one_each[:1].expand(8, -1))
    assert (point["perplexity"], point["unused"], point["information"]) == pytest.approx((1, 7 / 8, 0), abs=1e-5)
    assert seen(one_each, mask=torch.zeros(8).bool()) == {}  # nothing was hidden, which is no collapse


def test_use_is_added_up_and_the_rest_waits_until_it_is_due():
    watch, asked = watching(), []
    watch.due = False
    for j in range(3):
        watch.distributions(torch.eye(4)[j].expand(5, -1), torch.zeros(5, 4), 1.0)
        watch.note("nothing", lambda: asked.append(1) or torch.ones(()))
    assert watch.read() == pytest.approx({"perplexity": 3, "unused": 1 / 4}) and not asked
    assert watch.read() == {}
    watch.on = False
    watch.distributions(torch.eye(4), torch.zeros(4, 4), 1.0)
    assert watch.read() == {}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dino", {"information", "kl", "perplexity", "teacher_entropy", "unused"}),
        ("swav", {"information", "kl", "perplexity", "teacher_entropy", "unused"}),
        ("msn", {"information", "kl", "perplexity", "teacher_entropy", "unused"}),
        ("ijepa", {"target_spread"}),
        ("data2vec", {"target_spread"}),
        ("data2vec2", {"target_spread"}),
        ("mae", {"visible_error"}),
        ("fcmae", {"visible_error"}),
        ("simmim", {"visible_error"}),
    ],
)
def test_methods_are_watched_without_a_change_of_their_loss(name: str, wanted: set[str]):
    found = []
    for on in (False, True):
        method = build_method(get(f"{name}_tiny")).train()
        method.watch.on = method.watch.due = on
        terms = [t for terms in method.loss(Views(pictures(), method.views, seed=5), AT) for t in terms.values()]
        found.append(torch.stack(terms).detach())
        numbers = method.watch.read()
        assert set(numbers) == (wanted if on else set())
        assert all(math.isfinite(x) and x >= 0 for x in numbers.values())
    assert torch.equal(*found)


def test_divergence_of_dino_is_its_cross_entropy_less_the_teachers_entropy():
    method = build_method(get("dino_tiny")).train()
    method.watch.on = method.watch.due = True
    found = next(method.loss(Views(pictures(), method.views, seed=5), AT))  # the first global view
    numbers = method.watch.read()
    pairs = 2 * (4 - 1)
    cross_entropy = found["global"].item() * pairs
    entropy = numbers["teacher_entropy"] * math.log(128)
    assert numbers["kl"] == pytest.approx(cross_entropy - entropy, abs=1e-3)


# -- alarms ----------------------------------------------------------------------------------------------------------


def row(probs: torch.Tensor, epoch: float = 5.0, prefix: str = "") -> dict[str, float]:
    return {"epoch": epoch} | {f"watch/{k}": v for k, v in seen(probs, name=prefix).items()}


def healthy(seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(64, 32, generator=draw)).softmax(1)


UNIFORM = torch.full((64, 32), 1 / 32)
ONE = torch.eye(32)[3].expand(64, -1)
SAME = torch.cat([torch.full((64, 8), 1 / 8), torch.zeros(64, 24)], 1)


def test_collapsed_teachers_are_alarms_in_words():
    for probs, says in (
        (UNIFORM, "the same distribution, nearly the uniform one: it tells 0.000 nats about them. A lower temp"),
        (ONE, "the same distribution, on 1.0 prototypes: it tells 0.000 nats about them. A higher temperature"),
        (SAME, "on 8.0 prototypes"),
    ):
        alarms = OfSteps([row(healthy())])
        assert alarms.hear(row(probs)) == alarms.hear(row(probs)) == []  # it may pass
        (alarm,) = alarms.hear(row(probs))
        assert says in alarm and alarm.startswith("The teacher gives all images")
        assert alarms.hear(row(probs)) == []  # once
        assert alarms.hear(row(healthy())) == []
        assert [len(alarms.hear(row(probs))) for _ in range(4)] == [0, 0, 1, 0]  # and a second time
    (alarm,) = OfSteps(2 * [row(ONE, prefix="patch_")]).hear(row(ONE, prefix="patch_"))
    assert alarm.startswith("The teacher gives all patches")


def test_healthy_and_young_runs_are_none():
    alarms = OfSteps()
    assert [alarms.hear(row(UNIFORM, epoch)) for epoch in (0.1, 0.5, 0.9)] == [[], [], []]  # untrained
    assert [a for i in range(20) for a in alarms.hear(row(healthy(i), 1 + i))] == []
    assert alarms.hear({"step": 3, "loss": "nan", "watch/information": "nan"}) == []
    # From the start, and after the first epoch.
    late = OfSteps(3 * [row(UNIFORM, 0.5)])
    assert len(late.hear(row(UNIFORM, 1.0))) == 1
    passing = [row(probs) for probs in (healthy(), ONE, ONE, healthy(), UNIFORM, UNIFORM, healthy())]
    assert [a for r in passing for a in late.hear(r)] == []


def test_a_jump_of_the_first_layers_gradient_is_an_alarm():
    rng = np.random.default_rng(0)
    usual = [{"grad_peak": float(x)} for x in np.exp(rng.normal(0, 0.5, 40)) * np.linspace(5, 0.5, 40)]
    alarms = OfSteps()
    assert [a for r in usual for a in alarms.hear(r)] == []
    (alarm,) = alarms.hear({"grad_peak": 60.0})
    assert alarm.startswith("The largest gradient of the first layer jumped to 60, ")
    assert alarms.hear({"grad_peak": 80.0}) == []  # the same event
    assert OfSteps(usual[:9]).hear({"grad_peak": 1e3}) == []  # nothing to compare with yet
    again = OfSteps([*usual, {"grad_peak": 60.0}])  # a resumed run
    assert again.hear({"grad_peak": 60.0}) == []
    slow = [{"grad_peak": 1.2**i} for i in range(60)]  # growth is no jump
    steady = OfSteps()
    assert [a for r in slow for a in steady.hear(r)] == []


def test_targets_that_become_the_same_are_an_alarm():
    watch, rows = watching(), []
    for spread in (1.0, 1.0, 0.01):
        watch.targets(torch.randn(1, 1, 32) + spread * torch.randn(8, 16, 32))
        rows.append({f"watch/{k}": v for k, v in watch.read().items()})
    alarms = OfSteps(rows[:2])
    (alarm,) = alarms.hear(rows[2])
    assert alarm.startswith("The features to predict have collapsed: they are nearly the same for all patches")
    assert OfSteps().hear(rows[2]) == []  # an untrained network's may be alike


# -- a run -----------------------------------------------------------------------------------------------------------


def test_the_first_layer_is_the_one_that_sees_pixels():
    for name, weight in (("dino", "conv1.weight"), ("mae", "patch_embed.proj.weight")):
        method = build_method(get(f"{name}_tiny"))
        (found,) = optim.first_layers(method)
        assert found is dict(method.kept_encoder.model.named_parameters()).get(weight) or name == "dino"
        assert optim.largest([found]) is None
        found.grad = torch.zeros_like(found)
        found.grad.view(-1)[5] = -7.0
        assert optim.largest([found]) == 7
    frozen = build_method(get("mae_tiny"))
    frozen.encoder.freeze_patch_embed()
    assert optim.first_layers(frozen) == []


def test_a_run_logs_its_numbers_and_its_page_draws_them(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (96, 32, 32, 3), dtype=np.uint8)
    every = {"data.batch_size": 16, "data.holdout": 0.25, "monitor.epochs": 1, "monitor.steps": 2}
    run = mv.pretrain(images, "msn_tiny", epochs=2, out=tmp_path / "run", settings=every)
    rows = [r for r in run.log if "loss" in r]
    assert len(rows) >= 4
    names = {"information", "kl", "perplexity", "teacher_entropy", "unused"}
    for found in rows:
        assert {k.removeprefix("watch/") for k in found if k.startswith("watch/")} == names
        assert 0 < found["grad_peak"] <= found["grad_norm"] * 2  # one entry of one step, and the mean norm
    measured = [r for r in run.log if "monitor/patch_rankme" in r]
    assert len(measured) == 3
    charts = {chart["id"]: chart for chart in gather.curves([run])}
    for name in ("watch/information", "watch/unused", "grad_peak", "monitor/patch_rankme", "monitor/patch_cosine"):
        assert name in charts and named(name)[1] != "As logged."
        assert len(charts[name]["lines"][0]["x"]) >= 3
    assert "monitor/patch_dim" not in charts


def test_numbers_of_patches_are_those_of_the_encoder():
    recipe = resolve(get("mae_tiny"))
    rng = np.random.default_rng(0)
    source = open_source(rng.integers(0, 255, (64, 32, 32, 3), dtype=np.uint8))
    held = monitor.prepare(source.subset(range(32)), source.subset(range(32, 64)), recipe, 32)
    method = build_method(recipe).train()
    found = monitor.measure(method, held, recipe, torch.device("cpu"))

    class Patches(torch.nn.Module):
        def forward(self, x):
            f = method.encoder.features(x)
            return torch.cat([f.prefix, f.patches], 1)

    method.eval()
    x = encode(Patches(), held.pixels, mean=recipe.data.mean, std=recipe.data.std)
    cosines = [cosine_similarity(p, image[0], dim=0).item() for image in x for p in image[1:]]
    assert found["patch_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found["patch_dim"] == 32
    assert found["patch_rankme"] == pytest.approx(rankme(x[:, 1:].flatten(0, 1)), rel=1e-4)


def test_patches_that_decay_are_an_alarm():
    rows = [
        {"patch_dim": 192, "patch_rankme": r, "patch_spread": s} for r, s in ((20, 0.4), (60, 0.7), (50, 0.6), (9, 0.5))
    ]
    assert [len(of_measurements(rows[:end])) for end in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert of_measurements(rows)[0].startswith(
        "The features of patches use 9 of 192 dimensions, 60 at best: the encoder"
    )
