"""Embeddings in two dimensions, to look at: near means alike, far means little."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor
from torch.nn import functional as F

_FEW = 16  # points below which neighborhoods say nothing
_TSNE = 5_000  # points above which t-SNE takes many minutes


def lay_out(x: Tensor, seed: int = 0) -> tuple[np.ndarray, str]:
    """Places of features (`n d`) on a map, float32 `n 2`, and how they were found: "UMAP", "t-SNE" or "PCA".

    By cosine similarity: UMAP (McInnes et al. 2018), 15 neighbors, if `umap-learn` is installed; else scikit-learn's
    t-SNE up to 5,000 points and PCA above. PCA for fewer than 16 points.
    """
    z = F.normalize(x.float(), dim=1).cpu().numpy()
    if len(z) < _FEW:
        return _pca(z), "PCA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a seed costs, and of the version of scikit-learn
        try:
            from umap import UMAP
        except ImportError:
            if len(z) > _TSNE:
                return _pca(z), "PCA"
            from sklearn.manifold import TSNE

            found = TSNE(perplexity=min(30.0, (len(z) - 1) / 3), init="pca", random_state=seed).fit_transform(z)
            return found.astype(np.float32), "t-SNE"
        # On points of the unit sphere distances order neighbors as cosines do, and are faster to search.
        found = UMAP(n_neighbors=min(15, len(z) - 1), min_dist=0.1, random_state=seed, n_jobs=1).fit_transform(z)
    return np.asarray(found, dtype=np.float32), "UMAP"


def turned(places: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A map shifted, turned, mirrored and scaled onto another of the same points, both `n 2` (Procrustes).

    What a layout leaves to chance is then the same in both, so that one can look from one to the other.
    """
    a, b = places - places.mean(0), like - like.mean(0)
    u, s, v = np.linalg.svd(a.T.astype(np.float64) @ b)
    scale = s.sum() / max(float((a.astype(np.float64) ** 2).sum()), 1e-12)
    return (scale * a @ (u @ v) + like.mean(0)).astype(np.float32)


def along_a_curve(places: np.ndarray) -> np.ndarray:
    """An order of points (`n 2`) in which neighbors on the map are mostly neighbors: Morton's, int64 `n`."""
    low, high = places.min(0), places.max(0)
    cells = ((places - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.int64)
    code = np.zeros(len(places), dtype=np.int64)
    for bit in range(10):
        code |= (cells[:, 0] >> bit & 1) << 2 * bit | (cells[:, 1] >> bit & 1) << 2 * bit + 1
    return np.argsort(code, kind="stable")


def clusters(x: Tensor, k: int, seed: int = 0) -> np.ndarray:
    """k-means of the normalized features (`n d`), numbered from the largest cluster: int64, `n`, in [0, min(k, n))."""
    from sklearn.cluster import MiniBatchKMeans

    z = F.normalize(x.float(), dim=1).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters
        found = MiniBatchKMeans(min(k, len(z)), random_state=seed, n_init=3).fit_predict(z)
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(order)[found]


def _pca(z: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    found = np.zeros((len(z), 2), dtype=np.float32)
    if len(z) > 1:
        axes = min(2, *z.shape)
        found[:, :axes] = PCA(axes, random_state=0).fit_transform(z.astype(np.float64))
    return found
