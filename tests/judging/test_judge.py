"""The judge through the command line, against a scripted server: what is asked, kept, and never asked twice."""

import json
import random
from pathlib import Path

import pytest

from tests.command import nothing_written, refused, run_command
from tests.judging.conftest import graded, judge, judged, write_answers
from tests.judging.server import JudgeServer, answers_in

SECRET = "sk-very-secret"


def two_models(folder: Path, number: int = 6) -> list[Path]:
    return write_answers(folder, number, small=graded(1, 30), large=graded(2, 70))


@pytest.mark.usefixtures("charts")
@pytest.mark.parametrize(("mode", "requests"), [("batch", 6), ("pairs", 12), ("individual", 12)])
def test_each_mode_finds_the_better_model_and_asks_nothing_twice(
    server: JudgeServer, tmp_path: Path, mode: str, requests: int
) -> None:
    files, out = two_models(tmp_path), tmp_path / "judged"
    report = judged(server, files, out, "--mode", mode)
    assert len(server.requests) == requests == report["judged"]
    means = {model["model"]: model["mean"]["value"] for model in report["models"]}
    assert means["large"] - means["small"] > 20
    (difference,) = report["differences"]
    assert (difference["model"], difference["verdict"], difference["corrected_verdict"]) == ("small", "worse", "worse")
    assert judged(server, files, out, "--mode", mode) == report
    assert len(server.requests) == requests
    assert {"report.json", "report.md", "report.png", "judge.json", "replies.jsonl"} <= {p.name for p in out.iterdir()}
    assert run_command("judge", "report", out, "--json").out == (
        json.dumps(json.loads((out / "report.json").read_text()), indent=2) + "\n"
    )


def test_a_further_repeat_asks_only_what_is_missing_in_another_order(server: JudgeServer, tmp_path: Path) -> None:
    files, out = two_models(tmp_path), tmp_path / "judged"
    judged(server, files, out)
    report = judged(server, files, out, "--repeats", 2)
    first, second = server.requests[:6], server.requests[6:]
    assert sorted(answers_in(request)[::-1] for request in second) == sorted(map(answers_in, first))
    assert report["agreement"] == {"comparisons": 6, "raw": 1.0, "kappa": None}


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        with JudgeServer() as server:
            judged(server, two_models(tmp_path, 12), tmp_path / f"judged-{number}", "--seed", seed)
            orders.append(sorted(map(answers_in, server.requests)))
    assert orders[0] == orders[1] != orders[2]


def test_answers_are_annotated_and_can_be_judged_again(server: JudgeServer, tmp_path: Path) -> None:
    files, out = two_models(tmp_path), tmp_path / "judged"
    judged(server, files, out)
    records = json.loads((out / "annotated" / "large.json").read_text())
    assert all(record["score"] == float(record["model_response"].split()[1]) for record in records)
    assert [record["judged"][0]["comment"] for record in records] == ["because"] * 6
    again = judged(server, [out / "annotated" / "large.json"], tmp_path / "again", "--mode", "individual")
    assert again["judged"] == 6


def test_another_judge_is_refused(server: JudgeServer, tmp_path: Path) -> None:
    files, out = two_models(tmp_path), tmp_path / "judged"
    judged(server, files, out)
    for option, says in (
        (("--judge", server.name + "-2"), "model scripted there, scripted-2 now"),
        (("--judge", server.name, "--mode", "pairs"), "mode batch there, pairs now"),
        (("--judge", server.name, "--temperature", "0.5"), "temperature 0.0 there, 0.5 now"),
    ):
        with nothing_written(out):
            refused("judge", *files, *option, "--out", out, code=2, says=says)
    with nothing_written(tmp_path):
        refused("judge", *files, "--judge", server.name, "--out", tmp_path, code=2, says="which a judge did not write")
    assert len(server.requests) == 6


