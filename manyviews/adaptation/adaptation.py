"""Which parts of an encoder learn, and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from manyviews.backbones import Encoder
from manyviews.errors import UserError, require
from manyviews.types import Progress


@dataclass(frozen=True)
class Adaptation(ABC):
    """What of an encoder learns and what is added for it, as a frozen setting.

    One object serves pretraining (`Recipe.adaptation`), fine-tuning and adaptation: call `begin` before training,
    `before_step` before every step, and `finish` to get the encoder that is kept.
    """

    @abstractmethod
    def begin(self, encoder: Encoder) -> Encoder:
        """The encoder, ready to train: parameters that stay are frozen, and what is added is there.

        Raises:
            UserError: the encoder has not what this adaptation needs.
        """

    def before_step(self, encoder: Encoder, learning: Sequence[nn.Parameter], at: Progress) -> None:  # noqa: B027
        """Called before every step, with the encoder's parameters that learn at some time."""

    def groups(self, encoder: Encoder) -> list[dict[str, Any]]:
        """All parameters that learn at some time: "params", and "lr_scale", a factor on their learning rate."""
        return [{"params": [p for p in encoder.parameters() if p.requires_grad], "lr_scale": 1.0}]

    def finish(self, encoder: Encoder) -> Encoder:
        """An encoder of timm's plain architecture and names with what was learned; `encoder` stays as it is."""
        return encoder

    @property
    def later(self) -> Adaptation:
        """What holds when the encoder has waited: in the later stages of a run."""
        return self


@dataclass(frozen=True)
class Full(Adaptation):
    """Everything learns.

    Attributes:
        layer_decay: factor on the learning rate from each layer to the one below it; the heads are above all layers
            (BEiT, Bao et al. 2022). 1 gives all layers one rate.
        patch_embed: further factor on the learning rate of a vision transformer's projection of patches (0.2 in DINOv2,
            Oquab et al. 2024).
        keep_statistics: whether BatchNorm keeps the statistics that it came with, and normalizes by them in training
            too. Otherwise those of the views, which are augmented, soon replace those of the images.
    """

    layer_decay: float = 1.0
    patch_embed: float = 1.0
    keep_statistics: bool = False

    def __post_init__(self) -> None:
        require(0 < self.layer_decay <= 1, self, "layer_decay", "more than 0, and at most 1")
        require(self.patch_embed > 0, self, "patch_embed", "more than 0")

    def begin(self, encoder: Encoder) -> Encoder:
        if self.layer_decay != 1:
            _layers(encoder)  # refuse a network without layers before a run has a folder
        if self.patch_embed != 1:
            encoder.transformer("have a rate of its own for the projection of patches")
        if self.keep_statistics:
            encoder.stays = batchnorms(encoder)
        return encoder

    def groups(self, encoder: Encoder) -> list[dict[str, Any]]:
        if self.layer_decay == self.patch_embed == 1:
            return super().groups(encoder)
        layers = _layers(encoder) if self.layer_decay != 1 else {}
        above = layers.get(_HEAD, 0)
        by_scale: dict[float, list[nn.Parameter]] = {}
        for name, p in encoder.model.named_parameters():
            if p.requires_grad:
                scale = self.layer_decay ** (above - layers[name]) if layers else 1.0
                scale *= self.patch_embed if name.startswith("patch_embed.") else 1.0
                by_scale.setdefault(scale, []).append(p)
        return [{"params": ps, "lr_scale": scale} for scale, ps in sorted(by_scale.items())]


@dataclass(frozen=True)
class Frozen(Adaptation):
    """Nothing of the encoder learns: its weights and its BatchNorm statistics stay as they are."""

    def begin(self, encoder: Encoder) -> Encoder:
        encoder.requires_grad_(False)
        encoder.stays = ("",)
        return encoder


