"""Which backbone for these images: candidates side by side, a recommendation in words, and what to do next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyviews import checkpoint, evaluation, machine
from manyviews.backbones import Encoder
from manyviews.data import Source, split
from manyviews.errors import Unreachable, UserError, printable, say
from manyviews.evaluation.features import extract, frozen
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.sets import FEWEST
from manyviews.evaluation.unlabeled.spectrum import describe
from manyviews.progress import Outer, duration, progress, within
from manyviews.reporting import found as pages
from manyviews.tuning.ladder import plan
from manyviews.tuning.pace import Pace, measure
from manyviews.tuning.strategies import STRATEGIES
from manyviews.verbs._common import new_file, opened, preprocessing, seen_by
from manyviews.verbs.run import Run
from manyviews.weights import Pretrained, load

USUAL = (
    "timm:resnet50.a1_in1k",
    "timm:vit_small_patch16_224.dino",
    "timm:vit_small_patch14_reg4_dinov2.lvd142m",
    "timm:vit_base_patch16_224.mae",
)
"""Candidates if none are given: supervised, self-distilled, self-distilled with masks, and masked."""

FAMILIES = {
    "masked": ("mae", "fcmae", "simmim", "maskfeat", "beit", "beitv2", "dbot", "data2vec", "data2vec2", "ijepa"),
    "hybrid": ("dinov2", "dinov3", "ibot", "msn", "eva", "eva02"),
    "global": (
        *("simclr", "moco_v2", "moco_v3", "byol", "simsiam", "swav", "dino", "nnclr", "vicreg", "barlow_twins", "mast"),
        *("clip", "ssl", "swsl"),
    ),
}
"""Methods by what their features know (lecture, section 22.7.1)."""

SUITS = {
    "masked": "learned by rebuilding what is hidden: its patches know where things are, which suits segmentation, "
    "detection and depth; for classes it usually has to be fine-tuned.",
    "hybrid": "learned from whole images and from hidden patches: it suits classes and search, and segmentation too.",
    "global": "learned to tell images apart: it suits classes and search; its patches say less about where things are.",
    "supervised": "learned from labels: it suits classes like those, and less what its labels did not name.",
    "untold": "",
}

MOST = 2000
"""Images whose spectrum is measured, and that are searched for neighbors."""

_SHOWN, _NEAR = 6, 6  # images whose neighbors are shown, and how many
_HELD = 0.2  # share of the labeled images that judge
_BATCH = 32


@dataclass(frozen=True)
class Candidate:
    """A backbone on these images, on this machine. Accuracies and their 95 % intervals are in [0, 1].

    Attributes:
        name: as it was given.
        backbone: timm's name of the architecture.
        family: a key of `SUITS`.
        parameters: number of weights.
        dim: dimensions of its features.
        test_size: side in pixels of the images that it sees.
        images_per_second: encoded, without decoding.
        memory: bytes of the weights in float32; on a GPU the peak while it encodes 32 images.
        knn: k-NN accuracy (k = 20) on held-out images; None without labels.
        knn_interval: its interval.
        linear: accuracy of a linear probe.
        linear_interval: its interval.
        spectrum: numbers of the features: see `evaluation.unlabeled.spectrum.describe`.
    """

    name: str
    backbone: str
    family: str
    parameters: int
    dim: int
    test_size: int
    images_per_second: float
    memory: int
    knn: float | None
    knn_interval: tuple[float, float] | None
    linear: float | None
    linear_interval: tuple[float, float] | None
    spectrum: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """Candidates, and which to take.

    Attributes:
        candidates: those that could be had, in the order given.
        skipped: why others could not, by name.
        best: name of the one to take; None where nothing speaks for one.
        pixels: accuracy of raw pixels by k-NN and a linear probe; None without labels.
        images: number of images.
        words: what follows, in sentences.
        page: the page of nearest neighbors, if one was asked for.
    """

    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]
    best: str | None
    pixels: tuple[float, float] | None
    images: int
    words: tuple[str, ...]
    page: Path | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "page": None if self.page is None else str(self.page)}


def choose(
    data: Any,
    candidates: Sequence[str | Path] = USUAL,
    *,
    labels: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Choice:
    """Compare backbones on images, on this machine, and say which to take and what to do next.

    With labels, a fifth of the images is held out, by a stable hash of each image's name, and judges: a set's own test
    images are not looked at. Without labels no number compares networks of different kinds fairly, so the choice is by
    eye, on a page of nearest neighbors, and by what each network is known for.

    Args:
        data: images, of which a training part is taken: see `manyviews.data.open_source`.
        candidates: run folders or weights: see `manyviews.load`. Those that cannot be had are named and left out.
        labels: a CSV file of `path,label`, or a column: see `open_source`.
        out: a new HTML page of nearest neighbors, those of each candidate side by side.
        seed: seed of the probes and intervals.

    Raises:
        UserError: bad input, or no candidate can be had.
    """
    page = None if out is None else new_file(out)
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is a page to look at: give a name that ends in .html, not {page}.")
    source = opened(data, labels)
    able, skipped = _had(candidates)
    labeled = _labeled(source)
    found: list[Candidate] = []
    near: list[list[list[int]]] = []
    paces: dict[str, Pace] = {}
    pixels = None
    for number, (name, known) in enumerate(able.items(), 1):
        say(f"{printable(name)}: {known.encoder.name}, images of {known.test_size} pixels.")
        (seen,) = seen_by(known, source, quiet=number > 1)
        with within(Outer(f"candidate {number} of {len(able)}", None, "choose")):
            scores, theirs = _judged(known, seen, seed, number == 1) if labeled else (None, None)
            pixels = theirs if number == 1 else pixels
            one, rows, paces[name] = _measured(name, known, seen, scores)
        found.append(one)
        near.append(rows)
    best = _best(found) if labeled else None
    words = _words(found, best, pixels, source, paces, able)
    if page is not None:
        few = _few(source)
        titles = [f"{c.name} ({c.backbone})" for c in found]
        checkpoint.write_text(page, pages.compared(few, titles, near, "choose"))
    return Choice(tuple(found), skipped, None if best is None else best.name, pixels, len(source), tuple(words), page)


def _had(candidates: Sequence[str | Path]) -> tuple[dict[str, Pretrained], dict[str, str]]:
    """The candidates that can be loaded, and why others cannot."""
    if not candidates:
        raise UserError("There is nothing to choose from: give candidates, such as timm:resnet50 or a run's folder.")
    able: dict[str, Pretrained] = {}
    skipped: dict[str, str] = {}
    from huggingface_hub import constants  # of timm, imported late as timm is

    offline = constants.HF_HUB_OFFLINE
    try:
        for given in dict.fromkeys(map(str, candidates)):
            try:
                able[given] = load(given)
            except UserError as error:
                skipped[given] = str(error)
                say(f"Left out {given}: {error}")
                if isinstance(error, Unreachable):  # found out in a minute of attempts, and not again for each
                    constants.HF_HUB_OFFLINE = True
    finally:
        constants.HF_HUB_OFFLINE = offline
    if not able:
        raise UserError(
            f"None of the {len(skipped)} candidates can be had. Download weights elsewhere and give their files, or "
            "give the folders of runs."
        )
    return able, skipped


def _labeled(source: Source) -> bool:
    """Whether labels judge: there are some, of two classes that all have images enough."""
    if source.labels is None or source.doubt:
        return False
    learning = torch.as_tensor(source.labels)[torch.as_tensor(_parts(source)["train"])]
    counts = torch.bincount(learning, minlength=len(source.classes or ()))
    if len(counts) < 2 or int(counts.min()) < FEWEST:
        say(
            f"{source.name}: its labels do not judge, because every class needs {FEWEST} images among the four fifths "
            "that probes learn from."
        )
        return False
    return True


def _parts(source: Source) -> dict[str, np.ndarray]:
    """Positions of the images that probes learn from, and of those that judge."""
    return split(source.ids, {"train": 1 - _HELD, "judge": _HELD}, salt="choose")


def _few(source: Source) -> Source:
    """Up to `MOST` images, spread over the source."""
    step = -(-len(source) // MOST)
    return source.subset(range(0, len(source), step))


Scores = dict[str, Any]


def _judged(known: Pretrained, source: Source, seed: int, first: bool) -> tuple[Scores, tuple[float, float] | None]:
    """Scores by protocol on held-out images of the training part, and those of raw pixels."""
    parts = _parts(source)
    with progress("choose") as update:
        report = evaluation.evaluate(
            known.encoder,
            source.subset(parts["train"]),
            source.subset(parts["judge"]),
            seed=seed,
            baselines=first,
            progress=update,
            **preprocessing(known),
        )
    theirs = report.representations.get("pixels")
    pixels = None if theirs is None else (theirs.scores["knn"].top1, theirs.scores["linear"].top1)
    return dict(report.representations["trained"].scores), pixels


def _measured(
    name: str, known: Pretrained, source: Source, scores: Scores | None
) -> tuple[Candidate, list[list[int]], Pace]:
    """A candidate's numbers, the nearest neighbors of a few images, and its pace."""
    how, few = preprocessing(known), _few(source)
    with progress("choose") as update:
        seen = extract(known.encoder, few, progress=update, **how)
    rows = torch.linspace(0, len(seen) - 1, min(_SHOWN, len(seen))).long()
    _, index = neighbors(seen.x, seen.x[rows], min(1 + _NEAR, len(seen)))
    shown = [
        seen.index[torch.cat([row[None], near[near != row][:_NEAR]])].tolist()
        for row, near in zip(rows, index, strict=True)
    ]
    encoder = known.encoder
    speed, memory = _speed(known, how["device"])
    knn, linear = (None, None) if scores is None else (scores["knn"], scores["linear"])
    found = Candidate(
        name,
        encoder.name,
        family(name),
        sum(p.numel() for p in encoder.parameters()),
        seen.x.shape[1],
        known.test_size,
        speed,
        memory,
        knn and knn.top1,
        knn and knn.interval,
        linear and linear.top1,
        linear and linear.interval,
        describe(seen.x),
    )
    pace = measure(encoder, few, known.test_size, how["device"]) if isinstance(encoder, Encoder) else None
    return found, shown, pace or Pace(0.0, 1 / speed, 3 / speed)


