"""STORE on the command line and in run files: anything that names a token store, and its tokenizer."""

from pathlib import Path

from fromscratch.data.hub_store import locate_store
from fromscratch.data.store import TokenStore, open_store
from fromscratch.errors import DataError
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, load_gpt2
from fromscratch.tokenizers.loading import load


def open_named_store(word: str, *beside: Path) -> TokenStore:
    """Opens a store by its path (also beside one of some folders) or as ``hf://owner/name``.

    Raises:
        UsageError: a Hub name that is malformed or not there.
        DataError: no store is there, or it is damaged.
    """
    return open_store(locate_store(word, *beside))


def tokenizer_of(store: TokenStore) -> Tokenizer:
    """The tokenizer that made a store: the one inside it, or GPT-2's where another's store carries none.

    Raises:
        DataError: there is none, or the one found is not the one that the store was made with.
    """
    wanted = store.manifest.tokenizer
    if store.tokenizer_folder.is_dir():
        tokenizer = load(store.tokenizer_folder)
    elif wanted.get("kind") == GPT2Tokenizer.kind:
        tokenizer = load_gpt2()
    else:
        raise DataError(f"store {store.path}: its tokenizer ({wanted['name']}) is missing; copy the whole store")
    agrees = all(wanted[key] == getattr(tokenizer, key) for key in ("fingerprint", "vocab_size", "end_of_text"))
    if not agrees:
        raise DataError(
            f"store {store.path}: was made with tokenizer {wanted['name']} ({wanted['vocab_size']} ids), "
            f"but {tokenizer.name} with other ids was found"
        )
    return tokenizer
