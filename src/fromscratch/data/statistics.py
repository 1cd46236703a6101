"""Statistics of a store or a corpus: document lengths, tokens lost by cropping, frequent tokens.

Everything is counted in one pass, in memory that depends on the size of the vocabulary and not on
the number of tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.documents import DocumentRule
from fromscratch.data.encode import with_ends
from fromscratch.data.engines.base import DocumentEncoder
from fromscratch.data.scan import document_lengths
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError
from fromscratch.sources.base import Source
from fromscratch.sources.texts import texts_in

TABLE_LENGTH = 1 << 16  # the few longer documents are counted in a dictionary
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class LengthCounts:
    """Exact counts of documents by length."""

    def __init__(self) -> None:
        self._table = np.zeros(TABLE_LENGTH, dtype=np.int64)
        self._longer: Counter[int] = Counter()

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Counts documents of these lengths."""
        self._table += np.bincount(lengths[lengths < TABLE_LENGTH], minlength=TABLE_LENGTH)
        self._longer.update(lengths[lengths >= TABLE_LENGTH].tolist())

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the lengths that occur, ascending, and the number of documents of each."""
        short = np.flatnonzero(self._table)
        long = sorted(self._longer)
        counts = np.array([self._longer[length] for length in long], dtype=np.int64)
        return np.concatenate([short, np.array(long, dtype=np.int64)]), np.concatenate([self._table[short], counts])


@dataclass
class _Counts:
    """Running counts of one pass."""

    vocab_size: int
    lengths: LengthCounts = field(default_factory=LengthCounts)
    tokens: int = 0
    text_bytes: int | None = 0
    by_id: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.by_id = np.zeros(self.vocab_size, dtype=np.int64)

    def add(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        found = np.bincount(ids, minlength=self.vocab_size)
        if len(found) > self.vocab_size:
            raise DataError(f"token id {len(found) - 1} is not below the vocabulary's size, {self.vocab_size}")
        self.by_id += found
        self.tokens += len(ids)
        self.lengths.add(lengths)


@dataclass(frozen=True)
class Statistics:
    """Statistics of some splits of a store, or of a corpus."""

    documents: int
    tokens: int
    """Includes the end-of-text ids."""
    bytes: int | None
    """Bytes of UTF-8 text."""
    tokens_per_byte: float | None
    mean_length: float | None
    """Tokens per document without end-of-text, as in all lengths below."""
    shortest: int | None
    longest: int | None
    length_quantiles: dict[str, int]
    context: int
    documents_over_context: float | None
    """Share of the documents that are longer than the context."""
    tokens_lost_by_cropping: float | None
    """Share of the tokens that would be lost if every document were cropped at the context."""
    frequent_tokens: list[dict[str, Any]]
    """The most frequent ids, with their count and share."""
    histogram: list[dict[str, int]]
    """Documents and tokens by length, in four bins per doubling of the length."""


def store_statistics(store: TokenStore, splits: Sequence[str], *, context: int, top: int = 20) -> Statistics:
    """Reads the splits of a store once and counts.

    Raises:
        DataError: no such split, or an id that is not in the vocabulary.
    """
    end_of_text = int(store.manifest.tokenizer["end_of_text"])
    counts = _Counts(store.vocab_size)
    for name in splits:
        for block, lengths in document_lengths(store.split(name), end_of_text):
            counts.add(block, lengths)
        in_split = store.manifest.splits[name].bytes
        counts.text_bytes = None if in_split is None or counts.text_bytes is None else counts.text_bytes + in_split
    return _summary(counts, context=context, top=top)


def source_statistics(
    sources: Sequence[Source],
    tokenizer: DocumentEncoder,
    *,
    context: int,
    top: int = 20,
    documents: DocumentRule | None = None,
) -> Statistics:
    """Reads and encodes a corpus once and counts; writes nothing. Raises DataError at damaged input."""
    tokenizer.check_end_of_text("ends the documents of a corpus; use another tokenizer")
    counts = _Counts(tokenizer.vocab_size, text_bytes=0)
    for part in (part for source in sources for part in source.parts()):
        for texts in (documents or DocumentRule()).kept(texts_in(part), Counter()):
            encoded = tokenizer.encode_texts(texts)
            counts.add(with_ends(encoded, tokenizer.end_of_text), np.diff(encoded[1]))
            counts.text_bytes = (counts.text_bytes or 0) + len(texts.data)
    return _summary(counts, context=context, top=top)


def _summary(counts: _Counts, *, context: int, top: int) -> Statistics:
    lengths, documents = counts.lengths.pairs()
    total = int(documents.sum())
    in_documents = int((lengths * documents).sum())
    lost = int((np.maximum(lengths - context, 0) * documents).sum())
    quantiles = {f"{q:.0%}": quantile(lengths, documents, q) for q in QUANTILES} if total else {}
    frequent = np.argsort(counts.by_id, kind="stable")[::-1][:top]
    return Statistics(
        documents=total,
        tokens=counts.tokens,
        bytes=counts.text_bytes,
        tokens_per_byte=counts.tokens / counts.text_bytes if counts.text_bytes else None,
        mean_length=in_documents / total if total else None,
        shortest=int(lengths[0]) if total else None,
        longest=int(lengths[-1]) if total else None,
        length_quantiles=quantiles,
        context=context,
        documents_over_context=int(documents[lengths > context].sum()) / total if total else None,
        tokens_lost_by_cropping=lost / in_documents if in_documents else None,
        frequent_tokens=[
            {"id": int(i), "count": int(counts.by_id[i]), "share": int(counts.by_id[i]) / counts.tokens}
            for i in frequent
            if counts.by_id[i]
        ],
        histogram=_histogram(lengths, documents),
    )


def quantile(lengths: NDArray[np.int64], documents: NDArray[np.int64], share: float) -> int:
    """Returns the smallest length that at least this share of the documents do not exceed."""
    return int(lengths[np.searchsorted(np.cumsum(documents), share * documents.sum())])


def _histogram(lengths: NDArray[np.int64], documents: NDArray[np.int64]) -> list[dict[str, int]]:
    """Returns four bins per doubling of the length; the first bin holds the empty documents."""
    if not len(lengths):
        return []
    edges = np.unique(np.round(2.0 ** np.arange(0, np.log2(max(2, lengths[-1])) + 0.5, 0.25)).astype(np.int64))
    edges = np.concatenate([[0], edges, [max(int(edges[-1]), int(lengths[-1])) + 1]])
    found = np.searchsorted(edges, lengths, side="right") - 1
    bins = []
    for index in range(len(edges) - 1):
        inside = found == index
        number, tokens = int(documents[inside].sum()), int((lengths * documents)[inside].sum())
        bins.append({"from": int(edges[index]), "to": int(edges[index + 1]), "documents": number, "tokens": tokens})
    return [b for b in bins if b["to"] > b["from"]]
