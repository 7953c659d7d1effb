"""Evaluate one encoder on many labeled sets."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manyviews.checkpoint import write_text
from manyviews.data import Source
from manyviews.data.folder import is_image
from manyviews.data.layout import SPLITS, split_in, split_of
from manyviews.data.left import is_system, listed
from manyviews.data.loose import open_paths
from manyviews.data.source import given as constant
from manyviews.data.sources import is_shard
from manyviews.errors import UserError, say
from manyviews.evaluation import Report
from manyviews.evaluation.contract import MetricProtocol, check_seeds
from manyviews.evaluation.dense.boxes import is_voc, open_pictures
from manyviews.evaluation.features import fingerprint, weights_digest
from manyviews.evaluation.protocols import requested, title
from manyviews.evaluation.sets import FEWEST, check_labels, check_targets, frequent
from manyviews.reporting import plots
from manyviews.verbs._common import claim, doubted, loaded, opened, own_test
from manyviews.verbs.evaluate import evaluate
from manyviews.weights import Pretrained

_SEVERAL = "multilabel"  # the protocol of sets whose images have several labels


@dataclass(frozen=True)
class Transfer:
    """Reports of one encoder on several sets.

    Attributes:
        folder: the folder of `transfer.json` and of `sets`, which holds the report of each set.
        weights: name of the encoder's run or file.
        reports: reports by the set's name, in alphabetical order.
        protocols: protocols that classify, in the order of the request; empty if every set has several labels.
    """

    folder: Path
    weights: str
    reports: dict[str, Report]
    protocols: tuple[str, ...]

    def table(self) -> list[dict[str, Any]]:
        """A row for each protocol and set, and a last row "mean" over the sets for each protocol.

        `value` is what papers quote of a set, in [0, 1], and `metric` its name: top-1 accuracy or, for sets whose
        images have several labels, the mAP of the protocol "multilabel", which replaces each other one there. `top1`
        and `mean_per_class` (the published number for Pets, Aircraft, Caltech and Flowers) are accuracies, None for
        such sets; `untrained` is the value of an untrained encoder, None without baselines. `interval` is the 95 %
        interval of the value over test images, `deviation` its standard deviation over several seeds, and `images` the
        number of test images. These three are None in the row "mean".
        """
        rows = []
        for protocol in self.protocols or (_SEVERAL,):
            mine = [_row(name, protocol, report) for name, report in self.reports.items()]
            mean: dict[str, Any] = {
                "set": "mean",
                "protocol": protocol,
                "metric": " and ".join(sorted({row["metric"] for row in mine}, reverse=True)),
                "interval": None,
                "deviation": None,
                "images": None,
            }
            for column in ("value", "top1", "mean_per_class", "untrained"):
                values = [row[column] for row in mine]
                mean[column] = None if None in values else statistics.fmean(values)
            rows += [*mine, mean]
        return rows

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the table must know; each begins with the set's name."""
        found = []
        for name, report in self.reports.items():
            found += [f"{name}: {note}" for note in report.notes]
            if report.bad:
                where, reason = report.bad[0]
                found.append(
                    f"{name}: {len(report.bad)} images could not be read and were left out (the first: {where}: "
                    f"{reason})."
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "weights": self.weights,
            "table": self.table(),
            "notes": self.notes,
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
        }


