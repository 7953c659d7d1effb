"""The contract between a method and whoever trains it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.types import At
from manyviews.views import View, Views

Terms = dict[str, Tensor]


class Branch(nn.Module):
    """An encoder followed by its projector: `b 3 h w` to `b d`."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.encoder(x))


class Method(nn.Module):
    """What is minimized, over what is looked at.

    A method is built from an encoder and keyword arguments whose defaults are the paper's. It names the views it
    looks at in `looks`, and yields its loss in terms. Every term may be backpropagated the moment it is yielded, and
    the gradients of all of them add up to the gradient of the loss:

        for terms in method.loss(views, at):
            sum(terms.values()).backward()
        method.before_update(at)
        optimizer.step()
        method.after_update(at)

    Everything that decides what is learned (targets, queues, centers) is a part of the module and of its state dict.

    Attributes:
        looks: the view types, as given by the caller.
        keep: the encoder that is evaluated and exported.
        constant_lr: prefixes of the parameters that keep the peak learning rate throughout.
    """

    looks: tuple[View, ...]
    constant_lr: tuple[str, ...] = ()

    @property
    def keep(self) -> Encoder:
        raise NotImplementedError

    def loss(self, views: Views, at: At) -> Iterator[Terms]:
        """Yield named scalar terms, averaged over the images; their sum over all yields is the loss."""
        raise NotImplementedError

    def before_update(self, at: At) -> None:
        """Called when the gradients of a step are complete, before the optimizer uses them."""

    def after_update(self, at: At) -> None:
        """Called after the optimizer has moved the parameters: targets follow here."""
