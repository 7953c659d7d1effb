"""Masked image modeling with pixels, gradients, tokens and a teacher's features as targets, against slow loops."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import manyviews as mv
from manyviews import checkpoint, recipes
from manyviews.data import open_source
from manyviews.engine import Stopped, loop, optim
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.objectives import hog, patchify
from manyviews.recipes import get
from manyviews.reporting.page.pictures import Pictures, reconstructions
from manyviews.reporting.views import rebuilt_of, reconstructions_of
from manyviews.schedules import Linear, Repeat
from manyviews.settings import Recipe, override
from manyviews.testing import CHECKS, pictures
from manyviews.types import Progress
from manyviews.views import Blocks, Draws, Grid, Random, Uniform, Views

AT = Progress(3, 20, 5)


def built(recipe: str, **settings: object):
    chosen = get(recipe)
    for path, value in settings.items():
        chosen = override(chosen, f"method.{path}", value)
    return build_method(chosen).train()


def views_of(method, n: int = 4) -> Views:
    return Views(pictures(n), method.views, seed=5)


def loss(method, views: Views) -> float:
    return sum(t.item() for terms in method.loss(views, AT) for t in terms.values())


def cells(x: Tensor, side: int) -> list[list[Tensor]]:
    """The patches of each image, cut one by one: `c side side` each."""
    rows = range(0, x.shape[2], side)
    return [[image[:, i : i + side, j : j + side] for i in rows for j in rows] for image in x]


def pixels_of(patch: Tensor, normalized: bool) -> Tensor:
    """A patch's numbers in the order of `patchify`, standardized or not."""
    flat = patch.permute(1, 2, 0).flatten()
    return (flat - flat.mean()) / (flat.var() + 1e-6).sqrt() if normalized else flat


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("mae_tiny", {}),
        ("mae_tiny", {"masking": Blocks((0.5, 0.5), p=1.0), "normalize_pixels": False}),
        ("mae_tiny", {"masking": Grid(), "mask_tokens": True}),
        ("mae_swin_tiny", {}),
        ("fcmae_tiny", {}),
        ("simmim_tiny", {}),
        ("simmim_swin_tiny", {}),
    ],
)
def test_pixels_of_hidden_patches_are_predicted_from_the_others_alone(recipe: str, settings: dict):
    method = built(recipe, **settings)
    views = views_of(method)
    x, mask = views["global", 0], method.mask(views)
    normalized, error = method.normalize_pixels, (F.l1_loss if "simmim" in recipe else F.mse_loss)
    with torch.no_grad():
        rebuilt = rebuilt_of(method, views)
    total, count, size = 0.0, 0, method.patch_size
    for b, (true, seen) in enumerate(zip(cells(x, size), cells(rebuilt, size), strict=True)):
        for i in mask.hidden[b].nonzero()[:, 0].tolist():
            if normalized:  # what is shown has the true mean and deviation
                flat = true[i].flatten()
                seen[i] = (seen[i] - flat.mean()) / (flat.var() + 1e-6).sqrt()
            total += error(pixels_of(seen[i], False), pixels_of(true[i], normalized)).item()
            count += 1
    assert loss(method, views) == pytest.approx(total / count, rel=1e-4)
    # Other pixels in the hidden places change no prediction.
    hidden = mask.hidden.view(-1, 1, *method.kept_encoder.grid(32)).double()
    hidden = F.interpolate(hidden, scale_factor=size).bool()
    with torch.no_grad():
        before = method._predict(x, mask)
        after = method._predict(torch.where(hidden, 9.0, x), mask)
        other = method._predict(torch.where(hidden, x, 9.0), mask)
    assert torch.equal(before, after) and not torch.allclose(before, other)


@pytest.mark.parametrize("recipe", ["mae_swin_tiny", "simmim_swin_tiny"])
def test_pyramids_keep_the_contract(recipe: str):
    for check in ("gradients_reach_what_trains", "it_resumes_to_the_same_bits", "parts_give_their_mean"):
        CHECKS[check](get(recipe))


