"""What a source of text is: a description, and an ordered list of parts that are read independently.

A part can be sent to another process or machine. The division of a corpus into parts depends on the
corpus alone, so the store made from it is the same everywhere.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from fromscratch.errors import DataError, FromScratchError, UsageError

PARTS_PER_FILE = 16
MIN_PART_BYTES, MAX_PART_BYTES = 3 << 20, 64 << 20
MAX_DOCUMENT_BYTES = 64 << 20
"""Longer documents are skipped and counted: encoding one takes many times its size in memory."""


@dataclass(frozen=True)
class Unusable:
    """Takes the place of a document that cannot be used."""

    reason: str
    """The summary counts skipped documents by reason."""
    error: str = ""
    """A sentence for the user where the input is damaged; empty where the text is merely absent."""


DAMAGED = "damaged"
NULL, TOO_LONG = Unusable("null"), Unusable("too long")
Document = str | Unusable


def damaged(error: str) -> Unusable:
    """Returns the stand-in for damaged input."""
    return Unusable(DAMAGED, error)


class Part(Protocol):
    """A unit of work: a file, a range of one, or a group of files."""

    @property
    def name(self) -> str:
        """Name of the part in messages and in the plan."""

    @property
    def text_bytes(self) -> int:
        """Approximate size of its text, for progress and disk space; 0 is unknown."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it reads; their content decides the part's."""

    def documents(self) -> Iterator[Document]:
        """Yields the documents in order, in memory that does not grow with the part. Read it by ``documents_in``.

        A part may also have ``arrays()``, which yields the same as Arrow arrays; ``texts.texts_in`` reads either.
        """


def documents_in(part: Part) -> Iterator[Document]:
    """Yields the documents of a part; whatever the library that reads it raises becomes damaged input."""
    try:
        yield from part.documents()
    except (FromScratchError, MemoryError):  # another attempt may have enough memory
        raise
    except Exception as error:
        yield unreadable(part, error)


def unreadable(part: Part, error: Exception) -> Unusable:
    """Returns the stand-in for the rest of a part that a library failed to read."""
    return damaged(f"{part.name}: cannot be read ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Returns the first line of a library's message, or the name of the error."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class Source(Protocol):
    """Where documents come from. The order of the parts is always the same."""

    @property
    def description(self) -> str:
        """Name of the source in the manifest."""

    def parts(self) -> list[Part]:
        """Lists the parts in order. Raises UsageError where the source does not exist."""

    def left_out(self) -> str:
        """Says what there is that the source does not read; empty if it reads everything."""


@dataclass(frozen=True)
class DamagedFile:
    """The part that stands for a file that cannot even be divided."""

    name: str
    error: str
    text_bytes: int = 0
    files: tuple[Path, ...] = ()

    def documents(self) -> Iterator[Document]:
        yield damaged(self.error)


@dataclass(frozen=True)
class TextsPart:
    """Documents in memory."""

    name: str
    texts: tuple[Document, ...]
    files: tuple[Path, ...] = ()

    @property
    def text_bytes(self) -> int:
        return sum(len(text) for text in self.texts if isinstance(text, str))

    def documents(self) -> Iterator[Document]:
        return iter(self.texts)


@dataclass(frozen=True)
class InMemory:
    """Documents in memory, as a source of one part: for small corpora that are expensive to read."""

    description: str
    texts: tuple[Document, ...]

    @classmethod
    def of(cls, source: Source) -> "InMemory":
        """Reads another source whole."""
        return cls(source.description, tuple(text for part in source.parts() for text in usable(documents_in(part))))

    def parts(self) -> list[Part]:
        """Returns all documents as one part."""
        return [TextsPart(self.description, self.texts)]

    def left_out(self) -> str:
        return ""


def usable(documents: Iterator[Document]) -> Iterator[str]:
    """Yields the documents that hold text. Raises DataError at damaged input."""
    for document in documents:
        if isinstance(document, Unusable):
            if document.error:
                raise DataError(document.error)
        elif document:
            yield document


def part_bytes_for(file_bytes: int) -> int:
    """Returns the bytes of text per part of a file: up to 16 parts of 3 to 64 MiB each."""
    return max(MIN_PART_BYTES, min(MAX_PART_BYTES, -(-file_bytes // PARTS_PER_FILE)))


def byte_ranges(name: str, size: int, step: int) -> Iterator[tuple[str, int, int]]:
    """Yields the name, begin and end of the parts of a file that is divided every ``step`` bytes."""
    for begin, end in pairwise([*range(0, size, step), size]):
        yield f"{name} from byte {begin}", begin, end


def files_below(folder: Path) -> list[Path]:
    """Lists the files below a folder by name, without hidden ones. Follows links, but reads no folder twice.

    Raises:
        UsageError: a folder cannot be read.
    """
    found, seen = list[Path](), set[Path]()
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        if (real := Path(parent).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _raise_unreadable(error: OSError) -> None:
    raise UsageError(f"source {error.filename}: cannot be read ({error.strerror}); change its permissions") from error
