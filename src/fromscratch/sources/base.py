"""What a source of text is: a description, and an ordered list of parts, each read on its own.

A part can be sent to another process or machine. How a corpus is divided into parts depends on the
corpus alone, never on who reads it, so that the store made from it is the same everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fromscratch.errors import DataError

PARTS_PER_FILE = 16
LEAST_PART_BYTES, MOST_PART_BYTES = 3 << 20, 64 << 20
MOST_DOCUMENT_BYTES = 64 << 20
"""Longer documents are left out and counted: encoding one takes many times its size in memory."""

NULL, EMPTY, DAMAGED, TOO_LONG = "null", "empty", "damaged", "too long"


@dataclass(frozen=True)
class Unusable:
    """Stands in the place of a document that is none."""

    reason: str
    """Under which the summary counts it."""
    error: str = ""
    """A sentence for the user where the input is damaged; nothing where it is merely absent."""


Document = str | Unusable


class Part(Protocol):
    """A unit of work: one file, a piece of one, or a group of them."""

    @property
    def name(self) -> str:
        """Says which part it is, in messages and in the plan."""

    @property
    def text_bytes(self) -> int:
        """About how much text it holds: for progress and disk space; 0 is unknown."""

    def documents(self) -> Iterator[Document]:
        """Opens the part and yields its documents in order, in memory that does not grow with it."""


class Source(Protocol):
    """Where documents come from. Parts are in a fixed order, whoever reads them and whenever."""

    @property
    def description(self) -> str:
        """How the manifest names the source."""

    def parts(self) -> list[Part]:
        """The parts in order. Raises UsageError where the source does not exist."""


@dataclass(frozen=True)
class DamagedFile:
    """The part that a file becomes when it cannot even be divided."""

    name: str
    error: str
    text_bytes: int = 0

    def documents(self) -> Iterator[Document]:
        yield Unusable(DAMAGED, self.error)


@dataclass(frozen=True)
class TextsPart:
    """Documents at hand."""

    name: str
    texts: tuple[str, ...]

    @property
    def text_bytes(self) -> int:
        return sum(map(len, self.texts))

    def documents(self) -> Iterator[Document]:
        return iter(self.texts)


@dataclass(frozen=True)
class InMemory:
    """Documents at hand, as a source of one part: for corpora small enough to read only once."""

    description: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> "InMemory":
        """Reads another source whole."""
        return cls(source.description, tuple(text for part in source.parts() for text in usable(part.documents())))

    def parts(self) -> list[Part]:
        """All documents as one part."""
        return [TextsPart(self.description, self.texts)]


def usable(documents: Iterator[Document]) -> Iterator[str]:
    """The documents that hold text. Raises DataError at damaged input."""
    for document in documents:
        if isinstance(document, Unusable):
            if document.error:
                raise DataError(document.error)
        elif document:
            yield document


def part_bytes_for(file_bytes: int) -> int:
    """Bytes of text per part of one file: up to 16 parts, but none below 3 MiB or above 64 MiB."""
    return max(LEAST_PART_BYTES, min(MOST_PART_BYTES, -(-file_bytes // PARTS_PER_FILE)))


def files_below(folder: Path, accepts: Callable[[Path], bool]) -> list[Path]:
    """The files below a folder that are accepted, in the order of their names; hidden ones left out."""
    found = (p for p in folder.rglob("*") if accepts(p) and p.is_file())
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(visible, key=lambda p: p.relative_to(folder).as_posix())
