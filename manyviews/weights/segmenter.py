"""A model that segments: an encoder, a linear layer on its map of features, and classes with their colors."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews import __version__, checkpoint
from manyviews.backbones import Encoder
from manyviews.data import Reading, Source
from manyviews.data.decode import BadImage, as_rgb
from manyviews.errors import UserError, printable
from manyviews.evaluation.dense.maps import encode_all, map_of, resized
from manyviews.weights.load import Pretrained
from manyviews.weights.showing import preprocessing

FACTS, WEIGHTS, README = "model.json", "model.safetensors", "README.md"

_PLACE = "segmentation_head"
_GOLDEN = 0.618034  # of the circle of hues, from one class to the next


class Map(nn.Module):
    """The map of features of a timm model, as programs run it: `b 3 h w` to `b d h/stride w/stride`."""

    def __init__(self, encoder: Encoder, stride: int, stages: Sequence[int] | None) -> None:
        super().__init__()
        self.model: Any = encoder.model
        self.stride, self.stages = stride, None if stages is None else list(stages)
        self.prefix: int = getattr(encoder.model, "num_prefix_tokens", 0)
        self.last = getattr(encoder.model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.stride, x.shape[-1] // self.stride
        if self.stages is None:
            found: Tensor = self.model.forward_features(x)
            if found.ndim == 4:
                return found.permute(0, 3, 1, 2) if self.last else found
            patches: Tensor = found[:, self.prefix :].transpose(1, 2).reshape(len(found), -1, h, w)
            return patches
        norm = {"norm": True} if hasattr(self.model, "blocks") and hasattr(self.model, "norm") else {}
        maps = self.model.forward_intermediates(
            x, indices=self.stages, stop_early=True, intermediates_only=True, output_fmt="NCHW", **norm
        )
        return torch.cat([F.interpolate(m, size=(h, w), mode="bilinear") for m in maps], 1)


class Segments(nn.Module):
    """A linear layer on a map, and what it says: `b d h w` to probabilities, `b classes h*stride w*stride`."""

    def __init__(self, head: nn.Module, stride: int) -> None:
        super().__init__()
        self.head, self.stride = head, stride

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = F.interpolate(self.head(x), scale_factor=float(self.stride), mode="bilinear")
        return logits.softmax(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmenter(Pretrained):
    """An encoder and a layer that gives each pixel a class. Verbs that take weights take it, and see its encoder.

    Attributes:
        head: a map of features, `b d h w`, to logits, `b classes h w`: a convolution of one pixel.
        stride: pixels from one position of the map to the next.
        stages: stages of the network whose maps are used, counted from the front; None for the last map.
        short: short side in pixels at which images are looked at; None for their own, at most 512.
        classes: names of the classes, in the order of the masks' values.
        colors: red, green and blue of each class, for masks that people look at.
        facts: numbers on validation and test images and more, JSON-able.
    """

    head: nn.Module
    stride: int
    stages: tuple[int, ...] | None
    short: int | None
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    facts: Mapping[str, Any]

    task = "segmentation"
    temperature = 1.0

    @property
    def top(self) -> nn.Module:
        return Segments(self.head, self.stride)

    @property
    def outputs(self) -> str:
        return "probabilities"

    def inner(self, encoder: Encoder) -> nn.Module:
        """What of an encoder a program runs before `top`."""
        return Map(encoder, self.stride, self.stages)

    def masks(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """The class of each pixel, uint8 `h w`, at the images' own sizes, in exact float32."""
        look = preprocessing(self)
        device = look["device"]
        encoder, head = self.encoder.to(device), self.head.to(device)
        assert isinstance(encoder, Encoder)
        maps: Any = _Looking(encoder, self.stride, self.stages)
        pixels = [resized(image, self.short, self.stride) for image in images]
        found = []
        for image, x in zip(images, encode_all(maps, pixels, look["mean"], look["std"], device), strict=True):
            with torch.no_grad():
                logits = F.interpolate(head(x[None]), size=(image.height, image.width), mode="bilinear")[0]
            found.append(logits.argmax(0).to(torch.uint8).cpu().numpy())
        return found

    def predict(self, source: Source, i: int) -> np.ndarray:
        """The mask of image `i` of a source. Raises BadImage if it cannot be read."""
        return self.masks([as_rgb(source.load(i))])[0]


class _Looking(nn.Module):
    """The map of an encoder with all its parts, as in training."""

    def __init__(self, encoder: Encoder, stride: int, stages: Sequence[int] | None) -> None:
        super().__init__()
        self.encoder, self._how = encoder, (stride, stages)

    def forward(self, x: Tensor) -> Tensor:
        return map_of(self.encoder, x, *self._how)


def palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """A color for each class, unlike its neighbors': hues in steps of the golden ratio; the first is black."""
    found = [(0, 0, 0)]
    for k in range(1, classes):
        r, g, b = colorsys.hsv_to_rgb((k * _GOLDEN) % 1, 0.75 if k % 2 else 0.45, 0.95 if k % 3 else 0.7)
        found.append((round(255 * r), round(255 * g), round(255 * b)))
    return tuple(found[:classes])


