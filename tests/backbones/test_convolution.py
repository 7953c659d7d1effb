"""Convolutions on CPUs: small maps as dense layers, and narrow ones kept from a kernel that overruns its buffer."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from manyviews.backbones import Encoder, convolution
from manyviews.backbones.convolution import SmallMapConv2d, dense_conv3x3, protect


@pytest.mark.parametrize(("h", "w", "stride", "bias"), [*itertools.product((1, 2), (1, 2), (1, 2), (False, True))])
def test_as_a_convolution(h, w, stride, bias):
    g = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g).requires_grad_()

    x, weight, b = some(5, 3, h, w), some(4, 3, 3, 3), some(4) if bias else None
    inputs = [t for t in (x, weight, b) if t is not None]
    ours, theirs = dense_conv3x3(x, weight, b, stride), F.conv2d(x, weight, b, stride, 1)
    torch.testing.assert_close(ours, theirs)
    grad = some(*theirs.shape).detach()
    for a, e in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        torch.testing.assert_close(a, e)


def test_encoders_learn_the_same_from_small_maps():
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)).double().train()
    plain = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16)).double().train()
    plain.load_state_dict(encoder.state_dict())
    for m in plain.modules():
        if type(m) is SmallMapConv2d:
            m.__class__ = nn.Conv2d
    assert sum(type(m) is SmallMapConv2d for m in encoder.modules()) == 17
    x = torch.randn(20, 3, 16, 16, dtype=torch.float64).to(memory_format=torch.channels_last)
    for e in (encoder, plain):
        e(x).square().sum().backward()
    for (name, p), q in zip(encoder.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_the_dense_layer_is_taken_where_it_helps(monkeypatch):
    taken = []
    monkeypatch.setattr("manyviews.backbones.convolution.dense_conv3x3", lambda x, *a: taken.append(x.shape) or x)
    conv = SmallMapConv2d(4, 4, 3, padding=1)
    for b, side in ((32, 2), (32, 1), (32, 3), (4, 2)):
        conv(torch.randn(b, 4, side, side))
    conv(torch.randn(4, 2, 2))  # an image without a batch
    assert taken == [(32, 4, 2, 2), (32, 4, 1, 1)]


def test_what_is_exported_is_a_convolution():
    conv = SmallMapConv2d(4, 4, 3, padding=1)
    x = torch.randn(20, 4, 2, 2)
    program = torch.export.export(conv, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x[:3]), conv(x[:3]))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(3, 5, 1, stride=2), (2, 3, 8, 8)),
        (nn.Conv2d(3, 5, 1, stride=(1, 3), bias=False, padding="valid"), (2, 3, 7, 9)),
        (nn.Conv1d(3, 5, 1, stride=2), (2, 3, 9)),
    ],
)
def test_a_protected_convolution_is_the_same_function(conv, shape):
    plain, safe = conv.double(), copy.deepcopy(conv).double()
    for _ in range(2):  # the second time changes nothing
        protect(safe)
    assert max(safe.stride) == 1
    x, y = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    plain(x).square().sum().backward()
    safe(y).square().sum().backward()
    torch.testing.assert_close(safe(y), plain(x))
    torch.testing.assert_close([y.grad, safe.weight.grad], [x.grad, plain.weight.grad])


class Overrunning(TorchDispatchMode):
    """Counts the gradients that oneDNN would compute with a buffer too small for blocks of 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            _, x, weight, _, stride, padding, _, _, _, groups, _ = args
            pointwise = max(weight.shape[2:]) == 1 and max(stride) > 1 and not any(padding)
            self.count += pointwise and groups == 1 and x.shape[1] < 16
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("guarded", [False, True])
def test_no_narrow_network_reaches_the_kernel_that_overruns_its_buffer(guarded, monkeypatch):
    """A ResNet of four channels killed its process in this gradient. In float64 oneDNN is not asked."""
    monkeypatch.setattr(convolution, "_BLOCK", 16 if guarded else 0)
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).double().train()
    with Overrunning() as found:
        encoder(torch.randn(2, 3, 16, 16, dtype=torch.float64)).sum().backward()
    assert found.count == (0 if guarded else 3)


def test_wide_convolutions_are_left_alone():
    conv = nn.Conv2d(16, 8, 1, stride=2)
    protect(conv)
    assert conv.stride == (2, 2) and not conv._forward_pre_hooks
