"""What a store is made of: another text, column or rule is found and named, finished or not."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fromscratch.data.documents import DocumentRule
from fromscratch.data.encode import EncodePart
from fromscratch.data.engines import Task
from fromscratch.data.plan import hash_of
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError, UsageError
from fromscratch.sources import Files
from fromscratch.sources.python_docs import PythonDocsPart
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import run_command
from tests.data.helpers import NUMBERED_TEXTS, content_of, interrupt_after, store_of, store_of_files, texts_in


def test_a_finished_store_is_found_done_and_another_is_refused(tmp_path: Path) -> None:
    first = store_of(NUMBERED_TEXTS, tmp_path / "store")
    before = content_of(first.path)
    store_of(NUMBERED_TEXTS, tmp_path / "store")
    with pytest.raises(UsageError, match="made of something else"):
        store_of(NUMBERED_TEXTS[1:], tmp_path / "store")
    with pytest.raises(UsageError, match="made of something else"):
        store_of(NUMBERED_TEXTS, tmp_path / "store", validation=0.1)
    assert content_of(first.path) == before


def write_columns(path: Path, text: str) -> Path:
    path.write_text("".join(f'{{"text": "{text} {n}", "body": "other {n}"}}\n' for n in range(30)))
    return path


@pytest.mark.parametrize("is_finished", [True, False])
def test_edited_texts_of_equal_size_another_column_and_folder_are_refused(tmp_path: Path, is_finished: bool) -> None:
    """What is refused says what differs; names and sizes alone would find the same store."""
    source = write_columns(tmp_path / "a.jsonl", "one")
    out = tmp_path / "out"
    if is_finished:
        store_of_files(source, out)
    else:
        interrupt_after(0, lambda: store_of_files(source, out))
    with pytest.raises(UsageError, match=r"\(text columns text, now body\)"):
        prepare_store([Files(source, "body")], BytesTokenizer(), out, rule=SplitRule(0.3))
    os.utime(source)  # a file that was only touched is the same
    write_columns(source, "two")
    with pytest.raises(UsageError, match=r"\(a.jsonl has another content\)"):
        store_of_files(source, out)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"\(a.jsonl has another content\)"):
        store_of_files(write_columns(tmp_path / "other" / "a.jsonl", "six"), out)
    store = store_of_files(write_columns(source, "one"), out)
    assert sorted(texts_in(store)) == sorted(f"one {n}" for n in range(30))


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_skip_bad_left_out_is_not_taken_for_whole_without_it(tmp_path: Path, is_finished: bool) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "good in {name}"}}\nbroken\n')
    out, skipping = tmp_path.parent / f"{tmp_path.name}-out", DocumentRule(skip_bad=True)
    if is_finished:
        store_of_files(tmp_path, out, documents=skipping)
    else:
        assert interrupt_after(1, lambda: store_of_files(tmp_path, out, documents=skipping))
    with pytest.raises(UsageError, match=rf"left out {1 + is_finished} damaged documents or files; give --skip-bad"):
        store_of_files(tmp_path, out)
    assert store_of_files(tmp_path, out, documents=skipping).manifest.skipped == {"damaged": 2}


def test_a_file_that_changes_while_it_is_read_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, original = write_columns(tmp_path / "a.jsonl", "one"), EncodePart.__call__

    def change_first(self: EncodePart, task: Task, tokenizer: Any) -> Any:
        before = source.stat()
        write_columns(source, "two")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy that keeps times
        return original(self, task, tokenizer)

    monkeypatch.setattr(EncodePart, "__call__", change_first)
    with pytest.raises(DataError, match=r"a.jsonl: was changed while the store was made of it"):
        store_of_files(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_that_cannot_be_read_is_skipped_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("readable")
    (tmp_path / "b.txt").write_text("locked")
    out, original = tmp_path.parent / f"{tmp_path.name}-out", Path.open

    def locked(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(DataError, match=r"b.txt: cannot be read \(Permission denied\).*--skip-bad"):
        store_of_files(tmp_path, out)
    store = store_of_files(tmp_path, out, documents=DocumentRule(skip_bad=True))
    assert texts_in(store) == ["readable"] and store.manifest.skipped == {"damaged": 1}


def test_equal_names_in_several_folders_and_the_files_of_python_docs_are_compared(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_columns(tmp_path / "in" / folder / "x.jsonl", folder)
    store_of_files(tmp_path / "in", tmp_path / "out")
    write_columns(tmp_path / "in" / "a" / "x.jsonl", "c")
    with pytest.raises(UsageError, match=r"\(x.jsonl has another content\)"):
        store_of_files(tmp_path / "in", tmp_path / "out")
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text(f'"""{"First words. " * 9}"""')

    def prepare_docs() -> TokenStore:
        parts = PythonDocsPart((package,))
        docs = SimpleNamespace(description="docs", parts=lambda: [parts], left_out=str)
        return prepare_store([docs], BytesTokenizer(), tmp_path / "docs", rule=SplitRule(0.0))

    prepare_docs()
    (package / "module.py").write_text(f'"""{"Other words. " * 9}"""')
    with pytest.raises(UsageError, match="has another content"):
        prepare_docs()


def test_a_store_of_an_earlier_version_is_taken_with_a_note(tmp_path: Path) -> None:
    texts = tmp_path / "x.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in NUMBERED_TEXTS))
    arguments = ("data", "prepare", texts, "--out", tmp_path / "s", "--tokenizer", "bytes", "--workers", 1)
    done = run_command(*arguments)
    assert done.code == 0 and "earlier version" not in done.err
    manifest_file = tmp_path / "s" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    plan = {key: manifest[key] for key in ("tokenizer", "source", "split_rule", "documents")}
    parts = {"parts": [[part.name, part.text_bytes] for part in Files(texts).parts()]}
    earlier = {key: value for key, value in manifest.items() if key not in ("text_columns", "files", "altered")}
    manifest_file.write_text(json.dumps(earlier | {"plan_sha256": hash_of(plan | parts)}))
    done = run_command(*arguments)
    assert done.code == 0 and "did not record the text column" in done.err, done.err


def test_an_unfinished_preparation_with_other_settings_is_refused(corpus: Path, tmp_path: Path) -> None:
    interrupt_after(1, lambda: store_of_files(corpus, tmp_path / "out"))
    with pytest.raises(UsageError, match="other settings or sources"):
        store_of_files(corpus, tmp_path / "out", validation=0.2)
