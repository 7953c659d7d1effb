"""An index of images: their features in parts on disk, made once and searched exactly, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit

from manyviews.checkpoint import facts_of, load_tensors, save_tensors
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation.features import Progress, check_finite, encode, test_images

PART = 4096
"""Images of a part: an interruption costs no more, and a search holds no more in memory."""


@dataclass(frozen=True)
class Index:
    """Features of the images of a source, of length one, in float16.

    Attributes:
        parts: files, each with `x` (float16, `n d`) and `index` (int64, `n`, positions in the source).
        bad: (where, reason) for each image that could not be read.
    """

    parts: tuple[Path, ...]
    bad: list[tuple[str, str]]

    def search(self, queries: Tensor, k: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The nearest images by cosine similarity.

        Args:
            queries: float, `m d`, of any length.
            k: images for each query; fewer if the index holds fewer.
            device: where to compute.

        Returns:
            Similarities (float32, `m k`, descending) and positions in the source (int64, `m k`). They are exact up to
            the rounding of the index, about 1e-4.
        """
        q = unit(queries.float(), dim=1).to(device)
        best, where = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=device)
        for x, index in self._blocks():
            near = q @ x.to(device).float().T
            near, column = near.topk(min(k, near.shape[1]), dim=1)
            best, where = torch.cat([best, near], 1), torch.cat([where, index.to(device)[column]], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        return best.cpu(), where.cpu()

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.parts:
            tensors, _ = load_tensors(part)
            if len(tensors["x"]):
                yield tensors["x"], tensors["index"]


def build(
    encoder: nn.Module,
    source: Source,
    folder: Path,
    *,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Index:
    """Make the index of a source in a folder, or go on with one that was begun.

    Args:
        encoder: `b c test_size test_size` to `b d`.
        source: images. Whoever calls makes sure that the folder is of these images and this encoder.
        folder: where its parts are.
        test_size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder.
        progress: called after each batch that is read.

    Raises:
        UserError: no image could be read, or features are not finite.
    """
    encoder.to(device)
    parts: list[Path] = []
    bad: list[tuple[str, str]] = []
    for start in range(0, len(source), PART):
        path = folder / f"{start:012d}.safetensors"
        part = range(start, min(start + PART, len(source)))
        if not path.exists():
            found, index, broken = [], list[int](), list[tuple[str, str]]()
            for pixels, good, reasons in test_images(source.subset(part), test_size):
                if good:
                    found.append(unit(encode(encoder, pixels, mean=mean, std=std, device=device), dim=1).half().cpu())
                index += [start + i for i in good]
                broken += [(source.where(start + i), reason) for i, reason in reasons.items()]
                if progress is not None:
                    progress(start + len(index) + len(broken), len(source))
            x = torch.cat(found) if found else torch.empty(0, 0, dtype=torch.float16)
            check_finite(x)
            save_tensors(path, {"x": x, "index": torch.tensor(index, dtype=torch.int64)}, {"bad": broken})
        parts.append(path)
        facts = facts_of(path)
        bad += [(str(where), str(reason)) for where, reason in facts["bad"]]
    if len(bad) == len(source):
        reason = f" (the first: {bad[0][1]})" if bad else ""
        raise UserError(f"None of the {len(source)} images of {source.name} could be read{reason}.")
    return Index(tuple(parts), bad)
