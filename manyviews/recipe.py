"""Recipes: everything that decides a run, as frozen dataclasses.

A recipe prints, compares, saves as JSON and loads again as the same object; `override` changes one setting by its
dotted path. Recipes themselves are Python functions in `manyviews.recipes`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from manyviews import schedules
from manyviews.errors import UserError, require, unknown
from manyviews.schedules import Schedule, WarmupCosine
from manyviews.types import Backward
from manyviews.views import IMAGENET_MEAN, IMAGENET_STD, Strong, augmentations, compose, kinds

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Component:
    """Something chosen by name, with the keyword arguments it is built with.

    Attributes:
        name: a method's or a backbone's name.
        settings: keyword arguments of its constructor; those not given keep the constructor's defaults.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """How images reach the step.

    Attributes:
        canvas: side of the square uint8 canvas each image is decoded to, pixels.
        batch_size: images per optimizer step, over all ranks and accumulated parts.
        mean: per-channel mean of the inputs, in [0, 1].
        std: per-channel standard deviation of the inputs, in [0, 1].
        holdout: fraction of the images, at most 1,000, that is not trained on but observed.
        memory_gb: canvases are held in memory when they need at most this much, and at most half of what is free;
            else they are decoded each epoch.
    """

    canvas: int = 256
    batch_size: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    holdout: float = 0.05
    memory_gb: float = 6.0

    def __post_init__(self) -> None:
        for name in ("canvas", "batch_size"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(min(self.std) > 0, self, "std", "positive")
        require(0 <= self.holdout < 1, self, "holdout", "at least 0 and less than 1")


@dataclass(frozen=True)
class Optimizer:
    """How weights follow gradients.

    Attributes:
        name: the update rule.
        lr: base learning rate, for a batch of 256 unless `lr_scaling` is "constant".
        lr_scaling: the peak rate is `lr * batch/256` ("linear"), `lr * sqrt(batch/256)` ("sqrt") or `lr` ("constant").
        schedule: factor on the peak rate.
        weight_decay: decoupled for adamw and muon, added to the gradient for sgd and lars; biases and norms have none
            unless `decay_all`.
        momentum: of sgd, lars and muon.
        betas: of adamw, and of muon for biases and norms.
        clip: largest norm of the whole gradient; None leaves it.
        decay_all: whether biases and norms decay too.
    """

    name: Literal["adamw", "muon", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    lr_scaling: Literal["linear", "sqrt", "constant"] = "linear"
    schedule: Schedule = WarmupCosine()
    weight_decay: Schedule | float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    decay_all: bool = False

    def __post_init__(self) -> None:
        require(self.lr >= 0, self, "lr", "0 or more")
        require(0 <= self.momentum < 1, self, "momentum", "at least 0 and less than 1")
        require(all(0 <= b < 1 for b in self.betas), self, "betas", "at least 0 and less than 1")
        require(self.clip is None or self.clip > 0, self, "clip", "positive")


@dataclass(frozen=True)
class Step:
    """How a step is executed. But for `accumulate` and `sync_batchnorm`, nothing here changes what is learned, up to
    rounding and the draws of dropout.

    Attributes:
        precision: "auto" takes bfloat16 where the device computes faster in it.
        backward: "per_view" backpropagates each loss term as it is yielded, those of small views in groups that have
            fewer pixels than the largest view; "recompute" also recomputes every branch in the backward pass, for
            methods that couple the views; "joint" keeps everything until the end.
        accumulate: parts a rank's batch is split into; statistics over the batch then see one part at a time.
        sync_batchnorm: share BatchNorm statistics between ranks.
        compile: compile the encoder.
    """

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    backward: Backward = "per_view"
    accumulate: int = 1
    sync_batchnorm: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, self, "accumulate", "1 or more")


@dataclass(frozen=True)
class Monitor:
    """What is watched while training, and how often.

    Attributes:
        epochs: epochs between observations on held-out images; 0: at the start and the end only.
        steps: steps between log lines.
        checkpoint_minutes: minutes between checkpoints; one is also written at the end and when interrupted.
        loggers: where numbers go besides the run folder's log.
    """

    epochs: float = 5
    steps: int = 20
    checkpoint_minutes: float = 10
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    def __post_init__(self) -> None:
        require(self.epochs >= 0, self, "epochs", "0 or more")
        require(self.steps >= 1, self, "steps", "1 or more")
        require(self.checkpoint_minutes >= 0, self, "checkpoint_minutes", "0 or more")


@dataclass(frozen=True)
class Rescue:
    """A term that makes the easiest images of each batch harder ("Rescuing easy samples", Wang et al.), on any method.

    Attributes:
        scale: of the term in the loss, the paper's s.
        k: images that are rescued, of all in a batch; N/64 if None, but no fewer than 8 where there is BatchNorm.
        view: what they look like; RandAugment and a hole, at the size of the method's first view, if None.
    """

    scale: float
    k: int | None = None
    view: Strong | None = None

    def __post_init__(self) -> None:
        require(self.scale >= 0, self, "scale", "0 or more")
        require(self.k is None or self.k >= 2, self, "k", "2 or more")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but the images.

    Attributes:
        name: of the recipe it started from.
        method: a file name in `manyviews.methods`, with the settings that differ from the paper's defaults.
        backbone: a timm name, with `Encoder`'s settings.
        epochs: passes over the images.
        rescue: of easy images; None for none.
        test_size: side in pixels at which the encoder is evaluated.
        seed: of the weights, the order and the views.
    """

    name: str
    method: Component
    backbone: Component
    epochs: float
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    step: Step = Step()
    monitor: Monitor = Monitor()
    rescue: Rescue | None = None
    test_size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.epochs < float("inf"), self, "epochs", "more than 0 and finite")
        require(self.test_size >= 1, self, "test_size", "1 or more")
        require(0 <= self.seed < 2**31, self, "seed", "at least 0 and less than 2**31")


