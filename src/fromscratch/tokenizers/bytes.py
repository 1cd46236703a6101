"""The smallest tokenizer: every byte of UTF-8 is an id, and id 256 ends a document."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fromscratch.sources.texts import Encoded, Ids, Texts
from fromscratch.tokenizers.base import Tokenizer


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
