"""Shapes in the docstrings of objectives are true, and other shapes are refused instead of broadcast.

Tensors are made as `Args` says; each letter is an axis of a size of its own, so axes that are mixed up fail.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from manyviews import objectives

SIZES = {"b": 4, "n": 6, "m": 3, "k": 5, "d": 7, "K": 8, "p": 10, "size": 9}
SCALARS: dict[str, Any] = {"temperature": 0.5, "epsilon": 0.5, "iterations": 3, "log_scale": torch.tensor(0.5)}
SCALARS |= {"teacher_temperature": 0.5}
"""Arguments that have no shape, by name."""
ELSEWHERE = {"patchify", "unpatchify", "hog", "latent_error", "layer_average", "sparsity", "gumbel_softmax"}
ELSEWHERE |= {"code_divergence"}
"""Functions of images, and of tensors of any shape: see the other tests."""


def section(f: Callable[..., Any], name: str) -> str:
    found = re.search(rf"^{name}:\n((?:    .*\n?|\n)+)", inspect.cleandoc(f.__doc__ or ""), re.MULTILINE)
    return found[1] if found else ""


def axes(text: str) -> tuple[str, ...]:
    """The first shape in backticks."""
    return next(words for quoted in re.findall(r"`([^`]+)`", text) if set(words := tuple(quoted.split())) <= {*SIZES})


def arguments(f: Callable[..., Any]) -> dict[str, str]:
    """The docstring's words on each required argument; two names may share a description."""
    items = re.findall(r"^    ([\w, ]+): (.*(?:\n        .*)*)", section(f, "Args"), re.MULTILINE)
    texts = {name.strip(): text for names, text in items for name in names.split(",")}
    needed = [k for k, p in inspect.signature(f).parameters.items() if p.default is p.empty]
    return {k: texts[k] for k in needed}


def tensor(text: str, sizes: dict[str, int]) -> torch.Tensor:
    shape = [sizes[a] for a in axes(text)]
    if "int64" in text:
        return torch.zeros(shape, dtype=torch.int64)
    return torch.rand(shape) < 0.5 if re.search(r"\bbool\b|true (?:where|for)", text) else torch.rand(shape)


def made(f: Callable[..., Any], odd: str = "", axis: str = "") -> dict[str, Any]:
    """Arguments of the shapes that the docstring names; in one of them, one axis is longer."""
    longer = SIZES | {axis: SIZES.get(axis, 0) + 1}
    return {
        k: SCALARS[k] if k in SCALARS else tensor(text, longer if k == odd else SIZES)
        for k, text in arguments(f).items()
    }


CHECKED = sorted({*objectives.__all__} - ELSEWHERE)


@pytest.mark.parametrize("name", CHECKED)
def test_shapes_are_what_the_docstring_says(name: str):
    f = getattr(objectives, name)
    returns = section(f, "Returns")
    wanted = () if returns.strip().lower().startswith("a scalar") else tuple(SIZES[a] for a in axes(returns))
    assert f(**made(f)).shape == wanted


# Correlations are of any two spaces.
@pytest.mark.parametrize("name", [name for name in CHECKED if name != "cross_correlation"])
def test_tensors_that_do_not_belong_together_are_refused(name: str):
    f = getattr(objectives, name)
    shapes = {k: axes(text) for k, text in arguments(f).items() if k not in SCALARS}
    for k, own in shapes.items():
        for axis in own:
            if sum(axis in others for others in shapes.values()) > 1:
                with pytest.raises((RuntimeError, ValueError, IndexError)):
                    f(**made(f, k, axis))
                    pytest.fail(f"{name} takes {k} with one more {axis} than its other arguments have")
