"""What a tokenizer is here.

An encoder of documents into ids, and back, byte for byte. Text that spells a control token is text:
the end-of-text id never comes out of ``encode``; whoever joins documents puts it between them.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.files import sealed_folder, to_strict_json

DESCRIPTION_FILE = "tokenizer_description.json"

Ids = NDArray[np.uint32]


class Tokenizer(ABC):
    """Text to ids and back."""

    kind: str
    """Which class reads it back."""
    name: str
    """How messages and manifests call it."""
    vocab_size: int
    """Number of ids, the end-of-text id included; every id is below it."""
    end_of_text: int
    """The id that ends every document."""
    threads: int | None = None
    """Most threads that ``encode_documents`` starts; None is one per core."""

    @abstractmethod
    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Ids of each document, in order, without the end-of-text id; uses several cores."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for, by id; empty for control tokens."""

    @abstractmethod
    def _save_files(self, folder: Path) -> None:
        """Writes whatever ``load`` needs beside the description."""

    def encode(self, text: str) -> Ids:
        """Ids of one text, without the end-of-text id."""
        return self.encode_documents([text])[0]

    def decode_bytes(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        """The bytes of the ids, joined. Control tokens leave nothing."""
        table = self._table()
        return b"".join(table[int(i)] for i in ids)

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of the ids; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text that each id stands for: [vocab_size]; 0 for control tokens."""
        return np.array([len(piece) for piece in self._table()], dtype=np.int64)

    def _table(self) -> list[bytes]:
        if not hasattr(self, "_token_bytes_by_id"):
            self._token_bytes_by_id = self.token_bytes()
        return self._token_bytes_by_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what every id means: tokenizers that agree on it can share stores and models."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.end_of_text}".encode())
        for piece in self._table():
            digest.update(len(piece).to_bytes(4, "big") + piece)
        return digest.hexdigest()

    def description(self) -> dict[str, Any]:
        """The facts that manifests and messages carry."""
        return {
            "kind": self.kind,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "end_of_text": self.end_of_text,
            "fingerprint": self.fingerprint,
        }

    def save(self, folder: Path) -> None:
        """Writes the tokenizer as a sealed folder, from which ``tokenizers.loading.load`` reads it back."""
        with sealed_folder(folder) as temporary:
            self._save_files(temporary)
            (temporary / DESCRIPTION_FILE).write_text(to_strict_json(self.description(), indent=1), "utf-8")