def test_the_papers_numbers():
    """224 / 16 pixels: 49 of 196 patches are visible, and a prediction of 0 costs 767 / 768."""
    at = Draws(0, 0, torch.arange(3))
    assert Random(0.75).draw((14, 14), at).kept.shape == (3, 49)
    assert Grid().draw((14, 14), at).kept.shape == (3, 49)
    for share, kept in ((0.5, 98), (0.75, 49), (0.4, 118)):
        mask = Blocks((share, share), p=1.0).draw((14, 14), at)
        assert mask.kept.shape == (3, kept) and not mask.hidden.gather(1, mask.kept).any()
        assert (mask.hidden.sum(1) == 196 - kept).all() and mask.hidden.gather(1, mask.blocks[0]).all()
    assert Random(0.6).draw((7, 7), at).kept.shape == (3, 20)  # FCMAE's places of 32 pixels
    squares = Random(0.6, side=2).draw((14, 14), at)
    whole = squares.hidden.view(3, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert torch.equal(whole.all(3), whole.any(3)) and (whole.all(3).sum((1, 2)) == 29).all()
    with pytest.raises(UserError, match="do not tile a grid of 14 x 14"):
        Random(0.6, side=4).draw((14, 14), at)
    target = torch.randn(2, 4, 768, dtype=torch.float64)
    found = mv.objectives.masked_mse(torch.zeros_like(target), target, torch.ones(2, 4))
    assert found.item() == pytest.approx(767 / 768, rel=1e-5)
    with pytest.raises(UserError, match="must keep equally many"):
        method = built("mae_tiny", masking=Blocks((0.1, 0.5)))
        loss(method, views_of(method))


def test_uniform_masks_keep_one_of_each_cell_and_hide_some_of_these():
    mask = Uniform(0.25).draw((8, 12), Draws(0, 0, torch.arange(500)))
    rows, columns = mask.kept // 12, mask.kept % 12
    assert torch.equal(rows // 2 * 6 + columns // 2, torch.arange(24).expand(500, -1))
    assert (mask.hidden.sum(1) == 96 - 18).all() and (mask.hidden.gather(1, mask.kept).sum(1) == 6).all()
    share = torch.zeros(500, 96).scatter(1, mask.kept, 1.0).mean(0)  # 500 trials: standard deviation 0.02
    assert (share - 0.25).abs().max() < 0.09
    assert (mask.hidden.double().mean(0) - 78 / 96).abs().max() < 0.09
    with pytest.raises(UserError, match="no cells of 2 x 2"):
        Uniform().draw((7, 7), Draws(0, 0, torch.arange(2)))


def test_maskfeat_predicts_each_channel_s_histograms_of_hidden_patches():
    method = built("maskfeat_tiny", cell=4)
    views = views_of(method)
    x, mask = views["global", 0], method.mask(views)
    features = method.encoder.features(x, hide=mask.hidden, token=method.token).patches
    histograms, total = hog(x, 4), []
    for b, i in mask.hidden.nonzero().tolist():
        top, left = 2 * (i // 4), 2 * (i % 4)
        parts = [histograms[b, top + k, left + m, c] for k in (0, 1) for m in (0, 1) for c in range(3)]
        total.append(F.mse_loss(method.head(features[b, i]), torch.cat(parts)).item())
    assert loss(method, views) == pytest.approx(sum(total) / len(total), rel=1e-5)
    assert len(total) == 4 * 6  # 40 % of 16, of four images
    with pytest.raises(UserError, match="Cells of 3 pixels do not tile patches of 8"):
        built("maskfeat_tiny", cell=3)


def test_beit_names_the_tokens_of_hidden_patches():
    method = built("beit_tiny")
    views = views_of(method)
    x, mask = views["global", 0], method.mask(views)
    pixels = x * torch.tensor(views.std).view(3, 1, 1) + torch.tensor(views.mean).view(3, 1, 1)
    names = method.tokenizer.head(method.tokenizer.encoder.features((pixels - 0.5) / 0.25).patches).argmax(-1)
    features = method.encoder.features(x, hide=mask.hidden, token=method.token).patches
    total = 0.0
    for b in range(4):
        rows = mask.hidden[b].nonzero()[:, 0].tolist()
        for i in rows:
            total -= method.head(features[b, i]).log_softmax(0)[names[b, i]].item() / len(rows) / 4
    assert loss(method, views) == pytest.approx(total, rel=1e-4)


def test_a_dvae_samples_a_code_for_each_patch_and_ends_with_one():
    method = built("dvae_tiny")
    views = views_of(method)
    x = views["global", 0]
    logits = method.tokenizer(x)
    noise = views.draws.uniform("gumbel", 16 * 32).view(4, 16, 32)
    tau = 0.0625 + (1 - 0.0625) * (1 + np.cos(np.pi * 3 / 20)) / 2
    soft = ((logits - (-noise.log()).log()) / tau).softmax(-1)
    pixels = method.decoder(torch.einsum("bnk,kd->bnd", soft, method.codebook))
    mean, std = torch.tensor(views.mean), torch.tensor(views.std)
    p = logits.softmax(-1)
    divergence = (p * (32 * p).log()).sum(-1).mean()
    wanted = F.mse_loss(pixels, patchify(x, 8)) + method.divergence * divergence
    assert loss(method, views) == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(method.tokenizer.mean, mean)
    # Tokens are those of the pixels, however they are normalized for another network.
    again = ((x * std.view(3, 1, 1) + mean.view(3, 1, 1)) - 0.1) / 0.7
    assert torch.equal(method.tokenizer.tokens(again, (0.1,) * 3, (0.7,) * 3), logits.argmax(-1))


# -- whole runs --------------------------------------------------------------------------------------------------

QUICK = {"data.batch_size": 16, "monitor.steps": 2, "monitor.epochs": 0, "data.holdout": 0.2}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return pictures(100).canvases.padded().permute(0, 2, 3, 1).numpy()


def stopped_and_resumed(images: np.ndarray, recipe: str, out: Path, monkeypatch, **settings) -> mv.Run:
    """A run that a signal stops in its fourth step."""
    real, calls = loop.backpropagate, []

    def backpropagate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "backpropagate", backpropagate)
        mv.pretrain(images, recipe, epochs=2, out=out, settings=QUICK | settings)
    return mv.resume(out, images)


def tensors(run: mv.Run) -> dict[str, Tensor]:
    return checkpoint.load_tensors(run.folder / "checkpoint.safetensors")[0]


def test_a_tokenizer_s_run_is_copied_into_beit_s_and_needed_no_more(images, tmp_path, monkeypatch):
    made = mv.pretrain(images, "dvae_tiny", epochs=1, out=tmp_path / "tokenizer", settings=QUICK)
    assert (made.folder / "plots" / "reconstructions.png").exists()
    given = {"method.tokenizer": str(made.folder)}
    whole = mv.pretrain(images, "beit_tiny", epochs=2, out=tmp_path / "whole", settings=QUICK | given)
    theirs = {k.removeprefix("method."): v for k, v in tensors(made).items() if k.startswith("method.tokenizer.")}
    ours = {k.removeprefix("method."): v for k, v in tensors(whole).items()}
    assert theirs and all(torch.equal(ours[k], v) for k, v in theirs.items())
    assert whole.recipe.method.settings["network"].settings["depth"] == 2

    def gone(*_: object) -> None:
        shutil.rmtree(made.folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *a, save=checkpoint.save: (save(*a), made.folder.exists() and gone()))
        resumed = stopped_and_resumed(images, "beit_tiny", tmp_path / "again", monkeypatch, **given)
    assert not made.folder.exists()
    assert all(torch.equal(tensors(resumed)[k], v) for k, v in tensors(whole).items())
    with pytest.raises(UserError, match="not the folder of a run"):
        mv.pretrain(images, "beit_tiny", out=tmp_path / "no", settings={"method.tokenizer": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="not a tokenizer"):
        mv.pretrain(images, "beit_tiny", out=tmp_path / "no", settings={"method.tokenizer": str(whole.folder)})
    lost = build_method(override(whole.recipe, "method.tokenizer", str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="There is no tokenizer in"):
        loss(lost, views_of(lost))


def test_stages_hand_the_student_to_the_teacher_and_begin_anew():
    recipe = override(get("dbot_tiny"), "method.stages", 3)
    method = build_method(recipe).train()
    optimizer = optim.build(method, recipe.optimizer, torch.device("cpu"))
    first = copy.deepcopy(method.teacher.module.state_dict())
    assert any(not torch.equal(v, first[k]) for k, v in method.encoder.state_dict().items())
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    starts = []
    for step in range(10):
        for terms in method.loss(views_of(method), Progress(step, 10, 5)):
            sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = copy.deepcopy(method.encoder.state_dict())
        method.after_update(Progress(step, 10, 5))
        optim.forget(optimizer, method.restarted())
        teacher, student = method.teacher.module.state_dict(), method.encoder.state_dict()
        if not method.restarted():
            assert all(torch.equal(student[k], v) for k, v in before.items()) and len(optimizer.state) == len(trained)
            continue
        starts.append(step + 1)
        assert {id(p) for p in method.restarted()} == {id(p) for p in trained.values()} and not optimizer.state
        assert all(torch.equal(teacher[k], v) for k, v in before.items())
        assert any(not torch.equal(student[k], v) for k, v in before.items())
        # Fresh weights are those of a new network, not noise of another scale.
        assert student["model.blocks.0.attn.qkv.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert starts == [4, 7]
    assert not any(p.requires_grad for p in method.teacher.parameters())
    schedule = Repeat(Linear(0.0, 1.0), 3)
    values = [schedule(Progress(step, 10, 5)) for step in range(10)]
    assert values == [0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3, 0, 1 / 3, 2 / 3]


def test_dbot_is_the_mean_over_hidden_patches_of_the_distance_to_the_teacher_s_features():
    method = built("dbot_tiny")
    views = views_of(method)
    x, mask = views["global", 0], method.mask(views)
    target = method.teacher.module.features(x).patches
    found = method.decoder(method.encoder.features(x, keep=mask.kept).patches, mask.kept)
    each = [
        F.smooth_l1_loss(found[b, i], F.layer_norm(target[b, i], target.shape[-1:])).item()
        for b, i in mask.hidden.nonzero().tolist()
    ]
    assert loss(method, views) == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_a_run_of_stages_resumes_across_their_border_to_the_same_bits(images, tmp_path, monkeypatch):
    """Ten steps with a new teacher after the fifth; stopped after the fourth."""
    whole = mv.pretrain(images, "dbot_tiny", epochs=2, out=tmp_path / "whole", settings=QUICK)
    again = stopped_and_resumed(images, "dbot_tiny", tmp_path / "again", monkeypatch)
    ours, theirs = tensors(whole), tensors(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(theirs[k], v) for k, v in ours.items())
    assert int(ours["method.teacher.stage"]) == 1
    steps = {int(v) for k, v in ours.items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert steps == {5}, "the optimizer counts the second stage's steps alone"


# -- pictures ----------------------------------------------------------------------------------------------------


def test_reconstructions_show_true_patches_where_they_are_visible():
    recipe: Recipe = get("mae_tiny")
    method = build_method(recipe).train()
    found, text = reconstructions_of(method, pictures(3), recipe)
    (_, image), (_, seen), (_, rebuilt) = found
    views = Views(pictures(3), method.views, recipe.seed, 0, recipe.data.mean, recipe.data.std, progress=1.0)
    hidden = F.interpolate(method.mask(views).hidden.view(3, 1, 4, 4).double(), scale_factor=8).bool()
    assert torch.equal(rebuilt.where(~hidden, 0), seen) and torch.equal(image.where(~hidden, 0), seen)
    assert "only its pattern is predicted" in text and method.training
    # Each predicted patch has the true mean, up to that of the prediction, which is small before any training.
    ours, true = patchify(rebuilt, 8).mean(-1), patchify(image, 8).mean(-1)
    assert (ours - true).abs().max() < 2 * patchify(image, 8).std(-1).max()
    raw = reconstructions_of(built("mae_tiny", normalize_pixels=False), pictures(3), recipe)[1]
    assert "pattern" not in raw
    assert reconstructions_of(built("ijepa_tiny"), pictures(3), get("ijepa_tiny")) == ([], "")


def test_the_report_has_a_column_for_each_step_of_a_reconstruction(images, tmp_path):
    source = open_source(images)
    for name, titles in (("fcmae", ["image", "seen", "rebuilt"]), ("dvae", ["image", "rebuilt"])):
        saver = Pictures(tmp_path)
        found = reconstructions(get(f"{name}_tiny"), built(f"{name}_tiny"), source, saver)
        assert found is not None and [c["title"] for c in found["columns"]] == titles
        assert all((tmp_path / c["src"]).exists() for c in found["columns"])
    assert reconstructions(get("beit_tiny"), built("beit_tiny"), source, Pictures(tmp_path)) is None


def test_every_row_of_mae_s_table_is_a_setting():
    """The lecture's rows, docs/methods/mae.md; its signs are not to be trusted."""
    rows = ("decoder_depth=1", "decoder_dim=256", "mask_tokens=True", "normalize_pixels=False")
    rows += ("masking=Blocks((0.5, 0.5), p=1.0)", "masking=Grid()", "masking=Random(0.5)")
    page = (Path(__file__).parents[2] / "docs" / "methods" / "mae.md").read_text(encoding="utf-8")
    for row in rows:
        name, _, value = row.partition("=")
        build_method(override(recipes.get("mae_tiny"), f"method.{name}", value))
        assert f"method.{row}" in page
