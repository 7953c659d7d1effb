"""Published schedules of detectors: their numbers, the C4 detector, sets of several folders, several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from manyviews import distributed
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.evaluation.dense import detect, detection
from manyviews.evaluation.dense.boxes import open_pictures
from manyviews.evaluation.dense.maps import intermediates
from manyviews.evaluation.dense.presets import COCO_1X, VOC_24K
from tests.ranks import on_ranks

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
QUICK = {"mean": MEAN, "std": STD, "size": 64, "batch": 4, "proposals": 16}


def resnet(**settings) -> Encoder:
    return Encoder("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 12), **settings).eval()


def write_coco(root: Path, splits: dict[str, int]) -> Path:
    """Bright squares on a dark ground, in COCO's format."""
    (root / "annotations").mkdir(parents=True)
    for split, count in splits.items():
        rng = np.random.default_rng(len(split))
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            image = Image.new("RGB", (80, 64) if i % 2 else (64, 80), (40, 40, 40))
            x, y, side = (int(v) for v in rng.integers(4, 32, 3))
            ImageDraw.Draw(image).rectangle([x, y, x + side, y + side], fill=(230, 220, 60))
            image.save(root / "images" / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": image.height, "width": image.width})
            annotations.append({"id": i + 1, "image_id": i, "category_id": 1, "bbox": [x, y, side, side]})
        facts = {"categories": [{"id": 1, "name": "square"}], "images": images, "annotations": annotations}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(facts))
    return root


VOC = """<annotation><size><width>30</width><height>20</height><depth>3</depth></size><object><name>{}</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def write_voc(root: Path, splits: dict[str, list[str]], kind: str) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, names in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            (root / "Annotations" / f"{name}.xml").write_text(VOC.format(kind))
            Image.new("RGB", (30, 20)).save(root / "JPEGImages" / f"{name}.jpg")
    return root


# -- numbers -----------------------------------------------------------------------------------------------------


def test_presets_are_the_published_schedules():
    """detectron2's Base-RCNN-FPN.yaml with its 1x schedule; MoCo's coco_R_50_C4 and pascal_voc_R_50_C4_24k."""
    assert COCO_1X.sizes == (640, 672, 704, 736, 768, 800)
    assert VOC_24K.sizes == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert COCO_1X.steps_for(117_266, 16) == 90_000 and VOC_24K.steps_for(5_011 + 11_540, 16) == 24_000
    assert COCO_1X.steps_for(117_266 // 2, 4) == 180_000  # half of the images, a quarter of the batch
    for preset, falls in ((COCO_1X, (60_000, 80_000)), (VOC_24K, (18_000, 22_000))):
        assert preset.steps_for(1, 16) >= 1

        def rate(step: int, preset=preset) -> float:
            return detection._share(step, preset.steps, preset.warmup, preset.shares)

        assert [rate(fall + k) for fall in falls for k in (-1, 0)] == pytest.approx([1, 0.1, 0.1, 0.01])
        assert rate(0) == pytest.approx(1 / preset.warmup) and rate(preset.warmup - 1) == 1


@pytest.mark.parametrize("c4", [False, True])
def test_training_images_have_many_sizes_and_test_images_one(c4):
    sizes = (VOC_24K if c4 else COCO_1X).sizes_at(100)
    model, _ = detection._detector(resnet(), 3, MEAN, STD, False, 100, "backbone", 16, sizes, c4)
    torch.manual_seed(0)
    seen = {tuple(model.transform([torch.zeros(3, 50, 60)])[0].image_sizes[0]) for _ in range(200)}
    assert {min(s) for s in seen} == set(sizes) == {round(s / 8) for s in (VOC_24K if c4 else COCO_1X).sizes}
    model.eval()
    assert model.transform([torch.zeros(3, 50, 60)])[0].image_sizes == [(100, 120)]
    assert model.transform([torch.zeros(3, 50, 200)])[0].image_sizes == [(41, 166)]  # at most 1333 of 800


# -- the C4 detector ---------------------------------------------------------------------------------------------


def test_regions_of_the_fourth_group_go_through_the_fifth():
    encoder = resnet()
    model, plain = detection._detector(encoder, 3, MEAN, STD, False, 96, "backbone", 16, (96,), True)
    assert not plain
    model.eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        (found,) = model.backbone(x).values()
        torch.testing.assert_close(found, intermediates(encoder, x)[3])
        assert found.shape == (1, 8, 6, 4)
        # A fresh BatchNorm in eval() mode divides by the root of 1 + eps.
        head = model.roi_heads.box_head(found) * (1 + 1e-5) ** 0.5
        torch.testing.assert_close(head, encoder.model.forward_features(x).mean((2, 3)))
    anchors = model.rpn.anchor_generator
    assert anchors.sizes == ((32, 64, 128, 256, 512),) and anchors.num_anchors_per_location() == [15]
    pool = model.roi_heads.box_roi_pool
    assert (pool.output_size, pool.scales) == ((14, 14), [1 / 16])
    assert model.rpn._pre_nms_top_n == {"training": 12_000, "testing": 6_000}
    assert model.rpn._post_nms_top_n == {"training": 2_000, "testing": 1_000}
    assert model.roi_heads.box_head.blocks is model.backbone.encoder.model.layer4  # learned once
    ids = {id(p) for p in model.parameters()}
    assert not any(id(p) in ids for p in encoder.parameters())
    vit = Encoder("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2)
    with pytest.raises(UserError, match="takes a ResNet apart, and vit_tiny_patch16_224 is none: take coco_1x"):
        detection._detector(vit, 3, MEAN, STD, False, 96, "backbone", 16, (96,), True)


@pytest.mark.parametrize("preset", ["coco_1x", "voc_24k"])
def test_a_preset_trains_and_says_what_it_is(preset, tmp_path, monkeypatch):
    tuned = []
    monkeypatch.setattr(detection, "_ask", lambda model, *rest: tuned.append(model) or ask(model, *rest))
    encoder, root = resnet(), write_coco(tmp_path / "coco", {"train": 4, "test": 2})
    report = detect(encoder, root, preset=preset, **QUICK | {"size": 32})
    (note,) = report.notes
    steps = {"coco_1x": 12, "voc_24k": 23}[preset]  # 90,000 of 16 for 117,266 images, 24,000 for 16,551
    assert (
        note.startswith(f"{preset}: ") and f"here {steps} steps of 4 images" in note and "Not as in detectron2" in note
    )
    assert report.setting == {"lr": 0.005, "epochs": steps, "batch": 4, "size": 32}
    theirs = dict(tuned[0].backbone.encoder.named_buffers())
    assert all(not torch.equal(v, theirs[k]) for k, v in encoder.named_buffers() if k.endswith("running_mean"))
    outside = [m for m in tuned[0].modules() if isinstance(m, nn.BatchNorm2d)]
    inside = [m for m in tuned[0].backbone.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(outside) - len(inside) == (preset == "voc_24k")  # none in the pyramid, one after the ResNet
    assert theirs.keys() == dict(encoder.named_buffers()).keys()
    if preset == "voc_24k":
        with pytest.raises(UserError, match="finds boxes only"):
            detect(encoder, root, preset=preset, masks=True, **QUICK)
        told = VOC_24K.told(24_000, 16, 800, False, ("lr",))
        assert "here" not in told and "; other lr, as asked. Not as in" in told
        with pytest.raises(UserError, match="no preset 'voc'"):
            detect(encoder, root, preset="voc", **QUICK)


ask = detection._ask


# -- VOC 2007 and 2012 -------------------------------------------------------------------------------------------


def test_voc_of_two_years_is_one_set(tmp_path):
    first = write_voc(tmp_path / "a" / "VOC2007", {"train": ["1"], "val": ["2"], "test": ["3", "4"]}, "cat")
    second = write_voc(tmp_path / "b" / "VOC2012", {"train": ["1", "5"], "val": ["6"]}, "dog")
    found = open_pictures([first.parent, second])
    places = [[f"{p.path.parents[1].name}/{p.path.stem}" for p in part] for part in (found.train, found.test)]
    assert places == [["VOC2007/1", "VOC2007/2", "VOC2012/1", "VOC2012/5", "VOC2012/6"], ["VOC2007/3", "VOC2007/4"]]
    names = [found.classes[t.label] for p in found.train for t in p.things]
    assert names == ["cat", "cat", "dog", "dog", "dog"]
    assert any(f"{first.parent} has no dog" in note for note in found.notes)
    alone = open_pictures(second)  # its validation images are the test
    assert [len(alone.train), len(alone.test)] == [2, 1]
    with pytest.raises(UserError, match="one of several folders must have one"):
        open_pictures([second, second])


# -- several processes -------------------------------------------------------------------------------------------


def normalized(parts: tuple[int, ...]) -> list[torch.Tensor]:
    """BatchNorm of this rank's rows, of which ranks have different numbers."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Sequential(nn.BatchNorm2d(3).train())
    nn.init.normal_(layer[0].weight, generator=g)
    layer = distributed.sync_batchnorm(layer, torch.device("cpu"))
    x, grad = (torch.randn(sum(parts), 3, 2, 2, generator=g) * 3 + 5 for _ in range(2))
    if distributed.world_size() > 1:
        x, grad = (t.split(parts)[distributed.rank()] for t in (x, grad))
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return [y.detach(), x.grad, *(layer[0].get_buffer(k) for k in ("running_mean", "running_var"))]


