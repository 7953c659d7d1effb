import copy
import io
import json
import shutil
import zipfile
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import masks_to_boxes

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.evaluation.dense import average_precision, detect, detection
from manyviews.evaluation.dense.boxes import open_pictures
from manyviews.evaluation.dense.maps import stage_shapes

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CPU = torch.device("cpu")
QUICK = {"mean": MEAN, "std": STD, "size": 64, "epochs": 1, "batch": 4, "proposals": 16}
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def judged(truth, answers, kind):
    """pycocotools' numbers, and the AP of each category."""
    with redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = copy.deepcopy(truth)
        known.createIndex()
        found = known.loadRes([{k: v for k, v in a.items() if kind == "bbox" or k != "bbox"} for a in answers])
        judge = COCOeval(known, found, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    each = [precision[:, :, k] for k in range(precision.shape[2])]
    numbers = {name: v for name, v in zip(NAMES, judge.stats[:6], strict=True) if v > -1}
    return numbers, [c[c > -1].mean() if (c > -1).any() else None for c in each]


# -- COCO's measure ----------------------------------------------------------------------------------------------


def invented(seed, images=6, classes=4):
    """Rectangles and answers near them and elsewhere; crowds, ties among the scores, and a class that is not there."""
    rng = np.random.default_rng(seed)
    truth = {
        "info": {},
        "images": [{"id": i, "height": 160, "width": 200} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, classes + 2)],
        "annotations": [],
    }
    answers = []

    def rle(box):
        mask = np.zeros((160, 200), np.uint8, order="F")
        x, y, w, h = (int(v) for v in box)
        mask[y : y + h, x : x + w] = 1
        found = coco_mask.encode(mask)
        return found | {"counts": found["counts"].decode()}

    for image in range(1, images + 1):
        for _ in range(rng.integers(1, 7)):
            box = np.array([*rng.integers(0, 90, 2), *rng.choice([8, 20, 60, 100], 2) // [1, 2]]).astype(float)
            box[2:] = np.minimum(box[2:], [200, 160] - box[:2])
            label, crowd = int(rng.integers(1, classes + 1)), int(rng.random() < 0.15)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": label, "iscrowd": crowd}
                | {"bbox": box.tolist(), "area": float(box[2] * box[3]), "segmentation": rle(box)}
            )
            for _ in range(rng.integers(0, 4)):
                near = np.maximum(box + rng.normal(0, 3, 4).round(), [0, 0, 1, 1])
                said = label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                answers.append(
                    {"image_id": image, "category_id": said, "score": float(rng.integers(0, 20) / 20)}
                    | {"bbox": near.tolist(), "segmentation": rle(near)}
                )
    return truth, answers


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(kind, seed):
    truth, answers = invented(seed)
    before = copy.deepcopy((truth, answers))
    numbers, each = average_precision(truth, answers, kind)
    wanted, theirs = judged(truth, answers, kind)
    assert numbers.keys() == wanted.keys()
    assert numbers == pytest.approx(wanted, abs=1e-9)
    assert each == pytest.approx(theirs, abs=1e-9)
    assert each[-1] is None
    assert 0 < numbers["AP"] < 1
    assert (truth, answers) == before


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_interval_is_of_sets_in_which_images_occur_as_often_as_they_are_drawn(kind, monkeypatch):
    monkeypatch.setattr(detection, "_LEAST_RESAMPLES", 20)
    monkeypatch.setattr(detection, "_ROWS", 0)
    truth, answers = invented(2)
    for i, answer in enumerate(answers):  # equal scores are ranked in the order of the images
        answer["score"] += 1e-4 * i
    rng, values = np.random.default_rng(5), []
    for _ in range(20):
        drawn = (1 + rng.integers(0, 6, 6)).tolist()
        again = {**truth, "images": [], "annotations": []}
        said = []
        for new, old in enumerate(drawn, 1):
            again["images"].append({**truth["images"][old - 1], "id": new})
            for a in truth["annotations"]:
                if a["image_id"] == old:
                    again["annotations"].append({**a, "image_id": new, "id": len(again["annotations"]) + 1})
            said += [{**a, "image_id": new} for a in answers if a["image_id"] == old]
        values.append(judged(again, said, kind)[0]["AP"])
    found = detection.interval(truth, answers, kind, seed=5)
    assert found == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-9)


