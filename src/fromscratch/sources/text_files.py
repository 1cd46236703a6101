"""Plain text: a folder of files, one document each, or one long file cut at blank lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fromscratch.sources.base import (
    DAMAGED,
    LEAST_PART_BYTES,
    MOST_DOCUMENT_BYTES,
    TOO_LONG,
    DamagedFile,
    Document,
    Part,
    Unusable,
    part_bytes_for,
)

SUFFIXES = {".txt", ".md", ".rst", ".text"}
FILES_PER_PART = 1_000  # read as one unit of work, so that many small files make few output shards
PIECE_BYTES = 8_192
MOST_PIECE_BYTES = 1 << 20  # where a text has no blank lines
BLOCK_BYTES = 1 << 20
BLANK_LINE = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class TextFilesPart:
    """Files that are one document each."""

    name: str
    paths: tuple[Path, ...]
    text_bytes: int

    def documents(self) -> Iterator[Document]:
        return map(read_text, self.paths)


@dataclass(frozen=True)
class LongTextPart:
    """The pieces of one file that begin after the first blank line at ``begin``, up to the one at ``end``."""

    name: str
    path: Path
    begin: int
    end: int
    text_bytes: int

    def documents(self) -> Iterator[Document]:
        try:
            first, last = (after_blank_line(self.path, position) for position in (self.begin, self.end))
            for offset, piece in pieces_of(self.path, first, last):
                yield _decoded(piece, self.path, offset)
        except OSError as error:
            yield Unusable(DAMAGED, f"{self.path}: cannot be read ({error.strerror})")


def text_folder_parts(files: list[Path], folder: Path) -> list[Part]:
    """Groups of up to 1,000 files and a bounded number of bytes."""
    sizes = [path.stat().st_size for path in files]
    target = part_bytes_for(sum(sizes))
    parts: list[Part] = []
    first = gathered = 0
    for index, size in enumerate(sizes, start=1):
        gathered += size
        if gathered >= target or index - first == FILES_PER_PART or index == len(files):
            group = tuple(files[first:index])
            parts.append(TextFilesPart(f"{group[0].relative_to(folder).as_posix()} and on", group, gathered))
            first, gathered = index, 0
    return parts


def long_text_parts(path: Path) -> list[Part]:
    """One file alone is a whole corpus, and a corpus needs documents to hold some of them out.

    It is cut at the first blank line after every 8,192 bytes (or after 1 MiB without any). Nothing
    is lost or added by that.
    """
    size = path.stat().st_size
    if size == 0:
        return [DamagedFile(path.name, f"{path}: is empty")]
    step = max(LEAST_PART_BYTES, part_bytes_for(size))
    return [
        LongTextPart(f"{path.name} from byte {begin}", path, begin, min(size, begin + step), min(step, size - begin))
        for begin in range(0, size, step)
    ]


def read_text(file: Path) -> Document:
    """The text of a UTF-8 file, its line ends as they are."""
    try:
        if file.stat().st_size > MOST_DOCUMENT_BYTES:
            return Unusable(TOO_LONG)
        return _decoded(file.read_bytes(), file, 0)
    except OSError as error:
        return Unusable(DAMAGED, f"{file}: cannot be read ({error.strerror})")


def after_blank_line(path: Path, position: int) -> int:
    """Where the text after the first blank line at ``position`` or later begins; 0 for the file's start."""
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
    """Offset and bytes of each piece of ``[begin, end)``, in order."""
    with path.open("rb") as file:
        file.seek(begin)
        buffer, offset, left = b"", begin, end - begin
        while left or buffer:
            while left and len(buffer) < MOST_PIECE_BYTES + 4:
                block = file.read(min(BLOCK_BYTES, left))
                left = left - len(block) if block else 0
                buffer += block
            cut = _cut(buffer, at_end=not left)
            yield offset, buffer[:cut]
            buffer, offset = buffer[cut:], offset + cut


def _cut(buffer: bytes, *, at_end: bool) -> int:
    """Length of the piece that the buffer begins with; the buffer holds more than the longest one, or the rest."""
    found = BLANK_LINE.search(buffer, PIECE_BYTES, MOST_PIECE_BYTES)
    if found:
        return found.end()
    if at_end and len(buffer) <= MOST_PIECE_BYTES:
        return len(buffer)
    cut = MOST_PIECE_BYTES
    while cut > MOST_PIECE_BYTES - 4 and buffer[cut] & 0xC0 == 0x80:  # not inside a character
        cut -= 1
    return cut


def _decoded(data: bytes, file: Path, offset: int) -> Document:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unusable(DAMAGED, f"{file}: not UTF-8 text (byte {offset + error.start:,}); convert it first")
