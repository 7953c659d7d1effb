"""The views of a batch, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import get_args

import torch
from torch import Tensor, nn

from manyviews.errors import UserError, unknown
from manyviews.types import Backward, Batch
from manyviews.views.compose import Composed
from manyviews.views.draws import Draws
from manyviews.views.kinds import Triple, View
from manyviews.views.make import make, place, relation
from manyviews.views.recompute import recomputed
from manyviews.views.together import at_once, evenly, together

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
        backward: "per_view" gives `groups` of fewer pixels than the largest view has; "recompute" also has `map` make
            views and activations again in the backward pass; "joint" gives groups as large as can be.
        progress: fraction of the run completed, in [0, 1], for kinds of views that change with it.

    Raises:
        UserError: two view types of the same name, or another `backward`.
    """

    def __init__(
        self,
        canvases: Batch,
        kinds: Sequence[View],
        seed: int = 0,
        epoch: int = 0,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        backward: Backward = "per_view",
        progress: float = 0.0,
    ) -> None:
        self.canvases = canvases
        self.kinds = tuple(kinds)
        self.draws = Draws(seed, epoch, canvases.index, progress=progress)
        self.mean, self.std, self.backward = mean, std, backward
        self._named = {k.name: k for k in self.kinds}
        self._kept: dict[tuple[str, int], Tensor] = {}
        if len(self._named) < len(self.kinds):
            names = ", ".join(k.name for k in self.kinds)
            raise UserError(f"View types must have distinct names, not {names}: use `count` for more views of a kind.")
        if backward not in get_args(Backward):
            raise unknown("way to backpropagate a step", str(backward), get_args(Backward))

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
        """All views of one kind, or what a module makes of them, those of one size in one batch (`together`)."""
        xs = [x for _, _, x in self.each([self._kind(name)])]
        return xs if module is None else together(module, xs)

    def each(self, kinds: Iterable[View] | None = None) -> Iterator[tuple[View, int, Tensor]]:
        """Every view of these kinds, or of all, one after the other: its kind, its number in it, the view."""
        for kind in self.kinds if kinds is None else kinds:
            for i in range(kind.count):
                yield kind, i, self[kind.name, i]

    def groups(
        self, module: nn.Module, kinds: Iterable[View] | None = None, beside: Iterable[View] = ()
    ) -> Iterator[list[tuple[View, int, Tensor]]]:
        """What a module makes of the views of these kinds, or of all, in groups of one size, each in one batch.

        A group's views share a graph and are backpropagated together. Unless `backward` is "joint", a group is a single
        view or has fewer pixels than the largest view alone, whose activations are held anyway: about as much memory.

        Args:
            module: see `together`.
            kinds: of views.
            beside: further kinds whose activations are held at another time in the step.
        """
        kinds = self.kinds if kinds is None else tuple(kinds)
        places = [(kind, i) for kind in kinds for i in range(kind.count)]
        largest = max((kind.size for kind in (*kinds, *beside)), default=0)
        for size, run in groupby(places, lambda place: place[0].size):
            some = list(run)
            # Fewer, for each view has something besides its pixels: a class token, projections.
            few = min((largest**2 - 1) // size**2, at_once(module, len(self) * size**2))
            for group in evenly(some, len(some) if self.backward == "joint" else few):
                xs = (self[kind.name, i] for kind, i in group)
                yield [(kind, i, y) for (kind, i), y in zip(group, together(module, xs), strict=True)]

    def map(self, module: nn.Module) -> list[Tensor]:
        """`module(x)` for every view `x`, in the order of `each`, those of one size in one batch (`together`).

        With `backward="recompute"`, no more than one view's pixels and activations are alive at any time, in the
        backward pass too, which makes the view and runs the module again. Gradients are the same, and BatchNorm's
        running statistics are updated once.
        """
        if self.backward == "recompute":
            return [recomputed(module, partial(self._make, k, i)) for k in self.kinds for i in range(k.count)]
        return together(module, [x for _, _, x in self.each()])

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

    def of(self, rows: Batch, kinds: Sequence[View]) -> Views:
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
