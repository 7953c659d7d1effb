import copy
import json
import math
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.metrics import confusion_matrix, jaccard_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from manyviews.backbones import Encoder, patch_features
from manyviews.data.decode import BadImage
from manyviews.errors import UserError
from manyviews.evaluation.dense import segment, segmentation
from manyviews.evaluation.dense.files import upright
from manyviews.evaluation.dense.legend import IGNORED
from manyviews.evaluation.dense.maps import Maps, encode_all, resized, stage_shapes
from manyviews.evaluation.dense.masks import Masked, open_masks

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CPU = torch.device("cpu")
QUICK = {"mean": MEAN, "std": STD, "epochs": 30, "batch": 4, "pixels": 256, "stages": (0, 1, 2), "lrs": (0.01, 0.1)}
COLORS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
IGNORE = 255


def picture(rng, side=48):
    """Rectangles of three colors on a fourth, noise over it, and what is what; some of it marked as not to count."""
    mask = np.zeros((side, side + 8), np.uint8)
    for label in (1, 2):
        top, left = rng.integers(0, side // 2, 2)
        mask[top : top + side // 2, left : left + side // 2] = label
    pixels = np.array(COLORS)[mask] + rng.normal(0, 20, (*mask.shape, 3))
    mask[:2] = IGNORE
    return pixels.clip(0, 255).astype(np.uint8), mask


def write(root, splits, folder="images/{split}", masks="masks/{split}", seed=0):
    for split, count in splits.items():
        rng = np.random.default_rng([seed, len(split)])
        images, marked = root / folder.format(split=split), root / masks.format(split=split)
        images.mkdir(parents=True)
        marked.mkdir(parents=True)
        for i in range(count):
            pixels, mask = picture(rng)
            Image.fromarray(pixels).save(images / f"{i}.png")
            Image.fromarray(mask).save(marked / f"{i}.png")
    (root / "dataset.json").write_text(json.dumps({"classes": ["red", "green", "blue"], "ignore": IGNORE}))
    return root


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set", {"train": 12, "val": 4, "test": 6})


# -- measures ----------------------------------------------------------------------------------------------------


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    masks, said = rng.integers(-1, 4, (5, 9, 11)), rng.integers(0, 4, (5, 9, 11))
    tally = torch.stack(
        [segmentation.tally(torch.from_numpy(p), torch.from_numpy(m), 6) for p, m in zip(said, masks, strict=True)]
    )
    true, guess = masks[masks != IGNORED], said[masks != IGNORED]
    table = confusion_matrix(true, guess, labels=range(6))
    assert tally.sum(0).tolist() == [table.diagonal().tolist(), table.sum(0).tolist(), table.sum(1).tolist()]
    wanted = jaccard_score(true, guess, labels=range(4), average=None)
    assert segmentation.ious(tally)[:4] == pytest.approx(wanted.tolist())
    assert segmentation.ious(tally)[4:] == [None, None]
    assert segmentation.miou(tally) == pytest.approx(wanted.mean())


def test_a_class_that_is_predicted_but_never_there_counts_as_missed():
    tally = segmentation.tally(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)[None]
    assert segmentation.ious(tally) == [0.5, 0.0, None]
    assert segmentation.miou(tally) == 0.25


def test_the_interval_is_that_of_resampled_images():
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 50, (12, 3, 3)) + 60 * rng.integers(0, 2, (12, 1, 1)) * np.eye(3, dtype=int)
    tally = torch.from_numpy(np.stack([np.diagonal(tables, axis1=1, axis2=2), tables.sum(1), tables.sum(2)], 1))
    slow = [segmentation.miou(tally[rng.integers(0, 12, 12)]) for _ in range(4000)]
    found = segmentation.interval(tally, seed=1, resamples=4000)
    assert found == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.01)
    assert found == segmentation.interval(tally, seed=1, resamples=4000)
    same = tally[:1].expand(9, -1, -1)
    assert segmentation.interval(same) == pytest.approx((segmentation.miou(same),) * 2)


# -- layers ------------------------------------------------------------------------------------------------------


