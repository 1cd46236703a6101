"""The token store: an immutable folder of tokenised, split, checksummed text.

``manifest.json`` says what is there; the tokens of a split are its shards in order, every document
followed by the end-of-text id. The tokenizer that made them travels in ``tokenizer/``.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from fromscratch.data.plain_store import is_plain_store, plain_manifest
from fromscratch.data.shards import Tokens, map_shard
from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, read_json_object

STORE_FORMAT = 1
TOKENIZER_FOLDER = "tokenizer"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ShardRecord(_Record):
    """One shard file and what is in it."""

    file: str
    tokens: int
    documents: int | None
    """None is unknown, here and below: others' stores do not say."""
    bytes: int | None
    """Of UTF-8 text, the end-of-text ids not counted."""
    sha256: str
    """``sampled:`` and a hash of some of the content where nobody recorded a checksum."""


class SplitRecord(_Record):
    """One split: its shards in order and their sums."""

    tokens: int
    documents: int | None
    bytes: int | None
    shards: list[ShardRecord]


class Manifest(_Record):
    """What a store holds and how it was made."""

    store_format: int
    tokenizer: dict[str, Any]
    dtype: str
    splits: dict[str, SplitRecord]
    source: list[str]
    split_rule: dict[str, Any]
    documents: dict[str, Any] = {}
    """The rule that decided which documents were kept."""
    skipped: dict[str, int] = {}
    """Documents left out, by reason."""
    plan_sha256: str = ""
    """Names the sources and settings: the same plan makes the same store."""


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split as one long sequence, whatever shards they lie in."""

    name: str
    shards: tuple[Tokens, ...]
    begins: tuple[int, ...]
    """Where in the sequence each shard begins."""

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.begins[-1] + len(self.shards[-1]) if self.shards else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens ``[start, start + count)``. Raises ValueError outside the split."""
        if start < 0 or start + count > self.tokens:
            raise ValueError(f"tokens {start} to {start + count} of a split with {self.tokens}")
        pieces = []
        index = bisect_right(self.begins, start) - 1
        while count > 0:
            offset = start - self.begins[index]
            piece = self.shards[index][offset : offset + count]
            pieces.append(piece.astype(np.int64))
            start, count, index = start + len(piece), count - len(piece), index + 1
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


class TokenStore:
    """A store opened for reading; its manifest is checked, its shards are mapped on demand."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / TOKENIZER_FOLDER

    @property
    def vocab_size(self) -> int:
        return int(self.manifest.tokenizer["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokenizer and every shard's checksum: the content, wherever it lies."""
        digest = hashlib.sha256(str(self.manifest.tokenizer["fingerprint"]).encode())
        for name in sorted(self.manifest.splits):
            for shard in self.manifest.splits[name].shards:
                digest.update(f"{name} {shard.sha256}".encode())
        return digest.hexdigest()

    def split(self, name: str) -> TokenSplit:
        """A split by name.

        Raises:
            DataError: no such split, or a shard is missing, damaged or shorter than the manifest says.
        """
        record = self.manifest.splits.get(name)
        if record is None:
            known = ", ".join(self.manifest.splits) or "none"
            raise DataError(f"store {self.path}: has no split '{name}'; it has {known}")
        shards, begins, total = [], [], 0
        for shard in record.shards:
            tokens = map_shard(self._inside(shard.file))
            if len(tokens) != shard.tokens:
                raise DataError(f"{self.path / shard.file}: {len(tokens)} tokens, but the manifest says {shard.tokens}")
            if tokens.dtype != np.dtype(self.manifest.dtype):
                raise DataError(
                    f"{self.path / shard.file}: tokens of {tokens.dtype}, but the manifest says {self.manifest.dtype}"
                )
            shards.append(tokens)
            begins.append(total)
            total += len(tokens)
        return TokenSplit(name, tuple(shards), tuple(begins))

    def shard_path(self, shard: ShardRecord) -> Path:
        """Where a shard lies. Raises DataError where it is missing."""
        return self._inside(shard.file)

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if Path(name).name != name or not path.is_file():
            raise DataError(f"{path}: shard listed in the manifest is missing")
        return path


def open_store(path: Path) -> TokenStore:
    """Opens a store for reading: one made here, or a folder of two plain files (``plain_store``).

    Raises:
        DataError: no such folder, no manifest, a malformed one, or one of a newer format.
    """
    if not path.is_dir():
        raise DataError(f"store {path}: no such folder; make one with 'fromscratch data prepare'")
    has_manifest = (path / MANIFEST).is_file()
    if not has_manifest and not is_plain_store(path):
        raise DataError(f"store {path}: has no {MANIFEST}; its preparation did not finish, or it is no token store")
    raw = read_json_object(path / MANIFEST) if has_manifest else plain_manifest(path)
    version = raw.get("store_format")
    if isinstance(version, int) and version > STORE_FORMAT:
        raise DataError(f"store {path}: written in format {version}, this version reads up to {STORE_FORMAT}; upgrade")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path / MANIFEST}: malformed at {key} ({first['msg']})") from None
    needed = {"name": str, "fingerprint": str, "vocab_size": int, "end_of_text": int}
    for key, kind in needed.items():
        if not isinstance(manifest.tokenizer.get(key), kind):
            raise DataError(f"{path / MANIFEST}: malformed at tokenizer.{key} (expected {kind.__name__})")
    return TokenStore(path, manifest)
