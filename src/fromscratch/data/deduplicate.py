"""Exact deduplication: of documents with the same bytes, the first in the order of the corpus stays.

Two passes. The first writes a 16-byte hash per document, part by part, on all workers; then the
hashes are compared in slices of at most four million, and one bit per document says whether it
repeats an earlier one; the second pass, the encoding, leaves those out. So the result does not
depend on who reads which part when. Memory: one byte per document, and about 200 MB for a slice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.documents import DIGEST_BYTES, DocumentRule, digest_of
from fromscratch.data.engines.base import DocumentEncoder, Facts, Task
from fromscratch.errors import DataError
from fromscratch.files import write_atomically

HASHES_PER_SLICE = 4_000_000
HASH = np.dtype([("high", ">u8"), ("low", ">u8")])


@dataclass(frozen=True)
class HashPart:
    """The job of writing the hashes of one part's documents, in order."""

    work: Path
    documents: DocumentRule

    def __call__(self, task: Task, tokenizer: DocumentEncoder) -> Facts:
        """Raises DataError at damaged input, unless bad input is skipped."""
        digests = map(digest_of, self.documents.kept(task.part.documents(), Counter()))
        write_atomically(hashes_of(self.work, task.index), b"".join(digests))
        return {"index": task.index}


def hashes_of(work: Path, index: int) -> Path:
    """The file of a part's hashes."""
    return work / f"part-{index:05}.hashes"


def mark_duplicates(work: Path, num_parts: int, *, hashes_per_slice: int = HASHES_PER_SLICE) -> None:
    """Compares all parts' hashes, and writes for each part the bits of its duplicates."""
    files = [hashes_of(work, index) for index in range(num_parts)]
    counts = [path.stat().st_size // DIGEST_BYTES for path in files]
    begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    repeated = np.zeros(int(begins[-1]), dtype=bool)
    slices = max(1, -(-len(repeated) // hashes_per_slice))
    for number in range(slices):
        places, hashes = _slice_of(files, begins, number, slices)
        repeated[places[_repeats(hashes)]] = True
    for index, (begin, end) in enumerate(pairwise(begins)):
        write_atomically(_bits_of(work, index), np.packbits(repeated[begin:end]).tobytes())


def duplicates_of(work: Path, index: int) -> NDArray[np.bool_]:
    """For every kept document of a part: does it repeat an earlier one?"""
    count = hashes_of(work, index).stat().st_size // DIGEST_BYTES
    bits = np.frombuffer(_bits_of(work, index).read_bytes(), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def without(documents: Iterable[str], duplicates: NDArray[np.bool_], *, on_skip: Callable[[], None]) -> Iterator[str]:
    """The documents that are no duplicates. Raises DataError where there are not as many as were hashed."""
    marks = iter(duplicates.tolist())
    for document in documents:
        mark = next(marks, None)
        if mark is None:
            break
        if mark:
            on_skip()
        else:
            yield document
    else:
        if next(marks, None) is None:
            return
    raise DataError("the input changed while it was being prepared; begin again in a new --out")


def _slice_of(
    files: list[Path], begins: NDArray[np.int64], number: int, slices: int
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Places (ascending) and hashes of the documents whose hash falls into a slice."""
    places, hashes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=HASH)]
    for begin, path in zip(begins, files, strict=False):
        found = np.fromfile(path, dtype=HASH)
        inside = np.flatnonzero(found["low"] % np.uint64(slices) == number)
        places.append(inside + begin)
        hashes.append(found[inside])
    return np.concatenate(places), np.concatenate(hashes)


def _repeats(hashes: NDArray[np.void]) -> NDArray[np.int64]:
    """Indices of the hashes that are equal to an earlier one."""
    high, low = hashes["high"].astype(np.uint64), hashes["low"].astype(np.uint64)
    order = np.lexsort((low, high))  # stable: equal hashes keep their order
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    return order[1:][same]


def _bits_of(work: Path, index: int) -> Path:
    return work / f"part-{index:05}.duplicates"
