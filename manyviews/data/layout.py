"""What the names of folders and files say about images: their splits and their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from manyviews.data.left import listed
from manyviews.errors import UserError

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The splits of a data set, and their usual names."""

ALL = "all"
"""Stands for the images of all splits."""

_IMAGES = frozenset(["images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "frames"])
_MASKS = frozenset(
    {"masks", "mask", "labels", "label", "annotations", "segmentationclass", "segmentationobject"}
) | frozenset({"gt", "gtfine", "segmentationclassaug", "ground_truth"})

_BY_NAME = {name: split for split, names in SPLITS.items() for name in names}
_YEAR = re.compile(r"[-_ ]?\d+$")  # as in train2017
_DEEPEST = 3  # folders above the splits, at most

# Folders that keep photographs, and are no classes: dates, cameras' and phones' folders, and what people call the rest.
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)"
)
_DATE = r"(19|20)\d\d([-_. ]?(0\d|1[0-2])([-_. ]?([0-2]\d|3[01]))?)?"
_KEPT = re.compile(
    rf"{_DATE}([-_ ].*)?|.*[-_ (]{_DATE[:-1]}|(0?\d|[12]\d|3[01])[-_.](0?\d|1[0-2])[-_.](19|20)\d\d.*"
    rf"|{_MONTH}([-_ ]*(19|20)?\d\d)?|(19|20)\d\d[-_ ]*{_MONTH}.*"
    r"|dcim|[1-9]\d\d(canon|apple|msdcf|_?pana|nikon|n[dz]\w+|olymp|_?fuji|gopro|media|casio|leica|eos\w*|andro|cloud)\w*"
    r"|img([-_ ]?\d+)?|dsc[fn]?([-_ ]?\d+)?|camera( roll| uploads)?|screenshots?"
    r"|(whatsapp|signal|telegram|instagram|facebook|snapchat)( images| photos| pictures)?|bluetooth|downloads?"
    r"|(my |all |saved |new |old |other |more )?(photos?|pictures|pics|images?|imgs?|albums?|files|stuff|scans?)"
    r"|(new|untitled) folder( ?\(?\d+\)?)?|untitled|misc(ellaneous)?|various|unsorted|unlabell?ed|to ?sort|temp|tmp"
    r"|backups?|exports?|imports?|edited|originals?|raws?|jpe?gs?|pngs?|heics?|favou?rites|inbox|others?"
    r"|(batch|part|set|folder|album|roll|film|disc|cd|dvd|card|chunk|upload|backup|export|import|scan)[-_ ]?\d+"
)
_MOSTLY = 0.5  # of the folders
_NEARLY_ALL = 0.95  # of the images
_HANDFUL = 2  # images


def split_of(folder: str) -> str | None:
    """The split that a folder of this name holds."""
    return _BY_NAME.get(_YEAR.sub("", folder.lower()))


def split_in(file: str) -> str | None:
    """The split that a file's name has among its words, as in `train-00000-of-00002.parquet`, if it is one."""
    found = {_BY_NAME[word] for word in re.split(r"[^a-z]+", file.lower()) if word in _BY_NAME}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Splits:
    """The splits of images.

    Attributes:
        of: split of each folder or file of images: "train", "val", "test", or the name of another folder beside them.
        short: each folder without the part that names its split.
        shown: what to call the splits, as they are named there.
    """

    of: dict[str, str]
    short: dict[str, str]
    shown: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """train, val and test, as far as they are there."""
        return tuple(split for split in SPLITS if split in self.shown)

    def choose(self, wanted: str | None, name: str) -> str:
        """The split to take: the wanted one, else train, else all.

        Raises:
            UserError: there is no such split.
        """
        if wanted is None:
            return "train" if "train" in self.shown else ALL
        split = ALL if wanted == ALL else _BY_NAME.get(wanted, wanted)
        if split != ALL and split not in self.shown:
            raise UserError(f"{name} has no split '{wanted}'; it has {', '.join(self.names)}, or {ALL}.")
        return split

    def note(self, split: str, counts: Counter[str], what: str = "image") -> str:
        """A sentence about what was taken and what was not; `counts` are images or files by split."""
        total = counts.total()
        if split == ALL:
            return f"Took {_joined([self.shown[k] for k in counts])} together ({total:,} {what}s)."
        others = [f"{self.shown[k]} ({counts[k]:,})" for k in counts if k != split]
        if not others:
            return f"Took {self.shown[split]} for a split, not a class."
        count = f"{counts[split]:,} {what}{'' if counts[split] == 1 else 's'}"
        more = _joined([f"':{k}'" for k in (*self.names, ALL) if k != split], "or")
        return f"Took {self.shown[split]} ({count}), not {_joined(others)}; write {more} after the path to take others."


