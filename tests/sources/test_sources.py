"""Sources: every document comes out once, in order, however the input is divided; damage is named."""

import gc
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fromscratch.data.documents import DocumentRule, SplitRule, training_documents
from fromscratch.errors import DataError, UsageError
from fromscratch.sources import Files, PythonDocs, base, open_source, text_files
from fromscratch.sources.base import InMemory, Unusable, usable
from fromscratch.sources.texts import batches_of, strings_of
from tests.command import refused, run_command
from tests.data.helpers import store_of_files, texts_in, write_parquet

TEXTS = [f"{number} " + "words " * (number % 50) for number in range(2_000)]


def read(path: Path) -> list[str]:
    """All documents of a file or folder."""
    return [text for part in Files(path).parts() for text in usable(part.documents())]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divides test files as if they were large."""
    monkeypatch.setattr(base, "MIN_PART_BYTES", 5_000)


@pytest.mark.parametrize("row_group_size", [10, 333, 5_000])
def test_parquet_is_read_whatever_its_row_groups(tmp_path: Path, small_parts: None, row_group_size: int) -> None:
    path = write_parquet(tmp_path / "x.parquet", TEXTS, row_group_size=row_group_size)
    parts = Files(path).parts()
    assert len(parts) > 5
    assert read(path) == TEXTS
    backwards = [list(part.documents()) for part in reversed(parts)]  # each part stands alone
    assert [text for texts in reversed(backwards) for text in texts] == TEXTS


def test_a_row_group_is_freed_when_the_next_file_is_read(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / f"{number}.parquet", ["x" * 100_000] * 40) for number in range(6)]
    before = pa.total_allocated_bytes()
    gc.disable()  # without waiting for it to find cycles
    try:
        for path in paths:
            read(path)
        assert pa.total_allocated_bytes() - before < 2 * 4_000_000
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_kinds_of_text_columns_are_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "x.parquet")
    assert [*Files(tmp_path / "x.parquet").parts()[0].documents()] == ["a", Unusable("null"), "b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_are_read_plain_and_compressed(tmp_path: Path, small_parts: None, suffix: str) -> None:
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS) + "\n"
    path = tmp_path / f"x{suffix}"
    if suffix.endswith("zst"):
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
            stream.write(lines.encode())
    else:
        path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    assert read(path) == TEXTS
    assert (len(Files(path).parts()) > 5) == (suffix == ".jsonl")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(), min_size=1), step=st.integers(1, 60), last_feed=st.booleans())
def test_ranges_of_bytes_give_every_line_once(tmp_path: Path, texts: list[str], step: int, last_feed: bool) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n" * last_feed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fromscratch.sources.base.part_bytes_for", lambda _size: step)
        parts = Files(path).parts()
    assert [text for part in parts for text in part.documents()] == texts


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from(["\n\n", "\r\n\r\n", "é", "word ", "\n", "👩"]), min_size=1).map("".join),
    step=st.integers(1, 40),
)
def test_a_long_text_is_cut_without_loss_wherever_it_is_divided(tmp_path: Path, text: str, step: int) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "part_bytes_for", lambda _size: step)
        patch.setattr(text_files, "MIN_PIECE_BYTES", 5)
        patch.setattr(text_files, "MAX_PIECE_BYTES", 12)
        pieces = [piece for part in text_files.long_text_parts(path) for piece in part.documents()]
    assert all(isinstance(piece, str) and 0 < len(piece.encode()) <= 12 for piece in pieces)
    assert "".join(map(str, pieces)) == text


def test_a_folder_mixes_kinds_in_the_order_of_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b.parquet", ["from parquet"])
    (tmp_path / "a.jsonl").write_text('{"text": "from lines"}\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.md").write_bytes(b"from text\r\n")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"no")
    assert read(tmp_path) == ["from lines", "from parquet", "from text\r\n"]


def test_b19_parquet_without_the_text_column_names_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "x.parquet")
    arguments = ("data", "prepare", tmp_path / "x.parquet", "--out", tmp_path / "s", "--tokenizer", "bytes", "-q")
    refused(*arguments, code=3, says="has no column 'text'; it has body, n (--text-column names one)")
    assert not (tmp_path / "s").exists()
    renamed = Files(tmp_path / "x.parquet", "body")
    assert [*renamed.parts()[0].documents()] == ["x"]


def test_b19_a_column_of_lists_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [["a", "b"]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"holds list<.*string>, expected text"):
        store_of_files(tmp_path / "x.parquet", tmp_path / "s")


def test_b19_nulls_and_empty_texts_are_counted_and_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ["a", None, "", "b", None])
    store = store_of_files(tmp_path / "x.parquet", tmp_path / "s", validation=0.0)
    assert texts_in(store) == ["a", "b"]
    assert store.manifest.skipped == {"empty": 1, "null": 2}


def damaged_files(folder: Path) -> dict[str, bytes]:
    """Every kind of damage, by file name."""
    good = write_parquet(folder / "good.parquet", ["a good document"]).read_bytes()
    rows = write_parquet(folder / "rows.parquet", []).read_bytes()
    (folder / "rows.parquet").unlink()
    page = bytearray(write_parquet(folder / "page.parquet", TEXTS).read_bytes())
    page[100:1_000] = bytes(900)
    line = b'{"text": "fine"}\n{"text": 5}\n{"body": "x"}\n{"text": \n["text"]\n'
    return {
        "truncated.parquet": good[: len(good) // 2],
        "empty.parquet": b"",
        "rows.parquet": rows,
        "other.parquet": b"PAR1 but not really",
        "page.parquet": bytes(page),
        "lines.jsonl": line,
        "cut.jsonl.gz": gzip.compress(b'{"text": "before the cut"}\n' * 1_000)[:40],
        "latin.txt": "caf\xe9".encode("latin-1"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "truncated.parquet",
        "empty.parquet",
        "rows.parquet",
        "other.parquet",
        "page.parquet",
        "lines.jsonl",
        "cut.jsonl.gz",
        "latin.txt",
    ],
)
def test_b20_damaged_input_is_named_or_skipped_and_counted(tmp_path: Path, name: str) -> None:
    content = damaged_files(tmp_path)[name]
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_parquet(folder / "good.parquet", ["a good document"])
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*--skip-bad"):
        store_of_files(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    store = store_of_files(folder, tmp_path / "out", documents=DocumentRule(skip_bad=True))
    assert "a good document" in texts_in(store)
    expected = {"lines.jsonl": 4, "page.parquet": 1_000}  # all rows of the row group whose first page is broken
    assert store.manifest.skipped["damaged"] == expected.get(name, 1)


def test_b20_a_column_that_expands_a_thousandfold_takes_little_memory(tmp_path: Path) -> None:
    text = "z" * (4 << 20)
    array = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": array}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    before, most = pa.total_allocated_bytes(), 0
    count = 0
    for part in Files(tmp_path / "bomb.parquet").parts():
        for document in part.documents():
            count += len(document) if isinstance(document, str) else 0
            most = max(most, pa.total_allocated_bytes() - before)
    assert count == 300 * len(text)  # 1.2 GB
    assert most < 200 << 20


def test_b21_half_a_surrogate_pair_is_damage_and_a_whole_one_is_text(tmp_path: Path) -> None:
    lines = '{"text": "half \\ud83d a pair"}\n{"text": "whole \\ud83d\\ude00"}\n{"text": "\\\\ud83d is spelled"}\n'
    (tmp_path / "x.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"x.jsonl: the line at byte 0 holds half a surrogate pair"):
        store_of_files(tmp_path / "x.jsonl", tmp_path / "s", validation=0.0)
    skipping = DocumentRule(skip_bad=True)
    store = store_of_files(tmp_path / "x.jsonl", tmp_path / "s", validation=0.0, documents=skipping)
    assert texts_in(store) == ["whole \U0001f600", "\\ud83d is spelled"] and store.manifest.skipped == {"damaged": 1}


@pytest.mark.parametrize("data", [b"\xed\xa0\xbd", b"\xed\xa0\xbd\xed\xb8\x80", b"caf\xe9"])
def test_b21_lines_that_are_not_utf8_are_damage(tmp_path: Path, data: bytes) -> None:
    """Half a surrogate pair as bytes, a whole one in two characters (CESU-8), and Latin-1."""
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "good"}\n{"text": "' + data + b'"}\n')
    with pytest.raises(DataError, match=r"x.jsonl: the line at byte 17 is not UTF-8 text \(byte 1"):
        store_of_files(tmp_path / "x.jsonl", tmp_path / "s", validation=0.0)
    skipping = DocumentRule(skip_bad=True)
    store = store_of_files(tmp_path / "x.jsonl", tmp_path / "s", validation=0.0, documents=skipping)
    assert texts_in(store) == ["good"] and store.manifest.skipped == {"damaged": 1}


def test_a_zstd_window_above_the_limit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    line = b'{"text": "abc"}\n'
    frame = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x00, 18 << 3])  # magic number, flags, a window of 2**28 bytes
    block = (len(line) << 3 | 1).to_bytes(3, "little")  # the last block, not compressed
    (tmp_path / "x.jsonl.zst").write_bytes(frame + block + line)
    with pytest.raises(DataError, match=r"x.jsonl.zst: .* window above 128 MiB: decompress it first"):
        store_of_files(tmp_path / "x.jsonl.zst", tmp_path / "s")


def test_a_bad_row_of_parquet_is_one_damaged_document(tmp_path: Path) -> None:
    """The column is text that is not UTF-8 in one row; the rows around it are kept."""
    values = [f"row {n}".encode() for n in range(1_000)]
    values[10] = b"caf\xe9"
    column = pa.array(values, pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", row_group_size=300)
    with pytest.raises(DataError, match=r"x.parquet: row 10 of row group 0 is not UTF-8 text"):
        store_of_files(tmp_path / "x.parquet", tmp_path / "s")
    store = store_of_files(tmp_path / "x.parquet", tmp_path / "s", documents=DocumentRule(skip_bad=True))
    assert store.manifest.skipped == {"damaged": 1}
    assert len(texts_in(store)) == 999


def test_two_columns_of_one_name_and_errors_of_libraries_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice.parquet: has 2 columns named 'text'; rename all but one"):
        store_of_files(tmp_path / "twice.parquet", tmp_path / "s")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')

    def broken(*_arguments: object, **_options: object) -> Any:
        raise ZeroDivisionError("of the library\nin its depths")

    monkeypatch.setattr("fromscratch.sources.jsonl.lines_of", broken)
    with pytest.raises(DataError, match=r"x.jsonl from byte 0: cannot be read \(of the library\)"):
        store_of_files(tmp_path / "x.jsonl", tmp_path / "s")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    mark = "\ufeff"
    (folder / "a.txt").write_text(f"{mark}one", "utf-8")
    (folder / "b.md").write_text(f"two {mark}stays", "utf-8")
    (folder / "c.jsonl").write_text(f'{mark}{{"text": "three"}}\n', "utf-8")
    assert texts_in(store_of_files(folder, tmp_path / "s", validation=0.0)) == ["three", "one", f"two {mark}stays"]
    assert texts_in(store_of_files(folder / "a.txt", tmp_path / "t", validation=0.0)) == ["one"]


def test_links_are_followed_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "far.txt").write_text("far")
    (elsewhere / "back").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "lines.json").write_text('{"text": "a line"}\n{"text": "another"}\n')
    (folder / "array.json").write_text('[{"text": "a"}]')
    (folder / "table.csv").write_text("text\na\n")
    source = Files(folder)
    assert source.left_out() == f"source {folder}: left out 2 files (1 .json, 1 .csv; the first is array.json)"
    assert texts_in(store_of_files(folder, tmp_path / "s", validation=0.0)) == ["a line", "another", "far"]
    assert texts_in(store_of_files(folder / "lines.json", tmp_path / "t", validation=0.0)) == ["a line", "another"]
    for name, message in (("array.json", "convert it to JSON Lines"), ("table.csv", "convert it to parquet")):
        with pytest.raises(UsageError, match=message):
            store_of_files(folder / name, tmp_path / "u")


def test_a_folder_leaves_out_json_files_without_the_key_and_tells_of_everything(tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    (folder / "a.md").write_text("words")
    (folder / "empty.json").write_text("")
    (folder / "settings.json").write_text('{"theme": "dark"}\n')
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert texts_in(store_of_files(folder, tmp_path / "s", validation=0.0)) == ["words"]
    told = "left out 3 files (2 .json, 1 broken link; the first is empty.json)"
    for verb in (("prepare", "--out", tmp_path / "t", "--workers", 1), ("stats",)):
        done = run_command(
            "data", *verb, folder, "--tokenizer", "bytes", "--quiet" if verb[0] == "prepare" else "--json"
        )
        assert done.code == 0 and told in done.err, done.err


@pytest.mark.parametrize("name", ["lines.txt", "lines", "lines.data"])
def test_json_lines_under_another_name_are_no_plain_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('\n{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(UsageError, match=r"holds JSON Lines.*rename it to .jsonl"):
        Files(tmp_path / name).parts()
    (tmp_path / name).write_text('{"text": "a"}\nand prose\n')
    assert read(tmp_path / name) == ['{"text": "a"}\nand prose\n']


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("a")
    original = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UsageError, match=r"locked: cannot be read \(Permission denied\)"):
        Files(tmp_path).parts()


def test_a_lack_of_memory_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt may have enough; as damaged input, the text would be skipped for ever."""
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    write_parquet(tmp_path / "x.parquet", ["a"])

    def fail(*_arguments: object, **_options: object) -> Any:
        raise MemoryError

    monkeypatch.setattr("fromscratch.sources.jsonl.lines_of", fail)
    monkeypatch.setattr("fromscratch.sources.parquet._row_group_arrays", fail)
    for name in ("x.jsonl", "x.parquet"):
        with pytest.raises(MemoryError):
            store_of_files(tmp_path / name, tmp_path / f"{name}-store", documents=DocumentRule(skip_bad=True))


