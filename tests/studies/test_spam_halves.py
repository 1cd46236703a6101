"""The halves of the study in studies/spam: a text that is measured on is never read by the base model."""

import json
import runpy
from pathlib import Path

import pytest

from fromscratch.finetuning.labelled import labelled_texts, read_table

SCRIPT = Path(__file__).parents[2] / "studies" / "spam" / "halves.py"
LINES = ["ham\tone", 'spam\ttwo "quoted"', 'ham\ttwo "quoted"', "ham\tthree", "spam\tfour", "ham\tfive é"]


def test_no_text_is_in_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.tsv").write_text("\n".join(["Label\tSMS", *LINES, ""]), "utf-8")
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path / "all.tsv"), str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    read = [json.loads(line)["text"] for line in (tmp_path / "messages.jsonl").read_text("utf-8").splitlines()]
    assert read == ["one", "four"]  # the third text is also the second
    labelled = (tmp_path / "labelled.tsv").read_text("utf-8").splitlines()
    assert labelled == ["Label\tSMS", LINES[1], LINES[3], LINES[5]]


def test_the_labelled_half_is_a_table_for_classify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.tsv").write_text("Label\tSMS\nham\ta\nspam\tb\nspam\tc\nham\td\n", "utf-8")
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path / "all.tsv"), str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = labelled_texts(read_table(tmp_path / "labelled.tsv"), None, None)
    assert (found.texts, found.labels) == (["b", "d"], ["spam", "ham"])
