"""Embeddings in two dimensions: images that are near are alike; a large distance means little."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor
from torch.nn import functional as F

_FEW = 16  # with fewer points, neighborhoods say nothing
_TSNE = 5_000  # with more points, t-SNE takes many minutes


def lay_out(x: Tensor, seed: int = 0) -> tuple[np.ndarray, str]:
    """Lay features (`n d`) out on a map by cosine similarity.

    UMAP with 15 neighbors (McInnes et al. 2018) if `umap-learn` is installed. Otherwise scikit-learn's t-SNE up to
    5,000 points, and PCA above. PCA for fewer than 16 points.

    Returns:
        The positions, float32 `n 2`, and the name of the algorithm: "UMAP", "t-SNE" or "PCA".
    """
    z = F.normalize(x.float(), dim=1).cpu().numpy()
    if len(z) < _FEW:
        return _pca(z), "PCA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn that a seed costs speed, and about versions
        try:
            from umap import UMAP
        except ImportError:
            if len(z) > _TSNE:
                return _pca(z), "PCA"
            from sklearn.manifold import TSNE

            found = TSNE(perplexity=min(30.0, (len(z) - 1) / 3), init="pca", random_state=seed).fit_transform(z)
            return found.astype(np.float32), "t-SNE"
        # On the unit sphere, distances order neighbors as cosines do, and are faster to search.
        found = UMAP(n_neighbors=min(15, len(z) - 1), min_dist=0.1, random_state=seed, n_jobs=1).fit_transform(z)
    return np.asarray(found, dtype=np.float32), "UMAP"


def turned(positions: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Shift, turn, mirror and scale a map onto another map of the same points, both `n 2` (Procrustes).

    A layout leaves these to chance. Once they agree, a reader can compare the maps.
    """
    a, b = positions - positions.mean(0), like - like.mean(0)
    u, s, v = np.linalg.svd(a.T.astype(np.float64) @ b)
    scale = s.sum() / max(float((a.astype(np.float64) ** 2).sum()), 1e-12)
    found: np.ndarray = scale * a @ (u @ v) + like.mean(0)
    return found.astype(np.float32)


def along_a_curve(positions: np.ndarray) -> np.ndarray:
    """An order (int64 `n`) of points (`n 2`) in which neighbors on the map mostly stay neighbors: Morton's curve."""
    low, high = positions.min(0), positions.max(0)
    cells = ((positions - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.int64)
    code = np.zeros(len(positions), dtype=np.int64)
    for bit in range(10):
        code |= (cells[:, 0] >> bit & 1) << 2 * bit | (cells[:, 1] >> bit & 1) << 2 * bit + 1
    return np.argsort(code, kind="stable")


def clusters(x: Tensor, k: int, seed: int = 0) -> np.ndarray:
    """Cluster normalized features (`n d`) by k-means, largest cluster first: int64 `n`, in [0, min(k, n))."""
    from sklearn.cluster import MiniBatchKMeans

    z = F.normalize(x.float(), dim=1).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when there are fewer distinct points than clusters
        found = MiniBatchKMeans(min(k, len(z)), random_state=seed, n_init=3).fit_predict(z)
    order = np.argsort(-np.bincount(found), kind="stable")
    ranked: np.ndarray = np.argsort(order)[found]
    return ranked


def _pca(z: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    found = np.zeros((len(z), 2), dtype=np.float32)
    if len(z) > 1:
        axes = min(2, *z.shape)
        found[:, :axes] = PCA(axes, random_state=0).fit_transform(z.astype(np.float64))
    return found
