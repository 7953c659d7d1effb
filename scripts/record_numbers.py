"""Record what each method's small recipe computes: losses of 20 steps, final weights, and an evaluation.

    python scripts/record_numbers.py --out now.json
    python scripts/record_numbers.py --compare before.json      # on the machine that wrote before.json

`tests/data/recorded_93ea1ef.json` was written with `--spread 3` at commit 93ea1ef, and `tests/test_recorded.py` holds
today's code to it. MAST's part is of 2026-11-30, when its loss changed (`--only mast --spread 3`). Other processors
round differently, and training amplifies rounding. `--spread` measures by how much: it repeats each recording with
noise of 1e-6 of its root mean square on the output of every convolution and every linear layer. float32 sums of the at
most 1,000 terms that these networks have err by less.

Only public functions are called, so the script also runs at older commits: `PYTHONPATH=/path/to/checkout`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before PyTorch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import torch
from safetensors.torch import load_file

import manyviews as mv

NOISE = 1e-6
TRAIN, TEST = 160, 100  # images: five steps of 32 in an epoch
Settings = dict[str, Any]

# Names as of today first, then as of 93ea1ef.
STEPS: list[Settings] = [{"monitor.steps": 1, "monitor.epochs": 0}, {"observe.steps": 1, "observe.epochs": 0}]
EXECUTION: list[Settings] = [{"step.precision": "float32", "data.holdout": 0.0}]
VARIANTS: dict[str, tuple[str, list[Settings]]] = {
    "simclr, recomputed": ("simclr", [{"step.backward": "recompute"}, {"step.memory": "constant"}]),
    "dino, in parts": ("dino", [{"step.accumulate": 2}]),
    "byol, rescue": ("byol", [{"regularizers": "(Rescue(0.75),)"}, {"rescue": "Rescue(0.75)"}]),
}
"""Recordings besides those of the methods' own recipes: method, and the ways to write the settings."""


def names() -> list[str]:
    """Everything that can be recorded, methods first."""
    return [*mv.methods.names(), *VARIANTS]


