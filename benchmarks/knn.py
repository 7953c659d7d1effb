"""Time and memory of exact k-NN, and whether it finds what scikit-learn finds.

python benchmarks/knn.py --out benchmarks/knn.json

Normalized Gaussian features around class centers: 50,000 to search among, 10,000 queries, 512 dimensions, and smaller
sets. scikit-learn's brute-force search takes turns with ours. Its similarities are compared with ours at every place,
and its neighbors where no two neighbors are equally near up to rounding.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from manyviews.evaluation import knn, neighbors

SIZES = ((5_000, 1_000, 512), (50_000, 10_000, 128), (50_000, 10_000, 512))
K = 20


def features(n: int, d: int, centers: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(len(centers), (n,), generator=generator)
    return F.normalize(centers[labels] + 3 * torch.randn(n, d, generator=generator), dim=1), labels


def peak() -> float:
    """The most memory this process has had since `reset`, MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def reset() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def one(n: int, m: int, d: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(10, d, generator=generator)
    (x, y), (q, t) = (features(size, d, centers, generator) for size in (n, m))
    reset()
    before = peak()
    similarity, index = neighbors(x, q, K)
    grown = peak() - before
    theirs = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="cosine").fit(x.numpy())
    # The same neighbors, for the features are of length 1; scikit-learn has a faster search for it.
    euclidean = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="euclidean").fit(x.numpy())
    ours_s, voted_s, theirs_s, euclidean_s = [], [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        neighbors(x, q, K)
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        knn(x, y, q, t)
        voted_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        distance, found = theirs.kneighbors(q.numpy())
        theirs_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        euclidean.kneighbors(q.numpy())
        euclidean_s.append(time.perf_counter() - start)
    # A neighbor is unique where the next one is farther by more than rounding.
    unique = (np.diff(distance, axis=1) > 1e-5).all(1)
    same = (found[:, :K] == index.numpy())[unique].all(1)
    return {
        "searched": n,
        "queries": m,
        "dimensions": d,
        "seconds": ours_s,
        "seconds_all_k_voted": voted_s,
        "scikit_learn_seconds": theirs_s,
        "scikit_learn_euclidean_seconds": euclidean_s,
        "grown_mib": grown,
        "largest_difference_of_similarity": float(np.abs(1 - distance[:, :K] - similarity.numpy()).max()),
        "queries_without_ties": int(unique.sum()),
        "of_these_with_the_same_neighbors": int(same.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = [one(*size, options.rounds) for size in SIZES]
    for row in rows:
        print(
            f"{row['queries']:,} x {row['searched']:,} x {row['dimensions']}: {min(row['seconds']):.2f} s, with all "
            f"votes {min(row['seconds_all_k_voted']):.2f} s, scikit-learn {min(row['scikit_learn_seconds']):.2f} s "
            f"by cosine and {min(row['scikit_learn_euclidean_seconds']):.2f} s by distance; "
            f"{row['grown_mib']:.0f} MiB; {row['of_these_with_the_same_neighbors']} of {row['queries_without_ties']} "
            "queries without ties have the same neighbors"
        )
    facts = _bench.facts(torch.device("cpu"), "manyviews", "torch", "scikit-learn")
    _bench.write(options.out, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
