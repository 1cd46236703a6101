"""JSON Lines: one object per line, its text under one key; plain, gzip or zstd.

A plain file is divided into ranges of bytes; a part reads the lines that begin in its range. A
compressed file is one part, because it can only be read from its beginning.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from fromscratch.sources import base
from fromscratch.sources.base import Document, Part, damaged
from fromscratch.sources.lines import LineTooLongError, Readable, lines_of

SUFFIXES = (".jsonl", ".ndjson")
COMPRESSED_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
SNIFFED_BYTES, SNIFFED_LINES = 1_024, 3
TYPICAL_COMPRESSION = 3  # ratio for English text; only for progress and disk space
READ_ERRORS = (OSError, EOFError, zlib.error, LineTooLongError, pa.ArrowException)
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
WINDOW_ADVICE = "; it was compressed with a window above 128 MiB: decompress it first (zstd -d --long=31)"


@dataclass(frozen=True)
class JsonLinesPart:
    """The lines of a file that begin in the bytes ``[begin, end)``."""

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
            with _open(self.path, self.compression) as stream:
                begin = _next_line(self.path, self.begin) if self.begin else 0
                if begin:
                    stream.seek(begin)  # type: ignore[attr-defined]
                for offset, line in lines_of(stream, begin=begin, end=self.end):
                    if line.strip():
                        yield self._document(offset, line)
        except READ_ERRORS as error:
            advice = WINDOW_ADVICE if "too much memory" in str(error) else ""
            yield damaged(f"{self.path}: cannot be read to its end ({base.first_line(error)}){advice}")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _document(self, offset: int, line: bytes) -> Document:
        if len(line) > base.MAX_DOCUMENT_BYTES:
            return base.TOO_LONG
        where = f"{self.path}: the line at byte {offset:,}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return damaged(f"{where} is not UTF-8 text (byte {error.start:,} of it)")
        except (ValueError, RecursionError) as error:
            return damaged(f"{where} is not valid JSON ({error})")
        if not isinstance(record, dict) or self.key not in record:
            return damaged(f"{where} is not an object with the key '{self.key}' (--text-column names another)")
        text = record[self.key]
        if text is not None and not isinstance(text, str):
            return damaged(f"{where} has {type(text).__name__} under '{self.key}', expected text")
        if text is not None and SURROGATE_ESCAPE.search(line) and not _is_unicode(text):
            return damaged(f"{where} holds half a surrogate pair under '{self.key}', which is no character")
        return base.NULL if text is None else text


def json_lines_parts(path: Path, name: str, key: str) -> list[Part]:
    """Divides one file; an empty file counts as damaged."""
    size = path.stat().st_size
    if size == 0:
        return [base.DamagedFile(name, f"{path}: is empty")]
    compression = COMPRESSED_SUFFIXES.get(path.suffix.lower(), "")
    if compression:
        return [JsonLinesPart(name, path, key, compression, 0, None, size * TYPICAL_COMPRESSION)]
    ranges = base.byte_ranges(name, size, base.part_bytes_for(size))
    return [JsonLinesPart(label, path, key, "", begin, end, end - begin) for label, begin, end in ranges]


def is_json_lines(path: Path) -> bool:
    """Returns whether the suffix is one of JSON Lines."""
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        return path.with_suffix("").suffix.lower() in (*SUFFIXES, ".json")  # C4 names its files .json.gz
    return path.suffix.lower() in SUFFIXES


def holds_json_lines(path: Path, *, key: str | None = None) -> bool:
    """Returns whether the first lines of a file are objects, one of them with the key, whatever the file's name."""
    with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        if not file.read(SNIFFED_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            return False
        file.seek(0)
        lines = (line.decode("utf-8-sig") for _, line in lines_of(file) if line.strip())
        records = [json.loads(line) for line in islice(lines, SNIFFED_LINES)]
        return all(isinstance(record, dict) for record in records) and any(key in (None, *record) for record in records)
    return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _next_line(path: Path, position: int) -> int:
    """Returns the offset of the first line that begins at ``position`` or later."""
    with path.open("rb") as file:
        file.seek(position - 1)
        offset, line = next(lines_of(file, begin=position - 1), (position - 1, b""))
        return offset + len(line) + 1


@contextmanager
def _open(path: Path, compression: str) -> Iterator[Readable]:
    if compression == "zstd":
        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield stream
    elif compression == "gzip":
        with gzip.open(path, "rb") as stream:
            yield stream
    else:
        with path.open("rb") as stream:
            yield stream
