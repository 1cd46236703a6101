"""Records in ``.jsonl`` files: one strict-JSON object per line, appended. Readers skip incomplete lines."""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from fromscratch.files import to_strict_json
from fromscratch.runs.states import StepOutcome

OUTCOME = b'"outcome": "'
NORMAL = OUTCOME + StepOutcome.NORMAL.encode() + b'"'
MAX_OUTCOME_BYTES = 40
DECODER = json.JSONDecoder(parse_constant=lambda _: None)
STEP = re.compile(rb'"step": (\d{1,15})\b')
BLOCK_BYTES = 1 << 18
TAIL_BYTES = 1 << 16  # at least a hundred records


class RecordWriter:
    """Appends records to a file; ``flush`` waits until they are on the disk.

    A record that cannot be written (the disk is full) is kept and written with the next one. One thread
    may write while another flushes.
    """

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._file = path.open("ab", buffering=0)
        self._pending = b""
        self._lock = threading.Lock()

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line; other processes can read it at once."""
        with self._lock:
            self._pending += to_strict_json(record).encode() + b"\n"
        with suppress(OSError):
            self._drain()

    def flush(self) -> None:
        """Waits until every line is on the disk. Raises OSError if a line cannot be written."""
        self._drain()
        os.fsync(self._file.fileno())

    def _drain(self) -> None:
        with self._lock:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]

    def close(self) -> None:
        """Flushes and closes. Raises OSError if a line cannot be written."""
        try:
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file in order; skips lines that are not a JSON object, as a crash may leave."""
    for line in _lines(path):
        if (record := record_in(line)) is not None:
            yield record


def last_record(path: Path) -> dict[str, Any]:
    """Returns the last record, reading only the end of the file; an empty one if there is none."""
    return next((record for line in reversed(_tail(path)) if (record := record_in(line)) is not None), {})


def recent_records(path: Path, max_records: int) -> list[dict[str, Any]]:
    """Returns the last records of a file in order, up to a hundred or so, without reading the rest."""
    return [record for line in _tail(path)[-max_records:] if (record := record_in(line)) is not None]


def _tail(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).splitlines()
    except OSError:
        return []


def read_thinned(path: Path, max_records: int) -> list[dict[str, Any]]:
    """Returns about ``2 * max_records`` records at most: every n-th, the last, and those that hold a null.

    A null stands for a value that was not finite. Other lines are not parsed: a million take about a second.
    """
    num_lines, num_nulls = 0, 0
    for block in _blocks(path):
        num_lines += block.count(b"\n") + (not block.endswith(b"\n"))
        if b"null" in block:
            num_nulls += sum(b"null" in line for line in block.split(b"\n"))
    stride, null_stride = max(1, num_lines // max_records), max(1, num_nulls // max_records)
    if num_nulls == 0:
        return [record for line in _every(stride, _blocks(path)) if (record := record_in(line)) is not None]
    taken, nulls_seen = [], 0
    for index, line in enumerate(_lines(path)):
        has_null = b"null" in line
        nulls_seen += has_null
        if index % stride == 0 or index == num_lines - 1 or (has_null and nulls_seen % null_stride == 0):
            taken.append(record_in(line))
    return [record for record in taken if record is not None]


def read_outcomes(path: Path) -> dict[str, list[int]]:
    """Returns the steps of each outcome but normal in a metrics file, without parsing the lines."""
    found: dict[str, list[int]] = {}
    unusual = (block for block in _blocks(path) if block.count(OUTCOME) != block.count(NORMAL))
    for line in (line for block in unusual for line in block.split(b"\n")):
        begin = line.find(OUTCOME)
        if begin < 0 or line.startswith(NORMAL, begin):
            continue
        outcome, step = line[begin + len(OUTCOME) :].partition(b'"')[0], STEP.search(line)
        if step is not None and len(outcome) <= MAX_OUTCOME_BYTES:
            found.setdefault(outcome.decode(errors="replace"), []).append(int(step[1]))
    return found


def record_in(line: bytes) -> dict[str, Any] | None:
    """Parses a line; None if it is not a JSON object. NaN and Infinity, which JSON lacks, become None."""
    try:
        record = DECODER.decode(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def _blocks(path: Path) -> Iterator[bytes]:
    """Yields many lines at a time: searching a block is faster than searching each line."""
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES) + file.readline():
                yield block


def _every(stride: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields every ``stride``-th line, and the last one."""
    passed, last = 0, b""
    for block in blocks:
        lines = block.removesuffix(b"\n").split(b"\n")
        first = -passed % stride
        yield from lines[first::stride]
        last = lines[-1] if (passed + len(lines) - 1) % stride else b""
        passed += len(lines)
    if last:
        yield last


def _end_last_line(path: Path) -> None:
    """Ends an incomplete line that a crash left, so that the next record begins on a new one."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def now_as_text() -> str:
    """Returns this instant as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_instant(value: Any) -> str | None:
    """Returns an ISO 8601 instant in UTC if the value is an instant with a time zone; else None."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
        return instant.astimezone(UTC).isoformat(timespec="seconds") if instant and instant.tzinfo else None
    except (ValueError, OverflowError):
        return None


def to_count(value: Any) -> int | None:
    """Returns the value if it is an integer from 0 to 2**63 - 1, as steps are; else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def to_float(value: Any) -> float | None:
    """Returns the value as a float if it is a number; else None."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None
