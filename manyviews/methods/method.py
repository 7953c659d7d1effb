"""The contract between a method and whoever trains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.types import Progress
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


def paired(*kinds: View, target: str | None = None) -> tuple[View, ...]:
    """The view types themselves, when two views of the target type, by default of the first, can be compared.

    With `target`, views predict targets, which a type may blend. Without, views are compared with each other.

    Raises:
        UserError: two types of the same name, none of the target's, fewer than two views of it, or a type that asks for
            other targets than the method has.
    """
    names = [k.name for k in kinds]
    if len(set(names)) < len(names):
        raise UserError(f"View types must have distinct names, not {', '.join(names)}: use `count` for more of a kind.")
    first = next((k for k in kinds if target in (None, k.name)), None)
    if first is None:
        raise UserError(f"The views need a {target} type to compare with, not only {', '.join(names) or 'none'}.")
    if first.count < 2:
        raise UserError(f"This method compares {first.name} views, and {first.count} is too few: set its count to 2.")
    for kind in kinds:
        if target is None and type(kind).blend is not View.blend:
            raise UserError(f"{kind.name} views predict a blend of targets, and this method has no targets: take byol.")
        if target is not None and kind.target != target:
            raise UserError(
                f"{kind.name} views predict {kind.target} views here, and this method {target} ones: take byol."
            )
    return kinds


def sum_of(xs: Sequence[Tensor]) -> Tensor:
    """The sum of one tensor or more of one shape; the tensor itself if it is one."""
    return reduce(torch.add, xs)


def totals(terms: Iterable[tuple[str, Tensor]]) -> Terms:
    """Named terms, those of one name added up."""
    found: Terms = {}
    for name, term in terms:
        found[name] = found[name] + term if name in found else term
    return found


class Method(nn.Module):
    """What is minimized, over what is looked at.

    A method is built from an encoder and keyword arguments whose defaults are the paper's. It names the views it
    looks at in `views`, and yields its loss in terms. Every term may be backpropagated the moment it is yielded, and
    the gradients of all of them add up to the gradient of the loss:

        for terms in method.loss(views, at):
            sum(terms.values()).backward()
        method.before_update(at)
        optimizer.step()
        method.after_update(at)

    Everything that decides what is learned (targets, queues, centers) is a part of the module and of its state dict.

    Attributes:
        views: the view types, as given by the caller.
        kept_encoder: the encoder that is evaluated and exported.
        constant_lr: prefixes of the parameters that keep the peak learning rate throughout.
    """

    views: tuple[View, ...]
    constant_lr: tuple[str, ...] = ()

    @property
    def kept_encoder(self) -> Encoder:
        raise NotImplementedError

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        """Yield named scalar terms, averaged over the images; their sum over all yields is the loss."""
        raise NotImplementedError

    def before_update(self, at: Progress) -> None:
        """Called when the gradients of a step are complete, before the optimizer uses them."""

    def after_update(self, at: Progress) -> None:
        """Called after the optimizer has moved the parameters: targets follow here."""
