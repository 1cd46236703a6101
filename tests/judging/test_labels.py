"""``judge label``: blind, one key for each pair, resumable."""

import json
from pathlib import Path

import pytest

from fromscratch.judging.labels import draw_pairs, read_labels
from fromscratch.judging.responses import load_answers
from tests.command import refused, run_command
from tests.judging.conftest import graded, judged, write_answers
from tests.judging.server import JudgeServer


@pytest.fixture
def folder(server: JudgeServer, tmp_path: Path) -> Path:
    """Two models' answers to 20 questions, judged alone."""
    files = write_answers(tmp_path, 20, small=graded(1, 30), large=graded(2, 70))
    judged(server, files, tmp_path / "judged", "--mode", "individual")
    return tmp_path / "judged"


def test_a_person_labels_blind_stops_and_resumes(folder: Path) -> None:
    told = run_command("judge", "label", folder, "--pairs", 12, typed="aXb\ntq")
    assert told.code == 0 and "3 of 12 pairs labelled, 3 now" in told.out
    assert "small" not in told.out and "large" not in told.out and "pair 4 of 12" in told.out
    told = run_command("judge", "label", folder, "--pairs", 12, typed="b" * 30)
    assert "12 of 12 pairs labelled, 9 now" in told.out and "pair 4 of 12" in told.out
    assert "0 now" in run_command("judge", "label", folder, "--pairs", 12).out
    records = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    assert len({record["question"] for record in records}) == 12
    assert [record["label"] for record in records[:3]] == [records[0]["first"], records[1]["second"], "tie"]
    assert {record["first"] for record in records} == {"small", "large"}  # the place tells nothing
    assert records[2]["label"] == "tie" and {record["label"] for record in records[3:]} == {"small", "large"}
    told = run_command("judge", "report", folder)
    assert "small better than large, % of questions, corrected with 12 labels: " in told.out
    assert "With a person's labels" in (folder / "report.md").read_text()


def test_the_first_key_means_the_answer_that_is_shown_first(folder: Path) -> None:
    told = run_command("judge", "label", folder, "--pairs", 1, typed="a")
    shown = told.out.split("--- Answer a\n")[1].splitlines()[0]
    (record,) = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    answers = json.loads((folder / "annotated" / f"{record['label']}.json").read_text())
    assert answers[record["question"]]["model_response"].strip() == shown.strip()


def test_labels_of_other_answers_do_not_count(folder: Path) -> None:
    run_command("judge", "label", folder, "--pairs", 3, typed="aab")
    files = [str(folder / "annotated" / f"{model}.json") for model in ("small", "large")]
    answers = load_answers(files, ["model_response"])
    labels = list(read_labels(folder / "labels.jsonl", answers))
    assert len(labels) == 3
    changed = folder / "annotated" / "small.json"
    records = json.loads(changed.read_text())
    records[labels[0][0].question]["model_response"] = "something else"
    changed.write_text(json.dumps(records))
    assert list(read_labels(folder / "labels.jsonl", load_answers(files, ["model_response"]))) == labels[1:]


def test_pairs_are_drawn_evenly_and_without_repeats(tmp_path: Path) -> None:
    files = write_answers(tmp_path, 30, a=graded(1, 1), b=graded(2, 2), c=graded(3, 3))
    answers = load_answers(list(map(str, files)), ["model_response"])
    drawn = draw_pairs(answers, 50, seed=0)
    models = [frozenset((pair.first, pair.second)) for pair in drawn]
    assert sorted(models.count(one) for one in set(models)) == [16, 17, 17]
    assert len({(pair.question, *sorted((pair.first, pair.second))) for pair in drawn}) == 50
    assert draw_pairs(answers, 50, seed=0) == drawn != draw_pairs(answers, 50, seed=1)


def test_control_characters_of_an_answer_do_not_reach_the_terminal(server: JudgeServer, tmp_path: Path) -> None:
    files = write_answers(tmp_path, 2, a=lambda _: "\x1b[2Jgone\nsecond line", b=lambda _: "quality 3")
    judged(server, files, tmp_path / "out")
    told = run_command("judge", "label", tmp_path / "out", typed="q")
    assert "\x1b" not in told.out and "second line\n" in told.out


def test_what_is_no_results_folder_is_refused(tmp_path: Path, server: JudgeServer) -> None:
    refused("judge", "label", tmp_path, code=2, says="is no results folder of 'fromscratch judge'")
    (file,) = write_answers(tmp_path, 2, only=graded(1, 50))
    judged(server, [file], tmp_path / "one")
    refused("judge", "label", tmp_path / "one", code=2, says="has one model only")
    (tmp_path / "one" / "judge.json").write_text('{"format_version": 99}')
    refused("judge", "report", tmp_path / "one", code=3, says="written in format 99")
    (tmp_path / "one" / "judge.json").write_text("{")
    refused("judge", "report", tmp_path / "one", code=3, says="not valid JSON")


def test_too_few_labels_for_an_interval_are_told(server: JudgeServer, tmp_path: Path) -> None:
    files = write_answers(tmp_path, 10, a=graded(1, 50), b=graded(2, 50), c=graded(3, 50))
    judged(server, files, tmp_path / "out")
    told = run_command("judge", "label", tmp_path / "out", "--pairs", 12, typed="a" * 12)
    assert "3 models take 30 pairs, 10 of each two, for their intervals" in told.err
    told = run_command("judge", "report", tmp_path / "out")
    assert told.out.count("% of questions, corrected with 4 labels: unknown") == 3
    assert "30 pairs" not in run_command("judge", "label", tmp_path / "out", "--pairs", 30, typed="a" * 30).err
