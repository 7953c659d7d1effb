import os
from contextlib import contextmanager

import pytest


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