def test_random_pixels_have_the_logits_that_upsampling_gives_them():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5)
    mask = torch.arange(17 * 22).view(17, 22)  # says which pixel it is
    mask[3:9] = IGNORED
    found, where = segmentation._at_random(logits, mask, 2000, torch.Generator().manual_seed(0))
    assert set(where.tolist()) <= set(range(17 * 22)) - set(range(3 * 22, 9 * 22))
    assert len(where.unique()) > 230  # of 242
    wanted = F.interpolate(logits[None], size=(17, 22), mode="bilinear")[0].flatten(1)[:, where]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    everywhere, rest = segmentation._at_all(logits, mask)
    torch.testing.assert_close(everywhere, F.interpolate(logits[None], size=(17, 22), mode="bilinear")[0][:, mask >= 0])
    assert torch.equal(rest, mask[mask >= 0])


def examples(count, d=6, classes=3):
    found = []
    for _ in range(count):
        mask = torch.randint(0, classes, (3, 4))
        x = F.one_hot(mask, classes).float() @ torch.randn(classes, d) + torch.randn(3, 4, d)
        mask = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
        mask[0, :5] = IGNORED
        x = x * torch.logspace(-2, 1, d) + 3
        found.append(segmentation._Example(Masked(None, None), x.permute(2, 0, 1), mask.short()))
    return found


def memory(some):
    return segmentation._Train(lambda pairs: some, [])


def test_layers_are_those_of_plain_pytorch():
    some, lrs, epochs, batch = examples(7), (1e-3, 3e-2), 3, 3
    statistics = segmentation._statistics(memory(some), 3, 6)
    places = torch.cat([e.features.flatten(1).T for e in some])
    scaler = StandardScaler().fit(places.double())
    np.testing.assert_allclose(statistics.standard.mean, scaler.mean_, rtol=1e-5)
    np.testing.assert_allclose(statistics.standard.std, scaler.scale_, rtol=1e-4)
    heads = segmentation._train(memory(some), statistics, lrs, epochs, batch, None, 5, CPU, None)

    for lr, head in zip(lrs, heads, strict=True):
        layer = torch.nn.Conv2d(6, 3, 1)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=1e-4)
        generator, steps, step = torch.Generator().manual_seed(5), epochs * math.ceil(7 / batch), 0
        for _ in range(epochs):
            for rows in torch.randperm(7, generator=generator).split(batch):
                optimizer.param_groups[0]["lr"] = lr * (steps - step) / steps  # too few steps to warm up
                losses = []
                for i in rows.tolist():
                    x = torch.from_numpy(scaler.transform(some[i].features.flatten(1).T.double())).float()
                    logits = layer(x.T.view(1, 6, 3, 4))
                    logits = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False)
                    losses.append(F.cross_entropy(logits, some[i].mask[None].long(), ignore_index=IGNORED))
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
                step += 1
        x = torch.from_numpy(scaler.transform(some[0].features.flatten(1).T.double())).float()
        wanted = layer(x.T.view(1, 6, 3, 4))[0]
        torch.testing.assert_close(head(some[0].features), wanted, rtol=1e-3, atol=1e-4)


def test_layers_trained_together_are_layers_trained_alone():
    some = examples(6)
    statistics = segmentation._statistics(memory(some), 3, 6)
    together = segmentation._train(memory(some), statistics, (1e-3, 1e30, 1e-1), 4, 4, 20, 0, CPU, None)
    for lr, head in ((1e-3, together[0]), (1e-1, together[2])):
        (alone,) = segmentation._train(memory(some), statistics, (lr,), 4, 4, 20, 0, CPU, None)
        torch.testing.assert_close(head.weight, alone.weight)
    # The one that diverged says one class, and is of no consequence for the others.
    tallies = segmentation._tallies(some, together)
    assert segmentation.miou(tallies[1]) < segmentation.miou(tallies[2])


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [segmentation._rate(s, 1000) for s in range(1001)]
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[39] == max(rates) == 1
    assert rates[1000] == 0
    assert np.allclose(np.diff(rates[40:], 2), 0)
    assert segmentation._rate(0, 1) == 1


# -- the whole ---------------------------------------------------------------------------------------------------


