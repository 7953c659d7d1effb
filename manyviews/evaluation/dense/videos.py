"""Sequences of frames with masks, for label propagation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manyviews.errors import UserError
from manyviews.evaluation.dense.files import Bad, check_folder, images_in


@dataclass(frozen=True)
class Video:
    """A sequence of frames, in order, with the masks of some of them, including the first.

    Attributes:
        name: name of its folder.
        frames: files of the frames.
        masks: files of the masks, by the frame's position.
    """

    name: str
    frames: list[Path]
    masks: dict[int, Path]


def open_videos(root: Path) -> tuple[list[Video], Bad]:
    """Sequences: `frames/<name>/*.jpg` with `masks/<name>/*.png`, or DAVIS's `JPEGImages` and `Annotations`.

    DAVIS's folders may have `480p` in between, and if there is `ImageSets/2017/val.txt` (or 2016), its sequences are
    taken. A mask is named as its frame. Sequences of less than three frames, and those without a mask for the first
    frame, are left out.

    Raises:
        UserError: another layout, or no sequence that can be used.
    """
    check_folder(root)
    homes = [
        (root / a / size, root / b / size)
        for a, b in (("frames", "masks"), ("JPEGImages", "Annotations"))
        for size in ("480p", "")
    ]
    home = next(((a, b) for a, b in homes if a.is_dir() and b.is_dir()), None)
    if home is None:
        raise UserError(
            f"{root} needs sequences as frames/<name>/*.jpg and masks/<name>/*.png, or as DAVIS has them: "
            "JPEGImages/480p and Annotations/480p."
        )
    names = sorted(p.name for p in home[0].iterdir() if p.is_dir() and not p.name.startswith("."))
    for year in ("2017", "2016"):
        listed = root / "ImageSets" / year / "val.txt"
        if listed.is_file() and home[0].parent.name == "JPEGImages":
            names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            break
    found, bad = [], list[tuple[str, str]]()
    for name in names:
        frames = images_in(home[0] / name) if (home[0] / name).is_dir() else []
        masks = {p.stem: p for p in images_in(home[1] / name)} if (home[1] / name).is_dir() else {}
        marked = {i: masks[p.stem] for i, p in enumerate(frames) if p.stem in masks}
        if len(frames) < 3:
            bad.append((name, f"the sequence has {len(frames)} frames: it needs three"))
        elif 0 not in marked:
            bad.append((name, f"the first frame, {frames[0].name}, has no mask"))
        elif not marked.keys() & set(range(1, len(frames) - 1)):
            bad.append((name, "no frame between the first and the last has a mask"))
        else:
            found.append(Video(name, frames, marked))
    if not found:
        reason = f" ({bad[0][0]}: {bad[0][1]})" if bad else ""
        raise UserError(f"{root} has no sequence with masks that could be used{reason}.")
    return found, bad
