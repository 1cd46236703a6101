"""What a run leaves behind: checkpoints, records, status; and how it ends when it goes wrong."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.errors import DataError, DivergedError, FromScratchError, UsageError
from fromscratch.formats.checkpoints import read_state
from fromscratch.models.gpt import GPT
from fromscratch.models.layers import GeluMLP
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in, newest_valid
from fromscratch.training.loop import Training
from fromscratch.training.observers import SilentObserver
from tests.small import SMALL_RUN, make_store, run_small, write_run_file

METRICS = {
    "step",
    "tokens",
    "loss",
    "loss_min",
    "loss_max",
    "learning_rate",
    "grad_norm",
    "clipped",
    "nonfinite",
    "outcome",
    "tokens_per_second",
    "seconds",
}


def train(**changes: Any) -> dict[str, Any]:
    return {**SMALL_RUN["train"], **changes}


@pytest.mark.usefixtures("charts")
def test_records_and_status(tmp_path: Path) -> None:
    run, summary = run_small(write_run_file(tmp_path, train=train(sample_every=10)))
    records = list(read_records(run.metrics))
    assert [r["step"] for r in records] == list(range(1, 21))
    assert all(set(r) == METRICS for r in records)
    assert records[4]["tokens"] == 5 * 8 * 16
    assert records[0]["learning_rate"] == pytest.approx(0.01 / 4)
    assert run.read_status().state == "done"
    evaluated = [e["step"] for e in read_records(run.events) if e["event"] == "evaluation"]
    assert evaluated == [0, 5, 10, 15, 20]
    assert summary.best_loss == min(e["loss"] for e in read_records(run.events) if e["event"] == "evaluation")
    assert summary.final_loss is not None and summary.final_loss < math.log(257) - 1
    assert "=== step 20 ===\nEvery effort moves you" in run.samples.read_text()
    assert {path.name for path in run.charts.iterdir()} == {"loss.png", "gradient-norm.png", "learning-rate.png"}
    assert json.loads(run.machine.read_text())["micro_batch"] == 8


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, train=train(checkpoint_every=2, keep_checkpoints=2, evaluate_every=2))
    rising_rate = ["train.optimizer.learning_rate=4.0", "train.schedule={kind='constant', warmup_steps=20}"]
    run, summary = run_small(file, overrides=rising_rate)
    assert summary.best_step is not None and summary.best_step < 18, "so high a rate should make it worse again"
    kept = [int(path.name[5:]) for path in checkpoints_in(run.checkpoints)]
    assert kept == [summary.best_step, 18, 20]
    assert (run.checkpoints / "best").resolve().name == f"step-{summary.best_step:08}"
    assert (run.checkpoints / "latest").resolve().name == "step-00000020"


def test_without_evaluation_the_best_is_the_lowest_mean_training_loss(tmp_path: Path) -> None:
    run, summary = run_small(write_run_file(tmp_path, train=train(evaluate_every=0)))
    losses = [r["loss"] for r in read_records(run.metrics)]
    means = {step: sum(losses[step - 5 : step]) / 5 for step in (5, 10, 15, 20)}
    assert summary.best_step == min(means, key=lambda step: means[step])
    assert summary.best_loss == pytest.approx(min(means.values()))


class NanFrom(SilentObserver):
    """Poisons the model's activations once a step is reached, as an overflow would."""

    poisoned_from = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
        self._steps, self._step = steps, 0
        original = GeluMLP.forward

        def forward(module: GeluMLP, x: torch.Tensor) -> torch.Tensor:
            y = original(module, x)
            return y * float("inf") if module.training and self._step in self._steps else y

        monkeypatch.setattr(GeluMLP, "forward", forward)

    def on_step(self, record: dict[str, Any]) -> None:
        self._step = record["step"] + 1  # results arrive a step late


