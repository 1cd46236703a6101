"""A registry of noise of its own for each file of tests; a file may have a fixture of this name for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty registry of noise."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("home")
        patched.setenv("FROMSCRATCH_HOME", str(folder))
        yield folder
