import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from manyviews import recipes
from manyviews.backbones import Encoder, by_layer, represent
from manyviews.engine.build import build_method
from manyviews.errors import UserError
from manyviews.evaluation import ImageTask, Pixels, Projector, Task, extract, linear_probe
from manyviews.evaluation.features import Chosen, frozen
from manyviews.evaluation.linear import LRS
from manyviews.evaluation.protocols._images import fewer, reencoded
from manyviews.evaluation.protocols.layers import Layers, LinearGrid
from manyviews.evaluation.protocols.projector_layers import ProjectorLayers, projector_of
from manyviews.heads import DINOHead, mlp
from manyviews.methods import Branch, get, names
from manyviews.regularizers import Regularized, Rescue

from .conftest import measured

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}
QUICK = {"lrs": (0.01, 0.1)}


def image_task(encoder, source, train, val):
    """The first images to train on, those up to `val` to validate with, the rest to test; and the labels of these."""
    seen = extract(encoder, source, **LOOK)
    x, y = seen.x, seen.labels
    known = Task(x[:train], y[:train], x[train:val], y[train:val], x[val:], len(source.classes))
    images = [source.subset(range(val)), source.subset(range(val, len(source)))]
    return ImageTask(encoder, known, *images, 12, LOOK["mean"], LOOK["std"], torch.device("cpu")), y[val:]


def pixels(source):
    """Normalized, `n 3 12 12`."""
    images = np.stack([np.asarray(source.load(i)) for i in range(len(source))])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 4 - 2


def probe(x, task, **options):
    """`linear_probe` on features of all images in order."""
    n, v = len(task.frozen.train_y), len(task.frozen.val_y)
    known = dataclasses.replace(task.frozen, train_x=x[:n], val_x=x[n : n + v], test_x=x[n + v :])
    return linear_probe(known, **QUICK | options)


def top1(found, y):
    return (found.logits.argmax(1) == y).double().mean().item()


@pytest.fixture
def vit():
    return Encoder("vit_tiny_patch16_224", img_size=12, patch_size=4, embed_dim=12, depth=5, num_heads=2).eval()


# -- the encoder's layers ----------------------------------------------------------------------------------------------


def hooked(model, modules, x):
    """Outputs of these modules of a timm model, as hooks see them."""
    heard = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: heard.setdefault(name, out))
        for name in modules
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return heard


@pytest.mark.parametrize(
    ("name", "settings", "size", "modules"),
    [
        ("resnet18", {"stem": "small", "channels": (4, 4, 8, 8)}, 12, ["act1", *(f"layer{i}" for i in range(1, 5))]),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, 32, [f"stages.{i}" for i in range(4)]),
        ("mobilenetv3_small_050", {}, 32, ["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
    ],
)
def test_layers_of_convolutional_networks_are_what_hooks_see_averaged(name, settings, size, modules):
    encoder, x = Encoder(name, **settings).eval(), torch.randn(3, 3, size, size)
    heard = hooked(encoder.model, modules, x)
    with torch.no_grad():
        pooled, found = by_layer(encoder, x)
        torch.testing.assert_close(pooled, encoder(x))
    assert list(found) == modules
    for layer, (token, mean) in found.items():
        assert token is None
        torch.testing.assert_close(mean, heard[layer].mean((2, 3)))


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2}])
def test_layers_of_vision_transformers_are_normed_class_tokens_and_mean_patches(settings):
    encoder = Encoder("vit_tiny_patch16_224", img_size=12, patch_size=4, embed_dim=12, depth=5, num_heads=2, **settings)
    encoder, x = encoder.eval(), torch.randn(3, 3, 12, 12)
    blocks = [f"blocks.{i}" for i in range(5)]
    heard = hooked(encoder.model, blocks, x)
    with torch.no_grad():
        pooled, found = by_layer(encoder, x)
        torch.testing.assert_close(pooled, encoder(x))
        last4, cls_mean = represent(encoder, x, "last4"), represent(encoder, x, "cls_mean")
        normed = {name: encoder.model.norm(out) for name, out in heard.items()}
    assert list(found) == blocks
    for name, (token, mean) in found.items():
        torch.testing.assert_close(token, normed[name][:, 0])
        torch.testing.assert_close(mean, normed[name][:, encoder.num_prefix_tokens :].mean(1))
    torch.testing.assert_close(torch.cat([token for token, _ in found.values()][1:], 1), last4)
    torch.testing.assert_close(torch.cat(found["blocks.4"], 1), cls_mean)