def test_what_colors_tell_is_found_and_the_encoder_stays_as_it_is(encoder, folder):
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    calls = []
    report = segment(encoder, folder, **QUICK, progress=lambda done, total, note="": calls.append((done, total)))
    assert report.value > 0.8
    assert report.interval[0] <= report.value <= report.interval[1]
    assert report.details["pixel accuracy"] > 0.9
    assert report.images == {"train": 12, "validation": 4, "test": 6}
    assert list(report.per_class) == ["red", "green", "blue"]
    assert report.validation[f"lr {report.setting['lr']:g}"] == max(report.validation.values())
    assert (90, 90) in calls  # 30 epochs of 3 steps
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    # Where one class alone is ever said, its IoU is its share, and the others' are 0.
    counts = np.zeros(3)
    for path in (folder / "masks" / "test").iterdir():
        mask = np.asarray(Image.open(path))
        counts += np.bincount(mask[mask != IGNORE], minlength=3)
    (constant,) = report.baselines.values()
    assert constant == pytest.approx(counts[0] / counts.sum() / 3)
    assert report.to_dict() == json.loads(json.dumps(report.to_dict())) | {
        "interval": report.interval,
        "bad": report.bad,
        "notes": report.notes,
    }


def test_the_same_seed_gives_the_same_numbers_with_and_without_memory(encoder, folder, monkeypatch):
    quick = QUICK | {"epochs": 2}
    first = segment(encoder, folder, **quick)
    monkeypatch.setattr(segmentation, "_MEMORY", 1000)
    again = segment(encoder, folder, **quick)
    assert again.value == first.value
    assert again.validation == first.validation
    assert segment(encoder, folder, **quick, seed=1).validation != first.validation


def test_both_layouts_are_one_set(encoder, folder, tmp_path):
    other = write(tmp_path / "other", {"train": 12, "val": 4, "test": 6}, "{split}/images", "{split}/masks")
    (other / "dataset.json").unlink()
    (other / "classes.txt").write_text("red\ngreen\nblue")
    quick = QUICK | {"epochs": 1}
    assert segment(encoder, other, **quick).value == segment(encoder, folder, **quick).value


def test_what_is_under_an_ignored_pixel_is_of_no_consequence(encoder, folder):
    quick = QUICK | {"epochs": 1}
    first = segment(encoder, folder, **quick)
    for path in (folder / "masks").glob("*/*.png"):
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == IGNORE] = 7
        Image.fromarray(mask).save(path)
    (folder / "dataset.json").write_text(json.dumps({"classes": ["red", "green", "blue"]}))
    assert segment(encoder, folder, **quick, ignore=7).per_class == first.per_class


def test_masks_with_a_palette_are_read_by_their_values(folder):
    path = folder / "masks" / "train" / "0.png"
    values = np.asarray(Image.open(path)).astype(int)
    indexed = Image.fromarray(values.astype(np.uint8)).convert("L")
    indexed = Image.frombytes("P", indexed.size, indexed.tobytes())
    indexed.putpalette(list(range(255, -1, -1)) * 3)
    indexed.save(path)
    found = open_masks(folder)
    _, mask = found.read(found.train[0])
    assert np.array_equal(mask, np.where(values == IGNORE, IGNORED, values))


def test_without_a_list_the_values_are_the_classes(folder):
    (folder / "dataset.json").unlink()
    found = open_masks(folder)
    assert found.classes == ("0", "1", "2")
    assert found.values == {0: 0, 1: 1, 2: 2, 255: IGNORED}


def test_a_name_that_says_so_is_ignored_and_the_others_close_ranks(folder):
    (folder / "dataset.json").unlink()
    (folder / "classes.txt").write_text("red\nUnlabelled (ignore)\nblue\n")
    found = open_masks(folder)
    assert found.classes == ("red", "blue")
    assert found.values == {0: 0, 1: IGNORED, 2: 1, 255: IGNORED}


def masked(root, save, names=None, counts=(0, 1, 2), side=12):
    """A set whose masks hold `counts` side by side, as `save(values, path)` writes them."""
    for split, n in (("train", 12), ("test", 3)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            values = np.array(counts)[(np.arange(side * side).reshape(side, side) + k) % len(counts)]
            Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(root / f"images/{split}/{k}.png")
            save(values, root / f"masks/{split}/{k}.png")
    if names is not None:
        (root / "classes.txt").write_text("\n".join(names))
    return root


def gray(values, path):
    Image.fromarray(values.astype(np.uint8)).save(path)


def in_color(values, path):
    Image.fromarray(np.stack([values * 100, 255 - values, values % 2], -1).astype(np.uint8)).save(path)


def in_palettes(values, path):
    """A palette of its own in each file, as programs that reduce colors write it."""
    order = np.random.default_rng(int(path.stem)).permutation(3)
    image = Image.fromarray(np.argsort(order)[values].astype(np.uint8))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.array([[0, 255, 0], [100, 254, 1], [200, 253, 0]])[order].astype(np.uint8).tobytes())
    image.save(path)


