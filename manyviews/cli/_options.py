"""Shared by several verbs: options, their help texts, and ways to print and write results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import manyviews as mv

# Nothing heavy is imported here: `manyviews --help` answers at once.
from manyviews.cli._parser import Arg, Argument
from manyviews.errors import UserError, printable

if TYPE_CHECKING:
    from manyviews.evaluation.dense import Dense
    from manyviews.verbs.run import Run
    from manyviews.weights import Pretrained

_WEIGHTS = (
    "The folder of a run or of a model, a file of weights (from this library, timm, transformers, torchvision, "
    "OpenMMLab, lightly, MoCo, DINO, MAE and others), a folder of the Hugging Face Hub, or timm:NAME for timm's own "
    "weights."
)
_TRAINING = (
    'A folder of images, or "demo"; Parquet or tar files, as a path, a URL, or a pattern such as '
    '"s3://photos/{00..99}.tar".'
)
_LABELS = "For a folder, a CSV file of path,label; for Parquet or tar files, a column, or a member or field."

Weights = Annotated[str, Arg("RUN_OR_WEIGHTS", _WEIGHTS)]
Training = Annotated[str, Arg("DATA", _TRAINING)]
Images = Annotated[str, Arg("DATA", "A folder of images, or Parquet or tar files: see `manyviews pretrain --help`.")]
Scenes = Annotated[Path, Arg("DATA")]
DataSet = Annotated[str | None, Arg("DATA")]
Labels = Annotated[Path | None, Arg("FILE_OR_COLUMN", _LABELS)]
TestLabels = Annotated[Path | None, Arg("FILE_OR_COLUMN", "The same for the test images.")]
RunFolder = Annotated[Path, Arg("RUN", "The folder of the run.")]
RunOrModel = Annotated[Path, Arg("RUN_OR_MODEL", "The folder of a run, or of a model that `manyviews adapt` wrote.")]
RunFolders = Annotated[tuple[Path, ...], Arg("RUN")]
Recipe = Annotated[str, Arg("NAME", "Name of the recipe: see `manyviews list recipes`.")]
Epochs = Annotated[float | None, Arg("N", "Passes over the images. By default, the recipe's number.")]
BatchSize = Annotated[int | None, Arg("N", "Images per step, as --set data.batch_size=N.")]
LearningRate = Annotated[
    float | None,
    Arg("RATE", "Base learning rate, which optimizer.lr_scaling scales with the batch; as --set optimizer.lr=RATE."),
]
Settings = Annotated[tuple[str, ...], Arg("PATH=VALUE", repeat=True)]
Protocols = Annotated[str, Arg("NAME,NAME,...")]
Count = Annotated[int, Arg("N")]
Pixels = Annotated[int, Arg("PIXELS")]
Stages = Annotated[
    tuple[int, ...] | None,
    Arg("N", "Stages of the network, counted from the back as -1, -2; several are concatenated."),
]
NewFile = Annotated[Path, Arg("FILE")]
NewFolder = Annotated[Path, Arg("FOLDER")]
Json = Annotated[Path | None, Arg("FILE", "Also write the results to this file, as JSON. An older file is replaced.")]
Values = Annotated[tuple[float, ...] | None, Arg("X")]

DEVICE = Argument(
    "device",
    Literal["cpu", "cuda", "mps", "xpu"],
    many=False,
    default=None,
    positional=False,
    arg=Arg(help="Where to compute: mps is Apple's GPU, xpu Intel's. By default, a GPU if PyTorch sees one."),
)
"""An option of every verb that computes: see `manyviews.machine.using`."""


@dataclass(frozen=True)
class Hints:
    """Options for weights of other libraries, which may not record these.

    Attributes:
        backbone: Timm's name of the architecture, if the weights do not tell it.
        num_heads: Number of attention heads of a vision transformer, which weights never tell.
        test_size: Side of the images that the encoder sees, in pixels.
        mean: Mean of each channel that is subtracted from images in [0, 1].
        std: Standard deviation of each channel that images are divided by.
    """

    backbone: Annotated[str | None, Arg("NAME")] = None
    num_heads: Annotated[int | None, Arg("N")] = None
    test_size: Annotated[int | None, Arg("PIXELS")] = None
    mean: Values = None
    std: Values = None


NO_HINTS = Hints()


def load(weights: str, hints: Hints) -> str | Pretrained:
    """Load the weights. A run stays a path, so that an evaluation of it is written to its folder."""
    if hints == NO_HINTS and Path(weights).is_dir():
        return weights
    settings = {} if hints.num_heads is None else {"num_heads": hints.num_heads}
    loaded: Pretrained = mv.load(
        weights, hints.backbone, test_size=hints.test_size, mean=hints.mean, std=hints.std, **settings
    )
    return loaded


def names(listed: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def settings(pairs: tuple[str, ...], flag: str = "--set", example: str = "optimizer.lr=0.1") -> dict[str, str]:
    """Settings by dotted path. Raises UserError if a pair has no "="."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"{flag} takes path=value, such as {example}, not '{pair}'.")
    return dict(pair.split("=", 1) for pair in pairs)


def with_short(pairs: tuple[str, ...], **short: Any) -> dict[str, Any]:
    """Settings by dotted path, those that have an option of their own among them.

    Raises:
        UserError: a pair without "=", or a setting that both say.
    """
    found: dict[str, Any] = dict(settings(pairs))
    for name, value in short.items():
        path = _SHORT[name]
        if value is None:
            continue
        if path in found:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} and --set {path} both set {path}: leave one of them out.")
        found[path] = value
    return found


_SHORT = {
    "batch_size": "data.batch_size",
    "lr": "optimizer.lr",
    "seed": "seed",
    "epochs": "epochs",
    "backbone": "backbone.name",
}
"""Settings of a recipe that have an option of their own."""


def wrote(path: Path | str) -> None:
    """Print where a result was written."""
    print(f"Wrote {printable(str(path))}.")


def write_json(path: Path | None, result: Any) -> None:
    """Write the results, as an object or as JSON text, if a path was given."""
    from manyviews.checkpoint import write_text

    if path is None:
        return
    try:
        write_text(path, result if isinstance(result, str) else json.dumps(result, indent=2))
    except OSError as e:
        raise UserError(f"The results cannot be written to {path}: {e.strerror}.") from None


def check_json(path: Path) -> None:
    """Raise UserError if results cannot be written to `path`."""
    from manyviews.checkpoint import check_writable

    if path.is_dir():
        raise UserError(f"The results cannot be written to {path}, which is a folder: name a file.")
    check_writable(path)


def show_finished(run: Run, out: Path | None) -> None:
    """Print a run that ended, in the first process only."""
    from manyviews import distributed
    from manyviews.reporting import summary

    if distributed.rank() == 0:
        summary.show_run(run)
        write_json(out, facts(run))
    distributed.stop()


def show_dense(found: Dense, out: Path | None) -> None:
    """Print the result of segment, detect or propagate, in the first process only."""
    from manyviews import distributed
    from manyviews.reporting import summary

    if distributed.rank() == 0:
        summary.show_dense(found)
        write_json(out, found.to_dict())
    distributed.stop()


def facts(run: Run) -> dict[str, Any]:
    """Everything known about a run, as JSON can hold it."""
    from manyviews.settings import to_json

    return {
        "folder": str(run.folder),
        "recipe": json.loads(to_json(run.recipe)),
        "run": run.facts,
        "summary": run.summary,
    }
