"""One part of a corpus into shards of its own, wherever that is done.

A part's shards depend on nothing but its text and the settings, so they are the same whoever makes
them, in whatever order, and a second time. ``part-NNNNN.json`` is written last: where it is, and the
shards it names are, the part is done.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.deduplicate import duplicates_of, without
from fromscratch.data.documents import DUPLICATE, TRAIN, VALIDATION, DocumentRule, SplitRule
from fromscratch.data.engines.base import DocumentEncoder, Facts, Task
from fromscratch.data.shards import ShardWriter, dtype_for
from fromscratch.errors import DataError
from fromscratch.files import read_json_object, sha256_of, to_strict_json, write_atomically

BATCH_CHARACTERS = 4 << 20  # text handed to the tokenizer at once
MOST_SHARD_TOKENS = 100_000_000
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class EncodePart:
    """The job of encoding one part into ``out``."""

    out: Path
    work: Path
    """Where ``part-NNNNN.json`` goes."""
    split_rule: SplitRule
    documents: DocumentRule
    most_shard_tokens: int = MOST_SHARD_TOKENS

    def __call__(self, task: Task, tokenizer: DocumentEncoder) -> Facts:
        """Writes the part's shards; returns their records, and what was skipped by reason.

        Raises:
            DataError: damaged input, unless bad input is skipped.
        """
        skipped: Counter[str] = Counter()
        dtype = dtype_for(tokenizer.vocab_size)
        writers = {split: _SplitWriter(self, split, task.index, dtype) for split in SPLITS}
        end = np.array([tokenizer.end_of_text], dtype=np.uint32)
        try:
            for batch in in_batches(self._kept(task, skipped)):
                for text, ids in zip(batch, tokenizer.encode_documents(batch), strict=True):
                    data = text.encode("utf-8", "replace")
                    writers[self.split_rule.split_of(data)].add(np.concatenate([ids, end]), len(data))
            shards = [record for writer in writers.values() for record in writer.close()]
        except BaseException:
            for writer in writers.values():
                writer.abandon()
            raise
        facts = {"part": task.part.name, "shards": shards, "skipped": dict(sorted(skipped.items()))}
        write_atomically(part_record(self.work, task.index), to_strict_json(facts))
        return {"index": task.index, **facts}

    def _kept(self, task: Task, skipped: Counter[str]) -> Iterator[str]:
        kept = self.documents.kept(task.part.documents(), skipped)
        if not self.documents.deduplicate:
            return kept
        return without(kept, duplicates_of(self.work, task.index), on_skip=lambda: skipped.update([DUPLICATE]))


def part_record(work: Path, index: int) -> Path:
    """Where a finished part says so."""
    return work / f"part-{index:05}.json"


def finished_part(out: Path, work: Path, index: int) -> Facts | None:
    """What an earlier session recorded of a part, if all its shards are there in full length."""
    path = part_record(work, index)
    if not path.is_file():
        return None
    try:
        facts = read_json_object(path)
        whole = all((out / s["file"]).stat().st_size == s["file_bytes"] for s in facts["shards"])
    except (DataError, OSError, KeyError):
        return None
    return {"index": index, **facts} if whole else None


def in_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups of about four million characters."""
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
    """The shards of one part and one split, each of bounded size."""

    def __init__(self, job: EncodePart, split: str, part_index: int, dtype: str) -> None:
        self._out, self._most_tokens = job.out, job.most_shard_tokens
        self._stem, self._split, self._dtype = f"{split}-{part_index:05}", split, dtype
        self._records: list[dict[str, Any]] = []
        self._writer: ShardWriter | None = None
        self._documents = self._bytes = 0

    def add(self, ids: NDArray[np.uint32], text_bytes: int) -> None:
        """Appends a document; it begins a new shard where it would make this one too long."""
        if self._writer is not None and self._writer.tokens + len(ids) > self._most_tokens:
            self._end_shard()
        if self._writer is None:
            self._writer = ShardWriter(self._out / f"{self._stem}-{len(self._records):03}.safetensors", self._dtype)
        self._writer.write(ids)
        self._documents += 1
        self._bytes += text_bytes

    def close(self) -> list[dict[str, Any]]:
        """Finishes the last shard; returns the records of all."""
        self._end_shard()
        return self._records

    def abandon(self) -> None:
        """Deletes what a part that failed has written."""
        if self._writer is not None:
            self._writer.abandon()
        for record in self._records:
            (self._out / record["file"]).unlink(missing_ok=True)

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._writer.path
        counts = {"tokens": self._writer.tokens, "documents": self._documents, "bytes": self._bytes}
        facts = {"split": self._split, "file": path.name, **counts, "file_bytes": path.stat().st_size}
        self._records.append(facts | {"sha256": sha256_of(path)})
        self._writer, self._documents, self._bytes = None, 0, 0
