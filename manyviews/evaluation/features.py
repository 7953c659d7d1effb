"""Features of a frozen encoder under the test-time transform: extracted once, kept on disk."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from manyviews import distributed
from manyviews.backbones import Encoder, Kind, represent, width
from manyviews.checkpoint import load_tensors, save_tensors
from manyviews.data.canvas import in_threads, reading_ahead
from manyviews.data.decode import BadImage, Frame, Picture
from manyviews.data.reading import RGB
from manyviews.data.room import ROOM
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.threads import threads_of

Progress = Callable[[int, int], None]
"""Called with (images done, images in total)."""

SMALL = 64
"""Images up to this size are shown whole: they come from sets whose objects fill the picture, such as CIFAR."""


@dataclass(frozen=True)
class Features:
    """Features that a frozen encoder gives the good images of a source, in the source's order.

    Attributes:
        x: float32, `n d`, on the CPU.
        labels: int64, `n`, on the CPU, or None when the source has none.
        index: int64, `n`, the images' positions in the source.
        ids: the images' stable names.
        bad: (where, reason) for each image that could not be read.
    """

    x: Tensor
    labels: Tensor | None
    index: Tensor
    ids: list[str]
    bad: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: Tensor) -> Features:
        """The features of some of the images: int64, or bool `n`."""
        at = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        labels = None if self.labels is None else self.labels[at]
        return Features(self.x[at], labels, self.index[at], [self.ids[i] for i in at.tolist()], self.bad)


def short_side(size: int) -> int:
    """The short side that an image gets before its central square of `size` is taken: `size * 256 / 224`.

    Up to `SMALL` it is `size` itself, so that a square image is shown whole, at its native size if it has it.
    """
    return size if size <= SMALL else int(size * 256 / 224)


def test_transform(image: Picture, size: int) -> np.ndarray:
    """An image as the encoder's input in an evaluation: uint8 `c size size`.

    Its short side becomes `short_side(size)`, bicubic and antialiased; then the central square of `size` is taken. The
    same pixels as torchvision's `Resize` and `CenterCrop` on a PIL image.
    """
    short = short_side(size)
    if isinstance(image, np.ndarray):
        return np.concatenate([test_transform(Image.fromarray(band), size) for band in np.moveaxis(image, 2, 0).copy()])
    width, height = image.size
    # The long side is rounded down and the crop's corner to the nearest even, both as torchvision does it.
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


class Kept:
    """Images under `test_transform` that stay in memory, so that an evaluation decodes each once: see `Source.keep`.

    Args:
        room: bytes they may take; further images are read again.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._pixels: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, i: int) -> Place:
        """The place of item `i`."""
        return Place(self, i)

    def get(self, i: int, size: int) -> np.ndarray | None:
        """Its pixels at this size, if they are kept."""
        return self._pixels.get((i, size))

    def put(self, i: int, size: int, pixels: np.ndarray) -> None:
        """Keep its pixels if there is room."""
        with self._lock:
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._pixels[i, size] = pixels


class Place(NamedTuple):
    """Where the pixels of an image are kept."""

    kept: Kept
    i: int


def test_images(source: Source, size: int, batch_size: int = 256) -> Iterator[tuple[Tensor, list[int], dict[int, str]]]:
    """The images of a source in its order, a batch at a time, the next batch decoding while one is in use.

    Yields:
        pixels (uint8, `b c size size`), the indices of these images in the source, and index: reason for each bad
        image of the batch. `b` is `batch_size` less the bad ones, and can be 0.
    """

    def read(i: int) -> np.ndarray | str:
        reached(i)
        place: Place | None = None if source.keep is None else source.keep(i)
        found = None if place is None else place.kept.get(place.i, size)
        if found is not None:
            return found
        try:
            with ROOM.turn():
                found = test_transform(source.load(i), size)
        except BadImage as error:
            return error.reason
        if place is not None:
            place.kept.put(place.i, size, found)
        return found

    starts = range(0, len(source), batch_size)
    batches = (range(start, min(start + batch_size, len(source))) for start in starts)
    with reading_ahead(source, np.arange(len(source))) as reached, closing(in_threads(read, batches)) as all_found:
        for start, found in zip(starts, all_found, strict=True):
            results = dict(enumerate(found, start))
            good = {i: r for i, r in results.items() if not isinstance(r, str)}
            pixels = torch.from_numpy(np.stack(list(good.values()))) if good else torch.empty(0, dtype=torch.uint8)
            yield pixels, list(good), {i: r for i, r in results.items() if isinstance(r, str)}


