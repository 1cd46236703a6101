"""A text too small for the defaults: what is decided for the user is told, and a refusal names the ways on."""

import json
from pathlib import Path

import pytest

from fromscratch.errors import DataError
from fromscratch.runs.states import Event
from fromscratch.session.plan import plan_run
from tests.command import refused, run_command
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


def test_a_text_smaller_than_a_global_batch_names_what_helps(file: Path) -> None:
    with pytest.raises(DataError, match=r"lower train.global_batch or .* \(--set data.epochs=(\d+)\)") as error:
        plan_run(file, ["train.global_batch=2000", "data.tokens=all"])
    assert "data.tokens=all" not in str(error.value)
    epochs = str(error.value).rpartition("data.epochs=")[2].rstrip(")")
    enough = [f"data.epochs={epochs}", "train.schedule=constant"]
    assert plan_run(file, ["train.global_batch=2000", "data.tokens=all", *enough]).num_steps == 1
    with pytest.raises(DataError, match=r"; lower data.start_token, train.global_batch or model.context_length$"):
        plan_run(file, ["data.start_token=10795", "data.tokens=all"])  # less than one sequence is left


def test_without_validation_a_run_is_listed_drawn_and_resumed_as_one_without_evaluation(
    file: Path, charts: None
) -> None:
    runs = ("--runs-dir", file.parent / "runs")
    arguments = ("train", file, *runs, "--device", "cpu", "--quiet")
    assert run_command(*arguments, "--stop-after", 2).code == 75  # before the first checkpoint is due
    listed = run_command("runs", "list", *runs)
    assert listed.code == 0 and "2 of 20" in listed.out
    assert (file.parent / "runs" / "small" / "charts" / "loss.png").is_file()
    assert run_command(*arguments).code == 0
    assert "(training)" in run_command("runs", "list", *runs).out
    (one,) = json.loads(run_command("runs", "list", *runs, "--json").out)
    assert one["best_measure"] == "training tokens since the previous checkpoint" and one["best_loss"] > 0
    refused(
        "eval", "loss", file.parent / "runs" / "small", "--store", file.parent / "store", code=3,
        says="evaluating from token 0 needs at least 2; name another split or store",
    )  # fmt: skip


def test_a_validation_split_that_is_named_must_have_text(file: Path) -> None:
    with pytest.raises(DataError, match="needs at least 2; name another split or store"):
        plan_run(file, [f"eval.store={file.parent / 'store'}"])
    with pytest.raises(DataError, match="has no split 'test'"):
        plan_run(file, ["eval.split=test"])
