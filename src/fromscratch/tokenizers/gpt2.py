"""GPT-2's byte-pair encoding: 50,257 ids, run by tiktoken's engine.

The vocabulary is OpenAI's and is not part of this package. It is looked for in local files
(``vocab.bpe`` with ``encoder.json``, ``merges.txt`` with ``vocab.json``, or ``tokenizer.json``), in
tiktoken's own cache, and on the Hugging Face Hub (``openai-community/gpt2``), in this order.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from fromscratch.errors import DataError, UsageError
from fromscratch.tokenizers.base import Ids, Tokenizer
from fromscratch.tokenizers.byte_level import byte_of_character, bytes_of_token
from fromscratch.tokenizers.huggingface import END_OF_TEXT, TOKENIZER_FILE

GPT2_VOCABULARY_SIZE = 50_257
GPT2_FINGERPRINT = "ca7d60dd4edf647938a5fa75afefe762cbf0560b0fcb7740fe7ba655f9a912a3"  # of OpenAI's files
GPT2_FOLDER_VARIABLE = "FROMSCRATCH_GPT2_VOCABULARY"
HUB_REPOSITORY = "openai-community/gpt2"
LOCAL_FILE_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
TIKTOKEN_URLS = tuple(
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in LOCAL_FILE_PAIRS[0]
)


@dataclass(frozen=True)
class Vocabulary:
    """Token strings (in the byte-level spelling) by id, and the merges in order of priority."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]


class GPT2Tokenizer(Tokenizer):
    """GPT-2's tokenizer; the id 50256 ends a document."""

    kind = "gpt2"
    name = "gpt2"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        ranks = {bytes_of_token(token): index for token, index in vocabulary.ids.items() if token != END_OF_TEXT}
        self.end_of_text = vocabulary.ids.get(END_OF_TEXT, len(ranks))
        self.vocab_size = max(*ranks.values(), self.end_of_text) + 1
        special = {END_OF_TEXT: self.end_of_text}  # with none at all, tiktoken searches for the empty string
        self._engine = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Ids of each document, on as many threads as there are cores, or as ``threads`` says."""
        clean = [t if t.isascii() else t.encode("utf-8", "replace").decode() for t in documents]
        if self.threads == 1:
            return [self._encode(text) for text in clean]
        with ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as pool:
            return list(pool.map(self._encode, clean))

    def _encode(self, text: str) -> Ids:
        """Without the list of Python integers that ``encode_ordinary`` makes; no special token is allowed."""
        return self._engine.encode_to_numpy(text, disallowed_special=())

    def token_bytes(self) -> list[bytes]:
        """The bytes of every merge, by id."""
        pieces = [b""] * self.vocab_size
        for token, index in self._vocabulary.ids.items():
            if index != self.end_of_text:
                pieces[index] = bytes_of_token(token)
        return pieces

    def _save_files(self, folder: Path) -> None:
        """As a ``tokenizer.json``, which every Hugging Face library reads too."""
        model = {"type": "BPE", "vocab": self._vocabulary.ids, "merges": [list(m) for m in self._vocabulary.merges]}
        special = {"id": self.end_of_text, "content": END_OF_TEXT, "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        whole = {
            "version": "1.0",
            "added_tokens": [special | flags],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": model,
        }
        (folder / TOKENIZER_FILE).write_text(json.dumps(whole, ensure_ascii=False), "utf-8")


def load_gpt2(folder: Path | None = None) -> GPT2Tokenizer:
    """GPT-2's tokenizer from a folder or file given, or from the first place that has it.

    Raises:
        UsageError: nobody has it (the message says how to get it).
        DataError: what was found is not GPT-2's.
    """
    vocabulary = (
        _from_files(folder) if folder is not None else _from_variable() or _from_tiktoken_cache() or _from_hub()
    )
    if vocabulary is None and folder is not None:
        raise DataError(f"{folder}: holds no GPT-2 vocabulary (encoder.json and vocab.bpe, or tokenizer.json)")
    if vocabulary is None:
        raise UsageError(_how_to_get_it())
    tokenizer = GPT2Tokenizer(vocabulary)
    if tokenizer.fingerprint != GPT2_FINGERPRINT:
        where = folder if folder is not None else "the place where it was found"
        raise DataError(
            f"{where}: a vocabulary of {tokenizer.vocab_size} ids, but not GPT-2's {GPT2_VOCABULARY_SIZE}; "
            "for another model, name its tokenizer.json"
        )
    return tokenizer


def _how_to_get_it() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (
        f"the GPT-2 vocabulary is not on this machine (no {TOKENIZER_FILE} of {HUB_REPOSITORY} in {HF_HUB_CACHE}), and "
        f"the Hugging Face Hub could not be reached: run 'hf download {HUB_REPOSITORY} {TOKENIZER_FILE}' where there "
        f"is a network, or put encoder.json and vocab.bpe (or {TOKENIZER_FILE}) in a folder and name it as "
        f"--tokenizer FOLDER or in {GPT2_FOLDER_VARIABLE}"
    )


def has_gpt2_files(folder: Path) -> bool:
    """Whether a folder holds OpenAI's two files, under either pair of names."""
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


def _from_hub() -> Vocabulary | None:
    from huggingface_hub import hf_hub_download

    try:
        return _parse_tokenizer_json(Path(hf_hub_download(HUB_REPOSITORY, TOKENIZER_FILE)))
    except DataError:
        raise
    except Exception:  # offline, refused, not found: many classes, one meaning
        return None


def _parse_pair(ids_file: Path, merges_file: Path) -> Vocabulary:
    try:
        ids = json.loads(ids_file.read_text("utf-8"))
        lines = merges_file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{ids_file} and {merges_file}: not GPT-2's vocabulary ({error})") from error
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return _checked(ids, merges, ids_file)


def _parse_tokenizer_json(file: Path) -> Vocabulary:
    try:
        whole = json.loads(file.read_text("utf-8"))
        model = whole["model"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        ids = dict(model["vocab"]) | {t["content"]: t["id"] for t in whole.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a byte-pair tokenizer.json ({error!r})") from error
    return _checked(ids, merges, file)


def _checked(ids: object, merges: list[list[str]], file: Path) -> Vocabulary:
    """Refuses what tiktoken's engine cannot run: spelt otherwise, or with ids not in the order of the merges."""
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
