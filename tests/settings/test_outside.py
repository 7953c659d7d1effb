"""What lives outside the package is found behind two doors, and nowhere else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import manyviews as mv
from manyviews import methods, recipes
from manyviews.cli import main
from manyviews.errors import UserError
from manyviews.settings import check_saved, load_outside, override, parse
from manyviews.settings.outside import VARIABLE
from manyviews.views import Global

METHOD = '''
"""A method of one's own, of a view of one's own."""

from manyviews.heads import mlp
from manyviews.methods import Branch, Method
from manyviews.objectives import nt_xent
from manyviews.settings import Component, Data, Recipe
from manyviews.views import View

from ._views import Bright


class OwnContrast(Method):
    def __init__(self, encoder, *, view: View = Bright(2, size=32)):
        super().__init__()
        self.views = (view,)
        self.online = Branch(encoder, mlp(encoder.embed_dim, 16, 8))

    @property
    def kept_encoder(self):
        return self.online.encoder

    def loss(self, views, at):
        yield {"nt_xent": nt_xent(*(self.online(views["bright", i]) for i in (0, 1)), 0.5)}


def small() -> Recipe:
    """own_contrast_small"""
    data = Data(canvas=32, batch_size=16)
    backbone = Component("resnet18", {"stem": "small", "channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)})
    return Recipe("own", Component("own_contrast"), backbone, epochs=2, data=data, test_size=32)


def helper() -> int:
    return 1
'''
VIEWS = """
from dataclasses import dataclass

from manyviews.views import Global


@dataclass(frozen=True)
class Bright(Global):
    \"\"\"A global view.\"\"\"

    strength: float = 0.5
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder outside the package, with a method, a recipe and a view."""
    own = tmp_path_factory.mktemp("own")
    (own / "own_contrast.py").write_text(METHOD)
    (own / "_views.py").write_text(VIEWS)
    return own


@pytest.fixture
def folder(own: Path, monkeypatch) -> Iterator[Path]:
    """The folder, named by the variable; files that a test adds to it are removed."""
    monkeypatch.setenv(VARIABLE, f"{own}{os.pathsep}")
    before = set(own.iterdir())
    yield own
    for added in {p for p in own.iterdir() if p.is_file()} - before:
        added.unlink()


def test_a_method_from_a_folder_is_trained_resumed_and_evaluated(folder: Path, tmp_path: Path, monkeypatch):
    assert "own_contrast" in methods.names()
    assert [name for name in recipes.names() if name.startswith("own")] == ["own_contrast_small"]
    assert methods.describe("own_contrast").startswith("A method of one's own")
    assert recipes.get("own_contrast_small").method.settings["view"].strength == 0.5
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
    settings = {"method.view": "Bright(2, size=32, strength=0.25)", "data.holdout": 0}
    run = mv.pretrain(pixels, "own_contrast_small", settings=settings, out=tmp_path / "run")
    again = mv.Run(run.folder)
    assert again.method.views[0].strength == 0.25
    (run.folder / "summary.json").unlink()
    assert mv.resume(run.folder, pixels).summary["steps"] == 6
    assert mv.evaluate(run.folder, (pixels, np.arange(48) % 2), protocols=["knn"], baselines=False)
    # Another process knows nothing of the folder unless it is told.
    script = "import sys, manyviews as mv; print(mv.Run(sys.argv[1]).method.views[0].strength)"
    command, env = [sys.executable, "-c", script, str(run.folder)], dict(os.environ)
    assert subprocess.run(command, env=env, capture_output=True, text=True).stdout == "0.25\n"
    monkeypatch.delenv(VARIABLE)
    del env[VARIABLE]
    refused = subprocess.run(command, env=env, capture_output=True, text=True).stderr.splitlines()[-1]
    assert "There is no setting type 'Bright'" in refused and f"in the environment variable {VARIABLE}." in refused
    with pytest.raises(UserError, match=f"There is no method 'own_contrast'.*{VARIABLE}"):
        methods.get("own_contrast")


def test_each_file_is_imported_once(folder: Path):
    before = methods.get("own_contrast")
    assert methods.get("own_contrast") is before
    (folder / "late.py").write_text("from manyviews.settings import load_outside\nSEEN = len(load_outside())\n")
    load_outside()  # a file that asks for the others while it is imported
    assert "own_contrast" in methods.names()


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("broken.py", "x = = 1", "broken.py of MANYVIEWS_PATH cannot be imported .SyntaxError, line 1"),
        ("raises.py", "raise SystemExit('no\\nmore')", "raises.py of MANYVIEWS_PATH cannot be imported .SystemExit"),
        ("no-name.py", "", "no-name.py of MANYVIEWS_PATH cannot be imported: name it with letters"),
        ("simclr.py", METHOD, "simclr.py defines the method 'simclr', and another one has this name"),
        ("two.py", f"{METHOD}\nclass Two(OwnContrast): pass", "two.py defines the method 'two', and another"),
    ],
)
def test_a_broken_file_is_one_sentence(file: str, text: str, says: str, folder: Path):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=says) as e:
        methods.names()
    assert "\n" not in str(e.value)


def test_a_folder_that_does_not_exist_ends_the_command_with_code_2(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(SystemExit) as ended:
        main(["list", "methods"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'none'}, which is not a folder: correct or unset it.\n")


def test_an_installed_package_offers_methods_and_recipes(tmp_path: Path):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text(METHOD.replace("._views", ".views"))
    (tmp_path / "own_package" / "views.py").write_text(VIEWS)
    info = tmp_path / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    entries = (
        "[manyviews.methods]\nown_contrast = own_package:OwnContrast\n[manyviews.recipes]\nown = own_package:small\n"
    )
    (info / "entry_points.txt").write_text(entries)
    script = "from manyviews import recipes; print(recipes.get('own').method.settings['view'].strength)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True).stdout == "0.5\n"


def test_two_types_of_one_name_are_refused_and_none_takes_a_name_of_the_package(folder: Path):
    for name in ("one", "other"):
        (folder / f"{name}.py").write_text(VIEWS.replace("Bright", "Twice"))
    with pytest.raises(UserError, match=r"Two setting types are named Twice, in .*one.py and .*other.py: rename one"):
        parse("Twice(2)")
    (folder / "third.py").write_text(VIEWS.replace("Global", "Local").replace("Bright", "Global"))
    assert type(parse("Global(2)")) is Global
    theirs = next(found.value for found in load_outside() if found.name == "Global")
    with pytest.raises(UserError, match=r"Setting method.view c"):
        check_saved(override(recipes.get("simclr_tiny"), "method.view", theirs(2)))
