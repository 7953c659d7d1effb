"""k-means on more embeddings than memory holds: full passes over the files, one block at a time.

python kmeans.py EMBEDDINGS OUT.parquet --k 1000 [--passes 20] [--start CENTERS.parquet]

A pass gives each embedding to its nearest center; workers return sums, and only these travel. It is Lloyd's algorithm,
so its inertia is scikit-learn's from the same start. The start is k-means++ on a sample. OUT has the columns id,
embedding and images, so a hierarchy (Vo et al. 2024, section 3.2) is this command on its own result:
python kmeans.py OUT.parquet HIGHER.parquet --k 30.
"""

import argparse
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sklearn.cluster import kmeans_plusplus

Batch = dict[str, Any]


def matrix(column: Any) -> np.ndarray:
    return np.stack(list(column)).astype(np.float32, copy=False)


def sums(batch: Batch, centers: np.ndarray) -> Batch:
    """For each center the number of its embeddings and their sum, and the inertia of the batch: one row."""
    x = matrix(batch["embedding"])
    home = (x @ centers.T - (centers**2).sum(1) / 2).argmax(1)
    inertia = float(((x - centers[home]) ** 2).sum(dtype=np.float64))
    total = np.zeros(centers.shape, dtype=np.float64)
    np.add.at(total, home, x)
    return {"count": [np.bincount(home, minlength=len(centers))], "sum": [total], "inertia": [inertia]}


def start(path: str, k: int, sample: int, seed: int) -> np.ndarray:
    """k-means++ on rows evenly spread over the files."""
    data = ds.dataset(path, format="parquet")
    n = data.count_rows()
    rows = np.unique(np.linspace(0, n - 1, min(n, max(sample, k))).astype(np.int64))
    x = matrix(data.take(pa.array(rows), columns=["embedding"])["embedding"].to_numpy())
    return kmeans_plusplus(x, k, random_state=seed)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="a Parquet file or a folder of them, with the column embedding")
    parser.add_argument("out", help="a Parquet file of centers")
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="ends when the inertia falls by a smaller share")
    parser.add_argument("--start", help="a Parquet file of centers to begin with")
    parser.add_argument("--sample", type=int, default=100_000, help="embeddings that the start is chosen from")
    parser.add_argument("--rows", type=int, default=65536, help="rows of a batch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import ray

    if options.start:
        centers = matrix(pq.read_table(options.start)["embedding"].to_numpy())
    else:
        centers = start(options.embeddings, options.k, options.sample, options.seed)
    counts, before = np.zeros(len(centers), dtype=np.int64), np.inf
    for number in range(options.passes):
        shared = ray.put(centers)
        rows = ray.data.read_parquet(options.embeddings).select_columns(["embedding"])
        parts = rows.map_batches(lambda b, c=shared: sums(b, ray.get(c)), batch_size=options.rows)
        total, counts, inertia = np.zeros(centers.shape), np.zeros(len(centers), dtype=np.int64), 0.0
        for part in parts.iter_rows():
            total, counts = total + part["sum"], counts + part["count"]
            inertia += part["inertia"]
        print(f"pass {number + 1}: inertia {inertia:.6g}, {(counts == 0).sum()} centers without an image", flush=True)
        if inertia > before * (1 - options.tolerance):
            break
        before = inertia
        some = counts > 0  # a center without an image stays where it is
        centers = centers.copy()
        centers[some] = total[some] / counts[some, None]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(centers.ravel(), pa.float32()), centers.shape[1])
    names = [f"center {i}" for i in range(len(centers))]
    pq.write_table(pa.table({"id": names, "embedding": flat, "images": counts}), options.out)
    print(f"{len(centers)} centers in {options.out}")


if __name__ == "__main__":
    main()