def transfer(
    weights: str | Path | Pretrained,
    suite: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    protocols: Sequence[str] = ("linear",),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    seeds: int = 1,
    baselines: bool = True,
    min_per_class: int | None = None,
    compare: Sequence[str | Path] = (),
) -> Transfer:
    """Evaluate an encoder on every set of a suite: see `manyviews.evaluate`.

    Call it again to continue an interrupted suite: finished sets are not repeated.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        suite: a folder that holds a set in each folder or Parquet file (see `find_sets`), or a dict of sets by name.
            A set in splits is tested on its test images, else on its validation images. A set is anything that
            `manyviews.evaluate` takes as data, or a pair of training and test data. Arrays with labels are
            `((images, labels),)`. A folder in Pascal VOC's layout is a set whose images have several labels: it learns
            from train and val.
        out: a folder for `transfer.json` and, in `sets`, a report of each set; new or of the same suite.
        protocols: names from `manyviews list protocols` that classify, such as "linear" and "finetune".
        settings: see `manyviews.evaluate`.
        seed: see `manyviews.evaluate`.
        seeds: see `manyviews.evaluate`.
        baselines: whether to evaluate an untrained encoder and raw pixels too.
        min_per_class: see `manyviews.evaluate`. Sets with several labels per image stay whole.
        compare: folders of suites of other encoders, to draw beside this one in `radar-<protocol>.png`: an axis for
            each set that all of them have.

    Raises:
        UserError: bad input, no set in the suite, another suite in `out`, or fewer than three sets to compare.
    """
    sets = dict(sorted((suite if isinstance(suite, Mapping) else find_sets(Path(suite))).items()))
    encoder = loaded(weights)
    wrong = [name for name in sets if not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name)]
    if wrong:
        raise UserError(f"'{wrong[0]}' cannot be the name of a set and of its report: use letters, digits and '_'.")
    if not sets:
        raise UserError("The suite has no set: give names and labeled images.")
    check_seeds(seed, seeds)
    several = {k: v for k, v in (settings or {}).items() if k.startswith(f"{_SEVERAL}.")}
    usual = {k: v for k, v in (settings or {}).items() if k not in several}
    requested((_SEVERAL,), several)
    protocols = [name for name in protocols if name != _SEVERAL]
    if protocols or usual:
        measures = [p.name for p in requested(protocols, usual) if isinstance(p, MetricProtocol)]
        if measures:
            raise UserError(f"A suite's table shows accuracies, and '{measures[0]}' measures something else: evaluate.")
    sources = {name: _parts(name, given, min_per_class) for name, given in sets.items()}
    for name, (source, *tests) in sources.items():
        if not source.several and not protocols:
            raise UserError(f"The images of {name} have one label each: name a protocol that classifies, as linear.")
        classes = check_targets(source) if source.several else check_labels(source, fewest=FEWEST)
        for test in tests:
            (check_targets if source.several else check_labels)(test.with_classes(classes))
    others = _tables(compare, list(sets))
    folder = Path(out)
    chosen = {
        "images": {name: [[fingerprint(s), s.labeling] for s in parts] for name, parts in sources.items()},
        "look": [encoder.test_size, list(encoder.mean), list(encoder.std)],
        "weights": weights_digest(encoder.encoder),
        "protocols": list(protocols),
        "settings": {k: str(v) for k, v in (settings or {}).items()},
        "seed": seed,
        "seeds": seeds,
        "baselines": baselines,
    }
    claim(folder, "suite.json", json.dumps(chosen, indent=2), "a suite of other weights, images or settings")
    reports = {}
    (folder / "sets").mkdir(exist_ok=True)
    for i, (name, parts) in enumerate(sources.items()):
        file = folder / "sets" / f"{name}.json"
        if not file.exists():
            say(f"Transfer: {name} ({i + 1} of {len(sets)})")
            report = evaluate(
                encoder,
                *parts,
                protocols=(_SEVERAL,) if parts[0].several else protocols,
                settings=several if parts[0].several else usual,
                seed=seed,
                seeds=seeds,
                baselines=baselines,
            )
            write_text(file, report.to_json())
        reports[name] = Report.from_json(file.read_text(encoding="utf-8"))
    simple = [report for report in reports.values() if report.protocols]
    found = Transfer(folder, encoder.name, reports, tuple(simple[0].protocols) if simple else ())
    write_text(folder / "transfer.json", json.dumps(found.to_dict(), indent=2))
    if others:
        for protocol in found.protocols or (_SEVERAL,):
            lines = {found.weights: _values(found.table(), protocol)}
            for where, name, table in others:
                key = name if name not in lines else f"{name} ({where})"
                lines[key] = _values(table, protocol)
            plots.radar(lines, folder / f"radar-{protocol}.png", title(protocol))
    return found


