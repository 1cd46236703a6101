"""A corpus of few documents holds out its end, and says so."""

import json
from pathlib import Path

import pytest

from fromscratch.data.documents import DocumentRule, HeldOutText, SplitRule, TailRule
from fromscratch.data.tail import hold_out_tail
from fromscratch.sources import Files, InMemory
from tests.command import run_command
from tests.data.helpers import NUMBERED_TEXTS


def marked(*texts: str, validation: float = 0.01) -> tuple[list[str], str]:
    """The held-out texts, and the note."""
    sources, _, note = hold_out_tail([InMemory("x", texts)], SplitRule(validation), DocumentRule())
    (source,) = sources
    assert isinstance(source, InMemory) and "".join(map(str, source.texts)) == "".join(texts)
    return [text for text in source.texts if isinstance(text, HeldOutText)], note


def test_the_end_is_cut_where_a_paragraph_line_sentence_or_word_begins() -> None:
    assert marked("x" * 900 + "\n\n" + "y" * 98)[0] == ["y" * 98]
    assert marked("x" * 900 + "\n" + "y" * 99)[0] == ["y" * 99]
    assert marked("x" * 900 + " " + "y" * 99)[0] == ["y" * 99]
    assert marked("x" * 1_000)[0] == ["x" * 100]
    held_out, note = marked("a" * 500, "b" * 470, "c" * 30)
    assert held_out == ["b" * 70, "c" * 30]
    assert "only 3 documents" in note and "100 of 1,000 characters (10%)" in note


def test_a_corpus_of_many_documents_and_one_without_validation_are_left_alone() -> None:
    assert marked(*NUMBERED_TEXTS) == ([], "")
    assert marked("one text", validation=0.0) == ([], "")


def test_a_share_that_would_hold_out_everything_keeps_training_text() -> None:
    rule = SplitRule(0.5)
    text = next(f"text {n} and so on" for n in range(99) if rule.split_of(f"text {n} and so on") == "validation")
    sources, chosen, _ = hold_out_tail([InMemory("x", (text,))], rule, DocumentRule())
    assert chosen == TailRule(0.5) and len([part for source in sources for part in source.parts()]) == 1


@pytest.mark.parametrize("tokenizer", ["bytes", "train:300"])
def test_a_folder_of_six_posts_makes_a_store_with_both_splits(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "posts").mkdir()
    for n in range(6):
        (tmp_path / "posts" / f"{n}.md").write_text(f"# Post {n}\n\nSome words of post {n}, and some more words.\n")
    arguments = ("data", "prepare", tmp_path / "posts", "--out", tmp_path / "s", "--tokenizer", tokenizer, "--json")
    done = run_command(*arguments)
    assert done.code == 0 and "too few to hold out whole ones: its last" in done.err
    facts = json.loads(done.out)
    assert facts["splits"]["validation"]["tokens"] and facts["split_rule"] == {"by": "tail", "validation": 0.1}
    assert sum(facts["splits"][name]["bytes"] for name in ("train", "validation")) == sum(
        path.stat().st_size for path in (tmp_path / "posts").iterdir()
    )
    assert run_command(*arguments).code == 0  # found finished
    assert run_command("data", "verify", tmp_path / "s").code == 0
    assert len(list(Files(tmp_path / "posts").parts())) == 1
