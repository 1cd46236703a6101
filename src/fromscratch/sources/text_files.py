"""Plain text: a folder of files, one document each, or one long file, divided at blank lines."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fromscratch.sources import base
from fromscratch.sources.base import Document, Part, damaged

SUFFIXES = {".txt", ".md", ".rst", ".text"}
MAX_FILES_PER_PART = 1_000  # a part has shards of its own: many small files make few shards
MIN_PIECE_BYTES = 8_192
MAX_PIECE_BYTES = 1 << 20  # for text without blank lines
BLOCK_BYTES = 1 << 20
BLANK_LINE = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class TextFilesPart:
    """Files, one document each."""

    name: str
    files: tuple[Path, ...]
    text_bytes: int

    def documents(self) -> Iterator[Document]:
        return map(read_text, self.files)


@dataclass(frozen=True)
class LongTextPart:
    """The text between the first blank line at ``begin`` or later and the first one at ``end`` or later."""

    name: str
    path: Path
    begin: int
    end: int
    text_bytes: int

    def documents(self) -> Iterator[Document]:
        try:
            first, last = (after_blank_line(self.path, position) for position in (self.begin, self.end))
            for offset, piece in pieces_of(self.path, first, last):
                yield _decode(piece, self.path, offset)
        except OSError as error:
            yield damaged(f"{self.path}: cannot be read ({error.strerror})")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


def text_folder_parts(files: list[Path], folder: Path) -> list[Part]:
    """Groups the files into parts of up to 1,000 files and a bounded number of bytes."""
    sizes = [path.stat().st_size for path in files]
    target = base.part_bytes_for(sum(sizes))
    parts: list[Part] = []
    first = combined = 0
    for index, size in enumerate(sizes, start=1):
        combined += size
        if combined >= target or index - first == MAX_FILES_PER_PART or index == len(files):
            group = tuple(files[first:index])
            parts.append(TextFilesPart(f"{group[0].relative_to(folder).as_posix()} and on", group, combined))
            first, combined = index, 0
    return parts


def long_text_parts(path: Path) -> list[Part]:
    """Divides one file into many documents, so that some of them can be held out.

    A document ends at the first blank line after 8,192 bytes, or after 1 MiB where there is none. The
    documents together are the file, byte for byte.
    """
    size = path.stat().st_size
    if size == 0:
        return [base.DamagedFile(path.name, f"{path}: is empty")]
    ranges = base.byte_ranges(path.name, size, base.part_bytes_for(size))
    return [LongTextPart(label, path, begin, end, end - begin) for label, begin, end in ranges]


def read_text(file: Path) -> Document:
    """Reads a UTF-8 file; its line ends stay as they are."""
    try:
        if file.stat().st_size > base.MAX_DOCUMENT_BYTES:
            return base.TOO_LONG
        return _decode(file.read_bytes(), file, 0)
    except OSError as error:
        return damaged(f"{file}: cannot be read ({error.strerror})")


def after_blank_line(path: Path, position: int) -> int:
    """Returns the offset after the first blank line at ``position`` or later; 0 for position 0."""
    if position == 0:
        return 0
    with path.open("rb") as file:
        file.seek(position)
        kept, offset = b"", position
        while block := file.read(BLOCK_BYTES):
            found = BLANK_LINE.search(kept + block)
            if found:
                return offset - len(kept) + found.end()
            offset += len(block)
            kept = (kept + block)[-2:]
    return offset


def pieces_of(path: Path, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields offset and bytes of each piece of ``[begin, end)``, in order."""
    with path.open("rb") as file:
        file.seek(begin)
        buffer, offset, left = b"", begin, end - begin
        while left or buffer:
            while left and len(buffer) < MAX_PIECE_BYTES + 4:
                block = file.read(min(BLOCK_BYTES, left))
                left = left - len(block) if block else 0
                buffer += block
            cut = _piece_length(buffer, at_end=not left)
            yield offset, buffer[:cut]
            buffer, offset = buffer[cut:], offset + cut


def _piece_length(buffer: bytes, *, at_end: bool) -> int:
    """Returns the length of the first piece of a buffer that is longer than any piece, or ``at_end``."""
    found = BLANK_LINE.search(buffer, MIN_PIECE_BYTES, MAX_PIECE_BYTES)
    if found:
        return found.end()
    if at_end and len(buffer) <= MAX_PIECE_BYTES:
        return len(buffer)
    cut = MAX_PIECE_BYTES
    while cut > MAX_PIECE_BYTES - 4 and buffer[cut] & 0xC0 == 0x80:  # not inside a UTF-8 character
        cut -= 1
    return cut


def _decode(data: bytes, file: Path, offset: int) -> Document:
    mark = len(codecs.BOM_UTF8) if offset == 0 and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        return damaged(f"{file}: not UTF-8 text (byte {offset + mark + error.start:,}); convert it first")
