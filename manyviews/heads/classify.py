"""Heads that answer: from features to a logit for each class. They are kept with the encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Features less a mean, divided by a deviation, both float32, `d`: those of the training images."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b d` to `b d`."""
        return (x - self.mean) / self.std


def classifier(spec: Mapping[str, Any], dims: int, classes: int) -> nn.Module:
    """A head of torch's own layers, `b dims` to `b classes`, in evaluation mode.

    Args:
        spec: `{"kind": "linear"}`, or `{"kind": "mlp", "hidden": 512, "dropout": 0.2}`: a hidden layer with layer norm,
            GELU and dropout.
        dims: dimensions of the features.
        classes: number of classes.
    """
    if spec["kind"] == "linear":
        return nn.Linear(dims, classes).eval()
    hidden = int(spec["hidden"])
    layers = (nn.Linear(dims, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(spec["dropout"]))
    return nn.Sequential(*layers, nn.Linear(hidden, classes)).eval()


def folded(head: nn.Sequential) -> nn.Module:
    """The same function of features without the standardization, which the first linear layer takes over.

    Args:
        head: a `Standardize`, then what `classifier` makes.
    """
    standard, made = head
    assert isinstance(standard, Standardize)
    found: nn.Module = copy.deepcopy(made).eval()
    first = found if isinstance(found, nn.Linear) else next(iter(found.children()))
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        # In float64: features of nearly no variation have large weights that cancel.
        weight = first.weight.double() / standard.std.double()
        first.bias.copy_(first.bias.double() - weight @ standard.mean.double())
        first.weight.copy_(weight)
    return found


def scaled(head: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """The same head, whose outputs are multiplied by `std` and get `mean` added, both float32 `outputs`.

    Args:
        head: what `folded` gives.
    """
    found: nn.Module = copy.deepcopy(head).eval()
    last = found if isinstance(found, nn.Linear) else list(found.children())[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(std.to(last.weight)[:, None])
        last.bias.mul_(std.to(last.bias)).add_(mean.to(last.bias))
    return found
