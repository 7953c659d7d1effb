"""Small maps: the dense layer against PyTorch's convolution, and the encoders that have it."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from manyviews.backbones import Encoder
from manyviews.backbones.convolution import SmallMapConv2d, dense_conv3x3


@pytest.mark.parametrize(("h", "w", "stride", "bias"), itertools.product((1, 2), (1, 2), (1, 2), (False, True)))
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
