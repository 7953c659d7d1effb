"""The clock of docs/speedrun.md: minutes of `manyviews pretrain`, and what k-NN makes of its encoder, for each seed.

python benchmarks/speedrun.py --data data --recipe speedrun_knn65 --seeds 0 1 2 --out benchmarks/speedrun.json

The clock runs from the start of the command to its end, imports, decoding and writing included; then the last encoder
is evaluated on the test images, voted on by the training images. Each run adds a row to those in the file. Nothing else
may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _bench

from manyviews import machine


def run(train: Path, test: Path, recipe: str, settings: list[str], seed: int) -> _bench.Answer:
    """Minutes of the command, seconds of its training, and the k-NN accuracy in percent with its 95 % interval."""
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name, "run"), Path(name, "report.json")
        manyviews = [sys.executable, "-m", "manyviews"]
        changed = [part for setting in (*settings, f"seed={seed}") for part in ("--set", setting)]
        start = time.monotonic()
        subprocess.run([*manyviews, "pretrain", train, "--recipe", recipe, *changed, "--out", folder], check=True)
        minutes = (time.monotonic() - start) / 60
        judge = [*manyviews, "evaluate", folder, "--data", train, "--test", test, "--protocol", "knn"]
        subprocess.run([*judge, "--json", report], check=True)
        score = json.loads(report.read_text())["representations"]["trained"]["scores"]["knn"]
        summary = json.loads((folder / "summary.json").read_text())
    return {
        "minutes": round(minutes, 2),
        "training_seconds": round(summary["seconds"], 1),
        "knn": round(100 * score["top1"], 2),
        "interval": [round(100 * end, 2) for end in score["interval"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of cifar10_train and cifar10_test.parquet"
    )
    parser.add_argument("--recipe", default="speedrun_knn65")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    facts = _bench.facts(machine.device(), "manyviews", "torch", "timm", "numba")
    train, test = (options.data / f"cifar10_{part}.parquet" for part in ("train", "test"))
    for seed in options.seeds:
        row = run(train, test, options.recipe, options.set, seed)
        print(f"seed {seed}: {row['knn']} % after {row['minutes']} minutes", flush=True)
        rows.append({"recipe": options.recipe, "set": options.set, "seed": seed, **row, **facts})
        _bench.write(options.out, {"rows": rows})


if __name__ == "__main__":
    main()
