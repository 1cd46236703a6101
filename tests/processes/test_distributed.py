"""Two processes against one: the same run, whatever happens to either. Real torchrun, real gloo."""

import json
import os
import signal
import socket
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fromscratch.errors import FromScratchError
from fromscratch.processes.rendezvous import session_store
from fromscratch.processes.world import World, split_evenly
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from tests.processes.forked import Command, Fork, agent, fromscratch
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_recurrent import run_file as recurrent_run_file

TIMEOUT = {"FROMSCRATCH_TIMEOUT_SECONDS": "20"}


def launch(folder: Path, *arguments: str, processes: int = 2, **environment: str) -> Fork:
    """``fromscratch train --processes N``: the launcher is a fork, and starts its workers anew."""
    words = ("train", *arguments, "--processes", str(processes), "--device", "cpu")
    return Fork(Command(fromscratch, words, folder, TIMEOUT | environment))


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return dict(load_file(run.checkpoints / "latest" / "model.safetensors"))


def losses(run: RunDirectory, name: str = "loss") -> list[float]:
    return [record[name] for record in read_records(run.metrics)]


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


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_in_vain_says_so(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    facts = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FromScratchError, match=rf"rank {rank}: not all 2 processes joined within 1 s"):
        session_store(timedelta(seconds=1))


def test_f11_two_processes_equal_one_and_resume_across(tmp_path: Path) -> None:
    """Accumulation in both, dropout and an auxiliary loss on, evaluation shared; then 1 -> 2 and 2 -> 1."""
    file = write_run_file(tmp_path, model={"head": {"kind": "chunked", "z_loss": 0.01}})
    alone, summary = run_small(file, name="alone", micro_batch=2)
    together = launch(tmp_path, "small.toml", "--name", "together", "--micro-batch", "2", "--json")
    assert together.wait() == 0, together.stderr
    assert json.loads(together.stdout)["best_loss"] == pytest.approx(summary.best_loss, abs=1e-4)
    run = RunDirectory(tmp_path / "runs" / "together")
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(run, "z_loss") == pytest.approx(losses(alone, "z_loss"), rel=1e-4)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, weights(alone)[name], atol=1e-4, rtol=1e-4)
    assert not any(name.startswith(("module.", "model.")) for name in weights(run))

    run_small(file, name="one-two", stop_after=7)
    words = ("train", "small.toml", "--device", "cpu", "--name", "one-two")
    resumed = Fork(Command(agent, (["--nproc-per-node=2"], fromscratch, *words), tmp_path, TIMEOUT))
    assert resumed.wait() == 0, resumed.stderr
    stopped = launch(tmp_path, "small.toml", "--name", "two-one", "--stop-after", "7")
    assert stopped.wait() == 75, stopped.stderr
    run_small(file, name="two-one")
    for name in ("one-two", "two-one"):
        assert losses(RunDirectory(tmp_path / "runs" / name)) == pytest.approx(losses(alone), abs=1e-5)


def test_f11_the_state_of_a_lane_belongs_to_the_lane(tmp_path: Path) -> None:
    """A recurrent model in two processes, whose carries are gathered on save; then 1 -> 2, in the second epoch."""
    file = recurrent_run_file(tmp_path)
    alone, summary = run_small(file, name="alone")
    run_small(file, name="one-two", stop_after=summary.num_steps // 2 + 3)
    continued = launch(tmp_path, "small.toml", "--name", "one-two", "--json")
    assert continued.wait() == 0, continued.stderr
    run = RunDirectory(tmp_path / "runs" / "one-two")
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    assert json.loads(continued.stdout)["best_loss"] == pytest.approx(summary.best_loss, abs=1e-5)
    carries = [load_file(path.checkpoints / "latest" / "carry.safetensors") for path in (run, alone)]
    for name, tensor in carries[0].items():
        torch.testing.assert_close(tensor, carries[1][name], atol=1e-4, rtol=1e-4)


def test_bad_input_is_told_once(tmp_path: Path) -> None:
    write_run_file(tmp_path)
    result = launch(tmp_path, "small.toml", "--micro-batch", "8")
    assert result.wait() == 2
    assert result.stderr.count("error:") == 1 and "over 2 processes; valid values are 1, 2, 4" in result.stderr
    many = launch(tmp_path, "small.toml", processes=9)
    assert many.wait() == 2 and "use at most 8" in many.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_step(metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 80
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was never reached")


def long_run(folder: Path) -> Path:
    train_table: dict[str, Any] = {**SMALL_RUN["train"], "evaluate_every": 0, "checkpoint_every": 0}
    write_run_file(folder, train=train_table, data={"tokens": 400_000 * 128, "epochs": 10_000})
    return folder / "runs" / "small"


def test_f13_a_signal_to_the_launcher_stops_all_at_the_same_step(tmp_path: Path) -> None:
    path = long_run(tmp_path)
    launcher = launch(tmp_path, "small.toml")
    wait_for_step(path / "metrics.jsonl", 5)
    launcher.send(signal.SIGTERM)
    code = launcher.wait()
    status = json.loads((path / "status.json").read_text())
    assert code == 75, launcher.stderr
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
    launcher = launch(tmp_path, "small.toml", FROMSCRATCH_TEST=mark)
    wait_for_step(path / "metrics.jsonl", 5)
    os.kill(workers_of(mark)[1], signal.SIGKILL)
    assert launcher.wait() not in (0, 75)
    assert "rank" in launcher.stderr and "SIGKILL" in launcher.stderr
