"""Runs that nobody trained, and one evaluation, for all tests of reports."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from manyviews import recipes
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine.build import build_method
from manyviews.evaluation import evaluate

# Names and labels that markup, formulas, terminals and encodings would trip over.
HOSTILE = ["[red]$x", "[/bold] \x1b[31m$\\frac{1}{$", "\udcff\n\u65e5\u672c" + "x" * 300]


def untrained_run(folder, recipe="simclr_tiny", images=None, finished=True, log=(), seed=0):
    """What reports read of a `manyviews.Run`, without an hour of training."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    chosen = recipes.get(recipe)
    method = build_method(chosen).eval()
    return SimpleNamespace(
        folder=folder,
        recipe=chosen,
        recipe_now=chosen,
        facts={"data": images, "images": 60, "machine": "a machine", "started": "2026-01-01T00:00:00+00:00"},
        log=list(log),
        summary={"seconds": 61.0, "bad_images": 2} if finished else None,
        encoder=method.kept_encoder,
        method=method,
    )


def stored(folder, number, report):
    """Write a report, as JSON text, to a run's evaluations."""
    where = folder / "evaluations" / str(number)
    where.mkdir(parents=True)
    (where / "report.json").write_text(report, encoding="utf-8")


@pytest.fixture(scope="session")
def source():
    """90 pictures of three gray classes with hostile names."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = (80 * labels[:, None, None, None] + rng.integers(0, 70, (90, 12, 12, 3))).astype(np.uint8)
    found = open_source((pixels, labels))
    return dataclasses.replace(found, annotate=lambda: (labels, HOSTILE))


@pytest.fixture(scope="session")
def report(source):
    """An evaluation of an untrained encoder by k-NN and a linear probe."""
    encoder = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))
    return evaluate(encoder, source, test_size=12, mean=(0.5,) * 3, std=(0.25,) * 3)
