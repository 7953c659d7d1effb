"""The views of a batch, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from manyviews.errors import UserError, unknown
from manyviews.types import Canvases
from manyviews.views.compose import Composed
from manyviews.views.draws import Draws
from manyviews.views.kinds import Triple, View
from manyviews.views.make import make, place, relation
from manyviews.views.recompute import recomputed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Views:
    """The views of a batch of canvases, lazily.

    A view is `b 3 size size`, float32, channels last in memory, normalized, on the canvases' device, and the same, bit
    for bit, whenever it is asked for. Global views are kept, as methods ask for them twice; others are not, so memory
    does not grow with the number of views.

    Args:
        canvases: the images.
        kinds: view types of distinct names.
        seed: of the run.
        epoch: passes over the data completed: other views in each.
        mean, std: of the channels in [0, 1], for normalization.
        recompute: whether `map` keeps activations, or makes views and activations again in the backward pass.
        progress: fraction of the run completed, in [0, 1], for kinds of views that change with it.
        together: whether views of one size go through a module in one batch, where it can take them so (`together`).

    Raises:
        UserError: two view types of the same name.
    """

    def __init__(
        self,
        canvases: Canvases,
        kinds: Sequence[View],
        seed: int = 0,
        epoch: int = 0,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        recompute: bool = False,
        progress: float = 0.0,
        together: bool = False,
    ) -> None:
        self.canvases = canvases
        self.kinds = tuple(kinds)
        self.draws = Draws(seed, epoch, canvases.index, progress=progress)
        self.mean, self.std, self.recompute, self.together = mean, std, recompute, together
        self._named = {k.name: k for k in self.kinds}
        self._kept: dict[tuple[str, int], Tensor] = {}
        if len(self._named) < len(self.kinds):
            names = ", ".join(k.name for k in self.kinds)
            raise UserError(f"View types must have distinct names, not {names}: use `count` for more views of a kind.")

    def __len__(self) -> int:
        """Images in the batch."""
        return len(self.canvases)

    @property
    def device(self) -> torch.device:
        return self.canvases.pixels.device

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        """`views["global", 0]`: the first global view of each image."""
        if key not in self._kept:
            name, i = key
            kind = self._kind(name)
            if not 0 <= i < kind.count:
                raise UserError(f"There is no {name} view {i}: this batch has {kind.count}, counted from 0.")
            view = self._make(kind, i)
            if name != "global":
                return view
            self._kept[key] = view
        return self._kept[key]

    def all(self, name: str, module: nn.Module | None = None) -> list[Tensor]:
        """All views of one kind, or what a module makes of them."""
        return [x for _, _, x in self.each([self._kind(name)], module)]

    def each(
        self, kinds: Iterable[View] | None = None, module: nn.Module | None = None
    ) -> Iterator[tuple[View, int, Tensor]]:
        """Every view of these kinds, or of all, one after the other: its kind, its number in it, the view.

        With a module, what it makes of each view in place of the view.
        """
        places = [(kind, i) for kind in (self.kinds if kinds is None else kinds) for i in range(kind.count)]
        if module is not None and self.together:
            made = together(module, [self[kind.name, i] for kind, i in places])
            yield from ((kind, i, y) for (kind, i), y in zip(places, made, strict=True))
            return
        for kind, i in places:
            x = self[kind.name, i]
            yield kind, i, x if module is None else module(x)

    def map(self, module: nn.Module) -> list[Tensor]:
        """`module(x)` for every view `x`, in the order of `each`.

        With `recompute`, no more than one view's pixels and activations are alive at any time, in the backward pass
        too, which makes the view and runs the module again. Gradients are the same, and BatchNorm's running statistics
        are updated once.
        """
        if not self.recompute:
            return [y for _, _, y in self.each(module=module)]
        return [recomputed(module, partial(self._make, k, i)) for k in self.kinds for i in range(k.count)]

    def relation(self, name: str, i: int, target: str, j: int) -> Tensor:
        """Where view `i` of one kind lies as seen from view `j` of another, float32 `b p`: see `make.relation`."""
        return relation(self.canvases, (self._kind(name), i), (self._kind(target), j), self.draws)

    def blend(self, name: str, i: int, targets: Tensor) -> Tensor:
        """What view `i` of a kind should predict, given the targets of the batch's images, `b d`."""
        kind = self._kind(name)
        return kind.blend(targets, place(self.draws, kind, i))

    def applied(self, name: str) -> Tensor:
        """Which augmentations of a composed kind are applied in any of its views: bool, `b K`.

        Raises:
            UserError: the kind of view is not a composition.
        """
        kind = self._kind(name)
        if not isinstance(kind, Composed):
            raise UserError(f"Views of type {name} are not composed of single augmentations: use Composed views.")
        return torch.stack([kind.applied(place(self.draws, kind, i)) for i in range(kind.count)]).any(0)

    def of(self, rows: Canvases, kinds: Sequence[View]) -> Views:
        """Views of other images, or of other kinds, at the same place in the run."""
        found = Views(rows, kinds, mean=self.mean, std=self.std)
        found.draws = replace(self.draws, index=rows.index)
        return found

    def _make(self, kind: View, i: int) -> Tensor:
        return make(self.canvases, kind, i, self.draws, self.mean, self.std)

    def _kind(self, name: str) -> View:
        if name not in self._named:
            raise unknown("view", name, self._named)
        return self._named[name]


def together(module: nn.Module, xs: Sequence[Tensor]) -> list[Tensor]:
    """`[module(x) for x in xs]`, by the module's own `together` where it has one."""
    own = getattr(module, "together", None)
    return [module(x) for x in xs] if own is None else own(xs)


def in_one_batch(module: nn.Module, xs: Sequence[Tensor]) -> list[Tensor]:
    """`[module(x) for x in xs]`, those of one shape in one pass. A module in which BatchNorm learns sees each alone."""
    if any(m.training and isinstance(m, _BatchNorm) for m in module.modules()):
        return [module(x) for x in xs]
    found: dict[int, Tensor] = {}
    for shape in dict.fromkeys(x.shape for x in xs):
        places = [i for i, x in enumerate(xs) if x.shape == shape]
        made = module(torch.cat([xs[i] for i in places]))
        found |= dict(zip(places, made.split(shape[0]), strict=True))
    return [found[i] for i in range(len(xs))]
