"""Run folders that somebody hands you: they run nothing, read and write nothing elsewhere, and call no server."""

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import manyviews as mv
from manyviews import checkpoint, recipes
from manyviews.cli import main
from manyviews.data import files
from manyviews.engine.build import build_method, encoder_facts
from manyviews.engine.folder import CHECKPOINT, ENCODER, LOG, RECIPE, RUN, SUMMARY, RunFolder, create
from manyviews.settings import from_json, override, to_json

NASTY = "x\x1b[2J\x1b]0;owned\x07\u202e\n|</script><img src=x onerror=alert(1)>`[a](javascript:b)"


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> Iterator[list[Any]]:
    """The addresses to which anything connected: none, at the end of each test."""
    found: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        found.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: connect(None, args))
    yield found
    assert not found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of the smallest method that has been stopped after its first checkpoint."""
    recipe = override(recipes.get("simclr_tiny"), "data.holdout", 0)
    out = tmp_path_factory.mktemp("made") / "run"

    def start(folder: RunFolder) -> None:
        method = build_method(recipe)
        weights = {f"method.{k}": x for k, x in method.state_dict().items()}
        facts = {"step": 0, "seconds": 0.0, "recipe": to_json(recipe)}
        checkpoint.save_tensors(folder.checkpoint, weights, facts)
        checkpoint.save_tensors(
            folder.encoder, method.kept_encoder.model.state_dict(), encoder_facts(method.kept_encoder, recipe, 0)
        )

    create(out, recipe, {"data": "/nowhere", "images": 24, "id": "0"}, start)
    (out / LOG).write_text('{"step": 0, "loss": 1.0}\n')
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def with_data(run: Path, **places: str) -> None:
    edit(run / RUN, lambda facts: facts.update(places))


# -- servers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/x.tar",
        "simplecache::http://127.0.0.1:9/x.tar",
        "zip://x.tar::http://127.0.0.1:9/x.zip",
        "reference://x::http://127.0.0.1:9/x.json",
        "file://x::http://127.0.0.1:9/",
        "s3://bucket/x-{000..999}.parquet",
        "hf://datasets/someone/photos",
    ],
)
@pytest.mark.parametrize("place", ["data", "captions", "old"])
def test_a_foreign_run_contacts_no_server(address: str, place: str, run: Path):
    with_data(run, **{place: address})
    for verb in (mv.resume, mv.finish) if place == "data" else (mv.resume,):
        with pytest.raises(mv.UserError, match=r"begun by somebody else.*would contact .*--trust"):
            verb(run)


def test_nor_by_way_of_a_list_that_it_brings(run: Path):
    """A list of `manyviews curate` names the source of its images. Such a list contacts a server in no run at all."""
    images = run / "images.csv"
    images.write_text("id,position,kept\na,0,yes\n")
    (run / "images.csv.json").write_text('{"data": "http://127.0.0.1:9/x.tar"}')
    with_data(run, data=str(images))
    with pytest.raises(mv.UserError, match="A list may come from anybody, so no server is asked"):
        mv.resume(run)
    with_data(run, old=str(images))
    with pytest.raises(mv.UserError, match="A list may come from anybody, so no server is asked"):
        mv.resume(run, "demo:test")


def test_nor_that_of_a_logger_or_of_weights_to_start_from(run: Path):
    edit(run / RECIPE, lambda recipe: recipe["monitor"].update(loggers=["wandb"]))
    with pytest.raises(mv.UserError, match="wandb's server"):
        mv.resume(run)
    edit(run / RECIPE, lambda recipe: recipe["monitor"].update(loggers=[]))
    edit(run / RECIPE, lambda recipe: recipe["backbone"]["settings"].update(pretrained=True))
    (run / CHECKPOINT).unlink()
    with pytest.raises(mv.UserError, match=r"huggingface\.co"):
        mv.resume(run)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/etc"])
def test_a_backbone_is_one_of_timms_and_not_an_address(name: str, run: Path):
    edit(run / RECIPE, lambda recipe: recipe["backbone"].update(name=name))
    with pytest.raises(mv.UserError):
        _ = mv.Run(run).method
    tensors, facts = checkpoint.load_tensors(run / ENCODER)
    facts["encoder"]["name"] = name
    checkpoint.save_tensors(run / ENCODER, tensors, facts)
    with pytest.raises(mv.UserError):
        mv.load(run / ENCODER)


def test_ones_own_run_goes_on_without_a_question(tmp_path: Path, made: Path):
    """As a scheduler starts it again, also in another place; somebody else's, and an edited one, do not."""
    recipe = RunFolder(made).recipe
    mine = create(tmp_path / "mine", recipe, {"data": "http://127.0.0.1:9/x.tar", "id": "1"})
    assert not mine.asks()
    moved = RunFolder(Path(shutil.copytree(mine.path, tmp_path / "moved")))
    assert not moved.asks()
    with_data(moved.path, data="http://127.0.0.1:10/x.tar")
    assert RunFolder(moved.path).asks() == ["http://127.0.0.1:10/x.tar"]
    assert not RunFolder(moved.path).asks(data="photos/")
    RunFolder(moved.path).sign()  # as --trust does
    assert not RunFolder(moved.path).asks()
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "of somebody else")
    assert mine.asks()
    key = Path(os.environ["XDG_STATE_HOME"]) / "manyviews" / "key"
    assert not key.exists()
    RunFolder(moved.path).sign()
    assert key.stat().st_mode & 0o777 == 0o600


