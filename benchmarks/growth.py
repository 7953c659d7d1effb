"""How time and memory grow: with the batch, the ranks, the views, the images and the processes.

python benchmarks/growth.py [--data data] [--out benchmarks/growth.json] [--threads 2] [--quick]

About eight minutes on two cores, Linux. Every case has a process of its own, in which a step is repeated. Its peak is
the growth of the resident set over what the process held before; times are medians with quartiles. So that the memory
of a tensor is given back when it is freed, and peaks are the tensors', it is asked of the system each time: the times
contain that, up to a tenth.

- nt_xent: SimCLR's loss, forward and backward, of N projections of 128 numbers. naive: the same, with the N x N matrix
  in memory.
- info_nce: MoCo's, of N queries against a queue of 65,536.
- neighbors: the 200 nearest, of queries among so many features of 128 numbers.
- ring: NT-Xent of 2 x n projections on each rank, as it is. gather: the same, when each rank first gathers all keys.
  Four ranks on two cores take turns: theirs is a figure of memory, not of time.
- step: of BYOL (MULAN where there is a cutout view), ResNet-18 at 32 pixels; "views" backpropagates large views one by
  one, "joint" keeps every activation until the end. shared_step: the two global views of a batch that processes share,
  gradients and the statistics of BatchNorm included.
- prepared: a folder of canvases without pixels, sparse files, that is otherwise as one of canvases at 256 pixels: what
  opening it takes, an epoch's order, the order and the first 100 batches of 64, and the names of the images. Pixels
  that were read count as resident.
- prepare: decoding 2,000 photographs to canvases of 160 pixels, in shards of 16 MiB, so that there are some to share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import _bench
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory import ENV, build, reset, resident
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from manyviews import distributed, objectives
from manyviews.data import Loader, open_source, prepare, prepared
from manyviews.data.order import order
from manyviews.engine.step import backpropagate
from manyviews.evaluation.knn import neighbors
from manyviews.objectives.contrastive import similarities_logsumexp
from manyviews.types import Batch, Progress
from manyviews.views import Views

Row = dict[str, Any]

DIM = 128
TEMPERATURE = 0.2
QUEUE = 65536
BATCH = 64
ENOUGH = 3.0  # seconds of repetitions, of which there are 2 to 20
SHARD = 682  # images of 256 pixels in one file
SIDE = 16  # of the canvases without pixels


def cases(quick: bool) -> Iterator[Row]:
    """What is measured, in this order: the name of a function below, what it is called with, and threads if not all."""
    for n in (512, 2048) if quick else (1024, 4096, 16384, 65536):
        yield {"what": "nt_xent", "n": n}
    for n in (512, 2048) if quick else (1024, 4096, 16384):
        yield {"what": "naive", "n": n}
    for n in (256, 512) if quick else (256, 1024, 4096):
        yield {"what": "info_nce", "n": n}
    for features in (10**4, 10**5) if quick else (10**4, 10**5, 10**6):
        yield {"what": "neighbors", "features": features, "queries": 1024}
    for queries in (2048,) if quick else (4096,):
        yield {"what": "neighbors", "features": 10**5, "queries": queries}
    for how in ("ring", "gather"):
        for world in (1, 2, 4):
            yield {"what": how, "n": 256 if quick else 2048, "processes": world, "threads": 1}
    for views in ("2", "2+2+1") if quick else ("2", "2+2+1", "2+4", "2+10"):
        for backward in ("per_view", "joint"):
            yield {"what": "step", "views": views, "memory": backward, "batch": 32 if quick else 128}
    for world, threads in ((1, 1), (1, 2), (2, 1)):
        yield {"what": "shared_step", "processes": world, "threads": threads, "batch": 32 if quick else 256}
    for images in (10**4, 10**5) if quick else (10**4, 10**5, 10**6, 10**7):
        yield {"what": "prepared", "images": images}
    for processes, cores in ((1, 1), (2, 1), (1, 2)):
        yield {"what": "prepare", "processes": processes, "cores_each": cores, "images": 300 if quick else 2000}


def measure(step: Callable[[], Any]) -> Row:
    """Seconds and extra memory of a function, called until it has taken long enough. On several ranks they go along."""
    seconds: list[float] = []
    reset()
    before = resident()
    while distributed.share(len(seconds) < 2 or (sum(seconds) < ENOUGH and len(seconds) < 20)):
        distributed.barrier()
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = round((resident() - before) / 2**20, 1)
    return {"seconds": _bench.spread(seconds), "repeats": len(seconds), "peak_mib": peak}


def on_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Row]:
    """What a function gives on rank 0 of so many processes, its peak being the highest of all."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (function, world, args, folder), nprocs=world)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return [{**found[0], "peak_mib": max(row["peak_mib"] for row in found)}]


