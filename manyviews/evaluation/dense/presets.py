"""Training schedules of detectors that papers compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from manyviews.errors import unknown

_BATCH, _SIZE = 16, 800  # of both schedules: images of a step, short side of test images in pixels


@dataclass(frozen=True)
class Preset:
    """A schedule of detectron2 (Wu et al. 2019): batches of 16 images, rate 0.02, test images of 800 pixels.

    Attributes:
        name: the name to ask for.
        says: what it is, for people.
        detector: "fpn", a feature pyramid; or "c4", regions of a ResNet's fourth group of blocks, whose fifth is the
            head.
        sizes: short sides of training images in pixels, one of which is drawn for each.
        steps: steps for the set that the schedule was made for.
        images: training images of that set that show an object.
        drops: steps after which the learning rate falls to a tenth.
        warmup: steps in which the learning rate grows.
    """

    name: str
    says: str
    detector: Literal["fpn", "c4"]
    sizes: tuple[int, ...]
    steps: int
    images: int
    drops: tuple[int, ...]
    warmup: int

    def sizes_at(self, size: int) -> tuple[int, ...]:
        """Short sides of training images if test images have `size` pixels."""
        return tuple(round(side * size / _SIZE) for side in self.sizes)

    def steps_for(self, images: int, batch: int) -> int:
        """Steps that look at each of `images` as often as the schedule does, and at least one."""
        return max(1, round(self.steps * images / self.images * _BATCH / batch))

    @property
    def shares(self) -> tuple[float, ...]:
        """`drops` as shares of the run."""
        return tuple(drop / self.steps for drop in self.drops)

    def told(self, steps: int, batch: int, size: int, plain: bool, changed: Sequence[str] = ()) -> str:
        """A sentence on a run of the schedule: what it is, and what it is not.

        Args:
            steps: steps of the run.
            batch: images of a step.
            size: short side of test images in pixels.
            plain: whether the encoder is a plain vision transformer.
            changed: names of other settings that were given.
        """
        ran = "" if (steps, batch) == (self.steps, _BATCH) else f"; here {steps:,} steps of {batch} images"
        shrunk = "" if size == _SIZE else f"; sizes are {size}/{_SIZE} of these"
        shrunk += f"; other {' and '.join(changed)}, as asked" if changed else ""
        unlike = "the heads, regions and proposals are torchvision's, statistics of BatchNorm are not computed again"
        transformer = "; vision transformers learn by AdamW, which the schedule does not know" if plain else ""
        return f"{self.name}: {self.says}{ran}{shrunk}. Not as in detectron2: {unlike}{transformer}."


COCO_1X = Preset(
    "coco_1x",
    "detectron2's 1x schedule for Faster and Mask R-CNN with a feature pyramid on COCO: 90,000 steps of 16 images, to "
    "a tenth after 60,000 and 80,000, 1,000 of warm-up; short sides of 640 to 800 in steps of 32, tests at 800; "
    "BatchNorm of the backbone alone learns from the batch, shared by all processes",
    "fpn",
    tuple(range(640, 801, 32)),
    90_000,
    117_266,
    (60_000, 80_000),
    1000,
)

VOC_24K = Preset(
    "voc_24k",
    "MoCo's schedule for Faster R-CNN with the C4 detector on VOC trainval07+12: 24,000 steps of 16 images, to a tenth "
    "after 18,000 and 22,000, 100 of warm-up; short sides of 480 to 800 in steps of 32, tests at 800; BatchNorm of the "
    "ResNet, and one layer after it, learn from the batch, shared by all processes",
    "c4",
    tuple(range(480, 801, 32)),
    24_000,
    16_551,
    (18_000, 22_000),
    100,
)

PRESETS = {preset.name: preset for preset in (COCO_1X, VOC_24K)}


def preset_of(name: str | None) -> Preset | None:
    """The preset of this name; None for none.

    Raises:
        UserError: there is no such preset.
    """
    if name is not None and name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return None if name is None else PRESETS[name]
