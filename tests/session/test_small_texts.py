"""A text too small for the defaults: what is decided for the user is told, and a refusal names the ways on."""

from pathlib import Path

import pytest

from fromscratch.errors import DataError
from fromscratch.runs.states import Event
from fromscratch.session.plan import plan_run
from tests.command import run_command
from tests.small import write_run_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A run file beside a store of 2,000 words that holds out nothing."""
    (tmp_path / "text.txt").write_text("some words of a small text " * 400)
    prepared = ("--out", tmp_path / "store", "--tokenizer", "bytes", "--validation", "0", "--quiet")
    assert run_command("data", "prepare", tmp_path / "text.txt", *prepared).code == 0
    return write_run_file(tmp_path)


def test_a_store_without_validation_trains_without_evaluation_and_says_so_once(file: Path) -> None:
    arguments = ("train", file, "--runs-dir", file.parent / "runs", "--device", "cpu")
    stopped = run_command(*arguments, "--stop-after", 6)
    assert stopped.code == 75 and stopped.err.count("holds out no text, so nothing is evaluated") == 1
    done = run_command(*arguments)
    assert done.code == 0 and "best mean training loss" in done.out, done.err
    run = file.parent / "runs" / "small"
    assert f'"event": "{Event.EVALUATION}"' not in (run / "events.jsonl").read_text()
    assert "evaluate_every = 0" in (run / "run.toml").read_text()
    assert (run / "checkpoints" / "best").exists()
    assert "training tokens since" in run_command("runs", "show", run).out
    assert run_command("generate", run, "--prompt", "some", "--tokens", 3).code == 0


def test_a_budget_that_is_too_large_names_both_ways_on(file: Path) -> None:
    with pytest.raises(
        DataError, match=r"--set data.tokens=all: \d+ steps\), or .* \(--set data.epochs=(\d+)\)"
    ) as error:
        plan_run(file, ["data.tokens=100000"])
    epochs = str(error.value).rpartition("data.epochs=")[2].rstrip(")")
    assert plan_run(file, ["data.tokens=100000", f"data.epochs={epochs}"]).num_steps
    with pytest.raises(DataError):
        plan_run(file, ["data.tokens=100000", f"data.epochs={int(epochs) - 1}"])
    assert plan_run(file, ["data.tokens=all"]).num_steps
    with pytest.raises(DataError, match=r"lower train.global_batch or model.context_length"):
        plan_run(file, ["train.global_batch=100000"])
