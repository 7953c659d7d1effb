"""What photographs of one's own give in 10, 30 and 120 minutes on two cores, without a GPU.

python benchmarks/photos.py [--data data] [--out benchmarks/photos.json] [--weights FILE ...] [--cases clothes:10:0 ...]

Hours; the same command continues. First the machine must be idle: the recipe that `--recipe auto` takes for each set
and time is chosen, with the epochs that fit, as `manyviews pretrain --budget` does it. Then each case,
SET:MINUTES:SEED, is trained for these epochs on one thread, so that two of them, started in two shells with other
--cases and --out, share two cores. k-NN and a linear probe are of the test images, with the last checkpoint.
--weights are files of other networks to compare with, such as ImageNet's.

The sets: clothes, 3,068 photographs of ten kinds of garment as people take them, and 372 to test; dogs, 1,500 of ten
breeds, and 500 to test; objects, 5,000 of CIFAR-10's training images, and its 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _bench
import pyarrow.parquet as pq
import torch

import manyviews as mv
from manyviews.progress import duration

SETS = ("clothes", "dogs", "objects")
MINUTES = (10, 30, 120)
OBJECTS = 5_000


def place(name: str, data: Path, folder: Path) -> tuple[str, str | None]:
    """Images to train on with their labels, and test images if they lie elsewhere."""
    if name == "clothes":
        return str(data / "clothing10_192.zip"), None
    if name == "dogs":
        return str(data / "imagewoof160_mini.zip"), None
    file = folder / "objects.parquet"
    if not file.exists():
        pq.write_table(next(iter_rows(data / "cifar10_train.parquet")), file)
    return str(file), str(data / "cifar10_test.parquet")


def iter_rows(file: Path) -> Any:
    """The first rows of a Parquet file, as a table."""
    import pyarrow as pa

    for rows in pq.ParquetFile(file).iter_batches(OBJECTS):
        yield pa.Table.from_batches([rows])


def chosen(images: str, minutes: int, folder: Path) -> dict[str, Any]:
    """The recipe that is chosen for a time, and the epochs that fit: of a run that is stopped at its start."""
    out = folder / f"chosen{time.monotonic_ns()}"
    run = subprocess.Popen(
        [sys.executable, "-m", "manyviews", "pretrain", images, "--budget", f"{minutes}m", "--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    assert run.stderr is not None
    said = ""
    for line in run.stderr:
        said += line
        if line.startswith("Recipe ") or run.poll() is not None:
            break
    while not (out / "recipe.json").exists() and run.poll() is None:
        time.sleep(0.2)
    run.kill()
    run.wait()
    recipe = mv.Run(out).recipe
    speed = re.search(r"at ([\d,]+) images a second", said)
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "batch_size": recipe.data.batch_size,
        "images_per_second": None if speed is None else int(speed[1].replace(",", "")),
        "said": said.strip().splitlines()[-1],
    }


def scores(report: mv.evaluation.Report) -> dict[str, dict[str, float]]:
    """Accuracies in percent, by representation and protocol."""
    return {
        name: {protocol: round(100 * score.top1, 2) for protocol, score in found.scores.items()}
        for name, found in report.representations.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--weights", type=Path, nargs="*", default=[])
    options.add_argument(
        "--cases", nargs="*", default=[f"{s}:{m}:{seed}" for m in MINUTES for s in SETS for seed in range(3)]
    )
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {"chosen": {}, "runs": {}, "weights": {}} | found
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = [case.split(":") for case in asked.cases]
        for name, minutes in {(name, minutes): None for name, minutes, _ in wanted}:
            if f"{name}:{minutes}" not in found["chosen"]:
                found["chosen"][f"{name}:{minutes}"] = chosen(place(name, asked.data, folder)[0], int(minutes), folder)
                print(f"{name}, {minutes} minutes: {found['chosen'][f'{name}:{minutes}']['said']}", flush=True)
                _bench.write(asked.out, found)
        torch.set_num_threads(1)
        for file in asked.weights:
            for name in {name: None for name, *_ in wanted}:
                if f"{name}:{file.stem}" not in found["weights"]:
                    images, test = place(name, asked.data, folder)
                    report = mv.evaluate(file, images, test, protocols=("knn", "linear"), baselines=False)
                    found["weights"][f"{name}:{file.stem}"] = scores(report)["trained"]
                    _bench.write(asked.out, found)
        for name, minutes, seed in wanted:
            case = f"{name}:{minutes}:{seed}"
            if case in found["runs"]:
                continue
            images, test = place(name, asked.data, folder)
            plan = found["chosen"][f"{name}:{minutes}"]
            settings = {"seed": int(seed), "data.batch_size": plan["batch_size"]}
            out = folder / case.replace(":", "-")
            run = mv.pretrain(images, plan["recipe"], epochs=plan["epochs"], settings=settings, out=out)
            report = run.evaluate(images, test, protocols=("knn", "linear"), baselines=seed == "0")
            assert run.summary is not None
            facts = _bench.facts(torch.device("cpu"))
            torch.set_num_threads(1)
            found["runs"][case] = {"scores": scores(report), "seconds": round(run.summary["seconds"]), **facts}
            print(f"{case}: {found['runs'][case]['scores']}, {duration(run.summary['seconds'])}", flush=True)
            _bench.write(asked.out, found)


if __name__ == "__main__":
    main()
