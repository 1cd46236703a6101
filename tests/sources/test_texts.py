"""Documents in one buffer are the documents one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fromscratch.data.documents import VALIDATION, DocumentRule, SplitRule
from fromscratch.sources import Files
from fromscratch.sources.base import Unusable, documents_in
from fromscratch.sources.texts import Texts, batches_of, strings_of, texts_in

WORDS = ["", "a", "é", "日本", "\U0001f600 end", "\u2028 x", *(f"document {n} " * n for n in range(40))]
KINDS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "view": pa.string_view(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_bytes", [1, 500, 1 << 20])
def test_arrays_hold_the_documents_of_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, batch_bytes: int
) -> None:
    monkeypatch.setattr("fromscratch.sources.texts.BATCH_BYTES", batch_bytes)
    monkeypatch.setattr("fromscratch.sources.base.MIN_PART_BYTES", 2_000)  # parts end within row groups
    rows = [*WORDS, None, *WORDS]
    pq.write_table(pa.table({"text": pa.array(rows, pa.string()).cast(KINDS[kind])}), tmp_path / "x.parquet")
    parts = Files(tmp_path / "x.parquet").parts()
    assert len(parts) > 1
    found = [item for part in parts for item in texts_in(part)]
    assert [*strings_of(item for item in found if isinstance(item, Texts))] == [*WORDS, *WORDS]
    assert [item for item in found if isinstance(item, Unusable)] == [Unusable("null")]
    assert [item for part in parts for item in documents_in(part) if isinstance(item, str)] == [*WORDS, *WORDS]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_rows_that_are_no_utf8_are_damaged_and_the_others_are_kept(tmp_path: Path, kind: pa.DataType) -> None:
    width = np.int64 if kind == pa.large_string() else np.int32
    offsets = pa.py_buffer(np.array([0, 5, 8, 13], dtype=width))
    rows = pa.Array.from_buffers(kind, 3, [None, offsets, pa.py_buffer(b"hello\xff\xfe!world")])
    pq.write_table(pa.table({"text": rows}), tmp_path / "x.parquet")
    (part,) = Files(tmp_path / "x.parquet").parts()
    skipped: Counter[str] = Counter()
    kept = DocumentRule(skip_bad=True).kept(texts_in(part), skipped)
    assert [*strings_of(kept)] == ["hello", "world"]
    assert +skipped == {"damaged": 1}


def test_rows_longer_than_the_limit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fromscratch.sources.texts.MAX_DOCUMENT_BYTES", 10)
    pq.write_table(pa.table({"text": ["x" * 11, "x" * 10, "é" * 6]}), tmp_path / "x.parquet")
    (part,) = Files(tmp_path / "x.parquet").parts()
    skipped: Counter[str] = Counter()
    assert [*strings_of(DocumentRule().kept(texts_in(part), skipped))] == ["x" * 10]
    assert +skipped == {"too long": 2}


def test_characters_are_counted_not_bytes() -> None:
    assert Texts.of(WORDS).characters().tolist() == [len(word) for word in WORDS]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1 - 2**-53])
def test_many_documents_are_held_out_as_one_is(share: float) -> None:
    rule, texts = SplitRule(share), [f"text {number}" for number in range(500)]
    (batch,) = batches_of(texts)
    assert isinstance(batch, Texts)
    pieces, held_out = rule.divide(batch, batch)
    assert pieces is batch
    assert held_out.tolist() == [rule.split_of(text) == VALIDATION for text in texts]
