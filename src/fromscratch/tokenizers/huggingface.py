"""Any tokenizer that a ``tokenizer.json`` describes, and byte-level BPE trained on a corpus.

Both use the ``tokenizers`` library, which encodes a batch of documents on all cores.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokenizers as hf
from fromscratch.config.problems import shown
from fromscratch.errors import DataError, UsageError
from fromscratch.sources.texts import Ids
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.byte_level import byte_of_character, bytes_of_token

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
MIN_TRAINED_IDS = 258
MAX_TRAINED_IDS = 1 << 20  # several times the largest published vocabulary; the trainer allocates for all
BYTE_FALLBACK = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
SENTENCEPIECE_SPACE = "\u2581"
KEEPING = ("ByteLevel", "Split", "Digits", "Punctuation")
"""Steps before the model that drop nothing, unless their behaviour is to remove."""
STREAM_CONTEXT = 8  # tokens; no decoder looks further back


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizer.json``. Special tokens in a document are encoded as ordinary text."""

    kind = "huggingface"

    def __init__(self, engine: hf.Tokenizer, *, name: str, end_of_text: int | None = None) -> None:
        """Takes the end-of-text id that the tokenizer's files name; without one, looks for its usual names."""
        self.name = name
        self._engine = engine
        self._engine.encode_special_tokens = True
        self._engine.no_truncation()
        self._engine.no_padding()
        vocabulary = engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        found = next((vocabulary[token] for token in END_OF_TEXT_NAMES if token in vocabulary), end_of_text)
        if found is None:
            raise DataError(
                f"tokenizer {name}: has no end-of-text token (looked for {', '.join(END_OF_TEXT_NAMES)}); "
                "add one to its added_tokens, or name it as eos_token in tokenizer_config.json"
            )
        self.end_of_text = found if end_of_text is None else end_of_text
        if engine.id_to_token(self.end_of_text) is None:
            raise DataError(f"tokenizer {name}: its end-of-text id {self.end_of_text} is not in its vocabulary")
        self._encode_end_of_text_as_text()
        self.is_lossless = gives_text_back(engine)

    def _encode_end_of_text_as_text(self) -> None:
        """Makes the library encode text that spells the end-of-text token as ordinary text.

        Raises:
            DataError: the model itself (a Unigram vocabulary, for example) encodes it as the token.
        """
        spelling = str(self._engine.id_to_token(self.end_of_text))
        added = self._engine.get_added_tokens_decoder().get(self.end_of_text)
        if added is not None and not added.special:
            self._engine.add_special_tokens([hf.AddedToken(spelling, special=True, normalized=False)])
        if self.end_of_text in self.encode(spelling):
            raise DataError(
                f"tokenizer {self.name}: encodes the text {spelling} as its end-of-text id, so a document could end "
                "in its middle; use another tokenizer"
            )

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the ids of each document, encoded in parallel by the library."""
        clean = [text.encode("utf-8", "replace").decode() for text in documents]
        encodings = self._engine.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def frame(self) -> tuple[list[int], list[int]]:
        """Returns the special tokens that the tokenizer's post-processor puts before and after a text."""
        plain, framed = (self._engine.encode("a", add_special_tokens=adds).ids for adds in (False, True))
        begin = next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
        return framed[:begin], framed[begin + len(plain) :]

    def fast_definition(self) -> str | None:
        """Returns the ``tokenizer.json`` without special tokens and what follows the model; None if it alters texts."""
        whole = json.loads(self._engine.to_str())
        if not self.is_lossless or whole["model"].get("dropout"):
            return None
        whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["special"]]
        return json.dumps(whole | {"post_processor": None}, ensure_ascii=False)

    def decode_bytes(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        """Returns the text of the ids as the library decodes it: tokens may depend on their neighbours."""
        if self.is_lossless:
            return super().decode_bytes(ids)
        return self._decode(ids).encode()

    def decode_documents(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """Returns the text of each document's ids, decoded in parallel by the library."""
        if self.is_lossless:
            return super().decode_documents(documents)
        return list(self._engine.decode_batch([self._without_end(ids) for ids in documents], skip_special_tokens=True))

    def decode_stream(self, prompt: Sequence[int] = ()) -> Callable[[int], bytes]:
        """Returns a function that takes one id after another, and returns the bytes that it adds to the text."""
        if self.is_lossless:
            return super().decode_stream(prompt)
        stream: Any = hf.decoders.DecodeStream(skip_special_tokens=True)

        def step(token: int) -> bytes:
            text = "" if token == self.end_of_text else stream.step(self._engine, int(token))
            return (text or "").encode()

        for token in prompt[-STREAM_CONTEXT:]:
            step(token)
        return step

    def text_bytes(self, ids: NDArray[Any]) -> int:
        """Returns the bytes of text of the ids, in order; documents end with the end-of-text id."""
        if self.is_lossless:
            return super().text_bytes(ids)
        documents = np.split(ids, np.flatnonzero(ids == self.end_of_text) + 1)
        return sum(len(text.encode()) for text in self.decode_documents(documents))

    def _decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        return str(self._engine.decode(self._without_end(ids), skip_special_tokens=True))

    def _without_end(self, ids: Sequence[int] | NDArray[Any]) -> list[int]:
        return [int(token) for token in ids if token != self.end_of_text]

    def token_bytes(self) -> list[bytes]:
        """Returns the bytes by id, for byte-level vocabularies and those of SentencePiece."""
        added = self._engine.get_added_tokens_decoder()
        to_bytes = _bytes_of_printable if "ByteLevel" in repr(self._engine.decoder) else _bytes_of_sentencepiece
        table = [b""] * self.vocab_size
        for token, index in self._engine.get_vocab(with_added_tokens=True).items():
            if index in added:  # added tokens are plain text, whatever the spelling of the vocabulary
                table[index] = b"" if added[index].special else token.encode()
            elif index != self.end_of_text:
                table[index] = to_bytes(token)
        return table

    def _save_files(self, folder: Path) -> None:
        self._engine.save(str(folder / TOKENIZER_FILE))


def _bytes_of_printable(token: str) -> bytes:
    try:
        return bytes_of_token(token)
    except KeyError:
        return token.encode()


def _bytes_of_sentencepiece(token: str) -> bytes:
    fallback = BYTE_FALLBACK.match(token)
    return bytes([int(fallback.group(1), 16)]) if fallback else token.replace(SENTENCEPIECE_SPACE, " ").encode()


def gives_text_back(engine: hf.Tokenizer) -> bool:
    """Returns whether a tokenizer is byte-level BPE that changes, drops and adds nothing."""
    whole = json.loads(engine.to_str())
    model, pre = whole["model"], whole.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    return (
        whole.get("normalizer") is None
        and (whole.get("decoder") or {}).get("type") == "ByteLevel"
        and model.get("type") == "BPE"
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(step.get("type") in KEEPING and not step.get("add_prefix_space") for step in steps)
        and all(step.get("behavior") != "Removed" for step in steps)
        and all(character in model["vocab"] for character in byte_of_character())
    )


def load_huggingface(path: Path, *, name: str | None = None, end_of_text: int | None = None) -> HuggingFaceTokenizer:
    """Reads a ``tokenizer.json``, or the one in a folder. Raises DataError."""
    engine = load_engine(path / TOKENIZER_FILE if path.is_dir() else path)
    return HuggingFaceTokenizer(engine, name=name or path.resolve().name, end_of_text=end_of_text)


def load_engine(file: Path) -> hf.Tokenizer:
    """Reads a ``tokenizer.json``. Raises DataError."""
    if not file.is_file():
        raise DataError(f"{file.parent}: holds no tokenizer ({file.name}, or encoder.json with vocab.bpe)")
    try:
        return hf.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception for everything
        raise DataError(f"{file}: not a tokenizer.json that the tokenizers library reads ({error})") from error


def train_byte_pairs(documents: Iterable[str], *, vocab_size: int) -> HuggingFaceTokenizer:
    """Trains a byte-level BPE tokenizer; its last id is end-of-text.

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; bytes
    and word pattern are GPT-2's. The same documents give the same vocabulary.

    Raises:
        UsageError: fewer than 258 ids (256 bytes, end-of-text, one merge), or more than 2**20.
    """
    if vocab_size < MIN_TRAINED_IDS:
        raise UsageError(
            f"tokenizer train:{vocab_size}: needs at least {MIN_TRAINED_IDS} ids (256 bytes, end-of-text, one merge)"
        )
    if vocab_size > MAX_TRAINED_IDS:
        raise UsageError(f"tokenizer train:{shown(vocab_size)}: at most {MAX_TRAINED_IDS} ids can be trained")
    engine = hf.Tokenizer(hf.models.BPE())
    engine.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator((text.encode("utf-8", "replace").decode() for text in documents), trainer)
    engine.add_special_tokens([hf.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return HuggingFaceTokenizer(engine, name=f"bpe-{engine.get_vocab_size()}")
