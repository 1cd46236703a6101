"""JSON Lines: one object per line, its text under one key; plain, gzip or zstd.

A plain file is divided by bytes, each part taking the lines that begin in its range; a compressed
one cannot be entered in the middle and is one part.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fromscratch.sources.base import (
    DAMAGED,
    MOST_DOCUMENT_BYTES,
    NULL,
    TOO_LONG,
    DamagedFile,
    Document,
    Part,
    Unusable,
    part_bytes_for,
)
from fromscratch.sources.lines import LineTooLongError, Readable, lines_of

SUFFIXES = (".jsonl", ".ndjson")
COMPRESSED_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
USUAL_COMPRESSION = 3  # of English text by either; only for progress and disk space
READ_ERRORS = (OSError, EOFError, zlib.error, LineTooLongError, pa.ArrowException)


@dataclass(frozen=True)
class JsonLinesPart:
    """The lines of a file that begin at byte ``begin`` or later, and before ``end``."""

    name: str
    path: Path
    key: str
    compression: str
    """``gzip``, ``zstd`` or nothing."""
    begin: int
    end: int | None
    """None is the end of the file."""
    text_bytes: int

    def documents(self) -> Iterator[Document]:
        try:
            with _opened(self.path, self.compression) as stream:
                begin = _next_line(self.path, self.begin) if self.begin else 0
                if begin:
                    stream.seek(begin)  # type: ignore[attr-defined]
                for offset, line in lines_of(stream, begin=begin, end=self.end):
                    if line.strip():
                        yield self._document(offset, line)
        except READ_ERRORS as error:
            yield Unusable(DAMAGED, f"{self.path}: cannot be read to its end ({error})")

    def _document(self, offset: int, line: bytes) -> Document:
        if len(line) > MOST_DOCUMENT_BYTES:
            return Unusable(TOO_LONG)
        where = f"{self.path}: the line at byte {offset:,}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Unusable(DAMAGED, f"{where} is not valid JSON ({error})")
        if not isinstance(record, dict) or self.key not in record:
            return Unusable(DAMAGED, f"{where} is no object with the key '{self.key}' (--text-column names another)")
        text = record[self.key]
        if text is None:
            return Unusable(NULL)
        if not isinstance(text, str):
            return Unusable(DAMAGED, f"{where} has {type(text).__name__} under '{self.key}', expected text")
        return text


def json_lines_parts(path: Path, name: str, key: str) -> list[Part]:
    """The parts of one file; an empty one becomes a damaged one."""
    size = path.stat().st_size
    if size == 0:
        return [DamagedFile(name, f"{path}: is empty")]
    compression = COMPRESSED_SUFFIXES.get(path.suffix.lower(), "")
    if compression:
        return [JsonLinesPart(name, path, key, compression, 0, None, size * USUAL_COMPRESSION)]
    step = part_bytes_for(size)
    return [
        JsonLinesPart(
            f"{name} from byte {begin}", path, key, "", begin, min(size, begin + step), min(step, size - begin)
        )
        for begin in range(0, size, step)
    ]


def is_json_lines(path: Path) -> bool:
    """Whether a file's name says that it holds JSON Lines."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        return path.with_suffix("").suffix.lower() in (*SUFFIXES, ".json")  # C4 names its files .json.gz
    return path.suffix.lower() in SUFFIXES


def _next_line(path: Path, position: int) -> int:
    """Where the first line at ``position`` or after it begins."""
    with path.open("rb") as file:
        file.seek(position - 1)
        offset, line = next(lines_of(file, begin=position - 1), (position - 1, b""))
        return offset + len(line) + 1


@contextmanager
def _opened(path: Path, compression: str) -> Iterator[Readable]:
    if compression == "zstd":
        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield stream
    elif compression == "gzip":
        with gzip.open(path, "rb") as stream:
            yield stream
    else:
        with path.open("rb") as stream:
            yield stream
