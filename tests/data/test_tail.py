"""A corpus of few documents holds out its end, and says so."""

import json
from pathlib import Path

import pytest

import tokenizers as hf
from fromscratch.data.documents import DocumentRule, SplitRule, TailRule
from fromscratch.data.engines import WorkerProcesses
from fromscratch.data.prepare import prepare_store
from fromscratch.data.tail import hold_out_tail
from fromscratch.data.verify import verify_store
from fromscratch.sources import Files, InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer
from fromscratch.tokenizers.loading import load
from tests.command import run_command
from tests.data.helpers import NUMBERED_TEXTS, content_of, texts_in


def marked(*texts: str, validation: float = 0.01, deduplicate: bool = False) -> tuple[list[str], str]:
    """The held-out texts, and the note."""
    kept = DocumentRule(deduplicate=deduplicate)
    rule, note = hold_out_tail([InMemory("x", texts)], SplitRule(validation), kept)
    pieces = [piece for text in texts for piece in rule.pieces(text, text.encode())]
    assert "".join(piece for _, piece in pieces) == "".join(texts)
    return [text for split, text in pieces if split == "validation"] if isinstance(rule, TailRule) else [], note


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
    chosen, _ = hold_out_tail([InMemory("x", (text,))], rule, DocumentRule())
    assert isinstance(chosen, TailRule) and chosen.validation == 0.5
    assert [split for split, _ in chosen.pieces(text, text.encode())] == ["train", "validation"]


def test_what_would_be_in_both_splits_is_not_in_the_tail() -> None:
    assert marked("once " * 30, "again", "again")[0] == ["once once once "]
    assert marked("a", "a", "ab")[0] == []  # "ab" would be cut into "a" and "b"
    assert marked("same", "same")[0] == []
    assert "the validation split is empty" in marked("same", "same")[1]
    assert set(marked("same text", "same text", deduplicate=True)[0]) == {"t"}  # only the first is kept


def test_books_of_many_megabytes_hold_out_a_tail_by_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents decide whether there are few, not their size; the tail is not a tenth of a large corpus."""
    monkeypatch.setattr("fromscratch.data.tail.MAX_RAISED_CHARACTERS", 10_000)
    monkeypatch.setattr("fromscratch.sources.base.MIN_PART_BYTES", 1_000)
    (tmp_path / "books").mkdir()
    for n in range(3):
        (tmp_path / "books" / f"{n}.txt").write_text(f"Book {n}.\n" + f"A line of book {n}.\n" * 5_000)
    source = Files(tmp_path / "books")
    assert len(source.parts()) == 3
    rule, note = hold_out_tail([source], SplitRule(0.01), DocumentRule())
    assert "only 3 documents" in note
    stores = [
        prepare_store([source], BytesTokenizer(), tmp_path / f"store-{workers}", rule=rule, engine=engine)
        for workers, engine in ((1, None), (2, WorkerProcesses(2, load)))
    ]
    assert content_of(stores[0].path) == content_of(stores[1].path)
    assert "".join(texts_in(stores[0])) == "".join(path.read_text() for path in sorted((tmp_path / "books").iterdir()))
    assert 9_000 < stores[0].split("validation").tokens <= 10_001
    assert verify_store(stores[0]).problems == []


def test_documents_that_a_tokenizer_takes_for_one_are_not_in_the_tail(tmp_path: Path) -> None:
    engine = hf.Tokenizer(hf.models.WordLevel({"a": 0, "post": 1, "[UNK]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    engine.normalizer = hf.normalizers.Lowercase()
    engine.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer = HuggingFaceTokenizer(engine, name="lower")
    source = InMemory("x", ("a post a post a", "A post", "a  POST"))
    rule, _ = hold_out_tail([source], SplitRule(0.01), DocumentRule(), tokenizer)
    store = prepare_store([source], tokenizer, tmp_path / "s", rule=rule)
    assert verify_store(store).problems == []
    assert store.manifest.splits["validation"].documents == 1


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
