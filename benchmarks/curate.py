"""How well `manyviews curate` finds planted copies, next to a perceptual hash and features alone; and how fast it is.

    python benchmarks/curate.py --data clothing10_192.zip --weights mobilenet_v2.safetensors \
        --backbone mobilenetv2_100 --test-size 128 --images 360 --out benchmarks/curate.json
    python benchmarks/curate.py --embeddings 1000000 --dim 384 --out benchmarks/curate_million.json

Copies of a third of the images are saved among them, the kinds in turn: the very file, crops, recompressed, mirrored,
with a logo, and with a border, the edited ones with a quality of 60 to 95. A copy counts as found if it and its
original are a pair: of one group for `curate`, of 64-bit hashes within `HASH` bits for the perceptual hash (the signs
of the lowest 8 x 8 cosines of a gray picture), of features of a cosine of 0.95 for features alone. Pairs of two
originals are in the set itself, or wrong: they count as wrong here, and are named to be looked at.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from _bench import facts, write
from PIL import Image
from scipy.fft import dctn
from torch.nn.functional import normalize as unit

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation import Features, extract
from manyviews.evaluation.unlabeled import curation
from manyviews.evaluation.unlabeled.copies import planted
from manyviews.evaluation.unlabeled.duplicates import Limits, looks_alike, similar
from manyviews.evaluation.unlabeled.stages import in_clusters, nearest
from manyviews.evaluation.unlabeled.whitening import Whitening
from manyviews.verbs.curate import write as curate
from manyviews.weights import Pretrained

THRESHOLD = 0.9
SAMPLE = 500
KINDS = ("exact", "cropped", "compressed", "mirrored", "logo", "border")
HASH = 10  # bits of 64 that two copies may differ in, as imagehash's users take it


def edited(picture: Image.Image, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A copy: `copies.planted`, a disc with a cross over a corner, or a frame of one color around the picture."""
    x = np.asarray(picture)
    side = min(x.shape[:2])
    if kind == "logo":
        x, size = x.copy(), round(side * rng.uniform(0.15, 0.25))
        y0, x0 = (int(rng.choice([2, n - size - 2])) for n in x.shape[:2])
        grid = np.linspace(-1, 1, size)
        disc = np.hypot(grid[:, None], grid) <= 1
        cross = (np.abs(grid[:, None]) < 0.2) | (np.abs(grid) < 0.2)
        part = x[y0 : y0 + size, x0 : x0 + size]
        part[disc] = rng.integers(0, 256, 3)
        part[disc & cross] = 255
        return x
    if kind == "border":
        width = round(side * rng.uniform(0.03, 0.1))
        framed = np.empty((x.shape[0] + 2 * width, x.shape[1] + 2 * width, 3), np.uint8)
        framed[:] = rng.integers(0, 256, 3)
        framed[width:-width, width:-width] = x
        return framed
    return planted(picture, kind, rng)


