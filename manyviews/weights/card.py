"""The model card of an exported encoder: what is known about it, in Markdown, as the Hugging Face Hub shows it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from manyviews.backbones import Encoder
from manyviews.engine.folder import ENCODER, RECIPE, RunFolder
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import short_side
from manyviews.weights.load import Pretrained
from manyviews.weights.model import Model
from manyviews.weights.pixels import pixels

_UNKNOWN = "unknown"


def card(weights: Pretrained) -> str:
    """A README.md for a folder of the Hub. Facts come from the run if the encoder is a run's; others are "unknown".

    The licence of the weights is the user's to choose, and follows from that of the images: the card says "unknown".
    """
    encoder = weights.encoder
    assert isinstance(encoder, Encoder)
    run = run_of(weights)
    about = {} if run is None else run.facts
    recipe = None if run is None else run.recipe
    ended = None if run is None else run.summary
    name = printable(Path(weights.name).parent.name if run is not None else Path(weights.name).name, 80)
    rows = {
        "Architecture": f"{encoder.name} (timm), {sum(p.numel() for p in encoder.parameters()):,} parameters",
        "Features": f"{encoder.embed_dim} numbers for each image",
        "Method": _UNKNOWN if recipe is None else recipe.method.name,
        "Recipe": _UNKNOWN
        if recipe is None
        else f"{recipe.name}: {recipe.epochs:g} epochs of batches of {recipe.data.batch_size}, seed {recipe.seed}",
        "Training data": about.get("data") or _UNKNOWN,
        "Training images": about.get("images", _UNKNOWN),
        "Training steps": _UNKNOWN if ended is None else ended.get("steps", _UNKNOWN),
        "Started": about.get("started", _UNKNOWN),
        "Machine": about.get("machine", _UNKNOWN),
        "License of the weights": _UNKNOWN,
        "License of the images": _UNKNOWN,
        "Weights before training": _UNKNOWN
        if recipe is None
        else {True: "timm's", False: "random"}.get(start := recipe.backbone.settings.get("pretrained", False), start),
    }
    return "\n".join(
        [
            "---",
            "license: unknown",
            "library_name: timm",
            f"pipeline_tag: image-{'classification' if isinstance(weights, Model) else 'feature-extraction'}",
            "tags:",
            "- self-supervised-learning",
            "- manyviews",
            "---",
            "",
            f"# {_cell(name)}",
            "",
            f"A model of {len(weights.classes)} {'numbers' if weights.task == 'numbers' else 'classes'} of images, "
            "adapted by manyviews."
            if isinstance(weights, Model)
            else "An image encoder without a classifier, trained without labels by manyviews."
            if run is not None
            else "An image encoder without a classifier, exported by manyviews.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {k} | {_cell(v)} |" for k, v in rows.items()),
            "",
            "## Images",
            "",
            *_images(weights, encoder),
            "",
            "## Use",
            "",
            "```python",
            "import timm",
            "",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"',
            "```",
            "",
            "```python",
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            'processor, model = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER")',
            "```",
            "",
            "## Numbers",
            "",
            *_numbers(run),
            "",
        ]
    )


def run_of(weights: Pretrained) -> RunFolder | None:
    """The run that the encoder is from."""
    path = Path(weights.name)
    if path.name != ENCODER or not (path.parent / RECIPE).exists():
        return None
    run = RunFolder(path.parent)
    try:
        _ = run.recipe
    except UserError:
        return None
    return run


def _images(weights: Pretrained, encoder: Encoder) -> list[str]:
    """How an image becomes the encoder's input."""
    size, short = weights.test_size, short_side(weights.test_size)
    return [
        f"The encoder takes {size} x {size} pixels of {encoder.channels} channels, in [0, 1], less the mean "
        f"{_list(weights.mean)}, divided by the standard deviation {_list(weights.std)}. Resize an image so that its "
        f"short side has {short} pixels (bicubic, antialiased), and take the central square of {size}.",
        *([] if weights.reading is None else [f"Image files are read as {_cell(weights.reading)}."]),
        *([] if encoder.channels != 3 else ["", *steps(weights)]),
    ]


def steps(weights: Pretrained) -> list[str]:
    """The same for RGB files of 8 bits, as a program in Pillow and NumPy: a block of Markdown."""
    mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (weights.mean, weights.std))
    return [
        "```python",
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        "",
        *inspect.getsource(pixels).rstrip().splitlines(),
        "",
        "",
        f"mean, std = np.float32([{mean}]), np.float32([{std}])",
        f'x = (pixels("photo.jpg", {weights.test_size}, {short_side(weights.test_size)}) - mean[:, None, None]) '
        "/ std[:, None, None]",
        "```",
    ]


def _numbers(run: RunFolder | None) -> list[str]:
    from manyviews.reporting.summary import latest

    report = None if run is None else latest(run.path)
    if report is None:
        return ["The encoder has not been evaluated in its run: unknown."]
    rows = [
        f"| {_cell(protocol)} | {_cell(who)} | {100 * score.top1:.1f} % | {100 * score.interval[0]:.1f} to "
        f"{100 * score.interval[1]:.1f} % |"
        for who, found in report.representations.items()
        for protocol, score in found.scores.items()
    ]
    images = ", ".join(f"{count} {kind}" for kind, count in report.images.items())
    return [
        f"Evaluated on {_cell(report.source)} ({images} images) at {report.test_size} pixels.",
        "",
        "| protocol | features | accuracy | 95 % interval |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _list(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values) + "]"


def _cell(text: object) -> str:
    """Text that Markdown and HTML leave as it is: names of folders and classes come from anywhere."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", printable(text, 300))
