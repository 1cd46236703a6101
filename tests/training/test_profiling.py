"""A trace of a few steps: a file that Chrome reads, and a run that is none the worse for it."""

import json
from pathlib import Path

import pytest

from fromscratch.training.profiling import StepProfiler
from tests.small import SMALL_RUN, run_small, write_run_file


@pytest.mark.filterwarnings("ignore:.*profil.*:UserWarning")
def test_a_trace_holds_the_steps_asked_for_and_the_run_is_the_same(tmp_path: Path) -> None:
    quiet = {**SMALL_RUN["train"], "evaluate_every": 0, "checkpoint_every": 0}
    file, trace = write_run_file(tmp_path, train=quiet), tmp_path / "trace.json"
    plain, _ = run_small(file, name="plain", stop_after=8)
    watched, _ = run_small(file, name="watched", stop_after=8, observers=[StepProfiler(trace, 2)])
    weights = [(run.checkpoints / "latest" / "model.safetensors").read_bytes() for run in (plain, watched)]
    assert weights[0] == weights[1]
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"] if "name" in event]
    assert names.count("aten::_fused_adamw_") == 2 * 2, "two groups of parameters in each of two steps"
    assert not list(tmp_path.glob(".*tmp*"))


@pytest.mark.filterwarnings("ignore:.*profil.*:UserWarning")
def test_a_run_that_ends_early_writes_what_there_is(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    run_small(write_run_file(tmp_path), stop_after=5, observers=[StepProfiler(trace, 100)])
    assert json.loads(trace.read_text())["traceEvents"]