@dataclass(frozen=True)
class LastBlocks(Adaptation):
    """The last blocks or stages learn, and the norm after them; everything before stays as it is.

    Attributes:
        blocks: how many.
        decay: factor on the learning rate from each block to the one below it. The last block and the norm have the
            whole rate: block i from the top has `decay ** i` of it.
        keep_statistics: whether BatchNorm of the blocks that learn keeps its statistics too: see `Full`.
    """

    blocks: int = 2
    decay: float = 1.0
    keep_statistics: bool = False

    def __post_init__(self) -> None:
        require(self.blocks >= 1, self, "blocks", "1 or more")
        require(0 < self.decay <= 1, self, "decay", "more than 0, and at most 1")

    def begin(self, encoder: Encoder) -> Encoder:
        layers, first = _layers(encoder), self._first(encoder)
        for name, p in encoder.model.named_parameters():
            p.requires_grad_(p.requires_grad and layers[name] >= first[-1])
        own = {name: list(m.parameters(recurse=False)) for name, m in encoder.model.named_modules()}
        stays = [name for name, ps in own.items() if ps and not any(p.requires_grad for p in ps)]
        encoder.stays = tuple(dict.fromkeys([*stays, *(batchnorms(encoder) if self.keep_statistics else ())]))
        return encoder

    def groups(self, encoder: Encoder) -> list[dict[str, Any]]:
        layers, first = _layers(encoder), self._first(encoder)
        by_block: dict[int, list[nn.Parameter]] = {}
        for name, p in encoder.model.named_parameters():
            if p.requires_grad:
                by_block.setdefault(sum(layers[name] < f for f in first), []).append(p)
        return [{"params": ps, "lr_scale": self.decay**i} for i, ps in sorted(by_block.items())]

    def _first(self, encoder: Encoder) -> list[int]:
        """The first layer of each block that learns, from the last block down."""
        names, layers = blocks_of(encoder), _layers(encoder)
        if self.blocks > len(names):
            raise UserError(f"{encoder.name} has {len(names)} blocks, and {self.blocks} are to learn: set fewer.")
        return [
            min(i for name, i in layers.items() if name.startswith(f"{block}."))
            for block in reversed(names[-self.blocks :])
        ]


@dataclass(frozen=True)
class LPFT(Adaptation):
    """First the heads on a frozen encoder, then everything (Kumar et al. 2022).

    Attributes:
        probe: fraction of the run in which the encoder stays as it is.
    """

    probe: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.probe <= 1, self, "probe", "between 0 and 1")

    def begin(self, encoder: Encoder) -> Encoder:
        return encoder

    def before_step(self, encoder: Encoder, learning: Sequence[nn.Parameter], at: Progress) -> None:
        _hold(encoder, learning, at.progress < self.probe)

    @property
    def later(self) -> Adaptation:
        return Full()


@dataclass(frozen=True)
class Warmed(Adaptation):
    """First the heads alone on an encoder that stays, then another adaptation.

    New heads give the encoder gradients of noise. Here all that is not the encoder (heads, predictor, decoder, mask
    tokens) learns first, as in `LPFT`, but for so many epochs, and what follows is a setting.

    Attributes:
        epochs: passes over the images in which the encoder stays as it is; at most a tenth of the run.
        then: what of the encoder learns after them.
    """

    epochs: float = 1.0
    then: Adaptation = Full()

    def __post_init__(self) -> None:
        require(self.epochs >= 0, self, "epochs", "0 or more")
        require(not isinstance(self.then, (Warmed, LPFT)), self, "then", "an adaptation that does not wait itself")

    def begin(self, encoder: Encoder) -> Encoder:
        return self.then.begin(encoder)

    def before_step(self, encoder: Encoder, learning: Sequence[nn.Parameter], at: Progress) -> None:
        _hold(encoder, learning, at.step < min(self.epochs * at.steps_per_epoch, at.steps / 10))
        self.then.before_step(encoder, learning, at)

    def groups(self, encoder: Encoder) -> list[dict[str, Any]]:
        return self.then.groups(encoder)

    def finish(self, encoder: Encoder) -> Encoder:
        return self.then.finish(encoder)

    @property
    def later(self) -> Adaptation:
        return self.then


def _hold(encoder: Encoder, learning: Sequence[nn.Parameter], held: bool) -> None:
    """Let an encoder wait as it is, or learn on."""
    if encoder.held != held:
        encoder.held = held
        for p in learning:
            p.requires_grad_(not held)
        encoder.train(encoder.training)


def blocks_of(encoder: Encoder) -> tuple[str, ...]:
    """timm's names of the blocks or stages that have weights, from the first to the last."""
    weighted = [name for name, _ in encoder.model.named_parameters()]
    return tuple(b for b in encoder.layer_names if any(name.startswith(f"{b}.") for name in weighted))


def batchnorms(encoder: Encoder) -> tuple[str, ...]:
    """The names of the model's parts that keep statistics of batches."""
    return tuple(name for name, m in encoder.model.named_modules() if isinstance(m, _BatchNorm))


_HEAD = "_head.weight"


def _layers(encoder: Encoder) -> dict[str, int]:
    """The number of the layer of each parameter, and of a head's, as timm counts them from the input.

    In some networks, such as ConvNeXt, the last norm is a part of the head.

    Raises:
        UserError: timm does not know the layers of this network.
    """
    from timm.models import group_parameters

    if not hasattr(encoder.model, "group_matcher"):
        raise UserError(f"{encoder.name} does not say what its layers are: choose another adaptation.")
    # While it is a part of the model, timm takes it for a classifier.
    encoder.model.add_module("_head", nn.utils.skip_init(nn.Linear, 1, 1, bias=False))  # no draws
    try:
        matcher = encoder.model.group_matcher(coarse=False)
        found: dict[str, int] = group_parameters(encoder.model, matcher, reverse=True)
        return found
    finally:
        del encoder.model._head
