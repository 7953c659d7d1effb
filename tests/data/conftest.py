import os
from contextlib import contextmanager

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def without_privileges():
    """A context in which the tests act as an ordinary user, even where they run as root."""

    @contextmanager
    def dropped():
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return dropped


@pytest.fixture(autouse=True)
def _empty_stores(tmp_path_factory, monkeypatch):
    """An empty store behind memory://, and a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def requests(monkeypatch):
    """(path, start, stop) of each request for bytes, in order."""
    made = []
    for kind in (MemoryFileSystem, LocalFileSystem):
        original = kind.cat_file

        def cat_file(self, path, start=None, end=None, original=original, **options):
            made.append((path, start, end))
            return original(self, path, start, end, **options)

        monkeypatch.setattr(kind, "cat_file", cat_file)
    return made