def test_the_interval_narrows_with_the_images_and_is_a_point_without_answers():
    widths = []
    for images in (12, 48, 192):
        truth, answers = invented(3, images=images)
        low, high = detection.interval(truth, answers, "bbox")
        assert low < average_precision(truth, answers, "bbox")[0]["AP"] < high
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]
    steps = []
    assert detection.interval(truth, [], "bbox", progress=lambda *step: steps.append(step)) == (0, 0)
    assert steps == [(k + 1, len(steps), "interval") for k in range(len(steps))] != []


def test_right_answers_have_a_precision_of_one_and_none_of_zero():
    truth, _ = invented(0)
    for a in truth["annotations"]:
        a["iscrowd"] = 0
    answers = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in truth["annotations"]]
    assert average_precision(truth, answers, "bbox")[0]["AP"] == pytest.approx(1)
    numbers, each = average_precision(truth, [], "bbox")
    assert set(numbers.values()) == {0.0}
    assert each[:4] == [0.0] * 4


# -- sets --------------------------------------------------------------------------------------------------------


def shapes(rng, h=64, w=80):
    """A picture of two or three bright shapes, with their classes and polygons."""
    image = Image.new("RGB", (w, h), (40, 40, 40))
    draw, found = ImageDraw.Draw(image), []
    for k in range(rng.integers(2, 4)):
        side, label = int(rng.integers(16, 24)), int(rng.integers(0, 2))
        x, y = 2 + 26 * k, int(rng.integers(2, h - side - 2))
        if label:
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        else:
            polygon = [x, y + side, x + side / 2, y, x + side, y + side]
        draw.polygon(polygon, fill=(230, 220, 60) if label else (60, 120, 240))
        found.append((label, polygon, [x, y, side, side]))
    return image, found


IDS = (18, 7)  # categories of COCO, neither in order nor without gaps


def write_coco(root, splits, seed=0):
    (root / "annotations").mkdir(parents=True)
    for split, count in splits.items():
        rng = np.random.default_rng([seed, len(split)])
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            image, things = shapes(rng)
            image.save(root / "images" / split / f"{i}.png")
            images.append({"id": 100 + i, "file_name": f"{i}.png", "height": image.height, "width": image.width})
            for label, polygon, box in things:
                area = float(coco_mask.area(coco_mask.frPyObjects([polygon], image.height, image.width))[0])
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": IDS[label], "iscrowd": 0}
                    | {"bbox": box, "area": area, "segmentation": [polygon]}
                )
        facts = {"categories": [{"id": i, "name": n} for i, n in zip(IDS, ("triangle", "square"), strict=True)]}
        text = json.dumps({"images": images, "annotations": annotations, **facts})
        (root / "annotations" / f"{split}.json").write_text(text)
    return root


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco", {"train": 8, "test": 4})


@pytest.fixture
def tiny(tmp_path):
    return write_coco(tmp_path / "tiny", {"train": 4, "test": 2})


def change(root, split, do):
    path = root / "annotations" / f"{split}.json"
    found = json.loads(path.read_text())
    do(found)
    path.write_text(json.dumps(found))


VOC = """<annotation><filename>x.jpg</filename><size><width>30</width><height>20</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>3.5</xmax><ymax>25</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>
</annotation>"""


def write_voc(root, splits):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, names in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            (root / "Annotations" / f"{name}.xml").write_text(VOC)
            Image.new("RGB", (30, 20)).save(root / "JPEGImages" / f"{name}.jpg")
    return root