def test_documents_longer_than_the_limit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fromscratch.sources.texts.MAX_DOCUMENT_BYTES", 10)
    skipped: Counter[str] = Counter()
    kept = DocumentRule(min_characters=2).kept(batches_of(["x" * 11, "x" * 10, "é", ""]), skipped)
    assert [*strings_of(kept)] == ["x" * 10]
    assert +skipped == {"too long": 1, "too short": 1, "empty": 1}


def test_a_tokenizer_learns_from_a_bounded_sample_of_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [InMemory(str(n), tuple(f"{n} {i} " + "x" * 96 for i in range(100))) for n in range(4)]
    assert len([*training_documents(sources, SplitRule(0.0))]) == 400
    monkeypatch.setattr("fromscratch.data.documents.MAX_TRAINING_BYTES", 8_000)
    assert [text[0] for text in training_documents(sources, SplitRule(0.0))] == sorted("0123" * 20)


@given(st.lists(st.text(min_size=1), max_size=50))
def test_the_split_depends_on_the_text_alone(texts: list[str]) -> None:
    rule = SplitRule(0.5)
    splits = [rule.split_of(text) for text in texts]
    assert [rule.split_of(text.encode()) for text in reversed(texts)] == splits[::-1]
    assert {SplitRule(0.0).split_of(text) for text in texts} <= {"train"}


def test_words_on_the_command_line_name_sources() -> None:
    assert open_source("python-docs:stdlib,numpy") == PythonDocs(("stdlib", "numpy"))
    assert open_source("x/y.parquet", text_column="body") == Files(Path("x/y.parquet"), "body")
    assert open_source("hf://a/b?name=c").description == "hf://a/b?name=c"
    with pytest.raises(UsageError, match="no such file or folder"):
        open_source("nothing-here").parts()


def test_python_docs_are_documents_of_installed_packages() -> None:
    texts = [*usable(PythonDocs(("typer",)).parts()[0].documents())]
    assert len(texts) > 20
    assert len(set(texts)) == len(texts)
    with pytest.raises(UsageError, match="'no-such-package' is not installed"):
        PythonDocs(("no-such-package",)).parts()
