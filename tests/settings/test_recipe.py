"""Recipes print, compare, save and are changed by dotted path."""

import dataclasses
import json

import pytest

from manyviews import methods, recipes
from manyviews.errors import UserError
from manyviews.regularizers import Rescue
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Optimizer, check_saved, differences, from_json, override, parse, to_json
from manyviews.views import Color, Cutout, Global


def test_every_recipe_survives_json_and_has_its_command_and_all_settings():
    for name in recipes.names():
        recipe = recipes.get(name)
        again = from_json(to_json(recipe))
        assert again == recipe, name
        assert to_json(again) == to_json(recipe), name
        assert recipe.name == name
        assert name in recipes.describe(name)
        assert recipes.resolve(recipe) == recipe, f"{name}: something is left to fill in"
    for method in methods.names():
        sizes = {name.removeprefix(f"{method}_") for name in recipes.names() if recipes.get(name).method.name == method}
        assert "tiny" in sizes and len(sizes) >= 2, f"{method}: one recipe to try it, and one that a person would run"


def test_override_reaches_every_kind_of_place():
    recipe = recipes.get("byol_tiny")
    schedule = WarmupCosine(warmup=3)
    assert override(recipe, "optimizer.schedule", schedule).optimizer.schedule is schedule  # a value as well as text
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
    # It leaves everything else.
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
        ("data.mean", "gray", "data.mean must be"),
        ("optimizer.name", "adam", "optimizer.name must be"),
        ("optimizer.weight_decay", "much", "must be Constant | Cosine | Linear | Repeat | Stretched | "),
        ("monitor.loggers", "tensorbord", "monitor.loggers must be"),
        ("method.name", "simclr", "choose a recipe of the other method"),
        ("seed.x", "1", "has no part 'x'"),
        (
            "regularizers.rescue.scale",
            "0.5",
            'regularizers is empty in this recipe; set it as a whole, with --set "regularizers=Rescue(scale=..., ...)"',
        ),
        ("method.momentum", "Cosin(1, 2)", "Did you mean 'Cosine'"),
        ("method.momentum", "Cosine(1, 2, 3)", "is not a valid value"),
        ("method.momentum", "Cosine(a, b)", "Cosine.start must be float, not 'a'"),
        ("method.view", "Global(2, color=SIMCLR)", "Global.color must be"),
        ("method.view", "Global(2, sizes=3)", "is not a valid value"),
        ("seed", "{[1]: 2}", "seed must be int"),
        ("method.tasks.local.area", "(0.5, 0.1)", "area"),
        ("method.momentum", "__import__('os')", "There is no schedule or view type '__import__'"),
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
    assert parse("Color(0.1, blur=0.5)") == Color(0.1, blur=0.5)
    for text in ("resnet18", "a b c", "my-run", "[].__class__"):
        assert parse(text) == text


def test_saved_recipes_build_known_types_only():
    with pytest.raises(UserError, match=r"no setting type 'Popen'.*MANYVIEWS_PATH"):
        from_json('{"is": "Popen", "args": "true"}')
    text = json.loads(to_json(recipes.get("byol_tiny")))
    text["optimizer"]["gone"] = 1
    with pytest.raises(UserError, match="does not fit this version"):
        from_json(json.dumps(text))
    with pytest.raises(UserError, match="not JSON"):
        from_json("{")


def test_a_recipe_that_its_file_would_change_is_refused_and_the_setting_is_named():
    recipe = recipes.get("byol_tiny")
    check_saved(recipe)

    @dataclasses.dataclass(frozen=True)
    class Hand:
        fingers: int = 5

    for path, value in (("backbone.layers", [1, 1]), ("backbone.act_layer", print), ("backbone.hand", Hand())):
        with pytest.raises(UserError, match=path):
            check_saved(override(recipe, path, value))


def test_differences_name_the_dotted_path():
    a = recipes.get("simclr_tiny")
    b = dataclasses.replace(a, optimizer=Optimizer("sgd", lr=1.0))
    names = [d[0] for d in differences(a, b)]
    assert {"optimizer.name", "optimizer.lr"} <= set(names) and "data.mean" not in names


def test_old_names_on_the_command_line_are_translated_with_a_sentence(capsys):
    recipe = recipes.get("byol_tiny")
    assert override(recipe, "observe.epochs", "0").monitor.epochs == 0
    assert override(recipe, "observe.trackers", "tensorboard").monitor.loggers == ("tensorboard",)
    assert override(recipe, "step.memory", "all").step.backward == "joint"
    rescued = override(recipe, "rescue", "Rescue(0.5)")
    assert rescued.regularizers == override(recipe, "regularizers", "Rescue(0.5)").regularizers == (Rescue(0.5),)
    assert override(rescued, "rescue.scale", "0.25").regularizers == (Rescue(0.25),)
    assert override(rescued, "rescue", "none").regularizers == ()
    assert override(recipes.get("mae_tiny"), "method.mask_ratio", "0.5").method.settings["masking"].ratio == 0.5
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "Setting observe.epochs is read as monitor.epochs (was observe.epochs).",
        "Setting observe.trackers is read as monitor.loggers (was observe.trackers).",
        "Setting step.memory is read as step.backward (was step.memory), joint (was all).",
        "Setting rescue is read as regularizers (was rescue).",
        "Setting rescue.scale is read as regularizers.rescue.scale (was rescue.scale).",
        "Setting method.mask_ratio is read as method.masking.ratio (was method.mask_ratio).",
    ]
