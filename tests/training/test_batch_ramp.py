"""A global batch that grows: position stays a function of the step, and everything that counts tokens counts right."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fromscratch.config.batch_sizes import BatchRamp, BatchSizes
from fromscratch.config.loading import parse_run_config
from fromscratch.errors import UsageError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.session.estimate import estimate_run
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.training.observers import Pace
from tests.command import run_command
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_resume import assert_same_end, metrics_of

RAMP = {"start": 2, "increment": 3, "steps": 4}  # 2, 5, then 8 sequences
SIZES = [2] * 4 + [5] * 4 + [8] * 12
TOKENS = sum(SIZES) * 16


def write(folder: Path, name: str = "ramp", **train: Any) -> Path:
    return write_run_file(
        folder, name, data={"tokens": TOKENS}, train={**SMALL_RUN["train"], "batch_ramp": RAMP, **train}
    )


def ramps() -> st.SearchStrategy[BatchSizes]:
    def sizes(start: int, increment: int, stages: int, steps: int) -> BatchSizes:
        return BatchSizes(start + increment * stages, BatchRamp(start=start, increment=increment, steps=steps))

    small = st.integers(1, 9)
    return st.builds(sizes, small, small, small, small) | st.builds(BatchSizes, small)


@given(ramps(), st.integers(0, 300))
def test_the_closed_form_is_the_sum_of_the_sizes(sizes: BatchSizes, step: int) -> None:
    ramp, total = sizes.ramp, 0
    for earlier in range(step):
        total += min(sizes.global_batch, ramp.start + ramp.increment * (earlier // ramp.steps)) if ramp else sizes.at(0)
    assert sizes.before(step) == total
    assert sizes.at(10**9) == sizes.global_batch


@given(ramps(), st.integers(0, 10**12))
def test_steps_and_sequences_are_inverse(sizes: BatchSizes, sequences: int) -> None:
    most, least = sizes.max_steps(sequences), sizes.steps_for(sequences)
    assert sizes.before(most) <= sequences < sizes.before(most + 1)
    assert sizes.before(least) >= sequences and (least == 0 or sizes.before(least - 1) < sequences)


def test_steps_take_every_sequence_once_and_tokens_are_counted(tmp_path: Path) -> None:
    plan = plan_run(write(tmp_path))
    assert (plan.num_steps, plan.config.data.tokens) == (20, TOKENS)
    sequences = plan.objective.sequences  # type: ignore[attr-defined]
    indices = [sequences.sequence_indices(step) for step in range(20)]
    assert [len(one) for one in indices] == SIZES
    assert all(one.stop == other.start for one, other in pairwise(indices)) and indices[0].start == 0
    run, summary = run_small(write(tmp_path))
    records = list(read_records(run.metrics))
    assert [record["tokens"] for record in records] == [16 * sum(SIZES[:step]) for step in range(1, 21)]
    assert [round(r["tokens_per_second"] * r["seconds"]) for r in records] == [16 * size for size in SIZES]
    assert summary.tokens == TOKENS
    science = estimate_run(write(tmp_path), machines=["here"]).science
    assert (science.num_steps, science.tokens) == (20, TOKENS)


def test_a_step_of_the_ramp_is_a_step_of_that_batch(tmp_path: Path) -> None:
    ramp, _ = run_small(write(tmp_path), name="ramp", stop_after=4)
    small = write_run_file(
        tmp_path, "two", train={**SMALL_RUN["train"], "global_batch": 2}, data={"tokens": 20 * 2 * 16}
    )
    two, _ = run_small(small, name="two", stop_after=4)
    one, other = (load_file(run.checkpoints / "latest" / "model.safetensors") for run in (ramp, two))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop_after", [3, 4, 7, 8])
def test_f10_it_resumes_to_the_bit(tmp_path: Path, stop_after: int) -> None:
    file = write(tmp_path)
    untouched, _ = run_small(file, name="untouched")
    run_small(file, name="stopped", stop_after=stop_after)
    assert_same_end(untouched, run_small(file, name="stopped")[0])


def test_the_micro_batch_changes_nothing(tmp_path: Path) -> None:
    curves = [
        [record["loss"] for record in metrics_of(run_small(write(tmp_path), name=f"m{size}", micro_batch=size)[0])]
        for size in (1, 4)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_the_time_left_is_that_of_the_tokens_left() -> None:
    pace = Pace(num_steps=20, total_tokens=TOKENS)
    for step in range(1, 5):
        text = pace.add({"step": step, "tokens": step * 32, "loss": 2.0, "seconds": 10.0, "tokens_per_second": 3.2})
    assert text.endswith("about 10 minutes left")  # 1,856 tokens at 3.2 per second; 16 steps of 10 s would be 3 minutes


def test_plan_and_start_up_line_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run_command("plan", write(tmp_path), "--machine", "here", "--json")
    facts = json.loads(found.out)
    assert (facts["steps"], facts["tokens"], facts["tokens_per_step"]) == (20, TOKENS, 8 * 16)
    trained = run_command("train", write(tmp_path), "--stop-after", "1", "--device", "cpu")
    assert f"20 steps of 32 to 128 tokens ({TOKENS:,} in total)" in trained.err


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        (
            {"train": {"global_batch": 8, "batch_ramp": {**RAMP, "start": 8}}},
            "start = 8 must be below global_batch = 8",
        ),
        ({"train": {"global_batch": 9, "batch_ramp": RAMP}}, "choose an increment that divides 7"),
        ({"train": {"global_batch": 8, "batch_ramp": RAMP, "spike": "rollback"}}, 'spike = "rollback" skips batches'),
        (
            {"train": {"global_batch": 8, "batch_ramp": RAMP}, "tune": {"kind": "instruct"}},
            "train.batch_ramp is for pre-training",
        ),
        (
            {"model": {"kind": "lstm"}, "train": {"global_batch": 8, "batch_ramp": RAMP}},
            "a recurrent model reads a lane per sequence of a batch; remove it",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_run_config({"data": {"store": "corpus"}, **tables}, where="test")


def test_more_processes_than_the_first_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 processes, but train.batch_ramp.start = 2 sequences; use at most 2"):
        place_run(plan_run(write(tmp_path)), RunDirectory(tmp_path / "r"), MachineOptions(device="cpu"), world_size=3)
