"""Fixtures that every stage's tests may use."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real image sets are not beside this repository")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory) -> None:
    """The key with which runs are signed is none of the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
