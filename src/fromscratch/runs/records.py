"""Records in ``.jsonl`` files: one strict-JSON object a line, appended; half lines are never read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fromscratch.files import to_strict_json


class RecordWriter:
    """Appends records to a file; ``flush`` puts them on the disk."""

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds one line; it can be read by others at once."""
        self._file.write(to_strict_json(record) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Waits until every line is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order; lines that are no JSON object (a crash's last half) are skipped."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _end_last_line(path: Path) -> None:
    """Closes the half line that a crash may have left, so that the next record begins its own."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
