"""``respond``: form of the answers, resume, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fromscratch.cli.main import app
from fromscratch.config.prompts import PROMPT_FORMATS
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.finetuning.answers import AnswersReport, respond
from fromscratch.finetuning.records import read_records
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.generation.decoders import PlainDecoder
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.generation.texts import continue_prompts
from fromscratch.machine.hardware import find_hardware
from tests.finetuning.small import make_base, make_records, tune

GREEDY = Settings(12, Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("answers")
    make_base(folder)
    run, _ = tune(folder, "tuned", "data.epochs=1")
    return open_model(str(run.path), find_hardware("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(make_records()[:10]))
    return path


def answer(
    model: LoadedModel, data: Path, settings: Settings = GREEDY, out: str = "out.json", **more: Any
) -> AnswersReport:
    assert model.prompt_format is not None
    return respond(model, read_records(data), data.parent / out, model.prompt_format, settings, **{"batch": 4, **more})


def responses(path: Path) -> list[str]:
    return [record["model_response"] for record in json.loads(path.read_text())]


def test_answers_are_those_of_the_reference_decoder_in_the_form_of_judges(model: LoadedModel, data: Path) -> None:
    report = answer(model, data)
    found, records = json.loads((data.parent / "out.json").read_text()), make_records()[:10]
    assert report.records == report.answered == 10
    assert [{key: record[key] for key in records[0]} for record in found] == records
    assert all(set(record) == {"instruction", "input", "output", "model_response"} for record in found)
    for record, got in zip(records, found, strict=True):
        prompt = f"Q {record['instruction']} {record['input']} A "
        if not record["input"]:
            prompt = f"Q {record['instruction']}  A "
        (wanted,) = continue_prompts(model.model, model.tokenizer, [prompt], GREEDY, decoder=PlainDecoder)
        assert got["model_response"] == wanted.text.strip()
    meta = read_json_object(data.parent / "out.json.meta.json")
    assert meta["model"] == {"name": "tuned", "source": model.source, "step": model.step}
    assert meta["identity"]["weights_sha256"] == model.fingerprint()


def test_an_interrupted_command_answers_only_what_is_missing(
    model: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = Settings(12, Sampling(temperature=1.0), seed=3)
    answer(model, data, sampled, "whole.json")

    def interrupt(done: int, _all: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, data, sampled, on_progress=interrupt)
    assert not (data.parent / "out.json").exists()
    partial = data.parent / "out.json.partial.jsonl"
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:-1]) + lines[-1][:20])  # the last line is half written
    done: list[int] = []
    report = answer(model, data, sampled, on_progress=lambda count, _: done.append(count))
    assert report.answered == 3 and done == [8, 10]
    assert responses(data.parent / "out.json") == responses(data.parent / "whole.json")
    assert not partial.exists()
    monkeypatch.setattr("fromscratch.finetuning.answers.continue_prompts", None)
    assert answer(model, data, sampled).answered == 0


def test_a_second_run_answers_new_records_only(model: LoadedModel, data: Path) -> None:
    answer(model, data)
    data.write_text(json.dumps([*make_records()[20:22], *make_records()[:10]]))
    assert answer(model, data).answered == 2
    assert len(responses(data.parent / "out.json")) == 12


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(model: LoadedModel, data: Path) -> None:
    for number, (seed, batch) in enumerate([(1, 4), (1, 3), (2, 4)]):
        answer(model, data, Settings(12, Sampling(temperature=1.0), seed), f"{number}.json", batch=batch)
    found = [responses(data.parent / f"{number}.json") for number in range(3)]
    assert found[0] == found[1] != found[2]


def test_nothing_is_mixed_or_replaced(model: LoadedModel, data: Path) -> None:
    (data.parent / "mine.json").write_text("[]")
    with pytest.raises(UsageError, match=r"mine\.json: exists and was not written by respond"):
        answer(model, data, out="mine.json")
    assert (data.parent / "mine.json").read_text() == "[]"
    answer(model, data)
    with pytest.raises(UsageError, match=r"answers of another model or with other settings \(max_new_tokens\)"):
        answer(model, data, Settings(5, Sampling(temperature=0.0)))
    with pytest.raises(UsageError, match="is the file of instructions itself"):
        answer(model, data, out="test.json")
    with pytest.raises(UsageError, match=r"its folder .* does not exist"):
        answer(model, data, out="none/a.json")


def test_chats_are_answered_at_their_end(model: LoadedModel, data: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    data.write_text(json.dumps({"messages": messages, "id": 7}) + "\n")
    respond(model, read_records(data), data.parent / "out.json", PROMPT_FORMATS["chatml"], GREEDY, batch=4)
    (found,) = json.loads((data.parent / "out.json").read_text())
    assert (found["instruction"], found["input"], found["output"], found["id"]) == ("Two?", "", "", 7)


def test_an_invalid_record_is_named_before_anything_is_written(model: LoadedModel, data: Path) -> None:
    data.write_text(json.dumps([{"instruction": "a"}, {"input": "b"}]))
    with pytest.raises(DataError, match=r"record 1 has no 'instruction'"):
        answer(model, data)
    assert [path.name for path in data.parent.iterdir()] == ["test.json"]


def test_the_commands_use_the_format_of_the_tuning(model: LoadedModel, data: Path) -> None:
    assert model.run is not None
    source, out = str(model.run.path), str(data.parent / "cli.json")
    found = CliRunner().invoke(
        app, ["respond", source, "--data", str(data), "--out", out, "--tokens", "12", "--json", "-q"]
    )
    assert found.exit_code == 0 and json.loads(found.stdout)["answered"] == 10
    answer(model, data)
    assert responses(Path(out)) == responses(data.parent / "out.json")
    chat = CliRunner().invoke(
        app,
        ["chat", source, "--tokens", "12", "--temperature", "0", "--repetition-penalty", "1"],
        input="Say cat 0.\n",
    )
    assert chat.stdout.strip() == responses(Path(out))[0]
    base = str(model.run.path.parent / "base")
    refused = CliRunner().invoke(app, ["respond", base, "--data", str(data), "--out", out])
    assert isinstance(refused.exception, UsageError)
    assert "does not say which prompt format it was tuned with; give --format" in str(refused.exception)
