"""The views of a batch, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from manyviews.errors import UserError, unknown
from manyviews.types import Backward, Batch
from manyviews.views.compose import Composed
from manyviews.views.draws import Draws
from manyviews.views.kinds import Crop
from manyviews.views.masking import Mask, Masking
from manyviews.views.recompute import recomputed
from manyviews.views.relation import positions, relation
from manyviews.views.together import at_once, can_pack, evenly, together
from manyviews.views.view import Values, View, distinct

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Terms = dict[str, Tensor]
Inputs = Callable[[View, int], Mapping[str, Tensor]]
"""Further inputs of a module for a view, by the names of its arguments: such as which patches to hide."""


class Views:
    """The views of a batch, lazily.

    A view of pixels is `b 3 size size`, float32, channels last in memory, normalized, on the batch's device. It is the
    same, bit for bit, whenever it is asked for. Global views are kept, as methods ask for them twice; others are not,
    so memory does not grow with the number of views.

    Args:
        batch: the images.
        kinds: view types of distinct names.
        seed: the run's seed.
        epoch: passes over the data completed: other views in each.
        mean, std: per channel in [0, 1], for normalization.
        backward: "per_view" has `terms` give groups of fewer pixels than the largest view; "recompute" also has `map`
            make views and activations again in the backward pass; "joint" has `terms` give groups as large as can be,
            of all sizes for a vision transformer.
        progress: fraction of the run completed, in [0, 1], for kinds of views that change with it.

    Raises:
        UserError: two view types of the same name, or another `backward`.
    """

    def __init__(
        self,
        batch: Batch,
        kinds: Sequence[View],
        seed: int = 0,
        epoch: int = 0,
        mean: Values = IMAGENET_MEAN,
        std: Values = IMAGENET_STD,
        backward: Backward = "per_view",
        progress: float = 0.0,
    ) -> None:
        self.batch = batch
        self.kinds = distinct(kinds)
        self.draws = Draws(seed, epoch, batch.index, progress=progress)
        self.mean, self.std, self.backward = mean, std, backward
        self._named = {k.name: k for k in self.kinds}
        self._kept: dict[tuple[str, int], Any] = {}
        if backward not in get_args(Backward):
            raise unknown("way to backpropagate a step", str(backward), get_args(Backward))

    def __len__(self) -> int:
        """Images in the batch."""
        return len(self.batch)

    @property
    def device(self) -> torch.device:
        return self.batch.index.device

    # -- views ---------------------------------------------------------------------------------------------------

    def __getitem__(self, key: tuple[str, int]) -> Any:
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

    def each(self, kinds: Iterable[View] | None = None) -> Iterator[tuple[View, int, Any]]:
        """Every view of these kinds, or of all, one after the other: its kind, its number in it, the view."""
        for kind, i in self._places(kinds):
            yield kind, i, self[kind.name, i]

    # -- through a network ---------------------------------------------------------------------------------------

    def all(self, name: str, module: nn.Module | None = None, inputs: Inputs | None = None) -> list[Any]:
        """All views of one kind, or a module's outputs for them, several in one batch (`together`)."""
        if module is None:
            return [x for _, _, x in self.each([self._kind(name)])]
        return self._outputs(module, list(self._places([self._kind(name)])), inputs)

    def map(
        self, module: nn.Module, places: Sequence[tuple[View, int]] | None = None, inputs: Inputs | None = None
    ) -> list[Any]:
        """`module(x)` for every view `x`, in the order of `each`, several in one batch (`together`).

        With `backward="recompute"`, no more than one view's pixels and activations are alive at any time, in the
        backward pass too, which makes the view and runs the module again. Gradients are the same, and BatchNorm's
        running statistics are updated once.

        Args:
            module: gives a tensor, or a tuple of tensors, with as many rows for each image.
            places: the views, each as its kind and its number in it; all if None.
            inputs: further inputs of the module.
        """
        places = list(self._places()) if places is None else places
        if self.backward == "recompute":
            more = [{} if inputs is None else inputs(kind, i) for kind, i in places]
            return [
                recomputed(module, partial(self._make, kind, i), m) for (kind, i), m in zip(places, more, strict=True)
            ]
        return self._outputs(module, places, inputs)

    def terms(
        self,
        module: nn.Module,
        term: Callable[[View, int, Any], Tensor | Terms],
        kinds: Iterable[View] | None = None,
        inputs: Inputs | None = None,
    ) -> Iterator[Terms]:
        """The terms of a loss that is a sum over views, each kind's under its name, to be backpropagated as they come.

        Views of one size go through the module in one batch where that takes no more memory: unless `backward` is
        "joint", a batch is a single view or has fewer pixels than the largest view alone. With "joint", views of all
        sizes go through a vision transformer in one pass.

        Args:
            module: gives a tensor, or a tuple of tensors, with as many rows for each image.
            term: the loss of one view, or several by name, given its kind, its number and the module's output.
            kinds: whose views contribute; all if None.
            inputs: further inputs of the module.
        """
        largest = max((kind.size for kind in self.kinds if isinstance(kind, Crop)), default=0)
        packs = self.backward == "joint" and can_pack(module)

        def key(place: tuple[View, int]) -> int:
            size: int = getattr(place[0], "size", 0)
            return min(size, 1) if packs else size

        for size, run in groupby(self._places(kinds), key):
            places = list(run)
            if size == 0:
                most = 1
            elif self.backward == "joint":
                most = len(places)
            else:
                # Fewer, because each view has more than its pixels: a class token, projections.
                most = min((largest**2 - 1) // size**2, at_once(module, len(self) * size**2))
            for group in evenly(places, most):
                outputs = self._outputs(module, group, inputs)
                found = ((kind.name, term(kind, i, y)) for (kind, i), y in zip(group, outputs, strict=True))
                yield total(pair for name, t in found for pair in (t.items() if isinstance(t, dict) else [(name, t)]))
                del outputs, found

    # -- what was drawn ------------------------------------------------------------------------------------------

    def mask(self, masking: Masking, name: str, i: int, grid: tuple[int, int]) -> Mask:
        """The patches of view `i` of a kind that are hidden, on a grid of rows and columns of patches."""
        kind = self._kind(name)
        # The first view's mask is drawn for the batch as such: there may be no other view (MAE).
        first = kind is self.kinds[0] and i == 0
        return masking.draw(grid, self.draws if first else kind.place(self.draws, i))

    def resized(self, name: str, i: int, size: int) -> Tensor:
        """View `i` of a kind of crops at another size in pixels: the same place and the same colors."""
        return cast(Tensor, self._make(replace(self._crop(name), size=size), i))

    def positions(self, name: str, i: int, grid: tuple[int, int]) -> Tensor:
        """Centers of a view's patches on the image, float32 `b n 2`: see `relation.positions`."""
        return positions(self.batch, self._crop(name), i, grid, self.draws)

    def parameters(self, name: str, i: int) -> Tensor:
        """Numbers that were drawn for view `i` of a kind, float32 `b p`: see `View.parameters`."""
        kind = self._kind(name)
        return kind.parameters(kind.place(self.draws, i))

    def relation(self, name: str, i: int, target: str, j: int) -> Tensor:
        """Where view `i` of one kind lies as seen from view `j` of another, float32 `b p`: see `relation.relation`."""
        return relation(self.batch, (self._crop(name), i), (self._crop(target), j), self.draws)

    def blend(self, name: str, i: int, targets: Tensor) -> Tensor:
        """The target of view `i` of a kind, given the targets of the batch's images, `b d`."""
        kind = self._kind(name)
        return kind.blend(targets, kind.place(self.draws, i))

    def applied(self, name: str) -> Tensor:
        """Which augmentations of a composed kind are applied in each of its views: bool, `count b K`.

        Raises:
            UserError: the kind of view is not a composition.
        """
        kind = self._kind(name)
        if not isinstance(kind, Composed):
            raise UserError(f"Views of type {name} are not composed of single augmentations: use Composed views.")
        return torch.stack([kind.applied(kind.place(self.draws, i)) for i in range(kind.count)])

    def of(self, batch: Batch, kinds: Sequence[View]) -> Views:
        """Views of other images, or of other kinds, at the same place in the run."""
        found = Views(batch, kinds, mean=self.mean, std=self.std)
        found.draws = replace(self.draws, index=batch.index)
        return found

    def _make(self, kind: View, i: int) -> Any:
        return kind.make(self.batch, i, kind.place(self.draws, i), self.mean, self.std)

    def _places(self, kinds: Iterable[View] | None = None) -> Iterator[tuple[View, int]]:
        for kind in self.kinds if kinds is None else kinds:
            for i in range(kind.count):
                yield kind, i

    def _outputs(self, module: nn.Module, places: Sequence[tuple[View, int]], inputs: Inputs | None) -> list[Any]:
        xs = (self[kind.name, i] for kind, i in places)
        more = None if inputs is None else [inputs(kind, i) for kind, i in places]
        return together(module, xs, more, pack=self.backward == "joint")

    def _kind(self, name: str) -> View:
        if name not in self._named:
            raise unknown("view", name, self._named)
        return self._named[name]

    def _crop(self, name: str) -> Crop:
        kind = self._kind(name)
        if not isinstance(kind, Crop):
            raise UserError(f"Views of type {name} are no crops of the image.")
        return kind


def total(terms: Iterable[tuple[str, Tensor]]) -> Terms:
    """Named terms, those of one name added up."""
    found: Terms = {}
    for name, term in terms:
        found[name] = found[name] + term if name in found else term
    return found
