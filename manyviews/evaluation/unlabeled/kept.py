"""What an encoder keeps of the one that it started as: its features layer by layer, and its weights.

Three numbers: linear centered kernel alignment of the features (CKA; Similarity of Neural Network Representations
Revisited, Kornblith et al. 2019), which rotations and a common scale do not change; their cosine, which rotations
change; and the distance of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manyviews.backbones import Encoder, by_layer
from manyviews.evaluation.features import frozen, normalize


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two sets of features of the same images, `n d` and `n e`, in [0, 1]; 1 for equal ones.

    Kornblith et al. 2019, equation 3 with a linear kernel: |B'A|^2 / (|A'A| |B'B|), Frobenius norms, centered columns.
    The smaller of the matrices of images or of dimensions is formed, in float64. Constant features are alike (1) to
    constant ones, and not (0) to others.
    """
    a, b = ((x - x.mean(0)).double() for x in (a.double(), b.double()))
    if len(a) < max(a.shape[1], b.shape[1]):
        k, m = a @ a.T, b @ b.T
        cross, own, other = (k * m).sum(), k.norm(), m.norm()
    else:
        cross, own, other = (b.T @ a).square().sum(), (a.T @ a).norm(), (b.T @ b).norm()
    if own == 0 or other == 0:
        return float(own == other)
    return float(cross / (own * other))


def cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine similarity of the features of each image, `n d` both."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1).mean())


def moved(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, float]:
    """The distance of weights, relative to their norm before: of each layer, and of all under "".

    Args:
        before: weights by name. Those that are not floats, and the statistics of BatchNorm, do not count.
        now: the same, later.

    Returns:
        By layer: a block such as "blocks.3" or "layer1.0", or the first word of the name.
    """
    apart: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, x in before.items():
        if not x.is_floating_point() or name.endswith(("running_mean", "running_var")):
            continue
        first, _, rest = name.partition(".")
        second = rest.partition(".")[0]
        y = now[name].to(x.device)
        for layer in ("", f"{first}.{second}" if second.isdigit() else first):
            apart[layer] = apart.get(layer, 0.0) + float((y.double() - x.double()).square().sum())
            size[layer] = size.get(layer, 0.0) + float(x.double().square().sum())
    return {layer: (apart[layer] / size[layer]) ** 0.5 if size[layer] else 0.0 for layer in apart}


def layers(
    encoder: Encoder,
    pixels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> dict[str, Tensor]:
    """Features of images in memory, uint8 `n c h w`: of every block or stage by its name, and the pooled ones under "".

    Those of a layer are its class token where the encoder pools by one, else averages over all places; float32 `n d`,
    on the CPU. Networks that timm cannot look into give their pooled features alone.
    """
    open_ = encoder.is_transformer or hasattr(encoder.model, "forward_intermediates")
    found: dict[str, list[Tensor]] = {}
    with frozen(encoder):
        for part in pixels.split(batch_size):
            x = normalize(part.to(device), mean, std)
            pooled, inside = by_layer(encoder, x) if open_ else (encoder(x), {})
            found.setdefault("", []).append(pooled.float().cpu())
            for name, (token, average) in inside.items():
                found.setdefault(name, []).append((average if token is None else token).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}
