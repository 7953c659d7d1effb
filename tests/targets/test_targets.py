from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from manyviews.schedules import Cosine
from manyviews.targets import EMA, Center, Queue
from manyviews.types import Progress

AT = Progress(0, 10, 5)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def moved(module: nn.Module) -> nn.Module:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    return other


# -- moving average ----------------------------------------------------------------------------------------------


def test_ema_is_the_weighted_mean_of_every_parameter():
    online = network()
    ema = EMA(online, 0.9)
    expected = [p.detach().clone() for p in online.parameters()]
    for _ in range(3):
        online = moved(online)
        ema.update(online, AT)
        expected = [0.9 * t + 0.1 * o for t, o in zip(expected, online.parameters(), strict=True)]
    for found, wanted in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ema_at_its_ends_is_the_online_network_or_stays(momentum: float):
    start = network()
    online, ema = moved(start), EMA(start, momentum)
    ema.update(online, AT)
    for found, wanted in zip(ema.module.parameters(), (start if momentum else online).parameters(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (25, 0.996586), (50, 0.998), (75, 0.999414)])
def test_ema_follows_byols_schedule(step: int, momentum: float):
    zero, one = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(zero.weight), nn.init.ones_(one.weight)
    ema = EMA(zero, Cosine(0.996, 1.0))
    ema.update(one, Progress(step, 100, 10))
    assert ema.module.weight.item() == pytest.approx(1 - momentum, abs=5e-7)


def test_ema_trains_by_averaging_only():
    online = network()
    ema = EMA(online, 0.9)
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in online.parameters())
    x = torch.randn(5, 3, requires_grad=True)
    assert not ema(x).requires_grad
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(ema.parameters(), online.parameters(), strict=True))


def test_the_targets_batchnorm_uses_its_own_batch_and_tracks_its_own_statistics():
    online = network().train()
    ema = EMA(online, 0.9).train()
    with torch.no_grad():
        ema.module[0].bias += 3
    x = torch.randn(64, 3)
    normalized = ema.module[1](ema.module[0](x))
    torch.testing.assert_close(normalized.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    before = ema.module[1].running_mean.clone()
    ema(x)
    ema.update(online, AT)
    assert not torch.equal(ema.module[1].running_mean, before)
    assert torch.equal(online[1].running_mean, torch.zeros(4))


def test_the_target_has_no_dropout_and_evaluates_like_any_module():
    ema = EMA(network(), 0.9).train()
    x = torch.randn(6, 3)
    assert torch.equal(ema(x), ema(x))
    ema.eval()
    assert not any(m.training for m in ema.modules())
    torch.testing.assert_close(ema(x), ema.module[3](ema.module[1](ema.module[0](x))))
    ema.train()
    assert ema.module[1].training and not ema.module[2].training


def test_the_targets_state_is_saved():
    start = network()
    a, b = EMA(start, 0.9), EMA(network(), 0.9)
    a.update(moved(start), AT)
    b.load_state_dict(a.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(a.eval()(x), b.eval()(x))


# -- queue -------------------------------------------------------------------------------------------------------


def rows(*values: float) -> torch.Tensor:
    """Distinct unit keys."""
    return torch.tensor([[v, 1.0] for v in values])


@pytest.mark.parametrize("batches", [[3, 3, 3], [4, 1, 4], [7, 2], [5], [12], [2, 17, 3]])
def test_queue_holds_the_newest_keys(batches: list[int]):
    queue = Queue(5, 2)
    start = list(queue.rows.clone())
    pushed = rows(*range(sum(batches)))
    for batch in pushed.split(batches):
        queue.enqueue(batch)
    newest = [*start, *normalize(pushed)][-5:]
    found = sorted(queue.rows.tolist())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(sorted(torch.stack(newest).tolist())))


def test_queue_starts_with_distinct_unit_rows():
    queue = Queue(64, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(64))
    assert (queue.rows @ queue.rows.T - torch.eye(64)).max() < 0.999


def test_queue_keeps_normalized_float32_rows_and_no_gradient():
    queue = Queue(4, 2)
    queue.enqueue((3 * rows(1, 2)).bfloat16().requires_grad_())
    assert queue.rows.dtype == torch.float32 and not queue.rows.requires_grad
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(4))


def test_queue_continues_from_its_saved_state():
    a, b = Queue(5, 2), Queue(5, 2)
    a.enqueue(rows(1, 2, 3))
    b.load_state_dict(a.state_dict())
    for queue in (a, b):
        queue.enqueue(rows(4, 5, 6))
    assert torch.equal(a.rows, b.rows)


# -- center ------------------------------------------------------------------------------------------------------


def test_center_is_a_running_mean_from_zero():
    center, mean = Center(3, 0.9), torch.tensor([1.0, -2.0, 10.0])
    center.update(mean)
    torch.testing.assert_close(center.value, 0.1 * mean)
    center.update(mean.bfloat16())
    torch.testing.assert_close(center.value, 0.19 * mean)
    assert "value" in center.state_dict()


def test_a_queue_finds_the_nearest_and_takes_new_keys_after_the_step():
    queue = Queue(20, 6)
    before, z = queue.rows.clone(), torch.randn(5, 6)
    found = queue.nearest(z)
    for a, b in zip(z, found, strict=True):
        cosines = [torch.nn.functional.cosine_similarity(a, row, dim=0).item() for row in before]
        assert torch.equal(b, before[max(range(20), key=lambda i: cosines[i])])
    queue.push(z)
    assert torch.equal(queue.rows, before)
    queue.move(Progress(0, 1, 1))
    torch.testing.assert_close(queue.nearest(z), torch.nn.functional.normalize(z))
    assert int(queue.seen) == 5


def test_an_average_follows_its_module_by_itself_and_is_copied_with_it():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    pair = torch.nn.ModuleList([net, EMA(net, 0.75)])
    twin = copy.deepcopy(pair)
    assert set(pair.state_dict()) == {"0.0.weight", "0.0.bias", "1.module.0.weight", "1.module.0.bias"}
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        twin[0][0].weight += 4
    for both in (pair, twin):
        both[1].move(Progress(0, 1, 1))
    assert torch.equal(pair[1].module[0].weight, start)
    torch.testing.assert_close(twin[1].module[0].weight, start + 1)
