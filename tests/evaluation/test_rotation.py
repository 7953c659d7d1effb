"""Whether features know which way is up."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from manyviews.data import open_source
from manyviews.evaluation import Pixels, Task, encode, linear_probe
from manyviews.evaluation.protocols.rotation import Rotation

from .conftest import measured
from .test_layers import image_task


def skies(count, seed=0):
    """Noise that is brighter above."""
    rng = np.random.default_rng(seed)
    light = np.linspace(60, -60, 12)[None, :, None, None]
    pixels = 128 + light + rng.normal(0, 30, (count, 12, 12, 3))
    return open_source((pixels.clip(0, 255).astype(np.uint8), np.arange(count) % 2))


def test_pixels_know_which_way_is_up_whatever_the_labels(few_steps):
    task, y = image_task(Pixels(), skies(90), 40, 60)
    found = measured(Rotation(), task, y)
    assert found.value == 1 and list(found.details) == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    other = dataclasses.replace(task, frozen=dataclasses.replace(task.frozen, train_y=task.frozen.train_y * 0))
    assert measured(Rotation(), other, y.flip(0)) == found


def test_an_encoder_that_averages_over_all_positions_knows_no_rotation(few_steps):
    class Average(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).round(decimals=3)  # the order of a sum leaves no trace

    task, y = image_task(Average(), skies(160), 80, 120)
    found = measured(Rotation(), task, y)
    assert found.value == 0.25 and sum(found.details.values()) == pytest.approx(1)


def test_rotations_are_those_of_images_and_the_probe_is_the_linear_one(encoder, pictures, few_steps):
    source = pictures(130)
    task, y = image_task(encoder, source, 60, 90)
    images = [source.load(i) for i in range(130)]
    x = []
    for turn in (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270):
        turned = [np.asarray(image if turn is None else image.transpose(turn)) for image in images]
        x.append(
            encode(encoder, torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2), mean=(0.5,) * 3, std=(0.25,) * 3)
        )
    x, turns = torch.stack(x, 1), torch.arange(4).repeat(130, 1)
    parts = [(v[rows].flatten(0, 1)) for rows in (slice(0, 60), slice(60, 90), slice(90, None)) for v in (x, turns)]
    alone = linear_probe(Task(*parts[:5], 4), seed=4)
    found = measured(Rotation(), task, y, 4)
    right = (alone.logits.argmax(1) == parts[5]).double().view(-1, 4)
    assert found.value == pytest.approx(right.mean().item(), abs=0.05)
    assert list(found.details.values()) == pytest.approx(right.mean(0).tolist(), abs=0.15)
    low, high = found.interval
    assert low < found.value < high


def test_only_validation_images_choose_the_probe_of_rotations(encoder, pictures, few_steps):
    task, y = image_task(encoder, pictures(130, noise=100), 60, 90)
    found = measured(Rotation(), task, y)
    others = measured(Rotation(), dataclasses.replace(task, test=skies(40)), y)
    assert found.setting == others.setting and found.value != others.value
    assert measured(Rotation(images=20), task, y) == measured(Rotation(images=20), task, y) != found