def test_a_key_is_sent_to_its_endpoint_only_and_written_nowhere(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = two_models(tmp_path, 1)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    judged(server, files, tmp_path / "url")
    assert "Authorization" not in server.headers[-1]
    monkeypatch.setenv("MY_KEY", SECRET)
    server.faults = [(401, json.dumps({"error": {"message": f"Incorrect key: {SECRET}"}}), {})]
    told = judge(server, files, tmp_path / "mine", "--key-variable", "MY_KEY")
    assert server.headers[-1]["Authorization"] == f"Bearer {SECRET}"
    assert told.code == 2 and "answered 401: Incorrect key: ***" in told.err
    url, _, model = server.name.partition("#")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert run_command("judge", *files, "--judge", f"openai:{model}", "--out", tmp_path / "openai").code == 0
    assert server.headers[-1]["Authorization"] == f"Bearer {SECRET}"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("judge_name", "says"),
    [
        ("gpt-4o", "write openai:MODEL, or URL#MODEL"),
        ("openai:gpt-4o", "needs a key in the environment variable OPENAI_API_KEY"),
        ("openai:", "name of a model"),
        ("ftp://host/v1#m", "http or https"),
        ("http://me:pass@host/v1#m", "may hold no password"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(tmp_path: Path, judge_name: str, says: str) -> None:
    files = two_models(tmp_path)
    with nothing_written(tmp_path):
        message = refused("judge", *files, "--judge", judge_name, "--out", tmp_path / "out", code=2, says=says)
    assert "pass@" not in message


def test_the_endpoint_is_asked_for_structure_and_without_it_where_it_refuses(tmp_path: Path) -> None:
    with JudgeServer() as offers:
        judged(offers, two_models(tmp_path, 3), tmp_path / "a")
        schema = offers.requests[0]["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["A", "B"] and not schema["additionalProperties"]
    with JudgeServer(refuses=("response_format", "temperature", "max_tokens")) as lacks:
        out = tmp_path / "b"
        told = judge(lacks, two_models(tmp_path, 3), out, "--max-tokens", 500)
        assert told.code == 0 and "requests leave out response_format: the endpoint answered 400" in told.err
        assert len(lacks.requests) == 6
        assert lacks.requests[-1]["max_completion_tokens"] == 500
        assert not {"response_format", "temperature", "max_tokens"} & set(lacks.requests[-1])
        refused_parameters = json.loads((out / "judge.json").read_text())["refused_parameters"]
        assert refused_parameters == ["max_tokens", "response_format", "temperature"]
        judged(lacks, two_models(tmp_path, 3), out, "--max-tokens", 500, "--repeats", 2)
        assert len(lacks.requests) == 9


def test_pairs_without_log_probabilities_are_judged_by_the_letter(server: JudgeServer, tmp_path: Path) -> None:
    server.gives_log_probabilities = False
    told = judge(server, two_models(tmp_path), tmp_path / "out", "--mode", "pairs", "--json")
    report = json.loads(told.out)
    assert "requests leave out logprobs: the replies hold none; the judge is asked for the letter" in told.err
    assert (report["judged"], report["probability"], len(server.requests)) == (12, None, 13)
    assert server.requests[0]["max_tokens"] == 1 and server.requests[1]["max_tokens"] > 1
    assert report["differences"][0]["mean"]["value"] == -100.0


def test_pairs_of_a_judge_that_begins_with_thoughts_are_judged_by_the_letter(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.first_tokens = {"<think>": 1.0}
    told = judge(server, two_models(tmp_path), tmp_path / "out", "--mode", "pairs", "--json")
    assert "requests leave out logprobs: a reply begins with neither A nor B" in told.err
    report = json.loads(told.out)
    assert (report["judged"], report["failed"], report["probability"]) == (12, 0, None)


def test_a_name_that_came_to_mean_another_model_is_refused(server: JudgeServer, tmp_path: Path) -> None:
    files, out = two_models(tmp_path), tmp_path / "out"
    server.model = "scripted-2026-01"
    judged(server, files, out, "--limit", 2)
    server.model = "scripted-2026-02"
    told = judge(server, files, out)
    assert told.code == 2
    assert "the reply is of the model scripted-2026-02, those before are of scripted-2026-01" in told.err
    assert json.loads((out / "report.json").read_text())["judged"] == 2
    server.model = "scripted-2026-01"
    assert judged(server, files, out)["judged"] == 6


def test_pairs_use_the_probabilities_of_the_letters(server: JudgeServer, tmp_path: Path) -> None:
    files = write_answers(tmp_path, 4, a=lambda _: "quality 50", b=lambda _: "quality 52")
    report = judged(server, files, tmp_path / "out", "--mode", "pairs")
    share = {model["model"]: model["mean"]["value"] for model in report["models"]}
    assert share["b"] == pytest.approx(54.98, abs=0.01)  # 1 / (1 + exp(-0.2)), not 100
    assert report["probability"] == pytest.approx(0.9)


def test_two_copies_of_the_same_answers_do_not_differ(server: JudgeServer, tmp_path: Path) -> None:
    def prefers(text: str, place: int, places: int) -> float:
        mood = random.Random(f"{place} {len(server.requests)}").uniform(-20, 20)  # another one in each request
        return 40 + mood + 20 * (place == 0)

    server.prefers = prefers
    files = write_answers(tmp_path, 20, one=graded(1, 50), copy=graded(1, 50))
    for mode in ("batch", "pairs", "individual"):
        report = judged(server, files, tmp_path / mode, "--mode", mode, "--concurrency", 1)
        for figure in ("mean", "strength"):
            estimate = report["differences"][0][figure]
            assert estimate["low"] < 0 < estimate["high"]
        assert mode == "individual" or any("prefers the first place" in note for note in report["notes"])


def test_one_model_and_one_question_are_reported_without_intervals(server: JudgeServer, tmp_path: Path) -> None:
    (file,) = write_answers(tmp_path, 1, only=graded(1, 50))
    report = judged(server, [file], tmp_path / "out")
    (model,) = report["models"]
    assert model["mean"]["value"] is not None and model["mean"]["low"] is None
    assert report["differences"] == [] and "1 questions are few" in report["notes"][0]
    refused("judge", file, "--judge", server.name, "--mode", "pairs", code=2, says="needs answers of 2 models, 1 given")


def test_several_answers_in_one_record(server: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    records = [{"instruction": f"I {i}", "output": "r", "m 1": "quality 10", "m 2": "quality 90"} for i in range(3)]
    file.write_text(json.dumps(records))
    report = judged(server, [file], tmp_path / "out", "--answer-key", "m 1", "--answer-key", "m 2")
    assert {m["model"]: m["mean"]["value"] for m in report["models"]} == {"m 1": 10.0, "m 2": 90.0}


def test_a_limit_judges_the_first_questions(server: JudgeServer, tmp_path: Path) -> None:
    files, out = two_models(tmp_path), tmp_path / "out"
    assert judged(server, files, out, "--limit", 2)["questions"] == 2
    assert judged(server, files, out)["questions"] == 6
    assert len(server.requests) == 6


def test_help_starts_without_torch(tmp_path: Path) -> None:
    assert "URL#MODEL" in run_command("judge", "run", "--help").out
    assert "report" in run_command("judge", "--help").out
