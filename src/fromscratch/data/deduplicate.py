"""Exact deduplication: of documents with the same bytes, the first in the order of the corpus stays.

There are two passes. The first writes a 16-byte hash per document, part by part, on all workers. The
hashes are compared in slices of at most four million; one bit per document marks a duplicate of an
earlier one. The second pass, the encoding, skips the duplicates. The result is the same for any
number of workers. Memory: one byte per document, and about 200 MB per slice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.documents import DIGEST_BYTES, DocumentRule, document_digest
from fromscratch.data.engines.base import DocumentEncoder, Record, Task
from fromscratch.errors import DataError
from fromscratch.files import write_atomically
from fromscratch.sources.texts import Texts, texts_in

HASHES_PER_SLICE = 4_000_000
HASH = np.dtype([("high", ">u8"), ("low", ">u8")])


@dataclass(frozen=True)
class HashPart:
    """The job that writes the hashes of the documents of one part, in order."""

    work: Path
    documents: DocumentRule

    def __call__(self, task: Task, tokenizer: DocumentEncoder) -> Record:
        """Raises DataError at damaged input, unless it is skipped."""
        kept = self.documents.kept(texts_in(task.part), Counter())
        digests = b"".join(document_digest(view) for texts in kept for view in texts.views())
        write_atomically(hashes_path(self.work, task.index), digests)
        return {"index": task.index}


def hashes_path(work: Path, index: int) -> Path:
    """Returns the path of a part's hashes."""
    return work / f"part-{index:05}.hashes"


def mark_duplicates(work: Path, num_parts: int, *, hashes_per_slice: int = HASHES_PER_SLICE) -> None:
    """Compares the hashes of all parts, and writes the marks of the duplicates of each."""
    files = [hashes_path(work, index) for index in range(num_parts)]
    counts = [path.stat().st_size // DIGEST_BYTES for path in files]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    is_duplicate = np.zeros(int(offsets[-1]), dtype=bool)
    num_slices = max(1, -(-len(is_duplicate) // hashes_per_slice))
    for number in range(num_slices):
        indices, hashes = _read_slice(files, offsets, number, num_slices)
        is_duplicate[indices[_repeats(hashes)]] = True
    for index, (begin, end) in enumerate(pairwise(offsets)):
        write_atomically(_marks_path(work, index), np.packbits(is_duplicate[begin:end]).tobytes())


def read_duplicates(work: Path, index: int) -> NDArray[np.bool_]:
    """Reads which kept documents of a part are duplicates of an earlier one."""
    count = hashes_path(work, index).stat().st_size // DIGEST_BYTES
    bits = np.frombuffer(_marks_path(work, index).read_bytes(), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def drop_duplicates(
    batches: Iterable[Texts], duplicates: NDArray[np.bool_], *, on_skip: Callable[[int], None]
) -> Iterator[Texts]:
    """Yields the documents that are not duplicates. Raises DataError where there are not as many as were hashed."""
    position = 0
    for texts in batches:
        marks = duplicates[position : position + len(texts)]
        position += len(texts)
        if position > len(duplicates):
            break
        on_skip(int(marks.sum()))
        yield texts.select(~marks)
    if position != len(duplicates):
        raise DataError("the input changed while it was being prepared; begin again in a new --out")


def _read_slice(
    files: list[Path], offsets: NDArray[np.int64], number: int, num_slices: int
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Reads the indices (ascending) and hashes of the documents whose hash belongs to a slice."""
    indices, hashes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=HASH)]
    for begin, path in zip(offsets, files, strict=False):
        found = np.fromfile(path, dtype=HASH)
        inside = np.flatnonzero(found["low"] % np.uint64(num_slices) == number)
        indices.append(inside + begin)
        hashes.append(found[inside])
    return np.concatenate(indices), np.concatenate(hashes)


def _repeats(hashes: NDArray[np.void]) -> NDArray[np.int64]:
    """Returns the indices of the hashes that equal an earlier one."""
    high, low = hashes["high"].astype(np.uint64), hashes["low"].astype(np.uint64)
    order = np.lexsort((low, high))  # stable: equal hashes keep their order
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    return order[1:][same]


def _marks_path(work: Path, index: int) -> Path:
    return work / f"part-{index:05}.duplicates"
