"""Which tokenizer a word means: ``gpt2``, ``bytes``, ``train:N``, or a path."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fromscratch.config.problems import shown
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, verify_folder
from fromscratch.tokenizers.base import DESCRIPTION_FILE, Tokenizer
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, has_gpt2_files, load_gpt2
from fromscratch.tokenizers.huggingface import TOKENIZER_FILE, HuggingFaceTokenizer, load_huggingface, train_byte_pairs

TRAIN_PREFIX = "train:"
MOST_DIGITS = 20


def open_tokenizer(word: str, *, corpus: Callable[[], Iterable[str]] | None = None) -> Tokenizer:
    """The tokenizer that a command line names.

    Args:
        word: ``gpt2``, ``bytes``, ``train:N``, a folder or a ``tokenizer.json``.
        corpus: opens the documents that ``train:N`` learns from.

    Raises:
        UsageError: the word means nothing, or ``train:N`` has no corpus or no sensible N.
        DataError: the files it names cannot be used.
    """
    if word == "bytes":
        return BytesTokenizer()
    if word == "gpt2":
        return load_gpt2()
    if word.startswith(TRAIN_PREFIX):
        size = word.removeprefix(TRAIN_PREFIX)
        if not (size.isascii() and size.isdecimal() and len(size) < MOST_DIGITS):
            raise UsageError(f"tokenizer {shown(word)}: write it as train:N with a number of ids, such as train:8192")
        if corpus is None:
            raise UsageError(f"tokenizer {word}: there are no documents here to learn it from")
        return train_byte_pairs(corpus(), vocab_size=int(size))
    return _open_path(word)


def _open_path(word: str) -> Tokenizer:
    path = Path(word).expanduser()
    try:
        exists = bool(word) and path.exists()
    except OSError:  # a name too long for any file
        exists = False
    if not exists:
        raise UsageError(f"tokenizer {shown(word)}: no such file or folder; use gpt2, bytes, train:N or a path")
    if (path / DESCRIPTION_FILE).is_file():
        return load(path)
    only_gpt2_files = has_gpt2_files(path) and not (path / TOKENIZER_FILE).is_file()
    return load_gpt2(path) if only_gpt2_files else load_huggingface(path)


def load(folder: Path) -> Tokenizer:
    """Reads back what ``Tokenizer.save`` wrote. Raises DataError when it is damaged."""
    verify_folder(folder)
    description = read_json_object(folder / DESCRIPTION_FILE)
    readers: dict[str, Callable[[], Tokenizer]] = {
        BytesTokenizer.kind: BytesTokenizer,
        GPT2Tokenizer.kind: lambda: load_gpt2(folder),
        HuggingFaceTokenizer.kind: lambda: load_huggingface(folder, name=str(description.get("name"))),
    }
    kind = description.get("kind")
    if kind not in readers:
        raise DataError(f"{folder}: tokenizer of unknown kind {kind!r}; this version knows {', '.join(readers)}")
    tokenizer = readers[kind]()
    if tokenizer.fingerprint != description.get("fingerprint"):
        raise DataError(f"{folder}: the tokenizer's files do not match its fingerprint; they were altered")
    return tokenizer
