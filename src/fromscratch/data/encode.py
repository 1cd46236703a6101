"""Encodes one part of a corpus into shards of its own.

The shards depend on the text of the part and the settings alone, so they are the same for any number
of workers, any order and any number of attempts. ``part-NNNNN.json`` is written last: a part is done
where that file and the shards that it names exist.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.deduplicate import drop_duplicates, read_duplicates
from fromscratch.data.documents import DUPLICATE, SPLITS, DocumentRule, SplitRule
from fromscratch.data.engines.base import DocumentEncoder, Record, Task
from fromscratch.data.shards import ShardWriter, dtype_for
from fromscratch.errors import DataError
from fromscratch.files import read_json_object, sha256_of, to_strict_json, write_atomically
from fromscratch.sources.base import documents_in

BATCH_CHARACTERS = 4 << 20  # text per call of the tokenizer
MAX_SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class EncodePart:
    """The job that encodes one part into ``out``."""

    out: Path
    work: Path
    """Folder of ``part-NNNNN.json``."""
    split_rule: SplitRule
    documents: DocumentRule
    max_shard_tokens: int = MAX_SHARD_TOKENS

    def __call__(self, task: Task, tokenizer: DocumentEncoder) -> Record:
        """Writes the shards of the part; returns their records, and the skipped documents by reason.

        Raises:
            DataError: damaged input, unless it is skipped.
        """
        skipped: Counter[str] = Counter()
        altered, decoded_bytes = 0, Counter[str]()
        dtype = dtype_for(tokenizer.vocab_size)
        writers = {split: _SplitWriter(self, split, task.index, dtype) for split in SPLITS}
        end = np.array([tokenizer.end_of_text], dtype=np.uint32)
        try:
            for batch in batch_documents(self._kept(task, skipped)):
                for split, data, learnt, ids in self._split(batch, tokenizer):
                    writers[split].add(np.concatenate([ids, end]), len(data))
                    altered += learnt != data
                    decoded_bytes[split] += len(learnt)
            shards = [record for writer in writers.values() for record in writer.close()]
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise
        record: Record = {"part": task.part.name, "shards": shards, "skipped": dict(sorted(skipped.items()))}
        if not tokenizer.is_lossless:
            record |= {"altered": altered, "decoded_bytes": dict(decoded_bytes)}
        write_atomically(_record_path(self.work, task.index), to_strict_json(record))
        return {"index": task.index, **record}

    def _split(
        self, texts: Sequence[str], tokenizer: DocumentEncoder
    ) -> Iterator[tuple[str, bytes, bytes, NDArray[np.uint32]]]:
        """Yields split, text, text that the ids give back, and ids of each document or piece of one."""
        for text, data, learnt, ids in encoded(texts, tokenizer):
            pieces = self.split_rule.pieces(text, learnt)
            if len(pieces) == 1:
                yield pieces[0][0], data, learnt, ids
                continue
            again = encoded([piece for _, piece in pieces], tokenizer)
            yield from ((split, *piece[1:]) for (split, _), piece in zip(pieces, again, strict=True))

    def _kept(self, task: Task, skipped: Counter[str]) -> Iterator[str]:
        kept = self.documents.kept(documents_in(task.part), skipped)
        if not self.documents.deduplicate:
            return kept
        duplicates = read_duplicates(self.work, task.index)
        return drop_duplicates(kept, duplicates, on_skip=lambda: skipped.update([DUPLICATE]))


def encoded(texts: Sequence[str], tokenizer: DocumentEncoder) -> Iterator[tuple[str, bytes, bytes, NDArray[np.uint32]]]:
    """Yields each text, its UTF-8 encoding, that of the text that its ids give back, and its ids."""
    ids_of_texts = tokenizer.encode_documents(texts)
    returned = texts if tokenizer.is_lossless else tokenizer.decode_documents(ids_of_texts)
    for text, given_back, ids in zip(texts, returned, ids_of_texts, strict=True):
        data = text.encode("utf-8", "replace")
        yield text, data, data if given_back is text else given_back.encode(), ids


def _record_path(work: Path, index: int) -> Path:
    return work / f"part-{index:05}.json"


def read_finished_part(out: Path, work: Path, index: int) -> Record | None:
    """Reads the record of a part; returns None unless all its shards exist in full length."""
    path = _record_path(work, index)
    if not path.is_file():
        return None
    try:
        record = read_json_object(path)
        is_whole = all((out / s["file"]).stat().st_size == s["file_bytes"] for s in record["shards"])
    except (DataError, OSError, KeyError):
        return None
    return {"index": index, **record} if is_whole else None


def batch_documents(documents: Iterable[str]) -> Iterator[list[str]]:
    """Groups documents into batches of about four million characters."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _SplitWriter:
    """Writes the shards of one part and one split, each of bounded size."""

    def __init__(self, job: EncodePart, split: str, part_index: int, dtype: str) -> None:
        self._out, self._max_tokens = job.out, job.max_shard_tokens
        self._stem, self._split, self._dtype = f"{split}-{part_index:05}", split, dtype
        self._records: list[dict[str, Any]] = []
        self._writer: ShardWriter | None = None
        self._documents = self._bytes = 0

    def add(self, ids: NDArray[np.uint32], text_bytes: int) -> None:
        """Appends a document, to a new shard where the current one would become too long."""
        if self._writer is not None and self._writer.tokens + len(ids) > self._max_tokens:
            self._close_shard()
        if self._writer is None:
            self._writer = ShardWriter(self._out / f"{self._stem}-{len(self._records):03}.safetensors", self._dtype)
        self._writer.write(ids)
        self._documents += 1
        self._bytes += text_bytes

    def close(self) -> list[dict[str, Any]]:
        """Closes the last shard; returns the records of all."""
        self._close_shard()
        return self._records

    def discard(self) -> None:
        """Deletes all shards of a part that failed."""
        if self._writer is not None:
            self._writer.discard()
        for record in self._records:
            (self._out / record["file"]).unlink(missing_ok=True)

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._writer.path
        counts = {"tokens": self._writer.tokens, "documents": self._documents, "bytes": self._bytes}
        record = {"split": self._split, "file": path.name, **counts, "file_bytes": path.stat().st_size}
        self._records.append(record | {"sha256": sha256_of(path)})
        self._writer, self._documents, self._bytes = None, 0, 0