def test_boxes_of_pascal_voc_count_from_one_and_difficult_ones_are_crowds(tmp_path):
    write_voc(tmp_path / "VOC2007", {"train": ["a"], "val": ["b", "c"], "test": ["d"]})
    found = open_pictures(tmp_path)  # the folder is in the only folder
    assert found.classes == ("cat", "dog")
    assert [p.path.stem for p in found.train] == ["a", "b", "c"]
    assert [p.path.stem for p in found.test] == ["d"]
    dog, cat = found.test[0].things
    assert (dog.box, dog.label, dog.crowd, dog.area) == ((0, 0, 30, 20), 1, False, 600)
    assert (cat.box, cat.label, cat.crowd) == ((2, 3, 3.5, 20), 0, True)
    assert found.bad == [(str(tmp_path / "VOC2007/Annotations" / f"{n}.xml"), found.bad[0][1]) for n in "abcd"]
    assert "without an area" in found.bad[0][1]
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").unlink()
    found = open_pictures(tmp_path / "VOC2007")
    assert [[p.path.stem for p in part] for part in (found.train, found.test)] == [["a"], ["b", "c"]]


def test_test_images_are_never_learned_from(tmp_path):
    write_voc(tmp_path, {"train": ["a", "b"], "val": ["c", "d"], "test": ["b", "c"]})
    found = open_pictures(tmp_path)
    assert [[p.path.stem for p in part] for part in (found.train, found.test)] == [["a", "d"], ["b", "c"]]
    assert [reason for where, reason in found.bad if where == str(tmp_path)] == [
        "2 images to train are test images too, and are not learned from"
    ]
    for name in ("train", "val"):
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("b\nc")
    with pytest.raises(UserError, match="no images to train but those to test"):
        open_pictures(tmp_path)


def test_boxes_of_coco_have_their_classes_and_masks(coco):
    found = open_pictures(coco, masks=True)
    assert found.classes == ("square", "triangle")  # by ascending id
    facts = json.loads((coco / "annotations" / "train.json").read_text())
    names = {c["id"]: c["name"] for c in facts["categories"]}
    things = [(p, t) for p in found.train for t in p.things]
    for (picture, thing), a in zip(things, facts["annotations"], strict=True):
        assert found.classes[thing.label] == names[a["category_id"]]
        x, y, w, h = a["bbox"]
        assert thing.box == (x, y, x + w, y + h)
        rle = coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], *picture.size))
        assert np.array_equal(detection._mask(thing, picture), coco_mask.decode(rle))


def test_masks_may_be_run_length_encodings(coco):
    polygons = open_pictures(coco, masks=True)

    def encode(facts):
        for k, a in enumerate(facts["annotations"]):
            rle = coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], 64, 80))
            flat = coco_mask.decode(rle).flatten(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *([0] if flat[0] else []), *edges, len(flat)]).tolist()
            a["segmentation"] = {"size": [64, 80], "counts": counts if k % 2 else rle["counts"].decode()}

    change(coco, "train", encode)
    for p, q in zip(open_pictures(coco, masks=True).train, polygons.train, strict=True):
        for a, b in zip(p.things, q.things, strict=True):
            assert np.array_equal(detection._mask(a, p), detection._mask(b, q))


def test_mirrored_objects_are_where_their_mirrored_masks_are(coco):
    found = open_pictures(coco, masks=True)
    for picture in found.train:
        image = picture.read()
        x, y = detection._example(image, picture, True, False, CPU)
        mirrored, flipped = detection._example(image, picture, True, True, CPU)
        assert torch.equal(mirrored, x.flip(2))
        assert torch.equal(flipped["labels"], y["labels"])
        for one in (y, flipped):
            tight = masks_to_boxes(one["masks"].bool()) + torch.tensor([0.0, 0, 1, 1])
            assert (tight - one["boxes"]).abs().max() <= 1.5  # a polygon ends within its last pixel
        assert not torch.allclose(flipped["boxes"], y["boxes"])


