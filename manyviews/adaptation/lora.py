"""Low-rank adaptation, by peft. Hu et al. 2022."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from manyviews.adaptation.adaptation import Adaptation
from manyviews.backbones import Encoder
from manyviews.errors import UserError, require


@dataclass(frozen=True)
class LoRA(Adaptation):
    """The encoder stays; to its linear layers a product of two narrow matrices is added, which learns.

    Hu et al. 2022, eq. 3: `h = W x + alpha / rank B A x`, with B zero at the start.

    Attributes:
        rank: width of the product.
        alpha: scale of the product, times rank.
        dropout: probability that a number of x is dropped before A.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.rank >= 1, self, "rank", "1 or more")
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and less than 1")

    def begin(self, encoder: Encoder) -> Encoder:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as e:
            raise UserError("LoRA needs the package peft: pip install 'manyviews[lora]'.") from e
        names = [name for name, m in encoder.model.named_modules() if isinstance(m, nn.Linear)]
        if not names:
            raise UserError(f"{encoder.name} has no linear layers for LoRA: choose a vision transformer.")
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names, bias="none"
        )
        inject_adapter_in_model(config, encoder.model)
        for name, p in encoder.model.named_parameters():
            p.requires_grad_(".lora_" in name)
        return encoder

    def finish(self, encoder: Encoder) -> Encoder:
        from peft.tuners.tuners_utils import BaseTunerLayer

        found = copy.deepcopy(encoder)
        for name, module in list(found.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, own = name.rpartition(".")
                setattr(found.model.get_submodule(parent), own, module.get_base_layer())
        return found.requires_grad_(True)
