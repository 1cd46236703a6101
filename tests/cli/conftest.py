"""Two runs that the tests of ``fromscratch runs`` share."""

from pathlib import Path

import pytest

from tests.command import run_command
from tests.small import enter_copy, write_run_file


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run_file(folder)
    for name, more in (("whole", []), ("half", ["--stop-after", "7"])):
        runs = ("--runs-dir", folder / "runs", "--name", name, "--quiet")
        assert run_command("train", folder / "small.toml", *runs, *more).code == (75 if more else 0)
    return folder


@pytest.fixture
def world(_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of two runs, the current folder: ``whole`` is done, ``half`` was stopped at step 7."""
    return enter_copy(_trained, tmp_path, monkeypatch)
