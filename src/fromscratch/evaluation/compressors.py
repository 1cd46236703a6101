"""Bits per byte of general compressors on a text: the yardstick a language model must beat."""

import gzip
import lzma

import numpy as np

from fromscratch.data.store import TokenSplit
from fromscratch.tokenizers.base import Tokenizer


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """What ``gzip -9`` and ``xz -9`` need per byte of a text, headers included."""
    sizes = {"gzip": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def text_of(split: TokenSplit, tokenizer: Tokenizer) -> bytes:
    """The documents of a split, one after another with a line end between. Meant for small splits."""
    tokens = split.read(0, split.tokens)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    documents = np.split(tokens, ends + 1)
    return b"\n".join(tokenizer.decode_bytes(document) for document in documents if document.size)
