"""Encodes one part of a corpus into shards of its own.

The shards depend on the text of the part and the settings alone, so they are the same for any number
of workers, any order and any number of attempts. ``part-NNNNN.json`` is written last: a part is done
where that file and the shards that it names exist.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.deduplicate import drop_duplicates, read_duplicates
from fromscratch.data.documents import DUPLICATE, SPLITS, TRAIN, VALIDATION, DocumentRule, SplitRule
from fromscratch.data.engines.base import DocumentEncoder, Record, Task
from fromscratch.data.shards import ShardWriter, dtype_for
from fromscratch.errors import DataError
from fromscratch.files import read_json_object, sha256_of, to_strict_json, write_atomically
from fromscratch.sources.texts import Encoded, FallbackError, Ids, Texts, texts_in

MAX_SHARD_TOKENS = 100_000_000

Encode = Callable[[Texts], Encoded]


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
        try:
            record = self._encode(task, tokenizer, tokenizer.encode_fast)
        except FallbackError as error:
            record = self._encode(task, tokenizer, tokenizer.encode_texts) | {"fallback": str(error)}
        write_atomically(_record_path(self.work, task.index), to_strict_json(record))
        return {"index": task.index, **record}

    def _encode(self, task: Task, tokenizer: DocumentEncoder, encode: Encode) -> Record:
        skipped: Counter[str] = Counter()
        altered, decoded_bytes = 0, Counter[str]()
        dtype = dtype_for(tokenizer.vocab_size)
        writers = {split: _SplitWriter(self, split, task.index, dtype) for split in SPLITS}
        try:
            for whole in self._kept(task, skipped):
                encoded = encode(whole)
                learnt = learnt_texts(whole, encoded, tokenizer)
                texts, held_out = self.split_rule.divide(whole, learnt)
                if texts is not whole:
                    encoded = encode(texts)
                    learnt = learnt_texts(texts, encoded, tokenizer)
                ids, tokens = with_ends(encoded, tokenizer.end_of_text), np.diff(encoded[1]) + 1
                for split, chosen in ((VALIDATION, held_out), (TRAIN, ~held_out)):
                    in_split = ids if chosen.all() else ids[np.repeat(chosen, tokens)]
                    writers[split].add(in_split, tokens[chosen], texts.lengths[chosen])
                    decoded_bytes[split] += int(learnt.lengths[chosen].sum())
                if learnt is not texts:
                    altered += sum(a != b for a, b in zip(learnt.views(), texts.views(), strict=True))
            shards = [record for writer in writers.values() for record in writer.close()]
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise
        record: Record = {"part": task.part.name, "shards": shards, "skipped": dict(sorted((+skipped).items()))}
        if not tokenizer.is_lossless:
            record |= {"altered": altered, "decoded_bytes": dict(+decoded_bytes)}
        return record

    def _kept(self, task: Task, skipped: Counter[str]) -> Iterator[Texts]:
        kept = self.documents.kept(texts_in(task.part), skipped)
        if not self.documents.deduplicate:
            return kept
        duplicates = read_duplicates(self.work, task.index)
        return drop_duplicates(kept, duplicates, on_skip=lambda count: skipped.update({DUPLICATE: count}))


def learnt_texts(texts: Texts, encoded: Encoded, tokenizer: DocumentEncoder) -> Texts:
    """Returns the texts that the ids give back: the same ones, unless the tokenizer alters texts."""
    if tokenizer.is_lossless:
        return texts
    ids, offsets = encoded
    return Texts.of(tokenizer.decode_documents(np.split(ids, offsets[1:-1])))


def with_ends(encoded: Encoded, end_of_text: int) -> Ids:
    """Returns the ids with the end-of-text id after each document."""
    ids, offsets = encoded
    return np.insert(ids, offsets[1:], end_of_text)


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


class _SplitWriter:
    """Writes the shards of one part and one split, each of bounded size."""

    def __init__(self, job: EncodePart, split: str, part_index: int, dtype: str) -> None:
        self._out, self._max_tokens = job.out, job.max_shard_tokens
        self._stem, self._split, self._dtype = f"{split}-{part_index:05}", split, dtype
        self._records: list[dict[str, Any]] = []
        self._writer: ShardWriter | None = None
        self._documents = self._bytes = 0

    def add(self, ids: Ids, tokens: NDArray[np.int64], text_bytes: NDArray[np.int64]) -> None:
        """Appends documents, to a new shard where the current one would become too long.

        Args:
            ids: those of all documents.
            tokens: how many of them each document has.
            text_bytes: bytes of each document.
        """
        ends, first = np.cumsum(tokens), 0
        while first < len(tokens):
            begin = int(ends[first - 1]) if first else 0
            room = self._max_tokens - (self._writer.tokens if self._writer else 0)
            last = int(np.searchsorted(ends, begin + room, side="right"))
            if last <= first and self._writer is not None:
                self._close_shard()
                continue
            last = max(last, first + 1)  # a document longer than a shard has one of its own
            if self._writer is None:
                self._writer = ShardWriter(self._out / f"{self._stem}-{len(self._records):03}.safetensors", self._dtype)
            self._writer.write(ids[begin : int(ends[last - 1])])
            self._documents += last - first
            self._bytes += int(text_bytes[first:last].sum())
            first = last

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
