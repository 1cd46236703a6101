"""A resume takes as many threads as the session before it: another number adds in another order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fromscratch.files import read_json_object
from fromscratch.session.placement import THREADS_VARIABLES, Threads
from tests.command import run_command
from tests.small import write_run_file


@pytest.fixture
def _own_threads() -> Iterator[None]:
    """Puts the number of threads of this process back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(*arguments: str, threads: int) -> str:
    """Runs ``fromscratch train`` where torch finds so many cores; returns what it told the user."""
    torch.set_num_threads(threads)
    answer = run_command("train", "small.toml", "--device", "cpu", *arguments)
    assert answer.code in (0, 75), answer.err
    return answer.err


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.usefixtures("_own_threads")
def test_a_resume_has_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREADS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_run_file(tmp_path)
    machine = tmp_path / "runs" / "small" / "machine.json"
    train("--stop-after", "2", threads=2)
    assert read_json_object(machine)["threads"] == 2
    assert "continues with its earlier 2 threads" in train("--stop-after", "4", threads=1)
    assert torch.get_num_threads() == 2
    assert "threads" not in train("--stop-after", "5", threads=2)
    assert read_json_object(machine)["threads"] == 2
    train("--fresh", "--stop-after", "2", threads=1)
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
