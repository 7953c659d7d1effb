"""What only a GPU can show. Run there; skipped elsewhere."""

import pytest
import torch

from manyviews import recipes
from manyviews.data import Loader, open_source
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.feed import feed
from manyviews.engine.step import backpropagate
from manyviews.types import Batch, Progress
from manyviews.views import IMAGENET_MEAN, IMAGENET_STD, SIMCLR, Cutout, Draws, Global, Views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def some(b: int, side: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(b, 3, 8, 8, generator=g)
    pixels = (torch.nn.functional.interpolate(pixels, size=side, mode="bilinear") * 255).byte()
    return Batch.of(pixels, torch.tensor([[side, 2 * side // 3]]).repeat(b, 1))


@pytest.mark.parametrize("kind", [Global(1, 48, color=SIMCLR), Cutout(1, 48)])
def test_views_are_those_of_a_cpu(kind):
    canvases = some(200, 64)
    here, there = canvases, canvases.to("cuda")
    one, two = (
        kind.make(c, 0, kind.place(Draws(0, 0, c.index), 0), IMAGENET_MEAN, IMAGENET_STD) for c in (here, there)
    )
    off = (one - two.cpu()).abs()
    assert off.median() < 1e-5
    # A rounding may send a crop to another pixel, or a value over the threshold.
    assert (off.amax((1, 2, 3)) > 1e-2).float().mean() < 0.02


def test_views_do_not_change_when_made_again():
    canvases = some(64, 64).to("cuda")
    one, two = (Views(canvases, (Global(1, 48),))["global", 0] for _ in range(2))
    assert torch.equal(one, two)


def test_canvases_that_fit_are_held_there():
    pixels = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8).numpy()
    device = torch.device("cuda")
    on_gpu, on_cpu = (Loader(open_source(pixels), 16, 8, device=d) for d in (device, None))
    for a, b in zip(on_gpu.batches(0), on_cpu.batches(0), strict=True):
        assert a.canvases.pool.is_cuda and not b.canvases.pool.is_cuda
        assert torch.equal(a.pixels.cpu(), b.pixels) and torch.equal(a.index.cpu(), b.index)


def test_batches_travel_beside_the_step():
    given = [some(16, 32) for _ in range(6)]
    busy = torch.randn(2048, 2048, device="cuda")
    for expected, (found, _) in zip(given, feed(iter(given), torch.device("cuda")), strict=True):
        busy = busy @ busy / 50
        assert torch.equal(found.pixels.cpu(), expected.pixels)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("_tiny")])
def test_no_step_waits_for_the_device(name):
    """A single `item()` or `nonzero` keeps the host from asking ahead: here it raises."""
    recipe, device = recipes.get(name), torch.device("cuda")
    method = build_method(recipe).to(device).to(memory_format=torch.channels_last).train()
    optimizer, canvases = optim.build(method, recipe.optimizer, device), some(32, 32).to(device)

    def step(i):
        at = Progress(i, 10, 10)
        optim.schedule(optimizer, recipe.optimizer, 32, at)
        optimizer.zero_grad(set_to_none=True)
        looks = Views(canvases, method.views, backward=recipe.step.backward, progress=at.progress)
        backpropagate(method, [lambda: looks], at, precision="auto", device=device)
        method.before_update(at)
        optim.clip(method, 1.0)
        optimizer.step()
        method.after_update(at)

    step(0)  # compiles, and copies what stays the same for an epoch
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
