"""What happens to a document before it is encoded: is it kept, and for which split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fromscratch.errors import DataError
from fromscratch.sources.base import EMPTY, MOST_DOCUMENT_BYTES, TOO_LONG, Document, Source, Unusable

TRAIN, VALIDATION = "train", "validation"
TOO_SHORT, DUPLICATE = "too short", "duplicate"
DIGEST_BYTES = 16
MOST_TRAINING_BYTES = 256 << 20
"""Of text that a tokenizer learns from."""


@dataclass(frozen=True)
class SplitRule:
    """Decides by a document's text alone whether it is held out."""

    validation: float
    """Share of documents held out, from 0 up to but not including 1."""

    def split_of(self, document: str | bytes) -> str:
        """``train`` or ``validation``: a hash of the text (BLAKE2b, 64 bits) against the share.

        The text may come as its UTF-8 bytes.
        """
        data = document if isinstance(document, bytes) else document.encode("utf-8", "replace")
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return VALIDATION if int.from_bytes(digest, "big") < self.validation * 2**64 else TRAIN

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"by": "document", "hash": "blake2b-64", "validation": self.validation}


@dataclass(frozen=True)
class DocumentRule:
    """Which documents are kept."""

    minimum_characters: int = 1
    deduplicate: bool = False
    """Keep only the first of documents with the same bytes."""
    skip_bad: bool = False
    """Leave damaged input out and count it, instead of stopping at it."""

    def facts(self) -> dict[str, Any]:
        """For the manifest: what decides about the content."""
        return {"minimum_characters": self.minimum_characters, "deduplicate": self.deduplicate}

    def kept(self, documents: Iterable[Document], skipped: Counter[str]) -> Iterator[str]:
        """The documents with enough text, in order; counts the others by reason.

        Raises:
            DataError: damaged input, unless bad input is skipped.
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
                raise DataError(document.error + "; mend it, or leave such input out with --skip-bad")
            return document.reason
        if not document:
            return EMPTY
        if len(document) > MOST_DOCUMENT_BYTES:
            return TOO_LONG
        return TOO_SHORT if len(document) < self.minimum_characters else ""


def digest_of(document: str) -> bytes:
    """128 bits that name a document's text (BLAKE2b)."""
    return hashlib.blake2b(document.encode("utf-8", "replace"), digest_size=DIGEST_BYTES).digest()


def training_documents(
    sources: Sequence[Source], rule: SplitRule, documents: DocumentRule | None = None
) -> Iterator[str]:
    """Documents that are not held out: what a tokenizer may learn from.

    All of them, or, where the corpus is larger than 256 MiB, the beginning of every part up to that sum.
    """
    parts = [part for source in sources for part in source.parts()]
    share = (
        MOST_TRAINING_BYTES // max(1, len(parts))
        if sum(part.text_bytes for part in parts) > MOST_TRAINING_BYTES
        else None
    )
    for part in parts:
        taken = 0
        for text in (documents or DocumentRule()).kept(part.documents(), Counter()):
            if share is not None and taken >= share:
                break
            if rule.split_of(text) == TRAIN:
                taken += len(text)
                yield text
