"""Verifies a store: that it matches its manifest, and that a model can be trained and evaluated on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fromscratch.data.plain_store import sampled_fingerprint
from fromscratch.data.scan import blocks_of, document_hashes
from fromscratch.data.shards import Tokens, map_shard
from fromscratch.data.store import ShardRecord, TokenSplit, TokenStore
from fromscratch.errors import DataError
from fromscratch.files import sha256_of

SAMPLED = "sampled:"
MAX_SHARE_OF_ONE_TOKEN = 0.9  # text of any language stays far below
SAMPLED_SHARDS, SAMPLES_PER_SHARD, SAMPLE_TOKENS = 8, 8, 1_024


@dataclass
class Verification:
    """The result of a verification."""

    problems: list[str] = field(default_factory=list)
    """Each makes the store unusable."""
    warnings: list[str] = field(default_factory=list)
    shards: int = 0
    tokens: int = 0


def verify_store(store: TokenStore) -> Verification:
    """Reads all of a store and compares it with its manifest.

    Checks the checksum, dtype and length of every shard, that ids are within the vocabulary, that
    end-of-text follows every document and is nowhere else, the sums, and that no document is in both
    training and validation.
    """
    found = Verification()
    is_whole = True
    for name, record in store.manifest.splits.items():
        problems_before = len(found.problems)
        for shard in record.shards:
            found.problems += list(_shard_problems(store, shard, found.warnings))
            found.shards += 1
            found.tokens += shard.tokens
        for key in ("tokens", "documents", "bytes"):
            parts = [getattr(shard, key) for shard in record.shards]
            total = None if None in parts else sum(parts)
            if total != getattr(record, key):
                found.problems.append(
                    f"split '{name}': the manifest says {getattr(record, key)} {key}, but its shards have {total}"
                )
        if len(found.problems) > problems_before:
            is_whole = False
            continue
        found.warnings += list(_one_token_warnings(store, name))
    if is_whole:
        found.problems += list(_overlap(store))
    return found


def _shard_problems(store: TokenStore, shard: ShardRecord, warnings: list[str]) -> Iterator[str]:
    path = store.path / shard.file
    try:
        tokens = map_shard(store.shard_path(shard))
    except DataError as error:
        yield str(error)
        return
    yield from store.shape_problems(shard, tokens)
    if shard.sha256.startswith(SAMPLED):
        warnings.append(f"{path}: no checksum was recorded, so damage cannot be found")
        matches = sampled_fingerprint(tokens) == shard.sha256
    else:
        matches = sha256_of(path) == shard.sha256
    if not matches:
        yield f"{path}: its content does not match the SHA-256 in the manifest; the file is damaged"
    yield from _id_problems(store, shard, tokens, warnings)


def _id_problems(store: TokenStore, shard: ShardRecord, tokens: Tokens, warnings: list[str]) -> Iterator[str]:
    path, end_of_text = store.path / shard.file, int(store.manifest.tokenizer["end_of_text"])
    begin = ends = 0
    last = -1
    for block in blocks_of(tokens):
        outside = np.flatnonzero(block >= store.vocab_size)
        if len(outside):
            position, found = begin + int(outside[0]), int(block[outside[0]])
            yield f"{path}: token {position} is {found}, but the vocabulary has only {store.vocab_size} ids"
            return
        ends += int(np.count_nonzero(block == end_of_text))
        begin, last = begin + len(block), int(block[-1])
    if shard.documents is None:
        if last != end_of_text:
            warnings.append(f"{path}: does not end with the end-of-text id {end_of_text}; its last document is cut")
        return
    if last != end_of_text and shard.tokens:
        yield f"{path}: ends with token {last}, expected the end-of-text id {end_of_text}"
    if ends != shard.documents:
        yield f"{path}: {ends} end-of-text ids, but the manifest says {shard.documents} documents"


def _one_token_warnings(store: TokenStore, name: str) -> Iterator[str]:
    """Warns of a split that is mostly one token: well-formed, but useless."""
    counts = np.zeros(store.vocab_size, dtype=np.int64)
    for shard in store.split(name).shards:
        for block in blocks_of(shard):
            counts += np.bincount(block, minlength=store.vocab_size)
    yield from _warn_of_one_token(name, np.arange(len(counts)), counts)


def one_token_warnings(split: TokenSplit) -> Iterator[str]:
    """Warns of a split that is mostly one token, from a small sample of its tokens."""
    samples = [
        shard[begin : begin + SAMPLE_TOKENS]
        for shard in split.shards[:: max(1, len(split.shards) // SAMPLED_SHARDS)]
        for begin in np.linspace(0, max(0, len(shard) - SAMPLE_TOKENS), SAMPLES_PER_SHARD, dtype=np.int64).tolist()
    ]
    if samples:
        yield from _warn_of_one_token(split.name, *np.unique(np.concatenate(samples), return_counts=True))


def _warn_of_one_token(name: str, ids: NDArray[Any], counts: NDArray[np.int64]) -> Iterator[str]:
    total = int(counts.sum())
    top = int(counts.argmax()) if total else 0
    if total > 1 and counts[top] > MAX_SHARE_OF_ONE_TOKEN * total:
        yield f"split '{name}': {counts[top] / total:.0%} of its tokens are the id {ids[top]}; is this text?"


def _overlap(store: TokenStore) -> Iterator[str]:
    """Finds documents of the training split that are also held out, by a 64-bit hash of their ids."""
    splits = store.manifest.splits
    if "train" not in splits or "validation" not in splits:
        return
    end_of_text = int(store.manifest.tokenizer["end_of_text"])
    held_out = _all_hashes(store.split("validation"), end_of_text)
    if not len(held_out):
        return
    seen = common = 0
    first = None
    for hashes in document_hashes(store.split("train"), end_of_text):
        indices = np.flatnonzero(np.isin(hashes, held_out))
        if len(indices) and first is None:
            first = seen + int(indices[0])
        common += len(indices)
        seen += len(hashes)
    if first is not None:
        yield (
            f"store {store.path}: {common:,} documents of 'train' are also in 'validation' "
            f"(the first is document {first:,} of 'train'), so the held-out loss would be too low; prepare it again"
        )


def _all_hashes(split: TokenSplit, end_of_text: int) -> NDArray[np.uint64]:
    batches = list(document_hashes(split, end_of_text))
    return np.unique(np.concatenate(batches)) if batches else np.zeros(0, dtype=np.uint64)
