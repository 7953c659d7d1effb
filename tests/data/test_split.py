import unicodedata

import numpy as np
import pytest

from manyviews.data import split
from manyviews.errors import UserError

IDS = [f"class {k % 7}/{k}.png" for k in range(4000)]


def test_parts_are_disjoint_complete_and_of_about_the_right_size():
    parts = split(IDS, {"train": 0.7, "validation": 0.2, "test": 0.1})
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(4000))
    for name, share in {"train": 0.7, "validation": 0.2, "test": 0.1}.items():
        deviation = (4000 * share * (1 - share)) ** 0.5
        assert abs(len(parts[name]) - 4000 * share) < 4 * deviation
        assert (np.diff(parts[name]) > 0).all()


def test_split_is_the_same_everywhere():
    # Written down once. A change here moves images from training to validation in everybody's data.
    parts = split([f"{k}.png" for k in range(24)], {"train": 0.75, "validation": 0.25}, salt="v1")
    assert parts["validation"].tolist() == [6, 8, 9, 16, 17, 20, 22, 23]


def test_an_item_keeps_its_side_whatever_is_beside_it():
    whole = split(IDS, {"a": 0.5, "b": 0.5})
    sides = {IDS[i]: name for name, indices in whole.items() for i in indices}
    some = [*IDS[::3], "new.png", *IDS[1::3]][::-1]
    for name, indices in split(some, {"a": 0.5, "b": 0.5}).items():
        assert all(sides.get(some[i], name) == name for i in indices)


def test_a_larger_fraction_only_adds():
    small, large = (set(split(IDS, {"a": f, "b": 1 - f})["a"].tolist()) for f in (0.3, 0.6))
    assert small < large


def test_salts_give_independent_splits():
    first, second = (set(split(IDS, {"a": 0.5, "b": 0.5}, salt)["a"].tolist()) for salt in ("x", "y"))
    assert abs(len(first & second) - 1000) < 120


def test_copies_stay_together():
    parts = split(["same"] * 50, {"a": 0.5, "b": 0.5})
    assert sorted(len(p) for p in parts.values()) == [0, 50]


def test_names_that_are_not_unicode():
    split(["bad\udcff.png"], {"a": 1.0})


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}, {}])
def test_fractions_that_do_not_add_up(fractions):
    with pytest.raises(UserError, match="add up to 1"):
        split(IDS, fractions)


def test_accented_names_of_any_system_have_one_place():
    names = [f"café {i}" for i in range(50)]
    apart = [unicodedata.normalize("NFD", name) for name in names]
    shares = {"a": 0.5, "b": 0.5}
    assert names != apart
    assert split(names, shares)["a"].tolist() == split(apart, shares)["a"].tolist()