# -- saving and loading ------------------------------------------------------------------------------------------

_OWN = (Component, Data, Optimizer, Step, Monitor, Rescue, Recipe)
_TYPES: dict[str, type] = {
    c.__name__: c
    for module in (schedules, kinds, compose, augmentations)
    for c in [*_OWN, *vars(module).values()]
    if isinstance(c, type) and dataclasses.is_dataclass(c)
}


def to_json(recipe: Any) -> str:
    """A recipe, or any part of one, as JSON text. Dataclasses carry their type's name under "is"."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {"is": type(x).__name__} | {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
        if isinstance(x, Mapping):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, (tuple, list)) else x

    return json.dumps(plain(recipe), indent=2)


def from_json(text: str) -> Any:
    """The object that `to_json` wrote. Only this module's known dataclasses are ever built."""

    def rich(x: Any) -> Any:
        if isinstance(x, dict) and "is" in x:
            name = x["is"]
            if name not in _TYPES:
                raise unknown("setting type", str(name), _TYPES)
            try:
                return _TYPES[name](**{k: rich(v) for k, v in x.items() if k != "is"})
            except TypeError as e:
                raise UserError(f"The saved recipe does not fit this version of manyviews: {name}: {e}.") from e
        if isinstance(x, dict):
            return {k: rich(v) for k, v in x.items()}
        return tuple(rich(v) for v in x) if isinstance(x, list) else x

    try:
        return rich(json.loads(text))
    except json.JSONDecodeError as e:
        raise UserError(f"This recipe is not JSON: {e}.") from e


# -- settings of something that is chosen by name ----------------------------------------------------------------