def test_layers_of_encoders_that_pool_all_positions_have_no_class_token():
    for name, settings, size in (
        ("vit_tiny_patch16_224", {"img_size": 12, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}, 12),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1, 1, 1, 1), "embed_dim": 12}, 56),
    ):
        encoder = Encoder(name, global_pool="avg", **settings).eval()
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            pooled, found = by_layer(encoder, x)
            torch.testing.assert_close(pooled, encoder(x))
        widths = [mean.shape[1] for token, mean in found.values() if token is None]
        assert widths == ([12, 12] if size == 12 else [12, 24, 48, 96])


# -- the curve ---------------------------------------------------------------------------------------------------------


def test_the_curve_is_of_a_probe_on_each_layer(encoder, pictures, few_steps):
    source = pictures(240, noise=110)
    task, y = image_task(encoder, source, 120, 170)
    found = measured(Layers(**QUICK), task, y)
    modules = ["act1", "layer1", "layer2", "layer3", "layer4"]
    heard = hooked(encoder.model, modules, pixels(source))
    features = {name: heard[name].mean((2, 3)) for name in modules} | {"pooled": extract(encoder, source, **LOOK).x}
    alone = {name: probe(x, task, weight_decays=(0.0,)) for name, x in features.items()}
    assert list(found.details) == list(features)
    for name, accuracy in found.details.items():
        assert accuracy == pytest.approx(top1(alone[name], y), abs=0.03)  # maps at once or not: other last bits
    held = [max(a for _, a in one.validation) for one in alone.values()]
    best = held.index(max(held))
    assert found.setting == {"layer": best + 1} | list(alone.values())[best].setting
    assert found.value == list(found.details.values())[best]
    low, high = found.interval
    assert low <= found.value <= high and low < high


