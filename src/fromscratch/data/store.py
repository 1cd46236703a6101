"""The token store: an immutable folder of tokenised, split, checksummed text.

``manifest.json`` says what is there; the tokens of a split are its shards in order, every document
followed by the end-of-text id. The tokenizer that made them travels in ``tokenizer/``.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fromscratch.data.plain_store import is_plain_store, plain_manifest
from fromscratch.data.shards import Tokens, map_shard
from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, read_json_object

STORE_FORMAT = 1
TOKENIZER_FOLDER = "tokenizer"
MOST_IDS = 1 << 24  # sixty times the largest published vocabulary; counting arrays have a place for each

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ShardRecord(_Record):
    """One shard file and what is in it."""

    file: str
    tokens: Count
    documents: Count | None
    """None is unknown, here and below: others' stores do not say."""
    bytes: Count | None
    """Of UTF-8 text, the end-of-text ids not counted."""
    sha256: str
    """``sampled:`` and a hash of some of the content where nobody recorded a checksum."""


class SplitRecord(_Record):
    """One split: its shards in order and their sums."""

    tokens: Count
    documents: Count | None
    bytes: Count | None
    shards: list[ShardRecord]


class Manifest(_Record):
    """What a store holds and how it was made."""

    store_format: int
    tokenizer: dict[str, Any]
    dtype: Literal["uint16", "uint32"]
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
    vocab_size: int | None = None
    """Ids at or above it are damage; None where it is not known."""

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.begins[-1] + len(self.shards[-1]) if self.shards else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens ``[start, start + count)``.

        Raises:
            ValueError: outside the split.
            DataError: one of them is no id of the vocabulary; on a GPU it would crash far from its cause.
        """
        if start < 0 or start + count > self.tokens:
            raise ValueError(f"tokens {start} to {start + count} of a split with {self.tokens}")
        pieces, began = [], start
        index = bisect_right(self.begins, start) - 1
        while count > 0:
            offset = start - self.begins[index]
            piece = self.shards[index][offset : offset + count]
            pieces.append(piece.astype(np.int64))
            start, count, index = start + len(piece), count - len(piece), index + 1
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
        if self.vocab_size is not None and len(tokens) and (largest := int(tokens.max())) >= self.vocab_size:
            raise DataError(
                f"split '{self.name}': token {began + int(tokens.argmax())} is {largest}, but the vocabulary has only "
                f"{self.vocab_size} ids; 'fromscratch data verify' finds the damage"
            )
        return tokens


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
        return TokenSplit(name, tuple(shards), tuple(begins), self.vocab_size)

    def shard_path(self, shard: ShardRecord) -> Path:
        """Where a shard lies. Raises DataError where it is missing."""
        return self._inside(shard.file)

    def _inside(self, name: str) -> Path:
        path = self.path / name
        try:
            is_there = Path(name).name == name and path.is_file()
        except OSError:  # no file can have such a name
            is_there = False
        if not is_there:
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
    _check_tokenizer(path / MANIFEST, manifest)
    return TokenStore(path, manifest)


def _check_tokenizer(where: Path, manifest: Manifest) -> None:
    """What the manifest says of the tokenizer must be complete, and fit the type of the tokens."""
    told = manifest.tokenizer
    for key, kind in {"name": str, "fingerprint": str, "vocab_size": int, "end_of_text": int}.items():
        if type(told.get(key)) is not kind:
            raise DataError(f"{where}: malformed at tokenizer.{key} (expected {kind.__name__})")
    if not 0 < told["vocab_size"] <= MOST_IDS:
        raise DataError(
            f"{where}: malformed at tokenizer.vocab_size ({told['vocab_size']}, expected 1 to {MOST_IDS:,})"
        )
    if not 0 <= told["end_of_text"] < told["vocab_size"]:
        raise DataError(
            f"{where}: malformed at tokenizer.end_of_text ({told['end_of_text']}, but there are "
            f"{told['vocab_size']} ids)"
        )
    if told["vocab_size"] > np.iinfo(manifest.dtype).max + 1:
        raise DataError(
            f"{where}: tokens of {manifest.dtype} cannot hold the {told['vocab_size']} ids of tokenizer "
            f"{told['name']}; prepare the text again, which writes uint32"
        )
