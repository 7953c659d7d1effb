"""Shared by several verbs: options, their help texts, and ways to print and write results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

import manyviews as mv

# Nothing heavy is imported here: `manyviews --help` answers at once.
from manyviews.errors import UserError, printable

if TYPE_CHECKING:
    from manyviews.evaluation.dense import Dense
    from manyviews.verbs.run import Run
    from manyviews.weights import Pretrained

_WEIGHTS = (
    "The folder of a run, a file of weights (from this library, timm, transformers, torchvision, OpenMMLab, lightly, "
    "MoCo, DINO, MAE and others), a folder of the Hugging Face Hub, or timm:NAME for timm's own weights."
)
_TRAINING = (
    'A folder of images, or "demo"; Parquet or tar files, as a path, a URL, or a pattern such as '
    '"s3://photos/{00..99}.tar".'
)
_LABELS = "For a folder, a CSV file of path,label; for Parquet or tar files, a column, or a member or field."

Weights = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS", help=_WEIGHTS)]
Training = Annotated[Positional[str], arg(metavar="DATA", help=_TRAINING)]
Images = Annotated[
    Positional[str],
    arg(metavar="DATA", help="A folder of images, or Parquet or tar files: see `manyviews pretrain --help`."),
]
Scenes = Annotated[Positional[Path], arg(metavar="DATA")]
Labels = Annotated[Path | None, arg(metavar="FILE_OR_COLUMN", help=_LABELS)]
TestLabels = Annotated[Path | None, arg(metavar="FILE_OR_COLUMN", help="The same for the test images.")]
RunFolder = Annotated[Positional[Path], arg(metavar="RUN", help="The folder of the run.")]
RunFolders = Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
Recipe = Annotated[str, arg(metavar="NAME", help="Name of the recipe: see `manyviews list recipes`.")]
Epochs = Annotated[float | None, arg(metavar="N", help="Passes over the images, instead of the recipe's.")]
Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")]
Protocols = Annotated[str, arg(metavar="NAME,NAME,...")]
Count = Annotated[int, arg(metavar="N")]
Pixels = Annotated[int, arg(metavar="PIXELS")]
Stages = Annotated[
    tuple[int, ...] | None,
    arg(metavar="N N ...", help="Stages of the network, counted from the back as -1, -2; several are concatenated."),
]
NewFile = Annotated[Path, arg(metavar="FILE")]
NewFolder = Annotated[Path, arg(metavar="FOLDER")]
Json = Annotated[Path | None, arg(metavar="FILE", help="Also write the results to this file, as JSON; replaces it.")]
PerChannel = tuple[float, ...]


@dataclass(frozen=True)
class Hints:
    """Facts that a file of weights from elsewhere may not record.

    Attributes:
        backbone: Timm's name of the architecture, if the weights do not tell it.
        num_heads: Number of attention heads of a vision transformer, which weights never tell.
        test_size: Side of the images that the encoder sees, in pixels.
        mean: Mean of each channel that is subtracted from images in [0, 1].
        std: Standard deviation of each channel that images are divided by.
    """

    backbone: str | None = None
    num_heads: Annotated[int | None, arg(metavar="N")] = None
    test_size: Annotated[int | None, arg(metavar="PIXELS")] = None
    mean: PerChannel | None = None
    std: PerChannel | None = None


NO_HINTS = Hints()
Hinted = Annotated[Hints, arg(name="")]


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
    """Print the result of segment, detect or propagate."""
    from manyviews.reporting import summary

    summary.show_dense(found)
    write_json(out, found.to_dict())


def facts(run: Run) -> dict[str, Any]:
    """Everything known about a run, as JSON can hold it."""
    from manyviews.settings import to_json

    return {
        "folder": str(run.folder),
        "recipe": json.loads(to_json(run.recipe)),
        "run": run.facts,
        "summary": run.summary,
    }
