"""The interface of all tokenizers: documents to ids and back, byte for byte.

``encode`` never returns the end-of-text id, not even for text that spells it; the caller appends it
to each document.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.errors import UsageError
from fromscratch.files import sealed_folder, to_strict_json
from fromscratch.sources.texts import Encoded, Ids, Texts
from fromscratch.tokenizers.fast import encode_fast

DESCRIPTION_FILE = "tokenizer_description.json"
NO_END_OF_TEXT = -1


class Tokenizer(ABC):
    """Text to ids and back."""

    kind: str
    """The class that loads it."""
    name: str
    """Its name in messages and manifests."""
    vocab_size: int
    """Number of ids, the end-of-text id included; every id is below it."""
    end_of_text: int
    """The id that ends every document; ``NO_END_OF_TEXT`` if the vocabulary has none."""
    is_lossless: bool = True
    """Whether the ids of every text give the text back, byte for byte."""
    threads: int | None = None
    """Maximum number of threads of ``encode_documents``; None is one per core."""

    @abstractmethod
    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the ids of each document, in order, without the end-of-text id; uses several cores."""

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the ids of all documents, as ``encode_documents`` does, and the offset of each document."""
        found = self.encode_documents(texts.strings())
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return np.concatenate([np.zeros(0, dtype=np.uint32), *found]), offsets

    def encode_fast(self, texts: Texts) -> Encoded:
        """Returns the same as ``encode_texts``, from gigatoken where it knows the kind of tokenizer.

        Raises:
            FallbackError: it cannot be used; the message says why.
        """
        return encode_fast(self, texts)

    def fast_definition(self) -> str | None:
        """Returns a ``tokenizer.json`` without special tokens, for gigatoken; None where gigatoken is not used."""
        return None

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """Returns the bytes of each id, by id; empty for control tokens."""

    @abstractmethod
    def _save_files(self, folder: Path) -> None:
        """Writes the files that ``load`` needs beside the description."""

    def check_end_of_text(self, purpose: str) -> None:
        """Raises UsageError if there is no end-of-text id, which ``purpose`` needs."""
        if self.end_of_text == NO_END_OF_TEXT:
            raise UsageError(f"tokenizer {self.name}: has no end-of-text token, which {purpose}")

    def frame(self) -> tuple[list[int], list[int]]:
        """Returns the special tokens before and after a text that an encoder classifies, such as ``[CLS]``."""
        return [], []

    def encode(self, text: str) -> Ids:
        """Returns the ids of one text, without the end-of-text id."""
        return self.encode_documents([text])[0]

    def decode_bytes(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        """Returns the bytes of the ids, joined; control tokens add nothing."""
        table = self._bytes_by_id
        return b"".join(table[int(i)] for i in ids)

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """Returns the text of the ids; invalid UTF-8, such as half a character, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_documents(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """Returns the text of each document's ids."""
        return [self.decode(ids) for ids in documents]

    def decode_stream(self, prompt: Sequence[int] = ()) -> Callable[[int], bytes]:
        """Returns a function that takes one id after another, and returns the bytes that it adds to the text.

        Args:
            prompt: ids of the text before, on which the first bytes may depend.
        """
        return lambda token: self.decode_bytes([token])

    def text_bytes(self, ids: NDArray[Any]) -> int:
        """Returns the bytes of text of the ids, in order; documents end with the end-of-text id."""
        return int(self._byte_lengths[ids].sum())

    def byte_lengths(self) -> NDArray[np.int64]:
        """Returns the bytes of text per id, of a lossless tokenizer: [vocab_size]; 0 for control tokens."""
        return np.array([len(data) for data in self._bytes_by_id], dtype=np.int64)

    @cached_property
    def _byte_lengths(self) -> NDArray[np.int64]:
        return self.byte_lengths()

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        return self.token_bytes()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of every id: tokenizers with the same one can share stores and models."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.end_of_text}".encode())
        for data in self._bytes_by_id:
            digest.update(len(data).to_bytes(4, "big") + data)
        return digest.hexdigest()

    def description(self) -> dict[str, Any]:
        """Returns what manifests record of a tokenizer."""
        return {
            "kind": self.kind,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "end_of_text": self.end_of_text,
            "fingerprint": self.fingerprint,
        }

    def save(self, folder: Path) -> None:
        """Writes the tokenizer as a sealed folder, which ``tokenizers.loading.load`` reads."""
        with sealed_folder(folder) as temporary:
            self._save_files(temporary)
            (temporary / DESCRIPTION_FILE).write_text(to_strict_json(self.description(), indent=1), "utf-8")
