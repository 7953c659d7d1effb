"""Objects followed through a video by their patch features alone (Jabri et al. 2020; DINO, Caron et al. 2021, 4.2.2).

J and F are DAVIS's (Perazzi et al. 2016; Pont-Tuset et al. 2017).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.backbones.encoder import Encoder
from manyviews.data.canvas import in_threads
from manyviews.data.decode import BadImage, as_rgb, decode
from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.dense.files import Bad, check_counts
from manyviews.evaluation.dense.legend import read_mask
from manyviews.evaluation.dense.maps import Maps, encode_all, resized
from manyviews.evaluation.dense.report import Dense
from manyviews.evaluation.dense.videos import Video, open_videos
from manyviews.progress import Update

_VOID = 255
_TOLERANCE = 0.008  # largest distance of a boundary from the true one, in diagonals
_RECALLED = 0.5
_AT_ONCE = 8  # frames that are decoded and encoded together
_TILE = 16  # patches in a row whose neighbors are searched together


def propagate(
    encoder: Encoder,
    data: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    test_size: int | None = None,
    stages: Sequence[int] | None = None,
    k: int = 5,
    frames: int = 7,
    radius: int = 12,
    temperature: float = 0.1,
    rescale: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Update | None = None,
) -> Dense:
    """Label propagation through videos by nearest patch features, without any training: J&F-mean.

    The first frame's objects are followed: see `propagate_labels`, whose context is the first frame and the last few
    frames. Labels of the first frame are those at the centers of the patches, so an object between the centers is lost;
    later labels are soft. Soft labels, bilinearly upsampled to the frame, become masks by the likeliest label. The
    defaults are DINO's.

    As in DAVIS, the first and the last frame are not judged, J and F are means over an object's frames, and then over
    the objects of all sequences; pixels with the value 255 do not count. The interval is a bootstrap over objects.

    Args:
        encoder: encoder to judge. It is moved to `device`, and stays as it is.
        data: folder of sequences: see `videos.open_videos`.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        test_size: short side of the encoder's input in pixels; None: the frame's own, at most 512.
        stages: stages of the network whose maps are used: see `maps.Maps`. None: the last one.
        k: nearest neighbors.
        frames: number of frames before the current one in the context, next to the first frame.
        radius: radius, in patches, of the square in which neighbors are searched.
        temperature: temperature of the softmax over the neighbors' similarities.
        rescale: bring each label's map to [0, 1] before they are compared, as the authors' code does, in favor of small
            objects. The papers do not mention it.
        device: device to compute on.
        seed: seed of the interval.
        progress: called after every few frames.

    Raises:
        UserError: data in no known layout, or without a usable sequence.
    """
    check_counts(k=k, test_size=test_size or 1)
    check_counts(least=0, frames=frames, radius=radius)
    start, device = time.monotonic(), torch.device(device)
    videos, bad = open_videos(Path(data))
    maps = Maps(encoder.to(device), stages)
    nearest = partial(propagate_labels, k=k, radius=radius, temperature=temperature)
    total, done, good, whites = sum(len(v.frames) for v in videos), 0, 0, 0
    regions, boundaries, still = (dict[str, list[float]]() for _ in range(3))
    for video in videos:
        try:
            first = read_mask(video.masks[0])
            if white := set(np.unique(first).tolist()) == {0, _VOID}:  # as in DAVIS 2016
                first, whites = first // _VOID, whites + 1
            objects = [int(v) for v in np.unique(first) if v not in (0, _VOID)]
            if not objects:
                raise BadImage("its mask marks nothing")
            features = _features(video, maps, mean, std, test_size, device, bad)
            for i, predicted in _follow(features, first, objects, nearest, frames, rescale):
                good += 1
                if progress is not None:
                    progress(done + i + 1, total, video.name)
                true = _true(video, i, predicted.shape, bad)
                if white and true is not None:
                    true = true // _VOID
                if true is None:
                    continue
                void = true == _VOID
                for label, value in enumerate(objects, 1):
                    name, wanted = f"{video.name}/{value}", true == value
                    regions.setdefault(name, []).append(region(predicted == label, wanted, void))
                    boundaries.setdefault(name, []).append(boundary(predicted == label, wanted, void))
                    unmoved = region(first == value, wanted, void), boundary(first == value, wanted, void)
                    still.setdefault(name, []).append(sum(unmoved) / 2)
        except BadImage as error:
            bad.append((str(video.frames[0]), f"{error.reason}, so the sequence is left out"))
        done += len(video.frames)
    if not regions:
        raise UserError(f"No frame of {data} could be judged" + (f" (the last: {bad[-1][1]})." if bad else "."))
    j, f = (torch.tensor([np.mean(v) for v in found.values()]) for found in (regions, boundaries))
    both = (j + f) / 2
    recall = {
        name: float(np.mean([np.mean(np.array(v) > _RECALLED) for v in found.values()]))
        for name, found in (("J recall", regions), ("F recall", boundaries))
    }
    return Dense(
        task="propagation",
        metric="J&F",
        value=both.mean().item(),
        interval=metrics.bootstrap(both, seed) if len(both) > 1 else None,
        details={
            "J mean": j.mean().item(),
            "J recall": recall["J recall"],
            "F mean": f.mean().item(),
            "F recall": recall["F recall"],
        },
        per_class=dict(zip(regions, both.tolist(), strict=True)),
        baselines={"the first mask, unmoved": float(np.mean([np.mean(v) for v in still.values()]))},
        setting={"k": k, "frames": frames, "radius": radius, "temperature": temperature},
        validation={},
        images={"train": 0, "validation": 0, "test": good},
        bad=tuple(dict.fromkeys(bad)),
        seconds=time.monotonic() - start,
        notes=(f"The masks of {whites} sequences hold 0 and {_VOID} only: {_VOID} is the object.",) if whites else (),
    )


def propagate_labels(
    query: Tensor, keys: Tensor, labels: Tensor, *, k: int = 5, radius: int = 12, temperature: float = 0.1
) -> Tensor:
    """Labels of a frame's patches from those of other frames.

    Each patch takes the mean label of the k patches of all other frames, no more than `radius` rows and columns away,
    whose features are most similar to its own (cosine), weighted by a softmax of these k similarities.

    Args:
        query: features of the frame, `d h w`.
        keys: features of the other frames, `t d h w`.
        labels: labels of the other frames, one-hot or soft, `t c h w`.
        k: nearest neighbors.
        radius: radius of the square in which neighbors are searched, in patches.
        temperature: temperature of the softmax.

    Returns:
        `c h w`.
    """
    (t, d, h, w), c = keys.shape, labels.shape[1]
    x, y = F.normalize(query, dim=0), F.normalize(keys, dim=1)
    rows, columns = (torch.arange(n, device=query.device) for n in (h, w))
    found = query.new_empty(c, h, w)
    for top, left in product(range(0, h, _TILE), range(0, w, _TILE)):
        here = slice(top, min(top + _TILE, h)), slice(left, min(left + _TILE, w))
        # Take all patches within reach of the tile; then mask, for each of its patches, those too far from it.
        reach = tuple(slice(max(0, s.start - radius), s.stop + radius) for s in here)
        far = (rows[here[0], None, None, None] - rows[None, None, reach[0], None]).abs() > radius
        far = far | ((columns[None, here[1], None, None] - columns[None, None, None, reach[1]]).abs() > radius)
        near = y[:, :, *reach].permute(0, 2, 3, 1).reshape(-1, d)
        values = labels[:, :, *reach].permute(0, 2, 3, 1).reshape(-1, c)
        similar = x[:, *here].flatten(1).T @ near.T
        similar.masked_fill_(far.flatten(2).flatten(0, 1).repeat(1, t), -torch.inf)
        best, where = similar.topk(min(k, len(near)), dim=1)
        weight = (best / temperature).softmax(1)  # zero where there are fewer than k
        found[:, *here] = (weight[:, :, None] * values[where]).sum(1).T.view(c, *(s.stop - s.start for s in here))
    return found


# -- measures ----------------------------------------------------------------------------------------------------


def region(predicted: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    """J: intersection over union of two masks, bool `h w`, outside of `void`; 1 when both are empty."""
    counted = np.ones_like(true) if void is None else ~void
    union = ((predicted | true) & counted).sum()
    return float(((predicted & true) & counted).sum() / union) if union else 1.0


def boundary(predicted: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    """F: the harmonic mean of precision and recall of a mask's boundary, bool `h w`.

    A boundary pixel is right if the other boundary has one within 0.8 % of the diagonal, rounded up to whole pixels. F
    is 1 if neither mask has a boundary, and 0 if only one has.
    """
    from scipy.ndimage import distance_transform_edt

    counted = np.ones_like(true) if void is None else ~void
    ours, theirs = contour(predicted & counted), contour(true & counted)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    reach = np.ceil(_TOLERANCE * np.linalg.norm(true.shape))
    precision = (distance_transform_edt(~theirs)[ours] <= reach).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= reach).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """The boundary of a mask, one pixel wide, bool `h w`: pixels that differ from one to the right or below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    found: np.ndarray = (mask ^ right) | (mask ^ below) | (mask ^ across)
    return found


