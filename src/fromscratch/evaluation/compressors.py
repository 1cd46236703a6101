"""Bits per byte of general compressors on a text, a baseline for language models."""

import gzip
import lzma

import numpy as np

from fromscratch.data.store import TokenSplit
from fromscratch.tokenizers.base import Tokenizer


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """Returns the bits per byte of ``gzip -9`` and ``xz -9``, headers included."""
    sizes = {"gzip": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def text_of(split: TokenSplit, tokenizer: Tokenizer) -> bytes:
    """Returns the documents of a split, separated by line ends. For small splits."""
    tokens = split.read(0, split.tokens)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    documents = np.split(tokens, ends + 1)
    return b"\n".join(tokenizer.decode_bytes(document) for document in documents if document.size)
