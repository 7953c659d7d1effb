"""CLIP learns from pairs that a test writes, and reads captions as it should."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews.errors import UserError
from manyviews.heads import TextEncoder
from manyviews.types import Batch
from manyviews.verbs.pretrain import captions_address
from manyviews.views import Caption, Views

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210), "yellow": (210, 200, 50)}


def test_a_text_is_read_to_its_end_and_no_further():
    torch.manual_seed(0)
    text = TextEncoder(16, 2, 2, 12, 8).eval()
    short = torch.tensor([[97, 98, 99, 0, 0]])
    torch.testing.assert_close(text(short), text(short[:, :3]))
    assert not torch.allclose(text(short), text(torch.tensor([[97, 98, 100, 0, 0]])))
    # Causal: a token does not see what follows, so a longer text begins with the same features.
    seen = []
    text.blocks[-1].register_forward_hook(lambda m, a, y: seen.append(y))
    text(short)
    text(torch.tensor([[97, 98, 99, 100, 101]]))
    torch.testing.assert_close(seen[0][:, :3], seen[1][:, :3])
    column = torch.tensor([[104, 105, 0], [106, 0, 0]], dtype=torch.uint8)
    batch = Batch.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), text=column)
    assert Views(batch, (Caption(length=2),))["caption", 0].tolist() == [[104, 105], [106, 0]]


def test_it_finds_the_captions_of_images_it_has_not_seen(tmp_path):
    draw = np.random.default_rng(0)

    def write(folder, n):
        folder.mkdir()
        with (folder / "captions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "caption"])
            for i in range(n):
                name = list(COLORS)[i % 4]
                pixels = (np.array(COLORS[name]) + draw.normal(0, 30, (36, 36, 3))).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
                rows.writerow([f"{i}.png", f"a {name} square"])
        return folder

    photos = write(tmp_path / "photos", 96)
    settings = {"epochs": 12, "data.holdout": 0.0, "monitor.epochs": 0, "step.precision": "float32"}
    run = mv.pretrain(photos, "clip_tiny", settings=settings, out=tmp_path / "run")
    method = run.method
    captions = [f"a {name} square".encode() for name in COLORS]
    text = torch.zeros(4, max(map(len, captions)), dtype=torch.int64)
    for row, caption in zip(text, captions, strict=True):
        row[: len(caption)] = torch.tensor(list(caption))
    found = mv.embed(tmp_path / "run", write(tmp_path / "test", 40), tmp_path / "test.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(found)
    features = torch.tensor(np.array(table["embedding"].to_pylist()), dtype=torch.float32)
    wanted = torch.tensor([int(str(name).removesuffix(".png")) % 4 for name in table["id"].to_pylist()])
    with torch.no_grad():
        u, v = method.online.projector(features), method.text(text)
    right = (torch.nn.functional.normalize(u) @ torch.nn.functional.normalize(v).T).argmax(1) == wanted
    assert right.float().mean() > 0.8
    # The file may lie elsewhere.
    (photos / "captions.csv").rename(tmp_path / "words.csv")
    settings |= {"epochs": 1}
    again = mv.pretrain(
        photos, "clip_tiny", settings=settings, out=tmp_path / "second", captions=tmp_path / "words.csv"
    )
    assert again.facts["captions"] == str(tmp_path / "words.csv")
    with pytest.raises(UserError, match="captions"):
        mv.pretrain(photos, "clip_tiny", settings=settings, out=tmp_path / "again")


def test_a_run_remembers_a_column_of_captions_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("path,caption\n")
    assert captions_address("words") == "words" and captions_address(None) is None
    assert captions_address("words.csv") == captions_address(Path("words.csv")) == str(tmp_path / "words.csv")
