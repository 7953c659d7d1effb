"""Time and peak memory of a step of MAE against the share of patches that is dropped: are masked tokens skipped?

python benchmarks/masking.py [--batch 16] [--steps 5] [--out benchmarks/masking.json]

A ViT-S/16 at 224 pixels with a decoder of one narrow block, so that the encoder is what is measured. Each share runs in
a process of its own. Share 0 encodes all patches, with a token in the place of hidden ones. Seconds are those of the
processor on a CPU, the median of the steps, and wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import _bench
import torch
from memory import ENV, reset, resident

from manyviews.backbones import Encoder
from manyviews.engine.step import backpropagate
from manyviews.methods import get
from manyviews.types import Batch, Progress
from manyviews.views import Random, Views

SHARES = (0.0, 0.5, 0.75, 0.9)


def measure(share: float, batch: int, steps: int) -> _bench.Answer:
    """Seconds and peak MiB of a step that drops this share of the patches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    small = {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2}
    masking = Random(share or 0.75)
    method = get("mae")(Encoder("vit_small_patch16_224"), masking=masking, mask_tokens=share == 0, **small)
    method = method.to(device).train()
    for p in method.parameters():  # gradients are held anyway: they are not what is compared
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    images = Batch.of(torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)).to(device)
    views = Views(images, method.views)
    _ = views["global", 0]  # made once, and not what is compared

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        backpropagate(method, [lambda: views], Progress(0, 10, 5), precision="float32", device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset()
        before = resident()
    seconds = [step() for _ in range(steps)]
    after = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident()
    encoded = 196 if share == 0 else 196 - round(196 * share)
    found = {"dropped": share, "encoded_patches": encoded, "seconds": round(statistics.median(seconds), 3)}
    return found | {"peak_mib": round((after - before) / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=float, help="one share, in this process")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.case is not None:
        print(json.dumps(measure(given.case, given.batch, given.steps)))
        return
    rows = []
    for share in SHARES:
        sizes = ["--batch", str(given.batch), "--steps", str(given.steps)]
        words = [sys.executable, __file__, "--case", str(share), *sizes]
        done = subprocess.run(words, env=ENV, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = _bench.facts(device, "manyviews", "torch", "timm")
    _bench.write(given.out, {**facts, "batch": given.batch, "rows": rows})


if __name__ == "__main__":
    main()