def _rank(rank: int, function: Callable[..., Any], world: int, args: tuple[Any, ...], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    Path(folder, f"{rank}.json").write_text(json.dumps(function(*args)))
    distributed.barrier()
    distributed.stop()


# -- losses ----------------------------------------------------------------------------------------------------------


def loss(function: Callable[..., Tensor], n: int) -> Row:
    """Forward and backward of a loss of two times n projections. Small ones come first, to load what is needed."""

    def step(n: int) -> Callable[[], None]:
        za, zb = (torch.randn(n, DIM, requires_grad=True) for _ in range(2))

        def run() -> None:
            za.grad = zb.grad = None
            function(za, zb, TEMPERATURE).backward()

        return run

    torch.manual_seed(distributed.rank())
    step(8)()
    return measure(step(n))


def nt_xent(n: int) -> list[Row]:
    return [loss(objectives.nt_xent, n // 2)]


def naive(n: int) -> list[Row]:
    return [loss(_naive, n // 2)]


def _naive(za: Tensor, zb: Tensor, temperature: float) -> Tensor:
    z = normalize(torch.cat([za, zb]), dim=-1)
    similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(similarities, torch.arange(len(z)).roll(len(za)))


def info_nce(n: int) -> list[Row]:
    queue = normalize(torch.randn(QUEUE, DIM), dim=-1)
    return [loss(lambda q, k, temperature: objectives.info_nce(q, k, queue, temperature), n)]


def ring(n: int, processes: int) -> list[Row]:
    return on_ranks(loss, processes, objectives.nt_xent, n)


def gather(n: int, processes: int) -> list[Row]:
    return on_ranks(loss, processes, _gathered, n)


def _gathered(za: Tensor, zb: Tensor, temperature: float) -> Tensor:
    z = normalize(torch.stack([za, zb], 1), dim=-1)
    everyone = distributed.gather(z).flatten(0, 1)
    itself = torch.arange(2 * len(z)) + 2 * len(z) * distributed.rank()
    positive = (z[:, 0] * z[:, 1]).sum(1).repeat_interleave(2) / temperature
    return (similarities_logsumexp(z.flatten(0, 1), everyone, temperature, itself[:, None]) - positive).mean()


def nearest(features: int, queries: int) -> list[Row]:
    train, test = torch.randn(features, DIM), torch.randn(queries, DIM)
    neighbors(train[:1000], test[:10], 200)
    return [measure(lambda: neighbors(train, test, 200))]


# -- training --------------------------------------------------------------------------------------------------------


def train(views: str, backward: str, batch: int) -> list[Row]:
    return [_train(views, backward, batch)]


def shared_train(processes: int, batch: int) -> list[Row]:
    rows = on_ranks(_train, processes, "2", "views", batch // processes)
    return [{**row, "images_per_second": round(batch / row["seconds"][1], 1)} for row in rows]


def _train(views: str, backward: str, batch: int) -> Row:
    """Views as in memory.py: global, local and cutout."""
    size = 32
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    canvases = Batch.of(pixels, torch.full((batch, 2), size), torch.arange(batch))
    method = build("byol", views, size).to(memory_format=torch.channels_last).train()
    distributed.sync_batchnorm(method, torch.device("cpu"))

    def run() -> None:
        for p in method.parameters():  # gradients are held either way: they are not what is compared
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        looks = Views(canvases, method.views, backward=backward)  # type: ignore[arg-type]
        backpropagate(method, [lambda: looks], Progress(0, 10, 5), precision="float32")

    run()
    return measure(run)


# -- data ------------------------------------------------------------------------------------------------------------


def sparse(folder: Path, images: int) -> None:
    """What `prepare` writes, but for the pixels: holes in the files, that take no space on the disk."""
    shards = []
    for start in range(0, images, SHARD):
        n = min(SHARD, images - start)
        file = f"shard-{len(shards):05}.safetensors"
        names = [f"train/n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG" for i in range(start, start + n)]
        labels = [i // 1300 % 1000 for i in range(start, start + n)]
        facts = {"ids": names, "labels": labels, "bad": [], "checksum": ""}
        end = n * 3 * SIDE**2
        tensors = {
            "pixels": {"dtype": "U8", "shape": [n, 3, SIDE, SIDE], "data_offsets": [0, end]},
            "extent": {"dtype": "I64", "shape": [n, 2], "data_offsets": [end, end + 16 * n]},
        }
        header = json.dumps({"__metadata__": {"manyviews": json.dumps(facts)}, **tensors}).encode()
        with (folder / file).open("wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + end + 16 * n)
        shards.append({"file": file, "images": n, "checksum": ""})
    plan = {"version": prepared._VERSION, "size": SIDE, "images": images, "shard": SHARD, "names": ""}
    classes = [f"n{i:08}" for i in range(1000)]
    manifest = {**plan, "name": "sparse", "classes": classes, "shards": shards, "bad": []}
    (folder / prepared.MANIFEST).write_text(json.dumps(manifest))


def open_images(images: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sparse(folder, images)
        source = open_source(folder)
        loader = Loader(source, SIDE, BATCH, memory=0)

        def batches() -> None:
            prepared._mapped.cache_clear()  # as in a process that has read none
            for _ in islice(loader.batches(0), 100):
                pass

        parts: dict[str, Callable[[], Any]] = {
            "open": lambda: open_source(folder),
            "order": lambda: order(0, 0, images),
            "order and 100 batches": batches,
            "names": lambda: open_source(folder).ids,
        }
        return [{"part": part, **measure(do)} for part, do in parts.items()]


def prepare_images(images: int, processes: int, cores_each: int, data: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        with zipfile.ZipFile(Path(data, "imagewoof160_mini.zip")) as files:
            files.extractall(folder, sorted(n for n in files.namelist() if n.endswith(".jpg"))[:images])
        rows = on_ranks(_prepare, processes, folder, out, cores_each)
    return [{**row, "images_per_second": round(images / row["seconds"][1], 1)} for row in rows]


def _prepare(folder: str, out: str, cores: int) -> Row:
    allowed = sorted(os.sched_getaffinity(0))
    first = distributed.rank() * cores
    os.sched_setaffinity(0, [allowed[i % len(allowed)] for i in range(first, first + cores)])
    prepared._SHARD = 2**24
    source, turn = open_source(folder), count()
    return measure(lambda: prepare(source, Path(out, str(next(turn))), 160))


MEASURES: dict[str, Callable[..., list[Row]]] = {
    "nt_xent": nt_xent,
    "naive": naive,
    "info_nce": info_nce,
    "neighbors": nearest,
    "ring": ring,
    "gather": gather,
    "step": train,
    "shared_step": shared_train,
    "prepared": open_images,
    "prepare": prepare_images,
}


def run(case: Row, threads: int, data: Path) -> list[Row]:
    """The rows of a case, measured in another process."""
    settings = {k: v for k, v in case.items() if k not in ("what", "threads")}
    if case["what"] == "prepare":
        settings["data"] = str(data)
    command = [sys.executable, __file__, "--case", json.dumps([case["what"], settings])]
    env = {**ENV, "OMP_NUM_THREADS": str(case.get("threads", threads))}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return [{**case, **row} for row in json.loads(found.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="one case, in this process, as JSON: its name and what it is called with")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of imagewoof160_mini.zip")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.case:
        what, settings = json.loads(options.case)
        print(json.dumps(MEASURES[what](**settings)))
        return
    rows: list[Row] = []
    print(f"{'what':10} {'of':50} {'seconds':>9} {'quartiles':>19} {'peak MiB':>9}")
    for case in cases(options.quick):
        for row in run(case, options.threads, options.data):
            if row["what"] == "naive":
                ours = next(r for r in rows if r["what"] == "nt_xent" and r["n"] == row["n"])
                row["times_ours"] = {
                    "seconds": round(row["seconds"][1] / ours["seconds"][1], 2),
                    "peak": round(row["peak_mib"] / ours["peak_mib"], 2),
                }
            rows.append(row)
            print(_line(row), flush=True)
    facts = _bench.facts(torch.device("cpu"), "manyviews", "torch", "timm", "numba")
    _bench.write(options.out, {**facts, "threads": options.threads, "rows": rows})


def _line(row: Row) -> str:
    known = ("what", "seconds", "repeats", "peak_mib", "times_ours", "images_per_second", "threads")
    of = ", ".join(
        f"{k.replace('_', ' ')} {v:,}" if isinstance(v, int) else v for k, v in row.items() if k not in known
    )
    low, median, high = row["seconds"]
    more = ""
    if "times_ours" in row:
        more = "  {seconds} times the time, {peak} times the memory".format(**row["times_ours"])
    if "images_per_second" in row:
        more = f"  {row['images_per_second']} images/s"
    return f"{row['what']:10} {of:50} {median:9.4g} {f'{low:.4g} - {high:.4g}':>19} {row['peak_mib']:9,.1f}{more}"


if __name__ == "__main__":
    main()
