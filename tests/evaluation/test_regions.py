"""Regions of patches: numbers that mean the same in all images, and borders that keep to edges or do not."""

import math

import numpy as np
import torch

from manyviews.evaluation.unlabeled.regions import drawn, regions


def scene(shift=0):
    """Features of two kinds, left and right, of 3 images of 8 x 8 patches; colors change `shift` patches further."""
    patches = torch.randn(3, 8, 8, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    patches[:, :, :4, 0] += 1
    patches[:, :, 4:, 1] += 1
    image = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    image[..., 4 * (4 + shift) :] = 200
    return patches.flatten(1, 2), image


def test_borders_at_the_edge_are_certain_and_elsewhere_below_chance():
    patches, pixels = scene()
    found = regions(patches, pixels, clusters=2)
    assert found.edges == 1.0
    left = found.maps[0, 0, 0]
    assert (found.maps[:, :, :4] == left).all() and (found.maps[:, :, 4:] != left).all()
    # Two patches beside the edge: no border has a difference of color, and some pairs inside have.
    assert regions(*scene(shift=2), clusters=2).edges < 0.5


def test_features_that_are_all_alike_have_no_borders():
    _, pixels = scene()
    assert math.isnan(regions(torch.ones(3, 64, 5), pixels).edges)


def test_a_map_is_drawn_over_its_image():
    patches, pixels = scene()
    found = regions(patches, pixels, clusters=2)
    picture = drawn(found.maps[0], pixels[0])
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
