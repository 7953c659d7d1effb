"""Modules of any kind as encoders, and the same modules with fresh weights."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from manyviews.errors import UserError, printable

_M = TypeVar("_M", bound=nn.Module)


class ExternalEncoder(nn.Module):
    """A network of any kind as an encoder: `b channels s s` to `b embed_dim`.

    An output `b d` is used as it is. A map `b d h w` is averaged over positions. Tokens `b n d` give the first token.
    The module is not copied, so it moves with the encoder.

    Args:
        module: returns one tensor of floats.
        size: side in pixels of the noise images on which the module is tried.
        channels: number of channels of the images.

    Attributes:
        module: the module itself.
        name: the name of its class.
        embed_dim: dimensions of the features, found by the trial.

    Raises:
        UserError: the module does not accept such images, or returns something else.
    """

    def __init__(self, module: nn.Module, size: int, channels: int = 3) -> None:
        super().__init__()
        self.module, self.channels = module, channels
        self.name = type(module).__name__
        modes = [(m, m.training) for m in module.modules()]
        device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        try:
            module.eval()
            noise = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                found = self(noise.to(device))
        except UserError:
            raise
        except Exception as e:  # other people's code raises anything
            why = printable(e, 120) or type(e).__name__
            raise UserError(f"{self.name} cannot take images of {size} pixels ({why}): give another test_size.") from e
        finally:
            for part, training in modes:
                part.training = training
        if len(found) != 2 or not found.is_floating_point() or not found.shape[1]:
            raise UserError(
                f"{self.name} gives {tuple(found.shape)} {found.dtype} for 2 images: it must give a row of floats for "
                "each image."
            )
        self.embed_dim: int = found.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b channels s s` to `b embed_dim`."""
        found = self.module(x)
        if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4):
            what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UserError(
                f"{self.name} gives {what}: wrap it in a module that gives features as one tensor, b d, b d h w or "
                "b n d."
            )
        return found.mean((2, 3)) if found.ndim == 4 else found[:, 0] if found.ndim == 3 else found


# Initial values of parameters that belong to no layer. Tokens and positions: Dosovitskiy et al. 2021. Scales of
# channels begin at one, which does not change the network.
_BARE: tuple[tuple[str, Callable[[Tensor], object]], ...] = (
    (r"token|pos_?emb|position", lambda p: nn.init.trunc_normal_(p, std=0.02)),
    (r"gamma|scale", nn.init.ones_),
)


def reinitialized(module: _M, seed: int) -> _M:
    """A copy of a module with fresh weights; the module itself and the global random state stay as they are.

    Each submodule's `reset_parameters` sets its weights, perhaps at another scale than the network's constructor did.
    timm's models with `init_weights`, such as its ResNets, begin as in timm. Tokens and positions begin with noise of
    standard deviation 0.02, scales of channels with one. Buffers that no `reset_parameters` sets keep their values.

    Raises:
        UserError: the module cannot be copied, or has parameters that nothing initializes.
    """
    no = f"There can be no untrained {type(module).__name__} to compare with"
    try:
        fresh = copy.deepcopy(module).cpu()  # the same baseline, wherever the module lies
    except Exception as e:
        raise UserError(f"{no}, because it cannot be copied ({printable(e, 120)}).") from e
    floats = {k: p for k, p in fresh.named_parameters() if p.is_floating_point()}
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for p in floats.values():
            p.fill_(math.nan)  # marks the parameters that nothing sets
        for part in reversed(list(fresh.modules())):  # containers after their parts, as in constructors
            for name in ("reset_parameters", "_reset_parameters", "init_weights"):
                begin = getattr(part, name, None)
                # In other libraries `init_weights` may load trained weights.
                if not callable(begin) or (name == "init_weights" and not type(part).__module__.startswith("timm.")):
                    continue
                try:
                    begin()
                except Exception as e:
                    raise UserError(f"{no}: its {type(part).__name__}.{name} fails ({printable(e, 120)}).") from e
        for k, p in floats.items():
            start = next((start for pattern, start in _BARE if re.search(pattern, k)), None)
            if p.isnan().any() and start is not None:
                start(p)
    unset = [k for k, p in floats.items() if p.isnan().any()]
    if unset:
        raise UserError(f"{no}, because nothing initializes {', '.join(unset[:3])}: give it a reset_parameters().")
    return fresh
