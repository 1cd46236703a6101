"""What goes wrong in one process of two, and what both do about it. Real torchrun, real gloo.

The cases are in ``world_cases.py`` (one start of two processes for all of them) and, where a process
must die or hang, in ``faulty.py``.
"""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.errors import FromScratchError
from fromscratch.processes.restarts import check_crashes
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event
from fromscratch.training.gradients import Outcome
from tests.processes import faulty, world_cases
from tests.processes.forked import Command, Fork, agent, fromscratch
from tests.processes.test_distributed import TIMEOUT, long_run, losses, wait_for_step, weights
from tests.small import write_run_file
from tests.training.test_objective import recurrent as recurrent_steps

TWO = ["--nproc-per-node=2"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The findings of both processes, the main one's first."""
    folder = tmp_path_factory.mktemp("cases")
    write_run_file(folder)
    torchrun = Fork(Command(agent, (TWO, world_cases.main, Path("small.toml")), folder, TIMEOUT))
    assert torchrun.wait() == 0, torchrun.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_f11_the_carry_of_two_processes_is_that_of_one(cases: list[dict[str, Any]]) -> None:
    main, other = (case["carry"] for case in cases)
    alone = recurrent_steps(2)
    for step in range(3):
        alone.take(step, 1.0)
    assert main["whole"] == main["local"] + other["local"]
    torch.testing.assert_close(torch.tensor(main["whole"]), alone.carry["hidden"], atol=1e-5, rtol=1e-4)
    assert (main["loaded"], other["loaded"]) == (main["local"], other["local"])
    assert main["loss"] == other["loss"] == pytest.approx(float(alone.take(3, 1.0).loss), abs=1e-4)


@pytest.mark.parametrize("policy", ["skip", "raise", "random-step", "apply"])
def test_f19_an_infinity_in_one_process_is_one_for_all(cases: list[dict[str, Any]], policy: str) -> None:
    main, other = (case["policies"][policy] for case in cases)
    assert main == other, "bitwise equal weights and moments, all along"
    assert main["outcome"] == Outcome.NONFINITE
    (weights_before, moments_before), (weights_after, moments_after) = main["before"], main["after"]
    assert (weights_before == weights_after) == (policy in ("skip", "raise"))
    assert (moments_before == moments_after) == (policy != "apply"), "f20: though gradients were clipped"
    assert main["finite"] == (policy != "apply") and main["last"] != weights_after


def test_f19_raise_ends_all(cases: list[dict[str, Any]]) -> None:
    assert {case["raises"] for case in cases} == {cases[0]["raises"]}
    assert cases[0]["raises"].startswith("diverged at step 1")


def test_f19_a_nan_loss_in_one_process_skips_the_step_in_all(cases: list[dict[str, Any]]) -> None:
    main, other = (case["nan_loss"] for case in cases)
    assert main["before"] == main["after"] == other["before"] == other["after"]
    assert main["weights"] == other["weights"] and main["events"] == 1
    assert main["outcomes"].count("nonfinite") == 1 and main["losses"][7] is None
    assert main["losses"][:7] == cases[0]["undisturbed"]["losses"][:7]


def test_f20_the_scaler_of_all_halves(cases: list[dict[str, Any]]) -> None:
    assert cases[0]["scale"] == cases[1]["scale"]
    found = cases[0]["scale"]
    assert found["outcome"] == Outcome.SCALE_OVERFLOW
    assert found["before"][:2] == found["after"][:2], "neither weights nor moments move"
    assert found["after"][2] == found["before"][2] / 2


def test_f22_spikes_in_a_world(cases: list[dict[str, Any]]) -> None:
    main, other = (case["spikes"] for case in cases)
    for kind in ("warn", "skip", "rollback"):
        assert main[kind]["weights"] == other[kind]["weights"] and main[kind]["step"] == 40
    assert [main[kind]["outcomes"].count("spike") for kind in ("warn", "skip", "rollback")] == [1, 1, 0]
    assert main["skip"]["outcomes"][33] == "spike" and main["skip"]["outcomes"][34] != "spike"
    (rollback,) = main["rollback"]["rollbacks"]
    assert (rollback["step"], rollback["to_step"], rollback["skipped_batches"]) == (34, 32, 2)


@pytest.mark.parametrize("when", ["rehearsal", "mid-step"])
def test_no_memory_in_one_process_makes_the_pieces_of_all_smaller(cases: list[dict[str, Any]], when: str) -> None:
    main, other = (case["memory"][when] for case in cases)
    assert main["pieces"] == other["pieces"] == 4 and main["weights"] == other["weights"]
    assert main["losses"] == pytest.approx(cases[0]["undisturbed"]["losses"], abs=1e-5)
    assert main["next"] == 1, "a resume begins with what fits"


def test_no_memory_in_the_last_backward_pass_leaves_word(cases: list[dict[str, Any]]) -> None:
    found = cases[0]["memory"]["backward"]
    assert "micro-batch 2" in found["error"] and found["next"] == 2


def test_no_destructor_waits_for_the_threads_of_the_process_group(cases: list[dict[str, Any]]) -> None:
    """~ProcessGroupGloo under the GIL deadlocks now and then: a run that is done would not exit."""
    assert all(case["group_is_kept"] for case in cases)


def run_faulty(folder: Path, faults: list[Any], *options: str, seconds: float = 20) -> tuple[int, str]:
    """torchrun with faults: its exit code and what it said."""
    write_run_file(folder)
    environment = {"FAULTS": json.dumps(faults), "FROMSCRATCH_TIMEOUT_SECONDS": str(seconds)}
    arguments = (list(options), faulty.run, "train", "small.toml", "--device", "cpu")
    torchrun = Fork(Command(agent, arguments, folder, environment))
    return torchrun.wait(), torchrun.stderr


def events_of(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_records(run.events) if event["event"] == kind]


def test_f16_f17_torchrun_restarts_from_the_last_checkpoint(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    """Rank 1 raises in the first attempt and is killed in the second; the third ends like an undisturbed run."""
    code, said = run_faulty(tmp_path, [[0, 1, 6, "raise"], [1, 1, 12, "kill"]], *TWO, "--max-restarts=2")
    assert code == 0, said
    run = RunDirectory(tmp_path / "runs" / "small")
    raised, killed = (event["reason"] for event in events_of(run, "failed"))
    assert "rank 1 failed: ValueError: a made-up fault" in raised
    assert "rank 1 is gone" in killed
    assert [event["step"] for event in events_of(run, "resumed")] == [5, 10]
    assert losses(run) == cases[0]["undisturbed"]["losses"]
    assert run.read_status().state == "done"
    undisturbed = RunDirectory(Path(cases[0]["undisturbed"]["path"]))
    assert all((tensor == weights(undisturbed)[name]).all() for name, tensor in weights(run).items())


def test_f17_a_crash_at_the_same_step_is_not_repeated_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sessions that began at one step and gained no checkpoint are enough, where torchrun restarts."""
    run = RunDirectory(tmp_path)
    for event, step in [("started", 0), ("checkpoint", 5), ("resumed", 5), ("failed", 7), ("resumed", 5)]:
        run.log_event(Event(event), step=step, reason="a made-up fault")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    check_crashes(run, step=5, num_steps=20)
    run.log_event(Event.RESUMED, step=5)
    with pytest.raises(FromScratchError, match=r"crashed 3 times in a row after step 5.*a made-up fault"):
        check_crashes(run, step=5, num_steps=20)
    assert run.read_status().state == "failed" and "3 times" in run.read_status().reason
    check_crashes(run, step=10, num_steps=20)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    check_crashes(run, step=5, num_steps=20)


def test_f18_a_process_that_hangs_ends_and_says_where(tmp_path: Path) -> None:
    """Of three processes, so that the two others wait for it at the same time."""
    code, said = run_faulty(tmp_path, [[0, 1, 6, "hang"]], "--nproc-per-node=3", seconds=6)
    assert code == 1
    assert "the process of rank 1 hangs: it did not answer for 6 s" in said
    assert not re.search(r"rank [02] hangs", said)
    run = RunDirectory(tmp_path / "runs" / "small")
    assert run.read_status().state == "failed" and "rank 1 hangs" in run.read_status().reason
    stacks = (run.path / "stacks" / "rank-1.txt").read_text()
    assert "in suffer" in stacks and "in take_step" in stacks, "where it hangs"
    assert re.search(r"faulty\.py.* in suffer", said)


def test_f13_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    """And torchrun must not take the end of both for a crash and restart them."""
    path = long_run(tmp_path)
    arguments = ([*TWO, "--max-restarts=2"], fromscratch, "train", "small.toml", "--device", "cpu")
    torchrun = Fork(Command(agent, arguments, tmp_path, TIMEOUT))
    wait_for_step(path / "metrics.jsonl", 5)
    signalled_at = time.time()
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
    code = torchrun.wait()
    status = json.loads((path / "status.json").read_text())
    assert (path / "status.json").stat().st_mtime - signalled_at < 10, "all is saved within ten seconds"
    assert status["state"] == "stopped", torchrun.stderr
    assert [entry.name for entry in (path / "checkpoints").glob("step-*")] == [f"step-{status['step']:08}"]
    assert code == 0
    assert len(events_of(RunDirectory(path), "started")) == 1 and not events_of(RunDirectory(path), "resumed")