def _tables(folders: Sequence[str | Path], sets: Sequence[str]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Folder, encoder and table of other suites.

    Raises:
        UserError: a folder holds no finished suite, or they have fewer than three sets in common.
    """
    found, common = [], set(sets)
    for folder in folders:
        try:
            facts = json.loads((Path(folder) / "transfer.json").read_text(encoding="utf-8"))
            found.append((str(folder), str(facts["weights"]), list(facts["table"])))
            common &= {row["set"] for row in facts["table"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder} holds no finished suite: give a folder that transfer wrote.") from None
    if found and len(common) < 3:
        raise UserError(f"To compare suites takes three sets or more that all of them have, not {len(common)}.")
    lacks = [name for name in sets if name not in common]
    if found and lacks:
        say(f"Not every suite has {listed(lacks)}: left out of the plot.")
    return found


def _values(table: Sequence[Mapping[str, Any]], protocol: str) -> dict[str, float]:
    """The value of each set under a protocol."""
    rows = [row for row in table if row["protocol"] in (protocol, _SEVERAL) and row["set"] != "mean"]
    return {row["set"]: row.get("value", row["top1"]) for row in rows}


def find_sets(folder: Path) -> dict[str, Any]:
    """Find the labeled sets in a folder.

    A set is a folder of images by class, in splits or not; a zip, tar or Parquet file; or files whose names differ in
    that of their split, `pets_train.parquet` and `pets_test.parquet`. Splits have the names that
    `manyviews.data.layout` knows. A folder that is one set itself, or an archive, is a suite of this one set.

    Raises:
        UserError: the folder holds no set.
    """
    if not folder.exists():
        raise UserError(f"There is no folder {folder} that holds a labeled set in each of its folders.")
    if not folder.is_dir():
        return {_stem(folder.name) if is_shard(folder.name) else folder.stem: folder}
    found: dict[str, Any] = {}
    files: dict[str, list[Path]] = {}
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir() and not is_system(path.name)]
    if is_voc(folder):
        return {folder.resolve().name: folder}
    if folders and _is_one_set(folders):
        say(f"{folder} is taken for one set: its folders are splits or classes ({listed(p.name for p in folders)}).")
        return {folder.resolve().name: folder}
    for path in folders:
        found[path.name] = path
    for path in inside:
        if path.is_file() and is_shard(path.name):
            stem = _stem(path.name)
            name = _SPLIT.sub("_", stem).strip("_") if split_in(stem) else stem
            files.setdefault(name or stem, []).append(path)
    for name, paths in files.items():
        parts = {split_in(_stem(path.name)): path for path in paths}
        test = parts.get("test", parts.get("val"))
        pair = "train" in parts and test is not None
        found.setdefault(name, (parts["train"], test) if pair else paths[0])
        if pair or len(paths) == 1:
            continue
        for path in paths[1:]:
            found.setdefault(_stem(path.name), path)
    if not found:
        raise UserError(
            f"{folder} holds no labeled set: make a folder for each set there, with a folder for each class in it."
        )
    return dict(sorted(found.items()))


_WORDS = "|".join(name for names in SPLITS.values() for name in names)
_SPLIT = re.compile(rf"[-_. ]*(?<![a-z])({_WORDS})(?![a-z])[-_. ]*", re.IGNORECASE)


def _stem(name: str) -> str:
    """The name of a file of images without its endings."""
    for ending in (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name.rpartition(".")[0]


def _is_one_set(folders: Sequence[Path]) -> bool:
    """Whether these folders are the splits of one set, or its classes, and not sets themselves."""
    splits = {split_of(path.name) for path in folders}
    if "train" in splits and len(splits - {None}) > 1:
        return True
    return all(not any(p.is_dir() for p in path.iterdir()) and any(map(_is_image, path.iterdir())) for path in folders)


def _is_image(path: Path) -> bool:
    return is_image(path.name)


def _parts(name: str, given: Any, fewest: int | None) -> tuple[Source, ...]:
    """The images that a set learns from, and its test images if it has any; says which they are."""
    if isinstance(given, str | Path) and is_voc(Path(given)):
        sources = _open_voc(name, Path(given))
    else:
        sources = [opened(part) for part in (given if isinstance(given, tuple) else (given,))]
        if len(sources) == 1 and (held := own_test(given, sources[0])) is not None:
            sources.append(held)
    sources, note = frequent(sources, None if sources[0].several else fewest)
    test = f"tests on {sources[1].name} ({len(sources[1]):,})" if len(sources) > 1 else "tests on a fifth of them"
    say(f"{name}: learns from {sources[0].name} ({len(sources[0]):,} images), {test}.{' ' + note if note else ''}")
    if not note:
        doubted(sources[0])
    return tuple(sources)


def _open_voc(name: str, folder: Path) -> list[Source]:
    """Training and test images in Pascal VOC's layout, with the classes of their objects that are not difficult."""
    found, sources = open_pictures(folder), []
    for part, pictures in (("trainval", found.train), ("test", found.test)):
        targets = np.zeros((len(pictures), len(found.classes)), dtype=bool)
        for i, picture in enumerate(pictures):
            targets[i, [thing.label for thing in picture.things if not thing.crowd]] = True
        source = open_paths([picture.path for picture in pictures])
        ids = [picture.path.name for picture in pictures]
        labels = partial(constant, (targets, list(found.classes)))
        sources.append(replace(source, name=f"{name}:{part}", identify=partial(constant, ids), annotate=labels))
    for where, reason in found.bad:
        say(f"{name}: {where}: {reason}")
    return sources


def _row(name: str, protocol: str, report: Report) -> dict[str, Any]:
    other = report.representations.get("untrained")
    row: dict[str, Any] = {"set": name, "images": report.images["test"]}
    measured = report.representations["trained"].measures.get(_SEVERAL)
    if measured is not None:
        return row | {
            "protocol": _SEVERAL,
            "metric": measured.name,
            "value": measured.value,
            "interval": None if measured.interval is None else list(measured.interval),
            "deviation": None,
            "top1": None,
            "mean_per_class": None,
            "untrained": None if other is None else other.measures[_SEVERAL].value,
        }
    score = report.representations["trained"].scores[protocol]
    return row | {
        "protocol": protocol,
        "metric": "top-1",
        "value": score.top1,
        "top1": score.top1,
        "interval": list(score.interval),
        "deviation": statistics.stdev(score.by_seed) if len(score.by_seed) > 1 else None,
        "mean_per_class": statistics.fmean(a for a in score.per_class if a is not None),
        "untrained": None if other is None else other.scores[protocol].top1,
    }
