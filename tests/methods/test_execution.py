"""How a step is executed changes neither what is learned nor, where it is promised, how much memory it takes."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.methods.simclr import SimCLR
from manyviews.recipes import get
from manyviews.settings import override
from manyviews.types import Batch, Progress
from manyviews.views import Views, container

AT = Progress(0, 10, 5)


def saved_bytes(recipe_name: str, locals_: int, backward: str, batch: Batch) -> int:
    """The most bytes autograd holds for the backward pass at any one time."""
    recipe = get(recipe_name)
    looks = "views" if "views" in recipe.method.settings else "tasks"
    recipe = override(recipe, f"method.{looks}.local.count", str(locals_))
    method = build_method(recipe).train()
    held: Counter[tuple[int, int]] = Counter()  # how often a piece of memory is held: address and bytes
    most = 0

    class Held:
        def __init__(self, x: torch.Tensor) -> None:
            nonlocal most
            self.x = x
            self.memory = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
            held[self.memory] += 1
            most = max(most, sum(size for (_, size), n in held.items() if n))

        def __del__(self) -> None:
            held[self.memory] -= 1

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda h: h.x):
        backpropagate(method, [lambda: Views(batch, method.views, backward=backward)], AT)
    return most


@pytest.mark.parametrize("name", ["byol_tiny", "dino_tiny", "moco_v3_tiny"])
def test_activations_do_not_grow_with_the_number_of_views(name: str, batch: Batch):
    few, *more = (saved_bytes(name, n, "per_view", batch) for n in (1, 3, 4, 6))  # in groups of up to 3
    many = max(more)
    assert many <= few
    assert saved_bytes(name, 6, "joint", batch) > 1.5 * many  # the measurement can tell


def test_methods_work_in_anybodys_loop(batch: Batch):
    method = SimCLR(
        build_method(get("simclr_tiny")).kept_encoder,
        hidden_dim=16,
        output_dim=8,
        view=get("simclr_tiny").method.settings["view"],
    )
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    first = None
    for _ in range(12):
        optimizer.zero_grad()
        total = 0.0
        for terms in method.loss(Views(batch, method.views), AT):
            loss = sum(terms.values())
            loss.backward()
            total += loss.item()
        optimizer.step()
        first = total if first is None else first
    assert total < first


@pytest.mark.parametrize("name", ["dino_tiny", "byol_tiny", "simsiam_tiny", "simclr_tiny", "swav_tiny"])
@pytest.mark.parametrize("backbone", ["vit", "resnet"])
def test_views_of_one_size_in_one_batch_give_the_same_gradients(
    name: str, backbone: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    """As one by one: by default where that takes no more memory, with "joint" wherever it can be."""
    built = build_method(replace(get(name), backbone=get("mae_tiny" if backbone == "vit" else "simclr_tiny").backbone))
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    states, passes = {}, {}
    for how in ("alone", "per_view", "joint"):
        method = copy.deepcopy(built).train()
        sizes: list[int] = []
        for m in method.modules():
            if isinstance(m, Encoder):
                m.register_forward_hook(lambda m, x, y, sizes=sizes: sizes.append(len(x[0])))
        with monkeypatch.context() as patch:
            if how == "alone":
                patch.setattr(container, "together", lambda module, xs, inputs, pack: [module(x) for x in xs])
            views = Views(batch, method.views, backward="joint" if how == "joint" else "per_view")
            backpropagate(method, [lambda views=views: views], AT)
        gradients[how] = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
        states[how], passes[how] = method.state_dict(), sizes
    for how in ("per_view", "joint"):
        for word, g in gradients["alone"].items():
            torch.testing.assert_close(
                gradients[how][word], g, rtol=1e-3, atol=2e-5 * max(1.0, g.abs().max().item()), msg=f"{how} {word}"
            )
        for word, value in states["alone"].items():
            torch.testing.assert_close(states[how][word], value, rtol=1e-4, atol=1e-5, msg=f"{how} {word}")
        assert sum(passes[how]) == sum(passes["alone"])
    assert len(passes["joint"]) <= len(passes["per_view"]) < len(passes["alone"])
