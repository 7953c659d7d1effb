"""A method with further terms in its loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.methods import Branch, Method, See, Terms
from manyviews.settings import Recipe, Regularizer
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import View, Views, resolution


@dataclass
class Heard:
    """Projections behind the terms of the moment, as they came out of the projectors.

    Attributes:
        online: projections of the trained network, with gradient, view by view, `b d` each; means of Gaussians.
        target: projections of the moving average of that network, if there is one.
        scores: the trained network's scores of prototypes, with gradient, view by view, `b k` each, if there are any.
        features: what the trained network's projector was given for them: pooled features, such as class tokens.
        turn: how often the method has yielded before.
        before: views whose projections by the trained network were behind earlier terms of the step.
    """

    online: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    turn: int = 0
    before: int = 0


class Regularized(Method):
    """A method whose loss has further terms: a method itself.

    The method inside is not asked to hand out its projections. Whatever it does with them, they pass through here.

    Args:
        method: the method whose loss is added to.
        regularizers: the terms.
        parts: number of accumulated parts of a batch.

    Raises:
        UserError: the method has not what a term needs.
    """

    def __init__(self, method: Method, regularizers: tuple[Regularizer, ...], parts: int = 1) -> None:
        super().__init__()
        for regularizer in regularizers:
            regularizer.check(method)
        self.method, self.regularizers, self.parts = method, regularizers, parts
        self.views, self.masking = method.views, method.masking
        self.constant_lr = tuple(f"method.{prefix}" for prefix in method.constant_lr)
        self.lr_scales = {f"method.{prefix}": scale for prefix, scale in method.lr_scales.items()}

    @property
    def online(self) -> Branch:  # type: ignore[override]
        return self.method.online

    @property
    def kept_encoder(self) -> Encoder:
        return self.method.kept_encoder

    def begin(self, images: int) -> None:
        self.method.begin(images)

    def look(self, see: See) -> None:
        self.method.look(see)

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        heard, listening = Heard(), True

        def listen(module: Any, into: list[Tensor]) -> Any:
            def hear(_: Any, x: Any, z: Any) -> None:
                if listening and projection(z).ndim == 2:  # other than those of patches
                    into.extend(projection(z).split(len(views)))

            return module.register_forward_hook(hear)

        def listen_before(projector: Any) -> Any:
            def hear(_: Any, inputs: Any) -> None:
                if listening and inputs[0].ndim == 2:  # patches, `b n d`, may go through it as well
                    heard.features.extend(inputs[0].split(len(views)))

            return projector.register_forward_pre_hook(hear)

        averages = (m for m in self.method.modules() if isinstance(m, EMA))
        target = next((m for m in averages if m.followed is self.method.online), None)
        hooks = []
        if self.method.online is not None:
            hooks = [listen(self.method.online, heard.online), listen_before(self.method.online.projector)]
        if self.method.scored is not None:
            hooks.append(listen(self.method.scored[0], heard.scores))
        if target is not None:
            hooks.append(listen(target.module, heard.target))
        try:
            for terms in self.method.loss(views, at):
                listening = False  # what a term computes, or the backward pass computes again, is no projection
                for regularizer in self.regularizers:
                    terms = terms | regularizer.terms(self.method, views, heard, self.parts)
                heard.before += len(heard.online)
                heard.turn += 1
                for found in (heard.online, heard.target, heard.scores, heard.features):
                    found.clear()
                yield terms
                del terms
                listening = True
        finally:
            for hook in hooks:
                hook.remove()

    def predicted_pixels(self, views: Views) -> Tensor | None:
        return self.method.predicted_pixels(views)

    def before_update(self, at: Progress) -> None:
        self.method.before_update(at)

    def after_update(self, at: Progress) -> None:
        self.method.after_update(at)

    def after_skip(self) -> None:
        self.method.after_skip()


def projection(z: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The projection itself; of a Gaussian, its mean."""
    return z[0] if isinstance(z, tuple) else z


def kinds_of(method: Method, recipe: Recipe) -> list[View]:
    """Every kind of view that a step makes: the method's, and those of the recipe's regularizers."""
    return [*method.views, *(kind for r in recipe.regularizers for kind in r.views(method))]


def canvas_size(method: Method, recipe: Recipe) -> int:
    """The longest short side of the canvases of a run: the recipe's, or as many pixels as its largest view can use."""
    return recipe.data.canvas or resolution(kinds_of(method, recipe))


def inner(method: Method) -> Method:
    """The method without the terms that were added to it."""
    return method.method if isinstance(method, Regularized) else method