def settings(build: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a class's constructor, with annotations resolved."""
    hints = typing.get_type_hints(build.__init__)  # type: ignore[misc]
    signature = inspect.signature(build.__init__).parameters  # type: ignore[misc]
    return {k: p.replace(annotation=hints.get(k, Any)) for k, p in signature.items() if p.kind == p.KEYWORD_ONLY}


def complete(choice: Component, build: type, *, open_ended: bool = False) -> Component:
    """The choice with every default of its constructor written out, and its names and types checked.

    `open_ended` admits settings the constructor does not name (backbones hand them on to timm).
    """
    known = settings(build)
    for key, value in choice.settings.items():
        if key in known:
            check(value, known[key].annotation, f"{choice.name}.{key}")
        elif not open_ended:
            raise unknown(f"setting of {choice.name}", key, known)
    return Component(choice.name, {k: p.default for k, p in known.items()} | dict(choice.settings))


def check(value: Any, annotation: Any, where: str) -> Any:
    """The value itself, or a UserError when it does not fit the annotation."""
    if not _fits(value, annotation):
        wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
        wanted = str(wanted).replace("manyviews.schedules.", "").replace("manyviews.views.kinds.", "")
        raise UserError(f"Setting {where} must be {wanted.replace('typing.', '')}, not {value!r}.")
    return value


def _fits(value: Any, annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None:
        return value is None
    return isinstance(value, origin or annotation)


# -- overriding by dotted path -----------------------------------------------------------------------------------


def override(recipe: Recipe, path: str, value: Any) -> Recipe:
    """The recipe with the setting at `path` replaced by a value, or by what a string denotes.

    A path steps into fields, settings, positions of tuples, and view types by name: `optimizer.lr`,
    `method.temperature`, `backbone.name`, `method.tasks.local.count`, `data.mean.0`. A string is a Python literal, a
    schedule or view type such as `Cosine(0.99, 1.0)`, or a plain word.

    Raises:
        UserError: no such setting (with the nearest name), or a value of the wrong type.
    """
    if path == "method.name":
        raise UserError("A recipe's method cannot be replaced with --set: choose a recipe of the other method.")
    return typing.cast(
        Recipe, _replace(recipe, path.split("."), parse(value) if isinstance(value, str) else value, path)
    )


def _replace(node: Any, keys: list[str], new: Any, path: str) -> Any:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    if isinstance(node, Component) and key != "name":
        if rest and key not in node.settings:
            raise unknown(f"setting in '{path}'", key, node.settings)
        return Component(node.name, {**node.settings, key: _replace(node.settings.get(key), rest, new, path)})
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = typing.get_type_hints(type(node))
        names = [f.name for f in dataclasses.fields(node)]
        if key not in names:
            raise unknown(f"setting in '{path}'", key, names)
        if rest and getattr(node, key) is None:
            whole = path.removesuffix("." + ".".join(rest))
            kinds = [a for a in typing.get_args(hints[key]) if dataclasses.is_dataclass(a)]
            advice = f'; set it as a whole, with --set "{whole}={_call(kinds[0])}"' if kinds else ""
            raise UserError(f"Setting {path}: {whole} is none in this recipe{advice}.")
        value = _replace(getattr(node, key), rest, new, path)
        if isinstance(value, str) and typing.get_origin(hints[key]) is tuple:
            value = (value,)  # one word where several may stand
        value = check(value, hints[key], path)
        try:
            return dataclasses.replace(node, **{key: value})
        except ValueError as e:
            raise UserError(f"Setting {path}: {e}") from e
    if isinstance(node, tuple):
        names = [str(getattr(v, "name", i)) for i, v in enumerate(node)]
        if key not in names and not (key.isdigit() and int(key) < len(node)):
            raise unknown(f"part in '{path}'", key, names)
        at = names.index(key) if key in names else int(key)
        return (*node[:at], _replace(node[at], rest, new, path), *node[at + 1 :])
    raise UserError(f"Setting {path}: {node!r} has no part '{key}'.")


def _call(kind: Any) -> str:
    """How a value of a type is written, with what it must be given."""
    needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return f"{kind.__name__}({', '.join([*(f'{p.name}=...' for p in needed), '...'])})"


def parse(text: str) -> Any:
    """The value of a Python literal, of a schedule or view type called with literals, or the text itself.

    Nothing is evaluated: the text is parsed, and only known dataclasses are built.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return text
    words = {"true": True, "false": False, "none": None}
    if isinstance(tree, ast.Name):
        return words.get(text.strip().lower(), text.strip())

    def build(x: ast.expr) -> Any:
        if isinstance(x, (ast.Tuple, ast.List)):
            return tuple(build(e) for e in x.elts)
        if isinstance(x, ast.Call) and isinstance(x.func, ast.Name):
            if x.func.id not in _TYPES:
                known = [n for n in _TYPES if _TYPES[n] is Rescue or _TYPES[n] not in _OWN]
                raise unknown("schedule or view type", x.func.id, known)
            kind = _TYPES[x.func.id]
            args, settings = map(build, x.args), {str(k.arg): build(k.value) for k in x.keywords}
            try:
                given = inspect.signature(kind).bind(*args, **settings).arguments
                hints = typing.get_type_hints(kind)
                return kind(**{name: check(v, hints[name], f"{x.func.id}.{name}") for name, v in given.items()})
            except (TypeError, ValueError) as e:
                raise UserError(f"'{text}' is not a valid value: {e}.") from e
        try:
            return ast.literal_eval(x)
        except (TypeError, ValueError):
            return ast.get_source_segment(text.strip(), x)

    return build(tree)


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The settings in which two recipes differ: dotted path, value in `a`, value in `b`."""

    def leaves(x: Any, path: str) -> Iterable[tuple[str, Any]]:
        if isinstance(x, Component):
            yield f"{path}.name", x.name
            for k, v in x.settings.items():
                yield f"{path}.{k}", v
        elif isinstance(x, _OWN):
            for f in dataclasses.fields(x):
                yield from leaves(getattr(x, f.name), f"{path}.{f.name}")
        else:
            yield path, x

    old, new = dict(leaves(a, "")), dict(leaves(b, ""))
    keys = [*old, *(k for k in new if k not in old)]
    return [(k.lstrip("."), old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]
