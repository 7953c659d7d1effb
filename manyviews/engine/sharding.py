"""Weights that are spread over the processes: PyTorch's FSDP2 (`fully_shard`) around a method as it is.

Each block of an encoder and each head is a unit. Its weights, gradients and optimizer state are cut along their first
dimension, a part for each process; they are whole on a process only while the unit computes. What stands outside the
units (patch projections, positions, final norms, tokens) stays whole everywhere, as without sharding: in a ViT-S a
fiftieth of all. The optimizer, the moving averages and the clipping see this process's parts as ordinary tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from manyviews import distributed
from manyviews.adaptation import Full
from manyviews.adaptation.adaptation import blocks_of
from manyviews.backbones import Encoder
from manyviews.backbones.masked import hides_places
from manyviews.errors import UserError
from manyviews.methods import Method
from manyviews.settings import Recipe
from manyviews.targets import EMA, Moving

_LARGE = 2**16  # weights of a layer that stands alone, from which it is a unit of its own


def check_sharding(method: Method, recipe: Recipe) -> None:
    """Raises UserError when this method, or another setting, does not go with weights that are spread."""
    if not recipe.step.shard:
        return
    lacks = next((type(m).__name__ for m in method.modules() if isinstance(m, Moving) and not _follows(m)), None)
    hides = method.masking is not None and hides_places(method.kept_encoder.model)
    reasons = {
        f"hidden patches in {recipe.backbone.name}": hides,
        f"the method {recipe.method.name}, which copies whole networks ({lacks})": lacks is not None,
        f"the method {recipe.method.name}, whose teacher looks at each image once": type(method).look
        is not Method.look,
        "step.compile": recipe.step.compile,
        "step.backward=recompute": recipe.step.backward == "recompute",
        "step.precision=float16": recipe.step.precision == "float16",
        "optimizer.name=muon, whose updates need whole matrices": recipe.optimizer.name == "muon",
        f"adaptation={type(recipe.adaptation).__name__}": not isinstance(recipe.adaptation, Full),
        "regularizers": bool(recipe.regularizers),
        "stages": bool(recipe.stages),
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None:
        raise UserError(f"--set step.shard=true does not go with {found}: leave one of them out.")


def _follows(part: Moving) -> bool:
    """Whether a part that moves by itself needs no whole network: moving averages, and what has no submodules."""
    return isinstance(part, EMA) or not any(part.children())


def shard(method: Method) -> None:
    """Spread the weights of a method, whole and equal on all processes, over these processes, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found: list[Any] = list(dict.fromkeys(units(method)))
    mesh = init_device_mesh(next(method.parameters()).device.type, (distributed.world_size(),))
    for unit in found:
        for p in unit.parameters():
            p.data = p.data.contiguous()  # FSDP takes no weights that are channels last
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # A root that holds them all: they gather their weights one after the other, in one order.
    root = _Root(method)
    fully_shard(root, mesh=mesh, ignored_params={p for p in method.parameters() if not distributed.spread(p)})
    root()


class _Root(nn.Module):
    """Whose forward pass, as the first one, tells FSDP what belongs together."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self) -> None:
        pass


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a method that are spread, each by itself: nothing but their own forward pass reads their weights."""
    if isinstance(module, Encoder):
        yield from (module.model.get_submodule(name) for name in blocks_of(module))
    elif isinstance(module, Moving) and not isinstance(module, EMA):
        return
    elif isinstance(module, nn.Sequential) and not any(any(child.children()) for child in module):
        if any(True for _ in module.parameters()):
            yield module
    elif not any(module.children()) or _is_block(module):
        if sum(p.numel() for p in module.parameters()) >= _LARGE or _is_block(module):
            yield module
    else:
        for child in module.children():
            yield from units(child)


def _is_block(module: nn.Module) -> bool:
    from timm.models.vision_transformer import Block

    return isinstance(module, Block)


class Twin:
    """A whole copy of a method that is spread, on the first process's host: what is measured, drawn and written.

    Args:
        method: the method, before it is spread.
    """

    def __init__(self, method: Method) -> None:
        self._copy = copy.deepcopy(method).cpu() if distributed.rank() == 0 else None

    @torch.no_grad()
    def follow(self, method: Method) -> Method:
        """The copy with the method's present weights, in the first process; elsewhere the method itself.

        All processes call it. One weight at a time is whole on a device.
        """
        ours: dict[str, Any] = {} if self._copy is None else self._copy.cpu().state_dict()
        for name, x in method.state_dict().items():
            whole = distributed.whole(x)
            if self._copy is not None:
                ours[name].copy_(whole)
        return method if self._copy is None else self._copy
