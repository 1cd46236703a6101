"""Many documents in one buffer, as Arrow stores them: no Python object per document."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fromscratch.errors import FromScratchError
from fromscratch.sources.base import (
    MAX_DOCUMENT_BYTES,
    NULL,
    TOO_LONG,
    Document,
    Part,
    Unusable,
    documents_in,
    unreadable,
)

Ids = NDArray[np.uint32]
Encoded = tuple[Ids, NDArray[np.int64]]
"""The ids of many documents, and the offset of each: document i is ``ids[offsets[i]:offsets[i + 1]]``."""

BATCH_BYTES = 2 << 20
"""Text that is encoded at once; a longer document is a batch of its own."""


class FallbackError(Exception):
    """The fast encoder cannot be used for a tokenizer; the message says why."""


@dataclass(frozen=True)
class Texts:
    """Documents as UTF-8; document i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """One more than there are documents; the first is 0, the last the length of ``data``."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Copies texts; a lone surrogate becomes a question mark."""
        encoded = [text.encode("utf-8", "replace") for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each document."""
        return np.diff(self.offsets)

    def characters(self) -> NDArray[np.int64]:
        """Characters of each document."""
        begins = np.zeros(len(self.data) + 1, dtype=np.int64)
        np.cumsum((self.data & 0xC0) != 0x80, out=begins[1:])  # all bytes but those that continue a character
        return np.diff(begins[self.offsets])

    def views(self) -> Iterator[memoryview]:
        """Yields the bytes of each document, not copied."""
        whole = self.data.data
        return (whole[begin:end] for begin, end in pairwise(self.offsets.tolist()))

    def strings(self) -> list[str]:
        """Returns the documents as strings."""
        return [str(view, "utf-8") for view in self.views()]

    def select(self, chosen: NDArray[np.bool_]) -> "Texts":
        """Returns the chosen documents: [len(self)] of bool."""
        if chosen.all():
            return self
        lengths = self.lengths
        offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
        return Texts(self.data[np.repeat(chosen, lengths)], offsets)


def texts_in(part: Part) -> Iterator[Texts | Unusable]:
    """Yields the documents of a part in batches of about 2 MiB, and what takes the place of unusable ones.

    Whatever the library that reads it raises becomes damaged input.
    """
    read_arrays = getattr(part, "arrays", None)
    if read_arrays is None:
        yield from batches_of(documents_in(part))
        return
    pending, pending_bytes = list[Any](), 0
    try:
        for item in read_arrays():
            if isinstance(item, Unusable):
                yield item
                continue
            pending.append(item)
            pending_bytes += item.nbytes
            if pending_bytes >= BATCH_BYTES:
                yield from _texts_of(pa.concat_arrays(pending))
                pending, pending_bytes = [], 0
    except (FromScratchError, MemoryError):  # another attempt may have enough memory
        raise
    except Exception as error:
        yield unreadable(part, error)
    if pending:
        yield from _texts_of(pa.concat_arrays(pending))


def batches_of(documents: Iterable[Document]) -> Iterator[Texts | Unusable]:
    """Groups documents into batches of about 2 MiB."""
    pending, pending_bytes = list[str](), 0
    for document in documents:
        if isinstance(document, Unusable):
            yield document
        elif len(document) > MAX_DOCUMENT_BYTES:
            yield TOO_LONG
        else:
            pending.append(document)
            pending_bytes += len(document)
        if pending_bytes >= BATCH_BYTES:
            yield Texts.of(pending)
            pending, pending_bytes = [], 0
    if pending:
        yield Texts.of(pending)


def strings_of(batches: Iterable[Texts]) -> Iterator[str]:
    """Yields the documents one by one."""
    return (text for batch in batches for text in batch.strings())


def _texts_of(array: Any) -> Iterator[Texts | Unusable]:
    """Yields an array of valid UTF-8 strings as one batch, without its nulls and what is too long."""
    yield from repeat(NULL, array.null_count)
    filled = array.drop_null()
    kind = np.int64 if pa.types.is_large_string(array.type) else np.int32
    _, offsets_buffer, data_buffer = filled.buffers()
    if not len(filled) or data_buffer is None:
        yield Texts(np.zeros(0, np.uint8), np.zeros(len(filled) + 1, np.int64))
        return
    stored = np.frombuffer(offsets_buffer, kind)[filled.offset : filled.offset + len(filled) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, np.uint8)[stored[0] : stored[-1]]
    texts = Texts(data, stored - stored[0])
    too_long = texts.lengths > MAX_DOCUMENT_BYTES
    yield from repeat(TOO_LONG, int(too_long.sum()))
    yield texts.select(~too_long)
