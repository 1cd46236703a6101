"""What pages and charts say, of whole runs, of half-written ones and of damaged ones."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fromscratch.dashboard.charts import AXES, COLUMNS, RUN_CHARTS
from fromscratch.dashboard.studies import CHARTS
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import Event
from fromscratch.studies.forecasts import Forecast, Total
from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.measures import CLASSIFIER_MEASURES, LOSS, Measure
from fromscratch.studies.noise import Spread
from fromscratch.studies.recorded import open_recorded, record_definition
from tests.command import run_command
from tests.dashboard.conftest import open_client
from tests.studies.planted import finish, open_folder, write_study

SEEDS = tuple(range(1, 9))
BASE = [2.0 + 0.01 * math.sin(seed) for seed in SEEDS]
LOSSES = {
    "baseline": BASE,
    "no-dropout": [loss - 0.5 + 0.001 * math.cos(5 * seed) for seed, loss in zip(SEEDS, BASE, strict=True)],
    "clipping": [*BASE[:3], math.nan, *BASE[4:7]],
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of a study with planted losses: one arm is better, one run diverged, some are missing."""
    file = write_study(tmp_path_factory.mktemp("study"), seeds=list(SEEDS), control_seeds=9, smallest_effect=0.1)
    folder = open_folder(file)
    finish(folder, LOSSES, seconds=3600, dollars_per_hour=2.0)
    record_definition(folder, {}, None)
    return folder.path.parent


def chart_of(client: TestClient, address: str) -> dict[str, Any]:
    answer = client.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    return json.loads(answer.text)


def labels(chart: dict[str, Any]) -> list[str]:
    return [one["label"] for one in chart["series"]]


def test_the_first_page_says_what_is_going_on(client: TestClient, runs: Path) -> None:
    run = RunDirectory(runs / "stopped")
    page = client.get("/").text
    assert "Nothing is being trained" in page and ">stopped</span>" in page and "10<span" in page
    with run.locked():
        page = client.get("/").text
    assert "Training now" in page and 'href="/runs/stopped"' in page.partition("</section>")[0]
    assert "Training now" not in client.get("/").text


def test_a_run_page_has_figures_config_events_samples_checkpoints_cost_and_commands(
    client: TestClient, runs: Path
) -> None:
    run = RunDirectory(runs / "stopped")
    run.log_event(Event.SAMPLE, step=10, text="the cat sees </script><b>")
    page = client.get("/runs/stopped").text
    for text in ("train.optimizer", "kind = adamw, learning_rate = 0.01", "step-00000010", "whole, latest", "set up"):
        assert text in page, text
    assert "the cat sees &lt;/script&gt;&lt;b&gt;" in page and "</script><b>" not in page
    assert f"fromscratch train {run.config} --name stopped" in page and "fromscratch generate" in page
    assert "fromscratch train" not in client.get("/runs/first").text  # it is done


def test_the_command_to_resume_resumes(client: TestClient, runs: Path) -> None:
    found = re.search(r"fromscratch (train [^<]+)", client.get("/runs/stopped").text)
    assert found is not None
    ended = run_command(*found[1].split(), "--stop-after", "11")
    assert ended.code == 75, ended.err
    assert "11<span" in client.get("/runs/stopped").text


def test_the_charts_of_a_run(client: TestClient) -> None:
    loss = chart_of(client, "/chart/loss/first")
    assert "training" in labels(loss) and "held out" in labels(loss) and not loss["partial"]
    training = next(one for one in loss["series"] if one["label"] == "training")
    assert training["x"] == list(range(1, 21)) and all(value > 0 for value in training["y"])
    norm = chart_of(client, "/chart/gradient-norm/first")
    assert "clipped above 1" in labels(norm) and norm["y"]["log"]
    assert max(chart_of(client, "/chart/learning-rate/first")["series"][0]["y"]) == pytest.approx(0.01)
    zoomed = chart_of(client, "/chart/loss/first?first=5&last=8")
    assert next(one for one in zoomed["series"] if one["label"] == "training")["x"] == [4, 5, 6, 7, 8, 9]
    rows = client.get("/metrics/first").text.splitlines()
    assert rows[0].startswith("step,loss,") and len(rows) == 21


