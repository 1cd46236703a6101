"""The token store: an immutable folder of tokenised, split, checksummed text.

``manifest.json`` lists the contents. The tokens of a split are its shards in order; the end-of-text
id follows every document. ``tokenizer/`` holds the tokenizer.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
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
MAX_VOCAB_SIZE = 1 << 24  # sixty times the largest published vocabulary; statistics allocate a count per id

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ShardRecord(_Record):
    """One shard file and its contents."""

    file: str
    tokens: Count
    documents: Count | None
    """None is unknown, here and below, as in stores without a manifest."""
    bytes: Count | None
    """Bytes of UTF-8 text; end-of-text ids count as none."""
    sha256: str
    """``sampled:`` and a hash of a part of the content where no checksum was recorded."""


class SplitRecord(_Record):
    """One split: its shards in order and their sums."""

    tokens: Count
    documents: Count | None
    bytes: Count | None
    shards: list[ShardRecord]
    decoded_bytes: Count | None = None
    """Bytes of the text that the ids give back, where the tokenizer may alter texts."""

    @property
    def bytes_per_decoded_byte(self) -> float:
        """Bytes of the original text for each byte that the ids give back."""
        return self.bytes / self.decoded_bytes if self.bytes and self.decoded_bytes else 1.0


class Manifest(_Record):
    """The contents and the origin of a store."""

    store_format: int
    tokenizer: dict[str, Any]
    dtype: Literal["uint16", "uint32"]
    splits: dict[str, SplitRecord]
    source: list[str]
    split_rule: dict[str, Any]
    documents: dict[str, Any] = {}
    """The rule for keeping documents."""
    skipped: dict[str, int] = {}
    """Skipped documents by reason."""
    altered: int = 0
    """Documents that their ids do not give back byte for byte."""
    fallbacks: dict[str, int] = {}
    """Why gigatoken was not used, with the number of parts; absent where it encoded all."""
    text_columns: list[str] | None = None
    """Columns and keys of the text. None in stores of earlier versions, which did not record what they were made of."""
    plan_sha256: str = ""
    """Hash of the sources and settings: the same plan makes the same store."""


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of all shards of a split as one sequence."""

    name: str
    shards: tuple[Tokens, ...]
    offsets: tuple[int, ...]
    """Position of the first token of each shard in the sequence."""
    vocab_size: int | None = None
    """Ids at or above it are damage; None is unknown."""
    bytes_per_decoded_byte: float = 1.0
    """See ``SplitRecord``."""

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.offsets[-1] + len(self.shards[-1]) if self.shards else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Reads the tokens ``[start, start + count)``.

        Raises:
            ValueError: outside the split.
            DataError: an id outside the vocabulary, which on a GPU would crash far from its cause.
        """
        if start < 0 or start + count > self.tokens:
            raise ValueError(f"tokens {start} to {start + count} of a split with {self.tokens}")
        tokens, done = np.empty(count, dtype=np.int64), 0
        index = bisect_right(self.offsets, start) - 1
        while done < count:
            begin = start + done - self.offsets[index]
            found = self.shards[index][begin : begin + count - done]
            tokens[done : done + len(found)] = found
            done, index = done + len(found), index + 1
        if self.vocab_size is not None and count and (largest := int(tokens.max())) >= self.vocab_size:
            raise DataError(
                f"split '{self.name}': token {start + int(tokens.argmax())} is {largest}, but the vocabulary has only "
                f"{self.vocab_size} ids; 'fromscratch data verify' finds the damage"
            )
        return tokens


class TokenStore:
    """A store opened for reading: its manifest is checked, its shards are mapped on demand."""

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
        """SHA-256 over the fingerprint of the tokenizer and the checksums of all shards."""
        digest = hashlib.sha256(str(self.manifest.tokenizer["fingerprint"]).encode())
        for name in sorted(self.manifest.splits):
            for shard in self.manifest.splits[name].shards:
                digest.update(f"{name} {shard.sha256}".encode())
        return digest.hexdigest()

    def split(self, name: str) -> TokenSplit:
        """Opens a split by name.

        Raises:
            DataError: no such split, or a shard is missing, damaged or shorter than the manifest says.
        """
        record = self.manifest.splits.get(name)
        if record is None:
            known = ", ".join(self.manifest.splits) or "none"
            raise DataError(f"store {self.path}: has no split '{name}'; it has {known}")
        shards = []
        for shard in record.shards:
            tokens = map_shard(self.shard_path(shard))
            for problem in self.shape_problems(shard, tokens):
                raise DataError(problem)
            shards.append(tokens)
        offsets = list(accumulate(map(len, shards), initial=0))[:-1]
        return TokenSplit(name, tuple(shards), tuple(offsets), self.vocab_size, record.bytes_per_decoded_byte)

    def shape_problems(self, shard: ShardRecord, tokens: Tokens) -> Iterator[str]:
        """Yields where the length or the dtype of a shard differs from the manifest."""
        path = self.path / shard.file
        if len(tokens) != shard.tokens:
            yield f"{path}: {len(tokens)} tokens, but the manifest says {shard.tokens}"
        if tokens.dtype != np.dtype(self.manifest.dtype):
            yield f"{path}: tokens of {tokens.dtype}, but the manifest says {self.manifest.dtype}"

    def shard_path(self, shard: ShardRecord) -> Path:
        """Returns the path of a shard. Raises DataError where it is missing or outside of the folder."""
        path = self.path / shard.file
        try:
            exists = Path(shard.file).name == shard.file and path.is_file()
        except OSError:  # no file can have such a name
            exists = False
        if not exists:
            raise DataError(f"{path}: shard listed in the manifest is missing")
        return path


def open_store(path: Path) -> TokenStore:
    """Opens a store for reading: a prepared one, or a folder of two plain files (``plain_store``).

    Raises:
        DataError: no such folder, no manifest, a malformed one, or one of a newer format.
    """
    if not path.is_dir():
        raise DataError(
            f"store {path}: no such folder; make one with 'fromscratch data prepare', or download one with "
            f"'fromscratch data pull hf://owner/name --out {path}'"
        )
    has_manifest = (path / MANIFEST).is_file()
    if not has_manifest and not is_plain_store(path):
        raise DataError(
            f"store {path}: has no {MANIFEST}, so it is not a token store, or its preparation did not finish; the "
            "same 'fromscratch data prepare' command finishes it, and 'fromscratch data pull' downloads one"
        )
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
    """Raises DataError where the entry of the tokenizer is incomplete or does not fit the dtype of the tokens."""
    entry = manifest.tokenizer
    for key, kind in {"name": str, "fingerprint": str, "vocab_size": int, "end_of_text": int}.items():
        if type(entry.get(key)) is not kind:
            raise DataError(f"{where}: malformed at tokenizer.{key} (expected {kind.__name__})")
    vocab_size, end_of_text = entry["vocab_size"], entry["end_of_text"]
    if not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise DataError(f"{where}: malformed at tokenizer.vocab_size ({vocab_size}, expected 1 to {MAX_VOCAB_SIZE:,})")
    if not 0 <= end_of_text < vocab_size:
        raise DataError(f"{where}: malformed at tokenizer.end_of_text ({end_of_text}, but there are {vocab_size} ids)")
    if vocab_size > np.iinfo(manifest.dtype).max + 1:
        raise DataError(
            f"{where}: tokens of {manifest.dtype} cannot hold the {vocab_size} ids of tokenizer {entry['name']}; "
            "prepare the text again, which writes uint32"
        )
