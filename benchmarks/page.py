"""How long the page of a run takes to open with 50,000 images on its map, and how fast the map moves.

python benchmarks/page.py [--images 50000] [--rounds 5] [--out benchmarks/page.json]

In a real Chromium, without a window and without a GPU: the worst case. Places, names and thumbnails are synthetic. What
is timed is a fresh start of the page, from disk: until the charts are there, until the map is drawn, and how long one
frame of the map takes while it zooms.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _bench import facts, spread, write

from manyviews import recipes
from manyviews.data import Source
from manyviews.reporting.page import atlas, build
from manyviews.reporting.page.render import render

CLASSES = 20
_FRAME = """async () => {
    const canvas = document.getElementById('map-canvas'), box = canvas.getBoundingClientRect(), times = [];
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    for (let i = 0; i < 30; i++) {
        const event = { deltaY: i < 15 ? -60 : 60, clientX: box.left + 200, clientY: box.top + 200, cancelable: true };
        const start = performance.now();
        canvas.dispatchEvent(new WheelEvent('wheel', event));
        await frame();
        times.push(performance.now() - start);
        await frame();
    }
    return times.sort((a, b) => a - b)[15];
}"""


def synthetic(images: int) -> Source:
    """Thumbnails of one color each, in classes."""
    rng = np.random.default_rng(0)
    colors, labels = rng.integers(0, 256, (images, 3), dtype=np.uint8), rng.integers(0, CLASSES, images)
    return Source(
        "synthetic",
        images,
        lambda i: np.broadcast_to(colors[i], (32, 32, 3)),
        lambda: [f"photos/{labels[i]:02}/some longer file name {i:06}.jpg" for i in range(images)],
        lambda: (labels, [f"class {k}" for k in range(CLASSES)]),
    )


def made(images: int, folder: Path) -> Path:
    """A page with a map of so many images."""
    source = synthetic(images)
    y = torch.from_numpy(source.labels)
    torch.manual_seed(0)
    x = torch.randn(CLASSES, 2)[y] * 4 + torch.randn(images, 2)
    near = torch.randint(0, images, (images, atlas.K))
    known = atlas.Atlas(source, [x], [near], [torch.rand(near.shape).sort(1, descending=True)[0]])
    run = SimpleNamespace(folder=folder / "run", recipe=recipes.get("simclr_tiny"), facts={}, summary={"seconds": 1})
    run.log = [{"step": s, "epoch": s / 100, "loss": 5 / s, "lr": 0.1, "grad_norm": 1.0} for s in range(1, 20_000)]
    # Places as they are: to find some is another benchmark's business.
    atlas.lay_out = lambda features, seed: (features.numpy(), "nothing")  # type: ignore[assignment]
    page = folder / "page"
    page.mkdir()
    content: dict[str, Any] = build._numbers([run], ["run"])
    content["images"] = {
        **{"why_not": "", "gallery": [], "mistakes": None, "views": [], "patches": [], "subspaces": [], "runs": [0]},
        **{"own": False, "umap": True, "source": "synthetic", "total": images},
        "map": atlas.draw_map(known, ["run"], page, 0, None),
    }
    (page / "index.html").write_text(render(content | {"made": "now", "version": "0"}), encoding="utf-8")
    return page / "index.html"


def measured(index: Path, chromium: str) -> dict[str, float]:
    """Seconds until the charts and the map are there, and of a frame, in a browser of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.monotonic()
        page.goto(index.as_uri(), wait_until="commit")
        page.locator("html[data-charts=ready]").wait_for(state="attached")
        charts = time.monotonic() - start
        page.locator("html[data-map=ready]").wait_for(state="attached")
        whole = time.monotonic() - start
        page.locator("#map-canvas").scroll_into_view_if_needed()
        frame = page.evaluate(_FRAME) / 1000
        browser.close()
    return {"charts": charts, "map": whole, "frame": frame}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chromium = next((p for n in ("chromium", "google-chrome", "chrome") if (p := shutil.which(n))), None)
    if chromium is None:
        raise SystemExit("There is no Chromium to open the page in.")
    with tempfile.TemporaryDirectory() as folder:
        index = made(options.images, Path(folder))
        size = sum(f.stat().st_size for f in index.parent.rglob("*") if f.is_file())
        print(f"{options.images} images, {size / 2**20:.1f} MiB; load {os.getloadavg()[0]:.1f}")
        rounds = [measured(index, chromium) for _ in range(options.rounds)]
    found = {name: spread([r[name] for r in rounds], 3) for name in rounds[0]}
    for name, (low, middle, high) in found.items():
        print(f"{name:8} {middle:.3f} s ({low:.3f} to {high:.3f})")
    write(options.out, {"images": options.images, "seconds": found, **facts(torch.device("cpu"), "playwright")})


if __name__ == "__main__":
    main()
