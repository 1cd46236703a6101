"""STORE on the command line and in run files: opens a token store and its tokenizer."""

from pathlib import Path

from fromscratch.config.loading import read_run_config
from fromscratch.data.hub_store import locate_store
from fromscratch.data.store import TokenStore, open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.hub.names import has_hub_prefix
from fromscratch.runs.directory import STORES
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, load_gpt2
from fromscratch.tokenizers.loading import load


def open_named_store(name: str, *folders: Path) -> TokenStore:
    """Opens a store by its path, also relative to one of ``folders``, or as ``hf://owner/name``.

    Raises:
        UsageError: a Hub name is malformed or does not exist.
        DataError: the store does not exist or is damaged.
    """
    return open_store(locate_store(name, *folders))


def held_out_store_of(model: LoadedModel) -> str:
    """Returns the name of the store that a run evaluates on.

    Raises:
        UsageError: the model has no run; or nobody knows where its store is on this machine.
    """
    if model.run is None:
        raise UsageError(f"model {model.source}: has no run, so --store must name the store to evaluate on")
    config = read_run_config(model.run.config)
    if config.tune and not config.eval.store:
        raise UsageError(f"model {model.source}: was tuned on records, so --store must name the store to evaluate on")
    key, name = ("eval.store", config.eval.store) if config.eval.store else ("data.store", config.data.store)
    recorded = read_json_object(model.run.machine).get(STORES) if model.run.machine.is_file() else None
    known = recorded.get(key) if isinstance(recorded, dict) else None
    folders = [Path(), *list(model.run.path.resolve().parents)[:2]]
    for candidate in filter(None, (known, name)):
        if has_hub_prefix(candidate) or any((folder / candidate).is_dir() for folder in folders):
            return candidate if has_hub_prefix(candidate) else str(locate_store(candidate, *folders))
    raise UsageError(
        f"model {model.source}: its store {known or name} is not on this machine; name a store with --store"
    )


def tokenizer_of(store: TokenStore) -> Tokenizer:
    """Opens the tokenizer of a store: the one in its folder; for stores without one, GPT-2's.

    Raises:
        DataError: the tokenizer is missing, or the store was made with another one.
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
