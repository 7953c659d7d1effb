"""What the command line says to a person who guesses: help, nearest names, short options, and the device."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Literal

import pytest

import manyviews as mv
from manyviews import cli, machine
from manyviews.cli._options import NO_HINTS, Hints, with_short
from manyviews.cli._parser import Arg, call, help_of, parse


def verb(
    where: str,
    runs: tuple[int, ...] = (),
    /,
    rate: float | None = None,
    kind: Literal["a", "b"] = "a",
    many: tuple[float, ...] = (0.5,),
    one: Annotated[tuple[str, ...], Arg("X=Y", repeat=True)] = (),
    yes: bool = True,
    no: bool = False,
    hints: Hints = NO_HINTS,
) -> None:
    """Do it.

    For example:
      manyviews verb here 1 2

    Args:
        rate: A rate of 50 %.
    """
    heard.append((where, runs, rate, kind, many, one, yes, no, hints))


heard: list[tuple] = []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("here", {}),
        ("here 1 2 --rate 1e-3", {"runs": (1, 2), "rate": 1e-3}),
        ("--kind b here", {"kind": "b"}),
        ("here --kind=b --no-yes --no", {"kind": "b", "yes": False, "no": True}),
        ("here 1 --many -3 0.5 --yes", {"runs": (1,), "many": (-3.0, 0.5)}),
        ("--one a=b --one=c=--d here 7", {"one": ("a=b", "c=--d"), "runs": (7,)}),
        ("--test_size 5 here --mean 0.1 0.2 0.3", {"hints": Hints(test_size=5, mean=(0.1, 0.2, 0.3))}),
        ("-- --here", {"where": "--here"}),
    ],
)
def test_a_command_line_calls_the_function_with_typed_values(words: str, expected: dict):
    heard.clear()
    call(verb, parse("verb", verb, words.split()))
    names = list(inspect.signature(verb).parameters)
    defaults = {n: p.default for n, p in inspect.signature(verb).parameters.items()}
    assert dict(zip(names, heard[0], strict=True)) == defaults | {"where": "here"} | expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "verb needs WHERE, for example `manyviews verb here 1 2`."),
        ("--rate 1", "verb needs WHERE: see"),
        ("here x", "RUNS takes a whole number, not 'x'."),
        ("here --rate fast", "--rate takes a number, not 'fast'."),
        ("here --rate", "--rate needs a value"),
        ("here --kind c", "--kind of verb is one of a, b, not 'c'."),
        ("here --rat 1", "no option '--rat'. Did you mean '--rate'?"),
        ("here -r 1", "no option '-r'"),
        ("here --no-rate", "no option '--no-rate'. Did you mean '--rate'?"),
        ("here --no=1", "--no takes no value"),
    ],
)
def test_a_bad_command_line_is_one_sentence(words: str, says: str):
    with pytest.raises(mv.UserError) as e:
        parse("verb", verb, words.split())
    assert says in str(e.value)


@pytest.mark.parametrize("name", cli.VERBS)
def test_the_help_is_for_people(name: str, monkeypatch):
    """Every argument is explained, defaults are shown, and no type theory is."""
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(name, cli.VERBS[name], [] if name in cli.WITHOUT_DEVICE else [cli.DEVICE])
    assert not re.search(r"None|\bSTR\b|\bINT\b|Literal|tuple|Optional|\| ", text), text
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("  --") and not re.search(r"\S  +\S", line):
            assert lines[i + 1].startswith(" " * 8), f"{name}: {line.strip()} is not explained"
    assert max(map(len, text.partition("arguments:")[2].splitlines() or [""])) <= 100


def test_a_verb_that_does_not_exist_is_understood(manyviews):
    meant = {
        "train": "pretrain",
        "pretrian": "pretrain",
        "eval": "evaluate",
        "test": "evaluate",
        "features": "embed",
        "dedup": "duplicates",
        "convert": "export",
        "continue": "resume",
        "info": "show",
        "recipes": "list",
    }
    for word, found in meant.items():
        result = manyviews(word)
        assert result.code == 2 and f"Did you mean '{found}'" in result.err, result.err
    assert manyviews("help").out == manyviews("--help").out
    assert manyviews("help", "embed").out == manyviews("embed", "--help").out
    assert manyviews("--version").out == f"manyviews {mv.__version__}\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pretrain x --recipe simclr_cpu --batchsize 3", "'--batch-size'"),
        ("pretrain x --recipe simclr_cpu --learning-rate 3", "'--lr'"),
        ("pretrain x --recipe simclr_cpu --weight-decay 3", "'--set optimizer.weight_decay=VALUE'"),
        ("pretrain x --recipe simclr_cpu --temperature=3", "'--set method.temperature=VALUE'"),
        ("pretrain x --recipe simclr_cpu --cuda", "'--device cuda'"),
        ("pretrain x --recipe simclr_cpu --device gpu", "Did you mean 'cuda'"),
        ("pretrain x --recipe simclr_cpu --device cuda:1", "CUDA_VISIBLE_DEVICES=1"),
        ("pretrain x --recipe simclr_cpu --num-workers 3", "with as many threads as cores"),
        ("embed x y --workers 3", "with as many threads as cores"),
        ("pretrain x --recipe simclr_cpu --gpus 3", "torchrun --nproc-per-node"),
        ("evaluate x --data y --lr 3", "--set finetune.lrs=0.01,0.05"),
        ("embed x y --batch-size 3", "chooses by itself"),
        ("sweep x --recipe simclr_cpu --seed 3", "choose how many with --seeds"),
        ("resume x --lr 3", "belongs to the settings of the run"),
        ("pretrain x --recipe simclr_cpu --lr 1 --set optimizer.lr=2", "both set optimizer.lr"),
        ("list recipe", "Did you mean 'recipes'"),
        ("list recipes simclr_cpux", "Did you mean 'simclr_cpu'? `manyviews list recipes` lists all"),
    ],
)
def test_an_option_that_does_not_exist_is_understood(line: str, says: str, manyviews):
    result = manyviews(*line.split())
    assert result.code == 2 and says in result.err, result.err
    assert result.err.startswith("manyviews: ") and result.err.count("\n") == 1


def test_short_options_are_settings(manyviews, monkeypatch):
    given = {}
    monkeypatch.setattr(mv, "pretrain", lambda *a, **k: given.update(k, device=str(machine.device())))
    monkeypatch.setattr(cli.train, "show_finished", lambda *a: None)
    monkeypatch.delenv(machine.DEVICE, raising=False)
    line = "pretrain x --recipe simclr_cpu --epochs 2 --batch-size 8 --lr 0.1 --seed 3 --set a.b=c --device cpu"
    assert manyviews(*line.split()).code == 0
    short = {"data.batch_size": 8, "optimizer.lr": 0.1, "seed": 3}
    assert given["settings"] == {"a.b": "c", **short} and given["epochs"] == 2 and given["device"] == "cpu"
    assert with_short(("a=b",), lr=None) == {"a": "b"}


def test_a_chosen_device_is_forgotten_afterwards(monkeypatch):
    monkeypatch.setenv(machine.DEVICE, "xpu")
    monkeypatch.setattr(machine, "available", lambda kind: True)
    with machine.using("mps"):
        assert machine.device().type == "mps"
    assert machine.device().type == "xpu"
    with machine.using(None):
        assert machine.device().type == "xpu"


def test_list_says_everything_about_one(manyviews, tmp_path):
    for kind, name, words in (
        ("recipes", "simclr_demo", ("data.batch_size=128", "pretrain DATA --recipe simclr_demo", "minutes on two CPU")),
        ("methods", "simclr", ("method.temperature=0.1", "photos_cpu_small", "Chen et al. 2020")),
        ("views", "Cutout", ("hole=(0.2, 0.4)", "hole's fraction")),
        ("protocols", "finetune", ("finetune.epochs=(30, 50)", "--protocol finetune --set finetune.")),
        ("backbones", "resnet18", ("timm:resnet18.", "--init timm:resnet18.")),
    ):
        result = manyviews("list", kind, name, "--json", tmp_path / "x.json")
        assert result.code == 0 and all(word in result.out for word in words), result.out
        assert f'"name": "{name}"' in (tmp_path / "x.json").read_text()
    assert "vit_tiny_patch16_224" in manyviews("list", "backbones", "vit_tiny*").out
