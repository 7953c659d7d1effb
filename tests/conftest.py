"""Fixtures that every stage's tests may use."""

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


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