def photograph(path, turned, h=12, w=20):
    """A square of white at columns 3 to 7 and rows 2 to 5 of the stored pixels."""
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[2:5, 3:7] = 255
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("turned", range(1, 9))
def test_boxes_of_photographs_follow_their_orientation(tmp_path, turned):
    """COCO and VOC annotate the pixels as they are stored, or the upright ones: width and height tell which."""
    corner = [3, 2, 3, 5, 7, 5, 7, 2]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        photograph(tmp_path / split / "tall.png", 6)
        photograph(tmp_path / split / "any.png", turned)
        annotation = {"category_id": 1, "bbox": [3, 2, 4, 3], "area": 12, "segmentation": [corner]}
        facts = {
            "categories": [{"id": 1, "name": "square"}],
            "images": [
                {"id": k, "file_name": name, "width": 20, "height": 12}
                for k, name in enumerate(("tall.png", "any.png"))
            ],
            "annotations": [annotation | {"id": k + 1, "image_id": k} for k in range(2)],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(facts))
    found = open_pictures(tmp_path, masks=True)
    assert len(found.test) == 2 and not found.bad
    for picture in found.test:
        white = np.asarray(picture.read())[..., 0] > 0
        (thing,) = picture.things
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        assert thing.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.array_equal(detection._mask(thing, picture), white)
    count = 4 if turned > 1 else 2
    assert found.notes[0].startswith(f"{count} images are turned by their EXIF orientation")


def test_boxes_for_upright_photographs_stay(tmp_path):
    write_voc(tmp_path, {"train": ["a"], "test": ["b"]})  # 30 pixels wide and 20 high
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(tmp_path / "JPEGImages" / "b.jpg", exif=exif)
    found = open_pictures(tmp_path)
    assert found.test[0].things[0].box == (0, 0, 30, 20) and not found.notes
    assert found.test[0].read().size == (30, 20)


def test_images_of_coco_are_found_by_their_ends_and_missing_ones_are_counted(coco):
    names = []

    def move(facts):
        for image, start in zip(facts["images"], ("/data/upload/", "C:\\Users\\me\\", "", ""), strict=False):
            image["file_name"] = start + image["file_name"]
            names.append(image["file_name"])
        facts["images"][3]["file_name"] = "gone.png"

    before = len(open_pictures(coco).train)
    change(coco, "train", move)
    found = open_pictures(coco)
    assert len(found.train) == before - 1 and names[0].startswith("/data")
    assert [reason for _, reason in found.bad] == ["there is no image gone.png"]


def test_sets_that_are_wrong_are_named(coco, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_pictures(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="COCO's format for train"):
        open_pictures(tmp_path / "empty")
    write_voc(tmp_path / "voc", {"train": ["a"], "test": ["b"]})
    with pytest.raises(UserError, match="no masks of objects"):
        open_pictures(tmp_path / "voc", masks=True)
    (tmp_path / "voc/Annotations/b.xml").write_text("<annotation><size><width>3</width></size>")
    with pytest.raises(UserError, match=r"b\.xml is not an annotation"):
        open_pictures(tmp_path / "voc")
    for number, (do, what) in enumerate(
        (
            (lambda f: f["annotations"][0].pop("bbox"), "'bbox' is missing"),
            (lambda f: f["annotations"][0].update(category_id=3), "which is not listed"),
            (lambda f: f["annotations"][0].update(image_id=3), "3 is missing"),
            (lambda f: f["annotations"][0].update(segmentation=[]), "has no mask"),
            (lambda f: f["images"][0].update(file_name="../../secret.png"), "outside of its folder"),
            (lambda f: [i.update(file_name=f"no{i['id']}.png") for i in f["images"]], "no100.png, which is in none"),
            (lambda f: f.pop("images"), "'images' is missing"),
        )
    ):
        root = shutil.copytree(coco, tmp_path / f"copy {number}")
        change(root, "train", do)
        with pytest.raises(UserError, match=rf"train\.json.*{what}"):
            open_pictures(root, masks=True)
    (coco / "annotations" / "train.json").write_text("{")
    with pytest.raises(UserError, match=r"train\.json cannot be read as JSON"):
        open_pictures(coco)


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "strides"),
    [
        ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, [4, 8, 16, 32]),
        ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem": "small"}, [4, 8]),
        ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem": "half"}, [4, 8, 16]),
        ("convnext_femto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", VIT, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 14, "img_size": 28}, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 4, "img_size": 32}, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 32}, [4, 8, 16, 32]),
    ],
)
def test_pyramids_have_levels_for_anchors_of_32_to_512_pixels(name, settings, strides):
    encoder = Encoder(name, **settings).eval()
    model, plain = detection._detector(encoder, 3, MEAN, STD, True, 96, "batch", 16)
    assert plain == name.startswith("vit")
    model.eval()
    assert model.backbone.strides == strides
    with torch.no_grad():
        levels = model.backbone(torch.randn(1, 3, 128, 192))
    assert [tuple(m.shape) for m in levels.values()] == [(1, 256, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]
    anchors = model.rpn.anchor_generator
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / s for s in strides]
        assert pool.featmap_names == list(levels)[: len(strides)]
    # The encoder that is judged is another one than the one that is tuned.
    tuned = {id(p) for p in model.parameters()}
    assert not any(id(p) in tuned for p in encoder.parameters())