# -- links, pipes and devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LOG, RUN, SUMMARY, CHECKPOINT, ".lock", "plots/loss.png", "plots", "features"])
def test_nothing_is_written_through_a_link(name: str, run: Path, tmp_path: Path):
    victim = tmp_path / "victim"
    content = (run / name).read_bytes() if (run / name).is_file() else b"three years of work"
    victim.write_bytes(content) if "." in name else victim.mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    with pytest.raises(mv.UserError, match=f"{name} is a link, and writing"), RunFolder(run).lock():
        pass
    assert victim.is_dir() or victim.read_bytes() == content


@pytest.mark.parametrize(
    ("facts", "says"), [({}, "pass them again"), ({"early": {"since": 1, "of": 4, "over": 0}}, "is damaged")]
)
def test_facts_that_a_run_needs_are_asked_for(facts: dict, says: str, run: Path):
    (run / RUN).write_text(json.dumps(facts))
    with pytest.raises(mv.UserError, match=says):
        mv.resume(run)


def test_a_folder_that_is_itself_a_link_is_fine(run: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(run)
    with RunFolder(tmp_path / "link").lock():
        assert (run / ".lock").exists()


@pytest.mark.parametrize("name", [RECIPE, RUN, LOG, SUMMARY, CHECKPOINT, ENCODER, "evaluations/1/report.json"])
def test_a_pipe_or_a_device_is_not_waited_for(name: str, run: Path):
    for kind in ("pipe", "device"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        done = threading.Event()

        def look(done: threading.Event = done) -> None:
            for verb in ("show", "resume"):
                with contextlib.suppress(SystemExit):
                    main([verb, str(run)])
            done.set()

        threading.Thread(target=look, daemon=True).start()
        assert done.wait(30), f"{name} as a {kind} was waited for"


def test_braces_of_a_run_do_not_fill_the_memory(run: Path):
    for data in ("{0..99999999}.tar", "{0..9999}{0..9999}.tar", "{" + "9" * 5000 + "..1}.tar"):
        with_data(run, data=data)
        with pytest.raises(mv.UserError):
            mv.resume(run)
    assert len(files._expand("{000..099}-{a,b}.tar")) == 200


# -- settings ------------------------------------------------------------------------------------------------------


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        *keys, last = path.split(".")
        for key in keys:
            found = found[key]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("optimizer.name", "adamww", "optimizer.name must be .*'adamw'"),
        ("optimizer.lrr", 1.0, "no setting of Optimizer 'lrr'. Did you mean 'lr'"),
        ("method.settings.temprature", 0.1, "temprature.*Did you mean 'temperature'"),
        ("method.settings.temperature", "hot", "temperature must be"),
        ("data.batch_size", 0, "batch_size must be 1 or more"),
        ("optimizer.lr", None, "optimizer.lr must be"),
        ("data", [], "data must be"),
        ("stages", [{"is": "Stage", "epochs": 1, "settings": {"optimizer.lrr": 1}, "optimizer": "carried"}], "lrr"),
        ("optimizer.schedule.is", "os.system", "no setting type 'os.system'"),
        ("optimizer.schedule.is", [1], "recipe.json"),
    ],
)
def test_a_recipe_is_checked_as_that_of_pretrain(path: str, value: Any, says: str, run: Path):
    edit(run / RECIPE, _set(path, value))
    with pytest.raises(mv.UserError, match=says):
        mv.resume(run)


