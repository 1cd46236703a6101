"""Export and ``report_to``: every number arrives, and no tool can change, slow or stop a run."""

import csv
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fromscratch.config.loading import load_run_config
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.export import HELD_OUT, numbers_by_step
from fromscratch.session import reporting
from fromscratch.session.plan import plan_run
from fromscratch.session.reporting import Reporter, reporters
from tests.command import nothing_written, refused, run_command
from tests.small import run_small, write_run_file


class Kept:
    """A tool that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.told.append((step, numbers))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_small(write_run_file(tmp_path_factory.mktemp("export")), name="one")[0]


def records_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_csv_has_every_step_and_every_held_out_loss(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "one.csv"
    with nothing_written(run.path):
        answer = run_command("runs", "export", run.path, "--to", "csv", "--out", out)
    assert answer.code == 0, answer.err
    with out.open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert list(rows) == list(range(21))
    for record in records_of(run):
        assert float(rows[record["step"]]["loss"]) == record["loss"]
    assert [step for step, row in rows.items() if row[HELD_OUT]] == [0, 5, 10, 15, 20]
    refused("runs", "export", run.path, "--to", "csv", "--out", out, code=2, says="exists already")
    refused("runs", "export", run.path, "--to", "csv", "--out", tmp_path / "no" / "x", code=2, says="cannot be written")
    refused("runs", "export", run.path, "--to", "trackio", "--out", out, code=2, says="leave it out")
    refused("runs", "export", run.path, "--to", "excel", code=2, says="excel")


def test_a_tool_that_is_not_installed_is_refused(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    command = ("runs", "export", run.path, "--to", "tensorboard", "--out", tmp_path / "board")
    refused(*command, code=2, says="pip install tensorboard")
    assert not (tmp_path / "board").exists()


def test_tensorboard_reads_what_was_exported(run: RunDirectory, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "board"
    assert run_command("runs", "export", run.path, "--to", "tensorboard", "--out", out).code == 0
    events = accumulator.EventAccumulator(str(out)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(record["step"], pytest.approx(record["loss"])) for record in records_of(run)]
    assert [event.step for event in events.Scalars(HELD_OUT)] == [0, 5, 10, 15, 20]


def test_unknown_values_and_evaluations_without_a_step_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 2, "loss": null}\nnot json\n{"loss": 3}\n')
    run.events.write_text("".join(f'{{"event": "evaluation", "step": {n}, "loss": {n}.5}}\n' for n in (0, 2, 4)))
    found = list(numbers_by_step(run))
    assert found == [{"step": 0, HELD_OUT: 0.5}, {"step": 2, "loss": None, HELD_OUT: 2.5}, {"step": 4, HELD_OUT: 4.5}]


def test_a_tool_receives_every_step_and_evaluation(tmp_path: Path) -> None:
    kept, said = Kept(), list[str]()
    run, _ = run_small(write_run_file(tmp_path), observers=[Reporter("kept", lambda: kept, said.append)])
    losses = [(step, numbers["loss"]) for step, numbers in kept.told if "loss" in numbers]
    assert losses == [(record["step"], record["loss"]) for record in records_of(run)]
    assert [step for step, numbers in kept.told if HELD_OUT in numbers] == [0, 5, 10, 15, 20]
    assert kept.closed and said == []


class Broken(Kept):
    def log(self, step: int, numbers: dict[str, float]) -> None:
        raise SystemExit("no login")


def unavailable() -> Kept:
    raise ConnectionError("nobody answers")


@pytest.mark.parametrize(("tool", "says"), [(Broken, "no login"), (unavailable, "nobody answers")])
def test_a_tool_that_fails_stops_nothing(tool: Any, says: str, tmp_path: Path) -> None:
    said: list[str] = []
    file = write_run_file(tmp_path)
    run, summary = run_small(file, name="reported", observers=[Reporter("tool", tool, said.append)])
    plain, _ = run_small(file, name="plain")
    assert summary.outcome == "done"
    assert said == [f"report_to tool: {says}; nothing more is reported there"]
    assert [r["loss"] for r in records_of(run)] == [r["loss"] for r in records_of(plain)]


def test_a_tool_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(reporting, "MAX_QUEUED", 3)
    released, said = threading.Event(), list[str]()

    class Hangs(Kept):
        def log(self, step: int, numbers: dict[str, float]) -> None:
            released.wait()

    _, summary = run_small(write_run_file(tmp_path), observers=[Reporter("tool", Hangs, said.append)])
    released.set()
    assert summary.outcome == "done" and said == ["report_to tool: does not answer; not all numbers were reported"]


def test_report_to_is_no_part_of_the_run(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    plain = plan_run(file)
    reported = plan_run(file, ['train.report_to=["tensorboard", "wandb"]'])
    assert plain.config.train.report_to == () and reported.config.train.report_to == ("tensorboard", "wandb")
    assert plain.identity == reported.identity and plain.config.to_plain() == reported.config.to_plain()
    refused("train", file, "--set", 'train.report_to=["tensorbord"]', code=2, says="tensorboard")
    assert load_run_config(file).train.report_to == ()


def test_what_a_tool_prints_is_not_among_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Talks(Kept):
        def log(self, numbers: dict[str, float], step: int) -> None:  # type: ignore[override]
            self.told.append((step, numbers))

        def finish(self) -> None:
            print("uploading")

    talks = Talks()

    def welcome(**_: str) -> Talks:
        print("welcome")
        return talks

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=welcome))
    file = write_run_file(tmp_path)
    command = ("train", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "-q", "--json")
    answer = run_command(*command, "--set", 'train.report_to=["trackio"]')
    assert json.loads(answer.out)["outcome"] == "done" and len(talks.told) == 25
    assert "welcome" in answer.err and "uploading" in answer.err


def test_the_verb_reports_and_says_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = write_run_file(tmp_path)
    command = ("train", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "-q", "--stop-after", 2)
    answer = run_command(*command, "--set", 'train.report_to=["wandb"]')
    assert answer.code == 75 and "report_to wandb: wandb: its package is not installed" in answer.err
    assert run_command(*command[:-1], 4).code == 75  # resumes without it: the key is no part of the config
    assert len(reporters(("wandb", "wandb"), RunDirectory(tmp_path), print)) == 1