def _speed(known: Pretrained, device: torch.device) -> tuple[float, int]:
    """Images encoded in a second, and bytes: of the weights, on a GPU at the peak."""
    encoder, side = known.encoder.to(device), known.test_size
    x = torch.rand(_BATCH, len(known.mean), side, side, device=device).to(memory_format=torch.channels_last)
    memory = sum(p.numel() * p.element_size() for p in encoder.parameters())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with frozen(encoder):
        encoder(x)  # the first allocates
        begun, rounds = time.monotonic(), 0
        while rounds < 1 or (rounds < 20 and time.monotonic() - begun < 1):
            encoder(x)
            machine.wait(device)
            rounds += 1
        speed = _BATCH * rounds / (time.monotonic() - begun)
    return speed, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory


def family(name: str) -> str:
    """What the features know, by the method of a run or the words of a name: a key of `SUITS`."""
    if (Path(name) / "recipe.json").is_file():
        words = {Run(Path(name)).recipe.method.name}
    else:
        words = {*name.lower().replace(".", "_").replace("-", "_").replace(":", "_").split("_")}
    for kind, methods in FAMILIES.items():
        if words & set(methods):
            return kind
    return "supervised" if name.startswith("timm:") else "untold"


def _best(found: Sequence[Candidate]) -> Candidate:
    """The fastest of those that cannot be told from the best linear probe: whose interval holds its accuracy."""
    top = max(found, key=lambda c: c.linear or 0.0)
    equal = [c for c in found if c.linear_interval is not None and c.linear_interval[1] >= (top.linear or 0.0)]
    return max(equal, key=lambda c: c.images_per_second)


