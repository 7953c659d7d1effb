"""What a model says about one picture: classes, the nearest known images, and what it looked at."""

from __future__ import annotations

import base64
import io
import math
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from manyviews.backbones import Encoder, patch_features
from manyviews.data import Source
from manyviews.data.decode import decode
from manyviews.data.reading import Reading
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import frozen, normalize, test_transform
from manyviews.evaluation.index import Index
from manyviews.reporting import single
from manyviews.reporting.page.pictures import attention, components, glow
from manyviews.weights import Pretrained
from manyviews.weights.model import Model
from manyviews.weights.showing import preprocessing

_SIDE = 320  # pixels of the pictures that are sent


@dataclass(frozen=True, eq=False)
class Look:
    """A model, and images to find neighbors among.

    Attributes:
        weights: an adapted model, or an encoder alone, which names no classes.
        known: images and their index; None without.
        most_pixels: pixels of the largest picture that is decoded.
    """

    weights: Pretrained
    known: tuple[Source, Index] | None = None
    most_pixels: int = 50_000_000
    # One picture at a time: a small machine answers two sooner one after the other, and memory stays bounded.
    _turn: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """What the model is, as JSON can hold it."""
        encoder = self.weights.encoder
        return {
            "name": printable(self.weights.name, 200),
            "backbone": encoder.name,
            "dimensions": encoder.embed_dim,
            "test_size": self.weights.test_size,
            "classes": [printable(c, 200) for c in self.weights.classes] if isinstance(self.weights, Model) else [],
            "images": 0 if self.known is None else len(self.known[0]) - len(self.known[1].bad),
        }

    def at(self, content: bytes, k: int = 5) -> dict[str, Any]:
        """Everything about one picture.

        Args:
            content: an image file.
            k: classes and neighbors, at most.

        Returns:
            classes: the k likeliest, {"name", "probability"}, best first; empty for an encoder without a head.
            known: whether it is as near to the training images as most validation images; None without a head.
            neighbors: {"name", "similarity", "picture"}, the nearest first; empty without images.
            pictures: {"seen", "parts", "attention"}: what the encoder was shown, its patches in false colors, and what
                its class token attends to, as data URIs; the last two only for networks that have them.

        Raises:
            BadImage: the file is no image, damaged, or too large.
        """
        reading = self.weights.reading or Reading(len(self.weights.mean))
        reading = replace(reading, max_pixels=min(self.most_pixels, reading.max_pixels))
        with self._turn:
            picture, _ = decode(content, at_least=None, reading=reading)
            return self._answers(test_transform(picture, self.weights.test_size), k)

    def _answers(self, shown: np.ndarray, k: int) -> dict[str, Any]:
        how = preprocessing(self.weights)
        device = how["device"]
        encoder = self.weights.encoder.to(device)
        x = normalize(torch.from_numpy(shown[None]).to(device), how["mean"], how["std"])
        with frozen(encoder):
            features = encoder(x).float()
        found: dict[str, Any] = {"classes": [], "known": None, "neighbors": [], "pictures": {"seen": _uri(_rgb(shown))}}
        model = self.weights
        if isinstance(model, Model):
            with frozen(model.head):
                probability = model.top.to(device)(features)[0].cpu()
            value, index = probability.topk(min(k, len(model.classes)))
            found["classes"] = [
                {"name": printable(model.classes[i], 200), "probability": round(p, 6)}
                for i, p in zip(index.tolist(), value.tolist(), strict=True)
            ]
            found["known"] = bool(model.kept.distance(features.clone())[0] <= model.kept.threshold)
        if self.known is not None:
            source, images = self.known
            near, positions = images.search(features.clone(), k, device)
            for similarity, i in zip(near[0].tolist(), positions[0].tolist(), strict=True):
                one = single.picture(source, i)
                neighbor = {"name": one["name"], "similarity": round(similarity, 6), "src": str(one["src"])}
                found["neighbors"].append(neighbor)
        if isinstance(encoder, Encoder):
            found["pictures"] |= _inside(encoder, x)
        return found


def _inside(encoder: Encoder, x: torch.Tensor) -> dict[str, str]:
    """Patches in false colors, and the class token's attention, of networks that have them."""
    try:
        with frozen(encoder):
            patches = patch_features(encoder, x).float().cpu()
            heads = attention(encoder, x)
    except UserError:
        return {}
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1] or side < 2:
        return {}
    found = {"parts": _uri(components(patches).reshape(side, side, 3))}
    if heads is not None:
        found["attention"] = _uri(glow(heads.float().mean(1).cpu().reshape(1, side, side))[0])
    return found


def _rgb(shown: np.ndarray) -> np.ndarray:
    """Pixels `c s s` for people, `s s 3`."""
    seen = shown[:3] if len(shown) > 2 else shown[[0, 0, 0]]
    return np.ascontiguousarray(seen.transpose(1, 2, 0))


def _uri(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if image.width < 64 else Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