COLORED = ["a 0 255 0", "b,100,254,1", "c:200,253,0::"]
GRAYS = ["a 0 0 0", "b 100 100 100", "c 200 200 200"]


@pytest.mark.parametrize(
    ("save", "names", "note"),
    [
        (lambda v, p: Image.fromarray(np.stack([v] * 3, -1).astype(np.uint8)).save(p), "abc", "15 masks are gray"),
        (lambda v, p: Image.fromarray(v.astype(np.uint8)).convert("LA").save(p), "abc", None),
        (lambda v, p: Image.fromarray(v.astype(np.uint16)).save(p), "abc", None),
        (lambda v, p: Image.fromarray(v.astype(np.float32)).save(p, "TIFF"), "abc", None),
        (lambda v, p: gray(v + 1, p), "abc", "counted from 1"),
        (in_color, COLORED, "read by the colors in classes.txt"),
        (in_palettes, COLORED, "read by the colors in classes.txt"),
        (lambda v, p: gray(v * 100, p), GRAYS, "read by the colors in classes.txt"),
    ],
)
def test_masks_of_other_kinds_are_read_and_said(tmp_path, save, names, note):
    found = open_masks(masked(tmp_path, save, names))
    assert found.classes == ("a", "b", "c")
    for one in (*found.train, *found.val, *found.test):
        values = np.arange(144).reshape(12, 12) + int(one.mask.stem)
        assert np.array_equal(found.read(one)[1], values % 3)
    assert [note in n for n in found.notes] == ([True] if note else [])


def test_white_is_the_object_where_two_classes_are_listed(encoder, tmp_path):
    """mmsegmentation #2598, transformers #27224: 255 did not count, and the object was never learned."""
    root = masked(tmp_path, gray, ["background", "object"], (0, 255))
    found = open_masks(root)
    assert found.values == {0: 0, 255: 1}
    assert found.notes == ("The masks hold 0 and 255 only: 255 is taken for 'object'.",)
    report = segment(encoder, root, **QUICK | {"epochs": 1})
    assert report.notes == found.notes and report.per_class["object"] is not None
    for names in (None, "abc"):
        (root / "classes.txt").unlink(missing_ok=True)
        if names:
            (root / "classes.txt").write_text("\n".join(names))
        with pytest.raises(UserError, match=r"hold 0 and 255 only, .*'background' and 'object'"):
            open_masks(root)
    masked(tmp_path, gray, ["background", "object"], (0, 1, 255))
    assert open_masks(root).values == {0: 0, 1: 1, 255: IGNORED} and not open_masks(root).notes


@pytest.mark.parametrize(
    ("save", "counts", "cure"),
    [
        (in_color, (0, 1, 2), r"in color \(.*write each class with its color"),
        (in_palettes, (0, 1, 2), "palettes that differ.*write each class with its color"),
        (gray, (0, 128, 254), r'"values": \[0, 128, 254\]'),
        (gray, (0, 1, 2, 3), r"'background' or 'unlabeled \(ignore\)' as the first line"),
        (gray, (0, 7, 9, 30), "list more names"),
        (lambda v, p: Image.fromarray(v.astype(np.uint8)).save(p, "JPEG"), (0, 99, 200), "15 of 15 .* is a JPEG"),
        (lambda v, p: Image.fromarray(v.astype(np.float32) / 2).save(p, "TIFF"), (0, 1, 2), "15 of 15 .* fractions"),
        (lambda v, p: Image.fromarray(np.stack([v, v], -1).astype(np.uint8)).save(p), (0, 1), "transparent pixels"),
    ],
)
def test_masks_that_are_no_classes_are_refused_with_the_cure(tmp_path, save, counts, cure):
    with pytest.raises(UserError, match=cure):
        open_masks(masked(tmp_path, save, "abc", counts))


def test_values_may_be_listed(tmp_path):
    root = masked(tmp_path, gray, counts=(0, 128, 255))
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "values": [0, 128, 255]}))
    assert open_masks(root).values == {0: 0, 128: 1, 255: 2}
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "values": [0, 128]}))
    with pytest.raises(UserError, match="one for each class"):
        open_masks(root)