# -- frames ------------------------------------------------------------------------------------------------------


def _follow(
    features: Iterator[tuple[int, Tensor, tuple[int, int]]],
    first: np.ndarray,
    objects: list[int],
    nearest: Callable[[Tensor, Tensor, Tensor], Tensor],
    frames: int,
    rescale: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    """Position and mask of each good frame, int64 `h w`: 0 for the background, from 1 for the objects.

    Raises:
        BadImage: the first frame is bad, or its mask has another size.
    """
    position, x, shape = next(features, (-1, torch.empty(0), (0, 0)))
    if position != 0:
        raise BadImage("the first frame cannot be used")
    if shape != first.shape:
        raise BadImage("its mask has another size")
    begin = x, _one_hot(first, objects, x.shape[1:]).to(x.device)
    yield 0, np.searchsorted(objects, first, side="right") * np.isin(first, objects)
    context: deque[tuple[Tensor, Tensor]] = deque(maxlen=frames)
    for i, x, shape in features:
        keys, labels = zip(begin, *context, strict=True)
        soft = nearest(x, torch.stack(keys), torch.stack(labels))
        context.append((x, soft))
        yield i, _harden(soft, shape, rescale)


def _true(video: Video, i: int, shape: tuple[int, ...], bad: Bad) -> np.ndarray | None:
    """The mask to judge frame `i` by; None if it is not judged. Masks that cannot be used go to `bad`."""
    if i not in video.masks or i in (0, len(video.frames) - 1):
        return None
    try:
        true = read_mask(video.masks[i])
        if true.shape != shape:
            raise BadImage("the mask has another size than its frame")
    except BadImage as error:
        bad.append((str(video.masks[i]), error.reason))
        return None
    return true


def _features(
    video: Video,
    maps: Maps,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None,
    device: torch.device,
    bad: Bad,
) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """Position, features `d h' w'`, height and width of each good frame; the others go to `bad`."""

    def read(i: int) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            picture, shape = decode(video.frames[i])
            return resized(as_rgb(picture), size, maps.stride), shape
        except BadImage as error:
            return error.reason

    count = len(video.frames)
    parts = [range(i, min(i + _AT_ONCE, count)) for i in range(0, count, _AT_ONCE)]
    size_of_all: tuple[int, int] | None = None
    for some, results in zip(parts, in_threads(read, parts), strict=True):
        bad += [(str(video.frames[i]), r) for i, r in zip(some, results, strict=True) if isinstance(r, str)]
        good = {i: r for i, r in zip(some, results, strict=True) if not isinstance(r, str)}
        found = encode_all(maps, [image for image, _ in good.values()], mean, std, device)
        for (i, (_, shape)), x in zip(good.items(), found, strict=True):
            size_of_all = size_of_all or shape
            if shape == size_of_all:
                yield i, x, shape
            else:
                bad.append((str(video.frames[i]), "the frame has another size than those before"))


def _one_hot(mask: np.ndarray, objects: list[int], grid: torch.Size) -> Tensor:
    """The background and the objects at the centers of a grid's cells, float32 `1+objects h w`."""
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(grid, mask.shape, strict=True))
    small = mask[rows[:, None], columns]
    found = np.stack([~np.isin(small, objects), *(small == value for value in objects)])
    return torch.from_numpy(found.astype(np.float32))


def _harden(soft: Tensor, shape: tuple[int, int], rescale: bool) -> np.ndarray:
    """The likeliest label of every pixel: int64 `h w`, 0 for the background."""
    large = F.interpolate(soft[None], size=shape, mode="bilinear")[0]
    if rescale:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        large = (large - low) / (high - low).clamp(min=1e-12)
    return large.argmax(0).cpu().numpy()
