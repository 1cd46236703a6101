"""A resume takes as many threads as the session before it: another number adds in another order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fromscratch.files import read_json_object
from fromscratch.session.placement import THREADS_VARIABLES, Threads
from tests.small import write_run_file


def train(folder: Path, *arguments: str, threads: int | None) -> str:
    """Runs ``fromscratch train`` where torch finds so many cores; returns what it told the user."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS_VARIABLES}
    begin = f"import torch; torch.set_num_threads({threads})" if threads else "import torch"
    code = f"{begin}; import sys; sys.argv[0] = 'fromscratch'; from fromscratch.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", "small.toml", "--device", "cpu", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 75), done.stderr
    return done.stderr


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_resume_has_as_many_threads(tmp_path: Path) -> None:
    write_run_file(tmp_path)
    machine = tmp_path / "runs" / "small" / "machine.json"
    train(tmp_path, "--stop-after", "2", threads=2)
    assert read_json_object(machine)["threads"] == 2
    assert "continues with its earlier 2 threads" in train(tmp_path, "--stop-after", "4", threads=1)
    assert "threads" not in train(tmp_path, "--stop-after", "5", threads=2)
    assert read_json_object(machine)["threads"] == 2
    train(tmp_path, "--fresh", "--stop-after", "2", threads=1)
    assert read_json_object(machine)["threads"] == 1, "another run, another choice"


def test_who_asks_for_another_number_gets_it_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    now = torch.get_num_threads()
    assert not Threads(None).notice and not Threads(now).notice
    assert re.search("had 4096 threads and continues with", Threads(4096).notice), "no machine has so many"
    monkeypatch.setenv("OMP_NUM_THREADS", str(now))
    assert f"OMP_NUM_THREADS={now + 1} makes" in Threads(now + 1).notice
    Threads(now + 1).restore()
    assert torch.get_num_threads() == now
