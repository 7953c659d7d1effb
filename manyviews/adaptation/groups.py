"""Parameter groups of a network that is tuned: which weights decay, and how fast each layer learns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

Groups = list[dict[str, Any]]
"""Parameter groups of an optimizer, with their `weight_decay` and, by layers, the `lr_scale` of each."""

# Names of parameters that must not decay, in modules from outside, which cannot say so themselves.
_TOKENS = re.compile(r"(^|\.)((cls|class|dist|reg|register|mask)_tokens?|pos(itional)?_embed(ding)?s?)$")


def by_decay(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[int, float],
    weight_decay: float,
    *,
    scale: float = 1.0,
    exempt: Collection[str] = (),
) -> Groups:
    """Groups of parameters that learn: vectors (biases, norm scales), single tokens and positions do not decay.

    Args:
        named: parameters with their names; those without requires_grad are left out.
        scales: factor on the learning rate by the id of a parameter, as `Adaptation.groups` gives it.
        weight_decay: weight decay of all others.
        scale: factor on all rates.
        exempt: names of further parameters that do not decay.
    """
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in named:
        if p.requires_grad:
            still = is_vector(name, p) or name in exempt
            found.setdefault((still, scales.get(id(p), 1.0) * scale), []).append(p)
    return [
        {"params": params, "weight_decay": 0.0 if vector else weight_decay, "lr_scale": by}
        for (vector, by), params in found.items()
    ]


def is_vector(name: str, p: nn.Parameter) -> bool:
    """Whether weight decay, LARS and Muon leave a parameter alone, as usual: a vector, a single token, positions."""
    return p.squeeze().ndim <= 1 or name.endswith("pos_embed")


def groups_by_name(model: nn.Module, weight_decay: float) -> Groups:
    """Groups of any module, whose tokens and positions are known by their names."""
    from timm.optim import param_groups_weight_decay

    tokens = [name for name, _ in model.named_parameters() if _TOKENS.search(name)]
    found: Groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tokens)
    return found
