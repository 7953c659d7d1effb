"""Recipes print, compare, save and are changed by dotted path."""

import dataclasses
import json

import pytest

from manyviews import recipes
from manyviews.errors import UserError
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Optimizer, differences, from_json, override, parse, to_json
from manyviews.views import Color, Cutout, Global


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_survives_json(name: str):
    recipe = recipes.get(name)
    again = from_json(to_json(recipe))
    assert again == recipe
    assert to_json(again) == to_json(recipe)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_its_command_and_has_all_settings(name: str):
    recipe = recipes.get(name)
    assert name in recipes.describe(name)
    assert recipe.name == name
    assert recipes.resolve(recipe) == recipe  # nothing is left to fill in


def test_every_method_has_a_recipe_of_each_size():
    from manyviews import methods

    for method in methods.names():
        assert {f"{method}_{size}" for size in ("imagenet", "cifar10", "tiny")} <= set(recipes.names())


def test_override_reaches_every_kind_of_place():
    recipe = recipes.get("byol_tiny")
    assert override(recipe, "optimizer.lr", "0.5").optimizer.lr == 0.5
    assert override(recipe, "epochs", "7").epochs == 7
    assert override(recipe, "data.mean.1", "0.25").data.mean[1] == 0.25
    assert override(recipe, "backbone.name", "resnet34").backbone.name == "resnet34"
    assert override(recipe, "backbone.drop_path_rate", "0.1").backbone.settings["drop_path_rate"] == 0.1
    assert override(recipe, "method.tasks.local.count", "5").method.settings["tasks"][1].count == 5
    assert override(recipe, "method.momentum", "Cosine(0.9, 0.99)").method.settings["momentum"] == Cosine(0.9, 0.99)
    assert override(recipe, "optimizer.clip", "none").optimizer.clip is None
    assert override(recipe, "step.compile", "true").step.compile is True
    assert override(recipe, "monitor.loggers", "tensorboard").monitor.loggers == ("tensorboard",)
    tasks = override(recipe, "method.tasks", "(Global(2, size=32), Cutout(1, size=32))").method.settings["tasks"]
    assert tasks == (Global(2, size=32), Cutout(1, size=32))


def test_override_takes_values_as_well_as_text():
    recipe = recipes.get("byol_tiny")
    schedule = WarmupCosine(warmup=3)
    assert override(recipe, "optimizer.schedule", schedule).optimizer.schedule is schedule


def test_override_leaves_everything_else():
    recipe = recipes.get("byol_tiny")
    changed = override(recipe, "optimizer.lr", "0.5")
    assert differences(recipe, changed) == [("optimizer.lr", recipe.optimizer.lr, 0.5)]
    assert recipe == recipes.get("byol_tiny")


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("optimizer.lrr", "1", "Did you mean 'lr'"),
        ("optimiser.lr", "1", "Did you mean 'optimizer'"),
        ("method.tasks.locals.count", "1", "Did you mean 'local'"),
        ("optimizer.lr", "fast", "optimizer.lr must be float, not 'fast'"),
        ("epochs", "[1]", "epochs must be float"),
        ("data.batch_size", "1.5", "data.batch_size must be int, not 1.5"),
        ("data.mean", "0.5", "data.mean must be"),
        ("optimizer.name", "adam", "optimizer.name must be"),
        ("monitor.loggers", "tensorbord", "monitor.loggers must be"),
        ("method.name", "simclr", "choose a recipe of the other method"),
        ("seed.x", "1", "has no part 'x'"),
        (
            "rescue.scale",
            "0.5",
            'rescue is none in this recipe; set it as a whole, with --set "rescue=Rescue(scale=..., ...)"',
        ),
        ("method.momentum", "Cosin(1, 2)", "Did you mean 'Cosine'"),
        ("method.momentum", "Cosine(1, 2, 3)", "is not a valid value"),
        ("method.momentum", "Cosine(a, b)", "Cosine.start must be float, not 'a'"),
        ("optimizer.schedule", "WarmupCosine(warmup=ten)", "WarmupCosine.warmup must be float, not 'ten'"),
        ("method.view", "Global(2, color=SIMCLR)", "Global.color must be"),
        ("method.view", "Global(2, sizes=3)", "is not a valid value"),
        ("seed", "{[1]: 2}", "seed must be int"),
        ("method.tasks.local.area", "(0.5, 0.1)", "area"),
    ],
)
def test_bad_overrides_are_explained(path: str, text: str, says: str):
    with pytest.raises(UserError) as e:
        override(recipes.get("byol_tiny"), path, text)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_settings_of_a_method_are_checked():
    recipe = recipes.get("byol_tiny")
    with pytest.raises(UserError, match="Did you mean 'hidden_dim'"):
        recipes.resolve(override(recipe, "method.hiden_dim", "3"))
    with pytest.raises(UserError, match="hidden_dim must be int"):
        recipes.resolve(override(recipe, "method.hidden_dim", "wide"))


def test_text_is_parsed_and_never_run():
    assert parse("1e-3") == 1e-3
    assert parse("(1, 'a', None)") == (1, "a", None)
    assert parse("resnet18") == "resnet18"
    assert parse("a b c") == "a b c"
    assert parse("my-run") == "my-run"
    assert parse("Color(0.1, blur=0.5)") == Color(0.1, blur=0.5)
    with pytest.raises(UserError, match="There is no schedule or view type '__import__'"):
        parse("__import__('os')")
    assert parse("[].__class__") == "[].__class__"


def test_saved_recipes_build_known_types_only():
    with pytest.raises(UserError, match="no setting type"):
        from_json('{"is": "Popen", "args": "true"}')
    text = json.loads(to_json(recipes.get("byol_tiny")))
    text["optimizer"]["gone"] = 1
    with pytest.raises(UserError, match="does not fit this version"):
        from_json(json.dumps(text))
    with pytest.raises(UserError, match="not JSON"):
        from_json("{")


def test_differences_name_the_dotted_path():
    a = recipes.get("simclr_tiny")
    b = dataclasses.replace(a, optimizer=Optimizer("sgd", lr=1.0))
    names = [d[0] for d in differences(a, b)]
    assert "optimizer.name" in names
    assert "optimizer.lr" in names
    assert "data.mean" not in names
