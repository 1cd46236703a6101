"""Studies of tuned models: of tunings, and of base models that are judged by what becomes of them when tuned."""

import csv
import json
import math
import re
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fromscratch.errors import UsageError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState
from fromscratch.studies import verbs
from fromscratch.studies.definition import load_study
from fromscratch.studies.jobs import Job, StudyFolder, missing
from fromscratch.studies.measures import CLASSIFIER_MEASURES, LOSS, TUNED_LOSS
from fromscratch.studies.past import compare_findings
from fromscratch.studies.registry import borrowed_spread, setting_of
from fromscratch.studies.results import judge, validation_losses
from fromscratch.studies.runner import commands_of, run_claimed, run_study
from fromscratch.studies.verdicts import Verdict, judge_study
from tests.command import refused, run_command
from tests.finetuning.small import FORMAT, make_base
from tests.small import SMALL_RUN, enter_copy

TUNE: dict[str, Any] = {
    "data": {"store": "texts.csv", "epochs": 4},
    "train": {"global_batch": 8, "precision": "fp32", "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    "tune": {"kind": "classify", "patience": 1, "validation_share": 0.2, "test_share": 0.2},
}
INSTRUCT: dict[str, Any] = {
    **TUNE,
    "data": {"store": "records.json", "epochs": 2},
    "tune": {"kind": "instruct", "prompt": FORMAT},
}
ACCURACY = CLASSIFIER_MEASURES["accuracy"]


class Here:
    """Trains the runs of a study in this process, one at a time."""

    num_slots = 1

    def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
        """Runs the same commands as ``LocalDevices``, under the same claim."""
        ended: Future[int | None] = Future()
        with folder.claimed(job) as claim:
            assert claim is not None
            for command in commands_of(folder.study, job):
                answer = run_command(*command, "--device", "cpu", "-q")
                assert answer.code == 0, answer.err
        ended.set_result(0)
        return ended

    def stop(self, folder: StudyFolder) -> None:
        """Nothing runs beside this process."""

    def close(self, folder: StudyFolder) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small model in ``runs/base``, records, texts, and run files that tune."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    words = {"animal": ["cat", "dog", "cow"], "colour": ["red", "blue", "grey"]}
    with (folder / "texts.csv").open("w", newline="") as file:
        rows = [(name, f"{i} {found[i % 3]}") for name, found in words.items() for i in range(30)]
        csv.writer(file).writerows([("label", "text"), *rows])
    write(folder / "classify.toml", TUNE)
    write(folder / "instruct.toml", INSTRUCT)
    model = {**SMALL_RUN["model"], "context_length": 96}
    write(folder / "pretrain.toml", {**SMALL_RUN, "model": model, "data": {"store": "store", "tokens": 3840}})
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_copy(base, tmp_path, monkeypatch)


def write(file: Path, values: dict[str, Any]) -> Path:
    file.write_text(tomli_w.dumps(values))
    return file


def write_study(folder: Path, **keys: Any) -> Path:
    common = {"seeds": [1, 2], "control_seeds": 2, "smallest_effect": 0.01}
    values = {key: value for key, value in {**common, **keys}.items() if value is not None}
    return write(folder / "study.toml", values)


def study_of_tunings(folder: Path) -> Path:
    write(folder / "tuning.toml", {**TUNE, "train": {**TUNE["train"], "start_from": "base"}})
    return write_study(
        folder,
        baseline="tuning.toml",
        measure="balanced-accuracy",
        interventions={"untrained": {"train": {"optimizer": {"learning_rate": 1e-9}}}},
    )


def test_a_study_of_tunings_compares_accuracies_and_higher_is_better(folder: Path) -> None:
    file = study_of_tunings(folder)
    opened = verbs.open_folder(file, Path("runs"))
    assert not run_study(opened, Here(), on_event=lambda _line: None).has_failed
    reports = {job.name: json.loads((job.run.path / "classification.json").read_text()) for job in opened.jobs()}
    found = validation_losses(opened)
    assert found["untrained"][2] == reports["untrained-seed-2"]["validation"]["balanced_accuracy"]
    judged = judge(opened, found).result.arms[0]
    assert judged.paired and judged.effect is not None and judged.effect < -0.1
    status = run_command("study", "status", file, "--once")
    assert status.code == 0, status.err
    assert "the balanced accuracy changes by" in status.out or "the effect, -" in status.out, status.out
    assert "nats" not in status.out
    opened_test = run_command("study", "report", file, "--device", "cpu")
    assert opened_test.code == 0, opened_test.err
    record = opened.read()
    assert len(record["openings"]) == 1
    assert record["test"]["baseline-seed-1"]["loss"] == reports["baseline-seed-1"]["test"]["balanced_accuracy"]
    text = (opened.path / "report.md").read_text()
    assert "mean balanced accuracy on the test part is" in text and "share of the texts of a class" in text
    assert "higher is better" in text and "| mean balanced accuracy |" in text
    assert "nats" not in re.sub(r".*(Held-out loss minus).*", "", text)
    written = json.loads((opened.path / "report.json").read_text())
    assert written["result"]["measure"]["higher_is_better"] is True and written["margin"] == 0.01
    tried = run_command("study", "tried", "train.optimizer.learning_rate", "--studies", "runs")
    assert "balanced accuracy, test part" in tried.out


def test_a_run_that_is_done_but_not_measured_is_measured_and_not_trained_again(folder: Path) -> None:
    opened = verbs.open_folder(study_of_tunings(folder), Path("runs"))
    job = opened.jobs()[0]
    Here().submit(opened, job)
    assert job.state == RunState.DONE and opened.is_over(job)
    before = (job.run.path / "metrics.jsonl").read_bytes()
    report = job.run.path / "classification.json"
    measured = report.read_bytes()
    report.unlink()
    assert opened.jobs()[0].state == RunState.INTERRUPTED and job.name in [one.name for one in missing(opened)]
    Here().submit(opened, job)
    assert report.read_bytes() == measured and (job.run.path / "metrics.jsonl").read_bytes() == before


def test_base_models_are_judged_by_their_tuned_answers(folder: Path) -> None:
    file = write_study(
        folder,
        baseline="pretrain.toml",
        tune="instruct.toml",
        interventions={"no-dropout": {"model": {"dropout": 0.0}}},
    )
    opened = verbs.open_folder(file, Path("runs"))
    assert opened.study.measure == TUNED_LOSS
    job = opened.job(opened.study.arms[0], 2)
    assert job.tuned is not None
    # Killed between the stages, and within the second: what is done is never done again.
    assert run_command(*commands_of(opened.study, job)[0], "--device", "cpu", "-q").code == 0
    assert job.state == RunState.INTERRUPTED
    (rest,) = commands_of(opened.study, job)
    assert run_command(*rest, "--device", "cpu", "-q", "--stop-after", 3).code == 75
    assert opened.job(job.arm, 2).state == RunState.STOPPED
    assert not run_study(opened, Here(), on_event=lambda _line: None).has_failed
    for one in opened.jobs():
        for run in one.stages:
            assert [record["event"] for record in read_records(run.events)].count(Event.STARTED) == 1
    assert any(record["event"] == Event.RESUMED for record in read_records(job.tuned.events))
    parent = next(record for record in read_records(job.tuned.events) if record["event"] == Event.PARENT)
    assert parent["source"] == f"{job.run.path.resolve()}@latest"
    assert "seed = 2" in job.tuned.config.read_text()
    lowest = min(r["loss"] for r in read_records(job.tuned.events) if r["event"] == Event.EVALUATION)
    assert validation_losses(opened)["no-dropout"][2] == lowest
    status = json.loads(run_command("study", "status", file, "--json").out)
    assert [row["state"] for row in status["runs"]] == ["done"] * 4
    assert all(row["run"].endswith("-tuned") for row in status["runs"])
    assert status["verdicts"]["arms"][0]["share_of_training"] is None
    report = run_command("study", "report", file, "--device", "cpu")
    assert report.code == 0, report.err
    record, text = opened.read(), (opened.path / "report.md").read_text()
    assert len(record["test"]) == 4 and all(0 < one["loss"] < 10 for one in record["test"].values())
    assert "mean loss on the test part is" in text and "nats per token" in text and "lower is better" in text
    write(folder / "instruct.toml", {**INSTRUCT, "tune": {**INSTRUCT["tune"], "mask_prompt": True}})
    said = refused("study", "status", file, code=2, says="-tuned was trained with another config")
    assert "tune.mask_prompt: False -> True" in said


def test_a_run_and_its_tuning_are_one_job_in_processes_of_their_own(folder: Path) -> None:
    file = write_study(
        folder,
        baseline="pretrain.toml",
        tune="instruct.toml",
        interventions={"no-dropout": {"model": {"dropout": 0.0}}},
    )
    opened = verbs.open_folder(file, Path("runs"))
    job = opened.jobs()[0]
    assert run_claimed(opened, job, ["--device", "cpu"], {}, lambda: False) == 0
    assert job.state == RunState.DONE and opened.is_over(job)
    assert run_claimed(opened, job, ["--device", "cpu"], {}, lambda: False) is None


def test_the_loss_on_the_test_part_is_the_one_that_training_would_measure(folder: Path) -> None:
    """On a test part that holds the records of the validation part."""
    from fromscratch.finetuning.test_loss import instruction_test_loss
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware

    assert run_command("train", "instruct.toml", "--set", "train.start_from=base", "--device", "cpu", "-q").code == 0
    run = RunDirectory(Path("runs/instruct"))
    shutil.copy(run.path / "split" / "validation.json", run.path / "split" / "test.json")
    lowest = min(r["loss"] for r in read_records(run.events) if r["event"] == Event.EVALUATION)
    assert instruction_test_loss(open_model(str(run.path), find_hardware("cpu"))) == pytest.approx(lowest, abs=1e-5)


def test_more_accuracy_is_better_and_less_is_worse() -> None:
    base = {seed: 0.8 + 0.001 * math.sin(seed) for seed in range(8)}
    losses = {
        "baseline": base,
        "up": {seed: value + 0.05 + 0.001 * math.cos(3 * seed) for seed, value in base.items()},
        "down": {seed: value - 0.05 + 0.001 * math.cos(5 * seed) for seed, value in base.items()},
    }
    verdicts = {
        measure.name: {
            arm.arm: arm.verdict for arm in judge_study(losses, "baseline", margin=0.01, measure=measure).arms
        }
        for measure in (LOSS, ACCURACY)
    }
    assert verdicts["accuracy"] == {"up": Verdict.BETTER, "down": Verdict.WORSE}
    assert verdicts["loss"] == {"up": Verdict.WORSE, "down": Verdict.BETTER}


def test_a_spread_of_accuracies_is_never_lent_to_a_study_of_losses(folder: Path) -> None:
    change = {"no-dropout": {"model": {"dropout": 0.0}}}
    plain = load_study(write_study(folder, baseline="pretrain.toml", interventions=change))
    settings = {setting_of(plain)}
    for keys in ({"measure": "accuracy"}, {"measure": "loss"}, {"measure": "balanced-accuracy"}):
        study = load_study(
            write_study(folder, baseline="pretrain.toml", tune="classify.toml", interventions=change, **keys)
        )
        assert borrowed_spread(study) is None
        settings.add(setting_of(study))
    assert len(settings) == 4
    with pytest.raises(UsageError, match="measure different things, accuracy and loss"):
        compare_findings({"baseline": {"measure": "accuracy"}}, {"baseline": {"measure": "loss"}})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"baseline": "pretrain.toml", "measure": "accuracy"}, "measure = 'accuracy' is one of classifiers"),
        ({"tune": "instruct.toml", "measure": "accuracy"}, "measure = 'accuracy' is one of classifiers"),
        ({"tune": "instruct.toml", "smallest_effect": None}, "a study of tuned models needs smallest_effect"),
        ({"tune": "pretrain.toml"}, "needs [tune], and no train.start_from"),
        ({"tune": "gone.toml"}, "gone.toml: no such run file"),
        ({"tune": "instruct.toml", "early_stop": {"margin": 0.5}}, "early_stop is for studies of pre-training"),
        ({"tune": "instruct.toml", "test": {"start": 100}}, "test names text of a token store"),
        ({"baseline": "instruct.toml", "tune": "classify.toml"}, "the baseline has [tune] too"),
        (
            {"baseline": "instruct.toml", "interventions": {"masked": {"tune": {"mask_prompt": True}}}},
            "masked changes tune.mask_prompt, which changes the tokens",
        ),
    ],
)
def test_studies_that_make_no_sense_are_refused(folder: Path, keys: dict[str, Any], says: str) -> None:
    changes = {"spikes": {"train": {"spike": {"kind": "warn"}}}}
    file = write_study(folder, **{"baseline": "pretrain.toml", "interventions": changes, **keys})
    refused("study", "status", file, code=2, says=says)


def test_try_takes_a_measure(folder: Path) -> None:
    write(folder / "tuning.toml", {**TUNE, "train": {**TUNE["train"], "start_from": "base"}})
    words = ("study", "try", "tuning.toml", "--set", "tune.train=head", "--seeds", 1)
    refused(*words, "--measure", "accuracy", code=2, says="needs smallest_effect")
