"""Regions that patch features fall into: parts of images that look alike to an encoder, and whether edges bound them.

The lecture's look at a backbone for detection and segmentation (section 22.7.2): cluster local features, and see
whether the clusters are regions that mean something.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

REGIONS = 6
"""Clusters of the patches of all images together."""


@dataclass(frozen=True, eq=False)
class Regions:
    """What the patches of some images fall into.

    Attributes:
        maps: cluster of each patch: uint8, `n s s`. A number means the same in all images.
        edges: how well the borders between clusters follow edges, in [0, 1]: the probability that two neighboring
            patches of different clusters differ more in color than two of one cluster. 0.5 is by chance; NaN where no
            image has a border.
    """

    maps: np.ndarray
    edges: float


def regions(patches: Tensor, pixels: Tensor, clusters: int = REGIONS, seed: int = 0) -> Regions:
    """Cluster the patches of a few images.

    `edges` compares networks with as many patches, and asks whether clusters keep to what is visibly one thing. It is
    not accuracy: clusters of mere colors follow edges as well. Look at the maps.

    Args:
        patches: features of the patches, float, `n s*s d`, row by row.
        pixels: the same images, uint8, `n c h w`.
        clusters: number of clusters.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import roc_auc_score

    side = math.isqrt(patches.shape[1])
    x = patches.float().cpu().flatten(0, 1)
    x = F.normalize(x - x.mean(0), dim=1)
    with warnings.catch_warnings():  # patches that are all alike have fewer clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(min(clusters, len(x)), n_init=1, random_state=seed).fit_predict(x.numpy())
    maps = found.reshape(-1, side, side).astype(np.uint8)
    colors = F.adaptive_avg_pool2d(pixels.float(), side).permute(0, 2, 3, 1).cpu().numpy()
    border, apart = [], []
    for a, b in ((np.s_[:, :, 1:], np.s_[:, :, :-1]), (np.s_[:, 1:], np.s_[:, :-1])):  # right and left, below and above
        border.append((maps[a] != maps[b]).ravel())
        apart.append(np.linalg.norm(colors[a] - colors[b], axis=-1).ravel())
    borders = np.concatenate(border)
    if borders.all() or not borders.any():
        return Regions(maps, math.nan)
    return Regions(maps, float(roc_auc_score(borders, np.concatenate(apart))))


def drawn(areas: np.ndarray, pixels: Tensor) -> np.ndarray:
    """A map of clusters over its image, as colors: uint8, `h w 3`.

    Args:
        areas: cluster of each patch: uint8, `s s`.
        pixels: the image, uint8, `c h w`.
    """
    palette = torch.tensor(_PALETTE, dtype=torch.float32)
    colors = palette[torch.from_numpy(areas).long() % len(_PALETTE)].permute(2, 0, 1)
    colors = F.interpolate(colors[None], size=tuple(pixels.shape[1:]), mode="nearest")[0]
    gray = pixels.float().mean(0, keepdim=True).cpu()
    return (0.55 * colors + 0.45 * gray).byte().permute(1, 2, 0).numpy()


_PALETTE = (  # Okabe and Ito's, which people of every color vision tell apart
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
