"""BEiT: name the visual token of each hidden patch.

A tokenizer, learned before, gives each patch of an image one of k names. A learned token takes the place of blocks of
patches, and a linear layer on the encoder's features names the hidden ones. This is a classification.

BEiT: BERT Pre-Training of Image Transformers, Bao et al. 2022.

    L = - mean over images of  mean over the masked patches of  log p( true name | visible patches )

The tokenizer is a `dvae` run, frozen; its weights are a part of this run's checkpoint. The authors' tokenizer learned
from 250 million images, and saw each at half the size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyviews.backbones import Encoder, take
from manyviews.checkpoint import load_tensors
from manyviews.errors import UserError
from manyviews.methods import Method, Terms, exactly
from manyviews.methods.dvae import Tokenizer
from manyviews.objectives import token_error
from manyviews.settings import Component, Recipe, from_json
from manyviews.types import Progress
from manyviews.views import Blocks, Crop, Global, Masking, Views

_WEIGHTS = "checkpoint.safetensors"


class BEiT(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer or a Swin, trained and kept.
        view: the view type, one of each image.
        masking: the hidden patches.
        tokenizer: folder of a `dvae` run with patches of the same size; "" for random weights, which group patches by
            simple traits.
        network: backbone of the tokenizer, taken from its run; None for one like the encoder.
        codes: number of tokens, taken from the tokenizer's run.
    """

    online = None  # type: ignore[assignment]

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.08, 1.0), color=None),
        masking: Masking = Blocks((0.4, 0.4), p=1.0),
        tokenizer: str = "",
        network: Component | None = None,
        codes: int = 8192,
    ) -> None:
        super().__init__()
        self.views, self.encoder, self.masking = (exactly(view, 1, "BEiT"),), encoder, masking
        made = Encoder.from_spec(encoder.spec) if network is None else Encoder(network.name, **network.settings)
        if made.channels != encoder.channels:
            raise UserError(f"The tokenizer takes images of {made.channels} channels, not of {encoder.channels}.")
        if made.grid(view.size) != encoder.grid(view.size):
            raise UserError(
                f"The tokenizer {made.name} has patches of {made.patch_size} pixels, and {encoder.name} of "
                f"{encoder.patch_size}: train one with patches of the same size."
            )
        self.tokenizer = Tokenizer(made, codes).requires_grad_(False)
        self.token = nn.Parameter(0.02 * torch.randn(encoder.token_dim))
        self.head = nn.Linear(encoder.patch_dim, codes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        # A run that goes on has these weights in its checkpoint, and needs the folder no more.
        self._folder = tokenizer
        if tokenizer and (Path(tokenizer) / _WEIGHTS).is_file():
            self.tokenizer.load_state_dict(_weights(Path(tokenizer)))

    @classmethod
    def settle(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        if not settings["tokenizer"] or settings["network"] is not None:
            return settings
        folder = Path(settings["tokenizer"]).expanduser().absolute()
        try:
            recipe = from_json((folder / "recipe.json").read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(f"The tokenizer {folder} is not the folder of a run ({e.strerror}).") from e
        if not isinstance(recipe, Recipe) or recipe.method.name != "dvae":
            raise UserError(f"The run in {folder} is not a tokenizer: give the folder of a dvae run.")
        _weights(folder)
        network = Component(recipe.backbone.name, {**recipe.backbone.settings, "pretrained": False})
        codes = recipe.method.settings["codes"]
        return {**settings, "tokenizer": str(folder), "network": network, "codes": codes}

    @property
    def kept_encoder(self) -> Encoder:
        return self.encoder

    def train(self, mode: bool = True) -> BEiT:
        super().train(mode)
        self.tokenizer.eval()
        return self

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        if self._folder and not self.tokenizer.loaded:
            raise UserError(f"There is no tokenizer in {self._folder}: give the folder of a dvae run.")
        x, mask = views[self.views[0].name, 0], self.mask(views)
        (where,) = mask.blocks
        tokens = self.tokenizer.tokens(x, views.mean, views.std).gather(1, where)
        features = self.encoder.features(x, hide=mask.hidden, token=self.token).patches
        yield {"tokens": token_error(self.head(take(features, where)), tokens, mask.hidden.gather(1, where))}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tokenizer's weights in the checkpoint of a run. Raises UserError if there are none."""
    start = "method.tokenizer."
    found = {k.removeprefix(start): v for k, v in load_tensors(folder / _WEIGHTS)[0].items() if k.startswith(start)}
    if not found:
        raise UserError(f"The checkpoint in {folder} holds no tokenizer.")
    return found
