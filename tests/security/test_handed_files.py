"""What somebody hands you runs no code, reads no other file, and asks no server: an example of each attack."""

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

import manyviews as mv
from manyviews import checkpoint
from manyviews.data import open_source
from manyviews.data.decode import BadImage, Frame, decode
from manyviews.data.lists import write_list
from manyviews.data.prepared import MANIFEST, prepare
from manyviews.data.reading import Reading
from manyviews.data.tiles import tile
from manyviews.data.zip import unpack
from manyviews.errors import UserError
from manyviews.evaluation.dense.boxes import open_pictures
from manyviews.evaluation.dense.files import orientation
from manyviews.evaluation.dense.legend import look
from manyviews.settings.text import parse


def png(value: int = 90, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 50, 20)).save(file, "PNG")
    return file.getvalue()


OWN = np.random.default_rng(0).integers(0, 100, (32, 32), dtype=np.uint8)
SECRET = b"root:x:0:0:the content of a file elsewhere"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No server is asked and no program is started while these tests run."""

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"something from outside was started or asked for: {args[:2]}")

    for module, name in (
        (socket, "getaddrinfo"),
        (socket, "create_connection"),
        (socket.socket, "connect"),
        (subprocess, "Popen"),
        (os, "system"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.txt").write_bytes(SECRET)
    (tmp_path / "elsewhere" / "secret.png").write_bytes(png(201))


def refused(do, words: str = ".") -> str:
    with pytest.raises((UserError, BadImage), match=words) as found:
        do()
    assert SECRET.decode() not in str(found.value)
    return str(found.value)


# -- weights -------------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "true"),
        Evil(eval, "1"),
        Evil(open, "pwned", "w"),
        Evil(Path.unlink, Path("x")),
    ],
)
def test_a_pickle_calls_nothing(evil, wrapped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if wrapped:
        torch.save({"state_dict": {"conv1.weight": torch.zeros(4)}, "epoch": evil}, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    refused(lambda: mv.load(path), "cannot be loaded safely")
    assert not (tmp_path / "pwned").exists()


def test_a_bomb_of_weights_is_refused_by_its_directory(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**27))
    refused(lambda: mv.load(path), r"has 0\.1 MB and would unpack to 0\.1 GB")
    torch.save({"conv1.weight": torch.zeros(1).expand(2**20, 2**12)}, path)  # four bytes that say that they are 17 GB
    refused(lambda: mv.load(path), r"repeats few numbers to 17\.2 GB")


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "hf-hub:somebody/model"},
        {"name": "local-dir:/tmp"},
        {"name": "resnet10t", "checkpoint_path": "weights.pth"},
        {"name": "resnet10t", "pretrained_cfg": {"url": "http://example.com/x.pth"}},
        {"name": "resnet10t", "pretrained_cfg_overlay": {"file": "weights.pth"}},
        {"name": "resnet10t", "cache_dir": "/tmp"},
        {"name": "resnet10t", "pretrained": True, "in_chans": -1},
    ],
)
def test_an_architecture_in_a_header_fetches_nothing(spec, tmp_path):
    facts = {"encoder": spec, "mean": [0.5] * 3, "std": [0.5] * 3, "test_size": 32}
    checkpoint.save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)}, facts)
    refused(lambda: mv.load(tmp_path / "x.safetensors"))


def test_a_folder_of_the_hub_reads_its_own_files(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    checkpoint.save_tensors(tmp_path / "elsewhere" / "w.safetensors", {"x": torch.zeros(2)}, {})
    for name in ("../elsewhere/w.safetensors", str(tmp_path / "elsewhere" / "w.safetensors")):
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        refused(lambda: mv.load(model))
    # Code and addresses beside weights are neither run nor asked.
    (model / "model.safetensors.index.json").unlink()
    checkpoint.save_tensors(model / "model.safetensors", {"x": torch.zeros(2)}, {})
    config = {"model_type": "vit", "auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text("raise SystemExit")
    (model / "README.md").write_text("![](http://example.com/x.png) <script>alert(1)</script>")
    refused(lambda: mv.load(model))


def test_a_setting_is_a_value_and_no_program():
    for text in (
        "__import__('os').system('true')",
        "Path('/etc/passwd').read_text()",
        "(lambda: 0)()",
        "[x for x in '']",
    ):
        with suppress(UserError):
            assert isinstance(parse(text), str)


# -- images --------------------------------------------------------------------------------------------------------


def test_links_in_a_folder_are_followed_and_read_as_images_only(tmp_path):
    """Sets of links are common, so links are followed; a file that is no image is named, and its content is not."""
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    photos.mkdir()
    (photos / "0.png").write_bytes(png())
    (photos / "image.png").symlink_to(elsewhere / "secret.png")
    (photos / "text.png").symlink_to(elsewhere / "secret.txt")
    os.mkfifo(tmp_path / "pipe")
    (photos / "pipe.png").symlink_to(tmp_path / "pipe")  # would wait forever
    (photos / "device.png").symlink_to("/dev/zero")
    source = open_source(photos)
    assert source.ids == ["0.png", "image.png", "text.png"]
    assert source.load(1).getpixel((0, 0))[0] == 201
    refused(lambda: source.load(2), "not an image")


def test_pictures_that_are_programs_or_name_other_files_are_not_opened(tmp_path):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd" width="9" height="9"/></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n(/etc/passwd) (r) file\nshowpage\n"
    for name, raw in (("x.svg", drawing), ("x.eps", eps), ("x.png", eps), ("x.jpg", drawing)):
        (tmp_path / name).write_bytes(raw)
        refused(lambda raw=raw: decode(raw), "known format")
        assert look(tmp_path / name).kind == "bad"  # as a mask: Pillow would start Ghostscript
        assert orientation(tmp_path / name) == 1


def test_a_microscopes_metadata_names_no_other_file(tmp_path, monkeypatch):
    """OME's XML may say that a picture's pages are in another file. tifffile opens it."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite(tmp_path / "elsewhere" / "secret.tif", np.full((2, 32, 32), 201, np.uint8))
    place = '<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{file}">urn:uuid:{id}</UUID></TiffData>'
    for file in ("elsewhere/secret.tif", str(tmp_path / "elsewhere" / "secret.tif")):
        others = place.format(z=0, file=file, id=2) + place.format(z=1, file=file, id=2)
        text = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="32" SizeY="32" '
            'SizeZ="2" '
            f'SizeC="1" SizeT="1"><Channel ID="C" SamplesPerPixel="1"/>{others}</Pixels></Image></OME>'
        )
        (tmp_path / "photos").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "photos" / "x.tif", OWN, description=text, metadata=None)
        raw = tmp_path / "photos" / "x.tif"
        for number in (0, 1):
            try:
                assert np.asarray(decode(Frame(raw, number), reading=Reading(1))[0]).max() < 100
            except BadImage:
                assert number
    cuts = tile(open_source(tmp_path / "photos"), tmp_path / "tiles", size=16)
    assert cuts[0].tiles == 4
    for cut in (tmp_path / "tiles").rglob("*.[pt][ni][gf]"):
        assert np.asarray(Image.open(cut)).max() < 100
    bomb = text.replace('PlaneCount="1"', 'PlaneCount="9000000000"')
    tifffile.imwrite(raw, OWN, description=bomb, metadata=None)
    refused(lambda: decode(Frame(raw, 0)), "OME metadata")


