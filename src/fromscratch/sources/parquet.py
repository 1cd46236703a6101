"""Parquet files, the usual format of large corpora: streams the text column.

A file is divided at its row groups, and a large row group by rows, into parts of bounded size. Few
rows are decoded at a time: a page may expand a thousandfold, so its size does not bound the memory.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fromscratch.errors import DataError
from fromscratch.sources import base
from fromscratch.sources.base import DamagedFile, Document, Part, Unusable, damaged, first_line

READ_BUFFER_BYTES = 1 << 16
MAX_DECODED_BYTES = 64 << 20  # upper bound: assumes that one row holds the whole column chunk
MAX_DECODED_ROWS = 1_024


@dataclass(frozen=True)
class ParquetPart:
    """Whole row groups, or some rows of one."""

    name: str
    path: Path
    column: str
    first_group: int
    groups: int
    first_row: int
    """Within the first row group."""
    rows: int
    text_bytes: int
    group_rows: tuple[int, ...]
    """Rows of each of the row groups."""

    def documents(self) -> Iterator[Document]:
        for item in self.arrays():
            if isinstance(item, Unusable):
                yield item
            else:
                yield from (_text(value, self.name) for value in item)

    def arrays(self) -> Iterator[Any]:
        """Yields the rows as arrays of valid strings, and what takes the place of rows that cannot be read."""
        first, left = self.first_row, self.rows
        for group in range(self.first_group, self.first_group + self.groups):
            rows = min(left, self.group_rows[group - self.first_group] - first)
            yield from self._group_arrays(group, first, first + rows)
            first, left = 0, left - rows

    def _group_arrays(self, group: int, begin: int, end: int) -> Iterator[Any]:
        row = begin
        try:
            for array in _cursor_at(self.path, group, self.column, begin).arrays(begin, end):
                yield from _checked(array, self.path, group, row)
                row += len(array)
        except MemoryError:  # another attempt may have enough
            raise
        except Exception as error:
            _last_cursor.clear()
            problem = damaged(f"{self.path}: cannot be read in {self.name}, from row {row:,} ({first_line(error)})")
            yield from repeat(problem, end - row)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


class _Cursor:
    """A row group that is being read, row by row: to reach a row, all pages before it must be decoded."""

    def __init__(self, path: Path, group: int, column: str) -> None:
        self.key = (path, group, column)
        file = pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
        self.rows = file.metadata.row_group(group).num_rows
        self.row = 0
        self._arrays = _row_group_arrays(file, group, column)  # no reference cycle, so both are freed at once
        self._rest: Any = None  # rows of the last array that belong to the next part

    def arrays(self, begin: int, end: int) -> Iterator[Any]:
        """Yields the rows ``[begin, end)``; none of them was read before."""
        while self.row < end:
            array = self._rest if self._rest is not None else next(self._arrays, None)
            if array is None:
                raise DataError(f"row group {self.key[1]} ends after {self.row} of {self.rows} rows")
            taken, skipped = array[: end - self.row], begin - self.row
            self._rest = array[end - self.row :] if len(array) > end - self.row else None
            self.row += len(taken)
            if self.row > begin:
                yield taken[max(0, skipped) :]


def _row_group_arrays(file: Any, group: int, column: str) -> Iterator[Any]:
    chunk_bytes = _text_bytes(file.metadata, group, column)  # no value is longer than its column chunk
    batch_size = max(1, min(MAX_DECODED_ROWS, MAX_DECODED_BYTES // max(1, chunk_bytes)))
    with file:
        for batch in file.iter_batches(batch_size, row_groups=[group], columns=[column], use_threads=False):
            yield batch.column(0)


_last_cursor: list[_Cursor] = []
"""The cursor that this process used last. The next part usually continues there, so nothing is decoded twice."""


def _cursor_at(path: Path, group: int, column: str, row: int) -> _Cursor:
    last = _last_cursor.pop() if _last_cursor else None
    fits = last is not None and last.key == (path, group, column) and last.row == row > 0
    cursor = last if last is not None and fits else _Cursor(path, group, column)
    _last_cursor[:] = [cursor]
    return cursor


def parquet_parts(path: Path, name: str, column: str) -> list[Part]:
    """Divides one file; a file that cannot be read becomes a ``DamagedFile``."""
    try:
        with pq.ParquetFile(path) as file:
            check_column(file.schema_arrow, column, path)
            metadata = file.metadata
    except DataError as error:
        return [DamagedFile(name, str(error))]
    except Exception as error:
        return [DamagedFile(name, f"{path}: not a readable parquet file ({first_line(error)})")]
    if metadata.num_rows == 0:
        return [DamagedFile(name, f"{path}: holds no rows")]
    sizes = [_text_bytes(metadata, group, column) for group in range(metadata.num_row_groups)]
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return list(_divide(path, name, column, sizes, rows))


def check_column(schema: Any, column: str, path: Path) -> None:
    """Raises DataError where the column is missing or not of text."""
    if column not in schema.names:
        raise DataError(f"{path}: has no column '{column}'; it has {', '.join(schema.names)} (--text-column names one)")
    if schema.names.count(column) > 1:
        raise DataError(f"{path}: has {schema.names.count(column)} columns named '{column}'; rename all but one")
    kind = schema.field(column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind) or _is_view(value_kind)):
        raise DataError(f"{path}: column '{column}' holds {kind}, expected text (--text-column names another)")


def _is_view(kind: Any) -> bool:
    return bool(getattr(pa.types, "is_string_view", lambda _kind: False)(kind))


def _divide(path: Path, name: str, column: str, sizes: list[int], rows: list[int]) -> Iterator[Part]:
    """Combines consecutive small row groups and divides large ones, in order."""
    target = base.part_bytes_for(sum(sizes))
    first, combined = 0, 0
    for group, size in enumerate(sizes):
        num_parts = min(max(1, rows[group]), max(1, round(size / target)))
        if num_parts > 1:
            if group > first:
                yield _whole_groups(path, name, column, sizes, rows, (first, group))
            bounds = [rows[group] * number // num_parts for number in range(num_parts + 1)]
            for begin, end in pairwise(bounds):
                label = f"{name} row group {group}, rows {begin} to {end}"
                yield ParquetPart(label, path, column, group, 1, begin, end - begin, size // num_parts, (rows[group],))
            first, combined = group + 1, 0
            continue
        combined += size
        if combined >= target:
            yield _whole_groups(path, name, column, sizes, rows, (first, group + 1))
            first, combined = group + 1, 0
    if first < len(sizes):
        yield _whole_groups(path, name, column, sizes, rows, (first, len(sizes)))


def _whole_groups(
    path: Path, name: str, column: str, sizes: list[int], rows: list[int], span: tuple[int, int]
) -> ParquetPart:
    first, end = span
    label = f"{name} row groups {first} to {end}"
    counts, size = tuple(rows[first:end]), sum(sizes[first:end])
    return ParquetPart(label, path, column, first, end - first, 0, sum(counts), size, counts)


def _text_bytes(metadata: Any, group: int, column: str) -> int:
    """Returns the uncompressed size of a column chunk."""
    row_group = metadata.row_group(group)
    chunks = (row_group.column(index) for index in range(row_group.num_columns))
    return next((chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column), 0)


def _checked(array: Any, path: Path, group: int, row: int) -> Iterator[Any]:
    """Yields an array of strings that begins at a row: whole where all are valid UTF-8, else in pieces."""
    kind = array.type if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) else None
    if kind is not None:
        with suppress(pa.ArrowInvalid):
            array.validate(full=True)
            yield array
            return
    for number, value in enumerate(array, start=row):
        document = _text(value, f"{path}: row {number:,} of row group {group}")
        yield pa.array([document], kind) if isinstance(document, str) else document


def _text(value: Any, where: str) -> Document:
    if not value.is_valid:
        return base.NULL
    with suppress(AttributeError):  # a value of a dictionary has no buffer
        if value.as_buffer().size > base.MAX_DOCUMENT_BYTES:
            return base.TOO_LONG
    try:
        text: str = value.as_py()
    except UnicodeDecodeError as error:
        return damaged(f"{where} is not UTF-8 text (byte {error.start:,})")
    return text
