"""The programs in docs/examples, run as a reader would run them, on small models and data."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fromscratch.config.prompts import PROMPT_FORMATS
from fromscratch.generation.conversation import TEMPLATES
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import export_model
from tests.command import run_command
from tests.conftest import REPOSITORY
from tests.publishing.models import make_loaded

WORDS = ["the", "cat", "dog", "sees", "hears", "likes", "a", "small", "large", "red"]


def run_example(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs a program of docs/examples in this process; returns its variables."""
    file = str(REPOSITORY / "docs" / "examples" / name)
    monkeypatch.setattr(sys, "argv", [file, *map(str, arguments)])
    return runpy.run_path(file, run_name="__main__")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_loaded(tmp_path / "tiny", context_length=128)
    return tmp_path / "tiny"


def test_every_example_is_tested() -> None:
    tests = "".join(
        (REPOSITORY / "tests" / name).read_text("utf-8")
        for name in ("test_examples.py", "test_api.py", "studies/test_guide.py")
    )
    examples = list((REPOSITORY / "docs" / "examples").glob("*.py"))
    assert len(examples) >= 3 and all(f'"{path.name}"' in tests for path in examples)


def test_instructions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"instruction": f"Say {word} {i}.", "input": "" if i % 2 else "loud", "output": word}
        for i, word in enumerate(WORDS * 3)
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    found = run_example("instructions.py", tmp_path / "data.json", tmp_path / "out", model, monkeypatch=monkeypatch)
    texts = [json.loads(line)["text"] for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert texts[1] == TEMPLATES["alpaca"].prompt([], "Say cat 1.") + "cat"
    assert "Say the 0.\n\n### Input:\nloud\n\n### Response:\nthe" in texts[0]
    run, printed = found["run"], capsys.readouterr().out
    assert run.summary.outcome == "done" and run.summary.num_steps > 10
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "evaluation"]
    assert losses[-1] < losses[0]
    assert any(event["event"] == "parent" and event["source"] == str(model) for event in events)
    assert printed.count("\n  -> ") == 3


@pytest.mark.filterwarnings("default")  # those of transformers
def test_spam(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    messages = [f"spam\tWin {i}" for i in range(10)] + [f"ham\tsee {i}" for i in range(15)]
    (tmp_path / "spam.tsv").write_text("Label\tSMS\n" + "\n".join(messages) + "\n")
    found = run_example("spam.py", tmp_path / "spam.tsv", tmp_path / "out", model, 2, monkeypatch=monkeypatch)
    assert len(found["training"]) == 14 and sorted(label for _, label in found["rows"]) == [0] * 10 + [1] * 10
    printed = capsys.readouterr().out
    assert "of 6 held-out messages" in printed and "epoch 2: loss" in printed
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "classifier")
    before = transformers.AutoModel.from_pretrained(found["report"].folder)
    assert classifier.num_labels == 2
    assert not (classifier.transformer.wte.weight == before.wte.weight).all()


@pytest.mark.filterwarnings("default")  # those of trl
@pytest.mark.parametrize("format_name", ["native", "custom"])
def test_preference(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format_name: str,
) -> None:
    """From a published instruct model with a tied head through DPOTrainer, and back."""
    pytest.importorskip("trl", reason="the extra 'hf' is not installed")
    torch = pytest.importorskip("torch")
    plain = make_loaded(tmp_path / "model", context_length=448, tied_head=True, init={"kind": "gpt2", "std": 0.05})
    instruct, form = tmp_path / "published", PROMPT_FORMATS["chatml"]
    export_model(replace(plain, prompt_format=form), instruct, format_name=format_name, card=CardSettings())
    records = json.loads((shared_data / "instructions" / "instruction-data-with-preference.json").read_text("utf-8"))
    short = [record for record in records if len(record["instruction"] + record["input"]) < 60][:64]
    (tmp_path / "pairs.json").write_text(json.dumps(short))
    out = tmp_path / "out"
    found = run_example("preference.py", tmp_path / "pairs.json", out, instruct, 1e-3, monkeypatch=monkeypatch)
    assert found["before"]["eval_loss"] == pytest.approx(0.693, abs=0.01)  # ln 2: the model is its reference
    trainer = found["trainer"]
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < 0.68
    assert capsys.readouterr().out.count("\n  -> ") == 3
    assert found["tuned"].prompt_format == form
    # What comes back computes what trl has trained, and answers with the prompt format that it was tuned on.
    ids = torch.tensor([[5, 80, 200, 17]])
    theirs = trainer.model.eval()(ids).logits
    torch.testing.assert_close(found["tuned"].module(ids), theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found["base"].module(ids), theirs, atol=1e-2)
    (tmp_path / "questions.json").write_text(json.dumps(short[:2]))
    answers = ("respond", out / "preferred", "--data", tmp_path / "questions.json", "--out", tmp_path / "answers.json")
    assert run_command(*answers, "--device", "cpu", "--max-new-tokens", 8, "-q").code == 0
    assert all("model_response" in record for record in json.loads((tmp_path / "answers.json").read_text("utf-8")))