def test_a_class_without_a_training_pixel_is_said(encoder, tmp_path):
    root = masked(tmp_path, gray, "abcd", (0, 1, 2))
    report = segment(encoder, root, **QUICK | {"epochs": 1})
    assert len(report.notes) == 1 and report.notes[0].startswith("No training mask has a pixel of d")
    with pytest.raises(UserError, match=r"No training mask has a pixel of b, c.*nothing to tell apart"):
        segment(encoder, masked(tmp_path / "one", gray, "abc", (0,)), **QUICK | {"epochs": 1})


def test_masks_of_turned_photographs(tmp_path):
    """An image that its EXIF orientation turns may have a mask of the pixels as they are stored."""
    stored = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turned
        image = Image.fromarray(stored)
        image.getexif()[0x0112] = turned
        wanted = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(upright(stored, turned), wanted)
        if turned < 5:
            continue
        root = masked(tmp_path / str(turned), gray, "ab", (0, 1))
        for name, mask in (("0", stored), ("1", wanted)):
            Image.new("RGB", (8, 6)).save(root / f"images/test/{name}.png", exif=exif)
            gray(mask % 2, root / f"masks/test/{name}.png")
        found = open_masks(root)
        for one in found.test[:2]:
            assert np.array_equal(found.read(one)[1], wanted % 2)


def test_two_images_of_one_name_are_counted(folder):
    shutil.copy(folder / "images/train/1.png", folder / "images/train/1.jpg")
    assert [reason for _, reason in open_masks(folder).bad] == ["1.jpg has the same name"]


def test_without_val_a_part_of_train_chooses(tmp_path):
    root = write(tmp_path / "set", {"train": 30, "test": 2})
    found = open_masks(root)
    assert len(found.train) + len(found.val) == 30
    assert 1 <= len(found.val) <= 12
    assert {one.image.parent.name for one in found.val} == {"train"}
    again = open_masks(shutil.copytree(root, tmp_path / "copy"))
    assert [one.image.name for one in again.val] == [one.image.name for one in found.val]
    (root / "images" / "test").rename(root / "images" / "validation")
    (root / "masks" / "test").rename(root / "masks" / "validation")
    assert {one.image.parent.name for one in open_masks(root).test} == {"validation"}


def test_what_is_bad_is_left_out_and_named(encoder, folder):
    images, masks = folder / "images", folder / "masks"
    (images / "train" / "0.png").write_bytes(b"no image")
    Image.new("L", (5, 5)).save(masks / "train" / "1.png")
    Image.new("RGB", (56, 48), "red").save(masks / "train" / "2.png")
    Image.new("L", (56, 48), 9).save(masks / "train" / "3.png")
    Image.new("L", (56, 48), IGNORE).save(masks / "train" / "4.png")
    (masks / "train" / "5.png").unlink()
    (masks / "test" / "0.png").write_bytes(b"no mask")
    report = segment(encoder, folder, **QUICK | {"epochs": 1})
    assert report.images == {"train": 6, "validation": 4, "test": 5}
    reasons = {where.rpartition("images/")[2]: reason for where, reason in report.bad}
    assert set(reasons) == {*(f"train/{i}.png" for i in range(6)), "test/0.png"}
    assert "not an image" in reasons["train/0.png"]
    assert reasons["train/1.png"] == "its mask is 5x5, and the image 56x48"
    assert "in color" in reasons["train/2.png"]
    assert "has the value 9" in reasons["train/3.png"]
    assert "marks nothing" in reasons["train/4.png"]
    assert "no mask" in reasons["train/5.png"]
    assert "cannot be read" in reasons["test/0.png"]


