"""Computations that ranks share, against one process that holds the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyviews import distributed
from tests.ranks import on_ranks

CASES = {
    "rows": ((12, 5), {}),
    "maps": ((12, 5, 4, 3), {}),
    "maps, channels last": ((12, 5, 4, 3), {}),
    "without weights": ((12, 5), {"affine": False}),
    "without running statistics": ((12, 5), {"track_running_stats": False}),
    "plain means of running statistics": ((12, 5), {"momentum": None}),
    "bfloat16": ((12, 5, 4, 3), {}),
}


def normalized() -> dict[str, dict[str, Tensor]]:
    """Two steps of BatchNorm of this rank's rows. The gradients of weights are those that ranks average."""
    found = {}
    for name, (shape, settings) in CASES.items():
        g = torch.Generator().manual_seed(0)
        layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], **settings).train()
        if layer.affine:
            nn.init.normal_(layer.weight, generator=g)
            nn.init.normal_(layer.bias, generator=g)
        layer = distributed.sync_batchnorm(nn.Sequential(layer), torch.device("cpu"))
        results = {}
        for step in range(2):
            # Rows of another mean and scale on each rank, far from zero.
            x = torch.randn(shape, generator=g) * torch.linspace(0.5, 2, 12).view(-1, *[1] * (len(shape) - 1)) + 30
            grad = torch.randn(shape, generator=g)
            x, grad = (t.chunk(distributed.world_size())[distributed.rank()] for t in (x, grad))
            if name.endswith("channels last"):
                x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
            if name == "bfloat16":
                x, grad = x.bfloat16(), grad.bfloat16()
            x = x.detach().requires_grad_()
            y = layer(x)
            assert y.dtype == x.dtype and y.stride() == x.stride()
            y.backward(grad)
            results |= {f"step {step} y": y.detach(), f"step {step} gradient": x.grad}
        found[name] = results
        found[name] |= {f"of {n}": p.grad for n, p in layer.named_parameters()} | dict(layer.named_buffers())
    return found


def test_batchnorm_of_two_ranks_is_that_of_one():
    one, (first, second) = normalized(), on_ranks(normalized)
    for name in CASES:
        loose = {"rtol": 2e-2, "atol": 2e-2} if name == "bfloat16" else {"rtol": 1e-4, "atol": 2e-5}
        for word, value in one[name].items():
            a, b = first[name][word], second[name][word]
            if word.startswith("step "):
                a = torch.cat([a, b])
            elif word.startswith("of "):
                a = a + b
            else:
                assert torch.equal(a, b), f"{name}: {word}"
            torch.testing.assert_close(a, value, **loose, msg=lambda text, at=f"{name}: {word}": f"{at}: {text}")


def test_what_counts_ranks_is_the_identity_in_one_process():
    x = torch.randn(3, 2, requires_grad=True)
    for same in (distributed.gather, distributed.add, distributed.mean, distributed.total, distributed.share):
        assert same(x) is x
    assert distributed.collect(x) == [x] and not distributed.anywhere(False) and distributed.anywhere(True)
