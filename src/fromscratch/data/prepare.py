"""From sources to a token store, one part at a time, restartable at every part.

Each part of a source becomes shards of its own, so that parts depend on nothing but their own text:
the result is the same whatever was done before, elsewhere, or a second time.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.shards import ShardWriter, dtype_for
from fromscratch.data.sources.base import Part, Source
from fromscratch.data.store import STORE_FORMAT, TOKENIZER_FOLDER, TokenStore, open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, read_json_object, sha256_of, to_strict_json, write_atomically

BATCH_CHARACTERS = 4 << 20  # text handed to the tokenizer at once
MAX_SHARD_TOKENS = 100_000_000
WORK_FOLDER = ".preparing"
TRAIN, VALIDATION = "train", "validation"


class DocumentEncoder(Protocol):
    """What preparation needs of a tokenizer."""

    vocab_size: int
    end_of_text: int

    def encode_documents(self, documents: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each document without the end-of-text id."""

    def description(self) -> dict[str, Any]:
        """Facts for the manifest."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into a folder."""


@dataclass(frozen=True)
class SplitRule:
    """Decides by a document's text alone whether it is held out."""

    validation: float
    """Share of documents held out, from 0 up to but not including 1."""

    def split_of(self, document: str) -> str:
        """``train`` or ``validation``: a hash of the text (BLAKE2b, 64 bits) against the share."""
        digest = hashlib.blake2b(document.encode("utf-8", "replace"), digest_size=8).digest()
        return VALIDATION if int.from_bytes(digest, "big") < self.validation * 2**64 else TRAIN

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"by": "document", "hash": "blake2b-64", "validation": self.validation}


def training_documents(sources: Sequence[Source], rule: SplitRule) -> Iterator[str]:
    """Every document that is not held out: what a tokenizer may learn from."""
    for source in sources:
        for part in source.parts():
            yield from (text for text in part.documents() if text and rule.split_of(text) == TRAIN)


def prepare_store(
    sources: Sequence[Source],
    tokenizer: DocumentEncoder,
    out: Path,
    *,
    rule: SplitRule,
    on_part: Callable[[str, int], None] = lambda _name, _tokens: None,
) -> TokenStore:
    """Tokenises the sources into a store, or finishes a preparation that was interrupted.

    Args:
        on_part: told each finished part's name and tokens.

    Raises:
        UsageError: ``out`` holds something else, or a preparation with other settings.
        DataError: the sources hold no text.
    """
    parts = [part for source in sources for part in source.parts()]
    plan = {
        "tokenizer": tokenizer.description(),
        "source": [source.description for source in sources],
        "split_rule": rule.facts(),
        "parts": [part.name for part in parts],
    }
    work = _begin(out, plan)
    results = []
    for index, part in enumerate(parts):
        done = work / f"part-{index:05}.json"
        if not done.is_file():
            write_atomically(done, to_strict_json(encode_part(part, index, tokenizer, out, rule)))
        results.append(read_json_object(done))
        on_part(part.name, sum(shard["tokens"] for shard in results[-1]["shards"]))
    _finish(out, plan, results, tokenizer)
    shutil.rmtree(work)
    return open_store(out)


def encode_part(part: Part, index: int, tokenizer: DocumentEncoder, out: Path, rule: SplitRule) -> dict[str, Any]:
    """Tokenises one part into its shards; returns their records and what was skipped."""
    dtype = dtype_for(tokenizer.vocab_size)
    writers = {split: _SplitWriter(out, split, index, dtype) for split in (TRAIN, VALIDATION)}
    skipped = {"empty": 0}
    end = np.array([tokenizer.end_of_text], dtype=np.uint32)
    for batch in _batches(part.documents(), skipped):
        for text, ids in zip(batch, tokenizer.encode_documents(batch), strict=True):
            text_bytes = len(text.encode("utf-8", "replace"))
            writers[rule.split_of(text)].add(np.concatenate([ids, end]), text_bytes)
    shards = [record for writer in writers.values() for record in writer.close()]
    return {"part": part.name, "shards": shards, "skipped": skipped}


class _SplitWriter:
    """The shards of one part and one split, each of bounded size."""

    def __init__(self, out: Path, split: str, part_index: int, dtype: str) -> None:
        self._stem = out / f"{split}-{part_index:05}"
        self._split, self._dtype = split, dtype
        self._records: list[dict[str, Any]] = []
        self._writer: ShardWriter | None = None
        self._documents = self._bytes = 0

    def add(self, ids: NDArray[np.uint32], text_bytes: int) -> None:
        if self._writer is not None and self._writer.tokens + len(ids) > MAX_SHARD_TOKENS:
            self._end_shard()
        if self._writer is None:
            self._writer = ShardWriter(
                self._stem.with_name(f"{self._stem.name}-{len(self._records):03}.safetensors"), self._dtype
            )
        self._writer.write(ids)
        self._documents += 1
        self._bytes += text_bytes

    def close(self) -> list[dict[str, Any]]:
        self._end_shard()
        return self._records

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._writer.path
        counts = {"tokens": self._writer.tokens, "documents": self._documents, "bytes": self._bytes}
        self._records.append({"split": self._split, "file": path.name, **counts, "sha256": sha256_of(path)})
        self._writer, self._documents, self._bytes = None, 0, 0


def _batches(documents: Iterable[str], skipped: dict[str, int]) -> Iterator[list[str]]:
    """Non-empty documents in groups of about four million characters; counts the empty ones."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        if not text or text.isspace():
            skipped["empty"] += 1
            continue
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _begin(out: Path, plan: dict[str, Any]) -> Path:
    """The work folder of this preparation, new or left by an interrupted one."""
    work = out / WORK_FOLDER
    if (out / MANIFEST).exists():
        raise UsageError(f"{out}: already a finished store; choose another --out, or delete it")
    if out.exists() and not work.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: not empty and no preparation was begun there; choose another --out")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be created ({error.strerror}); choose another --out") from error
    plan_file = work / "plan.json"
    if plan_file.is_file() and read_json_object(plan_file) != plan:
        raise UsageError(f"{out}: holds an unfinished preparation with other settings; delete it, or choose another")
    write_atomically(plan_file, to_strict_json(plan))
    return work


def _finish(out: Path, plan: dict[str, Any], results: list[dict[str, Any]], tokenizer: DocumentEncoder) -> None:
    splits: dict[str, Any] = {}
    for split in (TRAIN, VALIDATION):
        shards = [s for result in results for s in result["shards"] if s["split"] == split]
        sums = {key: sum(s[key] for s in shards) for key in ("tokens", "documents", "bytes")}
        splits[split] = sums | {"shards": [{k: v for k, v in s.items() if k != "split"} for s in shards]}
    if not any(split["tokens"] for split in splits.values()):
        raise DataError(f"{', '.join(plan['source'])}: no text found, so there is nothing to store")
    tokenizer.save(out / TOKENIZER_FOLDER)
    skipped = {reason: sum(r["skipped"].get(reason, 0) for r in results) for reason in ("empty",)}
    manifest = {
        "store_format": STORE_FORMAT,
        "tokenizer": plan["tokenizer"],
        "dtype": dtype_for(tokenizer.vocab_size),
        "splits": splits,
        "source": plan["source"],
        "split_rule": plan["split_rule"],
        "skipped": skipped,
    }
    write_atomically(out / MANIFEST, to_strict_json(manifest, indent=1))
