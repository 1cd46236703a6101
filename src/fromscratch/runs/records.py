"""Records in ``.jsonl`` files: one strict-JSON object a line, appended; half lines are never read."""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fromscratch.files import to_strict_json

OUTCOME, NORMAL = b'"outcome": "', b'"outcome": "normal"'
LONGEST_OUTCOME = 40
STEP = re.compile(rb'"step": (\d{1,15})\b')
BLOCK_BYTES = 1 << 18
TAIL_BYTES = 1 << 16  # a hundred records or more


class RecordWriter:
    """Appends records to a file; ``flush`` puts them on the disk.

    What the disk does not take (it is full) is kept and written with the next record. One thread may
    write while another flushes.
    """

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._file = path.open("ab", buffering=0)
        self._pending = b""
        self._lock = threading.Lock()

    def write(self, record: dict[str, Any]) -> None:
        """Adds one line; it can be read by others at once, where the disk takes it."""
        with self._lock:
            self._pending += to_strict_json(record).encode() + b"\n"
        with suppress(OSError):
            self._drain()

    def flush(self) -> None:
        """Waits until every line is on the disk. Raises OSError where it does not take them."""
        self._drain()
        os.fsync(self._file.fileno())

    def _drain(self) -> None:
        with self._lock:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]

    def close(self) -> None:
        """Flushes and closes. Raises OSError where not everything could be written."""
        try:
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order; lines that are no JSON object (a crash's last half) are skipped."""
    for line in _lines(path):
        if (record := _record_in(line)) is not None:
            yield record


def last_record(path: Path) -> dict[str, Any]:
    """The last record, found from the end, however long the file is; empty where there is none near it."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except OSError:
        return {}
    return next((record for line in reversed(lines) if (record := _record_in(line)) is not None), {})


def read_thinned(path: Path, most: int) -> list[dict[str, Any]]:
    """At most about ``2 * most`` records: evenly taken, the last one, and those that hold a null.

    Nulls are what was not finite. Lines not taken are not parsed, so a million take about a second.
    """
    num_lines, num_nulls = 0, 0
    for block in _blocks(path):
        num_lines += block.count(b"\n") + (not block.endswith(b"\n"))
        if b"null" in block:
            num_nulls += sum(b"null" in line for line in block.split(b"\n"))
    stride, null_stride = max(1, num_lines // most), max(1, num_nulls // most)
    if num_nulls == 0:
        return [record for line in _every(stride, _blocks(path)) if (record := _record_in(line)) is not None]
    taken, nulls_seen = [], 0
    for index, line in enumerate(_lines(path)):
        has_null = b"null" in line
        nulls_seen += has_null
        if index % stride == 0 or index == num_lines - 1 or (has_null and nulls_seen % null_stride == 0):
            taken.append(_record_in(line))
    return [record for record in taken if record is not None]


def read_outcomes(path: Path) -> dict[str, list[int]]:
    """The steps of a metrics file by their outcome, without those that were normal. Lines are not parsed."""
    found: dict[str, list[int]] = {}
    unusual = (block for block in _blocks(path) if block.count(OUTCOME) != block.count(NORMAL))
    for line in (line for block in unusual for line in block.split(b"\n")):
        begin = line.find(OUTCOME)
        if begin < 0 or line.startswith(NORMAL, begin):
            continue
        outcome, step = line[begin + len(OUTCOME) :].partition(b'"')[0], STEP.search(line)
        if step is not None and len(outcome) <= LONGEST_OUTCOME:
            found.setdefault(outcome.decode(errors="replace"), []).append(int(step[1]))
    return found


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def _blocks(path: Path) -> Iterator[bytes]:
    """The same lines, many at a time: what most lines are not need not be asked of each."""
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES) + file.readline():
                yield block


def _every(stride: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The first line of every ``stride``, and the last line."""
    passed, last = 0, b""
    for block in blocks:
        lines = block.removesuffix(b"\n").split(b"\n")
        first = -passed % stride
        yield from lines[first::stride]
        last = lines[-1] if (passed + len(lines) - 1) % stride else b""
        passed += len(lines)
    if last:
        yield last


def _record_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line, or None; NaN and Infinity, which are no JSON, become null."""
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _end_last_line(path: Path) -> None:
    """Closes the half line that a crash may have left, so that the next record begins its own."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