def picture(mask: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """A mask, uint8 `h w`, as an image whose values are the classes and whose palette has their colors."""
    image = Image.fromarray(mask)
    image.putpalette([value for color in colors for value in color])
    return image


# -- a folder ------------------------------------------------------------------------------------------------------


def write(model: Segmenter, out: Path) -> None:
    """Write a model to a new folder, whole or not at all."""
    with checkpoint.new_folder(out) as part:
        checkpoint.save_tensors(part / WEIGHTS, tensors(model), {})
        checkpoint.write_text(part / FACTS, json.dumps(facts_of(model), indent=2))
        lines = (
            f"# {printable(model.facts.get('title', 'A model that segments'), 80)}",
            "",
            f"{len(model.classes)} classes: {printable(', '.join(model.classes), 400)}.",
            "",
            "`manyviews predict` writes masks. Without manyviews: `manyviews export` writes ONNX or torch.export.",
            "",
        )
        checkpoint.write_text(part / README, "\n".join(lines))


def tensors(model: Segmenter) -> dict[str, Tensor]:
    """The encoder's weights under timm's names, and those of the head."""
    assert isinstance(model.encoder, Encoder)
    found = {k: v.detach().cpu() for k, v in model.encoder.model.state_dict().items()}
    return found | {f"{_PLACE}.{k}": v.detach().cpu() for k, v in model.head.state_dict().items()}


def facts_of(model: Segmenter) -> dict[str, Any]:
    """What model.json says."""
    assert isinstance(model.encoder, Encoder)
    return {
        "library": "manyviews",
        "version": __version__,
        "task": "segmentation",
        "classes": model.classes,
        "colors": model.colors,
        "stride": model.stride,
        "stages": model.stages,
        "short_side": model.short,
        "encoder": model.encoder.spec,
        "preprocessing": {"size": model.test_size, "mean": model.mean, "std": model.std, "range": (0, 1)},
        **({} if model.reading is None else {"reading": model.reading.to_dict()}),
        **model.facts,
    }


_OWN = {
    *("library", "version", "task", "classes", "colors", "stride", "stages", "short_side", "encoder"),
    *("preprocessing", "reading"),
}


def read(folder: Path, facts: Mapping[str, Any]) -> Segmenter:
    """A model from its folder and what its model.json says.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        look, spec, classes = facts["preprocessing"], facts["encoder"], tuple(facts["classes"])
        colors = tuple((int(r), int(g), int(b)) for r, g, b in facts["colors"])
        how = int(facts["stride"]), facts["stages"], facts["short_side"]
        mean, std, size = tuple(look["mean"]), tuple(look["std"]), int(look["size"])
        reading = Reading.from_dict(facts["reading"]) if "reading" in facts else None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / FACTS} is no description of a model ({e}): adapt again.") from e
    encoder = Encoder.from_spec(spec)
    found, _ = checkpoint.load_tensors(folder / WEIGHTS)
    own = {k.removeprefix(f"{_PLACE}."): v for k, v in found.items() if k.startswith(f"{_PLACE}.")}
    encoder.load_weights({k: v for k, v in found.items() if not k.startswith(f"{_PLACE}.")})
    try:
        head = nn.Conv2d(own["weight"].shape[1], len(classes), 1).eval()
        head.load_state_dict(own)
    except (RuntimeError, KeyError) as e:
        raise UserError(f"{folder / WEIGHTS} does not fit {FACTS} beside it: {printable(e, 200)}") from e
    return Segmenter(
        encoder=encoder.eval(),
        mean=mean,
        std=std,
        test_size=size,
        name=str(folder),
        reading=reading,
        head=head,
        stride=how[0],
        stages=None if how[1] is None else tuple(how[1]),
        short=how[2],
        classes=classes,
        colors=colors,
        facts={k: v for k, v in facts.items() if k not in _OWN},
    )


def write_masks(
    model: Segmenter, source: Source, place: Callable[[int], Path], tell: Callable[[int], object]
) -> tuple[dict[str, int], dict[int, str]]:
    """Write a mask of each image that has none yet.

    Args:
        model: the model.
        source: the images.
        place: where the mask of an image belongs.
        tell: told the number of images done.

    Returns:
        number of images that show each class, of those that were written now; why images cannot be read, by position.
    """
    counts, problems = dict.fromkeys(model.classes, 0), dict[int, str]()
    for i in range(len(source)):
        path = place(i)
        if not path.exists():
            try:
                mask = model.predict(source, i)
            except BadImage as e:
                problems[i] = e.reason
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(mask, model.colors)
            checkpoint.write_atomically(path, lambda part, image=image: image.save(part, "PNG"))  # type: ignore[misc]
            for k in np.unique(mask):
                counts[model.classes[k]] += 1
        tell(i + 1)
    return counts, problems
