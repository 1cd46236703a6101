"""A run file to change, for the tests of the config."""

from collections.abc import Callable
from pathlib import Path

import pytest

WriteRunFile = Callable[..., Path]


@pytest.fixture
def run_file(tmp_path: Path) -> WriteRunFile:
    """Writes a run file; by default the smallest that is valid."""

    def write(text: str = '[data]\nstore = "corpus"\n', name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write
