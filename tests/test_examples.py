"""The programs in docs/examples, run as a reader would run them, on small models and data."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from fromscratch.generation.conversation import TEMPLATES
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