def _words(
    found: Sequence[Candidate],
    best: Candidate | None,
    pixels: tuple[float, float] | None,
    source: Source,
    paces: dict[str, Pace],
    able: dict[str, Pretrained],
) -> list[str]:
    """What follows."""
    words = []
    if best is None:
        words.append(
            "There are no labels to judge by, and no number without them compares networks of different kinds fairly: "
            "look at the neighbors (--out page.html), and label a few hundred images."
        )
    else:
        assert best.linear is not None and best.knn is not None and pixels is not None and source.classes is not None
        top = max(found, key=lambda c: c.linear or 0.0)
        words.append(
            f"Take {best.name}: {100 * best.linear:.1f} % by a linear probe, raw pixels {100 * pixels[1]:.1f} %."
        )
        if best is not top:
            words[-1] += (
                f" {top.name} has {100 * (top.linear or 0):.1f} %, which is no clear difference, and is slower."
            )
        chance = 1 / len(source.classes)
        share = max(0.0, (best.knn - chance) / (1 - chance))
        per_class = (1 - _HELD) * len(source) / len(source.classes)
        known = able[best.name]
        rungs, why = plan(per_class, share, bool(getattr(known.encoder, "is_transformer", False)))
        words.append(why)
        n = round((1 - _HELD) * len(source))
        pace, held = paces[best.name], len(source) - n
        first = pace.features(len(source))
        each = [f"linear {duration(first)}"]
        each += [f"{rung} up to {duration(first + pace.most(STRATEGIES[rung](), n, held))}" for rung in rungs]
        words.append(
            f"Next: manyviews adapt {best.name} --data LABELED_IMAGES. Here it takes, by strategy: {', '.join(each)}."
        )
        if share < 0.6 and len(source) >= 500:
            words.append(
                "The images are far from what it has learned, and there may be more without labels: manyviews pretrain "
                f"IMAGES --init {best.name} brings it nearer first."
            )
    words += [f"{c.name}: {SUITS[c.family]}" for c in found if SUITS[c.family]]
    return words
