"""Tables, archives, annotations and headers that anybody may have written, made up by hypothesis.

Each ends in a right answer or in a UserError of one line; never in another exception.
"""

import csv
import io
import json
import os
import resource
import struct
import tarfile
import tempfile
import time
import xml.sax.saxutils
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from manyviews import checkpoint
from manyviews.data import open_source
from manyviews.data.decode import BadImage
from manyviews.data.lists import write_list
from manyviews.data.prepared import MANIFEST, open_prepared, prepare, verify
from manyviews.errors import UserError, from_json
from manyviews.evaluation.dense.boxes import open_pictures
from manyviews.evaluation.dense.masks import open_masks
from manyviews.recipes import simclr
from manyviews.settings import override
from manyviews.settings.text import parse
from manyviews.weights import huggingface

TIMES = float(os.environ.get("MANYVIEWS_FAULTS", "1"))
"""Share of the full number of examples."""

SECONDS, MEGABYTES = 10, 600
"""Of the processor for one example, and of memory for all of them: no file here has more than some kilobytes."""

FEW = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
MANY = settings(FEW, max_examples=int(1000 * TIMES), derandomize=False, print_blob=True)

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "1", "-1", "1e999", "nan", "../x.png", "/etc/passwd", "a/0.png", "0.png", "x" * 300, "a\0b", "🙂", "\ud800"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**20, -(2**63), 2**64, 1e308, 10**400])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()
SMALL = np.full((8, 8, 3), 128, dtype=np.uint8)


def ends_well(do: Callable[[], Any]) -> Any:
    """What `do` returns, or the error for people; anything else that it raises fails the test."""
    try:
        return do()
    except (UserError, BadImage) as error:
        assert str(error) and len(str(error)) < 5000
        return error


def used(source: Any) -> None:
    """Everything that training and evaluation ask of a source."""
    assert len(source.ids) == len(source)
    labels = source._annotation
    if labels is not None:
        assert len(labels[0]) == len(source)
    captions = source.captions
    assert captions is None or len(captions) == len(source)
    for i in range(len(source)):
        ends_well(lambda i=i: source.load(i))


def opened(path: Path, **how: Any) -> None:
    ends_well(lambda: used(open_source(path, **how)))


def changed(draw: Any, value: Any, keep: float = 0.8) -> Any:
    """A JSON value with some parts replaced, removed or added."""
    if draw(st.integers(0, 99)) >= 100 * keep:
        return draw(JSON)
    if isinstance(value, dict):
        found = {k: changed(draw, v, 0.9) for k, v in value.items() if draw(st.integers(0, 15))}
        return found | (draw(st.dictionaries(TEXTS, JSON, max_size=1)) if draw(st.booleans()) else {})
    if isinstance(value, list):
        return [changed(draw, v, 0.9) for v in value if draw(st.integers(0, 15))]
    return value


@st.composite
def like(draw: Any, value: Any) -> Any:
    return changed(draw, value)


