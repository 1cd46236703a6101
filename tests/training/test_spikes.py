"""F22: a loss far above the recent ones, and what the run does about it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.errors import DivergedError
from fromscratch.runs.records import read_records
from fromscratch.training.objective import MicroBatch
from fromscratch.training.spikes import RollBack, Warn
from tests.small import SMALL_RUN, run_small, write_run_file


def test_what_is_a_spike() -> None:
    policy = Warn(window=16, deviations=6.0)
    recent: list[float] = []
    for step in range(20):
        policy.remember(2.0 + 0.01 * (step % 3), recent)
    assert len(recent) == 16
    assert policy.is_spike(5.0, recent) and not policy.is_spike(2.03, recent)
    assert not policy.is_spike(math.nan, recent) and not policy.is_spike(5.0, recent[:7])
    for odd in (math.nan, math.inf, 50.0):
        policy.remember(odd, recent)
    assert max(recent) < 2.1, "nothing odd may enter the window"
    assert not RollBack(window=16, deviations=6.0).is_spike(1.0, recent), "a fall is no spike"


def test_a_flat_window_does_not_make_noise_a_spike() -> None:
    assert not Warn(window=16, deviations=6.0).is_spike(2.001, [2.0] * 16)


@pytest.fixture
def poisoned_batch(monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes the targets of one global batch wrong: a batch of constants in the middle of the data."""
    poisoned_step = 33
    from fromscratch.training.next_token import TokenBatches

    original = TokenBatches._load

    def load(self: TokenBatches, step: int, indices: Any) -> MicroBatch:
        batch = original(self, step, indices)
        if step != poisoned_step:
            return batch
        return MicroBatch(batch.inputs, torch.full_like(batch.targets, 255), batch.sequence_keys)

    monkeypatch.setattr(TokenBatches, "_load", load)
    return poisoned_step


def run_with(folder: Path, kind: str, name: str, **arguments: Any) -> tuple[Any, Any]:
    spike = {"kind": kind, "window": 16, "deviations": 4.0}
    train = {**SMALL_RUN["train"], "checkpoint_every": 4, "evaluate_every": 0, "spike": spike}
    file = write_run_file(folder, kind, train=train, data={"tokens": 40 * 128})
    return run_small(file, name=name, **arguments)


def test_f22_warn(tmp_path: Path, poisoned_batch: int) -> None:
    run, summary = run_with(tmp_path, "warn", "warn")
    assert summary.outcomes["spike"] == 1
    spikes = [record["step"] for record in read_records(run.metrics) if record["outcome"] == "spike"]
    assert spikes == [poisoned_batch + 1]


def test_f22_skip_moves_nothing_and_the_next_step_is_taken(tmp_path: Path, poisoned_batch: int) -> None:
    run, summary = run_with(tmp_path, "skip", "skip")
    outcomes = [record["outcome"] for record in read_records(run.metrics)]
    assert outcomes[poisoned_batch] == "spike" and outcomes[poisoned_batch + 1] != "spike"
    assert summary.step == 40


def test_f22_rollback_goes_back_to_the_checkpoint_and_past_the_batch(tmp_path: Path, poisoned_batch: int) -> None:
    run, summary = run_with(tmp_path, "rollback", "rollback")
    assert summary.step == 40 and "spike" not in summary.outcomes
    (rollback,) = [e for e in read_records(run.events) if e["event"] == "rollback"]
    assert rollback["step"] == poisoned_batch + 1 and rollback["to_step"] == 32
    assert rollback["skipped_batches"] == 2
    assert [record["step"] for record in read_records(run.metrics)] == list(range(1, 41))


def test_f22_rollback_resumes_to_the_same_end(tmp_path: Path, poisoned_batch: int) -> None:
    whole, _ = run_with(tmp_path, "rollback", "whole")
    for stop in (32, 34, 35, 38):
        name = f"stopped-{stop}"
        run_with(tmp_path, "rollback", name, stop_after=stop)
        resumed, _ = run_with(tmp_path, "rollback", name)
        losses = [[r["loss"] for r in read_records(run.metrics)] for run in (whole, resumed)]
        assert losses[0] == losses[1]


def test_f22_rollback_without_data_left_says_so(tmp_path: Path, poisoned_batch: int) -> None:
    spike = {"kind": "rollback", "window": 16, "deviations": 4.0}
    train = {**SMALL_RUN["train"], "checkpoint_every": 4, "evaluate_every": 0, "spike": spike}
    file = write_run_file(tmp_path, train=train, data={"tokens": 40 * 128})
    from fromscratch.data.store import open_store

    start = open_store(tmp_path / "store").split("train").tokens - 40 * 128 - 1
    with pytest.raises(DivergedError, match="no data is left"):
        run_small(file, overrides=[f"data.start_token={start}"])
