"""Averages of the weights: the right numbers, nothing else changed, exactly resumed, found by their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fromscratch.config.loading import parse_run_config
from fromscratch.errors import DataError, UsageError
from fromscratch.evaluation.saving import save_evaluation
from fromscratch.formats.checkpoints import read_state
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.memory_model import forecast_memory
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.export import numbers_by_step
from fromscratch.runs.records import read_records
from fromscratch.session.disk import plan_disk
from fromscratch.session.plan import plan_run
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_resume import assert_same_end, metrics_of

BOTH = {"ema": 0.8, "tail": 0.25}  # of 20 steps, the last 5
KEEP_ALL: dict[str, Any] = {"checkpoint_every": 1, "keep_checkpoints": 100}


def write(folder: Path, name: str = "averaged", *, weights: str | None = None, **train: Any) -> Path:
    eval_table = {**SMALL_RUN["eval"], **({"weights": weights} if weights else {})}
    return write_run_file(folder, name, train={**SMALL_RUN["train"], "averages": BOTH, **train}, eval=eval_table)


def tensors(run: RunDirectory, file: str, step: int | str = "latest") -> dict[str, Tensor]:
    folder = f"step-{step:08}" if isinstance(step, int) else step
    return load_file(run.checkpoints / folder / f"{file}.safetensors")


def evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    return [record for record in read_records(run.events) if record["event"] == "evaluation"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_they_are_the_averages_of_the_weights_after_each_step(tmp_path: Path, optimizer: str) -> None:
    run, _ = run_small(write(tmp_path, optimizer={"kind": optimizer, "learning_rate": 0.01}, **KEEP_ALL))
    weights = [tensors(run, "model", step) for step in range(1, 21)]
    ema, tail = tensors(run, "ema"), tensors(run, "tail")
    assert ema.keys() == tail.keys() == weights[0].keys()
    shares = torch.tensor([0.8**age for age in range(19, -1, -1)], dtype=torch.float64)
    for name in ema:
        history = torch.stack([one[name].double() for one in weights])
        wanted = torch.tensordot(shares / shares.sum(), history, dims=1)
        torch.testing.assert_close(ema[name].double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tail[name].double(), history[-5:].mean(0), rtol=1e-5, atol=1e-6)
    assert not (run.checkpoints / "step-00000015" / "tail.safetensors").exists(), "it begins with step 16"
    first = tensors(run, "tail", 16)
    assert all(torch.equal(first[name], weights[15][name]) for name in first)


def test_the_run_itself_stays_the_same_to_the_bit(tmp_path: Path) -> None:
    plain, _ = run_small(write_run_file(tmp_path), name="plain")
    averaged, _ = run_small(write(tmp_path, sample_every=5), name="averaged")
    for file in ("model", "optimizer"):
        one, other = tensors(plain, file), tensors(averaged, file)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics_of(plain) == metrics_of(averaged)
    for one, other in zip(evaluations(plain), evaluations(averaged), strict=True):
        assert one["loss"] == other["loss"] == other["loss_raw"] and "loss_raw" not in one
        assert ("loss_ema" in other) == (other["step"] > 0) and ("loss_tail" in other) == (other["step"] > 15)


@pytest.mark.parametrize("stop_after", [3, 15, 16, 18])
def test_f10_they_resume_to_the_bit(tmp_path: Path, stop_after: int) -> None:
    file = write(tmp_path, weights="ema")
    untouched, _ = run_small(file, name="untouched")
    run_small(file, name="stopped", stop_after=stop_after)
    resumed, _ = run_small(file, name="stopped")
    assert_same_end(untouched, resumed)
    for name in ("ema", "tail"):
        one, other = tensors(untouched, name), tensors(resumed, name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert [e["loss_tail"] for e in evaluations(untouched)[-1:]] == [e["loss_tail"] for e in evaluations(resumed)[-1:]]


def test_eval_weights_choose_the_best_checkpoint_and_what_a_name_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, summary = run_small(write(tmp_path, weights="tail"), name="run")
    monkeypatch.chdir(tmp_path)
    last = evaluations(run)[-1]
    assert last["loss"] == last["loss_tail"] != last["loss_raw"]
    assert summary.best_loss == min(event["loss"] for event in evaluations(run))
    cpu = find_hardware("cpu")
    files = {"raw": "model", "ema": "ema", "tail": "tail"}
    names = {
        "run@latest": "tail",
        "run@latest+ema": "ema",
        "run@latest+raw": "raw",
        f"{run.checkpoints}/latest@ema": "ema",
    }
    for source, weights in names.items():
        loaded = open_model(source, cpu)
        wanted = tensors(run, files[weights])
        assert loaded.weights == weights
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model_tensors(loaded.model).items()), source
    early = open_model("run@step-15", cpu)
    assert early.weights == "raw" and "had not begun" in caplog.text
    with pytest.raises(UsageError, match=r"run@step-15\+tail: step-00000015 has no average 'tail'.* raw, ema"):
        open_model("run@step-15+tail", cpu)
    path = save_evaluation(open_model("run@latest+ema", cpu), "loss-step-20", {"loss": 1.0})
    assert (
        path is not None and path.name == "loss-step-20-ema.json" and json.loads(path.read_text())["weights"] == "ema"
    )


def test_an_average_starts_another_run_without_its_optimizer_state(tmp_path: Path) -> None:
    run, _ = run_small(write(tmp_path), name="parent")
    parent = plan_run(write_run_file(tmp_path, train={**SMALL_RUN["train"], "start_from": "parent@latest+ema"})).parent
    assert parent is not None and parent.loaded.weights == "ema"
    started = model_tensors(parent.loaded.model)
    assert all(torch.equal(started[name], tensor) for name, tensor in tensors(run, "ema").items())
    start = {"model": "parent@latest+ema", "optimizer": True}
    with pytest.raises(UsageError, match="belongs to the raw weights, not to their average 'ema'"):
        plan_run(write_run_file(tmp_path, train={**SMALL_RUN["train"], "start_from": start}))


def test_a_state_that_counts_no_steps_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"averaged": {"ema": "many"}}')
    with pytest.raises(DataError, match=r"state.json: malformed at averaged"):
        read_state(tmp_path)


def test_memory_disk_and_other_tools_know_them(tmp_path: Path) -> None:
    file, plain = write(tmp_path), write_run_file(tmp_path, "plain")
    one, other = (plan_run(path).config for path in (file, plain))
    with_averages, without = (forecast_memory(Workload(c.model, c.train), "cuda").at(2) for c in (one, other))
    assert with_averages.averages == 2 * without.weights and without.averages == 0.0
    assert with_averages.total == pytest.approx(without.total + 2 * without.weights)
    run, _ = run_small(file, name="averaged")
    size = sum(path.stat().st_size for path in (run.checkpoints / "step-00000020").iterdir())
    assert plan_disk(plan_run(file), tmp_path / "new").checkpoint_bytes == pytest.approx(size, abs=2_000)
    last = list(numbers_by_step(run))[-1]
    assert last["held_out_loss"] == last["held_out_loss_raw"] != last["held_out_loss_ema"]
    assert 0 < last["held_out_loss_tail"] < 6


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"train": {"averages": {}}}, "names no average"),
        ({"train": {"averages": {"ema": 1.0}}}, "train.averages.ema = 1.0"),
        ({"train": {"averages": {"ema": 0.9}}, "eval": {"weights": "tail"}}, 'eval.weights = "tail" needs'),
    ],
)
def test_a_run_file_that_contradicts_itself_is_refused(tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_run_config({"data": {"store": "corpus"}, **tables}, where="test")