def test_a_level_of_a_simple_pyramid_sees_the_place_it_stands_for():
    encoder = Encoder("vit_tiny_patch16_224", **VIT | {"patch_size": 14, "img_size": 28, "depth": 1}).eval()
    torch.nn.init.zeros_(encoder.model.blocks[0].attn.proj.weight)  # so that places do not mix
    body = detection._Simple(encoder, *stage_shapes(encoder)[-1])
    x = torch.zeros(1, 3, 64, 128, requires_grad=True)
    level = body(x)["2"]
    level[0, :, 1, 5].square().sum().backward()
    rows, columns = (x.grad[0].abs().sum(0) > 1e-9 * x.grad.abs().max()).nonzero().T
    # A 3x3 convolution on patches of 16 pixels around those from 16 and 80.
    assert (rows.min(), columns.min()) == pytest.approx((0, 64), abs=2)
    assert (rows.max(), columns.max()) == pytest.approx((47, 111), abs=2)


def test_the_learning_rate_warms_up_and_falls_twice():
    rates = [detection._share(s, 90_000) for s in range(90_000)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[999] == 1
    assert (rates[59_999], rates[60_000], rates[79_999], rates[80_000]) == pytest.approx((1, 0.1, 0.1, 0.01))
    assert [detection._share(s, 9) for s in range(9)] == pytest.approx([1] * 6 + [0.1] * 2 + [0.01])


# -- the whole ---------------------------------------------------------------------------------------------------


@pytest.fixture
def overheard(monkeypatch):
    """What `average_precision` was asked, and what it said."""
    calls = []

    def listen(truth, answers, kind):
        calls.append((copy.deepcopy(truth), copy.deepcopy(answers), kind, average_precision(truth, answers, kind)))
        return calls[-1][-1]

    monkeypatch.setattr(detection, "average_precision", listen)
    return calls


def test_objects_are_found(learner, coco):
    report = detect(learner, coco, **QUICK | {"epochs": 12, "lr": 0.02})
    assert report.metric == "box AP"
    assert report.details["box AP50"] > 0.1


def test_objects_are_segmented_and_the_encoder_stays_as_it_is(learner, coco, overheard):
    before, state, calls = copy.deepcopy(learner.state_dict()), torch.get_rng_state(), []
    settings = QUICK | {"epochs": 2, "lr": 0.02}
    report = detect(learner, coco, masks=True, progress=lambda d, n, note="": calls.append((d, n)), **settings)
    assert report.metric == "mask AP"
    assert report.value == overheard[0][-1][0]["AP"]
    assert report.images == {"train": 8, "validation": 0, "test": 4}
    assert (4, 4) in calls
    assert [kind for _, _, kind, _ in overheard] == ["segm", "bbox"]
    for truth, answers, kind, (numbers, each) in overheard:
        assert answers
        wanted, theirs = judged(truth, answers, kind)
        assert numbers == pytest.approx(wanted, abs=1e-9)
        assert each == pytest.approx(theirs, abs=1e-9)
    # What is asked about is what the file says.
    facts = json.loads((coco / "annotations" / "test.json").read_text())
    truth = overheard[0][0]
    assert [a["bbox"] for a in truth["annotations"]] == [a["bbox"] for a in facts["annotations"]]
    assert [a["area"] for a in truth["annotations"]] == [a["area"] for a in facts["annotations"]]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    theirs = {c["id"]: c["name"] for c in facts["categories"]}
    assert [names[a["category_id"]] for a in truth["annotations"]] == [
        theirs[a["category_id"]] for a in facts["annotations"]
    ]
    # Answers are in the pixels of the original images.
    for answer in overheard[0][1]:
        assert answer["segmentation"]["size"] == [64, 80]
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_numbers(learner, tiny, overheard):
    for seed in (0, 0, 1):
        detect(learner, tiny, seed=seed, **QUICK)
    first, again, other = ([a["score"] for a in answers] for _, answers, _, _ in overheard)
    assert first == again != other


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_batch_norm_learns_from_batches_or_keeps_what_it_learned(learner, tiny, batch_norm, monkeypatch):
    tuned = []
    monkeypatch.setattr(detection, "_ask", lambda model, *rest: tuned.append(model) or ask(model, *rest))
    detect(learner, tiny, batch_norm=batch_norm, **QUICK)
    theirs = dict(tuned[0].backbone.encoder.named_buffers())
    moved = [not torch.equal(v, theirs[k]) for k, v in learner.named_buffers() if k.endswith("running_mean")]
    assert all(moved) if batch_norm == "batch" else not any(moved)
    pyramid = [m for m in tuned[0].backbone.pyramid.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(pyramid) == (batch_norm == "batch")
    weights = dict(tuned[0].backbone.encoder.named_parameters())
    assert not torch.equal(weights["model.layer1.0.bn2.weight"], learner.model.layer1[0].bn2.weight)


ask = detection._ask


def test_a_vision_transformer_learns_too(tiny):
    encoder = Encoder("vit_tiny_patch16_224", **VIT | {"patch_size": 8, "img_size": 64})
    report = detect(encoder, tiny, **QUICK)
    assert 0 <= report.value <= 1
    assert report.setting["lr"] == 1e-4


def test_crowds_teach_nothing_and_bad_images_are_left_out_and_named(learner, coco):
    (coco / "images" / "train" / "0.png").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(coco / "images" / "test" / "1.png")

    def crowd(facts):
        for a in facts["annotations"]:
            a["iscrowd"] = int(a["image_id"] in (101, 102))

    change(coco, "train", crowd)
    report = detect(learner, coco, **QUICK)
    assert report.images == {"train": 5, "validation": 0, "test": 3}
    reasons = {where.rpartition("images/")[2]: reason for where, reason in report.bad}
    assert set(reasons) == {"train/0.png", "test/1.png"}
    assert reasons["test/1.png"] == "it is 10x10, and its annotations are for 80x64"


def test_a_training_that_diverges_says_so(learner, tiny):
    with pytest.raises(UserError, match="epochs must be 1 or more"):
        detect(learner, tiny, **QUICK | {"epochs": 0})
    with pytest.raises(UserError, match="diverged"):
        detect(learner, tiny, **QUICK | {"lr": 1e12, "epochs": 10})


@pytest.mark.shared_data
def test_blood_cells_are_detected(shared_data, tmp_path, overheard, learner):
    with zipfile.ZipFile(shared_data / "bccd_detection.zip") as archive:
        archive.extractall(tmp_path)
    found = open_pictures(tmp_path / "BCCD")
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert (len(found.train), len(found.test)) == (292, 72)
    assert len(found.bad) == 2  # points, in BloodImage_00338 and BloodImage_00343
    assert all(picture.read().size == (640, 480) for picture in found.test[:3])
    main = tmp_path / "BCCD" / "ImageSets" / "Main"
    (main / "val.txt").unlink()
    for name, count in (("train", 4), ("test", 2)):
        (main / f"{name}.txt").write_text("\n".join((main / f"{name}.txt").read_text().split()[:count]))
    report = detect(learner, tmp_path / "BCCD", **QUICK | {"size": 96, "epochs": 4})
    ((truth, answers, kind, (numbers, _)),) = overheard
    assert report.metric == "box AP"
    assert numbers == pytest.approx(judged(truth, answers, kind)[0], abs=1e-9)
    assert len(answers) > 10
