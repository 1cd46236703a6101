"""Decides for each document whether it is kept, and for which split."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fromscratch.errors import DataError
from fromscratch.sources.base import MAX_DOCUMENT_BYTES, TOO_LONG, Document, Source, Unusable, documents_in

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
EMPTY, TOO_SHORT, DUPLICATE = "empty", "too short", "duplicate"
REPAIR_ADVICE = "repair it, or skip such input with --skip-bad"
DIGEST_BYTES = 16
MAX_TRAINING_BYTES = 256 << 20
"""Bytes of text that a tokenizer is trained on."""


@dataclass(frozen=True)
class SplitRule:
    """Decides by the text of a document alone whether it is held out."""

    validation: float
    """Share of documents held out: 0 or more, below 1."""

    def split_of(self, document: str | bytes) -> str:
        """Returns ``train`` or ``validation``: compares a hash of the text (BLAKE2b, 64 bits) with the share.

        Bytes are the UTF-8 encoding of the text.
        """
        data = document if isinstance(document, bytes) else document.encode("utf-8", "replace")
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return VALIDATION if int.from_bytes(digest, "big") < self.validation * 2**64 else TRAIN

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest."""
        return {"by": "document", "hash": "blake2b-64", "validation": self.validation}

    def pieces(self, text: str, learnt: bytes) -> list[tuple[str, str]]:
        """Divides a document: returns splits and texts.

        Args:
            learnt: the UTF-8 text that the document's ids give back. Texts with equal ids are one text to the model.
        """
        return [(self.split_of(learnt), text)]


@dataclass(frozen=True)
class TailRule(SplitRule):
    """The end of a corpus of few documents is held out."""

    tail: Mapping[bytes, int] = field(default_factory=dict)
    """Documents of the tail by their digest, with the number of their first characters that stay in training."""

    def pieces(self, text: str, learnt: bytes) -> list[tuple[str, str]]:
        cut = self.tail.get(document_digest(learnt), len(text))
        return [(split, piece) for split, piece in ((TRAIN, text[:cut]), (VALIDATION, text[cut:])) if piece]

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest."""
        return {"by": "tail", "validation": self.validation}


@dataclass(frozen=True)
class DocumentRule:
    """Which documents are kept."""

    min_characters: int = 1
    deduplicate: bool = False
    """Keep only the first of documents with the same bytes."""
    skip_bad: bool = False
    """Skip and count damaged input, instead of raising an error."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the manifest: the settings that determine the content."""
        return {"minimum_characters": self.min_characters, "deduplicate": self.deduplicate}

    def kept(self, documents: Iterable[Document], skipped: Counter[str]) -> Iterator[str]:
        """Yields the documents with enough text, in order; counts the others in ``skipped`` by reason.

        Raises:
            DataError: damaged input, unless it is skipped.
        """
        for document in documents:
            reason = self._reason_to_skip(document)
            if reason:
                skipped[reason] += 1
            elif isinstance(document, str):
                yield document

    def _reason_to_skip(self, document: Document) -> str:
        if isinstance(document, Unusable):
            if document.error and not self.skip_bad:
                raise DataError(f"{document.error}; {REPAIR_ADVICE}")
            return document.reason
        if not document:
            return EMPTY
        if len(document) > MAX_DOCUMENT_BYTES:
            return TOO_LONG.reason
        return TOO_SHORT if len(document) < self.min_characters else ""


def document_digest(document: str | bytes) -> bytes:
    """Returns a hash of the text, or of its UTF-8 encoding (BLAKE2b, 128 bits)."""
    data = document if isinstance(document, bytes) else document.encode("utf-8", "replace")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def training_documents(
    sources: Sequence[Source], rule: SplitRule, documents: DocumentRule | None = None
) -> Iterator[str]:
    """Yields documents that are not held out, to train a tokenizer on.

    Of a corpus larger than 256 MiB it yields the beginning of every part, 256 MiB in all.
    """
    parts = [part for source in sources for part in source.parts()]
    is_large = sum(part.text_bytes for part in parts) > MAX_TRAINING_BYTES
    max_characters = MAX_TRAINING_BYTES // max(1, len(parts)) if is_large else sys.maxsize
    for part in parts:
        taken = 0
        for text in (documents or DocumentRule()).kept(documents_in(part), Counter()):
            if taken >= max_characters:
                break
            for split, piece in rule.pieces(text, text.encode("utf-8", "replace")):
                if split == TRAIN:
                    taken += len(piece)
                    yield piece
