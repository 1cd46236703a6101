"""Any tokenizer that a ``tokenizer.json`` describes, and byte-level BPE trained on a corpus.

Both use the ``tokenizers`` library, which encodes a batch of documents on all cores.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import tokenizers as hf
from fromscratch.config.problems import shown
from fromscratch.errors import DataError, UsageError
from fromscratch.tokenizers.base import Ids, Tokenizer
from fromscratch.tokenizers.byte_level import bytes_of_token

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
MIN_TRAINED_IDS = 258
MAX_TRAINED_IDS = 1 << 20  # several times the largest published vocabulary; the trainer allocates for all
BYTE_FALLBACK = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
SENTENCEPIECE_SPACE = "\u2581"


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizer.json``. Special tokens in a document are encoded as ordinary text."""

    kind = "huggingface"

    def __init__(self, engine: hf.Tokenizer, *, name: str) -> None:
        self.name = name
        self._engine = engine
        self._engine.encode_special_tokens = True
        self._engine.no_truncation()
        self._engine.no_padding()
        vocabulary = engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        found = next((vocabulary[token] for token in END_OF_TEXT_NAMES if token in vocabulary), None)
        if found is None:
            raise DataError(
                f"tokenizer {name}: has no end-of-text token (looked for {', '.join(END_OF_TEXT_NAMES)}); "
                "add one to its added_tokens"
            )
        self.end_of_text = found
        self._encode_end_of_text_as_text()

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


def load_huggingface(path: Path, *, name: str | None = None) -> HuggingFaceTokenizer:
    """Reads a ``tokenizer.json``, or the one in a folder. Raises DataError."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: holds no tokenizer ({TOKENIZER_FILE}, or encoder.json with vocab.bpe)")
    try:
        engine = hf.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception for everything
        raise DataError(f"{file}: not a tokenizer.json that the tokenizers library reads ({error})") from error
    return HuggingFaceTokenizer(engine, name=name or path.resolve().name)


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
