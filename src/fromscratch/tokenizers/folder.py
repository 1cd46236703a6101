"""What a folder of another program says about its tokenizer: the end of texts, and added tokens."""

from pathlib import Path
from typing import Any

import tokenizers as hf
from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.tokenizers.gpt2 import LOCAL_FILE_PAIRS, has_gpt2_files
from fromscratch.tokenizers.huggingface import END_OF_TEXT, TOKENIZER_FILE, HuggingFaceTokenizer, load_engine

ADDED_TOKENS_FILE = "added_tokens.json"
TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
ID_FILES = ("config.json", "generation_config.json")


def open_folder(folder: Path) -> HuggingFaceTokenizer:
    """Reads ``tokenizer.json``, or GPT-2's files with ``added_tokens.json``. Raises DataError."""
    engine = _with_added_tokens(folder) if needs_added_tokens(folder) else load_engine(folder / TOKENIZER_FILE)
    return HuggingFaceTokenizer(engine, name=folder.resolve().name, end_of_text=end_of_text_in(folder, engine))


def needs_added_tokens(folder: Path) -> bool:
    """Returns whether a folder has GPT-2's two files and tokens beside them, and no ``tokenizer.json``."""
    has_added = (folder / ADDED_TOKENS_FILE).is_file() and not (folder / TOKENIZER_FILE).is_file()
    return has_added and has_gpt2_files(folder)


def end_of_text_in(folder: Path, engine: hf.Tokenizer) -> int | None:
    """Returns the end-of-text id that the folder's settings name; None where they name none.

    Raises:
        DataError: they name a token or an id that the vocabulary lacks.
    """
    for name in TOKEN_FILES:
        token = _setting(folder / name, "eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            index = engine.token_to_id(token)
            if index is None:
                raise DataError(f"{folder / name}: its eos_token {token!r} is not in the vocabulary")
            return int(index)
    for name in ID_FILES:
        index = _setting(folder / name, "eos_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and not isinstance(index, bool):
            if not 0 <= index < 2**32 or engine.id_to_token(index) is None:
                raise DataError(f"{folder / name}: its eos_token_id {index} is not in the vocabulary")
            return index
    return None


def _setting(file: Path, key: str) -> Any:
    return read_json_object(file).get(key) if file.is_file() else None


def _with_added_tokens(folder: Path) -> hf.Tokenizer:
    """Builds GPT-2's tokenizer from its two files, with the tokens that ``added_tokens.json`` adds."""
    pairs = ([folder / name for name in pair] for pair in LOCAL_FILE_PAIRS)
    ids_file, merges_file = next(pair for pair in pairs if all(file.is_file() for file in pair))
    try:
        engine = hf.Tokenizer(hf.models.BPE.from_file(str(ids_file), str(merges_file)))
    except Exception as error:  # the library raises a bare Exception for everything
        raise DataError(f"{ids_file} and {merges_file}: not a byte-pair vocabulary ({error})") from error
    engine.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = hf.decoders.ByteLevel()
    file = folder / ADDED_TOKENS_FILE
    added = read_json_object(file)
    if not all(isinstance(index, int) for index in added.values()):
        raise DataError(f"{file}: expected an id for each token")
    for token, index in sorted(added.items(), key=lambda item: item[1]):
        engine.add_special_tokens([hf.AddedToken(token, special=True, normalized=False)])
        if engine.token_to_id(token) != index:
            raise DataError(
                f"{file}: gives {token!r} the id {index}, but the next free id is {engine.token_to_id(token)}"
            )
    if END_OF_TEXT in engine.get_vocab():
        engine.add_special_tokens([hf.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return engine