@st.composite
def torn(draw: Any, raw: bytes) -> bytes:
    """Bytes with some of them changed, inserted or removed."""
    found = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        found[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


def text_of(value: Any) -> str:
    return json.dumps(value)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """Indices of archives, in a place of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def photos(root: Path) -> Path:
    (root / "a").mkdir(parents=True)
    for name in ("0.png", "a/0.png", "a/1.png"):
        (root / name).write_bytes(PICTURE)
    return root


# -- tables --------------------------------------------------------------------------------------------------------


def fuzz_labels(content: bytes) -> None:
    with folder() as root:
        images = photos(Path(root) / "photos")
        table = Path(root) / "labels.csv"
        table.write_bytes(content)
        opened(images, labels=table)
        opened(images, captions=table)
        (images / "metadata.csv").write_bytes(content)
        opened(images)


ROWS = st.lists(st.lists(TEXTS, max_size=4), max_size=5)


@st.composite
def tables(draw: Any) -> bytes:
    file = io.StringIO()
    header = draw(st.permutations(["path", "label", "caption", "file_name"]) | st.lists(TEXTS, max_size=4))
    rows = [[draw(st.sampled_from(["0.png", "a/0.png", "a/1.png"])), *row] for row in draw(ROWS)]
    csv.writer(file).writerows([header, *rows])
    raw = file.getvalue().encode("utf-8", "surrogatepass")
    return draw(torn(raw)) if draw(st.booleans()) and raw else raw


def fuzz_jsonl(rows: list[Any]) -> None:
    with folder() as root:
        images = photos(Path(root))
        (images / "metadata.jsonl").write_text("\n".join(map(text_of, rows)))
        opened(images)


def fuzz_parquet(case: tuple[Any, list[Any], bytes]) -> None:
    metadata, labels, damage = case
    with folder() as root:
        file = Path(root) / "x.parquet"
        try:
            column = pa.array(labels)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return
        images = pa.array([{"bytes": PICTURE, "path": None}] * len(labels))
        table = pa.table({"image": images, "label": column})
        text = metadata if isinstance(metadata, bytes) else text_of(metadata).encode()
        pq.write_table(table.replace_schema_metadata({b"huggingface": text}), file)
        if damage:
            raw = bytearray(file.read_bytes())
            at = len(raw) * damage[0] // 256
            raw[at : at + len(damage)] = damage
            file.write_bytes(bytes(raw))
        opened(file)


FEATURES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
LABELS = (
    st.lists(st.integers(-1, 3) | st.none(), min_size=1, max_size=4)
    | st.lists(st.binary(max_size=4) | st.none(), min_size=1, max_size=4)
    | st.lists(TEXTS, min_size=1, max_size=4)
    | st.lists(st.lists(st.integers(), max_size=2), min_size=1, max_size=4)
    | st.lists(st.floats(), min_size=1, max_size=4)
)
PARQUETS = st.tuples(like(FEATURES) | st.binary(max_size=20), LABELS, st.just(b"") | st.binary(max_size=6))


def fuzz_list(case: tuple[Any, Any, bool]) -> None:
    columns, facts, is_csv = case
    with folder() as root:
        images = photos(Path(root) / "photos")
        path = Path(root) / ("list.csv" if is_csv else "list.parquet")
        columns = {
            k: v if isinstance(v, list) else [v] for k, v in (columns if isinstance(columns, dict) else {}).items()
        }
        facts = facts | {"data": str(images)} if isinstance(facts, dict) and facts.get("data") == "HERE" else facts
        if is_csv:
            with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                rows = csv.writer(file)
                rows.writerows([list(columns), *zip(*columns.values(), strict=False)])
            path.with_name("list.csv.json").write_text(text_of(facts))
        else:
            try:
                table = pa.table({k: pa.array(v) for k, v in columns.items()})
                pq.write_table(table.replace_schema_metadata({"manyviews.list": text_of(facts)}), path)
            except (pa.ArrowException, ValueError, OverflowError, TypeError):
                return
        opened(path)


COLUMNS = {"id": ["0.png", "a/0.png", "a/1.png"], "position": [0, 1, 2], "kept": [True, False, True]}
TEXT_COLUMNS = COLUMNS | {"position": ["0", "1", "2"], "kept": ["yes", "no", "yes"]}
LISTS = st.tuples(like(COLUMNS) | like(TEXT_COLUMNS), like({"data": "HERE", "how": {}}), st.booleans())


# -- archives ------------------------------------------------------------------------------------------------------


@st.composite
def tars(draw: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    ) as t:
        for _ in range(draw(st.integers(0, 4))):
            name = draw(st.sampled_from(["a/0.png", "a/0.cls", "a/0.json", "../x.png", "/etc/1.png", "1.jpg"]) | TEXTS)
            one = tarfile.TarInfo(name.encode("utf-8", "replace").decode().replace("\0", "") or "x")
            content = draw(st.just(PICTURE) | st.binary(max_size=30) | JSON.map(lambda v: text_of(v).encode()))
            one.size = len(content)
            one.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
            )
            one.linkname = "/etc/passwd" if one.type != tarfile.REGTYPE else ""
            keys = st.sampled_from(["size", "path", "mtime", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major"])
            one.pax_headers = draw(
                st.dictionaries(keys, st.sampled_from(["1" + "0" * 20, "-1", "x", "0", "1,2,3", "nan"]), max_size=2)
            )
            t.addfile(one, io.BytesIO(content) if one.isreg() else None)
    raw = file.getvalue()
    return draw(torn(raw)) if draw(st.booleans()) else raw


def fuzz_tar(raw: bytes) -> None:
    with folder() as root:
        path = Path(root) / "x.tar"
        path.write_bytes(raw)
        opened(path)


@st.composite
def zips(draw: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as z:
        for _ in range(draw(st.integers(0, 4))):
            name = draw(st.sampled_from(["a/0.png", "b/1.png", "../x.png", "/etc/1.png"]) | TEXTS)
            name = name.encode("utf-8", "replace").decode() or "x"
            z.writestr(zipfile.ZipInfo(name), draw(st.just(PICTURE) | st.binary(max_size=30)))
    raw = file.getvalue()
    return draw(torn(raw)) if draw(st.booleans()) else raw


@pytest.mark.filterwarnings("ignore:Duplicate name")
def fuzz_zip(raw: bytes) -> None:
    with folder() as root:
        path = Path(root) / "x.zip"
        path.write_bytes(raw)
        opened(path)


# -- canvases and weights ------------------------------------------------------------------------------------------

_PREPARED: dict[str, bytes] = {}


def prepared() -> dict[str, bytes]:
    if not _PREPARED:
        with folder() as root:
            out = prepare(open_source(photos(Path(root) / "photos")), Path(root) / "canvases", 8)
            _PREPARED.update({p.name: p.read_bytes() for p in out.iterdir() if p.is_file()})
    return _PREPARED


def fuzz_canvases(case: tuple[Any, Any]) -> None:
    manifest, header = case
    with folder() as root:
        for name, raw in prepared().items():
            (Path(root) / name).write_bytes(raw)
        if manifest is not None:
            (Path(root) / MANIFEST).write_text(text_of(manifest))
        shard = next(Path(root).glob("shard-*"))
        raw = shard.read_bytes()
        if header is not None:
            head = text_of(header).encode()
            raw = struct.pack("<Q", len(head)) + head + raw[8 + struct.unpack("<Q", raw[:8])[0] :]
        shard.write_bytes(raw)
        opened(Path(root))
        ends_well(lambda: verify(Path(root)))
        ends_well(lambda: open_prepared(Path(root)).canvases(np.arange(2)))


@st.composite
def canvases(draw: Any) -> Any:
    raw = next(raw for name, raw in prepared().items() if name.startswith("shard-") and name.endswith("tensors"))
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    facts = json.loads(header["__metadata__"]["manyviews"])
    which = draw(st.integers(0, 2))
    if which == 0:
        return draw(like(json.loads(prepared()[MANIFEST]))), None
    if which == 1:
        return None, draw(like(header))
    meta = header["__metadata__"] | {"manyviews": text_of(draw(like(facts)))}
    return None, header | {"__metadata__": meta}


def fuzz_safetensors(case: tuple[Any, bytes]) -> None:
    header, body = case
    with folder() as root:
        path = Path(root) / "x.safetensors"
        head = header if isinstance(header, bytes) else text_of(header).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + body)
        ends_well(lambda: checkpoint.load_tensors(path))
        ends_well(lambda: checkpoint.facts_of(path))


TENSORS = {
    "__metadata__": {"manyviews": "{}"},
    "x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
}
SAFETENSORS = st.tuples(like(TENSORS) | st.binary(max_size=30), st.just(b"\0" * 16) | st.binary(max_size=20))


def fuzz_hub(case: tuple[Any, Any, Any]) -> None:
    with folder() as root:
        names = (huggingface.CONFIG, huggingface.PREPROCESSOR, "model.safetensors.index.json")
        for name, value in zip(names, case, strict=True):
            (Path(root) / name).write_text(text_of(value))
        ends_well(lambda: huggingface.files(Path(root)))
        ends_well(lambda: huggingface.describe(Path(root), ["model.safetensors"]))


HUB = st.tuples(
    like({"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "hidden_act": "gelu", "image_size": 32})
    | like({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3}, "model_args": {}}),
    like({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}, "crop_size": 32}),
    like({"weight_map": {"x": "a.safetensors", "y": "../b.safetensors"}}),
)


# -- annotations ---------------------------------------------------------------------------------------------------


def annotated(root: Path) -> Path:
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        Image.fromarray(SMALL).save(root / split / "0.png")
    return root


COCO = {
    "images": [{"id": 1, "file_name": "0.png", "height": 8, "width": 8}],
    "categories": [{"id": 1, "name": "cell"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 4, 4],
            "area": 16,
            "segmentation": [[1, 1, 5, 1, 5, 5]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 4, 4],
            "iscrowd": 1,
            "segmentation": {"size": [8, 8], "counts": [60, 4]},
        },
    ],
}


def fuzz_coco(value: Any) -> None:
    from manyviews.evaluation.dense.detection import _mask

    with folder() as where:
        root = annotated(Path(where))
        (root / "train.json").write_text(text_of(value))
        (root / "test.json").write_text(text_of(COCO))
        for masks in (False, True):
            found = ends_well(lambda masks=masks: open_pictures(root, masks))
            for one in [] if isinstance(found, Exception) else [*found.train, *found.test]:
                if not isinstance(ends_well(one.read), Exception) and masks:
                    for thing in one.things:
                        assert _mask(thing, one).shape == one.size


VOC = "<annotation><size><width>8</width><height>8</height></size>{}</annotation>"
THING = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>5</ymax></bndbox></object>"


@st.composite
def vocs(draw: Any) -> bytes:
    def text() -> str:
        return xml.sax.saxutils.escape(draw(TEXTS | NUMBERS.map(str) | st.sampled_from(["1", "5"])))

    things = [THING.format(text(), text(), text()) for _ in range(draw(st.integers(0, 3)))]
    head = draw(st.sampled_from(["", '<?xml version="1.0" encoding="x"?>', '<!DOCTYPE a [<!ENTITY b "c">]>']))
    raw = (head + VOC.format("".join(things))).encode("utf-8", "replace")
    return draw(torn(raw)) if draw(st.booleans()) else raw


def fuzz_voc(case: tuple[bytes, str]) -> None:
    raw, name = case
    with folder() as where:
        root = Path(where)
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        for image in ("0", "1"):
            Image.fromarray(SMALL).save(root / "JPEGImages" / f"{image}.png")
            (root / "Annotations" / f"{image}.xml").write_bytes(raw)
        (root / "ImageSets/Main/train.txt").write_bytes(f"0\n{name}".encode("utf-8", "surrogatepass"))
        (root / "ImageSets/Main/test.txt").write_text("1\n")
        found = ends_well(lambda: open_pictures(root))
        for one in [] if isinstance(found, Exception) else [*found.train, *found.test]:
            ends_well(one.read)


def fuzz_legend(case: tuple[Any, bytes, int]) -> None:
    described, lines, top = case
    with folder() as where:
        root = Path(where)
        for split in ("train", "test"):
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True)
            for name in ("0.png", "1.png", "2.png", "3.png", "4.png"):
                (root / "images" / split / name).write_bytes(PICTURE)
                values = np.arange(64, dtype=np.uint8).reshape(8, 8) % (top + 1)
                Image.fromarray(values).save(root / "masks" / split / name)
        if described is not None:
            (root / "dataset.json").write_text(text_of(described))
        (root / "classes.txt").write_bytes(lines)
        found = ends_well(lambda: open_masks(root))
        if not isinstance(found, Exception):
            ends_well(lambda: found.read(found.train[0]))


LEGENDS = st.tuples(
    st.none() | like({"classes": ["sky", "road"], "ignore": 255, "values": [0, 1], "colors": [[0, 0, 0], [1, 1, 1]]}),
    st.binary(max_size=20) | st.lists(TEXTS, max_size=4).map(lambda v: "\n".join(v).encode("utf-8", "replace")),
    st.integers(0, 5),
)


# -- settings ------------------------------------------------------------------------------------------------------

PATHS = ["optimizer.lr", "method.temperature", "data.mean", "data.mean.0", "backbone.name", "method.view.area", "step"]
VALUES = (
    TEXTS
    | NUMBERS.map(str)
    | JSON.map(repr)
    | st.sampled_from(
        ["Cosine(0, 1)", "Cosine(x=1)", "Cosine(**{})", "(1, 2", "__import__('os')", "lambda: 0", "{1: 2}"]
    )
    | st.text("()[]{},.:-+*'\"0aC ", max_size=30)
)


def fuzz_settings(case: tuple[str, str]) -> None:
    path, value = case
    ends_well(lambda: override(simclr.tiny(), path, value))


FUZZED = {
    "labels and captions in CSV": (fuzz_labels, tables()),
    "metadata in JSON lines": (fuzz_jsonl, st.lists(like({"file_name": "0.png", "label": 1, "text": "x"}), max_size=4)),
    "Parquet": (fuzz_parquet, PARQUETS),
    "curated lists": (fuzz_list, LISTS),
    "tars": (fuzz_tar, tars()),
    "zips": (fuzz_zip, zips()),
    "prepared canvases": (fuzz_canvases, canvases()),
    "headers of safetensors": (fuzz_safetensors, SAFETENSORS),
    "folders of the Hub": (fuzz_hub, HUB),
    "COCO's boxes and masks": (fuzz_coco, like(COCO)),
    "VOC's boxes": (fuzz_voc, st.tuples(vocs(), TEXTS)),
    "legends of masks": (fuzz_legend, LEGENDS),
    "values of --set": (fuzz_settings, st.tuples(st.sampled_from(PATHS), VALUES)),
}


def made_up(name: str, how: settings) -> Callable[[], None]:
    """A test of made-up files of a kind."""
    do, cases = FUZZED[name]

    @how
    @given(cases)
    def once(case: Any) -> None:
        start = time.process_time()
        do(case)
        assert time.process_time() - start < SECONDS

    return once


def run(name: str, how: settings) -> None:
    before = _most()
    made_up(name, how)()
    assert _most() - before < MEGABYTES


def _most() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", FUZZED)
def test_a_few_made_up_files(name):
    run(name, FEW)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", FUZZED)
def test_many_made_up_files(name):
    run(name, MANY)


# -- found by others, and kept ---------------------------------------------------------------------------------------


def refused(do: Callable[[], Any], words: str) -> None:
    with pytest.raises((UserError, BadImage), match=words):
        do()


def test_what_is_nested_deeply_is_no_traceback(tmp_path):
    with pytest.raises(ValueError, match="too deeply"):
        from_json("[" * 100_000)
    for value in ("-" * 100_000 + "1", "(" * 5000 + ")" * 5000, "[" * 150 + "]" * 150, "a" + ".b" * 20_000):
        ends_well(lambda value=value: parse(value))
    refused(lambda: parse("-" * 100_000 + "1"), "too deeply")
    raw, deep = io.BytesIO(), b'{"label": ' + b"[" * 100_000
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in (("0.png", PICTURE), ("0.json", deep)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(raw.getvalue())
    assert open_source(tmp_path / "x.tar").labels is None
    photos(tmp_path / "photos")
    write_list(tmp_path / "x.csv", COLUMNS, str(tmp_path / "photos"), {})
    (tmp_path / "x.csv.json").write_text("[" * 100_000)
    refused(lambda: open_source(tmp_path / "x.csv"), "too deeply")


def test_what_was_made_up_once():
    fuzz_jsonl([{"file_name": 10**300}])  # longer than a file's name may be
    fuzz_labels(b"path,label\n" + b"x" * 300 + b",a\n")
    fuzz_parquet(({}, ["", "\x8000"], b"U\x80"))  # a column's name is no text
    facts = json.loads(prepared()[MANIFEST])
    fuzz_canvases((facts | {"shards": []}, None))
    fuzz_canvases((facts | {"reading": facts["reading"] | {"range": []}}, None))
    raw = next(raw for name, raw in prepared().items() if name.startswith("shard-") and name.endswith("tensors"))
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    sums = next(name for name in header if name not in ("data", "start", "extent", "__metadata__"))
    for odd in ({}, {"data_offsets": []}, {"data_offsets": [0, None]}, {"data_offsets": [0, 8]}):
        fuzz_canvases((None, header | {sums: odd}))


@pytest.mark.parametrize("place", ["name", "flags", "start"])
def test_a_zip_whose_members_have_no_name_or_place(tmp_path, place):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("\x01a", PICTURE)
    raw = bytearray(file.getvalue())
    entry = raw.rindex(b"PK\x01\x02")
    if place == "name":  # its first byte ends it
        raw[entry + 46] = 0
    elif place == "flags":  # which say that it is UTF-8
        raw[7] = raw[entry + 9] = 8
        raw[31] = raw[entry + 47] = 0x80
    else:
        del raw[:1]
    (tmp_path / "x.zip").write_bytes(bytes(raw))
    opened(tmp_path / "x.zip")


def test_a_missing_label_is_said(tmp_path):
    images = pa.array([PICTURE] * 4)
    pq.write_table(
        pa.table({"image": images, "label": ["a", None, "b", "é".encode()[:1].decode("latin-1")]}),
        tmp_path / "x.parquet",
    )
    source = open_source(tmp_path / "x.parquet")
    assert source.labels is None and "1 of 4 rows have no label in the column label" in source.why_unlabeled
    assert any("1 of 4 rows" in note for note in source.notes)
    pq.write_table(pa.table({"image": images, "label": [b"a", b"\xff", b"a", "é".encode()]}), tmp_path / "y.parquet")
    assert open_source(tmp_path / "y.parquet").classes == ["\\xff", "a", "é"]
    odd = pa.table({"image": images, "label": [1, 0, 1, 0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(odd, tmp_path / "z.parquet")
    source = open_source(tmp_path / "z.parquet")
    assert source.classes == ["0", "1"] and "not understood" in source.notes[0]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("0.png", PICTURE), ("0.cls", b"1"), ("1.png", PICTURE)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = open_source(tmp_path / "x.tar")
    assert source.labels is None and "1 of 2 images have no label" in source.why_unlabeled
