"""Parameter groups of a network that is tuned: which weights decay, and how fast each layer learns."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

Groups = list[dict[str, Any]]
"""Parameter groups of an optimizer, with their `weight_decay` and, by layers, the `lr_scale` of each."""

# Names of parameters that must not decay, in modules from outside, which cannot say so themselves.
_TOKENS = re.compile(r"(^|\.)((cls|class|dist|reg|register|mask)_tokens?|pos(itional)?_embed(ding)?s?)$")


def groups_by_layer(body: Any, head: nn.Module, weight_decay: float, layer_decay: float) -> Groups:
    """Groups of a timm model and a head above it: each layer's rate is `layer_decay` times that of the layer above."""
    from timm.optim import param_groups_layer_decay

    exempt = body.no_weight_decay() if hasattr(body, "no_weight_decay") else ()
    # While it is a part of the body, timm takes it for a classifier, the layer above all others.
    body.add_module("_head", head)
    try:
        found: Groups = param_groups_layer_decay(body, weight_decay, exempt, layer_decay=layer_decay)
        return found
    finally:
        del body._head


def groups_by_name(model: nn.Module, weight_decay: float) -> Groups:
    """Groups of any module, whose tokens and positions are known by their names."""
    from timm.optim import param_groups_weight_decay

    tokens = [name for name, _ in model.named_parameters() if _TOKENS.search(name)]
    found: Groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tokens)
    return found
