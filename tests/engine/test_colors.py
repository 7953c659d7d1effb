"""What images of other channels than RGB do without."""

import dataclasses

import pytest

from manyviews import recipes
from manyviews.engine.build import build_method, check_colors
from manyviews.errors import UserError
from manyviews.settings import Component, Recipe


def with_channels(name: str, channels: int) -> Recipe:
    recipe = recipes.get(name)
    data = dataclasses.replace(recipe.data, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    backbone = Component(recipe.backbone.name, {**recipe.backbone.settings, "in_chans": channels})
    return dataclasses.replace(recipe, data=data, backbone=backbone)


def test_what_only_rgb_has_is_named_once_or_refused():
    for channels, expected in ((3, []), (1, ["grayscale, hue, saturation"]), (13, ["grayscale, hue, saturation"])):
        recipe = with_channels("simclr_tiny", channels)
        notes = check_colors(build_method(recipe), recipe)
        assert [note.rpartition(": ")[2].rstrip(".") for note in notes] == expected
    mast = with_channels("mast_tiny", 13)
    with pytest.raises(UserError, match="13 channels have no grayscale"):
        check_colors(build_method(mast), mast)
