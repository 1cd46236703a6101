"""Two processes against one: the same run, whatever happens to either. Real torchrun, real gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fromscratch.processes.world import World, split_evenly
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from tests.small import SMALL_RUN, run_small, write_run_file

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "FROMSCRATCH_TIMEOUT_SECONDS": "20"}


def command(*arguments: str, processes: int = 2) -> list[str]:
    return [sys.executable, "-m", "fromscratch", "train", *arguments, "--processes", str(processes), "--device", "cpu"]


def train(folder: Path, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, processes=processes),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return dict(load_file(run.checkpoints / "latest" / "model.safetensors"))


def losses(run: RunDirectory) -> list[float]:
    return [record["loss"] for record in read_records(run.metrics)]


@pytest.mark.parametrize(("length", "parts"), [(8, 2), (7, 2), (3, 3), (10, 4), (2, 3)])
def test_split_evenly(length: int, parts: int) -> None:
    bounds = split_evenly(length, parts)
    assert bounds[0][0] == 0 and bounds[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    sizes = [end - begin for begin, end in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_agrees_with_itself() -> None:
    alone = World()
    assert alone.any(True) and not alone.any(False)
    assert alone.sum(2.5) == 2.5 and alone.broadcast({"a": 1}) == {"a": 1}
    assert list(alone.local_shard(range(5))) == [0, 1, 2, 3, 4]


def test_f11_two_processes_equal_one_and_resume_across(tmp_path: Path) -> None:
    """Accumulation in both, dropout on, evaluation shared; then 1 -> 2 and 2 -> 1."""
    file = write_run_file(tmp_path)
    alone, summary = run_small(file, name="alone", micro_batch=2)
    together = train(tmp_path, "small.toml", "--name", "together", "--micro-batch", "2", "--json")
    assert together.returncode == 0, together.stderr
    assert json.loads(together.stdout)["best_loss"] == pytest.approx(summary.best_loss, abs=1e-4)
    run = RunDirectory(tmp_path / "runs" / "together")
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, weights(alone)[name], atol=1e-4, rtol=1e-4)
    assert not any(name.startswith(("module.", "model.")) for name in weights(run))

    run_small(file, name="one-two", stop_after=7)
    assert train(tmp_path, "small.toml", "--name", "one-two").returncode == 0
    stopped = train(tmp_path, "small.toml", "--name", "two-one", "--stop-after", "7")
    assert stopped.returncode == 75, stopped.stderr
    run_small(file, name="two-one")
    for name in ("one-two", "two-one"):
        assert losses(RunDirectory(tmp_path / "runs" / name)) == pytest.approx(losses(alone), abs=1e-5)


def test_bad_input_is_told_once(tmp_path: Path) -> None:
    write_run_file(tmp_path)
    result = train(tmp_path, "small.toml", "--micro-batch", "8")
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1 and "over 2 processes; valid values are 1, 2, 4" in result.stderr
    many = train(tmp_path, "small.toml", processes=9)
    assert many.returncode == 2 and "use at most 8" in many.stderr


def wait_for_step(metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 80
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was never reached")


def long_run(folder: Path) -> Path:
    train_table: dict[str, Any] = {**SMALL_RUN["train"], "evaluate_every": 0, "checkpoint_every": 0}
    write_run_file(folder, train=train_table, data={"tokens": 1_000 * 128, "epochs": 20})
    return folder / "runs" / "small"


def test_f13_a_signal_to_the_launcher_stops_all_at_the_same_step(tmp_path: Path) -> None:
    path = long_run(tmp_path)
    process = subprocess.Popen(
        command("small.toml"), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for_step(path / "metrics.jsonl", 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    status = json.loads((path / "status.json").read_text())
    assert process.returncode == 75, errors
    assert status["state"] == "stopped"
    checkpoints = [entry.name for entry in (path / "checkpoints").glob("step-*")]
    assert checkpoints == [f"step-{status['step']:08}"]


def workers_of(mark: str) -> list[int]:
    """Process ids of the trainers that carry a mark in their environment, main process first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((v for v in environment if v.startswith(b"RANK=")), None)
        if rank is not None and f"FROMSCRATCH_TEST={mark}".encode() in environment and b"fromscratch" in words:
            found.append((int(rank.split(b"=")[1]), int(entry.name)))
    return [pid for _, pid in sorted(found)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")
def test_f16_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    path = long_run(tmp_path)
    mark = str(tmp_path)
    process = subprocess.Popen(
        command("small.toml"),
        cwd=tmp_path,
        env={**ENVIRONMENT, "FROMSCRATCH_TEST": mark},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_step(path / "metrics.jsonl", 5)
    os.kill(workers_of(mark)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=80)
    assert process.returncode not in (0, 75)
    assert "rank" in errors and "SIGKILL" in errors
