"""What a source of text is: a description and an ordered list of parts, each read on its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Part:
    """A unit of work: one file, or one group of documents, that a worker reads by itself."""

    name: str
    """Says which part it is, in messages and in the manifest."""
    documents: Callable[[], Iterator[str]]
    """Opens the part and yields its documents in order."""


class Source(Protocol):
    """Where documents come from. Parts are in a fixed order, whoever reads them and whenever."""

    @property
    def description(self) -> str:
        """How the manifest names the source."""

    def parts(self) -> list[Part]:
        """The parts in order. Raises UsageError where the source does not exist."""


@dataclass(frozen=True)
class InMemory:
    """Documents at hand, as a source of one part: for corpora small enough to read only once."""

    description: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> "InMemory":
        """Reads another source whole."""
        return cls(source.description, tuple(text for part in source.parts() for text in part.documents()))

    def parts(self) -> list[Part]:
        """All documents as one part."""
        return [Part(name=self.description, documents=lambda: iter(self.texts))]