def test_changed_settings_are_refused_and_others_noted(run: Path, capsys):
    from manyviews.engine.settings import compare

    saved = checkpoint.facts_of(run / CHECKPOINT)
    compare(RunFolder(run), saved)
    compare(RunFolder(run), {})  # of before recipes were kept in checkpoints
    edit(run / RECIPE, _set("monitor.steps", 7))
    for _ in range(2):
        compare(RunFolder(run), saved)
    (note,) = RunFolder(run).facts["changed"]
    assert note["setting"] == "monitor.steps" and note["now"] == "7" and note["step"] == 0
    assert "From step 0 on, monitor.steps is 7" in capsys.readouterr().err
    for path, value in (("optimizer.lr", 0.5), ("seed", 7), ("method.settings.temperature", 0.7)):
        edit(run / RECIPE, _set(path, value))
    with pytest.raises(
        mv.UserError, match=r"has changed .*temperature was .* and is 0.7.*lr was .* is 0.5.*seed was 0"
    ):
        compare(RunFolder(run), saved)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["is", "name", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_RECIPE = json.loads(to_json(recipes.get("simclr_tiny")))


def _paths(x: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield from _paths(value, (*path, key))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([path for path in _paths(_RECIPE) if path]), _JSON, st.integers(0, 9))
def test_no_recipe_gives_anything_but_a_recipe_or_a_sentence(path: tuple[Any, ...], value: Any, mode: int):
    found = json.loads(json.dumps(_RECIPE))
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    text = json.dumps(found)
    try:
        recipe = from_json(text[: len(text) // 2] if mode == 0 else text)
        assert isinstance(recipe, type(recipes.get("simclr_tiny")))
        from manyviews.engine.folder import _checked

        assert from_json(to_json(_checked(recipe))) is not None
    except mv.UserError as error:
        assert str(error)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    facts=st.dictionaries(st.sampled_from(["data", "captions", "old", "early", "id", "changed"]), _JSON), summary=_JSON
)
def test_no_facts_and_no_summary_give_anything_but_a_sentence(facts: Any, summary: Any, made: Path):
    folder = RunFolder(made)
    before = (made / RUN).read_bytes()
    try:
        (made / RUN).write_text(json.dumps(facts))
        (made / SUMMARY).write_text(json.dumps(summary))
        with contextlib.suppress(mv.UserError):
            _ = folder.summary, folder.asks()
    finally:
        (made / RUN).write_bytes(before)
        (made / SUMMARY).unlink()


# -- names and texts -----------------------------------------------------------------------------------------------


def _nasty(run: Path) -> None:
    with_data(run, data="/nowhere/" + NASTY, machine=NASTY, started=NASTY)
    edit(run / RECIPE, lambda recipe: recipe.update(name=NASTY))
    (run / LOG).write_text(json.dumps({"step": 0, "loss": 1.0, "alarm": NASTY, NASTY: 1.0}) + "\n")
    (run / SUMMARY).write_text(json.dumps({"steps": 1, "seconds": 1.0, "last": {}, "bad": [[NASTY, NASTY]]}))


def test_texts_of_a_run_do_not_reach_the_terminal_as_they_are(run: Path, capsys):
    _nasty(run)
    for more in ([], ["--settings"]):
        main(["show", str(run), *more])
    with pytest.raises(SystemExit):
        main(["resume", str(run), "--epochs", "1"])
    said = "".join(capsys.readouterr())
    assert "owned" in said and not any(c in said for c in "\x1b\x07\u202e")


def test_nor_a_page_or_a_model_card(run: Path, tmp_path: Path):
    from manyviews.weights.card import card

    _nasty(run)
    html = mv.report([run], tmp_path / "page").read_text()
    assert "onerror=alert" in html and "<img src=x" not in html and "</script><" not in html
    assert "default-src 'none'" in html
    text = card(mv.load(run))
    assert "owned" in text and not any(c in text for c in "\x1b\x07\u202e")
    (row,) = (line for line in text.splitlines() if line.startswith("| Recipe"))
    assert "\\[a\\]" in row and "\\<img" in row and "\\|" in row


class Touch:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_place_of_a_checkpoint_or_an_encoder_is_not_run(run: Path, tmp_path: Path):
    for name in (CHECKPOINT, ENCODER):
        torch.save({"x": Touch(tmp_path / "ran")}, run / name)
    for use in (mv.load, mv.resume, mv.finish, lambda folder: mv.Run(folder).method):
        with pytest.raises(mv.UserError):
            use(run)
    assert not (tmp_path / "ran").exists()
