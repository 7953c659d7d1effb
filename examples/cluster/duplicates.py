"""Pairs of embeddings that are nearly the same, among more of them than memory holds.

python duplicates.py EMBEDDINGS OUT.parquet --threshold 0.95 [--rows 65536] [--images DATA]

Every block of rows meets every other one, so no pair is missed: these are the pairs of one process. A task holds two
blocks. The work grows with the square of the number: see docs/scale.md. With --images, pixels confirm each pair, as in
`manyviews duplicates`.
"""

import argparse
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

import manyviews as mv
from manyviews.evaluation.unlabeled import duplicates as same

Item = dict[str, Any]
COLUMNS = {"first": pa.string(), "second": pa.string(), "similarity": pa.float32()}


def blocks(path: str, rows: int) -> list[list[tuple[int, int]]]:
    """Row groups of the files, in their order, in lists of about so many rows: pairs of file and group."""
    found, held = [[]], 0
    for f, fragment in enumerate(ds.dataset(path, format="parquet").get_fragments()):
        for group in fragment.row_groups:
            if held and held + group.num_rows > rows:
                found.append([])
                held = 0
            found[-1].append((f, group.id))
            held += group.num_rows
    return found


def read(path: str, block: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, torch.Tensor]:
    """Names and embeddings of a block."""
    files = list(ds.dataset(path, format="parquet").get_fragments())
    table = pa.concat_tables(files[f].subset(row_group_ids=[g]).to_table(columns=["id", "embedding"]) for f, g in block)
    x = table["embedding"].combine_chunks()
    return table["id"].to_numpy(), torch.from_numpy(x.flatten().to_numpy().reshape(len(table), -1).copy())


class Compare:
    """A worker that compares two blocks, or one with itself."""

    def __init__(self, path: str, found: list[list[tuple[int, int]]], threshold: float, data: str | None) -> None:
        self.blocks, self.threshold = [tuple(block) for block in found], threshold
        self.read = lru_cache(maxsize=4)(partial(read, path))
        self.source = None if data is None else mv.data.open_source(data, split="all")
        self.place = {} if self.source is None else {name: i for i, name in enumerate(self.source.ids)}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def __call__(self, item: Item) -> Iterator[Item]:
        (a_ids, a), (b_ids, b) = (self.read(self.blocks[item[k]]) for k in ("a", "b"))
        rows, near = same.similar(a, a if item["a"] == item["b"] else b, self.threshold, device=self.device)
        names = [tuple(sorted((a_ids[i], b_ids[j]))) for i, j in rows.tolist()]
        keep = range(len(names))
        if names and self.source is not None:
            keep = same_pixels(self.source, self.place, names, near)
        for k in keep:
            yield {"first": names[k][0], "second": names[k][1], "similarity": float(near[k])}


def same_pixels(
    source: mv.data.Source, place: dict[str, int], names: list[tuple[str, str]], near: torch.Tensor
) -> list[int]:
    """Which pairs a second look at the pixels confirms."""
    rows = torch.tensor([[place[a], place[b]] for a, b in names])
    unknown = torch.full_like(near, torch.nan), torch.zeros(len(near), dtype=torch.bool)
    found = same.confirmed(same.Pairs(rows, near, *unknown), source, torch.arange(len(source)))
    kept = set(map(tuple, found.rows.tolist()))
    return [k for k, row in enumerate(rows.tolist()) if tuple(row) in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="a folder of Parquet files with the columns id and embedding")
    parser.add_argument("out", help="a Parquet file of pairs: first, second, similarity")
    parser.add_argument("--threshold", type=float, default=0.95, help="cosine similarity")
    parser.add_argument("--rows", type=int, default=65536, help="rows of a block")
    parser.add_argument("--images", help="the images, of which pixels confirm each pair")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each worker")
    options = parser.parse_args()
    import ray

    found = blocks(options.embeddings, options.rows)
    todo = [{"a": i, "b": j} for i, j in combinations_with_replacement(range(len(found)), 2)]
    pairs = ray.data.from_items(todo, override_num_blocks=len(todo)).flat_map(
        Compare,
        fn_constructor_args=(options.embeddings, found, options.threshold, options.images),
        compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(todo))),
        num_gpus=options.gpus,
    )
    # Pairs are held here, embeddings are not. In order, so that a result is the same on any number of workers.
    held = sorted(pairs.iter_rows(), key=lambda row: (row["first"], row["second"]))
    columns = {k: pa.array([row[k] for row in held], kind) for k, kind in COLUMNS.items()}
    pq.write_table(pa.table(columns), options.out)
    print(f"{len(held)} pairs of {len(todo)} pairs of blocks, in {options.out}")


if __name__ == "__main__":
    main()