def find_splits(folders: Collection[str]) -> Splits | None:
    """The splits of images in these folders, which are relative POSIX paths; None if they are not in splits.

    `train/cat`, `photos/train/cat` and `cat/train` are in splits if all images are. So are `train/cat`, `test/cat`
    with anything beside them.
    """
    parts = {folder: folder.split("/") for folder in folders}
    for level in range(_DEEPEST):
        of = {f: split_of(p[level]) if len(p) > level else None for f, p in parts.items()}
        known = {split for split in of.values() if split}
        if not known or not (None not in of.values() or (level == 0 and "train" in known and len(known) > 1)):
            continue
        shown: dict[str, set[str]] = {}
        for folder, split in of.items():
            shown.setdefault(split or parts[folder][0], set()).add("/".join(parts[folder][: level + 1]))
        top = {split: _called(names) for split, names in shown.items()}
        above = {tuple(p[:level]) for p in parts.values()}
        skipped = level if len(above) == 1 else 0  # a folder around all splits says nothing
        short = {f: "/".join(p[skipped:level] + p[level + 1 :]) if of[f] else f for f, p in parts.items()}
        return Splits({f: split or parts[f][0] for f, split in of.items()}, short, top)
    return None


def find_splits_of_files(names: Sequence[str]) -> Splits | None:
    """The splits of files of images: of their folders, else the words in their names; None if there are not several."""
    folders = find_splits({name.rpartition("/")[0] for name in names})
    if folders is not None:
        of = {name: folders.of[name.rpartition("/")[0]] for name in names}
        shown = folders.shown
    else:
        words = {name: split_in(name.rpartition("/")[2]) for name in names}
        of = {name: split for name, split in words.items() if split is not None}
        if len(of) < len(names):
            return None
        shown = {split: split for split in of.values()}
    return Splits(of, {}, shown) if len(set(of.values())) > 1 else None


def of_masks(folders: Collection[str]) -> set[str]:
    """The folders whose images are masks: below a folder of that name that lies beside one of images."""
    homes, masks = set(), {}
    for folder in folders:
        parts = folder.lower().split("/")
        homes |= {"/".join(parts[:k]) for k, part in enumerate(parts) if part in _IMAGES}
        masks[folder] = {"/".join(parts[:k]) for k, part in enumerate(parts) if part in _MASKS}
    return {folder for folder, above in masks.items() if above & homes}


def without_wrapper(folders: Collection[str]) -> dict[str, str]:
    """Each folder below the one that holds all the others, which an archive often has."""
    short = {folder: folder for folder in folders}
    while short and all(short.values()) and len({name.partition("/")[0] for name in short.values()}) == 1:
        short = {folder: name.partition("/")[2] for folder, name in short.items()}
    return short


def strays(short: dict[str, str], images: Sequence[str]) -> list[str]:
    """The images outside of class folders, where there are two class folders or more; else none."""
    if len({name.partition("/")[0] for name in short.values() if name}) < 2:
        return []
    bare = {folder for folder, name in short.items() if not name}
    return [image for image in images if image.rpartition("/")[0] in bare] if bare else []


def few(found: Sequence[str], images: Sequence[str]) -> bool:
    """Whether so few strays are a mistake, and not the way in which somebody keeps photos."""
    return len(found) <= max(3, len(images) // 10)


def stray_note(found: Sequence[str]) -> str:
    """Why there are no labels, with the cure."""
    if len(found) == 1:
        return f"{found[0]} lies outside of the class folders, so there are no labels: move it."
    return (
        f"{len(found):,} images lie outside of the class folders (the first: {found[0]}), so there are no labels: move "
        "them."
    )


def doubt(counts: Mapping[str, int]) -> str:
    """Why folders are probably no classes, in words that follow "because"; empty if they may well be.

    Args:
        counts: number of images of each first-level folder.
    """
    total = sum(counts.values())
    if len(counts) < 2 or not total:
        return ""
    kept = [name for name in counts if _KEPT.fullmatch(name.strip().lower())]
    if len(kept) > _MOSTLY * len(counts):
        which = "they" if len(kept) == len(counts) else "most"
        return f"{which} are named as people keep photographs, not by what they show ({listed(sorted(kept))})"
    largest = max(counts, key=lambda name: counts[name])
    if counts[largest] > _NEARLY_ALL * total:
        return f"{100 * counts[largest] // total} % of its images are in one folder ({largest})"
    tiny = sum(count <= _HANDFUL for count in counts.values())
    if len(counts) > 10 and tiny > _MOSTLY * len(counts):
        return f"{tiny} of the {len(counts)} hold one or two images"
    return ""


def top_folders(short: Mapping[str, str], images: Mapping[str, int]) -> Counter[str]:
    """Images by first-level folder, from a shorter path and the number of images of each folder."""
    found = Counter[str]()
    for folder, name in short.items():
        found[name.partition("/")[0]] += images.get(folder, 0)
    return found


def _called(names: Collection[str]) -> str:
    return f"{min(names) or 'the top folder'}/" if len(names) == 1 else f"*/{min(names).rpartition('/')[2]}/"


def _joined(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
