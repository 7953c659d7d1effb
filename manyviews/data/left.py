"""What was left out or taken for something when data was opened: counted, and said in one sentence for each reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manyviews.data.formats import UNREAD, Format, missing

# Folders that systems, not people, put among pictures: network drives, Windows, macOS, Linux.
_SYSTEM = (
    frozenset({"@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot"})
    | frozenset({"$recycle.bin", "system volume information", "__macosx", "lost+found", "recycler"})
    | frozenset({"recycled"})
)


def is_system(folder: str) -> bool:
    """Whether a folder of this name holds thumbnails, deleted files or other files of a system."""
    return folder.lower() in _SYSTEM or folder == "Thumbs"  # thumbs may be a class of hands


class Left:
    """Counts by reason, each with the first name that it is about."""

    def __init__(self, found: Mapping[str, Any] | None = None) -> None:
        self._found: dict[str, list[Any]] = {} if found is None else {k: list(v) for k, v in found.items()}

    def __contains__(self, reason: str) -> bool:
        return reason in self._found

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count `name`. The reason is a sentence with `{n}` and, behind a noun, `{s}`; cures follow a colon."""
        known = self._found.setdefault(reason, [0, name])
        known[0] += count
        known[1] = min(known[1], name)  # the same one wherever folders are listed in another order

    def update(self, other: Mapping[str, Any], where: str = "") -> None:
        """Add the counts that `to_dict` gave elsewhere."""
        for reason, (count, name) in other.items():
            self.add(reason, where + name, count)

    def unread(self, ending: str, name: str, kind: Format | None, count: int = 1) -> None:
        """Count a file whose ending or content is that of a picture, which cannot be read here."""
        what = f"Left out {{n}} {ending} file{{s}} ({{first}})" if ending else "Left out {n} file{s} ({first})"
        if kind is None:
            self.add(f"{what}: not read ({UNREAD[ending]}); convert {{them}} to TIFF, PNG or JPEG.", name, count)
        else:
            self.add(f"{what}: {kind.name} needs a package, run `{missing(kind)}`.", name, count)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return self._found

    def notes(self) -> tuple[str, ...]:
        """A sentence for each reason."""
        return tuple(
            reason.replace("{n}", f"{count:,}")
            .replace("{s}", "" if count == 1 else "s")
            .replace("{them}", "it" if count == 1 else "them")
            .replace("{no_s}", "s" if count == 1 else "")
            .replace("{are}", "is" if count == 1 else "are")
            .replace("{first}", name if count == 1 else f"the first: {name}")
            for reason, (count, name) in self._found.items()
        )


BROKEN_LINKS = "Left out {n} broken link{s} ({first}): mend or remove {them}."
LOCKED = "Left out {n} folder{s} that may not be read ({first}): there is no permission."
SYSTEM = "Left out {n} system folder{s} ({first})."
HIDDEN = "Left out {n} hidden picture{s} ({first}): names that begin with a dot are not read."
HIDDEN_FOLDERS = "Left out {n} hidden folder{s} ({first})."
OURS = "Left out {n} folder{s} of runs, sweeps or pages ({first})."
TWICE = "Left out {n} link{s} to folders that are read already ({first})."
MASKS = "Left out {n} image{s} in folders of masks ({first}), beside a folder of images."
EMPTY = "{n} image{s} {are} empty ({first}) and cannot be used."
CUT_SHORT = "{n} image{s} {are} cut short or damaged ({first}) and cannot be used."
NO_PICTURES = "{n} file{s} with a picture's ending hold{no_s} something else ({first}) and cannot be used."
BY_CONTENT = "Took {n} file{s} as images by content, not by name ({first})."
UNKNOWN = "Left out {n} file{s} without a picture's ending ({first}): only a sample was read, with few images in it."
ENCRYPTED = "Left out {n} encrypted image{s} ({first}): unpack the archive with its password."
PACKED = "Left out {n} image{s} in an uncommon compression ({first}): unpack the archive, or zip it anew."
REPLACED = "Left out {n} image{s} that a later one of the same name replaces ({first})."


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names in a sentence: the first few, and how many more."""
    found = list(names)
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more} more" if more > 0 else "")
