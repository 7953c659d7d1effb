"""Runs of all kinds of state: what a checkpoint has to hold."""

from __future__ import annotations

from pathlib import Path

SETTINGS = {
    "data.batch_size": 16,
    "data.holdout": 0.3,
    "epochs": 2,
    "monitor.steps": 1,
    "monitor.epochs": 1,
    "monitor.checkpoint_minutes": 0,
}

STATES: dict[str, tuple[str, dict[str, object]]] = {
    "queue": ("moco_v2_tiny", {}),
    "teacher": ("byol_tiny", {}),
    "teacher and center": ("dino_tiny", {}),
    "prototypes": ("swav_tiny", {}),
    "support set": ("nnclr_tiny", {}),
    "masks": ("mast_tiny", {}),
    "hidden patches": ("mae_tiny", {}),
    "stages": ("mae_tiny", {"stages": "(Stage(1, {'optimizer.lr': 1e-4}), Stage(1, {}, 'fresh'))"}),
    "regularizers": ("simclr_tiny", {"regularizers": "(KoLeo(0.1),)"}),
    "rescue": ("simclr_tiny", {"regularizers": "(Rescue(0.5),)"}),
    "accumulation": ("byol_tiny", {"step.accumulate": 2}),
    "images read anew": ("simclr_tiny", {"data.memory_gb": 0}),
    "adaptation": ("mae_tiny", {"adaptation": "LoRA(rank=2)"}),
}
"""A recipe, and the settings that differ from `SETTINGS`, for each kind of state."""


def command(state: str, images: Path, out: Path, weights: Path | None = None) -> list[str]:
    """The command of a run with this kind of state. Those with an adaptation begin from weights."""
    recipe, settings = STATES[state]
    pairs = [f"--set={k}={v}" for k, v in {**SETTINGS, **settings}.items()]
    start = ["--init", str(weights)] if "adaptation" in settings else []
    return ["pretrain", str(images), "--recipe", recipe, "--out", str(out), *start, *pairs]