@pytest.mark.usefixtures("charts")
def test_f21_ten_bad_steps_in_a_row_end_the_run_with_its_last_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run_file(tmp_path)
    poison = NanFrom(monkeypatch, range(7, 100))
    with pytest.raises(DivergedError, match="10 steps in a row"):
        run_small(file, observers=[poison])
    path = tmp_path / "runs" / "run"
    assert json.loads((path / "status.json").read_text())["state"] == "diverged"
    newest, _ = newest_valid(path / "checkpoints")
    assert newest is not None
    best = read_state(path / "checkpoints" / "best")
    assert best.best_loss is not None and math.isfinite(best.best_loss)
    lines = (path / "metrics.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines and '"loss": null' in lines


@pytest.mark.usefixtures("charts")
def test_f23_a_bad_loss_at_a_checkpoint_is_null_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = NanFrom(monkeypatch, range(4, 6))
    run, summary = run_small(write_run_file(tmp_path, train=train(evaluate_every=0)), observers=[poison])
    assert summary.outcome == "done" and summary.outcomes["nonfinite"] >= 1
    for path in run.path.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"bare {word}"))
    assert summary.best_loss is not None and math.isfinite(summary.best_loss)


def test_raise_ends_the_run_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = NanFrom(monkeypatch, range(3, 100))
    with pytest.raises(DivergedError):
        run_small(write_run_file(tmp_path), overrides=["train.nonfinite=raise"], observers=[poison])


class SignalAt(SilentObserver):
    """Sends this process a signal when a step's record arrives."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step, self._number = step, number

    def on_step(self, record: dict[str, Any]) -> None:
        if record["step"] == self._step:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    file = write_run_file(tmp_path)
    run, summary = run_small(file, observers=[SignalAt(7, number)])
    assert summary.outcome == "stopped" and summary.step in (7, 8)
    assert run.read_status().state == "stopped" and run.read_status().reason == number.name
    assert (run.checkpoints / "latest").resolve().name == f"step-{summary.step:08}"
    assert run_small(file)[1].outcome == "done"


def test_f12_another_config_is_refused_with_the_keys(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run_small(file, stop_after=2)
    with pytest.raises(UsageError, match=r"train.seed: 42 -> 7(.|\n)*--fresh"):
        run_small(file, overrides=["train.seed=7"])


def test_another_store_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run_small(file, stop_after=6)
    (tmp_path / "store").rename(tmp_path / "old-store")
    make_store(tmp_path / "store", seed=9)
    with pytest.raises(DataError, match="belongs to another run"):
        run_small(file)


def test_a_moved_store_is_the_same_science(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run_small(file, stop_after=6)
    (tmp_path / "store").rename(tmp_path / "moved")
    assert run_small(file, overrides=["data.store=moved"])[1].outcome == "done"


def test_f29_two_trainers_on_one_run(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)

    class Intruder(SilentObserver):
        message = ""

        def on_step(self, record: dict[str, Any]) -> None:
            if record["step"] == 3:
                with pytest.raises(UsageError, match=f"already being trained by pid {os.getpid()}") as caught:
                    run_small(file)
                self.message = str(caught.value)

    intruder = Intruder()
    _, summary = run_small(file, observers=[intruder])
    assert intruder.message and summary.outcome == "done"


class LittleMemory:
    """A device whose memory holds so many sequences at once, as far as the model can tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.refused: list[int] = []
        original = GPT.losses

        def losses(model: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if model.training and len(tokens) > most:
                self.refused.append(len(tokens))
                raise torch.OutOfMemoryError(f"no memory for {len(tokens)} sequences")
            return original(model, tokens, targets)

        monkeypatch.setattr(GPT, "losses", losses)


def test_out_of_memory_takes_smaller_pieces_and_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run_file(tmp_path)
    reference, _ = run_small(file, name="reference", micro_batch=2)
    memory = LittleMemory(monkeypatch, most=3)
    run, summary = run_small(file, name="little", micro_batch=8)
    assert memory.refused == [8, 4] and summary.outcome == "done"
    events = [e["event"] for e in read_records(run.events)]
    assert events.count("smaller-micro-batch") == 2
    losses = [[r["loss"] for r in read_records(one.metrics)] for one in (reference, run)]
    assert losses[0] == losses[1]


def test_rehearsing_finds_it_out_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fromscratch.session import setup

    monkeypatch.setattr(setup, "Training", lambda **facts: Training(**{**facts, "probes_memory": True}))
    LittleMemory(monkeypatch, most=2)
    run, summary = run_small(write_run_file(tmp_path), micro_batch=8)
    smaller = [e for e in read_records(run.events) if e["event"] == "smaller-micro-batch"]
    assert [e["step"] for e in smaller] == [0, 0] and summary.outcome == "done"


def test_not_even_one_sequence_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LittleMemory(monkeypatch, most=0)
    with pytest.raises(FromScratchError, match="out of memory with a single sequence"):
        run_small(write_run_file(tmp_path))
