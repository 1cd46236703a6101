"""A study of recurrent models: other kinds and settings as arms, judged on the held-out text."""

import json
from pathlib import Path

import pytest
import tomli_w

from fromscratch.runs.states import RunState
from fromscratch.studies.jobs import missing
from fromscratch.studies.results import validation_losses
from fromscratch.studies.runner import train_command
from tests.command import run_command
from tests.studies.planted import open_folder
from tests.training.test_recurrent import LSTM, run_file


def test_a_study_over_an_lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    run_file(tmp_path, "baseline", model=LSTM, data={"epochs": 1, "validation_share": 0.0})
    arms = {"gru": {"model": {"kind": "gru"}}, "wider": {"model": {"hidden_dim": 24}}}
    study = {"baseline": "baseline.toml", "seeds": [1, 2], "control_seeds": 2, "interventions": arms}
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(study))
    folder = open_folder(file)
    for job in folder.jobs():
        ended = run_command(*train_command(folder.study, job), "--device", "cpu")
        assert ended.code == 0, ended.err
    assert [job.state for job in folder.jobs()] == [RunState.DONE] * 6 and missing(folder) == []
    losses = validation_losses(folder)
    assert len({loss for arm in losses.values() for loss in arm.values()}) == 6
    runs = ("--runs-dir", tmp_path / "runs")
    status = json.loads(run_command("study", "status", file, *runs, "--json").out)
    assert [arm["arm"] for arm in status["verdicts"]["arms"]] == ["gru", "wider"]
    report = run_command("study", "report", file, *runs, "--device", "cpu")
    assert report.code == 0, report.err
    assert len(folder.read()["test"]) == 6