def read_again(source: Source, size: int, batch_size: int = 256) -> Iterator[Tensor]:
    """Images that were readable before, under the test-time transform, in order: uint8 `b c size size`.

    Raises:
        UserError: one of them no longer is.
    """
    for pixels, _, bad in test_images(source, size, batch_size):
        if bad:
            i, reason = next(iter(bad.items()))
            raise UserError(f"{source.where(i)} could be read a moment ago, and no longer can ({reason}): try again.")
        yield pixels


def check_finite(x: Tensor) -> None:
    """Raises UserError unless all features are finite: results from others mean nothing."""
    if not x.isfinite().all():
        raise UserError("The encoder's features are not finite: its weights are damaged, or its training diverged.")


# Typed by hand: mypy does not see the attributes that these modules set at run time.
_BACKENDS: Any = torch.backends
_PARTS = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv)


@contextmanager
def frozen(*encoders: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and exact float32 inside; afterwards every submodule has its mode back."""
    modes = [(m, m.training) for encoder in encoders for m in encoder.modules()]
    precisions, matmul = [part.fp32_precision for part in _PARTS], "highest"
    kinds = {p.device.type for encoder in encoders for p in encoder.parameters()}
    try:
        for encoder in encoders:
            encoder.eval()
        # By default convolutions on a GPU round their inputs to 10 bits. PyTorch has an old and a new setting for it,
        # and raises where the old one is read while they disagree: they agree once all parts are exact.
        for part in _PARTS:
            part.fp32_precision = "ieee"
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        with ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.inference_mode())
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)  # sets the parts too, so it comes before them
        for part, precision in zip(_PARTS, precisions, strict=True):
            part.fp32_precision = precision
        for module, training in modes:
            module.training = training


class Chosen(nn.Module):
    """An encoder whose features are of one kind: see `backbones.represent`.

    Raises:
        UserError: the encoder does not have them.
    """

    def __init__(self, encoder: Encoder, kind: Kind) -> None:
        super().__init__()
        width(encoder, kind)
        self.encoder = encoder
        self.kind: Kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b c h w` to `b width`."""
        return represent(self.encoder, x, self.kind)

    def extra_repr(self) -> str:
        return self.kind  # the cache tells encoders apart by their printed form


def whole(module: nn.Module) -> Encoder | None:
    """The encoder itself, whichever kind of its features a module gives; None for a module that is none."""
    inner = module.encoder if isinstance(module, Chosen) else module
    return inner if isinstance(inner, Encoder) else None


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `b c h w` to float32, channels last, minus `mean`, divided by `std`, both `c` long, in units of [0, 1]."""
    m, s = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (mean, std))
    return (pixels.float() / 255).sub_(m).div_(s).contiguous(memory_format=torch.channels_last)


def encode(
    encoder: nn.Module,
    pixels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """Features (float32, `n d`, on `device`) of images in memory (uint8, `n c h w`), as they are, without a transform.

    For images that are held for a whole run and encoded again and again. The encoder must be on `device`.
    """
    with frozen(encoder):
        found = [encoder(normalize(p.to(device), mean, std)).float() for p in pixels.split(batch_size)]
    # Concatenated outside inference mode: a tensor that probes can train on.
    return torch.cat(found)


def extract(
    encoder: nn.Module,
    source: Source,
    *,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of all good images of a source under `test_transform`, in exact float32.

    The encoder is moved to `device`, and is in the mode it was in when this returns.

    Args:
        encoder: `b c test_size test_size` to `b d`.
        source: images.
        test_size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder.
        batch_size: images at a time; two batches of pixels are in memory.
        cache: folder for features on disk. Weights, images and transform are the key.
        progress: called after each batch.

    Raises:
        UserError: no image could be read.
    """
    return extract_all(
        {"": encoder},
        source,
        test_size=test_size,
        mean=mean,
        std=std,
        device=device,
        batch_size=batch_size,
        cache=cache,
        progress=progress,
    )[""]


def extract_all(
    encoders: Mapping[str, nn.Module],
    source: Source,
    *,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    cache: Path | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> dict[str, Features]:
    """`extract` for several encoders in one pass over the images, because decoding often costs the most.

    With `shared`, all processes of the group call it, and each reads its share of the batches. The first has all
    features, the same as of one process; the others have none.
    """
    first = not shared or distributed.rank() == 0
    files: dict[str, Path] = {}
    if cache is not None and first:
        shown = f"{fingerprint(source)} {stamps(source)} {_shown(source)}{test_size} {list(mean)} {list(std)}"
        files = {name: cache / f"{_digest(weights_digest(e) + shown)}.safetensors" for name, e in encoders.items()}
    found = {name: stored for name, file in files.items() if (stored := _load(file)) is not None}
    # An image that could not be read may be readable today, and rows must match the same images for all encoders.
    if any(stored[1:] != next(iter(found.values()))[1:] for stored in found.values()):
        found.clear()
    names = [name for name in encoders if name not in found]
    names = distributed.share(names) if shared else names
    missing = {name: encoders[name].to(device) for name in names}
    if missing:
        mine = _share(len(source), batch_size) if shared else range(len(source))
        parts: dict[str, list[Tensor]] = {name: [] for name in missing}
        index: list[int] = []
        bad: dict[int, str] = {}
        part = source if len(mine) == len(source) else source.subset(mine)
        with threads_of(device) as threads:
            for pixels, good, broken in test_images(part, test_size, batch_size):
                index += [mine[i] for i in good]
                bad |= {mine[i]: reason for i, reason in broken.items()}
                if good:
                    x = normalize(pixels.to(device), mean, std)
                    with frozen(*missing.values()):
                        for name, encoder in missing.items():
                            parts[name].append(encoder(x).float().cpu())
                threads.step()
                if progress is not None:
                    progress((len(index) + len(bad)) * len(source) // len(mine), len(source))
        gathered = {name: torch.cat(p) if (p := parts.pop(name)) else torch.empty(0) for name in missing}
        if shared:
            everyone = distributed.collect((index, bad))
            index = [i for some, _ in everyone for i in some]
            bad = {i: reason for _, some in everyone for i, reason in some.items()}
            gathered = {name: distributed.to_first(x) for name, x in gathered.items()}
        if not index:
            reason = f" (the first: {next(iter(bad.values()))})" if bad else ""
            raise UserError(f"None of the {len(source)} images of {source.name} could be read{reason}.")
        changed = any(stored[1:] != (index, bad) for stored in found.values())
        if distributed.share(changed) if shared else changed:
            for name in found:
                files[name].unlink(missing_ok=True)
            return extract_all(
                encoders,
                source,
                test_size=test_size,
                mean=mean,
                std=std,
                device=device,
                batch_size=batch_size,
                cache=cache,
                progress=progress,
                shared=shared,
            )
        for name in missing if first else ():
            found[name] = gathered[name], index, bad
            if name in files:
                _save(files[name], *found[name])
    return {name: _features(source, *found[name]) for name in encoders} if first else {}


def _share(n: int, batch_size: int) -> range:
    """This rank's images of `n`: whole batches, in which images are encoded beside the same ones as in one process."""
    batches, rank, world = math.ceil(n / batch_size), distributed.rank(), distributed.world_size()
    start, stop = (min(n, batches * r // world * batch_size) for r in (rank, rank + 1))
    return range(start, stop)


_Stored = tuple[Tensor, list[int], dict[int, str]]
"""Features, the indices of their images, and index: reason for each bad image."""


def _features(source: Source, x: Tensor, index: list[int], bad: dict[int, str]) -> Features:
    labels = None if source.labels is None else torch.from_numpy(np.asarray(source.labels, dtype=np.int64)[index])
    names, where = source.ids, [(source.where(i), reason) for i, reason in bad.items()]
    return Features(x, labels, torch.tensor(index), [names[i] for i in index], where)


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def weights_digest(encoder: nn.Module) -> str:
    """A hash of the encoder's weights, settings and printed form, which covers parts without weights."""
    # The number of heads, for example, is in no printed form.
    specs = [sorted(m.spec.items()) for m in encoder.modules() if isinstance(m, Encoder)]
    digest = blake2b(f"{encoder!r} {specs}".encode(), digest_size=16)
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(source: Source) -> str:
    """A hash of the images' names and, since files may change under their names, of a few images themselves."""
    return _digest(source.naming + source.sample())


def stamps(source: Source) -> str:
    """A hash of the files' sizes, times and permissions, where images are files: fixed files are read again."""
    digest = blake2b(digest_size=16)
    for i in range(len(source)):
        try:
            raw = source.read(i)
            raw = raw.raw if isinstance(raw, Frame) else raw
            if not isinstance(raw, Path):
                break
            s = raw.stat()
            digest.update(f"{s.st_size} {s.st_mtime_ns} {s.st_mode} ".encode())
        except (OSError, BadImage):
            digest.update(b"gone ")
    return digest.hexdigest()


def _shown(source: Source) -> str:
    """How files became pixels, where that is not as usual."""
    return "" if source.reading == RGB else f"{source.reading} "


def _load(file: Path) -> _Stored | None:
    if not file.exists():
        return None
    try:
        tensors, facts = load_tensors(file)
        return tensors["x"], tensors["index"].tolist(), {int(i): reason for i, reason in facts["bad"].items()}
    except (UserError, KeyError):
        return None  # damaged: extract again


def _save(file: Path, x: Tensor, index: list[int], bad: dict[int, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, {"x": x, "index": torch.tensor(index)}, {"bad": {str(i): r for i, r in bad.items()}})
    except (OSError, SafetensorError) as error:
        warnings.warn(f"The features could not be cached in {file.parent} ({error}).", stacklevel=2)
