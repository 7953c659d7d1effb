"""Weights that keep the first layers of the projector with which they were trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from manyviews.backbones import Encoder
from manyviews.backbones.neck import described, place_of
from manyviews.engine.build import encoder_facts, recipe_now, trained_method
from manyviews.engine.folder import RECIPE, RunFolder
from manyviews.errors import UserError
from manyviews.evaluation.protocols.projector_layers import cut, projector_of
from manyviews.weights.load import Pretrained


def with_head_layers(run: str | Path | Pretrained, layers: int) -> Pretrained:
    """The encoder of a run and the first layers of its projector, as one encoder.

    A layer is a linear layer with the norm and the activation that follow it. Fine-tuning a network from the first
    layer of a head of three is the second stage of SimCLR v2 (Chen et al. 2020, section 2).

    Args:
        run: the folder of a run, whose checkpoint holds the projector.
        layers: how many, 1 or more.

    Raises:
        UserError: no run, a run without a checkpoint or such a projector, or one with fewer layers.
    """
    if isinstance(run, Pretrained) or not (Path(run) / RECIPE).is_file():
        name = run.name if isinstance(run, Pretrained) else run
        raise UserError(
            f"{name} is no folder of a run, and only a run keeps its projector: leave out --from-head-layer."
        )
    if layers < 1:
        raise UserError(f"--from-head-layer is 1 or more, not {layers}; without it, the whole projector is left out.")
    folder = RunFolder(Path(run))
    if not folder.checkpoint.exists():
        raise UserError(f"The run in {run} has no checkpoint, which holds its projector: leave out --from-head-layer.")
    method, saved = trained_method(folder)
    recipe = recipe_now(folder)
    projector = projector_of(method)
    parts = cut(projector.layers)
    if projector.inputs is not None:
        raise UserError(f"The projector of {run} does not take the encoder's features: leave out --from-head-layer.")
    if layers > len(parts):
        raise UserError(f"The projector of {run} has {len(parts)} layers: --from-head-layer is at most that.")
    neck = nn.Sequential(*(layer for part in parts[:layers] for layer in part))
    encoder = recipe.adaptation.finish(method.kept_encoder)
    facts = encoder_facts(encoder, recipe, saved["step"])
    place = place_of(encoder.model)
    found = Encoder.from_spec({**encoder.spec, "neck": described(neck)})
    found.model.load_state_dict({**encoder.model.state_dict(), **{f"{place}.{k}": v for k, v in _dense(neck).items()}})
    from manyviews.weights.load import load

    return replace(
        load(run), encoder=found.eval(), name=f"{run}, layer {layers} of its head", test_size=facts["test_size"]
    )


def _dense(neck: nn.Sequential) -> dict[str, object]:
    """The state of the layers that `described` keeps, by their new numbers."""
    kept = nn.Sequential(*(layer for layer in neck if not isinstance(layer, nn.Identity)))
    return dict(kept.state_dict())
