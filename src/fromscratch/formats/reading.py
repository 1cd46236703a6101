"""Detects the format of a file or folder; reads its model and its tokenizer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.formats import book, gpt2, huggingface, llama, model_folder, nanogpt, published
from fromscratch.formats.classifiers import classes_of
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.llama_config import MODEL_TYPES, InexpressibleError
from fromscratch.formats.weights import PICKLE_SUFFIXES, read_pickle, read_weights
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.gpt2 import GPT2_VOCABULARY_SIZE, has_gpt2_files, load_gpt2
from fromscratch.tokenizers.huggingface import TOKENIZER_FILE
from fromscratch.tokenizers.loading import load, open_beside, open_tokenizer

HUB_CONFIG = "config.json"
NANOGPT_FILE = "ckpt.pt"
MAX_PADDING = 1_024  # rows that programs add to a vocabulary, to round its size up
SUPPORTED = (
    "GPT-2, Llama, Mistral, Mixtral, Qwen2 and Qwen3 folders of transformers, published folders, checkpoints of the "
    "book's model, nanoGPT's ckpt.pt, and other causal models and encoders of transformers where that is installed"
)


def read_model(path: Path, *, num_heads: int | None = None) -> ImportedModel:
    """Reads the model in a file or folder of any supported format. Executes no code of it.

    Raises:
        DataError: the file is damaged, or its format is not supported.
        UsageError: a variant that cannot be converted, or a missing option.
    """
    if path.is_dir() and model_folder.is_model_folder(path):
        return model_folder.read_model_folder(path)
    if path.is_dir() and (path / NANOGPT_FILE).is_file():
        return nanogpt.read_nanogpt(path / NANOGPT_FILE)
    if path.is_file() and path.suffix in PICKLE_SUFFIXES and nanogpt.is_nanogpt(read_pickle(path)):
        return nanogpt.read_nanogpt(path)
    raw = read_json_object(path / HUB_CONFIG) if (path / HUB_CONFIG).is_file() else {}
    if (found := _read_transformers(path, raw)) is not None:
        return found
    if any(name.endswith(book.LAYOUT.position_embedding) for name in read_weights(path)):
        return book.read_book(path, num_heads=num_heads)
    if "auto_map" in raw:
        raise UsageError(
            f"{path}: needs code of its own (auto_map in {HUB_CONFIG}), which is never executed; if you trust it, "
            f"load it with transformers' trust_remote_code=True. Supported: {SUPPORTED}"
        )
    kind = f" (model_type {raw['model_type']!r})" if "model_type" in raw else ""
    raise DataError(f"{path}: the format of the weights is not supported{kind}; supported are {SUPPORTED}")


def _read_transformers(path: Path, raw: dict[str, Any]) -> ImportedModel | None:
    """The model of a folder of transformers; None if it is of no architecture that is known."""
    classes = classes_of(raw, path / HUB_CONFIG)
    if raw.get("model_type") == gpt2.MODEL_TYPE:
        return gpt2.read_gpt2(path, classes=classes)
    if raw.get("model_type") == published.MODEL_TYPE and published.TABLE_KEY in raw:
        return published.read_published(path, classes=classes)
    if str(raw.get("model_type")) in MODEL_TYPES and "auto_map" not in raw:
        return _read_llama(path, raw, classes)
    if huggingface.is_encoder_model(raw):
        return huggingface.read_encoder(path, raw, classes=classes)
    return huggingface.read_huggingface(path, raw, classes=classes) if huggingface.is_causal_model(raw) else None


def _read_llama(path: Path, raw: dict[str, Any], classes: tuple[str, ...]) -> ImportedModel:
    """As a model of ours, or with its reason as one of transformers."""
    try:
        return llama.read_llama(path, raw, classes=classes)
    except InexpressibleError as error:
        if not huggingface.is_causal_model(raw):
            raise UsageError(
                f"{error}; where transformers is installed (the extra hf), such a model is read as kind 'huggingface'"
            ) from None
        found = huggingface.read_huggingface(path, raw, classes=classes)
        return replace(found, notes=[f"read as a model of kind 'huggingface', because of {error}", *found.notes])


def tokenizer_of(path: Path, *, vocab_size: int, name: str | None = None) -> Tokenizer:
    """Opens a model's tokenizer: the named one, the one beside the weights, or GPT-2's if the size matches.

    Raises:
        UsageError: there is no tokenizer, or it has more ids than the model.
    """
    tokenizer = open_tokenizer(name) if name else _tokenizer_beside(path if path.is_dir() else path.parent, vocab_size)
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(
            f"{path}: the model has {vocab_size} ids, but the tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size}; give the model's tokenizer with --tokenizer"
        )
    return tokenizer


def _tokenizer_beside(folder: Path, vocab_size: int) -> Tokenizer:
    if (folder / model_folder.TOKENIZER_FOLDER).is_dir() and model_folder.is_model_folder(folder):
        return load(folder / model_folder.TOKENIZER_FOLDER)
    if (folder / TOKENIZER_FILE).is_file() or has_gpt2_files(folder):
        return open_beside(folder)
    if GPT2_VOCABULARY_SIZE <= vocab_size < GPT2_VOCABULARY_SIZE + MAX_PADDING:
        return load_gpt2()
    raise UsageError(
        f"{folder}: the folder has no tokenizer ({TOKENIZER_FILE}), and GPT-2's does not have {vocab_size} ids; "
        "give one with --tokenizer gpt2|bytes|PATH when you import it (PATH may be a nanoGPT data set's meta.pkl)"
    )
