"""MAST's loss against its sum in loops, the parts it can do without, and the paper's recipes."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from manyviews.backbones import Encoder
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.methods import MAST
from manyviews.objectives import covariance, invariance, variance
from manyviews.recipes import get
from manyviews.types import Batch, Progress
from manyviews.views import MAST_5, MAST_15, MAST_19, Composed, Global, Views

AT = Progress(3, 20, 5)
APPLIED = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)


class Some(Views):
    """Random views. The augmentations in a table were applied, each to the first or to the second of them."""

    def __init__(self, count: int = 2, applied: Tensor = APPLIED) -> None:
        draw = torch.Generator().manual_seed(1)
        self.x = [torch.randn(len(applied), 3, 16, 16, generator=draw) for _ in range(count)]
        self.table = applied

    def map(self, module: nn.Module) -> list[Tensor]:
        return [module(x) for x in self.x]

    def applied(self, name: str) -> Tensor:
        assert name == "composed"
        first = torch.arange(self.table.shape[1]) % 2 == 0
        return torch.stack([self.table & first, self.table & ~first, *([self.table] * (len(self.x) - 2))])


def build(count: int = 2, **settings: object) -> MAST:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    return MAST(encoder, view=Composed(count, size=16), **{"hidden_dim": 16, "output_dim": 12, **settings})


def terms(method: MAST, views: Views | None = None) -> dict[str, Tensor]:
    (found,) = method.loss(Some() if views is None else views, AT)
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize("kind", ["learned", "disjoint", "none"])
def test_the_loss_is_the_papers_sum(reduction: str, uncertainty: bool, kind: str):
    """With K the number of masks applied to an image, section 3.2: "setting K = 1 in Eq. (4)" for one augmentation."""
    method = build(reduction=reduction, uncertainty=uncertainty, masks=kind, squared=False, prior_weight=7.0)
    found = terms(method)
    (mu, var), (mu2, var2) = Some().map(method.online)
    masks = method.masks()
    d, k = 12, 1 if kind == "none" else 5
    distance = torch.zeros(())
    for i in range(4):
        applied = 1 if kind == "none" else int(APPLIED[i].sum())
        for j in range(k):
            if kind == "none" or APPLIED[i, j]:
                square = ((mu[i] - mu2[i]) * masks[:, j]).square().sum()
                plain = d / k if reduction == "mean" else 1
                trace = ((var[i] + var2[i]) * masks[:, j]).sum() / 2 if uncertainty else plain
                distance = distance + square / trace / applied / 4
    size = d if reduction == "mean" else 1
    expected = {
        "distance": 25 * d / size * distance,
        "variance": 25 * (variance(mu) + variance(mu2)) / 2,
        "covariance": covariance(mu) + covariance(mu2),
    }
    if kind == "learned":
        expected["sparsity"] = 600 / (d * k) * masks.sum()
    if uncertainty:
        one, two = Normal(mu, var.sqrt()), Normal(mu2, var2.sqrt())
        both = (kl_divergence(one, two) + kl_divergence(two, one)).sum(1).mean()
        expected["divergence"] = 25 / size * both
        unit = [kl_divergence(g, Normal(g.mean, 1.0)).sum(1).mean() for g in (one, two)]
        expected["prior"] = 7 / size * sum(unit) / 2
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_more_views_are_all_pairs():
    method = build(3).eval()
    views = Some(3)
    found = terms(method, views)
    for name, value in found.items():
        parts = []
        for i, j in combinations(range(3), 2):
            pair = Some()
            pair.x = [views.x[i], views.x[j]]
            either = views.applied("composed")[[i, j]].any(0)
            pair.table = either  # of this pair, not of all views
            parts.append(terms(method, pair)[name])
        torch.testing.assert_close(torch.stack(parts).mean(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["disjoint", "none"])
def test_without_learned_masks_and_uncertainty_it_is_vicreg(kind: str):
    method = build(masks=kind, uncertainty=False, output_dim=15).eval()
    views = Some(applied=torch.ones_like(APPLIED))
    a, b = (method.embed(x)[0] for x in views.x)
    found = terms(method, views)
    expected = {
        "distance": 25 * invariance(a, b),
        "variance": 25 * (variance(a) + variance(b)) / 2,
        "covariance": covariance(a) + covariance(b),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_terms_are_comparable_at_any_width_as_means_and_not_as_sums():
    """At the start, as the paper wants its weights to make them. Sparsity starts at 600 times the masks' mean, 0.4."""
    small, large = (terms(build(output_dim=d, masks="learned")) for d in (32, 512))
    for name in ("distance", "divergence", "variance"):
        assert 0.5 < small[name] / large[name] < 2, name
    printed = terms(build(output_dim=512, masks="learned", reduction="sum"))
    for name in ("distance", "divergence"):
        torch.testing.assert_close(printed[name], 512 * large[name])
    assert torch.equal(printed["sparsity"], large["sparsity"]) and 220 < large["sparsity"] < 260


