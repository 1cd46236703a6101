"""GPT-2's byte-pair encoding: 50,257 ids, encoded by tiktoken.

The vocabulary is OpenAI's and is not part of this package. It is searched for in local files
(``vocab.bpe`` with ``encoder.json``, ``merges.txt`` with ``vocab.json``, or ``tokenizer.json``), in
tiktoken's cache, and on the Hugging Face Hub (``openai-community/gpt2``), in this order.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from fromscratch.errors import DataError, UsageError
from fromscratch.hub.downloads import download_file
from fromscratch.hub.names import HubName
from fromscratch.hub.requests import HubError, is_offline
from fromscratch.sources.texts import Ids
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.byte_level import byte_of_character, bytes_of_token
from fromscratch.tokenizers.huggingface import END_OF_TEXT, TOKENIZER_FILE

GPT2_VOCABULARY_SIZE = 50_257
GPT2_FINGERPRINT = "ca7d60dd4edf647938a5fa75afefe762cbf0560b0fcb7740fe7ba655f9a912a3"  # of OpenAI's files
GPT2_FOLDER_VARIABLE = "FROMSCRATCH_GPT2_VOCABULARY"
HUB_REPOSITORY = "openai-community/gpt2"
MAX_CONNECT_SECONDS = 0.9  # with the start of the program, an answer in under two seconds
LOCAL_FILE_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
TIKTOKEN_URLS = tuple(
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in LOCAL_FILE_PAIRS[0]
)


@dataclass(frozen=True)
class Vocabulary:
    """Ids by token (in the byte-level spelling), and the merges in order of priority."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]


class GPT2Tokenizer(Tokenizer):
    """GPT-2's tokenizer; the end-of-text id is 50256."""

    kind = "gpt2"
    name = "gpt2"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        ranks = {bytes_of_token(token): index for token, index in vocabulary.ids.items() if token != END_OF_TEXT}
        self.end_of_text = vocabulary.ids.get(END_OF_TEXT, len(ranks))
        self.vocab_size = max(*ranks.values(), self.end_of_text) + 1
        special = {END_OF_TEXT: self.end_of_text}  # without any, tiktoken searches for the empty string
        self._engine = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the ids of each document, encoded on ``threads`` threads, by default one per core."""
        clean = [t if t.isascii() else t.encode("utf-8", "replace").decode() for t in documents]
        if self.threads == 1:
            return [self._encode(text) for text in clean]
        with ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as pool:
            return list(pool.map(self._encode, clean))

    def _encode(self, text: str) -> Ids:
        """Encodes without special tokens, and without the list of Python integers of ``encode_ordinary``."""
        return self._engine.encode_to_numpy(text, disallowed_special=())

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes of every token, by id."""
        table = [b""] * self.vocab_size
        for token, index in self._vocabulary.ids.items():
            if index != self.end_of_text:
                table[index] = bytes_of_token(token)
        return table

    def _save_files(self, folder: Path) -> None:
        """Writes a ``tokenizer.json``, which Hugging Face libraries read too."""
        (folder / TOKENIZER_FILE).write_text(self._definition(), "utf-8")

    def fast_definition(self) -> str:
        """Returns a ``tokenizer.json`` without the end-of-text token."""
        return self._definition(with_end_of_text=False)

    def _definition(self, *, with_end_of_text: bool = True) -> str:
        ids = self._vocabulary.ids
        if not with_end_of_text:
            ids = {token: index for token, index in ids.items() if token != END_OF_TEXT}
        model = {"type": "BPE", "vocab": ids, "merges": [list(m) for m in self._vocabulary.merges]}
        special = {"id": self.end_of_text, "content": END_OF_TEXT, "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        content = {
            "version": "1.0",
            "added_tokens": [special | flags] if with_end_of_text else [],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": model,
        }
        return json.dumps(content, ensure_ascii=False)


def load_gpt2(folder: Path | None = None) -> GPT2Tokenizer:
    """Loads GPT-2's tokenizer from a folder or file, by default from the first place that has it.

    Raises:
        UsageError: no place has it (the message says how to get it).
        DataError: the vocabulary that was found is not GPT-2's.
    """
    if folder is not None:
        vocabulary = _from_files(folder)
        if vocabulary is None:
            raise DataError(f"{folder}: holds no GPT-2 vocabulary (encoder.json and vocab.bpe, or tokenizer.json)")
    else:
        vocabulary = _from_variable() or _from_tiktoken_cache() or _from_hub()
    tokenizer = GPT2Tokenizer(vocabulary)
    if tokenizer.fingerprint != GPT2_FINGERPRINT:
        where = folder if folder is not None else "the place where it was found"
        raise DataError(
            f"{where}: a vocabulary of {tokenizer.vocab_size} ids, but not GPT-2's {GPT2_VOCABULARY_SIZE}; "
            "for another model, name its tokenizer.json"
        )
    return tokenizer


