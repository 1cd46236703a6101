"""B32 and B36: files of answers, lists of scores and losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fromscratch.errors import DataError, UsageError
from fromscratch.judging.responses import load_answers, load_scores
from fromscratch.judging.scores import read_losses
from tests.command import refused, run_command
from tests.judging.conftest import graded, judged, write_answers
from tests.judging.server import JudgeServer

RECORD = {"instruction": "i", "input": "", "output": "o", "model_response": "m"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": [1]}, "record 0 has no 'instruction'"),
        ([], "holds no record"),
        ([RECORD, 3], "record 1 is int"),
        ([{**RECORD, "instruction": None}], "record 0: 'instruction' is NoneType"),
        ([{"input": "", "output": "o", "model_response": "m"}], "record 0 has no 'instruction'"),
        ([RECORD, {**RECORD, "input": 7}], "record 1: 'input' is int"),
        ([{**RECORD, "model_response": ["m"]}], "record 0: 'model_response' is list, expected text"),
        ([{"instruction": "i", "output": "o"}], "record 0 has no 'model_response' (its keys: instruction, output)"),
        ([RECORD, {**RECORD, "model_response": "m" * 100_000}], "record 1: 'model_response' has 100,000 characters"),
        ([{**RECORD, "instruction": "i" * 100_000}], "record 0: the question has 100,001 characters"),
    ],
)
def test_b32_bad_records_are_named(tmp_path: Path, content: Any, says: str) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(content))
    refused("judge", file, "--judge", "http://localhost:1/v1#m", "--out", tmp_path / "out", code=3, says=says)
    assert not (tmp_path / "out").exists()


def test_b32_a_null_input_is_empty_and_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([{**RECORD, "input": None, "model_response": ""}]))
    answers = load_answers([str(file)], ["model_response"])
    assert (answers.questions[0].input, answers.answers) == ("", {"answers": ("",)})


def test_a_chat_is_judged_as_a_whole(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Me.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"messages": messages, "model_response": "You."}) + "\n")
    question = load_answers([str(file)], ["model_response"]).questions[0]
    assert question.instruction == "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Who?"
    assert question.reference == "Me."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda records: records[:-1], "has 2 records, "),
        (lambda records: records[::-1], "record 0 is not that of"),
        (lambda records: [*records[:2], {**records[2], "output": "x"}], "record 2 is not that of"),
    ],
)
def test_b36_files_of_other_questions_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    first, second = write_answers(tmp_path, 3, a=graded(1, 50), b=graded(2, 50))
    second.write_text(json.dumps(change(json.loads(second.read_text()))))
    refused("judge", first, second, "--judge", "http://localhost:1/v1#m", code=3, says=says)


def test_names_are_unique_and_can_be_given(tmp_path: Path) -> None:
    (first,) = write_answers(tmp_path, 1, answers=graded(1, 50))
    (tmp_path / "b").mkdir()
    (second,) = write_answers(tmp_path / "b", 1, answers=graded(2, 50))
    with pytest.raises(UsageError, match="another file is named 'answers' too; write NAME=FILE"):
        load_answers([str(first), str(second)], ["model_response"])
    assert load_answers([str(first), f"tuned={second}"], ["model_response"]).models == ["answers", "tuned"]
    with pytest.raises(UsageError, match="is no name for a model"):
        load_answers([f"../x={second}"], ["model_response"])
    with pytest.raises(UsageError, match="no such file"):
        load_answers([str(tmp_path / "none.json")], ["model_response"])


@pytest.mark.parametrize(
    ("content", "says"),
    [("{}", "expected a JSON list"), ("[]", "expected a JSON list"), ("[1, 150]", "item 1 is '150'"),
     ('[1, "85"]', "item 1 is '85'"), ("[true]", "item 0"), ("[1,", "not valid JSON")],
)  # fmt: skip
def test_bad_scores_are_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "scores.json"
    file.write_text(content)
    refused("judge", "report", file, code=3, says=says)


def test_scores_of_another_program_are_reported_in_pairs(tmp_path: Path) -> None:
    for name, scores in (("a", [60, 70, 80, None]), ("b", [50, 60, 70, 10]), ("c", [1, 2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(scores))
    told = run_command("judge", "report", tmp_path / "a.json", tmp_path / "b.json", "--json")
    found = json.loads(told.out)
    assert [(one["mean"]["value"], one["scores"], one["missing"]) for one in found["scores"]] == [
        (70, 3, 1),
        (47.5, 4, 0),
    ]
    assert found["differences"][0]["mean"]["value"] == 10.0  # over the three questions that both have
    refused(
        "judge", "report", tmp_path / "a.json", tmp_path / "c.json", code=3, says="c: has 2 scores, a has 4; item 2"
    )


@pytest.mark.parametrize(
    ("name", "number", "mean"),
    [
        ("gpt4-model-1", 100, 74.09),
        ("gpt4-model-2", 100, 56.57),
        ("llama3-8b-model-1", 100, 77.05),
        ("llama3-8b-model-2", 99, 67.37),
    ],
)
def test_known_means_of_the_book_are_reproduced(shared_data: Path, name: str, number: int, mean: float) -> None:
    scores = load_scores(shared_data / "instructions" / f"scores-{name}-response.json")
    assert len(scores) == number and round(float(np.mean(scores)), 2) == mean


def test_the_differences_of_the_book_have_verdicts(shared_data: Path) -> None:
    paths = [shared_data / "instructions" / f"scores-gpt4-model-{number}-response.json" for number in (1, 2)]
    told = run_command("judge", "report", *paths)
    assert "scores-gpt4-model-1-response is better" in told.out and "+17.52" in told.out


def test_answers_of_the_book_are_judged(shared_data: Path, server: JudgeServer, tmp_path: Path) -> None:
    report = judged(
        server, [shared_data / "instructions" / "instruction-data-with-response.json"], tmp_path / "out", "--limit", 5
    )
    assert report["judged"] == 5
    keys = ("--answer-key", "model 1 response", "--answer-key", "model 2 response")
    answers = load_answers([str(shared_data / "instructions" / "eval-example-data.json")], list(keys[1::2]))
    assert len(answers.questions) == 100 and answers.models == ["model 1 response", "model 2 response"]


def test_losses_from_a_file_and_from_runs(tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    file.write_text('{"a": 3.1, "b": 3, "c": null}')
    assert read_losses(file, ["a", "b"]) == {"a": 3.1, "b": 3.0}
    with pytest.raises(UsageError, match=r"has no loss of 'd' \(it has a, b, c\)"):
        read_losses(file, ["a", "d"])
    with pytest.raises(DataError, match="the loss of 'c' is None"):
        read_losses(file, ["c"])
    for name, loss, tokens in (("a", 3.5, 100), ("b", 3.25, 100), ("other", 3.0, 50)):
        (tmp_path / "runs" / name / "evaluations").mkdir(parents=True)
        evaluation = {
            "measure": "loss",
            "store": "s",
            "split": "validation",
            "start": 0,
            "tokens": tokens,
            "loss": loss,
        }
        (tmp_path / "runs" / name / "evaluations" / "loss-step-9-validation-0.json").write_text(json.dumps(evaluation))
    assert read_losses(tmp_path / "runs", ["a", "b"]) == {"a": 3.5, "b": 3.25}
    with pytest.raises(UsageError, match=r"'a' and 'other' were measured on different text \(tokens 100 and 50\)"):
        read_losses(tmp_path / "runs", ["a", "other"])
    with pytest.raises(UsageError, match="has no evaluation of its loss; run 'fromscratch eval loss'"):
        read_losses(tmp_path / "runs", ["a", "none"])


def test_the_report_correlates_scores_with_losses(server: JudgeServer, tmp_path: Path) -> None:
    files = write_answers(tmp_path, 5, a=lambda _: "quality 10", b=lambda _: "quality 50", c=lambda _: "quality 90")
    losses = tmp_path / "losses.json"
    losses.write_text('{"a": 3.5, "b": 3.4, "c": 3.3}')
    report = judged(server, files, tmp_path / "out", "--losses", losses)
    assert report["loss_correlation"] == pytest.approx([-1.0, 2 / 6])
    assert [model["loss"] for model in report["models"]] == [3.5, 3.4, 3.3]
    assert "Rank correlation with test loss over the models: -1.00" in (tmp_path / "out" / "report.md").read_text()
    told = run_command("judge", "report", tmp_path / "out", "--margin", 50, "--json")
    assert json.loads(told.out) == {**report, "margin": 50.0, "differences": json.loads(told.out)["differences"]}
    again = judged(server, files, tmp_path / "out")  # what one report was told, the next ones know
    assert (again["margin"], again["loss_correlation"]) == (50.0, report["loss_correlation"])
