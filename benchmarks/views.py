"""Views per second of this library and of others, for the same distributions of the same size.

.venv-bench/bin/python benchmarks/views.py [--data data] [--out benchmarks/views.json] [--gpu [only]]

The environment is that of `benchmarks/peers.txt`; ten minutes on two cores.

Two views as in SimCLR at 224, 96 and 32 pixels, and DINO's two of 224 with six of 96: lightly's transforms as they
ship, and the same crops, probabilities and strengths for all others. A view is float32, normalized, in a batch.

- manyviews: `Views` of batches of canvases in memory, which the loader hands over.
- lightly: its transform on PIL images in memory, at their own size; torchvision: v2 on uint8 tensors; albumentations on
  arrays. These go image by image; on one core in the process itself, on two in a DataLoader with one or two workers,
  whichever is faster here.
- kornia: float batches of the canvases that manyviews gets, for it needs images of one size; as large, or of 16 where
  that is faster.
- "from JPEG": from encoded bytes in memory, through each library's own loader, every image decoded for its views alone.

What differs is in the others' favor: manyviews resamples bicubically with antialiasing at all sizes, kornia and
albumentations without antialiasing, and where lightly is bilinear, so are all but manyviews. lightly blurs with PIL's
box filters, the others with a kernel of a tenth of the view. Batch are not smaller than the photographs.

Each library has its own process, bound to the cores, and they take turns: a round measures each for about a second.
Reported are medians and quartiles over the rounds, and of the ratio to lightly in the same round. So that nobody skips
work, the mean and the standard deviation of each channel are compared with those of manyviews.
"""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from manyviews.data import Loader, Source
from manyviews.views import (
    DINO_LOCAL,
    DINO_PAIR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIMCLR,
    Color,
    Global,
    Local,
    View,
    Views,
)

Batches = Iterator[list[Tensor]]
Run = Callable[[int], Batches]
"""So many images, at least: for each batch its views, `b 3 s s`."""


@dataclass(frozen=True)
class Setting:
    """What all libraries make.

    Attributes:
        name: of the row.
        kinds: the views.
        canvas: side of manyviews' and kornia's canvases.
        batch: of manyviews and kornia, images.
        filter: of lightly's resampling.
        photographs: or CIFAR-10.
    """

    name: str
    kinds: tuple[View, ...]
    canvas: int
    batch: int
    filter: str = "bilinear"
    photographs: bool = True

    @property
    def views(self) -> list[tuple[View, Color]]:
        """Each view of an image, with its colors."""
        found = [(kind, kind.color_of(i)) for kind in self.kinds for i in range(kind.count)]
        return [(kind, color) for kind, color in found if color is not None]


_DINO = (Global(2, area=(0.4, 1.0), color=DINO_PAIR), Local(6, area=(0.05, 0.4), color=DINO_LOCAL))
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("SimCLR 224", (Global(2, color=SIMCLR),), 256, 64),
        Setting("SimCLR 96", (Global(2, size=96, color=SIMCLR),), 128, 256),
        Setting(
            "SimCLR 32", (Global(2, size=32, color=Color(0.8, 0.8, 0.8, 0.2, blur=0.0)),), 32, 256, photographs=False
        ),
        Setting("DINO 2x224 + 6x96", _DINO, 256, 64, "bicubic"),
    )
}

# -- the libraries ---------------------------------------------------------------------------------------------------