def test_runs_over_one_another_by_step_tokens_hours_and_dollars(client: TestClient, runs: Path) -> None:
    names = "run=first&run=no-dropout"
    assert chart_of(client, f"/compare-chart?{names}")["series"][0]["x"][-1] == 20
    assert chart_of(client, f"/compare-chart?{names}&by=tokens")["series"][0]["x"][-1] == 20 * 8 * 16
    lines = (runs / "first" / "metrics.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in lines)
    hours = chart_of(client, f"/compare-chart?{names}&by=hours&value=grad_norm")["series"][0]["x"][-1]
    assert hours == pytest.approx(seconds / 3600, rel=1e-5)
    assert "no price is on record" in chart_of(client, f"/compare-chart?{names}&by=dollars")["empty"]
    page = client.get(f"/compare?{names}").text
    assert "model.dropout" in page and ">0.2<" in page and ">0<" in page


def test_dollars_follow_the_price_of_each_session(client: TestClient, runs: Path) -> None:
    run = RunDirectory(runs / "first")
    cost = json.loads(run.cost.read_text())
    (session,) = cost["sessions"]
    sessions = [
        {**session, "last_step": 10, "dollars_per_hour": 3600.0},
        {**session, "first_step": 10, "dollars_per_hour": 7200.0},
    ]
    run.cost.write_text(json.dumps({"sessions": sessions}))
    seconds = [json.loads(line)["seconds"] for line in run.metrics.read_text().splitlines()]
    chart = chart_of(client, "/compare-chart?run=first&by=dollars")
    assert chart["series"][0]["x"][-1] == pytest.approx(sum(seconds[:10]) + 2 * sum(seconds[10:]), rel=1e-5)


def test_a_study_is_judged_as_the_command_line_judges_it(planted: Path) -> None:
    client = open_client(planted)
    file = planted.parent / "study.toml"
    status = json.loads(run_command("study", "status", file, "--runs-dir", planted, "--json").out)
    page = client.get("/studies/study").text
    effects = chart_of(client, "/study-chart/effects/study")
    for arm, row in zip(status["verdicts"]["arms"], effects["rows"], strict=True):
        assert row["arm"] == arm["arm"] and row["verdict"] == arm["verdict"]
        assert row["effect"] == arm["effect"] and row["low"] == (arm["evidence"] or {}).get("low")
    assert effects["rows"][0]["verdict"] == "better" and len(effects["rows"][0]["dots"]) == 8
    assert "model.dropout: 0.2 -&gt; 0.0" in page and "1 lost" in page and "Next runs worth paying for" in page
    assert "baseline-seed-9" in page and "$2.00" in page
    first = client.get("/").text
    assert ">study</a>" in first and 'class="strip verdict-better"' in first and "Next run worth paying for" in first


@pytest.mark.parametrize("measure", [LOSS, CLASSIFIER_MEASURES["accuracy"]])
def test_a_definition_gives_the_study_back(tmp_path: Path, measure: Measure) -> None:
    folder = open_folder(write_study(tmp_path))
    study = replace(folder.study, measure=measure, tune=tmp_path / "tune.toml" if measure.is_tuned else None)
    forecasts = {"no-dropout": Forecast(Total(1, 20, 0.5, None), 1e9, "measured")}
    record_definition(StudyFolder(study, folder.path.parent), forecasts, Spread(0.01, 5.0))
    found = open_recorded(folder.path)
    assert found.folder.study.all_arms == study.all_arms and found.folder.study.config == study.config
    assert found.folder.study.measure == measure and bool(found.folder.study.tune) == measure.is_tuned
    assert found.costs.untrained["no-dropout"] == forecasts["no-dropout"] and found.borrowed == Spread(0.01, 5.0)


def test_a_study_without_a_definition_is_judged_by_its_runs(planted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted, tmp_path / "runs"))
    (folder / "study" / "definition.json").unlink()
    page = open_client(folder).get("/studies/study").text
    assert "trained without a record of its design" in page and ">better</span>" in page
    assert chart_of(open_client(folder), "/study-chart/evidence/study")["x"]["whole"]  # seeds are whole numbers
    (folder / "study" / "definition.json").write_text("{}")
    client = open_client(folder)
    assert client.get("/studies/study").status_code == 404 and "malformed" in client.get("/").text


def test_the_band_of_an_arm_is_the_exact_range_of_its_seeds(planted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted, tmp_path / "runs"))
    for seed, losses in ((1, (5.0, 3.0, 1.0)), (2, (4.0, 6.0, 2.0)), (3, (1.0, 1.0))):
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
        (folder / "study" / f"no-dropout-seed-{seed}" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    chart = chart_of(open_client(folder), "/study-chart/training/study")
    band, line = (one for one in chart["series"] if one["label"].startswith("no-dropout"))
    assert (band["x"], band["low"], band["high"]) == ([1, 2], [1, 1], [5, 6])
    assert line["y"] == pytest.approx([10 / 3, 10 / 3])


def test_the_confusion_matrix_of_a_classifier(client: TestClient, runs: Path) -> None:
    assert client.get("/chart/confusion/first").status_code == 404
    report = {"classes": ["ham", "<spam>"], "test": {"confusion": [[5, 1], [0, 4]]}}
    (runs / "first" / "classification.json").write_text(json.dumps(report))
    assert "Confusion matrix" in client.get("/runs/first").text
    answer = client.get("/chart/confusion/first")
    assert "<" not in answer.text and json.loads(answer.text)["counts"] == [[5, 1], [0, 4]]
    report["test"]["confusion"] = [[5, "x"], [0]]
    (runs / "first" / "classification.json").write_text(json.dumps(report))
    assert client.get("/chart/confusion/first").status_code == 404


def test_f28_a_half_line_is_ignored_then_shown(client: TestClient, runs: Path) -> None:
    metrics = runs / "first" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)

    def steps() -> list[int]:
        return next(one for one in chart_of(client, "/chart/loss/first")["series"] if one["label"] == "training")["x"]

    metrics.write_text("".join(lines[:5]) + lines[5][:30])
    assert steps() == [1, 2, 3, 4, 5]
    assert client.get("/runs/first").status_code == 200
    with metrics.open("a") as file:
        file.write(lines[5][30:])
    assert steps() == [1, 2, 3, 4, 5, 6]
    metrics.write_text("".join(lines[:3]))  # a resume wrote the file anew
    assert steps() == [1, 2, 3]
    metrics.unlink()
    assert chart_of(client, "/chart/loss/first")["series"][0]["kind"] == "points"


