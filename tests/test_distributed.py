"""Computations that ranks share, against one process that holds the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyviews import distributed
from manyviews.engine.precision import Scaling
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


def scaled() -> list[tuple[bool, float, float]]:
    """Steps in float16 of which one overflows on the last rank alone: whether it counted, the scale, the weight."""
    weight = nn.Parameter(torch.ones(()))
    optimizer, scaling, found = torch.optim.SGD([weight], lr=0.125), Scaling(torch.device("cpu"), "float16"), []
    for step in range(3):
        last = distributed.rank() == distributed.world_size() - 1
        weight.grad = scaling.scale(torch.tensor(torch.inf if step == 1 and last else 1.0))
        distributed.mean_gradients([weight])
        scaling.unscale(optimizer)
        moved = scaling.step(optimizer)
        found.append((moved, scaling.factor, weight.item()))
    return found


def passed() -> tuple[Tensor, str]:
    """Rows of each rank in the first process, of which the second has none; and a word of the first."""
    rank, tell = distributed.rank(), distributed.later()
    rows = distributed.to_first(torch.full((0 if rank == 1 else 2, 3), rank, dtype=torch.float32))
    return rows, tell("done" if rank == 0 else "")


def everything() -> tuple[dict[str, dict[str, Tensor]], list[tuple[bool, float, float]], tuple[Tensor, str]]:
    return normalized(), scaled(), passed()


def test_two_ranks_do_what_one_does():
    """One test, because the processes take longer to start than all that they do."""
    both = on_ranks(everything)
    skips_the_same_steps_in_float16(both)
    passes_rows_and_words(both)
    normalizes_as_one(both)


def skips_the_same_steps_in_float16(both: list):
    steps = [(True, 2.0**16, 0.875), (False, 2.0**15, 0.875), (True, 2.0**15, 0.75)]
    assert scaled() == both[0][1] == both[1][1] == steps


def passes_rows_and_words(both: list):
    rows, word = both[0][2]
    assert torch.equal(rows, torch.zeros(2, 3)) and word == both[1][2][1] == "done"
    assert passed()[1] == "done"


def normalizes_as_one(both: list):
    one, first, second = normalized(), both[0][0], both[1][0]
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
