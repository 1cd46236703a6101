"""The smallest tokenizers: an id is a byte of UTF-8, and the last id ends a document."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, to_strict_json
from fromscratch.sources.texts import Encoded, Ids, Texts
from fromscratch.tokenizers.base import NO_END_OF_TEXT, Tokenizer

BYTES_FILE, VALUES = "bytes.json", "values"


class BytesTokenizer(Tokenizer):
    """256 bytes and end-of-text: 257 ids."""

    kind = "bytes"
    name = "bytes"
    vocab_size = 257
    end_of_text = 256

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the UTF-8 bytes of each document; a lone surrogate becomes a question mark."""
        return [np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint32) for text in documents]

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the bytes, and the offset of each document."""
        return texts.data.astype(np.uint32), texts.offsets

    def token_bytes(self) -> list[bytes]:
        """Returns one byte for each of the first 256 ids, and nothing for end-of-text."""
        return [bytes([value]) for value in range(256)] + [b""]

    def _save_files(self, folder: Path) -> None:
        """Writes nothing: the description is enough."""


class OccurringBytesTokenizer(Tokenizer):
    """The bytes that occur in a corpus, in order, and end-of-text. Another byte cannot be encoded."""

    kind = "occurring-bytes"

    def __init__(self, values: bytes) -> None:
        """``values`` are the bytes of the ids 0, 1, ... Raises ValueError unless they are distinct."""
        if len(set(values)) != len(values):
            raise ValueError("its bytes are not distinct")
        self._values = values
        self._ids = np.full(256, NO_END_OF_TEXT, dtype=np.int64)
        self._ids[list(values)] = np.arange(len(values))
        self.end_of_text = len(values)
        self.vocab_size = len(values) + 1
        self.name = f"{self.kind}-{len(values)}"

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the ids of each document's bytes. Raises UsageError at a byte that does not occur."""
        ids, offsets = self.encode_texts(Texts.of(documents))
        return [ids[begin:end] for begin, end in pairwise(offsets)]

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the ids, and the offset of each document. Raises UsageError at a byte that does not occur."""
        ids = self._ids[texts.data]
        if (unknown := ids < 0).any():
            byte = int(texts.data[unknown][0])
            place = int(unknown.argmax())
            around = texts.data[max(0, place - 3) : place + 4].tobytes().decode("utf-8", "replace")
            raise UsageError(
                f"tokenizer {self.name}: the text holds the byte 0x{byte:02x} (in {around!r}), which is none of the "
                f"{len(self._values)} bytes of the text that it was made of; leave it out"
            )
        return ids.astype(np.uint32), texts.offsets

    def token_bytes(self) -> list[bytes]:
        """Returns the byte of each id, and nothing for end-of-text."""
        return [bytes([value]) for value in self._values] + [b""]

    def _save_files(self, folder: Path) -> None:
        (folder / BYTES_FILE).write_text(to_strict_json({VALUES: list(self._values)}), "utf-8")


def occurring_bytes(batches: Iterable[Texts]) -> OccurringBytesTokenizer:
    """Makes the tokenizer of the bytes that occur in documents. Raises DataError where there is none."""
    counts = sum((np.bincount(texts.data, minlength=256) for texts in batches), np.zeros(256, dtype=np.int64))
    if not counts.any():
        raise DataError("tokenizer bytes:occurring: the documents hold no text, so no byte occurs")
    return OccurringBytesTokenizer(bytes(np.flatnonzero(counts).tolist()))


def load_occurring_bytes(folder: Path) -> OccurringBytesTokenizer:
    """Reads the folder of a saved tokenizer. Raises DataError where it is malformed."""
    try:
        return OccurringBytesTokenizer(bytes(read_json_object(folder / BYTES_FILE)[VALUES]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / BYTES_FILE}: not a list of distinct bytes ({error!r})") from error
