"""F10: a run that is interrupted and goes on equals one that never was, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fromscratch.formats.checkpoints import read_state
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import BEST
from tests.small import SMALL_RUN, run_small, write_run_file

TIMINGS = ("seconds", "tokens_per_second")


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in read_records(run.metrics)]


def assert_same_end(one: RunDirectory, other: RunDirectory) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(run.checkpoints / "latest" / file) for run in (one, other))
        assert a.keys() == b.keys() and a
        assert all(torch.equal(a[name], b[name]) for name in a), file
    assert metrics_of(one) == metrics_of(other)
    states = [read_state(run.checkpoints / "latest") for run in (one, other)]
    for state in states:
        state.seconds = 0.0
    assert states[0] == states[1]
    assert (one.checkpoints / BEST).resolve().name == (other.checkpoints / BEST).resolve().name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("evaluate_every", [5, 0])
def test_f10_interrupted_at_any_step(tmp_path: Path, precision: str, evaluate_every: int) -> None:
    file = write_run_file(
        tmp_path, train={**SMALL_RUN["train"], "precision": precision, "evaluate_every": evaluate_every}
    )
    untouched, summary = run_small(file, name="untouched")
    assert summary.outcome == "done" and summary.step == 20
    for step in (1, 4, 5, 6, 13, 19):
        name = f"stopped-{step}"
        _, stopped = run_small(file, name=name, stop_after=step)
        assert (stopped.outcome, stopped.step) == ("stopped", step)
        resumed, finished = run_small(file, name=name)
        assert finished.outcome == "done"
        assert_same_end(untouched, resumed)


def test_interrupted_at_every_step(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, data={"tokens": 6 * 8 * 16})
    untouched, _ = run_small(file, name="untouched")
    for step in range(1, 7):
        run_small(file, name="piecewise", stop_after=step)
    resumed, _ = run_small(file, name="piecewise")
    assert_same_end(untouched, resumed)


def test_f7_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    untouched, _ = run_small(file, name="untouched")
    run, _ = run_small(file, name="damaged", stop_after=12)
    weights = run.checkpoints / "step-00000012" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    resumed, _ = run_small(file, name="damaged")
    assert_same_end(untouched, resumed)
    skipped = [e for e in read_records(run.events) if e["event"] == "checkpoint-skipped"]
    assert "step-00000012/model.safetensors" in skipped[0]["reason"]


def test_looking_at_a_run_does_not_change_it(tmp_path: Path) -> None:
    quiet = write_run_file(tmp_path, "quiet", train={**SMALL_RUN["train"], "evaluate_every": 0, "checkpoint_every": 0})
    watched = write_run_file(tmp_path, "watched", train={**SMALL_RUN["train"], "evaluate_every": 1, "sample_every": 2})
    one, _ = run_small(quiet, name="quiet")
    other, _ = run_small(watched, name="watched")
    assert metrics_of(one) == metrics_of(other)
    weights = [load_file(run.checkpoints / "latest" / "model.safetensors") for run in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_micro_batches_give_the_same_curve_with_dropout_on(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    curves = []
    for micro_batch in (2, 8):
        run, _ = run_small(file, name=f"micro-{micro_batch}", micro_batch=micro_batch)
        curves.append([record["loss"] for record in read_records(run.metrics)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert curves[0][-1] < curves[0][0] - 0.5, "it should also have learnt something"


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, first = run_small(file)
    before = run.metrics.read_bytes()
    _, again = run_small(file)
    assert again.outcome == "done" and again.best_loss == first.best_loss
    assert run.metrics.read_bytes() == before


def test_a_lost_link_does_not_matter(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=7)
    (run.checkpoints / "latest").unlink()
    leftover = run.checkpoints / ".step-00000099.tmp-1"
    shutil.copytree(run.checkpoints / "step-00000007", leftover)
    _, finished = run_small(file)
    assert finished.step == 20 and not leftover.exists()