def plant(data: str, most: int, folder: Path, seed: int) -> dict[str, tuple[int, str]]:
    """Save images as JPEG of quality 90, and copies of a third of them; (original, kind) of each file by its name."""
    source, rng = open_source(data, split="all"), np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(source))[:most])
    made: dict[str, tuple[int, str]] = {}
    for n, i in enumerate(chosen.tolist()):
        picture = source.show(i)
        name = f"{i:05}.jpg"
        picture.save(folder / name, quality=90)
        made[name] = i, "original"
        if n % 3 == 0:
            kind = KINDS[n // 3 % len(KINDS)]
            copy = f"copy{n:05}.jpg"
            if kind == "exact":
                shutil.copy(folder / name, folder / copy)
            else:
                Image.fromarray(edited(picture, kind, rng)).save(folder / copy, quality=int(rng.integers(60, 96)))
            made[copy] = i, kind
    return made


def hashes(folder: Path, names: list[str]) -> np.ndarray:
    """Perceptual hashes: bool, `n 64`."""
    found = []
    for name in names:
        gray = np.asarray(Image.open(folder / name).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
        low = dctn(gray, norm="ortho")[:8, :8].ravel()
        found.append(low > np.median(low[1:]))
    return np.array(found)


def score(pairs: set[tuple[str, str]], made: dict[str, tuple[int, str]], named: int = 20) -> dict[str, Any]:
    """Precision and recall of pairs of names, each in order."""
    original = {i: name for name, (i, kind) in made.items() if kind == "original"}
    wanted = {tuple(sorted((original[i], name))): kind for name, (i, kind) in made.items() if kind != "original"}
    wrong = sorted(pair for pair in pairs if made[pair[0]][0] != made[pair[1]][0])
    by: dict[str, list[int]] = {kind: [0, 0] for kind in KINDS}
    for pair, kind in wanted.items():
        by[kind][0] += pair in pairs
        by[kind][1] += 1
    hits = sum(found for found, _ in by.values())
    return {
        "recall": hits / len(wanted),
        "precision": hits / max(1, hits + len(wrong)),
        "by kind": by,
        "wrong pairs": len(wrong),
        "some of them": [list(pair) for pair in wrong[:named]],
    }


def copies(weights: Pretrained, folder: Path, made: dict[str, tuple[int, str]], out: Path) -> dict[str, Any]:
    """What `curate`, the hash, and features alone find, and which copy is kept."""
    begun = time.time()
    found = curate(folder, weights, out)
    took = time.time() - begun
    rows = pq.read_table(out).to_pylist()
    home = {row["id"]: row["duplicate_of"] or row["id"] for row in rows}
    members: dict[str, list[str]] = {}
    for name, kept in home.items():
        members.setdefault(kept, []).append(name)
    together = {tuple(sorted((a, b))) for group in members.values() for a in group for b in group if a < b}
    names = sorted(made)
    bits = hashes(folder, names)
    near = (bits[:, None] != bits).sum(2) <= HASH
    hashed = {(names[i], names[j]) for i, j in np.argwhere(np.triu(near, 1))}
    seen = shown(weights, folder)
    alone = {tuple(sorted((seen.ids[i], seen.ids[j]))) for i, j in similar(seen.x, seen.x, 0.95)[0].tolist()}
    better: dict[str, list[int]] = {kind: [0, 0] for kind in KINDS}
    for row in rows:
        kept = row["duplicate_of"]
        if kept and made[kept][0] == made[row["id"]][0]:
            copy = row["id"] if made[row["id"]][1] != "original" else kept
            better[made[copy][1]][0] += made[kept][1] == "original"
            better[made[copy][1]][1] += 1
    return {
        "curate": score(together, made) | {"seconds": round(took), "said": found.notes, "original kept": better},
        f"hash, {HASH} bits": score(hashed, made),
        "cosine 0.95": score(alone, made),
    }


def shown(weights: Pretrained, folder: Path) -> Features:
    """Features of all images."""
    how = {"test_size": weights.test_size, "mean": weights.mean, "std": weights.std}
    return extract(weights.encoder, open_source(folder), **how)


def ranked(weights: Pretrained, folder: Path, made: dict[str, tuple[int, str]]) -> dict[str, float]:
    """How well features alone rank pairs, planted ones first: micro average precision, percent, raw and whitened."""
    seen = shown(weights, folder)
    origin = torch.tensor([made[name][0] for name in seen.ids])
    i, j = torch.triu_indices(len(seen), len(seen), 1)
    same = origin[i] == origin[j]
    white = Whitening.of(seen.x)
    found = {}
    for name, x in ({"raw": seen.x} | ({} if white is None else {"whitened": white(seen.x)})).items():
        x = unit(x, dim=1)
        hits = same[(x @ x.T)[i, j].argsort(descending=True)].double()
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        found[name] = round(100 * float((precision * hits).sum() / hits.sum()), 1)
    return found


def million(n: int, dim: int, seed: int, folder: Path) -> dict[str, Any]:
    """Each stage on synthetic features in a mapped file: a long tail of 3,000 clusters, and 1 % copies.

    A copy's cosine similarity to its original is uniform in [`THRESHOLD`, 1]. Recall is of all pairs that `SAMPLE`
    images have with any image.
    """
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(3000, dim, generator=g)
    weight = 1 / torch.arange(1, 3001).float()
    x = torch.from_numpy(np.memmap(folder / "x", np.float16, "w+", shape=(n, dim)))
    for start in range(0, n, 65536):
        count = min(65536, n - start)
        home = torch.multinomial(weight, count, replacement=True, generator=g)
        x[start : start + count] = unit(means[home] + 1.2 * torch.randn(count, dim, generator=g), dim=1)
    copied = n // 100
    chosen = torch.randperm(n - copied, generator=g)[:copied]
    x[-copied:] = copies_at(x[chosen].float(), THRESHOLD, g)
    grays = torch.randn(n, 65, generator=g).half()
    grays[-copied:] = grays[chosen]
    planted = torch.randperm(n, generator=g)[:512]
    answer: dict[str, Any] = {"embeddings": n, "dim": dim, "GB of features": round(x.nbytes / 1e9, 2)}
    begun = time.time(), time.process_time()

    def lap(name: str) -> None:
        nonlocal begun
        now = time.time(), time.process_time()
        answer[name] = {"seconds": round(now[0] - begun[0], 1), "core seconds": round(now[1] - begun[1], 1)}
        answer["peak GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
        print(name, answer[name], answer["peak GB"], flush=True)
        begun = time.time(), time.process_time()

    where = curation.cells(x, seed)
    lap("cells")
    narrow, met = where, 1.0
    if len(where) > 1:
        narrow, met = where.meeting(copies_at(x[planted].float(), THRESHOLD, g), planted)
    answer["cells and probes"] = [len(where), narrow.probes.shape[1], round(met, 4)]
    pairs = curation.pairs(x, grays, Limits(THRESHOLD, 0.9), narrow)
    lap("pairs")
    curation.isolation(x, where)
    lap("outliers")
    nearest(x, x[planted].float(), 32)
    lap("like")
    tree = curation.tree(x, seed)
    lap("tree")
    answer["clusters"] = [int(parent.max()) + 1 for parent in tree.parents]
    in_clusters(tree, x[planted].float())
    lap("like, by clusters")
    answer["balanced"] = int(curation.balanced(tree.parents, n // 10, seed).sum())
    lap("balance")
    total = [answer[name] for name in answer if isinstance(answer[name], dict)]
    answer["together"] = {k: round(sum(t[k] for t in total), 1) for k in ("seconds", "core seconds")}
    some = torch.cat([chosen[:SAMPLE], torch.arange(n - copied, n)[:SAMPLE]]).unique()
    rows, _ = similar(x[some], x, THRESHOLD)
    asked = torch.stack([some[rows[:, 0]], rows[:, 1]], 1)
    asked = asked[(asked[:, 0] != asked[:, 1]) & (looks_alike(grays, asked) >= 0.9)].sort(1).values
    wanted = set(map(tuple, asked.tolist()))
    answer["pairs of the sample"] = len(wanted)
    answer["recall"] = len(wanted & set(map(tuple, pairs.rows.tolist()))) / len(wanted)
    return answer


def copies_at(x: torch.Tensor, least: float, g: torch.Generator) -> torch.Tensor:
    """Other features of a cosine similarity to these that is uniform in [least, 1]."""
    cosine = least + (1 - least) * torch.rand(len(x), 1, generator=g)
    other = torch.randn(x.shape, generator=g)
    x = unit(x, dim=1)
    other = unit(other - (other * x).sum(1, keepdim=True) * x, dim=1)
    return cosine * x + (1 - cosine.square()).sqrt() * other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--weights", help="an encoder; an untrained ResNet-18 without it")
    parser.add_argument("--backbone", help="its architecture")
    parser.add_argument("--runs", nargs="*", default=[], help="further encoders, such as runs of sscd")
    parser.add_argument("--test-size", type=int, default=128)
    parser.add_argument("--embeddings", type=int, help="time this many synthetic features instead")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the planted images and the page, to look at")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = facts(torch.device("cpu"), "torch", "scikit-learn", "pillow") | {"seed": options.seed}
    if options.embeddings:
        with tempfile.TemporaryDirectory() as temporary:
            report |= million(options.embeddings, options.dim, options.seed, Path(temporary))
    else:
        if options.weights:
            weights = mv.load(options.weights, options.backbone, test_size=options.test_size)
        else:
            torch.manual_seed(options.seed)
            encoder = Encoder("resnet18").eval()
            size = options.test_size
            weights = Pretrained(encoder, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size, "untrained resnet18")
        with tempfile.TemporaryDirectory() as temporary:
            keep = options.keep or Path(temporary)
            (keep / "images").mkdir(parents=True)
            made = plant(options.data, options.images, keep / "images", options.seed)
            report["images"], report["copies"] = len(made), sum(kind != "original" for _, kind in made.values())
            report |= copies(weights, keep / "images", made, keep / "list.parquet")
            report["micro AP"] = ranked(weights, keep / "images", made)
            for run in options.runs:
                other = mv.load(run)
                found = copies(other, keep / "images", made, keep / f"{Path(run).name}.parquet")
                report[Path(run).name] = found | {"micro AP": ranked(other, keep / "images", made)}
    print(json.dumps(report, indent=1))
    write(options.out, report)


if __name__ == "__main__":
    main()