# -- archives and tables -------------------------------------------------------------------------------------------


def test_members_and_links_of_archives_are_read_from_the_archive_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret = str(tmp_path / "elsewhere" / "secret.png")
    names = ["../elsewhere/secret.png", secret, "a/../../elsewhere/secret.png"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png(7))
            tar.addfile(member, io.BytesIO(png(7)))
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, secret
            tar.addfile(member)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name in names:
            file.writestr(name, png(7))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, secret)
    before = sorted(tmp_path.rglob("*.png"))
    for archive, images in (("x.tar", 1), ("x.zip", 2)):
        source = open_source(tmp_path / archive)
        assert len(source) == images
        for i in range(images):
            if source.where(i).endswith("link.png"):
                refused(lambda i=i, source=source: source.load(i), "not an image")
            else:
                assert source.load(i).getpixel((0, 0))[0] == 7
    assert sorted(tmp_path.rglob("*.png")) == before  # nothing was unpacked


def test_bombs_in_archives_stay_small(tmp_path):
    """A gigabyte of zeros that a zip promises, and one that it does not."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(2**24)) + packer.flush()
    member = b"PK\3\4" + bytes(26) + packed
    refused(lambda: unpack(member, [8, len(packed), 2**40, 0]), "no image")
    refused(lambda: unpack(member, [8, len(packed), 100, 0]), "damaged")
    table = pa.table({"image": pa.array([bytes(2**16)] * 600)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=600)  # one value, which each row repeats
    assert (tmp_path / "x.parquet").stat().st_size < 2**20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyviews.data.parquet.free_memory", lambda: 2**25)
        patch.setattr("manyviews.data.parquet.HELD", 2**24)
        source = open_source(tmp_path / "x.parquet")
        refused(lambda: source.load(0), "row group 0 takes more than")


def test_addresses_in_tables_are_text(tmp_path):
    """Paths and URLs in a table neither read a file nor ask a server; a list may only name what this user curated."""
    url, secret = "http://169.254.169.254/latest/meta-data", str(tmp_path / "elsewhere" / "secret.png")
    rows = pa.array([{"bytes": png(7), "path": url}, {"bytes": None, "path": secret}, {"bytes": None, "path": url}])
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.load(0).getpixel((0, 0))[0] == 7
    for i in (1, 2):
        refused(lambda i=i: source.load(i), "holds no image")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes(png())
    for name in ("../elsewhere/secret.png", secret, url):
        (tmp_path / "labels.csv").write_text(f"path,label\n{name},a\n")
        refused(lambda: open_source(photos, labels=tmp_path / "labels.csv"), "not images under")
        (photos / "metadata.csv").write_text(f"file_name,label\n{name},a\n")
        assert open_source(photos).ids == ["0.png"]
    columns = {"id": ["0.png"], "position": [0], "kept": [True]}
    for address in ("s3://bucket/x.tar", url, f"simplecache::{url}/x.zip", "zip://a.png::http://example.com/x.zip"):
        for ending in (".csv", ".parquet"):
            write_list(tmp_path / f"list{ending}", columns, None, {})
            facts = json.dumps({"data": address})
            (tmp_path / "list.csv.json").write_text(facts)
            table = pq.read_table(tmp_path / "list.parquet") if ending == ".parquet" else None
            if table is not None:
                pq.write_table(table.replace_schema_metadata({"manyviews.list": facts}), tmp_path / "list.parquet")
            refused(lambda ending=ending: open_source(tmp_path / f"list{ending}"), "may come from anybody")
    write_list(tmp_path / "own.csv", columns, f"{url}/x.tar", {})  # curated here: it may be asked, and is not there
    refused(lambda: open_source(tmp_path / "own.csv"), "which cannot be opened")


def test_prepared_canvases_read_their_own_shards(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes(png())
    out = prepare(open_source(photos), tmp_path / "canvases", 16)
    (shard,) = out.glob("shard-*.safetensors")
    (tmp_path / "elsewhere" / shard.name).write_bytes(shard.read_bytes())
    manifest = json.loads((out / MANIFEST).read_text())
    for name in (f"../elsewhere/{shard.name}", str(tmp_path / "elsewhere" / shard.name)):
        manifest["shards"][0]["file"] = name
        (out / MANIFEST).write_text(json.dumps(manifest))
        refused(lambda: open_source(out), "its shards cannot be right")


# -- annotations ---------------------------------------------------------------------------------------------------


def voc(root: Path, xml: str, name: str = "0") -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for image in ("0", "1"):
        (root / "JPEGImages" / f"{image}.png").write_bytes(png())
        (root / "Annotations" / f"{image}.xml").write_text(xml)
    for split, listed in (("train", name), ("test", "1")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{listed}\n")
    return root


def test_annotations_in_xml_read_no_other_file_and_do_not_grow(tmp_path):
    body = "<annotation><size><width>16</width><height>16</height></size><object><name>{}</name><bndbox><xmin>1</xmin>"
    body += "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    assert open_pictures(voc(tmp_path / "voc", body.format("cat"))).classes == ("cat",)
    secret = (tmp_path / "elsewhere" / "secret.txt").as_uri()
    for kind in (f'SYSTEM "{secret}"', 'SYSTEM "http://example.com/x"'):
        outside = f"<!DOCTYPE a [<!ENTITY e {kind}>]>" + body.format("&e;")
        refused(lambda text=outside: open_pictures(voc(tmp_path / "voc", text)), "not an annotation")
        parameter = f"<!DOCTYPE a [<!ENTITY % e {kind}> %e;]>" + body.format("cat")
        assert open_pictures(voc(tmp_path / "voc", parameter)).classes == ("cat",)
    laughs = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 20}">' for k in range(1, 9))
    refused(
        lambda: open_pictures(voc(tmp_path / "voc", f'<!DOCTYPE a [<!ENTITY e0 "ha">{laughs}]>' + body.format("&e8;"))),
        "not an annotation",
    )
    for name in ("../../elsewhere/x", str(tmp_path / "elsewhere" / "x"), "..\\x"):
        refused(lambda name=name: open_pictures(voc(tmp_path / "voc", body.format("cat"), name)), "no name of an image")


def test_annotations_in_json_stay_in_their_folder_and_in_their_masks(tmp_path):
    def coco(**changes: object) -> Path:
        root = tmp_path / "coco"
        for split in ("train", "test"):
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / "0.png").write_bytes(png())
            thing = {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 4],
                "segmentation": [[1, 1, 5, 1, 5, 5]],
            }
            image = {"id": 1, "file_name": "0.png", "height": 16, "width": 16}
            image |= {k: v for k, v in changes.items() if k in image}
            thing |= {k: v for k, v in changes.items() if k in thing}
            found = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [thing]}
            (root / f"{split}.json").write_text(json.dumps(found))
        return root

    assert len(open_pictures(coco(), masks=True).train) == 1
    secret = str(tmp_path / "elsewhere" / "secret.png")
    refused(lambda: open_pictures(coco(file_name="../../elsewhere/secret.png")), "outside of its folder")
    refused(lambda: open_pictures(coco(file_name=secret)), "in none of")
    # The C code that draws masks would write past their end, or take all the memory there is.
    for shape in (
        {"size": [16, 16], "counts": [0, 2**28]},
        {"size": [16, 16], "counts": [200, 57]},
        {"size": [16, 16], "counts": "0" * 50 + "o" * 30},
        {"size": [16, 16], "counts": [-5, 261]},
        [[1, 1, 1e12, 1, 5, 5]],
        [[1, 1, float("nan"), 1, 5, 5]],
        [["1", 1, 5, 1, 5, 5]],
    ):
        refused(lambda shape=shape: open_pictures(coco(segmentation=shape), masks=True), "no mask")
    for box in ([float("nan")] * 4, [1, 1, 1e999, 4], ["x"] * 4, [1, 1]):
        refused(lambda box=box: open_pictures(coco(bbox=box)), "COCO's format")


def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path):
    head = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    refused(lambda: mv.load(tmp_path / "x.safetensors"), "safetensors")
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{")
    refused(lambda: mv.load(tmp_path / "y.safetensors"), "safetensors")