def test_what_cannot_be_done_is_said(encoder, folder, tmp_path):
    quick = QUICK | {"epochs": 1}
    with pytest.raises(UserError, match="is not a folder"):
        segment(encoder, tmp_path / "none", **quick)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="masks to train"):
        segment(encoder, tmp_path / "empty", **quick)
    with pytest.raises(UserError, match="lrs must be 1 or more"):
        segment(encoder, folder, **quick | {"lrs": ()})
    with pytest.raises(UserError, match="has 5 stages"):
        segment(encoder, folder, **quick | {"stages": (5,)})
    with pytest.raises(UserError, match=r"swin.*any size"):
        segment(Encoder("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1)), folder, **quick)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        segment(encoder, folder, **quick)
    (folder / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore": 255}))
    for path in (folder / "images" / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="None of the 6 test images"):
        segment(encoder, folder, **quick)


# -- maps --------------------------------------------------------------------------------------------------------

VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "settings", "stages", "stride", "dim"),
    [
        ("resnet18", {}, None, 32, 512),
        ("resnet18", {"stem": "small", "channels": (8, 8, 8, 16)}, None, 8, 16),
        ("resnet18", {"stem": "small", "channels": (8, 8, 8, 16)}, (-3, -1), 2, 24),
        ("convnext_femto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, (1,), 8, 8),
        ("vit_tiny_patch16_224", VIT, None, 16, 24),
        ("vit_tiny_patch16_224", VIT, (-1, -2), 16, 48),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 14, "img_size": 28}, None, 14, 24),
    ],
)
def test_maps_have_their_strides(name, settings, stages, stride, dim):
    encoder = Encoder(name, **settings).eval()
    maps = Maps(encoder, stages)
    assert (maps.stride, maps.dim) == (stride, dim)
    x = torch.randn(2, 3, 3 * stride, 5 * stride)
    with torch.no_grad():
        found = maps(x)
        assert found.shape == (2, dim, 3, 5)
        if stages is None:
            torch.testing.assert_close(found.flatten(2).transpose(1, 2), patch_features(encoder, x))


def test_stages_side_by_side_are_in_the_networks_order_and_the_finest_ones_size(encoder):
    x = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        fine, coarse = encoder.model.forward_intermediates(x, indices=[2, 4], intermediates_only=True)
        wanted = torch.cat([fine, F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")], 1)
        torch.testing.assert_close(Maps(encoder, (-1, 2))(x), wanted)


def test_images_are_seen_whole_and_tiled_by_the_stride():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert resized(image, None, 16).shape == (3, 48, 64)
    assert resized(image, 100, 16).shape == (3, 96, 144)
    wanted = image.resize((64, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(resized(image, 50, 16).transpose(1, 2, 0), np.asarray(wanted))
    assert resized(Image.new("RGB", (600, 1200)), None, 16).shape == (3, 1024, 512)


def test_images_of_several_sizes_are_encoded_each_as_alone(encoder):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 8 * h, 16), dtype=np.uint8) for h in (1, 2, 1, 3, 2)]
    maps = Maps(encoder)
    for image, x in zip(images, encode_all(maps, images, MEAN, STD, CPU), strict=True):
        (alone,) = encode_all(maps, [image], MEAN, STD, CPU)
        torch.testing.assert_close(x, alone)
        assert not x.is_inference()


def test_shapes_of_stages_are_found_on_nets_of_any_mode(encoder):
    encoder.train()
    before = copy.deepcopy(encoder.state_dict())
    assert stage_shapes(encoder) == [(4, 1), (4, 1), (4, 2), (8, 4), (8, 8)]
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# -- real images -------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_street_scenes_are_segmented(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "camvid240_segmentation.zip") as archive:
        for split, every in (("train", 20), ("val", 12), ("test", 24)):
            names = sorted(n for n in archive.namelist() if n.startswith(f"{split}/images/") and n.endswith(".jpg"))
            for name in names[::every]:
                archive.extract(name, tmp_path)
                archive.extract(name.replace("/images/", "/masks/").replace(".jpg", ".png"), tmp_path)
        archive.extract("classes.txt", tmp_path)
    found = open_masks(tmp_path)
    assert len(found.classes) == 11
    assert found.classes[0] == "Sky"
    assert found.values[11] == IGNORED
    for one in (*found.train, *found.val, *found.test):
        found.read(one)
    encoder = Encoder("resnet18", stem="half", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    report = segment(
        encoder, tmp_path, mean=MEAN, std=STD, test_size=96, stages=(-2,), epochs=15, batch=4, pixels=512, lrs=(1e-2,)
    )
    assert not report.bad
    assert report.value > 3 * report.baselines["always the most frequent class"]


def test_a_mask_that_is_gone_is_a_bad_image(folder):
    found = open_masks(folder)
    found.test[0].mask.unlink()
    with pytest.raises(BadImage, match="gone"):
        found.read(found.test[0])
