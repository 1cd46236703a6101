"""What studies say about their runs: status, reports, prices of a decision, and what earlier studies found."""

import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from fromscratch.cli.study_status import live_table, status, status_rows
from fromscratch.runs.records import RecordWriter
from fromscratch.runs.states import Event, RunState
from fromscratch.studies.prices import Prices
from fromscratch.studies.results import baseline_curve, judge
from fromscratch.studies.verdicts import judge_study
from tests.command import refused, run_command
from tests.conftest import REPOSITORY
from tests.studies.planted import NO_DROPOUT, finish, open_folder, write_study

HALF = {"half": {"model": {"dropout": 0.1}}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FROMSCRATCH_DOLLARS_PER_HOUR", raising=False)


def ended(folder: Path, no_dropout: float = -0.05, context: int = 16, **keys: object) -> Path:
    """A study of eight seeds whose runs have ended: one arm better, one diverged once. An hour a run, at $2."""
    file = write_study(folder, seeds=list(range(1, 9)), control_seeds=8, **{"smallest_effect": 0.01, **keys})
    baseline = file.parent / "baseline.toml"
    baseline.write_text(baseline.read_text().replace("context_length = 16", f"context_length = {context}"))
    base = [3.0 + 0.001 * math.sin(7 * seed) for seed in range(8)]
    clipped = [math.nan, *(loss + 0.001 * math.sin(3 * seed) for seed, loss in enumerate(base[1:]))]
    better = [loss + no_dropout + 0.001 * math.cos(5 * seed) for seed, loss in enumerate(base)]
    losses = {"baseline": base, "no-dropout": better, "clipping": clipped, "half": better}
    finish(open_folder(file), losses, seconds=3600.0, dollars_per_hour=2.0)
    return file


def words(verb: str, file: Path) -> tuple[object, ...]:
    return ("study", verb, file, "--runs-dir", file.parent / "runs")


def test_too_few_seeds_give_no_interval_in_words(tmp_path: Path) -> None:
    (arm,) = judge_study({"baseline": {1: 3.0, 2: 3.01}, "arm": {1: 2.9, 2: 2.95}}, "baseline", margin=0.01).arms
    assert math.isinf(arm.evidence.high) and "no interval yet" in arm.reason and "inf" not in arm.reason
    file = write_study(tmp_path, smallest_effect=0.01)
    finish(open_folder(file), {"baseline": [3.0, 3.01], "no-dropout": [2.9, 2.95], "clipping": [3.0, 3.02]})
    said = run_command(*words("status", file), "--once").out
    report = run_command(*words("report", file), "--sealed")
    pages = [(open_folder(file).path / name).read_text() for name in ("report.md", "report.html")]
    for text in (said, report.out, *pages):
        assert "no interval yet" in text and not re.search(r"[+-]inf\b", text)
    tried = run_command("study", "tried", "model.dropout", "--studies", tmp_path / "runs").out
    assert "no interval yet" in tried


def test_undecided_arms_name_seeds_hours_and_dollars(tmp_path: Path) -> None:
    file = ended(tmp_path, no_dropout=-0.0004, smallest_effect=0.0015)
    verdicts = json.loads(run_command(*words("status", file), "--json").out)["verdicts"]
    arm = verdicts["arms"][0]
    seeds = arm["seeds_to_decide"]
    assert arm["verdict"] == "undecided" and seeds >= 1
    assert arm["to_decide"] == {"runs": 2 * seeds, "steps": 40 * seeds, "hours": 2 * seeds, "dollars": 4.0 * seeds}
    said = run_command(*words("status", file)).out
    assert f"about {seeds} more seed" in said and f"${4 * seeds:,.2f})" in said
    run_command(*words("report", file), "--sealed")
    assert f"${4 * seeds:,.2f})" in (open_folder(file).path / "report.md").read_text()


def test_an_effect_is_told_in_nats_share_of_training_and_dollars(tmp_path: Path) -> None:
    file = ended(tmp_path)
    arm = json.loads(run_command(*words("status", file), "--json").out)["verdicts"]["arms"][0]
    assert (arm["verdict"], arm["effect"]) == ("better", pytest.approx(-0.05, abs=1e-4))
    assert arm["share_of_training"] == pytest.approx(0.05, abs=1e-3), "the curve falls by 1 nat over the run"
    assert arm["dollars"] == pytest.approx(0.05 * 2, abs=2e-3), "that share of a run of $2"
    said = run_command(*words("status", file)).out
    assert re.search(r"no-dropout +better +-0\.0500 +\+5\.0% +\+\$0\.10", said)
    for one in open_folder(file).jobs():
        one.run.cost.unlink()
    assert re.search(r"no-dropout +better +-0\.0500 +\+5\.0% +unknown", run_command(*words("status", file)).out)


def test_a_diverged_run_is_seen_everywhere_and_is_nowhere_a_number(tmp_path: Path) -> None:
    file = ended(tmp_path)
    folder = open_folder(file)
    run = folder.job(folder.study.arms[1], 1).run
    run.log_event(Event.EVALUATION, step=10, loss=77.7)  # its last finite loss
    found = json.loads(run_command(*words("status", file), "--json").out)
    row = next(row for row in found["runs"] if row["run"] == "clipping-seed-1")
    assert (row["state"], row["loss"], row["training_loss"]) == ("diverged", None, None)
    assert found["verdicts"]["arms"][1]["runs"]["diverged"] == [1]
    report = run_command(*words("report", file), "--sealed")
    page = (folder.path / "report.md").read_text()
    assert "24 of 24 runs have ended, 1 of them diverged or stopped by the rule" in page
    assert re.search(r"\| clipping \| 7 of 8, 1 diverged or stopped \| 3\.0\d+ \|", page)
    tried = run_command("study", "tried", "train.clip", "--studies", tmp_path / "runs").out
    assert re.search(r"clipping .* unknown +1 ", tried)
    for text in (report.out, page, tried, run_command(*words("status", file)).out):
        assert "77.7" not in text and "nan" not in text.lower()


def test_a_diverged_baseline_enters_no_curve(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    folder = open_folder(file)
    finish(folder, {"baseline": [math.nan, None], "no-dropout": [], "clipping": []})
    folder.job(folder.study.control, 1).run.log_event(Event.EVALUATION, step=0, loss=9.0)
    assert baseline_curve(folder) == []


def test_a_test_loss_that_is_not_finite_is_diverged_not_missing(tmp_path: Path) -> None:
    from fromscratch.studies import test_set

    file = ended(tmp_path)
    folder = open_folder(file)
    names = [job.name for job in folder.jobs()]
    folder.update(test={name: {"loss": None if name == "no-dropout-seed-1" else 3.0, "tokens": 9} for name in names})
    losses = test_set.open_test_set(folder, device=None, on_run=print)
    assert math.isnan(losses["no-dropout"][1] or 0.0) and losses["no-dropout"][2] == 3.0
    arm = judge(folder, losses).result.arms[0]
    assert arm.runs.diverged == (1,) and arm.runs.missing == ()


def test_runs_without_held_out_text_are_refused_not_called_diverged(tmp_path: Path) -> None:
    file = ended(tmp_path)
    folder = open_folder(file)
    folder.jobs()[0].run.events.unlink()
    refused(*words("report", file), "--sealed", code=2, says="has measured no held-out loss")
    assert "no verdicts yet" in run_command(*words("status", file)).err


def test_status_is_a_live_table_while_a_run_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ended(tmp_path)
    folder = open_folder(file)
    run = folder.job(folder.study.arms[0], 4).run
    run.write_status(RunState.RUNNING, step=5, num_steps=20)
    with RecordWriter(run.metrics) as metrics:
        for step in range(1, 9):
            metrics.write({"step": step, "tokens": step, "loss": 3.2, "tokens_per_second": 4000.0, "seconds": 10.0})
    with run.locked():
        prices = Prices(folder)
        rows = status_rows(folder, prices)
        row = next(row for row in rows if row["run"] == "no-dropout-seed-4")
        assert (row["state"], row["step"], row["tokens_per_second"]) == ("running", 8, 4000.0)
        assert row["seconds_left"] == pytest.approx(120.0) and row["training_loss"] == 3.2
        assert row["dollars"] == pytest.approx(2.0)
        console = Console(width=250, record=True, file=io.StringIO())
        console.print(live_table(folder, prices, rows))
        text = console.export_text()
        assert "24 runs: 22 done, 1 running, 1 diverged" in text and re.search(r"no-dropout +better", text)
        assert re.search(r"no-dropout-seed-4 +running +8 of 20 +3\.2000 .* 4,000 +2 minutes +\$2\.00", text)
        assert "baseline-seed-1" not in text
        shown: list[bool] = []
        monkeypatch.setattr("fromscratch.cli.study_status._show_live", lambda *_: shown.append(True))
        monkeypatch.setattr("fromscratch.cli.study_status.sys.stdout.isatty", lambda: True, raising=False)
        status(file, tmp_path / "runs")
        status(file, tmp_path / "runs", once=True)
    status(file, tmp_path / "runs")
    assert shown == [True], "a terminal, a run that is trained, and no --once"


def test_compare_tells_settings_and_whether_effects_differ(tmp_path: Path) -> None:
    for name, effect, context in (("one", -0.05, 16), ("two", -0.30, 8)):
        (tmp_path / name).mkdir()
        file = ended(tmp_path / name, no_dropout=effect, context=context)
        assert run_command(*words("report", file), "--sealed").code == 0
    one, two = (tmp_path / name / "runs" / "study" / "report.json" for name in ("one", "two"))
    found = json.loads(run_command("study", "compare", one, two, "--json").out)
    assert found["settings"] == ["model.context_length: 16 -> 8"]
    verdicts = {pair["arm"]: pair["verdict"] for pair in found["arms"]}
    assert verdicts["no-dropout"] == "they differ" and verdicts["clipping"].startswith("may be the same (diverged")
    pair = found["arms"][0]
    assert pair["difference"] == pytest.approx(-0.25) and pair["low"] < -0.25 < pair["high"] < 0
    file = tmp_path / "one" / "study.toml"
    said = run_command("study", "compare", file, one, "--runs-dir", tmp_path / "one" / "runs")
    assert said.code == 0 and "settings: the same" in said.out and "may be the same" in said.out
    (tmp_path / "other.json").write_text("{}")
    refused("study", "compare", one, tmp_path / "other.json", code=2, says="not the report of a study")


def test_tried_lists_what_studies_found_and_suggests_keys(tmp_path: Path) -> None:
    file = ended(tmp_path, interventions={**NO_DROPOUT, **HALF}, stacks={"both": {"of": ["no-dropout"]}})
    waiting = run_command("study", "tried", "model.dropout", "--studies", tmp_path)
    assert waiting.code == 0 and "study.toml: changes model.dropout, and has no report yet" in waiting.err
    finish(
        open_folder(file),
        {"baseline": [], "no-dropout": [], "half": [], "both": [2.9, 2.9001, 2.9, 2.9002, 2.9003, 2.9, 2.9, 2.9]},
    )
    assert run_command(*words("report", file), "--sealed").code == 0
    for studies in (tmp_path, tmp_path / "nothing-here"):  # a report there, or the data folder's record
        found = json.loads(run_command("study", "tried", "model.dropout", "--studies", studies, "--json").out)
        assert [arm["arm"] for arm in found["arms"]] == ["no-dropout", "half", "both"]
        assert found["without_report"] == []
    arm = found["arms"][0]
    assert (arm["change"], arm["verdict"]) == ("model.dropout: 0.2 -> 0.0", "better") and arm["low"] < arm["effect"]
    assert json.loads(run_command("study", "tried", "train.clip", "--studies", tmp_path, "--json").out)["arms"] == []
    refused("study", "tried", "model.dropuot", code=2, says="did you mean 'model.dropout'?")
    refused("study", "tried", "dropout", code=2, says="did you mean 'model.dropout'?")
    refused("study", "tried", "n_layer", code=2, says="did you mean 'model.num_layers'?")


def test_the_shipped_study_is_found() -> None:
    found = json.loads(run_command("study", "tried", "model.init", "--studies", REPOSITORY / "studies", "--json").out)
    assert [(arm["arm"], arm["verdict"]) for arm in found["arms"]] == [("gpt2-init", "better"), ("all", "better")]
    text = (REPOSITORY / "studies" / "laptop" / "report.json").read_text("utf-8")
    assert not re.search(r"/(tmp|home|work|root)/", text)
