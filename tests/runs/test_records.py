"""Records: appended lines of strict JSON, read however a crash left them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fromscratch.runs import records
from fromscratch.runs.records import RecordWriter, read_records, read_thinned


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the records go."""
    return tmp_path / "metrics.jsonl"


def test_records_are_read_by_others_at_once(file: Path) -> None:
    with RecordWriter(file) as writer:
        writer.write({"step": 1})
        assert list(read_records(file)) == [{"step": 1}]
        writer.write({"step": 2, "loss": float("inf")})
        assert list(read_records(file)) == [{"step": 1}, {"step": 2, "loss": None}]


def test_no_file_is_no_records(file: Path) -> None:
    assert list(read_records(file)) == []
    assert read_thinned(file, 10) == []
    assert not file.exists()


def test_f28_half_last_line_is_ignored_and_the_next_record_begins_its_own(file: Path) -> None:
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert list(read_records(file)) == [{"step": 1}]
    with RecordWriter(file) as writer:
        writer.write({"step": 2})
    with RecordWriter(file) as writer:
        writer.write({"step": 3})
    assert list(read_records(file)) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert file.read_text() == '{"step": 1}\n{"step": 2, "lo\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize(
    "line", [b"not json", b"[1]", b"3", b"null", b"", b"\xff\xfe", b"\0", b"[" * 100_000, b"1" * 5_000, b'{"a":}']
)
def test_b40_lines_that_are_no_object_are_skipped(file: Path, line: bytes) -> None:
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert list(read_records(file)) == [{"step": 1}, {"step": 2}]


def test_b40_not_a_number_is_null(file: Path) -> None:
    file.write_text('{"a": NaN, "b": -Infinity, "c": [Infinity]}\n')
    assert list(read_records(file)) == [{"a": None, "b": None, "c": [None]}]


RECORDS = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=20), max_size=4)


@settings(max_examples=40, deadline=None)
@given(records=st.lists(RECORDS, max_size=5), cut=st.integers(0, 40))
def test_whole_lines_survive_any_cut(tmp_path_factory: pytest.TempPathFactory, records: list[Any], cut: int) -> None:
    file = tmp_path_factory.mktemp("cut") / "records.jsonl"
    with RecordWriter(file) as writer:
        for record in records:
            writer.write(record)
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])
    found = list(read_records(file))
    assert found == records[: len(found)]
    with RecordWriter(file) as writer:
        writer.write({"next": 1})
    assert list(read_records(file)) == [*found, {"next": 1}]


def test_thinned_keeps_the_ends_the_nulls_and_an_even_choice(file: Path) -> None:
    lines = [{"step": step, "loss": None if step in {13, 477} else 1.0} for step in range(1_000)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [record["step"] for record in read_thinned(file, 100)]
    assert steps == sorted({*range(0, 1_000, 10), 13, 477, 999})
    assert [record["step"] for record in read_thinned(file, 5_000)] == list(range(1_000))


def test_thinned_stays_small_when_everything_is_null(file: Path) -> None:
    file.write_text('{"loss": null}\n' * 10_000)
    assert len(read_thinned(file, 100)) <= 201


@pytest.mark.parametrize("block_bytes", [7, 50, 1 << 18])
@pytest.mark.parametrize("end", ["\n", ""], ids=["whole", "no newline at the end"])
def test_reading_in_blocks_finds_what_reading_line_by_line_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, end: str
) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", block_bytes)
    path, outcomes = tmp_path / "metrics.jsonl", random.Random(1)
    for length in (0, 1, 2, 9, 10, 11, 31, 200):
        lines = [{"step": n, "outcome": outcomes.choice(["normal", "normal", "clipped"])} for n in range(length)]
        path.write_text("\n".join(map(json.dumps, lines)) + end * bool(lines))
        for max_records in (1, 3, 10, 100):
            stride = max(1, length // max_records)
            assert records.read_thinned(path, max_records) == [
                line for n, line in enumerate(lines) if n % stride == 0 or n == length - 1
            ]
        clipped = [line["step"] for line in lines if line["outcome"] == "clipped"]
        assert records.read_outcomes(path).get("clipped", []) == clipped
