"""The container: lazy, repeatable, and cheap in memory."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from manyviews.errors import UserError
from manyviews.types import Batch
from manyviews.views import (
    BYOL_PAIR,
    MAST_15,
    SIMCLR,
    Color,
    Composed,
    Crop,
    CutMix,
    Cutout,
    Global,
    Local,
    Rotation,
    Shuffle,
    Strong,
    Views,
    frozen_statistics,
    kinds,
)

KINDS = (Global(2, 24, color=BYOL_PAIR), Local(3, 12, color=SIMCLR), Cutout(1, 24))


def canvases(n: int = 10, side: int = 32, first: int = 0) -> Batch:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (first + n, 3, side, side), dtype=torch.uint8, generator=g)[first:]
    extent = torch.tensor([[side, side], [side, 2 * side // 3]]).repeat(first + n, 1)[first : first + n]
    return Batch.of(pixels, extent, torch.arange(first, first + n))


@pytest.fixture
def made(monkeypatch):
    """The names of the views that were made, in order."""
    names, make = [], Crop.make
    monkeypatch.setattr(Crop, "make", lambda k, c, i, *rest: names.append((k.name, i)) or make(k, c, i, *rest))
    return names


def test_a_view_that_is_not_asked_for_is_not_made(made):
    views = Views(canvases(), KINDS)
    assert made == []
    views["local", 1]
    assert made == [("local", 1)]
    each = views.each()
    next(each)
    assert made == [("local", 1), ("global", 0)]


def test_global_views_are_made_once_and_others_not_kept(made):
    views = Views(canvases(), KINDS)
    assert views.all("global")[1] is views["global", 1]
    views["local", 0], views["local", 0]
    assert made == [("global", 0), ("global", 1), ("local", 0), ("local", 0)]
    local = weakref.ref(views["local", 0])
    gc.collect()
    assert local() is None


def test_each_goes_in_order_and_takes_any_iterable():
    views = Views(canvases(), KINDS)
    names = [("global", 0), ("global", 1), ("local", 0), ("local", 1), ("local", 2), ("cutout", 0)]
    assert [(k.name, i) for k, i, _ in views.each()] == names
    assert [(k.name, i) for k, i, _ in views.each(k for k in KINDS if k.name != "global")] == names[2:]


def test_form_of_a_view():
    views = Views(canvases(), KINDS)
    assert len(views) == 10 and views.device == torch.device("cpu")
    for kind, _, x in views.each():
        assert x.shape == (10, 3, kind.size, kind.size) and x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last) and not x.requires_grad


def test_the_same_bits_whenever_and_wherever_it_is_made(monkeypatch):
    views = Views(canvases(), KINDS, seed=3, epoch=2)
    first = [x for _, _, x in views.each()]
    torch.manual_seed(99)
    again = [x for _, _, x in Views(canvases(), KINDS, seed=3, epoch=2).each()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # Another split of the batch, in another order, in other pieces.
    whole, order = canvases(), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(kinds._VALUES, "cpu", 3 * 24 * 24 * 2)
    for part in order.split(3):
        some = Batch.of(whole.pixels[part], whole.extent[part], whole.index[part])
        for a, (_, _, b) in zip(first, Views(some, KINDS, seed=3, epoch=2).each(), strict=True):
            assert torch.equal(a[part], b)


def test_other_seeds_epochs_views_and_images_give_other_views():
    kinds = (Global(2, 16, color=None),)
    same = Batch.of(canvases().pixels[:1].expand(10, -1, -1, -1))
    made = [Views(same, kinds, seed=s, epoch=e)["global", i] for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    flat = torch.cat(made).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 80


def test_asymmetric_colors_go_to_their_views():
    """With the first view always solarized at 0 and inverted thereby, the second never."""
    kinds = (
        Global(
            2, 16, (1.0, 1.0), (Color(0, 0, 0, 0, 0, 0, 0, solarize=1.0, threshold=0.0), Color(0, 0, 0, 0, 0, 0, 0))
        ),
    )
    white = Batch.of(torch.full((4, 3, 16, 16), 255, dtype=torch.uint8))
    a, b = Views(white, kinds, mean=(0, 0, 0), std=(1, 1, 1)).all("global")
    assert a.abs().max() < 1e-6 and (b - 1).abs().max() < 1e-6


def test_normalization_equals_torchvision():
    c = canvases(4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    x = Views(c, (Global(1, 32, (1.0, 1.0), None, (1.0, 1.0), 0.0),), mean=mean, std=std)["global", 0]
    square = c.extent[:, 0] == c.extent[:, 1]
    expected = v2.Normalize(mean, std)(c.pixels / 255)
    assert torch.allclose(x[square], expected[square], atol=1e-5)


def test_autocast_does_not_reach_the_pixels():
    plain = Views(canvases(), KINDS)["local", 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Views(canvases(), KINDS)["local", 0], plain)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda v: v["locla", 0], "no view 'locla'. Did you mean 'local'"),
        (lambda v: v["global", 2], "no global view 2"),
        (lambda v: v.all("cut"), "no view 'cut'"),
        (lambda v: Views(v.batch, (Global(2), Global(4))), "distinct names"),
        (lambda v: Views(v.batch, KINDS, backward="join"), "Did you mean 'joint'"),
    ],
)
def test_bad_names(do, says):
    with pytest.raises(UserError, match=says):
        do(Views(canvases(), KINDS))


# -- recomputation ---------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
        nn.BatchNorm1d(4, momentum=None, affine=False),
    )


def step(recompute: bool, autocast: bool = False) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    net, views = network(), Views(canvases(), KINDS, backward="recompute")
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = views.map(net) if recompute else [net(x) for _, _, x in views.each()]
        # A loss that couples all the views.
        loss = torch.stack([z.float() for z in outputs]).prod(0).sum() + torch.cat(outputs).float().square().sum()
    loss.backward()
    return [p.grad for p in net.parameters()], net.state_dict()


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputation_gives_the_same_gradients_and_statistics(autocast):
    (grads, state), (again, state_again) = step(False, autocast), step(True, autocast)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert all(torch.equal(state[k], state_again[k]) for k in state)
    assert state["1.num_batches_tracked"] == 6


def test_recomputation_keeps_one_views_pixels_at_a_time(monkeypatch):
    alive, most, make = weakref.WeakSet(), [], Crop.make

    def watched(*args):
        x = make(*args)
        alive.add(x)
        most.append(len(alive))
        return x

    monkeypatch.setattr(Crop, "make", watched)
    outputs = Views(canvases(), KINDS, backward="recompute").map(network())
    assert len(most) == 6 and max(most) <= 2  # the last one dies when the next is already there
    torch.cat(outputs).sum().backward()
    assert len(most) == 12 and max(most) <= 2


def test_without_gradient_nothing_is_remade(made):
    with torch.no_grad():
        Views(canvases(), KINDS, backward="recompute").map(network())
    assert len(made) == 6


def test_frozen_statistics():
    net, x = network().train(), torch.rand(5, 3, 8, 8)
    net(x)
    before, objects = {k: v.clone() for k, v in net.state_dict().items()}, list(net.buffers())
    torch.manual_seed(0)
    with frozen_statistics(net):
        inside = net(2 * x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(a is b for a, b in zip(objects, net.buffers(), strict=True))
    torch.manual_seed(0)
    assert torch.equal(net(2 * x), inside)  # batch statistics were used
    assert not torch.equal(net.state_dict()["1.running_mean"], before["1.running_mean"])
    with pytest.raises(ZeroDivisionError), frozen_statistics(net):
        net(x)
        1 / 0  # noqa: B018
    assert net.state_dict()["1.num_batches_tracked"] == 2


@pytest.mark.parametrize("kind", [Global(1, 24), Cutout(1, 24), Rotation(1, 24), Shuffle(1, 24), CutMix(1, 24),
                                  Composed(1, 24, augmentations=MAST_15, staged=False), Strong(1, 24)],
                         ids=lambda k: k.name)  # fmt: skip
def test_every_kind_is_the_same_under_autocast(kind):
    plain = Views(canvases(), (kind,))[kind.name, 0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Views(canvases(), (kind,))[kind.name, 0], plain)