def detected(root: str) -> dict:
    found: dict = {"rows": normalized((5, 2))}

    def listen(model, *rest):
        found["weights"] = [p.detach().clone() for p in model.parameters()]
        found["statistics"] = [b.clone() for k, b in model.named_buffers() if "running" in k]
        found["together"] = ask(model, *rest)
        world, rank, collect = distributed.world_size, distributed.rank, distributed.collect
        distributed.world_size, distributed.rank, distributed.collect = lambda: 1, lambda: 0, lambda x: [x]
        found["alone"] = ask(model, *rest)
        distributed.world_size, distributed.rank, distributed.collect = world, rank, collect
        return found["together"]

    detection._ask = listen
    torch.manual_seed(0)
    found["report"] = detect(resnet(), Path(root), preset="coco_1x", epochs=3, **QUICK | {"batch": 2, "size": 32})
    return found


def test_processes_share_the_batches_and_the_answers(tmp_path):
    root = write_coco(tmp_path / "coco", {"train": 5, "test": 3})  # one of three batches is a single image
    (root / "images" / "train" / "0.png").write_bytes(b"no image")  # a step without it, for all of them
    first, second = on_ranks(detected, str(root))
    y, gradient, *statistics = normalized((5, 2))
    together = [torch.cat(pair) for pair in zip(first["rows"][:2], second["rows"][:2], strict=True)]
    torch.testing.assert_close(together, [y, gradient], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["rows"][2:], statistics)
    for name in ("weights", "statistics"):
        assert all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True)), name
    assert first["together"] == second["together"] == first["alone"] and first["alone"][1]
    assert first["report"] == second["report"]
    assert first["report"].images == {"train": 4, "validation": 0, "test": 3}
    assert [where.rpartition("/")[2] for where, _ in first["report"].bad] == ["0.png"]