def test_masks_learn_from_the_images_that_their_augmentation_was_applied_to():
    only_second = torch.zeros_like(APPLIED)
    only_second[:, 1] = True
    method = build(masks="learned", sparsity_weight=0.0)
    sum(terms(method, Some(applied=only_second)).values()).backward()
    gradient = method.masks.weight.grad
    assert gradient[:, 1].abs().sum() > 0 and not gradient[:, [0, 2, 3, 4]].any()
    nothing = terms(method, Some(applied=torch.zeros_like(APPLIED)))
    assert nothing["distance"] == 0 and nothing["divergence"] > 0


def test_views_and_their_augmentations_are_those_of_the_schedule(batch: Batch):
    method = build_method(get("mast_tiny")).train()
    counts = []
    for progress in (0.0, 0.4, 0.8, 0.999):
        views = Views(batch, method.views, seed=1, progress=progress)
        counts.append(views.applied("composed").any(0).sum(1).float().mean().item())
        (found,) = method.loss(views, AT)
        assert all(t.isfinite() for t in found.values())
    assert counts[0] == counts[1] == 1 < counts[2] < counts[3]


def test_without_uncertainty_there_are_no_variances_to_learn():
    method = build(uncertainty=False)
    mu, var = method.embed(torch.randn(4, 3, 16, 16))
    assert mu.shape == var.shape == (4, 12) and torch.equal(var, torch.ones(4, 12))
    sum(terms(method).values()).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_networks_that_widen_after_pooling_have_narrower_patches(batch: Batch):
    encoder = Encoder("mobilenetv3_small_050")
    assert encoder.patch_dim < encoder.embed_dim
    method = MAST(encoder, view=Composed(2, size=32), hidden_dim=16, output_dim=12)
    (found,) = method.loss(Views(batch, method.views), AT)
    sum(found.values()).backward()
    assert encoder.model.conv_stem.weight.grad.abs().sum() > 0


def test_subspaces_have_the_names_of_the_augmentations():
    names = ("color_jitter", "gaussian_blur", "horizontal_flip", "grayscale", "resized_crop")
    assert build().augmentations == build().subspaces == names
    assert build(masks="none").augmentations == names and build(masks="none").subspaces == ("all",)
    assert len(build(masks="none").masks().T) == 1


def test_variances_are_positive_whatever_makes_them_so():
    for positive in ("softplus", "relu"):
        method = build(positive=positive)
        assert method.embed(torch.randn(4, 3, 16, 16))[1].min() > 0
        assert all(t.isfinite() for t in terms(method).values())


def test_views_that_are_not_compositions_are_refused():
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    with pytest.raises(UserError, match="give Composed views, not global"):
        MAST(encoder, view=Global(2, size=32))


def test_the_recipes_are_the_papers():
    recipe = get("mast_imagenet")
    assert optim.peak_lr(recipe.optimizer, recipe.data.batch_size) == pytest.approx(1.6)
    assert (recipe.epochs, recipe.data.batch_size, recipe.optimizer.weight_decay) == (1000, 2048, 1e-6)
    for name, augmentations in (("imagenet", MAST_5), ("imagenet15", MAST_15), ("imagenet19", MAST_19)):
        view = get(f"mast_{name}").method.settings["view"]
        assert view.augmentations == augmentations and view.staged and view.size == 224
    changed = {"handcrafted": ("masks", "disjoint"), "no_uncertainty": ("uncertainty", False)}
    for name, (key, value) in changed.items():
        assert get(f"mast_{name}").method.settings == recipe.method.settings | {key: value}
    small = get("mast_uncertainty_only")
    assert (small.backbone.name, small.epochs, small.method.settings["masks"]) == ("resnet18", 100, "none")
    assert recipe.optimizer.schedule == get("vicreg_imagenet").optimizer.schedule  # "follows that in" VICReg