def test_each_image_is_read_and_encoded_once_for_all_layers(vit, pictures, few_steps):
    task, y = image_task(vit, pictures(90), 50, 70)
    seen, calls = [], []
    vit.model.patch_embed.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    task = dataclasses.replace(task, progress=lambda *call: calls.append(call[:2]))
    for run in (lambda: measured(Layers(**QUICK), task, y), lambda: LinearGrid(**QUICK).run(task, 0)):
        seen.clear()
        run()
        assert sum(seen) == 90 + 1  # one of zeros, to see how wide the layers are
    done = [c[0] for c in calls[: len(calls) // 2]]
    assert done == sorted(done) and calls[-1] == (90, 90)


def test_test_labels_and_test_images_choose_nothing(vit, pictures, few_steps):
    task, y = image_task(vit, pictures(120, noise=150), 60, 85)
    task = dataclasses.replace(task, projector=Projector(mlp(12, 8, 4).eval()))
    for protocol in (Layers(**QUICK), ProjectorLayers(**QUICK)):
        honest, turned = measured(protocol, task, y), measured(protocol, task, y.roll(1))
        assert honest.setting == turned.setting and list(honest.details) == list(turned.details)
        assert honest.value != turned.value
    others = dataclasses.replace(task, test=pictures(35, seed=9, noise=250))
    ours, theirs = LinearGrid(**QUICK).run(task, 0), LinearGrid(**QUICK).run(others, 0)
    assert ours.setting == theirs.setting and ours.validation == theirs.validation
    assert not torch.equal(ours.ranked, theirs.ranked)
    assert measured(Layers(**QUICK), task, y).setting == measured(Layers(**QUICK), others, y).setting


def test_what_is_no_encoder_is_one_layer_and_no_choice(pictures, few_steps):
    task, y = image_task(Pixels(), pictures(150, noise=150), 80, 110)
    x = torch.cat([task.frozen.train_x, task.frozen.val_x, task.frozen.test_x])
    curve = measured(Layers(**QUICK), task, y)
    assert curve.details == {"features": top1(probe(x, task, weight_decays=(0.0,)), y)}
    grid, alone = LinearGrid(**QUICK).run(task, 0), probe(x, task)
    assert (grid.setting, grid.validation) == (alone.setting, alone.validation)
    assert torch.equal(grid.ranked, alone.logits.argsort(1, descending=True)[:, :5])


def test_a_curve_learns_from_so_many_images_from_all_over_the_set(encoder, pictures):
    source = pictures(200)
    task, _ = image_task(encoder, source, 120, 170)
    less = fewer(task, 40)
    assert (len(less.frozen.train_y), len(less.frozen.val_y), len(less.frozen.test_x)) == (40, 40, 30)
    assert torch.equal(less.frozen.train_y, task.frozen.train_y[::3])
    again = reencoded(encoder, less)
    for name in ("train_x", "val_x", "test_x"):
        torch.testing.assert_close(getattr(again, name), getattr(less.frozen, name))
    for one in (again, less.frozen):  # the labels are still those of the images
        labels = torch.cat([one.train_y, one.val_y])
        assert np.array_equal(labels.numpy(), less.trainval.labels)
    whole = fewer(task, 10_000)
    assert torch.equal(whole.frozen.train_x, task.frozen.train_x) and len(whole.trainval) == 170


def test_an_image_that_breaks_meanwhile_is_named(encoder, pictures, tmp_path):
    source = pictures(90)
    task, y = image_task(encoder, source, 50, 70)

    def read(i):
        return b"no image" if i == 3 else source.read(i)

    with pytest.raises(UserError, match="no longer can"):
        measured(Layers(**QUICK), dataclasses.replace(task, trainval=dataclasses.replace(task.trainval, read=read)), y)


# -- the grid ----------------------------------------------------------------------------------------------------------


def same(found, alone):
    """Whether a grid is one of these probes alone, by the setting of their choice of features.

    Features come from batches of other sizes, with other last bits, and images at a border may fall to the other side.
    """
    tried = [(setting | choice, a) for choice, one in alone for setting, a in one.validation]
    assert [s for s, _ in found.validation] == [s for s, _ in tried]
    np.testing.assert_allclose([a for _, a in found.validation], [a for _, a in tried], atol=0.03)
    assert found.setting == max(found.validation, key=lambda t: t[1])[0]
    choice, one = next((c, one) for c, one in alone if c.items() <= found.setting.items())
    if one.setting | choice == found.setting:
        assert (found.ranked[:, 0] == one.logits.argmax(1)).double().mean() > 0.95


def test_the_grid_of_a_vision_transformer_has_the_last_class_tokens_and_the_mean_patch(vit, pictures, few_steps):
    source = pictures(220, noise=110)
    task, _ = image_task(Chosen(vit, "last4"), source, 120, 170)  # whichever kind was asked for
    with frozen(vit):
        x = pixels(source)
        last4, cls_mean, pooled = (represent(vit, x, kind) for kind in ("last4", "cls_mean", "pooled"))
    features = {(1, 0): pooled, (1, 1): cls_mean, (4, 0): last4, (4, 1): torch.cat([last4, cls_mean[:, 12:]], 1)}
    alone = [({"layers": n, "patches": p}, probe(x, task)) for (n, p), x in features.items()]
    same(LinearGrid(last=(4, 1, 1), **QUICK).run(task, 0), alone)
    deeper = LinearGrid(last=(1, 99), lrs=(0.01,), weight_decays=(0.0,)).run(task, 0).validation
    assert [(s["layers"], s["patches"]) for s, _ in deeper] == [(1, 0), (1, 1), (5, 0), (5, 1)]


def test_the_grid_of_a_convolutional_network_has_the_last_stages(learner, pictures, few_steps):
    source = pictures(220, noise=110)
    task, _ = image_task(learner, source, 120, 170)
    parts = [m.mean((2, 3)) for m in hooked(learner.model, ["layer2", "layer3", "layer4"], pixels(source)).values()]
    alone = [({"layers": n}, probe(torch.cat(parts[3 - n :], 1), task)) for n in (1, 2, 3)]
    same(LinearGrid(last=(1, 2, 3), **QUICK).run(task, 0), alone)


def test_the_grid_finds_what_only_an_early_layer_knows(learner, pictures, few_steps):
    """The last stage says nothing; those before tell the class."""
    last = learner.model.layer4[0]
    nn.init.zeros_(last.bn2.weight)
    nn.init.zeros_(last.downsample[-1].weight)
    task, y = image_task(learner, pictures(200, noise=30), 120, 160)
    answer = LinearGrid(lrs=LRS).run(task, 0)
    assert (answer.ranked[:, 0] == y).double().mean() > 0.95 and answer.setting["layers"] > 1
    curve = measured(Layers(), task, y)
    chance = (y == 0).double().mean().item()
    assert curve.details["layer4"] == curve.details["pooled"] == pytest.approx(chance)
    assert curve.value > 0.95 and curve.setting["layer"] < 5


# -- the projector -----------------------------------------------------------------------------------------------------


def trained_projector(width):
    """With statistics, and an activation in place at its start."""
    net = nn.Sequential(nn.LeakyReLU(inplace=True), *mlp(width, 16, 12, 4, last_norm="bn"))
    for _ in range(20):
        net(torch.randn(64, width) * 2 + 1)
    return net


def guillotined(task, y, layers, inputs=None):
    return measured(ProjectorLayers(**QUICK), dataclasses.replace(task, projector=Projector(layers, inputs)), y)


class Colors(nn.Module):
    """The mean color, which nearly tells the class: `b 3 h w` to `b 3`."""

    def forward(self, x):
        return x.mean((2, 3))


def test_the_curve_in_a_projector_cuts_after_each_group_of_a_projector_in_evaluation_mode(encoder, pictures, few_steps):
    task, y = image_task(encoder, pictures(200, noise=110), 120, 160)
    projector = trained_projector(8).train()
    before = {k: v.clone() for k, v in projector.state_dict().items()}
    found = guillotined(task, y, projector)
    assert projector.training and all(torch.equal(v, before[k]) for k, v in projector.state_dict().items())
    x = torch.cat([task.frozen.train_x, task.frozen.val_x, task.frozen.test_x])
    kept, projector = x.clone(), projector.eval()
    with torch.no_grad():
        points = {"backbone": x}
        for name, end in (("projector 1", 4), ("projector 2", 7), ("projector output", 9)):
            points[name] = projector[:end](x.clone())
    assert torch.equal(x, kept)
    assert found.details == {name: top1(probe(z, task, weight_decays=(0.0,)), y) for name, z in points.items()}
    assert found.value == list(found.details.values())[int(found.setting["layer"]) - 1]


def test_after_a_dead_layer_of_a_projector_there_is_chance(pictures, few_steps):
    task, y = image_task(Colors(), pictures(200, noise=30), 120, 160)
    projector = trained_projector(3)
    nn.init.zeros_(projector[4].weight)
    found = guillotined(task, y, projector)
    chance = (y == 0).double().mean().item()
    assert found.details["projector 2"] == found.details["projector output"] == pytest.approx(chance)
    assert found.value > 0.95 and found.details["projector 1"] > 0.9 and found.setting["layer"] <= 2


def test_a_projector_of_another_encoder_is_named(encoder, pictures):
    task, y = image_task(encoder, pictures(90), 50, 70)
    with pytest.raises(UserError, match="takes 16 features, and the encoder gives 8"):
        guillotined(task, y, mlp(16, 8))


def test_a_projector_takes_the_pooled_features_whichever_kind_was_asked_for(vit, pictures, few_steps):
    source, projector = pictures(150, noise=110), mlp(12, 8).eval()
    (plain, y), (kind, _) = (image_task(e, source, 90, 120) for e in (vit, Chosen(vit, "cls_mean")))
    ours, theirs = (guillotined(t, y, projector).details for t in (kind, plain))
    assert ours["projector output"] == pytest.approx(theirs["projector output"], abs=0.05)
    x = torch.cat([kind.frozen.train_x, kind.frozen.val_x, kind.frozen.test_x])
    assert ours["backbone"] == top1(probe(x, kind, weight_decays=(0.0,)), y)


@pytest.mark.parametrize("name", names())
def test_every_method_hands_out_the_projector_on_the_encoder_it_keeps(name):
    method = build_method(recipes.get(f"{name}_tiny")).eval()
    if method.online is None:
        with pytest.raises(UserError, match=f"{type(method).__name__} has no projector"):
            projector_of(method)
        return
    projector, inputs = projector_of(method)
    branch = next(m for m in method.modules() if isinstance(m, Branch) and m.encoder is method.kept_encoder)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        z = projector((method.kept_encoder if inputs is None else inputs)(x))
        wanted = branch(x)[0] if name == "mast" else branch(x)
        z = branch.projector.last(nn.functional.normalize(z)) if isinstance(branch.projector, DINOHead) else z
    torch.testing.assert_close(z, wanted)


def test_the_curve_in_a_projector_looks_into_a_mast_and_into_a_rescued_method(pictures, few_steps):
    method = get("mast")(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)), hidden_dim=8, output_dim=15).eval()
    task, y = image_task(method.kept_encoder, pictures(90), 50, 70)
    projector, inputs = projector_of(method)
    found = guillotined(task, y, projector, inputs)
    assert list(found.details) == ["backbone", "projector 1", "projector 2", "projector output"]
    simclr = get("simclr")(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)))
    assert projector_of(Regularized(simclr, (Rescue(1.0),)))[0] is simclr.online.projector