def manyviews(setting: Setting, files: list[bytes], cores: int, device: str = "cpu", encoded: bool = False) -> Run:
    """Batch in memory, or decoded by the loader's threads while the views of earlier ones are made."""
    source = Source("images", len(files), files.__getitem__, lambda: [str(i) for i in range(len(files))])
    batch = min(setting.batch, len(files) // (4 if encoded else 1))
    loader = Loader(source, setting.canvas, batch, memory=0 if encoded else None)
    epochs = count()

    def run(n: int) -> Batches:
        done = 0
        while done < n:
            epoch = next(epochs)
            for canvases in loader.batches(epoch):
                views = Views(canvases.to(device), setting.kinds, seed=cores, epoch=epoch)
                yield [x for _, _, x in views.each()]
                done += len(canvases)
                if done >= n and not encoded:  # decoding that is broken off would count against it
                    break
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def kornia(setting: Setting, files: list[bytes], cores: int) -> Run:
    import kornia.augmentation as K

    def view(kind: View, color: Color) -> Any:
        size, k = (kind.size, kind.size), color.kernel_at(kind.size)
        steps = [
            K.RandomResizedCrop(size, kind.area, kind.ratio, resample=setting.filter),
            K.RandomHorizontalFlip(kind.flip),
            K.ColorJitter(color.brightness, color.contrast, color.saturation, color.hue, p=color.jitter),
            K.RandomGrayscale(p=color.gray),
        ]
        if color.blur:
            steps.append(K.RandomGaussianBlur((k, k), color.sigma, p=color.blur))
        if color.solarize:
            steps.append(K.RandomSolarize((color.threshold, color.threshold), (0.0, 0.0), p=color.solarize))
        steps.append(K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)))
        return K.AugmentationSequential(*steps, data_keys=["input"], same_on_batch=False)

    views = [view(*parts) for parts in setting.views]
    source = Source("images", len(files), files.__getitem__, lambda: [str(i) for i in range(len(files))])

    def batches(batch: int) -> Run:
        loader, epochs = Loader(source, setting.canvas, batch), count()

        @torch.no_grad()
        def run(n: int) -> Batches:
            done = 0
            while done < n:
                for canvases in loader.batches(next(epochs)):
                    x = canvases.pixels.float().div_(255)
                    yield [view(x) for view in views]
                    done += len(canvases)
                    if done >= n:
                        break

        return run

    # Small batches stay in the cache.
    return fastest({batch: batches(batch) for batch in {16, min(setting.batch, len(files))}}, len(files) // 2)


def lightly(setting: Setting, files: list[bytes], cores: int, encoded: bool = False) -> Run:
    from lightly.transforms import DINOTransform, SimCLRTransform

    kind = setting.kinds[0]
    # All that is not said here is lightly's default. For CIFAR-10 its documentation leaves out the blur.
    blur = {"gaussian_blur": 0.0} if kind.size == 32 else {}
    transform = DINOTransform() if len(setting.kinds) > 1 else SimCLRTransform(input_size=kind.size, **blur)
    if encoded:
        return loaded(lambda i: transform(Image.open(io.BytesIO(files[i])).convert("RGB")), len(files), cores)
    images = _bench.decoded(files)
    return loaded(lambda i: transform(images[i]), len(files), cores)


def torchvision(setting: Setting, files: list[bytes], cores: int) -> Run:
    from torchvision.transforms import InterpolationMode, v2

    def view(kind: View, color: Color) -> Any:
        jitter = v2.ColorJitter(color.brightness, color.contrast, color.saturation, color.hue)
        steps = [
            v2.RandomResizedCrop(kind.size, kind.area, kind.ratio, InterpolationMode(setting.filter), antialias=True),
            v2.RandomHorizontalFlip(kind.flip),
            v2.RandomApply([jitter], color.jitter),
            v2.RandomGrayscale(color.gray),
        ]
        if color.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(color.kernel_at(kind.size), color.sigma)], color.blur))
        if color.solarize:
            steps.append(v2.RandomSolarize(round(256 * color.threshold), color.solarize))
        return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    views = [view(*parts) for parts in setting.views]
    images = [torch.from_numpy(np.array(x)).permute(2, 0, 1).contiguous() for x in _bench.decoded(files)]
    return loaded(lambda i: [view(images[i]) for view in views], len(files), cores)


def albumentations(setting: Setting, files: list[bytes], cores: int) -> Run:
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # as its documentation says for a DataLoader
    filters = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

    def view(kind: View, color: Color) -> Any:
        around = [(max(0.0, 1 - s), 1 + s) for s in (color.brightness, color.contrast, color.saturation)]
        size, k = (kind.size, kind.size), color.kernel_at(kind.size)
        steps = [
            A.RandomResizedCrop(size, kind.area, kind.ratio, interpolation=filters[setting.filter]),
            A.HorizontalFlip(p=kind.flip),
            A.ColorJitter(*around, (-color.hue, color.hue), p=color.jitter),
            A.ToGray(p=color.gray),
        ]
        if color.blur:
            steps.append(A.GaussianBlur((k, k), color.sigma, p=color.blur))
        if color.solarize:
            steps.append(A.Solarize((color.threshold, color.threshold), p=color.solarize))
        return A.Compose([*steps, A.Normalize(IMAGENET_MEAN, IMAGENET_STD), A.ToTensorV2()])

    views = [view(*parts) for parts in setting.views]
    images = [np.array(x) for x in _bench.decoded(files)]
    return loaded(lambda i: [view(image=images[i])["image"] for view in views], len(files), cores)


LIBRARIES: dict[str, Callable[..., Run]] = {
    "manyviews": manyviews,
    "lightly": lightly,
    "torchvision": torchvision,
    "kornia": kornia,
    "albumentations": albumentations,
    "manyviews from JPEG": partial(manyviews, encoded=True),
    "lightly from JPEG": partial(lightly, encoded=True),
    "manyviews on the GPU": partial(manyviews, device="cuda"),
}
ON_CPU = [name for name in LIBRARIES if "GPU" not in name]


