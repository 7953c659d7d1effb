"""Embed more images than one machine reads in a day: a bucket in, Parquet files of embeddings out.

python embed.py WEIGHTS DATA OUT [--workers 16] [--gpus 1]

A unit of work is a shard (Parquet, tar or zip) or, of a local or shared folder of image files, so many of them. Each
worker loads the backbone once and writes one Parquet file for each unit, with the columns of `manyviews embed`. A file
that is there already is not made again: after a failure, or on machines that come and go, start the same command again.
The features are those of `manyviews embed`, up to the order in which a processor adds (1e-6).
"""

import argparse
import os
import posixpath
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec

import manyviews as mv

SHARDS = (".parquet", ".tar", ".zip")


def units(data: str, size: int) -> list[dict[str, Any]]:
    """What there is to do: the shards under an address or, without one, ranges of its images."""
    fs, path = fsspec.core.url_to_fs(data)
    names = [path] if fs.isfile(path) else sorted(n for n in fs.find(path) if n.endswith(SHARDS))
    if names:
        short = {n: posixpath.relpath(n, path) if n != path else posixpath.basename(n) for n in names}
        return [{"data": fs.unstrip_protocol(n), "name": short[n].replace("/", "_"), "start": 0} for n in names]
    images = len(mv.data.open_source(data, split="all"))
    return [{"data": data, "name": f"{i:012d}", "start": i} for i in range(0, images, size)]


class Embed:
    """A worker: its backbone is loaded once and stays."""

    def __init__(self, weights: str, out: str, size: int) -> None:
        self.model, self.out, self.size = mv.load(weights), out, size
        # A folder is listed once by each worker. A function with a cache could not travel to one.
        self.opened = lru_cache(maxsize=2)(partial(mv.data.open_source, split="all"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done: dict[str, Any] = {"name": [], "images": []}
        for data, name, start in zip(batch["data"], batch["name"], batch["start"], strict=True):
            source, target = self.opened(str(data).removeprefix("file://")), f"{self.out}/{name}.parquet"
            if not str(data).endswith(SHARDS):
                source = source.subset(range(int(start), min(int(start) + self.size, len(source))))
            fs, path = fsspec.core.url_to_fs(target)
            if not fs.exists(path):
                with tempfile.TemporaryDirectory() as folder:
                    part = mv.embed(self.model, source, Path(folder) / "part.parquet")
                    fs.makedirs(posixpath.dirname(path), exist_ok=True)
                    beside = f"{path}.{os.getpid()}.part"  # another name first: half a file is never taken for a whole
                    fs.put(str(part), beside)
                    fs.mv(beside, path)
            done["name"].append(str(name))
            done["images"].append(len(source))
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a run folder, a file of weights, or timm:NAME, which every machine can read")
    parser.add_argument("data", help="a folder or URL of Parquet, tar or zip shards, or a shared folder of images")
    parser.add_argument("out", help="a folder or URL for the Parquet files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each worker")
    parser.add_argument("--cpus", type=float, default=1, help="cores for each worker")
    parser.add_argument("--images", type=int, default=4096, help="images of a unit, where there are no shards")
    options = parser.parse_args()
    import ray

    todo = units(options.data, options.images)
    work = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        Embed,
        fn_constructor_args=(options.weights, options.out, options.images),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(todo))),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    images = sum(row["images"] for row in work.iter_rows())
    print(f"{images} images in {len(todo)} files under {options.out}")


if __name__ == "__main__":
    main()
