"""Decides for each document whether it is kept, and for which split."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.errors import DataError, UsageError
from fromscratch.sources.base import Source, Unusable
from fromscratch.sources.texts import Texts, strings_of, texts_in

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

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise UsageError(f"validation = {self.validation}: must be a share, 0 or more and below 1")

    def split_of(self, document: str | bytes) -> str:
        """Returns ``train`` or ``validation``: compares a hash of the text (BLAKE2b, 64 bits) with the share.

        Bytes are the UTF-8 encoding of the text.
        """
        data = document if isinstance(document, bytes) else document.encode("utf-8", "replace")
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return VALIDATION if int.from_bytes(digest, "big") < self.validation * 2**64 else TRAIN

    def divide(self, texts: Texts, learnt: Texts) -> tuple[Texts, NDArray[np.bool_]]:
        """Does for many documents what ``pieces`` does for one: returns pieces, and which of them are held out.

        The pieces are ``texts`` itself where no document is divided.
        """
        digests = b"".join(hashlib.blake2b(view, digest_size=8).digest() for view in learnt.views())
        limit = np.uint64(math.ceil(self.validation * 2**64))
        return texts, np.frombuffer(digests, dtype=">u8") < limit

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

    def divide(self, texts: Texts, learnt: Texts) -> tuple[Texts, NDArray[np.bool_]]:
        documents = zip(texts.strings(), learnt.views(), strict=True)
        found = [piece for text, data in documents for piece in self.pieces(text, bytes(data))]
        held_out = np.array([split == VALIDATION for split, _ in found], dtype=np.bool_)
        return Texts.of(piece for _, piece in found), held_out

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

    def kept(self, batches: Iterable[Texts | Unusable], skipped: Counter[str]) -> Iterator[Texts]:
        """Yields the documents with enough text, in order; counts the others in ``skipped`` by reason.

        Raises:
            DataError: damaged input, unless it is skipped.
        """
        for batch in batches:
            if isinstance(batch, Unusable):
                if batch.error and not self.skip_bad:
                    raise DataError(f"{batch.error}; {REPAIR_ADVICE}")
                skipped[batch.reason] += 1
                continue
            is_empty = batch.lengths == 0
            is_short = np.zeros_like(is_empty)
            if self.min_characters > 1:
                is_short = (batch.characters() < self.min_characters) & ~is_empty
            skipped.update({EMPTY: int(is_empty.sum()), TOO_SHORT: int(is_short.sum())})
            yield batch.select(~(is_empty | is_short))


def document_digest(document: str | bytes | memoryview) -> bytes:
    """Returns a hash of the text, or of its UTF-8 encoding (BLAKE2b, 128 bits)."""
    data = document.encode("utf-8", "replace") if isinstance(document, str) else document
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def all_documents(sources: Sequence[Source], documents: DocumentRule) -> Iterator[Texts]:
    """Yields the documents that are kept, in batches, those that are held out too. Raises DataError."""
    for source in sources:
        for part in source.parts():
            yield from documents.kept(texts_in(part), Counter())


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
        for text in strings_of((documents or DocumentRule()).kept(texts_in(part), Counter())):
            if taken >= max_characters:
                break
            for split, piece in rule.pieces(text, text.encode("utf-8", "replace")):
                if split == TRAIN:
                    taken += len(piece)
                    yield piece