def images(count: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Noise of 32 pixels around a color that nearly tells the class: uint8 `n h w 3`, and labels."""
    labels = np.arange(count) % classes
    colors = np.random.default_rng(1).uniform(60, 190, (classes, 3))
    pixels = colors[labels][:, None, None] + np.random.default_rng(seed).normal(0, 60, (count, 32, 32, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def record(name: str, *, baselines: bool = False) -> dict[str, Any]:
    """Pretrain 20 steps and evaluate.

    Args:
        name: One of `names()`.
        baselines: Whether an untrained encoder and raw pixels are evaluated too.

    Returns:
        "losses": for each term, 20 floats. "weights" and "state": SHA-256 of the encoder, by name, and of all that the
        checkpoint holds, whatever its name. "evaluation": the report, without times.
    """
    method, variants = VARIANTS.get(name, (name, [{}]))
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        run = _pretrain(f"{method}_tiny", variants, Path(folder, "run"))
        losses: dict[str, list[float]] = {}
        for row in run.log:
            for key in row:
                if key == "loss" or key.startswith("loss/"):
                    losses.setdefault(key, []).append(row[key])
        weights = load_file(run.folder / "encoder.safetensors")
        state = load_file(run.folder / "checkpoint.safetensors")
        # Loaded first: what is evaluated from its folder draws plots.
        report = mv.evaluate(mv.load(run.folder), images(TRAIN, 0), images(TEST, 2), baselines=baselines)
        facts = json.loads(report.to_json())
    return {
        "losses": losses,
        "weights": _hash(f"{k} {_hash_of(weights[k])}" for k in sorted(weights)),
        "state": _hash(sorted(map(_hash_of, state.values()))),
        "evaluation": {k: facts[k] for k in ("images", "representations")},
    }


def _pretrain(recipe: str, variants: list[Settings], out: Path) -> Any:
    refusal = None
    for parts in itertools.product(EXECUTION, STEPS, variants):
        settings = {k: v for part in parts for k, v in part.items()}
        try:
            return mv.pretrain(images(TRAIN, 0), recipe, epochs=4, settings=settings, out=out)
        except mv.UserError as error:  # a name of another version
            refusal = refusal or error
    raise refusal or AssertionError("no settings")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _hash(words: Any) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _hash_of(x: torch.Tensor) -> str:
    return hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes()).hexdigest()


# -- how far rounding carries ------------------------------------------------------------------------------------


@contextlib.contextmanager
def noise(seed: int) -> Iterator[None]:
    """Every convolution and linear layer errs by `NOISE` of the root mean square of its output."""
    draw = torch.Generator().manual_seed(seed)

    def err(module: torch.nn.Module, _: Any, y: Any) -> Any:
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            return y + NOISE * y.detach().square().mean().sqrt() * torch.randn(y.shape, generator=draw)
        return None

    handle = torch.nn.modules.module.register_module_forward_hook(err)
    try:
        yield
    finally:
        handle.remove()


def numbers(evaluation: dict[str, Any]) -> dict[str, list[float]]:
    """The numbers of an evaluation: "spectrum", continuous, and "accuracies", in steps of one image."""
    found: dict[str, list[float]] = {"spectrum": [], "accuracies": []}
    for representation in evaluation["representations"].values():
        found["spectrum"] += [representation["rankme"], representation["spread"], *representation["singular_values"]]
        for score in representation["scores"].values():
            found["accuracies"] += [score["top1"], *score["others"].values()]
    return found


def distances(one: dict[str, Any], two: dict[str, Any]) -> dict[str, list[float]]:
    """Largest differences of two recordings, relative to the largest value of each term or spectrum.

    Returns:
        "losses": after each step, over the terms. "spectrum" and "accuracies": one float, the last not relative.
    """
    if one["losses"].keys() != two["losses"].keys():
        raise ValueError(f"Other loss terms: {sorted(one['losses'])} and {sorted(two['losses'])}.")
    terms = [(np.array(one["losses"][k]), np.array(two["losses"][k])) for k in one["losses"]]
    steps = np.max([np.abs(a - b) / max(np.abs(a).max(), 1e-12) for a, b in terms], axis=0)
    a, b = numbers(one["evaluation"]), numbers(two["evaluation"])
    off = {k: np.abs(np.subtract(a[k], b[k])).max() for k in a}
    return {
        "losses": steps.tolist(),
        "spectrum": [float(off["spectrum"] / np.abs(a["spectrum"]).max())],
        "accuracies": [float(off["accuracies"])],
    }


def spread(name: str, recorded: dict[str, Any], times: int, *, baselines: bool = False) -> dict[str, list[float]]:
    """The largest distances of `times` noisy recordings from the recorded one."""
    found = []
    for seed in range(times):
        with noise(seed):
            found.append(distances(recorded, record(name, baselines=baselines)))
    return {k: np.max([f[k] for f in found], axis=0).tolist() for k in found[0]}


# -- the command -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the recordings to this JSON file")
    parser.add_argument("--compare", type=Path, help="compare with the recordings in this JSON file")
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME")
    parser.add_argument("--spread", type=int, default=0, help="noisy repetitions of each")
    options = parser.parse_args()
    before = json.loads(options.compare.read_text())["recordings"] if options.compare else {}
    found, equal = {}, True
    for name in options.only or before or names():
        baselines = name == "simclr"  # the same for all methods of one backbone
        found[name] = record(name, baselines=baselines)
        if options.spread:
            found[name]["spread"] = spread(name, found[name], options.spread, baselines=baselines)
        if name in before:
            off = {k: max(v) for k, v in distances(before[name], found[name]).items()}
            same = {k: before[name][k] == found[name][k] for k in ("losses", "weights", "state", "evaluation")}
            equal &= all(same.values())
            print(f"{name:20}", *(f"{k} {'equal' if v else 'DIFFERENT'}" for k, v in same.items()), end="; off by ")
            print(*(f"{k} {v:.2g}" for k, v in off.items()), flush=True)
    machine = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    if options.out:
        text = json.dumps({"machine": machine, "recordings": found}, separators=(",", ":"))
        options.out.write_text(text.replace('},"', '},\n"') + "\n")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
