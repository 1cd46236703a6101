"""Opens a tokenizer by its name: ``gpt2``, ``bytes``, ``bytes:occurring``, ``train:N``, or a path."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fromscratch.config.problems import shown
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, verify_folder
from fromscratch.sources.texts import Texts
from fromscratch.tokenizers.base import DESCRIPTION_FILE, Tokenizer
from fromscratch.tokenizers.bytes import (
    BytesTokenizer,
    OccurringBytesTokenizer,
    load_occurring_bytes,
    occurring_bytes,
)
from fromscratch.tokenizers.characters import PICKLE_SUFFIX, CharacterTokenizer, load_characters
from fromscratch.tokenizers.folder import needs_added_tokens, open_folder
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, has_gpt2_files, load_gpt2
from fromscratch.tokenizers.huggingface import TOKENIZER_FILE, HuggingFaceTokenizer, load_huggingface, train_byte_pairs

TRAIN_PREFIX = "train:"
OCCURRING_BYTES = "bytes:occurring"
MAX_DIGITS = 19


def open_tokenizer(
    name: str,
    *,
    corpus: Callable[[], Iterable[str]] | None = None,
    texts: Callable[[], Iterable[Texts]] | None = None,
) -> Tokenizer:
    """Returns the tokenizer that a command line names.

    Args:
        name: ``gpt2``, ``bytes``, ``bytes:occurring``, ``train:N``, a folder, a ``tokenizer.json`` or nanoGPT's
            ``meta.pkl``.
        corpus: opens the documents that ``train:N`` is trained on.
        texts: opens all documents, those that are held out too, for ``bytes:occurring``.

    Raises:
        UsageError: there is no such tokenizer, or it is made from documents and there are none, or N is invalid.
        DataError: the files that it names cannot be used.
    """
    if name == "bytes":
        return BytesTokenizer()
    if name == "gpt2":
        return load_gpt2()
    if name == OCCURRING_BYTES:
        if texts is None:
            raise UsageError(f"tokenizer {name}: there are no documents here whose bytes it could take")
        return occurring_bytes(texts())
    if name.startswith(TRAIN_PREFIX):
        size = name.removeprefix(TRAIN_PREFIX)
        if not (size.isascii() and size.isdecimal() and len(size) <= MAX_DIGITS):
            raise UsageError(f"tokenizer {shown(name)}: write it as train:N with a number of ids, such as train:8192")
        if corpus is None:
            raise UsageError(f"tokenizer {name}: there are no documents here to train it on")
        return train_byte_pairs(corpus(), vocab_size=int(size))
    return _open_path(name)


def _open_path(name: str) -> Tokenizer:
    path = Path(name).expanduser()
    try:
        exists = bool(name) and path.exists()
    except OSError:  # a name too long for any file
        exists = False
    if not exists:
        raise UsageError(
            f"tokenizer {shown(name)}: no such file or folder; use gpt2, bytes, bytes:occurring, train:N or a path"
        )
    if (path / DESCRIPTION_FILE).is_file():
        return load(path)
    if path.suffix == PICKLE_SUFFIX and path.is_file():
        return load_characters(path)
    return open_beside(path) if path.is_dir() else load_huggingface(path)


def open_beside(path: Path) -> Tokenizer:
    """Opens the tokenizer that a folder of another program holds. Raises DataError."""
    if has_gpt2_files(path) and not (path / TOKENIZER_FILE).is_file() and not needs_added_tokens(path):
        return load_gpt2(path)
    return open_folder(path)


def load(folder: Path) -> Tokenizer:
    """Reads a folder that ``Tokenizer.save`` wrote. Raises DataError where it is damaged."""
    verify_folder(folder)
    description = read_json_object(folder / DESCRIPTION_FILE)
    end = description.get("end_of_text")
    readers: dict[str, Callable[[], Tokenizer]] = {
        BytesTokenizer.kind: BytesTokenizer,
        OccurringBytesTokenizer.kind: lambda: load_occurring_bytes(folder),
        GPT2Tokenizer.kind: lambda: load_gpt2(folder),
        HuggingFaceTokenizer.kind: lambda: load_huggingface(
            folder, name=str(description.get("name")), end_of_text=end if isinstance(end, int) else None
        ),
        CharacterTokenizer.kind: lambda: load_characters(folder),
    }
    kind = description.get("kind")
    if kind not in readers:
        raise DataError(f"{folder}: tokenizer of unknown kind {kind!r}; this version knows {', '.join(readers)}")
    tokenizer = readers[kind]()
    if tokenizer.fingerprint != description.get("fingerprint"):
        raise DataError(f"{folder}: the tokenizer's files do not match its fingerprint; they were altered")
    return tokenizer
