"""The contract between a method and whoever trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, take
from manyviews.errors import UserError
from manyviews.targets import Moving
from manyviews.types import Packed, Progress
from manyviews.views import Crop, Mask, Masking, Terms, View, Views, distinct


class Branch(nn.Module):
    """An encoder followed by its projector: `b 3 h w` to `b d`."""

    projector: Any

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor | Packed) -> Tensor:
        found: Tensor = self.projector(self.encoder(x))
        return found

    @property
    def packs(self) -> bool:
        """Whether it takes images of several sizes in one pass."""
        return self.encoder.packs


class TokenBranch(Branch):
    """An encoder and a head of its pooled features, and of some patches where they are asked for.

    Args:
        encoder: the encoder.
        projector: the head.
        patch_projector: the patches' own head; the same one if None.

    Attributes:
        token: `token_dim`, in the place of hidden patches.
    """

    def __init__(self, encoder: Encoder, projector: nn.Module, patch_projector: nn.Module | None = None) -> None:
        super().__init__(encoder, projector)
        self.patch_projector = patch_projector
        self.token = nn.Parameter(torch.zeros(encoder.token_dim))

    @property
    def patch_head(self) -> nn.Module:
        """The head of patches."""
        return self.projector if self.patch_projector is None else self.patch_projector

    def forward(self, x: Tensor | Packed, hide: Tensor | None = None, where: Tensor | None = None) -> Any:
        """`b d`; with `where`, int64 `b m`, also the projections of these patches, `b m d`. `hide`: bool, `b n`."""
        found = self.encoder.features(x, hide=hide, token=self.token)
        pooled = self.projector(found.pooled)
        return pooled if where is None else (pooled, self.patch_head(take(found.patches, where)))


See = Callable[[nn.Module, int, Sequence[float], Sequence[float]], Tensor]
"""The outputs of a network for every image of a run: see `Method.look`."""


class Method(nn.Module):
    """A loss over views.

    A method is built from an encoder and keyword arguments whose defaults are the paper's. It declares the views it
    needs, and yields its loss in terms. Every term may be backpropagated when it is yielded, and the gradients of all
    terms add up to the gradient of the loss:

        for terms in method.loss(views, at):
            sum(terms.values()).backward()
        method.before_update(at)
        optimizer.step()
        method.after_update(at)      # and forget the optimizer's state of `method.restarted()`

    Everything that decides what is learned is a part of the module and of its state dict. Parts that are no parameters
    (targets, queues, centers) are `Moving`, and move by themselves after the update.

    Attributes:
        views: the view types, as given by the caller.
        online: the trained network that maps a view to its projection; None in methods that compare no projections.
        masking: how patches of the first view type are hidden; None if none are.
        normalize_pixels: whether pixels are predicted standardized within each patch.
        constant_lr: prefixes of the parameters that keep the peak learning rate throughout.
        lr_scales: factors on the learning rates of parameters, by prefix.
        scored: the trained module whose outputs, `b k`, are scores of prototypes, and the temperature of their softmax;
            None in methods without prototypes.
    """

    views: tuple[View, ...]
    online: Branch
    masking: Masking | None = None
    normalize_pixels: bool = False
    constant_lr: tuple[str, ...] = ()
    lr_scales: Mapping[str, float] = {}
    scored: tuple[nn.Module, float] | None = None

    @classmethod
    def settle(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings with whatever files among them decide written out, so that a run can go on without these."""
        return settings

    @property
    def kept_encoder(self) -> Encoder:
        """The encoder that is evaluated and exported: the trained one, unless a method says otherwise."""
        return self.online.encoder

    def begin(self, images: int) -> None:
        """Called once before training on so many images: for memory that has a row for each of them."""

    def look(self, see: See) -> None:
        """Called once before training, with all weights in place: for a frozen network that looks once at each image.

        `see(network, size, mean, std)` gives the network's outputs for all images under the test-time transform,
        float32 `n d` on its device, rows by `batch.index`; zeros for images that cannot be read. They are kept in the
        user's cache: a further run on these images with the same network does not call it.
        """

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        """Yield named scalar terms, averaged over the images; their sum over all yields is the loss."""
        raise NotImplementedError

    def mask(self, views: Views, i: int = 0) -> Mask:
        """What is hidden of view `i` of the first view type."""
        kind = self.views[0]
        assert self.masking is not None and isinstance(kind, Crop)
        return views.mask(self.masking, kind.name, i, self.kept_encoder.grid(kind.size))

    def predicted_pixels(self, views: Views) -> Tensor | None:
        """The pixels of all patches of the first view, hidden or not, as the loss compares them: `b n p`, to look at.

        None if no pixels are predicted. The module is in evaluation mode and there is no gradient.
        """
        return None

    def before_update(self, at: Progress) -> None:
        """Called when the gradients of a step are complete, before the optimizer uses them."""

    def after_update(self, at: Progress) -> None:
        """Called after the optimizer has moved the parameters: whatever is `Moving` follows."""
        for part in self.modules():
            if isinstance(part, Moving):
                part.move(at)

    def restarted(self) -> list[nn.Parameter]:
        """Parameters that began anew in the last `after_update`. The optimizer forgets what it knew of them."""
        return [p for part in self.modules() if isinstance(part, Moving) for p in part.restarted]

    def after_skip(self) -> None:
        """Called instead of `after_update` when the gradient was not finite, so that the step did not count."""
        for part in self.modules():
            if isinstance(part, Moving):
                part.forget()


def paired(*kinds: View, target: str | None = None) -> tuple[View, ...]:
    """The view types themselves, when two views of the target type, by default of the first, can be compared.

    With `target`, views predict targets, which a type may blend. Without, views are compared with each other.

    Raises:
        UserError: two types of the same name, none of the target's, fewer than two views of it, or a type that asks for
            other targets than the method has.
    """
    distinct(kinds)
    first = next((k for k in kinds if target in (None, k.name)), None)
    if first is None:
        names = ", ".join(k.name for k in kinds)
        raise UserError(f"The views need a {target} type to compare with, not only {names or 'none'}.")
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


def exactly(kind: View, count: int, method: str) -> View:
    """The view type itself, if there are so many views of each image. Raises UserError otherwise."""
    if kind.count != count:
        number = {1: "one view", 2: "two views"}[count]
        raise UserError(f"{method} takes {number} of each image, not {kind.count}: set its count to {count}.")
    return kind


def visible(mask: Mask) -> Tensor:
    """The patches that stay, int64 `b v`, for an encoder that drops the others.

    Raises:
        UserError: images keep different numbers of patches.
    """
    if mask.kept is None:
        raise UserError(
            "This method drops patches, so all images must keep equally many: set method.masking to Random(0.75), "
            "InverseBlocks(0.8), or Blocks((0.5, 0.5), p=1.0)."
        )
    return mask.kept


def depth(encoder: Encoder, layers: int) -> int:
    """The number of last layers itself, if the encoder has so many. Raises UserError otherwise."""
    most = len(encoder.layer_names)
    if not 1 <= layers <= most:
        raise UserError(f"{encoder.name} has {most} layers to average, not {layers}: set method.layers to 1 to {most}.")
    return layers


def sum_of(xs: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more of one shape; the tensor itself if it is one."""
    return reduce(torch.add, xs)


def mean_of(xs: Iterable[Tensor]) -> Tensor:
    """The mean of scalars."""
    return torch.stack(list(xs)).mean()
