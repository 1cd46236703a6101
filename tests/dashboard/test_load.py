"""What many open pages share: one look at the disk, one reading of a file, one answer."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fromscratch.dashboard import metrics
from fromscratch.dashboard.app import create_app
from fromscratch.dashboard.charts import RUN_CHARTS
from fromscratch.dashboard.site import Site
from fromscratch.dashboard.stamps import MIN_INTERVAL_SECONDS, Memory, Watch, stamp_at
from fromscratch.runs.directory import RunDirectory


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of steps whenever a chart of the loss is computed."""
    counts: list[int] = []
    real = RUN_CHARTS["loss"]

    def loss(data: Any) -> Any:
        counts.append(len(data.metrics.step))
        return real(data)

    monkeypatch.setitem(RUN_CHARTS, "loss", loss)
    return counts


def test_a_chart_is_computed_once_for_all_pages_and_anew_when_a_step_comes(
    client: TestClient, runs: Path, drawn: list[int]
) -> None:
    answers = [client.get("/chart/loss/first").content for _ in range(10)]
    assert drawn == [20] and len(set(answers)) == 1
    with (runs / "first" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 1.5}\n')
    assert client.get("/chart/loss/first").content != answers[0] and drawn == [20, 21]
    client.get("/chart/loss/first?first=3&last=7")
    assert drawn == [20, 21, 7]


def test_with_many_open_pages_a_stamp_is_shared_for_a_while(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, run, now = Watch(Site(runs)), RunDirectory(runs / "first"), [1000.0]
    monkeypatch.setattr("fromscratch.dashboard.stamps.monotonic", lambda: now[0])
    first = watch.stamp("first")
    run.metrics.write_text("")
    assert watch.stamp("first") != first  # no page is open: every request sees the disk
    watch.open_pages = 50
    assert watch.interval_seconds > MIN_INTERVAL_SECONDS
    shared = watch.stamp("first")
    run.metrics.write_text("{}")
    now[0] += 0.4 * watch.interval_seconds
    assert watch.stamp("first") == shared
    now[0] += 0.2 * watch.interval_seconds
    assert watch.stamp("first") != shared


def test_answers_wait_for_the_one_that_is_computed() -> None:
    memory, entered, ended, counts = Memory(), threading.Event(), threading.Event(), list[int]()

    def compute() -> str:
        counts.append(1)
        entered.set()
        ended.wait(30)
        return "found"

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(memory.get("a", "1", compute))) for _ in range(8)]
    for thread in threads:
        thread.start()
    entered.wait(30)
    assert memory.get("b", "1", lambda: "other") == "other"  # another key does not wait
    ended.set()
    for thread in threads:
        thread.join(30)
    assert found == ["found"] * 8 and counts == [1]
    with pytest.raises(ZeroDivisionError):
        memory.get("a", "2", lambda: str(1 / 0))
    assert memory.get("a", "2", lambda: "again") == "again"  # an error is not remembered


def test_a_growing_file_is_read_from_where_reading_ended(
    client: TestClient, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/chart/loss/first")
    read: list[int] = []
    real = metrics.parse

    def parse(lines: bytes) -> metrics.Metrics:
        read.append(len(lines))
        return real(lines)

    monkeypatch.setattr(metrics, "parse", parse)
    for step in range(21, 41):
        line = json.dumps({"step": step, "loss": 1.0}) + "\n"
        with (runs / "first" / "metrics.jsonl").open("a") as file:
            file.write(line)
        for chart in ("loss", "gradient-norm", "speed"):
            client.get(f"/chart/{chart}/first")
    assert read == [len(line)] * 20


def test_what_was_read_stays_as_it_is_while_a_file_grows(tmp_path: Path) -> None:
    run, cache = RunDirectory(tmp_path), metrics.MetricsCache()
    found = []
    for begin, names in ((1, ("loss",)), (101, ("loss", "extra")), (110, ("extra",)), (90, ("loss",))):
        with run.metrics.open("a") as file:
            for step in range(begin, begin + 10 if begin > 1 else 101):
                file.write(json.dumps({"step": step} | dict.fromkeys(names, float(step))) + "\n")
        found.append(cache.read(run))
    assert [len(one.step) for one in found] == [100, 110, 119, 119]
    for one in found[:3]:
        assert one.step.tolist() == list(range(1, len(one.step) + 1))
    last = found[-1].values
    assert last["loss"][98] == 99 and str(last["extra"][98]) == str(last["loss"][115]) == "nan"
    assert last["extra"][[100, 118]].tolist() == [101, 119] and str(found[1].values["extra"][99]) == "nan"


def test_all_pages_of_a_folder_share_one_look_at_the_disk(
    runs: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    looks: list[str] = []

    def look(site: Site, name: str) -> str:
        looks.append(name)
        return stamp_at(site, name)

    monkeypatch.setattr("fromscratch.dashboard.stamps.stamp_at", look)
    monkeypatch.setattr("fromscratch.dashboard.stamps.monotonic", lambda: 1000.0)
    app = create_app(runs)
    watch = app.state.watch
    watch.open_pages = 50
    client = TestClient(app, base_url="http://localhost")
    for _ in range(10):
        for address in ("/", "/runs/first", "/chart/loss/first"):
            assert client.get(address).status_code == 200
    assert sorted(looks) == ["", "first"] and drawn == [20]


def test_each_page_follows_everything_that_it_shows(client: TestClient, runs: Path, judged_runs: Path) -> None:
    shutil.copytree(judged_runs / "judged", runs / "judged")
    addresses = ("/", "/compare?run=first&run=stopped", "/compare-chart?run=first&run=stopped", "/judged/judged")
    before = [client.get(address).content for address in addresses]
    assert before == [client.get(address).content for address in addresses]
    with (runs / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 0.125, "tokens": 9}\n')
    report = runs / "judged" / "report.json"
    report.write_text(report.read_text().replace('"judged": 24', '"judged": 23'))
    after = [client.get(address).content for address in addresses]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False] * 4
    assert b"0.125" in after[0] and b"0.125" in after[2] and b"23 of 24" in after[3]
    shutil.rmtree(runs / "stopped")
    assert "stopped" not in client.get("/").text and client.get(addresses[1]).status_code == 404
