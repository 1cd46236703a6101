"""The pages of judge results: what the report says, the answers behind it, and folders that are not whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.dashboard.conftest import MARKUP, open_client
from tests.dashboard.test_pages import NASTY, chart_of, hostile


@pytest.fixture
def folder(judged_runs: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(judged_runs, tmp_path / "runs"))


@pytest.fixture
def client(folder: Path) -> TestClient:
    return open_client(folder)


def test_the_page_says_what_the_report_says_and_shows_the_answers(client: TestClient, folder: Path) -> None:
    report = json.loads((folder / "judged" / "report.json").read_text())
    first = client.get("/").text
    assert 'href="/judged/judged"' in first and 'href="/judged/judges/by%20pairs"' in first
    page = client.get("/judged/judged").text
    (difference,) = report["differences"]
    mean = difference["mean"]
    assert f"{mean['value']:+.1f} ({mean['low']:+.1f} to {mean['high']:+.1f})" in page and mean["value"] < 0
    assert "small - large" in page and ">worse</span>" in page and "First place over last" in page
    assert "24 of 24 requests judged, 0 failed" in page and f"{report['models'][1]['mean']['value']:.1f}" in page
    for question in report["separating"]:
        assert f"Question {question['question']:,}: Question {question['question']}?" in page
    assert "place 1: " in page and ". because" in page and "Reference " in page
    assert MARKUP not in page and "&lt;script&gt;document" in page
    pairs = client.get("/judged/judges/by%20pairs").text
    assert "Swapping the two answers changes the choice" in pairs and "preferred with probability" in pairs
    assert "wins " in pairs and "comparisons won, %" in pairs


def test_the_charts_have_the_numbers_of_the_report(client: TestClient, folder: Path) -> None:
    report = json.loads((folder / "judged" / "report.json").read_text())
    means, differences = (chart_of(client, f"/judged-chart/{kind}/judged") for kind in ("means", "differences"))
    for row, model in zip(means["rows"], report["models"], strict=True):
        assert [row["arm"], row["effect"], row["low"], row["high"]] == [model["model"], *model["mean"].values()]
    assert means["margin"] is None and differences["margin"] == 5
    assert [(row["arm"], row["verdict"]) for row in differences["rows"]] == [("small - large", "worse")]


def test_while_the_judge_is_asked_the_page_counts_the_replies(client: TestClient, folder: Path) -> None:
    (folder / "judged" / "report.json").rename(folder / "judged" / "report.old")
    page = client.get("/judged/judged").text
    assert "The judge has not finished" in page and "24 valid replies are on record, 0 were not valid" in page
    with (folder / "judged" / "replies.jsonl").open("a") as file:
        file.write('{"status": "invalid", "reason": "x"}\n{"status": "jud')
    assert "24 valid replies are on record, 1 were not valid" in client.get("/judged/judged").text
    (folder / "judged" / "report.old").rename(folder / "judged" / "report.json")
    os.utime(folder / "judged" / "replies.jsonl", (4e9, 4e9))
    assert "the figures below are older" in client.get("/judged/judged").text


@pytest.mark.parametrize("name", ["judge.json", "report.json", "replies.jsonl", "labels.jsonl", "annotated/large.json"])
def test_no_damaged_results_folder_makes_an_error_page(client: TestClient, folder: Path, name: str) -> None:
    file = folder / "judged" / name
    strange = ['{"models": [{}]}', json.dumps([{"judged": [7, {"score": "x"}, {"won": 1, "place": []}]}] * 30)]
    for content in [*NASTY, *strange]:
        file.write_text(content, encoding="latin-1")
        for address in ("/", "/judged/judged", "/judged-chart/means/judged", "/judged-chart/differences/judged"):
            assert client.get(address).status_code == 200, (name, content[:20], address)
    file.unlink()
    assert client.get("/").status_code == 200
    assert client.get("/judged/judged").status_code == (404 if name == "judge.json" else 200)


def test_a_damaged_report_says_so_and_how_to_mend_it(client: TestClient, folder: Path) -> None:
    (folder / "judged" / "report.json").write_text("{}")
    page = client.get("/judged/judged").text
    assert "report.json cannot be read: it is damaged, or of another version" in page
    assert f"fromscratch judge report {folder / 'judged'}" in page
    report = json.loads((folder / "judges" / "by pairs" / "report.json").read_text())
    report["separating"][0]["scores"] = {"../../../secret": 1.0, "gone": 2.0}
    (folder / "judges" / "by pairs" / "report.json").write_text(json.dumps(report))
    page = client.get("/judged/judges/by%20pairs").text
    assert "it is no name of a model" in page and "gone.json" in page


def test_a_results_folder_that_leads_elsewhere_is_not_opened(client: TestClient, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("[]")
    (folder / "judged" / "annotated" / "large.json").unlink()
    (folder / "judged" / "annotated" / "large.json").symlink_to(tmp_path / "secret.json")
    assert client.get("/judged/judged").status_code == 403
    assert client.get("/").status_code == 200
    shutil.move(folder / "judges", tmp_path / "judges")
    (folder / "judges").symlink_to(tmp_path / "judges")
    assert "by pairs" not in client.get("/").text
    assert client.get("/judged/judges/by%20pairs").status_code == 404


def test_a_crawl_of_the_pages_of_judges_finds_no_error(client: TestClient) -> None:
    found = {}
    for name in ("judged", "judges", "judges/by pairs", *hostile()):
        for path in (f"/judged/{name}", f"/judged-chart/means/{name}", f"/judged-chart/{name}/judged"):
            found[path] = client.get(path).status_code
    assert {path: code for path, code in found.items() if code not in (200, 307, 400, 404)} == {}
    assert found["/judged/judged"] == 200
