"""Reads a whole split once, block by block, in memory that does not grow with it."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.shards import Tokens
from fromscratch.data.store import TokenSplit

BLOCK_TOKENS = 1 << 22


def blocks_of(shard: Tokens) -> Iterator[Tokens]:
    """Yields the tokens of a shard in order, four million at a time.

    They are read from the file: pages of the memory map would count as memory of this process.
    """
    for begin in range(0, len(shard), BLOCK_TOKENS):
        count = min(BLOCK_TOKENS, len(shard) - begin)
        if isinstance(shard, np.memmap) and shard.filename is not None:
            offset = shard.offset + begin * shard.itemsize
            yield np.fromfile(shard.filename, dtype=np.dtype(shard.dtype), count=count, offset=offset)  # type: ignore[misc]
        else:
            yield shard[begin : begin + count]


def document_lengths(split: TokenSplit, end_of_text: int) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
    """Yields each block of a split and the lengths of the documents that end in it, without end-of-text.

    Tokens after the last end-of-text of the split are not a document.
    """
    unfinished = 0  # tokens of the document that continues in the next block
    for shard in split.shards:
        for block in blocks_of(shard):
            ends = np.flatnonzero(block == end_of_text)
            lengths = np.diff(ends, prepend=-1) - 1
            if len(ends):
                lengths[0] += unfinished
                unfinished = len(block) - 1 - int(ends[-1])
            else:
                unfinished += len(block)
            yield block, lengths


def documents_of(split: TokenSplit, end_of_text: int) -> Iterator[NDArray[Any]]:
    """Yields the ids of each document without end-of-text, then those after the last end-of-text."""
    pieces: list[NDArray[Any]] = []
    for shard in split.shards:
        for block in blocks_of(shard):
            begin = 0
            for end in np.flatnonzero(block == end_of_text).tolist():
                pieces.append(block[begin:end])
                yield np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
                pieces, begin = [], end + 1
            if begin < len(block):
                pieces.append(block[begin:])
    if pieces:
        yield np.concatenate(pieces)


def document_hashes(split: TokenSplit, end_of_text: int) -> Iterator[NDArray[np.uint64]]:
    """Yields 64-bit hashes (BLAKE2b) of the documents' ids, in order, in arrays of up to 65,536."""
    batch: list[bytes] = []
    for ids in documents_of(split, end_of_text):
        batch.append(hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest())
        if len(batch) == 1 << 16:
            yield np.frombuffer(b"".join(batch), dtype=np.uint64)
            batch = []
    if batch:
        yield np.frombuffer(b"".join(batch), dtype=np.uint64)