def test_b40_lines_that_are_no_records_are_skipped_and_counted(client: TestClient, runs: Path) -> None:
    lines = [
        '{"step": 1, "loss": 5.0, "outcome": "normal"}',
        "not JSON",
        '["a list"]',
        '{"step": 2, "loss": NaN, "outcome": "nonfinite"}',
        '{"step": 3, "loss": "4.0"}',
        '{"step": 4, "loss": 1e308}',
        '{"step": "5", "loss": 4.0}',
        '{"step": 6, "loss": 3.0, "outcome": ["x"]}',
        '{"step": 1, "loss": 4.5}',
        '{"step": 99999999999999999999999, "loss": 4.5}',
    ]
    (runs / "first" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    chart = chart_of(client, "/chart/loss/first")
    training = next(one for one in chart["series"] if one["label"] == "training")
    assert (training["x"], training["y"]) == ([1, 6], [4.5, 3])
    assert "not finite: 1 step" in labels(chart) and "5 lines are no record of a step" in chart["notes"][-1]


NASTY = ["", "{}", "[]", "null", "\x00\xff", '{"a": ' * 2000, '{"sessions": [{}]}', '{"state": 7, "step": "x"}', "[[["]


FILES = ["status.json", "events.jsonl", "metrics.jsonl", "cost.json", "machine.json", "run.toml"]


@pytest.mark.parametrize("name", FILES)
def test_f28_no_damaged_file_makes_an_error_page(client: TestClient, runs: Path, name: str) -> None:
    for content in NASTY:
        (runs / "first" / name).write_text(content, encoding="latin-1")
        for address in ("/", "/runs/first", "/compare?run=first&run=stopped", "/chart/loss/first"):
            assert client.get(address).status_code == 200, (name, content[:20], address)
    (runs / "first" / name).unlink()
    for address in ("/", "/runs/first", "/chart/loss/first"):
        assert client.get(address).status_code in (200, 404)


def test_evaluations_of_any_content_are_shown(client: TestClient, runs: Path) -> None:
    (runs / "first" / "evaluations").mkdir(exist_ok=True)
    for number, content in enumerate(NASTY):
        (runs / "first" / "evaluations" / f"e{number}.json").write_text(content, encoding="latin-1")
    (runs / "first" / "evaluations" / "loss.json").write_text('{"loss": 1.25, "by": {"a": 1}, "x": "<i>"}')
    page = client.get("/runs/first").text
    assert "1.25" in page and "&lt;i&gt;" in page and "this file cannot be read" in page


def hostile() -> Iterator[str]:
    """Names and parameters that no link of a page has."""
    yield from ("%00", "%0a", "'", '"', "<b>", "{{7*7}}", "..", "~", "a" * 5000, "%F0%9F%A6%8A", "%ff", "-1", "nan")


def test_a_crawl_with_hostile_names_and_values_finds_no_error(client: TestClient, planted: Path, runs: Path) -> None:
    shutil.copytree(planted / "study", runs / "study")
    addresses = ["/", "/compare", "/static/app.js", "/live/x"]
    for name in ("first", "study", "study/baseline-seed-1", *hostile()):
        addresses += [f"/runs/{name}", f"/studies/{name}", f"/metrics/{name}", f"/chart/confusion/{name}"]
        addresses += [f"/chart/{chart}/{name}" for chart in (*RUN_CHARTS, name)]
        addresses += [f"/study-chart/{chart}/{name}" for chart in (*CHARTS, name)]
        addresses += [f"/compare?run={name}", f"/compare-chart?run={name}", f"/static/{name}", f"/{name}"]
        addresses += [f"/compare-chart?run=first&by={name}&value={name}", f"/chart/loss/first?first={name}&last={name}"]
    addresses += [f"/compare-chart?run=first&by={axis}&value={column}" for axis in AXES for column in COLUMNS]
    found = {address: client.get(address).status_code for address in addresses}
    assert {address: code for address, code in found.items() if code not in (200, 400, 404)} == {}
    assert found["/studies/study"] == found["/runs/study/baseline-seed-1"] == 200


def test_empty_and_gone_folders_have_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    client = open_client(folder)
    assert "No runs yet" in client.get("/").text and "fromscratch quickstart" in client.get("/").text
    folder.rmdir()
    assert "does not exist any more" in client.get("/").text
    gone = client.get("/runs/first")
    assert gone.status_code == 404 and "there is no" in gone.text and "All runs" in gone.text
