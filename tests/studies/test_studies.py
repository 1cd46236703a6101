"""A small study from its file to its report, with real runs in processes of their own."""

import json
import math
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState
from fromscratch.studies.agenda import Agenda
from fromscratch.studies.early_stopping import hopeless
from fromscratch.studies.jobs import StudyFolder, missing
from fromscratch.studies.prices import Prices
from fromscratch.studies.results import judge, losses_after, validation_losses
from fromscratch.studies.runner import run_claimed, train_command
from fromscratch.studies.verdicts import Verdict
from tests.command import nothing_written, refused, run_command
from tests.processes.forked import Command, Fork, fromscratch
from tests.small import write_run_file
from tests.studies.planted import NO_DROPOUT, finish, open_folder, write_study

MAX_SECONDS = 240.0  # generous: two cores may be shared with other tests


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that one command has trained, two runs at once."""
    file = write_study(tmp_path_factory.mktemp("study"))
    ended = run_command("study", "run", file, "--runs-dir", file.parent / "runs", "--device", "cpu", "--jobs", 2)
    assert ended.code == 0, ended.err
    return file


def test_every_run_is_trained_once_and_is_what_its_command_says(trained: Path) -> None:
    folder = open_folder(trained)
    assert all(job.state == RunState.DONE for job in folder.jobs()) and missing(folder) == []
    for job in folder.jobs():
        assert [record["event"] for record in read_records(job.run.events)].count(Event.STARTED) == 1
    again = run_command("study", "run", trained, "--runs-dir", trained.parent / "runs")
    assert again.code == 0 and "begins" not in again.err
    job = folder.job(folder.study.arms[0], 2)
    typed = run_command(*train_command(folder.study, job), "--device", "cpu")
    assert typed.code == 0 and "is finished" in typed.err  # the same config, so the same run
    assert "dropout = 0.0" in job.run.config.read_text() and "seed = 2" in job.run.config.read_text()


def test_status_and_report_and_the_sealed_test_set(trained: Path, home: Path) -> None:
    runs = ("--runs-dir", trained.parent / "runs")
    status = json.loads(run_command("study", "status", trained, *runs, "--json").out)
    assert [row["state"] for row in status["runs"]] == ["done"] * 6 and status["record"] == {}
    assert {arm["verdict"] for arm in status["verdicts"]["arms"]} <= set(Verdict)
    sealed = run_command("study", "report", trained, *runs, "--sealed")
    assert sealed.code == 0, sealed.err
    folder = open_folder(trained)
    assert folder.read() == {} and "The test set is sealed" in (folder.path / "report.md").read_text()
    for expected in (1, 1):  # a second report opens nothing
        opened = run_command("study", "report", trained, *runs, "--device", "cpu", "--dollars-per-hour", 3600)
        assert opened.code == 0, opened.err
        record = folder.read()
        assert len(record["openings"]) == expected and len(record["test"]) == 6 and record["test_noise"] > 0
    page = (folder.path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and not re.search(r"(src|href)=\"https?:", page)
    text = (folder.path / "report.md").read_text()
    assert "opened 1 time" in text and "train.clip.max_norm" in text and re.search(r"\d s, \$\d+\.\d\d", text)
    facts = json.loads((folder.path / "report.json").read_text())
    losses = facts["result"]["control"]["losses"]
    assert losses == {seed: record["test"][f"baseline-seed-{seed}"]["loss"] for seed in losses}
    noise = json.loads((home / "noise.json").read_text())
    assert {one["study"] for arms in noise.values() for one in arms.values()} == {"study"}  # lent to other studies


@pytest.mark.parametrize("options", [(), ("--sealed",)])
def test_a_report_without_any_run_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    file = write_study(tmp_path)
    with nothing_written(tmp_path):
        refused("study", "report", file, "--runs-dir", tmp_path / "runs", *options, code=2, says="no run in")


def test_a_test_set_within_the_validation_slice_is_refused(trained: Path, tmp_path: Path) -> None:
    """In a copy of the study, whose test set nobody has opened."""
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "runs" / "study" / "study.json").unlink(missing_ok=True)
    copy = tmp_path / trained.name
    copy.write_text(trained.read_text() + "\n[test]\nstart = 100\n")
    refused("study", "report", copy, "--runs-dir", tmp_path / "runs", code=2, says="within the validation slice")
    assert open_folder(copy).read() == {}


def test_two_runners_never_train_one_run_twice(tmp_path: Path) -> None:
    folder = open_folder(write_study(tmp_path))
    job = folder.jobs()[0]
    with folder.claimed(job) as mine:
        assert mine is not None
        assert run_claimed(folder, job, ["train", "never"], {}, lambda: False) is None
    with folder.claimed(job) as again:
        assert again is not None


def test_a_killed_runner_leaves_no_process_and_the_next_one_resumes(tmp_path: Path) -> None:
    file = write_study(tmp_path, seeds=[1], control_seeds=1, interventions=NO_DROPOUT)
    write_run_file(tmp_path, "baseline", train={"evaluate_every": 0}, data={"tokens": 10**9, "epochs": 10**6})
    words = ("study", "run", str(file), "--device", "cpu", "-q")
    runner = Fork(Command(fromscratch, words, tmp_path))
    run = RunDirectory(tmp_path / "runs" / "study" / "baseline-seed-1")
    wait_until(lambda: run.metrics.is_file() and len(list(read_records(run.metrics))) > 5)
    runner.send(signal.SIGKILL)
    runner.wait()
    wait_until(lambda: not run.holder() and run.read_status().state == RunState.STOPPED)
    assert run.read_status().reason == "its launcher is gone"
    wait_until(lambda: is_free(open_folder(file)))
    reached = run.read_status().step
    folder = open_folder(file)
    assert Agenda(folder, Prices(folder, device="cpu")).waiting()[0].name == run.name, "the killed run is next"
    again = Fork(Command(fromscratch, words, tmp_path))
    wait_until(lambda: any(one["event"] == Event.RESUMED for one in read_records(run.events)))
    again.send(signal.SIGTERM)
    assert again.wait() == 75
    resumed = next(one for one in read_records(run.events) if one["event"] == Event.RESUMED)
    assert resumed["step"] == reached
    assert not (tmp_path / "runs" / "study" / "no-dropout-seed-1" / "metrics.jsonl").exists()


def is_free(folder: StudyFolder) -> bool:
    """Whether no process has a claim to the first run any more."""
    with folder.claimed(folder.jobs()[0]) as mine:
        return mine is not None


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_planted_effect_is_found_a_diverged_run_is_no_number_and_an_early_look_says_less(tmp_path: Path) -> None:
    seeds = list(range(1, 9))
    folder = open_folder(write_study(tmp_path, seeds=seeds, control_seeds=8, smallest_effect=0.01))
    base = [3.0 + 0.001 * math.sin(7 * seed) for seed in seeds]
    better = [loss - 0.05 + 0.001 * math.cos(5 * seed) for seed, loss in zip(seeds, base, strict=True)]
    clipped = [math.nan, *(loss + 0.001 * math.sin(3 * seed) for seed, loss in zip(seeds[1:], base[1:], strict=True))]
    finish(folder, {"baseline": base, "no-dropout": better, "clipping": clipped})
    losses = validation_losses(folder)
    found = {arm.arm: arm for arm in judge(folder, losses).result.arms}
    assert found["no-dropout"].verdict == Verdict.BETTER
    assert (
        found["clipping"].verdict == Verdict.UNKNOWN and "1 of 8 runs of clipping diverged" in found["clipping"].reason
    )
    early = judge(folder, losses_after(losses, 1)).result
    assert all(arm.verdict in (Verdict.UNKNOWN, Verdict.UNDECIDED) for arm in early.arms)
    status = run_command("study", "status", tmp_path / "study.toml", "--runs-dir", tmp_path / "runs")
    assert re.search(r"no-dropout +better", status.out) and re.search(r"clipping +unknown", status.out)


def test_a_run_without_hope_is_stopped_by_the_stated_rule_only(tmp_path: Path) -> None:
    folder = open_folder(write_study(tmp_path, early_stop={"margin": 0.5}))
    finish(folder, {"baseline": [2.0, 2.0], "no-dropout": [None, None], "clipping": [None, None]}, num_steps=20)
    job = folder.job(folder.study.arms[0], 1)
    job.run.create()
    job.run.write_status(RunState.RUNNING, step=0, num_steps=20)
    job.run.log_event(Event.EVALUATION, step=10, loss=9.0)
    assert hopeless(folder, job) == ""  # half of the steps is too early, however bad it looks
    job.run.log_event(Event.EVALUATION, step=20, loss=2.4)
    assert hopeless(folder, job) == ""
    job.run.log_event(Event.EVALUATION, step=20, loss=2.6)
    assert hopeless(folder, job).startswith("after 100% of its steps its held-out loss was 0.6000 above the")
    wild = folder.job(folder.study.control, 2).run
    wild.write_status(RunState.DIVERGED, step=20, num_steps=20)
    wild.log_event(Event.EVALUATION, step=20, loss=99.0)
    assert hopeless(folder, job).endswith("(mean of 1), more than 0.5"), "a diverged baseline is no yardstick"
    folder.append("stopped_early", {"run": job.name, "reason": "r"})
    assert math.isnan(validation_losses(folder)["no-dropout"][1] or 0) and job.name not in [
        j.name for j in missing(folder)
    ]


def test_seeds_can_be_added_to_a_sequential_study_only(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    runs = ("--runs-dir", tmp_path / "runs")
    assert "added seeds 3, 4" in run_command("study", "add-seeds", file, 2, *runs).err
    assert open_folder(file).study.arms[0].seeds == (1, 2, 3, 4)
    (tmp_path / "fixed.toml").write_text(file.read_text().replace("seeds =", 'design = "fixed"\nseeds =', 1))
    refused("study", "add-seeds", tmp_path / "fixed.toml", 2, *runs, code=2, says="valid for the declared seeds only")


def test_a_change_that_is_not_valid_leaves_nothing(tmp_path: Path) -> None:
    file = write_run_file(tmp_path, "baseline")
    words = ("study", "try", file, "--name", "mine", "--runs-dir", tmp_path / "runs", "--set", "model.dropuot=0.0")
    with nothing_written(tmp_path):
        refused(*words, code=2, says=f"mine: change: {file}: model.dropuot: unknown key; did you mean 'dropout'?")


def test_try_makes_runs_and_reports_the_smallest_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))  # nothing to borrow
    file = write_run_file(tmp_path, "baseline", train={"evaluate_every": 4})
    words = ("study", "try", file, "--set", "train.optimizer.learning_rate=1.0", "--seeds", 1, "--device", "cpu", "-q")
    done = run_command(*words, "--runs-dir", tmp_path / "runs", "--jobs", 2)
    assert done.code == 0, done.err
    assert re.search(r"change +unknown", done.out), "one seed is no evidence"
    assert (tmp_path / "runs" / "baseline-learning_rate-1.0" / "report.html").is_file()
