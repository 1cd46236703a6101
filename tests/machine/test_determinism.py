"""``--deterministic``: what it sets before CUDA starts, that a run records it, and what it refuses."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fromscratch.errors import UsageError
from fromscratch.machine.determinism import WORKSPACE, make_deterministic
from tests.command import refused, run_command
from tests.small import run_small, write_run_file


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins and ends with torch's defaults."""
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    for name in (WORKSPACE, "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever a run sets
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def test_everything_is_set_before_cuda_starts() -> None:
    make_deterministic()
    assert os.environ[WORKSPACE] == ":4096:8" and os.environ["TORCHINDUCTOR_DETERMINISTIC"] == "1"
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    make_deterministic()  # again, in the same process


def test_another_workspace_or_a_started_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match=r"CUDA has already started.*CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        make_deterministic()
    monkeypatch.setenv(WORKSPACE, ":16:8")  # set before CUDA started
    make_deterministic()
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UsageError, match="sets CUBLAS_WORKSPACE_CONFIG=:0:0; unset it"):
        make_deterministic()


def test_a_run_records_it_keeps_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, runs = write_run_file(tmp_path), ("--runs-dir", tmp_path / "runs", "--device", "cpu")
    monkeypatch.setenv(WORKSPACE, ":0:0")
    refused("train", file, *runs, "--deterministic", code=2, says="CUBLAS_WORKSPACE_CONFIG=:0:0")
    monkeypatch.delenv(WORKSPACE)
    begun = run_command("train", file, *runs, "--stop-after", 2, "--deterministic")
    assert begun.code == 75 and "deterministic" in begun.err

    def recorded() -> bool:
        return bool(json.loads((tmp_path / "runs" / "small" / "machine.json").read_text("utf-8"))["deterministic"])

    assert recorded()
    torch.use_deterministic_algorithms(False)
    assert run_command("train", file, *runs, "--stop-after", 3).code == 75
    assert recorded() and torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert run_command("train", file, *runs, "--stop-after", 4, "--no-deterministic").code == 75
    assert not recorded() and not torch.are_deterministic_algorithms_enabled()


def test_the_result_on_a_cpu_is_the_same(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    weights = []
    for name, machine in (("plain", {}), ("exact", {"deterministic": True})):
        run, _ = run_small(file, name=name, stop_after=3, machine=machine)
        weights.append((run.checkpoints / "latest" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
