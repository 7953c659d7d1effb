"""How many planted copies `manyviews duplicates` finds among real images, and what else it finds.

    python benchmarks/duplicates.py --data clothing10_192.zip --run runs/clothes --weights mobilenet_v2.safetensors \
        --backbone mobilenetv2_100 --test-size 128 --out benchmarks/duplicates.json

Copies of a tenth of the images are saved among them: each is edited once or twice, by the edits of
`manyviews.evaluation.unlabeled.copies` with strengths drawn anew, and saved as a JPEG or WebP. A pair counts as found
if both images are in one group. Pairs of two images of different origin are in the set itself, or wrong: they are
named, to be looked at. "features alone" is how many such pairs there are above the similarity that finds as many
copies, without a second look.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import facts, write
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.data.source import Source
from manyviews.evaluation import extract
from manyviews.evaluation.unlabeled.copies import KINDS, planted
from manyviews.evaluation.unlabeled.duplicates import similar
from manyviews.weights import Pretrained


def plant(source: Source, folder: Path, seed: int) -> dict[str, tuple[int, str]]:
    """Save the images and copies of a tenth of them; (original, edit) of each file by its name."""
    rng = np.random.default_rng([seed, 1])
    made: dict[str, tuple[int, str]] = {}
    for i in range(len(source)):
        source.show(i).save(folder / f"{i:05}.png", compress_level=1)
        made[f"{i:05}.png"] = i, "original"
    for n, i in enumerate(rng.permutation(len(source))[: len(source) // 10].tolist()):
        edits = [KINDS[n % len(KINDS)]]
        if n % 2:
            edits.append(str(rng.choice([kind for kind in KINDS if kind not in edits])))
        picture: Any = source.show(i)
        for edit in edits:
            picture = planted(picture, edit, rng)
        name = f"copy{n:04}.{'webp' if n % 3 == 0 else 'jpg'}"
        Image.fromarray(picture).save(folder / name, quality=int(rng.integers(60, 96)))
        made[name] = i, " and ".join(edits)
    return made


def measure(weights: Pretrained | str, folder: Path, made: dict[str, tuple[int, str]], out: Path) -> dict[str, Any]:
    """Precision and recall of the default, and what features alone would say."""
    begun = time.time()
    found = mv.duplicates(weights, folder, out)
    took = time.time() - begun
    together = {(group.ids[pair.first], group.ids[pair.second]) for group in found.groups for pair in group.pairs}
    wanted = {(f"{i:05}.png", name): edit for name, (i, edit) in made.items() if edit != "original"}
    hits = [pair for pair in together if tuple(sorted(pair)) in wanted]
    others = sorted(pair for pair in together if made[pair[0]][0] != made[pair[1]][0])
    by: dict[str, list[bool]] = {}
    for pair, edit in wanted.items():
        by.setdefault(edit, []).append(pair in together)
    loaded = mv.load(weights) if isinstance(weights, str) else weights
    seen = extract(loaded.encoder, open_source(folder), test_size=loaded.test_size, mean=loaded.mean, std=loaded.std)
    row = {name: k for k, name in enumerate(seen.ids)}
    x = torch.nn.functional.normalize(seen.x, dim=1)
    near = torch.tensor([float(x[row[a]] @ x[row[b]]) for a, b in wanted])
    limit = float(near.sort(descending=True).values[max(0, len(hits) - 1)])
    pairs, _ = similar(seen.x, seen.x, limit)
    return {
        "recall": len(hits) / len(wanted),
        "recall by edit": {edit: [sum(v), len(v)] for edit, v in sorted(by.items())},
        "groups": len(found.groups),
        "planted pairs": len(wanted),
        "found": len(hits),
        "other pairs": [list(pair) for pair in others],
        "precision if all others are wrong": len(hits) / max(1, len(hits) + len(others)),
        "said": found.calibration.words,
        "pairs between groups": len(found.between),
        "features alone, at this recall": {"similarity": limit, "pairs": len(pairs), "planted": len(hits)},
        "seconds": round(took),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", help="a run on these images")
    parser.add_argument("--weights", help="weights from elsewhere")
    parser.add_argument("--backbone", help="their architecture")
    parser.add_argument("--test-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the planted images and the pages, to look at")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = open_source(options.data, split="all")
    contenders: dict[str, Any] = {}
    if options.run:
        contenders["run"] = options.run
    torch.manual_seed(options.seed)
    size = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "test_size": options.test_size}
    contenders["untrained resnet18"] = Pretrained(Encoder("resnet18").eval(), **size, name="untrained")
    if options.weights:
        contenders["weights"] = mv.load(options.weights, options.backbone, test_size=options.test_size)
    report: dict[str, Any] = facts(torch.device("cpu"), "torch", "timm", "pillow") | {
        "seed": options.seed,
        "images": len(source),
    }
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        images = keep / "images"
        images.mkdir(parents=True)
        made = plant(source, images, options.seed)
        for name, weights in contenders.items():
            report[name] = measure(weights, images, made, keep / f"{name.split()[0]}.csv")
            print(name, json.dumps(report[name], indent=1))
            write(options.out, report)


if __name__ == "__main__":
    main()
