"""Views in one batch are as if each had come alone."""

import copy
import math

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0, SplitBatchNorm2d
from torch import nn

from manyviews import distributed
from manyviews.views import together as module
from manyviews.views.together import at_once, evenly, together


class Net(nn.Module):
    """With every place that BatchNorm has in this library, in float64; counts its passes."""

    def __init__(self, pair: bool = False, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.passes = pair, 0
        relu = nn.ReLU(inplace=norm is not BatchNormAct2d)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), norm(6), relu, nn.Conv2d(6, 5, 3), norm(5), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None, affine=False))
        self.double().train()

    def forward(self, x: torch.Tensor):
        self.passes += 1
        y = self.head(self.body(x))
        return (y, y.repeat_interleave(2, 0).square()) if self.pair else y


def views(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    """Each of another brightness and contrast, which BatchNorm over all of them would see."""
    g = torch.Generator().manual_seed(seed)
    return [(i + 1) * torch.randn(4, 3, s, s, dtype=torch.float64, generator=g) + i for i, s in enumerate(sizes)]


def loss(made: list) -> torch.Tensor:
    found = [y for m in made for y in (m if isinstance(m, tuple) else (m,))]
    return sum(y.pow(3).mean(0).square().sum() * (i + 1) for i, y in enumerate(found))


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, distributed.SyncBatchNorm, BatchNormAct2d])
def test_outputs_gradients_and_statistics_are_those_of_views_that_come_alone(norm: type[nn.Module], pair: bool):
    xs = views(8, 8, 12, 12, 9, 8)
    net = Net(pair, norm)
    alone = copy.deepcopy(net)
    found, wanted = together(net, xs), [alone(x) for x in xs]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    loss(found).backward()
    loss(wanted).backward()
    for (word, p), q in zip(net.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=word)
    for (word, p), q in zip(net.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=word)
    assert (net.passes, alone.passes) == (6 if norm is BatchNormAct2d else 4, 6)


def test_one_batch_without_parts_would_be_seen():
    """The test above can tell: one BatchNorm over all views gives something else."""
    xs = views(8, 8, 8)
    net = Net()
    far = (net(torch.cat(xs)) - torch.cat([net(x) for x in xs])).abs().max()
    assert far > 0.1


def test_layers_are_what_they_were_afterwards():
    net, xs = Net(), views(8, 8)
    before = [type(m) for m in net.modules()]
    together(net, xs)
    assert [type(m) for m in net.modules()] == before
    with pytest.raises(RuntimeError):
        together(net, [x[:, :2] for x in xs])
    assert [type(m) for m in net.modules()] == before


def test_batches_with_batchnorm_have_a_largest_size(monkeypatch: pytest.MonkeyPatch):
    net, xs = Net(), views(*[8] * 7)
    monkeypatch.setattr(module, "_PIXELS", 3 * 4 * 8 * 8)
    together(net, xs)
    assert net.passes == 3
    monkeypatch.setattr(module, "_PIXELS", 1)
    together(net, xs)
    assert net.passes == 3 + 7
    together(net.eval(), xs)  # nothing is parted, so nothing is copied
    assert net.passes == 3 + 7 + 1


def test_statistics_of_the_batch_that_cannot_be_parted_are_left_alone():
    pixels = 4 * 8 * 8
    assert at_once(Net(), pixels) == module._PIXELS // pixels
    assert at_once(Net(norm=SplitBatchNorm2d), pixels) == 1  # parts its batch itself
    assert at_once(Net(norm=EvoNorm2dB0), pixels) == 1  # is no BatchNorm, and has its statistics
    assert at_once(Net(norm=EvoNorm2dB0).eval(), pixels) > 1
    assert at_once(nn.BatchNorm2d(3, track_running_stats=False).eval(), pixels) < at_once(
        nn.BatchNorm2d(3).eval(), pixels
    )
    assert at_once(Net().head, pixels) > 10**9  # no map is copied
    with pytest.raises(AssertionError, match="8 rows, which are not as many for each of 3"):
        together(nn.Sequential(_FirstRows(), nn.BatchNorm1d(4)), [torch.randn(3, 3, 2, 2)] * 3)


class _FirstRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:-1, :4]


def test_stages_that_are_computed_again_take_views_one_by_one():
    """The backward pass runs them when nothing is parted any more."""
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=0).double().train()
    alone, xs = copy.deepcopy(net), [torch.randn(3, 3, 32, 32).double() * (i + 1) for i in range(2)]
    net.set_grad_checkpointing()
    sum(y.square().sum() for y in together(net, xs)).backward()
    sum(y.square().sum() for y in map(alone, xs)).backward()
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_compiled_network_is_compiled_once_for_each_number_of_views():
    torch._dynamo.reset()
    compiled, plain = [], Net()
    net = copy.deepcopy(plain)

    def backend(graph: torch.fx.GraphModule, example: list) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    net.body.compile(backend=backend, dynamic=False)
    for _ in range(3):
        for n in (1, 2, 3):
            xs = views(*[8] * n)
            for a, b in zip(together(net, xs), [plain(x) for x in xs], strict=True):
                torch.testing.assert_close(a, b)
    assert len(compiled) == 3


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 6, 7])
def test_evenly(n: int, most: int):
    parts = list(evenly(list(range(n)), most))
    assert [i for part in parts for i in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert len(parts) == math.ceil(n / max(1, most)) and max(sizes, default=0) - min(sizes, default=0) <= 1
