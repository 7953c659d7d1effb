"""Which backbone for these images: candidates side by side, a recommendation in words, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyviews import checkpoint, machine
from manyviews.backbones import Encoder
from manyviews.data import Source, split
from manyviews.errors import Unreachable, UserError, printable, say
from manyviews.evaluation.baselines import Pixels
from manyviews.evaluation.contract import FeatureProtocol
from manyviews.evaluation.features import Features, Kept, check_finite, extract_all, frozen, normalize, read_again
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.linear import standardized
from manyviews.evaluation.protocols import requested
from manyviews.evaluation.report import Score
from manyviews.evaluation.scores import score
from manyviews.evaluation.sets import FEWEST, Sets
from manyviews.evaluation.unlabeled.regions import Regions, drawn, regions
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

_SHOWN, _NEAR = 6, 5  # images whose neighbors are shown, and how many
_HELD = 0.2  # share of the labeled images that judge
_PARTS = 60  # images whose patches are clustered
_FEWEST = 9  # patches of a map that has regions
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
        memory: bytes of the weights.
        knn: k-NN accuracy (k = 20) on held-out images; None without labels.
        knn_interval: its interval.
        linear: accuracy of a linear probe.
        linear_interval: its interval.
        spectrum: numbers of the features: see `evaluation.unlabeled.spectrum.describe`.
        edges: how well regions that its patches fall into keep to edges, in [0, 1], 0.5 by chance: see
            `evaluation.unlabeled.regions`; None for networks without a map of patches.
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
    edges: float | None


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
    # Candidates that see images of one size share what was decoded.
    source = replace(source, keep=Kept(machine.free_memory() // 4))
    seen = source if labeled else _few(source)
    paces = {name: measure(known.encoder, source, known.test_size, machine.device()) for name, known in able.items()}
    seconds = sum(pace.features(len(seen)) for pace in paces.values())
    say(f"{_count(able)} on {len(seen):,} images: about {duration(seconds)} on this machine, and a little for probes.")
    looks: list[_Look] = []
    for number, (name, known) in enumerate(able.items(), 1):
        say(f"{printable(name)}: {known.encoder.name}, images of {known.test_size} pixels.")
        (read,) = seen_by(known, seen, quiet=number > 1)
        rest = sum(paces[later].features(len(seen)) for later in list(able)[number:])
        with within(Outer(f"candidate {number} of {len(able)}", rest, "choose")):
            looks.append(_look(name, known, read, source, labeled, number == 1, paces[name], seed))
    found, pixels = [look.candidate for look in looks], looks[0].pixels
    best = _best(found) if labeled else None
    words = _words(found, best, pixels, source, paces, able)
    if page is not None:
        rows = [pages.Row(f"{c.name} ({c.backbone})", k.near, k.maps) for c, k in zip(found, looks, strict=True)]
        checkpoint.write_text(page, pages.compared(_few(source), rows, "choose"))
    return Choice(tuple(found), skipped, None if best is None else best.name, pixels, len(source), tuple(words), page)


def _count(able: Mapping[str, Pretrained]) -> str:
    return "1 candidate" if len(able) == 1 else f"{len(able)} candidates"


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
    return source.subset(range(0, len(source), _step(source)))


def _step(source: Source) -> int:
    """Each how many-th image is among the few."""
    return max(1, -(-len(source) // MOST))


@dataclass(frozen=True, eq=False)
class _Look:
    """What one candidate shows: its numbers, those of raw pixels, and what the page has of it.

    Attributes:
        candidate: its numbers.
        pixels: accuracies of raw pixels, if they were asked for.
        near: for a few images, positions among `_few` of the image and of its nearest neighbors.
        maps: their regions as pictures, if it has a map of patches.
    """

    candidate: Candidate
    pixels: tuple[float, float] | None
    near: list[list[int]]
    maps: list[np.ndarray] | None


def _look(
    name: str, known: Pretrained, read: Source, source: Source, labeled: bool, first: bool, pace: Pace, seed: int
) -> _Look:
    """Read all images that a candidate is shown, once, and see what it makes of them."""
    encoder, how = known.encoder, preprocessing(known)
    contenders: dict[str, nn.Module] = {"trained": encoder}
    if labeled and first:
        contenders["pixels"] = Pixels()
    with progress("choose") as update:
        seen = extract_all(contenders, read, progress=update, **how)
    check_finite(seen["trained"].x)
    scores = _judged(read, seen, how["device"], seed) if labeled else {}
    few = _few(read) if labeled else read
    spread = seen["trained"].index % (_step(source) if labeled else 1) == 0
    some = seen["trained"].rows(spread)
    places = some.index // (_step(source) if labeled else 1)  # positions among the few
    looked = torch.linspace(0, len(some) - 1, min(_PARTS, len(some))).long()
    shown = looked[torch.linspace(0, len(looked) - 1, min(_SHOWN, len(looked))).long()]
    _, index = neighbors(some.x, some.x[shown], min(1 + _NEAR, len(some)))
    near = [
        places[torch.cat([row[None], others[others != row][:_NEAR]])].tolist()
        for row, others in zip(shown, index, strict=True)
    ]
    parts, pixels = _parts_of(known, few, places[looked])
    mine = scores.get("trained")
    candidate = Candidate(
        name,
        encoder.name,
        family(name),
        sum(p.numel() for p in encoder.parameters()),
        some.x.shape[1],
        known.test_size,
        1 / pace.encode,
        sum(p.numel() * p.element_size() for p in encoder.parameters()),
        mine and mine[0].top1,
        mine and mine[0].interval,
        mine and mine[1].top1,
        mine and mine[1].interval,
        describe(some.x),
        None if parts is None or math.isnan(parts.edges) else parts.edges,
    )
    maps = None
    if parts is not None:
        at = [int((looked == row).nonzero()[0]) for row in shown]
        maps = [drawn(parts.maps[i], pixels[i]) for i in at]
    theirs = scores.get("pixels")
    return _Look(candidate, theirs and (theirs[0].top1, theirs[1].top1), near, maps)


def _judged(
    source: Source, seen: Mapping[str, Features], device: torch.device, seed: int
) -> dict[str, tuple[Score, Score]]:
    """Scores of k-NN and of a linear probe on the images that judge, by contender."""
    parts = _parts(source)
    learn, judge = (source.subset(parts[part]) for part in ("train", "judge"))
    held = {
        part: {name: f.rows(torch.isin(f.index, torch.from_numpy(at))) for name, f in seen.items()}
        for part, at in parts.items()
    }
    classes = list(source.classes or ())
    sets = Sets.of(learn, judge, held["train"], held["judge"], classes, device, multilabel=False)
    found = {}
    for name in seen:
        task = standardized(sets.task(name)) if name == "pixels" else sets.task(name)
        knn, linear = (
            score([protocol.run(task, seed)], sets.test_y, len(classes), seed)
            for protocol in requested(("knn", "linear"), {})
            if isinstance(protocol, FeatureProtocol)
        )
        found[name] = knn, linear
    return found


def _parts_of(known: Pretrained, few: Source, places: Tensor) -> tuple[Regions | None, Tensor]:
    """Regions of some images, and these images, uint8 `n c h w`; no regions without a square map of patches."""
    encoder, how = known.encoder, preprocessing(known)
    pixels = torch.cat(list(read_again(few.subset(places.numpy()), known.test_size)))
    if not isinstance(encoder, Encoder):
        return None, pixels
    with frozen(encoder):
        patches = torch.cat(
            [
                encoder.features(normalize(x.to(how["device"]), known.mean, known.std)).patches.cpu()
                for x in pixels.split(_BATCH)
            ]
        )
    if patches.shape[1] < _FEWEST or math.isqrt(patches.shape[1]) ** 2 != patches.shape[1]:
        return None, pixels
    return regions(patches.clone(), pixels), pixels


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
