"""Reading a whole split once, block by block, in memory that does not grow with it."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.shards import Tokens
from fromscratch.data.store import TokenSplit

BLOCK_TOKENS = 1 << 22


def blocks_of(shard: Tokens) -> Iterator[Tokens]:
    """The tokens of a shard in order, a few million at a time.

    Read from the file and not through its memory map, whose pages would count as this process's memory.
    """
    for begin in range(0, len(shard), BLOCK_TOKENS):
        count = min(BLOCK_TOKENS, len(shard) - begin)
        if isinstance(shard, np.memmap) and shard.filename is not None:
            offset = shard.offset + begin * shard.itemsize
            yield np.fromfile(shard.filename, dtype=np.dtype(shard.dtype), count=count, offset=offset)  # type: ignore[misc]
        else:
            yield shard[begin : begin + count]


def document_lengths(split: TokenSplit, end_of_text: int) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
    """Each block of a split, with the lengths of the documents that end in it, their end-of-text not counted.

    What follows the last end-of-text of the split is no document.
    """
    open_tokens = 0
    for shard in split.shards:
        for block in blocks_of(shard):
            ends = np.flatnonzero(block == end_of_text)
            lengths = np.diff(ends, prepend=-1) - 1
            if len(ends):
                lengths[0] += open_tokens
                open_tokens = len(block) - 1 - int(ends[-1])
            else:
                open_tokens += len(block)
            yield block, lengths


def documents_of(split: TokenSplit, end_of_text: int) -> Iterator[NDArray[Any]]:
    """The ids of each document, without its end-of-text; what follows the last one comes last."""
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
    """64-bit hashes (BLAKE2b) of the documents' ids, many at a time, in order."""
    batch: list[bytes] = []
    for ids in documents_of(split, end_of_text):
        batch.append(hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest())
        if len(batch) == 1 << 16:
            yield np.frombuffer(b"".join(batch), dtype=np.uint64)
            batch = []
    if batch:
        yield np.frombuffer(b"".join(batch), dtype=np.uint64)
