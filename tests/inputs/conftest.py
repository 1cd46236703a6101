"""A folder with a small store and a run that was trained on it, entered by every test here."""

from pathlib import Path

import pytest

from tests.command import run_command
from tests.small import enter_copy, write_run_file


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_run_file(folder)
    answer = run_command("train", folder / "small.toml", "--runs-dir", folder / "runs", "--quiet")
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def world(_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder of the test."""
    return enter_copy(_trained, tmp_path, monkeypatch)
