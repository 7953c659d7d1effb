"""The points that the cost model of docs/scale.md must predict: averaging gradients, decoding, embedding.

python benchmarks/scale.py --data data --out benchmarks/scale.json [--seconds 120]

- Averaging: `distributed.mean_gradients` between two processes of this machine (gloo, loopback), by bytes, all sizes in
  turn, in each of as many rounds as fit into the time. Between processes of one machine it is copying, so the processor
  seconds of a rank are given, and the time by the clock, which means something on an idle machine only.
- Decoding JPEG files and embedding images: processor seconds of one thread. The files are mosaics of real photographs,
  so they have any size and a photograph's detail.

Of all, the least of many short measurements counts: whatever else the machine does only adds.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
import torch.multiprocessing as processes
from PIL import Image

from manyviews import distributed
from manyviews.backbones import Encoder
from manyviews.data.decode import decode
from manyviews.evaluation.features import frozen

AVERAGED = [2**16, 2**18, 2**20, 2**22, 2**24, 2**26]  # bytes
SIDES = [1, 2, 3, 4, 6]  # photographs of 160 pixels along a mosaic's side
NETWORKS = [(width, size) for width in (192, 384) for size in (96, 128, 160, 224)]


def average(rank: int, port: int, seconds: float, answer: Any) -> None:
    """One of two processes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(place, LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    torch.set_num_threads(1)
    distributed.start()
    parameters = [torch.nn.Parameter(torch.zeros(size // 4)) for size in AVERAGED]
    for p in parameters:
        p.grad = torch.ones_like(p)
    least, clock = ([float("inf")] * len(AVERAGED) for _ in range(2))
    rounds, end = 0, time.monotonic() + seconds
    while distributed.share(time.monotonic() < end):
        for i, p in enumerate(parameters):
            for _ in range(max(1, 2**22 // AVERAGED[i])):
                distributed.barrier()
                start, used = time.perf_counter(), time.process_time()
                distributed.mean_gradients([p])
                clock[i] = min(clock[i], time.perf_counter() - start)
                least[i] = min(least[i], time.process_time() - used)
        rounds += 1
    if rank == 0:
        answer.put({"bytes": AVERAGED, "seconds": least, "by_the_clock": clock, "rounds": rounds})


def averaging(seconds: float) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = processes.get_context("spawn").SimpleQueue()
    context = processes.spawn(average, (port, seconds, answer), nprocs=2, join=False)
    found = answer.get()
    context.join()
    return found


def cost(act: Callable[[], object], repeats: int) -> float:
    """The least processor seconds of a few calls."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        act()
        least = min(least, time.process_time() - start)
    return least


def decoding(data: Path) -> Iterator[dict[str, Any]]:
    photos = [image.resize((160, 160)) for image in _bench.decoded(_bench.photographs(data, 36))]
    for side in SIDES:
        mosaic = Image.new("RGB", (160 * side, 160 * side))
        for i in range(side * side):
            mosaic.paste(photos[i % 36], (160 * (i % side), 160 * (i // side)))
        mosaic.save(file := io.BytesIO(), "JPEG", quality=90)
        raw = file.getvalue()
        yield {"side": 160 * side, "bytes": len(raw), "seconds": cost(partial(decode, raw), 1200 // side)}


def embedding() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    for width, size in NETWORKS:
        encoder = Encoder("vit_tiny_patch16_224", img_size=size, embed_dim=width, num_heads=width // 64, depth=4)
        x = torch.randn(2, 3, size, size)
        with frozen(encoder):
            encoder(x)
            seconds = cost(partial(encoder, x), 40) / len(x)
        yield {"width": width, "depth": 4, "size": size, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seconds", type=float, default=120.0, help="time for averaging")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {
        "decoding": list(decoding(options.data)),
        "embedding": list(embedding()),
        "averaging": averaging(options.seconds),
        "load": np.round(os.getloadavg(), 1).tolist(),
    }
    print(found)
    _bench.write(options.out, {**_bench.facts(torch.device("cpu"), "manyviews", "torch", "timm"), **found})


if __name__ == "__main__":
    main()