def _from_hub() -> Vocabulary:
    """Downloads the vocabulary. Raises UsageError with all ways to get it where that fails."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    is_cached = isinstance(try_to_load_from_cache(HUB_REPOSITORY, TOKENIZER_FILE), str)
    with suppress(UsageError, HubError):
        if is_cached or not is_offline(MAX_CONNECT_SECONDS):
            return _parse_tokenizer_json(download_file(HubName("model", HUB_REPOSITORY), TOKENIZER_FILE))
    raise UsageError(
        f"the GPT-2 vocabulary is not on this machine (no {TOKENIZER_FILE} of {HUB_REPOSITORY} in {HF_HUB_CACHE}), and "
        f"the Hugging Face Hub could not be reached: run 'hf download {HUB_REPOSITORY} {TOKENIZER_FILE}' where there "
        f"is a network, or put encoder.json and vocab.bpe (or {TOKENIZER_FILE}) in a folder and name it as "
        f"--tokenizer FOLDER or in {GPT2_FOLDER_VARIABLE}"
    )


def has_gpt2_files(folder: Path) -> bool:
    """Returns whether a folder holds OpenAI's two files, under either pair of names."""
    return any(all((folder / name).is_file() for name in pair) for pair in LOCAL_FILE_PAIRS)


def _from_files(path: Path) -> Vocabulary | None:
    if path.is_file():
        return _parse_tokenizer_json(path)
    for ids_name, merges_name in LOCAL_FILE_PAIRS:
        if (path / ids_name).is_file() and (path / merges_name).is_file():
            return _parse_pair(path / ids_name, path / merges_name)
    file = path / TOKENIZER_FILE
    return _parse_tokenizer_json(file) if file.is_file() else None


def _from_variable() -> Vocabulary | None:
    named = os.environ.get(GPT2_FOLDER_VARIABLE)
    if not named:
        return None
    vocabulary = _from_files(Path(named))
    if vocabulary is None:
        raise UsageError(f"{GPT2_FOLDER_VARIABLE} = {named}: no GPT-2 vocabulary is there")
    return vocabulary


def _from_tiktoken_cache() -> Vocabulary | None:
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"
    ids_file, merges_file = (cache / sha1(url.encode()).hexdigest() for url in TIKTOKEN_URLS)
    return _parse_pair(ids_file, merges_file) if ids_file.is_file() and merges_file.is_file() else None


def _parse_pair(ids_file: Path, merges_file: Path) -> Vocabulary:
    try:
        ids = json.loads(ids_file.read_text("utf-8"))
        lines = merges_file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{ids_file} and {merges_file}: not GPT-2's vocabulary ({error})") from error
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return _check(ids, merges, ids_file)


def _parse_tokenizer_json(file: Path) -> Vocabulary:
    try:
        content = json.loads(file.read_text("utf-8"))
        model = content["model"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        ids = dict(model["vocab"]) | {t["content"]: t["id"] for t in content.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a byte-pair tokenizer.json ({error!r})") from error
    return _check(ids, merges, file)


def _check(ids: object, merges: list[list[str]], file: Path) -> Vocabulary:
    """Raises DataError where tiktoken cannot encode: another spelling, or ids not in the order of the merges."""
    if not isinstance(ids, dict) or not all(isinstance(index, int) and index >= 0 for index in ids.values()):
        raise DataError(f"{file}: not GPT-2's vocabulary (expected ids by token)")
    alphabet = set(byte_of_character())
    if not alphabet <= ids.keys() or len(set(ids.values())) != len(ids) or not alphabet.issuperset("".join(ids)):
        raise DataError(f"{file}: not a byte-level vocabulary as GPT-2's is")
    if any(len(pair) != 2 or not all(isinstance(part, str) for part in pair) for pair in merges):
        raise DataError(f"{file}: not GPT-2's vocabulary (expected merges of two tokens)")
    merged_ids = [ids.get(left + right, -1) for left, right in merges]
    if -1 in merged_ids or merged_ids != sorted(merged_ids):
        raise DataError(f"{file}: its ids do not follow its merges, so it is not a GPT-2 vocabulary")
    return Vocabulary(ids, [(left, right) for left, right in merges])
