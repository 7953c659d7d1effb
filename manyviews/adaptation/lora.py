"""Low-rank adaptation, by peft. Hu et al. 2022; with a magnitude of its own (DoRA), Liu et al. 2024."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from manyviews.adaptation.adaptation import Adaptation, batchnorms
from manyviews.backbones import Encoder
from manyviews.errors import UserError, require


@dataclass(frozen=True)
class LoRA(Adaptation):
    """The encoder stays; to its layers a product of two narrow matrices is added, which learns.

    Hu et al. 2022, eq. 3: `h = W x + alpha / rank B A x`, with B zero at the start. A layer of d outputs and k inputs
    gets `rank (d + k)` parameters. BatchNorm keeps its statistics. The first convolution, which sees the pixels, stays
    as it is, and so do grouped ones, whose kernels are narrow already.

    timm's attention has one layer for queries, keys and values: one product adapts all three, with as many parameters
    as two products for queries and values alone, `4 rank d`.

    Networks whose convolutions standardize their weights (BiT, NFNets) are refused: a product beside such a weight is
    not the same as one in it.

    Attributes:
        rank: width of the product.
        alpha: scale of the product, times rank.
        dropout: probability that a number of x is dropped before A.
        layers: "all" are the linear layers, and in a network with convolutions those too; "attention" is the layer of
            queries, keys and values.
        magnitude: whether each output's weights have a length that learns by itself, and the product changes their
            direction (DoRA).
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    layers: Literal["all", "attention"] = "all"
    magnitude: bool = False

    def __post_init__(self) -> None:
        require(self.rank >= 1, self, "rank", "1 or more")
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and less than 1")

    def begin(self, encoder: Encoder) -> Encoder:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as e:
            raise UserError("LoRA needs the package peft: pip install 'manyviews[lora]'.") from e
        for m in encoder.model.modules():
            if hasattr(
                m, "qkv_bias_separate"
            ):  # else timm takes the layer's weight, and does not call what is beside it
                m.qkv_bias_separate = True
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self._targets(encoder),
            bias="none",
            use_dora=self.magnitude,
        )
        inject_adapter_in_model(config, encoder.model)
        for name, p in encoder.model.named_parameters():
            p.requires_grad_(".lora_" in name)
        encoder.stays = batchnorms(encoder)
        return encoder

    def _targets(self, encoder: Encoder) -> list[str]:
        """The names of the layers that are adapted."""
        first = {name.removesuffix(".weight") for name in encoder.first_convolutions}
        # `eps` is timm's mark of a convolution that computes its weights from others (StdConv2d, ScaledStdConv2d).
        standardized = any(isinstance(m, nn.Conv2d) and hasattr(m, "eps") for m in encoder.model.modules())
        if standardized and not encoder.is_transformer:
            raise UserError(
                f"The convolutions of {encoder.name} standardize their weights, beside which low-rank matrices are "
                "others than in them: choose another adaptation."
            )
        found = [
            name
            for name, m in encoder.model.named_modules()
            if isinstance(m, nn.Linear)
            or (
                isinstance(m, nn.Conv2d)
                and m.groups == 1
                and name not in first
                and not encoder.is_transformer
                and not m._forward_pre_hooks  # see `backbones.protect`, whose hook stands for the stride
            )
        ]
        if self.layers == "attention":
            found = [name for name in found if name.rpartition(".")[2] in _ATTENTION]
            if not found:
                raise UserError(f"{encoder.name} has no attention for LoRA: choose layers='all'.")
        if not found:
            raise UserError(f"{encoder.name} has no layers for LoRA: choose another adaptation.")
        return found

    def finish(self, encoder: Encoder) -> Encoder:
        from peft.tuners.tuners_utils import BaseTunerLayer

        found = copy.deepcopy(encoder)
        for name, module in list(found.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, own = name.rpartition(".")
                setattr(found.model.get_submodule(parent), own, module.get_base_layer())
        return found.requires_grad_(True)


_ATTENTION = ("qkv", "q_proj", "v_proj", "q", "v")
"""What timm calls the layers that make queries and values, together or each."""
