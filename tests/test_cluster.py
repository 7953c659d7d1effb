"""The jobs of examples/cluster: their parts against one process, and whole on Ray, where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

import manyviews as mv
from manyviews.evaluation.unlabeled.duplicates import similar

JOBS = Path(__file__).parents[1] / "examples" / "cluster"
THRESHOLD = 0.9


def job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cluster_{name}", JOBS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def embeddings(tmp_path: Path) -> tuple[Path, list[str], torch.Tensor]:
    """Three files of 16 dimensions, where each fifth row is nearly the one before, often across files."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 16)).astype(np.float32)
    x[::5] = x[np.arange(0, 300, 5) - 7] + 0.05 * draw.normal(size=(60, 16)).astype(np.float32)
    ids, folder = [f"{i:03d}" for i in range(300)], tmp_path / "embeddings"
    folder.mkdir()
    for part, rows in enumerate(np.split(np.arange(300), [110, 190])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].ravel()), 16)
        table = pa.table({"id": [ids[i] for i in rows], "embedding": column})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=50)
    return folder, ids, torch.from_numpy(x)


def expected(ids: list[str], x: torch.Tensor) -> set[tuple[str, str]]:
    return {(ids[i], ids[j]) for i, j in similar(x, x, THRESHOLD)[0].tolist()}


def test_blocks_give_the_pairs_of_one_process(embeddings: tuple[Path, list[str], torch.Tensor]) -> None:
    path, ids, x = embeddings
    duplicates = job("duplicates")
    blocks = duplicates.blocks(str(path), 100)
    assert len(blocks) == 4  # 50 + 50, 10 + 50 + 30, 50 + 50, 10

    compare = duplicates.Compare(str(path), blocks, THRESHOLD, None)
    items = [{"a": i, "b": j} for i in range(len(blocks)) for j in range(i, len(blocks))]
    found = [(row["first"], row["second"]) for item in items for row in compare(item)]
    assert len(found) == len(set(found)) > 20
    assert set(found) == expected(ids, x)


def test_a_pass_of_k_means_is_lloyds(embeddings: tuple[Path, list[str], torch.Tensor]) -> None:
    """A bug in the sums over batches moves centers, and one in the distances changes the inertia."""
    x, kmeans = embeddings[2].numpy(), job("kmeans")
    centers = x[:8]
    parts = [kmeans.sums({"embedding": list(part)}, centers) for part in np.array_split(x, 7)]
    counts, total = (sum(part[key][0] for part in parts) for key in ("count", "sum"))
    distances = ((x[:, None] - centers) ** 2).sum(2)
    assert np.isclose(sum(part["inertia"][0] for part in parts), distances.min(1).sum(), rtol=1e-5)
    once = KMeans(8, init=centers, n_init=1, max_iter=1, algorithm="lloyd").fit(x)
    moved = total / counts[:, None]
    assert np.isclose(((x[:, None] - moved) ** 2).sum(2).min(1).sum(), once.inertia_, rtol=1e-4)


def test_every_image_is_in_one_unit(tmp_path: Path) -> None:
    embed = job("embed")
    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [unit["start"] for unit in embed.units(str(tmp_path), 2)] == [0, 2, 4]
    assert len({unit["name"] for unit in embed.units(str(tmp_path), 2)}) == 3


def run(name: str, *words: object) -> str:
    command = [sys.executable, str(JOBS / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: manyviews[cluster]")
def test_jobs_on_ray(tmp_path: Path, embeddings: tuple[Path, list[str], torch.Tensor]) -> None:
    """The jobs on a local Ray give what the verbs give in one process."""
    draw = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(40):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(images / f"{i:02d}.png")
    weights = tmp_path / "run"
    mv.pretrain(images, "simclr_tiny", epochs=1, out=weights, settings={"data.batch_size": 16})
    out = tmp_path / "out"
    run("embed", weights, images, out, "--images", 16)
    parts = [pq.read_table(file) for file in sorted(out.glob("*.parquet"))]
    assert len(parts) == 3
    found, plain = pa.concat_tables(parts), pq.read_table(mv.embed(weights, images, tmp_path / "plain.parquet"))
    assert found["id"].equals(plain["id"])
    a, b = (np.stack(table["embedding"].to_numpy()) for table in (found, plain))
    assert np.allclose(a, b, atol=1e-6)

    shards = tmp_path / "shards"
    shards.mkdir()
    files = sorted(images.iterdir())
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files[:15]]}), shards / "a.parquet")
    with tarfile.open(shards / "b.tar", "w") as tar:
        for file in files[15:]:
            tar.add(file, file.name)
    run("embed", weights, shards, tmp_path / "of shards")
    parts = [pq.read_table(tmp_path / "of shards" / f"{name}.parquet") for name in ("a.parquet", "b.tar")]
    again = np.concatenate([np.stack(table["embedding"].to_numpy()) for table in parts])
    assert np.allclose(again, b, atol=1e-6)

    path, ids, x = embeddings
    run("duplicates", path, tmp_path / "pairs.parquet", "--threshold", THRESHOLD, "--rows", 100)
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert {(row["first"], row["second"]) for row in pairs} == expected(ids, x)

    first = pa.FixedSizeListArray.from_arrays(pa.array(x[:8].flatten().numpy()), 16)
    pq.write_table(pa.table({"embedding": first}), tmp_path / "start.parquet")
    said = run("kmeans", path, tmp_path / "centers.parquet", "--k", 8, "--start", tmp_path / "start.parquet")
    inertia = float(said.splitlines()[-2].split()[3].rstrip(","))
    assert np.isclose(inertia, KMeans(8, init=x[:8].numpy(), n_init=1, tol=0).fit(x.numpy()).inertia_, rtol=1e-3)