class _Items(torch.utils.data.Dataset):
    """`make(i)` of images that come round again and again."""

    def __init__(self, make: Callable[[int], list[Tensor]], images: int) -> None:
        self.make, self.images = make, images

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.make(i % self.images)


class _First:
    """The numbers from 0 to a limit that changes."""

    limit = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.limit))

    def __len__(self) -> int:
        return self.limit


def loaded(make: Callable[[int], list[Tensor]], images: int, cores: int) -> Run:
    """Image by image, in batches: in this process on one core, else in the faster number of workers up to `cores`.

    A run asks the workers for its images and waits for the last: nothing is prepared before its clock starts, and no
    worker is left with more than the others, for a run is a whole number of batches for each.
    """
    batch = 16

    def loader(workers: int) -> Run:
        first = _First()
        batches = torch.utils.data.DataLoader(
            _Items(make, images),
            batch,
            sampler=first,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
        )

        def run(n: int) -> Batches:
            first.limit = batch * max(1, workers) * math.ceil(n / (batch * max(1, workers)))
            yield from batches

        return run

    if cores == 1:
        return loader(0)
    # Of many cores only all and half are tried.
    tried = {workers: loader(workers) for workers in {cores, max(1, cores // 2)}}
    return fastest(tried, 2 * batch * cores)


def fastest(tried: dict[int, Run], n: int) -> Run:
    """Of several ways, the one that made most views a second of so many images."""
    speeds = {}
    for key, run in tried.items():
        drain(run, 1)  # starts its processes
        views, seconds = drain(run, n)
        speeds[key] = views / seconds
    return tried[max(speeds, key=speeds.__getitem__)]


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def drain(run: Run, n: int) -> tuple[int, float]:
    """Views made, and seconds taken."""
    views, start = 0, time.perf_counter()
    for found in run(n):
        views += sum(map(len, found))
    return views, time.perf_counter() - start


# -- in a library's process ------------------------------------------------------------------------------------------


class Library:
    """Answers questions about one library: it prepares a setting when it is first asked for it, then measures."""

    def __init__(self, name: str, data: str, seconds: float, views: int) -> None:
        self.name, self.data, self.seconds, self.views = name, Path(data), seconds, views
        self.cores = len(os.sched_getaffinity(0))
        self.setting, self.images = "", 0
        self.run: Run = lambda n: iter(())

    def answer(self, question: dict[str, str]) -> _bench.Answer:
        if question["setting"] == self.setting:
            made, seconds = drain(self.run, self.images)
            return {"rate": made / seconds}
        self.setting = question["setting"]
        setting = SETTINGS[self.setting]
        # The processes of one library draw differently, for their views are looked at together.
        torch.manual_seed(self.cores)
        np.random.seed(self.cores)
        images = self.views // len(setting.views)
        files = (_bench.photographs if setting.photographs else _bench.cifar10)(self.data, images)
        self.run = LIBRARIES[self.name](setting, files, self.cores)
        drain(self.run, 1)
        sums = Moments()
        for views in self.run(images):  # what the views of all images look like: a warm-up too
            sums.add(views)
        _, seconds = drain(self.run, images)
        self.images = max(1, round(images / seconds * self.seconds))
        return {"moments": sums.read()}


class Moments:
    """What views look like: means and standard deviations of the channels, in [0, 1], and how much detail there is."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, views: Sequence[Tensor]) -> None:
        mean, std = (torch.tensor(v, device=views[0].device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        for x in views:
            assert x.dtype == torch.float32 and x.shape[1] == 3
            x = x * std + mean
            detail = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
            self.rows.append(torch.cat([x.mean((2, 3)), x.square().mean((2, 3)), detail[:, None]], 1).cpu())

    def read(self) -> dict[str, Any]:
        rows = torch.cat(self.rows).double()
        mean, square, detail = rows.mean(0).split([3, 3, 1])
        return {
            "views": len(rows),
            "mean": mean.tolist(),
            "std": (square - mean**2).sqrt().tolist(),
            "detail": detail.item(),
        }


# -- in the process that asks ----------------------------------------------------------------------------------------


def measure(setting: str, workers: dict[str, _bench.Worker], rounds: int) -> tuple[list[_bench.Answer], dict[str, Any]]:
    """A row for each library, and what its views looked like."""
    question = {"setting": setting}
    moments = {name: worker.ask(question)["moments"] for name, worker in workers.items()}
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            rates[name].append(worker.ask(question)["rate"])
    rows = []
    for name, found in rates.items():
        against = "lightly from JPEG" if "JPEG" in name else "lightly"
        ratio = _bench.ratios(found, rates[against]) if against in rates else None
        rows.append({"library": name, "views_per_second": _bench.spread(found), "over_lightly": ratio})
    return rows, moments


def compare(moments: dict[str, Any], library: str) -> _bench.Answer:
    """How far the views of a library are from manyviews', in parts of the latter; `alike` if that is a few percent.

    Two samples of a few hundred views differ by chance: a view's mean varies by some 40 % from view to view.
    """
    ours, theirs = moments[next(iter(moments))], moments[library]
    chance = 4 * 0.4 * math.sqrt(1 / ours["views"] + 1 / theirs["views"])
    found = {
        key: max((b / a - 1 for a, b in zip(ours[key], theirs[key], strict=True)), key=abs) for key in ("mean", "std")
    }
    found["detail"] = theirs["detail"] / ours["detail"] - 1
    return {k: round(v, 4) for k, v in found.items()} | {
        "allowed": round(max(0.05, chance), 4),
        "alike": max(abs(found["mean"]), abs(found["std"])) <= max(0.05, chance),
    }


def pool(checks: list[dict[str, Any]]) -> dict[str, Any]:
    """The moments of all processes' views of a setting, by library."""
    found: dict[str, Any] = {}
    for name in {name: None for check in checks for name in check}:
        seen = [check[name] for check in checks if name in check]
        found[name] = {
            "views": sum(m["views"] for m in seen),
            "detail": statistics.mean(m["detail"] for m in seen),
            **{key: [statistics.mean(v) for v in zip(*(m[key] for m in seen), strict=True)] for key in ("mean", "std")},
        }
    return found


def show(row: _bench.Answer) -> None:
    low, rate, high = row["views_per_second"]
    ratio = "" if row["over_lightly"] is None else "{1:6.2f} ({0:.2f}-{2:.2f})".format(*row["over_lightly"])
    rates = f"{rate:8.0f} {f'({low:.0f}-{high:.0f})':>15}"
    print(f"{row['setting']:18} {row['cores']:>5}  {row['library']:24} {rates} {ratio}", flush=True)


def main() -> None:
    gpu = "the GPU against lightly on all cores, at 224 pixels: besides the rest, or only that"
    options = _bench.parser(__doc__, "two short rounds: whether it works", gpu).parse_args()
    if options.serve:
        _bench.serve(Library(**json.loads(options.serve)).answer)
        return

    there = _bench.installed("lightly", "torchvision", "kornia", "albumentations")
    for name in [k for k, v in there.items() if v is None]:
        print(f"{name} is not installed, and left out: see benchmarks/peers.txt")
    names = [name for name in ON_CPU if name.split()[0] not in there or there[name.split()[0]]]
    rounds = 2 if options.quick else options.rounds
    role = {"data": str(options.data), "seconds": 0.3 if options.quick else 1.0, "views": 128 if options.quick else 512}
    plan = [(cores, list(SETTINGS), names) for cores in (1, 2) if cores <= len(os.sched_getaffinity(0))]
    cuda = bool(options.gpu) and torch.cuda.is_available()
    if options.gpu == "only":
        plan = []
    if cuda:
        plan.append((0, ["SimCLR 224"], ["manyviews on the GPU", *(n for n in names if n == "lightly")]))

    rows: list[_bench.Answer] = []
    checks: dict[str, list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
    print(f"{'setting':18} {'cores':>5}  {'library':24} {'views/s':>8} {'(quartiles)':>15} over lightly (quartiles)")
    for cores, settings, libraries in plan:
        with _bench.workers(__file__, {name: {**role, "name": name} for name in libraries}, cores) as workers:
            for setting in settings:
                # CIFAR-10 has no JPEG files.
                asked = {k: v for k, v in workers.items() if SETTINGS[setting].photographs or "JPEG" not in k}
                found, moments = measure(setting, asked, rounds)
                checks[setting].append(moments)
                for row in found:
                    rows.append({"setting": setting, "cores": cores or len(os.sched_getaffinity(0)), **row})
                    show(rows[-1])

    print("\nAs manyviews' views: largest difference of a channel's mean and standard deviation, and of the detail")
    looks = []
    for setting, seen in checks.items():
        moments = pool(seen)
        for name in list(moments)[1:]:  # the first is manyviews
            looks.append({"setting": setting, "library": name, **compare(moments, name)})
            print("{setting:18} {library:24} {mean:+7.1%} {std:+7.1%} {detail:+7.1%}".format(**looks[-1]))
    facts = _bench.facts(torch.device("cuda" if cuda else "cpu"), "manyviews", "torch", *there)
    _bench.write(options.out, {**facts, "rounds": rounds, "rows": rows, "looks": looks})
    strange = [f"{look['library']} ({look['setting']})" for look in looks if not look["alike"]]
    if strange:
        raise SystemExit(f"These views are not like manyviews': {', '.join(strange)}.")


if __name__ == "__main__":
    main()
