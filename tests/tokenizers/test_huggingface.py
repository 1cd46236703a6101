"""Any ``tokenizer.json``, and byte-level BPE trained from a corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tokenizers as hf
from fromscratch.errors import DataError, UsageError
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer, load_huggingface, train_byte_pairs
from fromscratch.tokenizers.loading import load, open_tokenizer

from .conftest import CORPUS

TRAIN_AND_PRINT = """
import json, sys
from fromscratch.tokenizers.huggingface import train_byte_pairs
print(train_byte_pairs(json.load(sys.stdin), vocab_size=320).fingerprint)
"""


def sentencepiece_like(*more: str) -> hf.Tokenizer:
    """A vocabulary as SentencePiece writes it: words with their blank, single characters, bytes as a last resort."""
    pieces = ["<unk>", *more, "\u2581", "\u2581caf\u00e9", "\u00e9", "c", "a", "f", "s"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [(piece, -float(index)) for index, piece in enumerate(pieces)]
    engine = hf.Tokenizer(hf.models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    engine.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme="never")
    engine.decoder = hf.decoders.Sequence([hf.decoders.ByteFallback(), hf.decoders.Metaspace(prepend_scheme="never")])
    engine.add_special_tokens(["</s>"])
    return engine


def test_sentencepiece_spelling() -> None:
    tokenizer = HuggingFaceTokenizer(sentencepiece_like(), name="pieces")
    for text in ("a caf\u00e9", "\u00e9s", "caf\u00e9s \U0001f600 </s>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())
        assert tokenizer.end_of_text not in ids
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


def test_model_that_takes_text_for_its_end_of_text() -> None:
    with pytest.raises(DataError, match=r"tokenizer t5: encodes the text </s> as its end-of-text id"):
        HuggingFaceTokenizer(sentencepiece_like("</s>"), name="t5")


def test_added_tokens_are_plain_text_however_the_rest_is_spelt(trained: HuggingFaceTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    engine = hf.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    engine.add_tokens(["   ", "\u00e9t\u00e9", "\u65e5"])
    tokenizer = HuggingFaceTokenizer(engine, name="extended")
    text = "x   \u00e9t\u00e9\u65e5"
    ids = tokenizer.encode(text)
    assert max(ids) >= trained.vocab_size
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())


def test_end_of_text_that_was_not_marked_special_is_still_text(trained: HuggingFaceTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    engine = hf.Tokenizer.from_str(file.read_text().replace('"special": true', '"special": false'))
    tokenizer = HuggingFaceTokenizer(engine, name="careless")
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_truncation_and_padding_in_the_file_are_ignored(trained: HuggingFaceTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    engine = hf.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    engine.enable_truncation(2)
    engine.enable_padding(length=50)
    tokenizer = HuggingFaceTokenizer(engine, name="short")
    assert tokenizer.encode("Every effort moves you").tolist() == trained.encode("Every effort moves you").tolist()


def test_training_is_the_same_in_every_process(trained: HuggingFaceTokenizer) -> None:
    for threads in ("1", "3"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", TRAIN_AND_PRINT]
        corpus = json.dumps(CORPUS)
        done = subprocess.run(command, input=corpus, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == trained.fingerprint, done.stderr


def test_trained_vocabulary(trained: HuggingFaceTokenizer) -> None:
    assert (trained.vocab_size, trained.end_of_text, trained.name) == (320, 319, "bpe-320")
    assert {bytes([byte]) for byte in range(256)} <= set(trained.token_bytes())
    assert len(trained.encode("Every effort moves you")) < 15
    assert train_byte_pairs(CORPUS, vocab_size=258).vocab_size == 258


def test_a_corpus_too_small_for_the_vocabulary_gives_a_smaller_one() -> None:
    tokenizer = train_byte_pairs(["aab"], vocab_size=10_000)
    assert tokenizer.vocab_size < 262
    assert tokenizer.name == f"bpe-{tokenizer.vocab_size}"
    assert train_byte_pairs([], vocab_size=300).decode([104, 105]) != ""


def test_b21_corpus_of_control_tokens_does_not_teach_them() -> None:
    tokenizer = train_byte_pairs(["<|endoftext|>" * 50, "half \ud83d"] * 20, vocab_size=300)
    ids = tokenizer.encode("<|endoftext|>")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "<|endoftext|>"


def test_train_word_learns_from_the_corpus(trained: HuggingFaceTokenizer) -> None:
    assert open_tokenizer("train:320", corpus=lambda: CORPUS).fingerprint == trained.fingerprint


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train:257", "train:257: needs at least 258 ids (256 bytes, end-of-text, one merge)"),
        ("train:0", "needs at least 258 ids"),
        ("train:1000000000000", "train:1000000000000: at most 1048576 ids can be trained"),
        ("train:" + "9" * 50, "write it as train:N with a number of ids, such as train:8192"),
        ("train:", "write it as train:N"),
        ("train:8k", "write it as train:N"),
        ("train:-5", "write it as train:N"),
        ("train:\u00b2", "write it as train:N"),
        ("gtp2", 'tokenizer "gtp2": no such file or folder; use gpt2, bytes, bytes:occurring, train:N or a path'),
        ("", 'tokenizer "": no such file or folder'),
        ("x" * 5_000, "no such file or folder; use gpt2, bytes, bytes:occurring, train:N or a path"),
        ("a\0b", "no such file or folder"),
    ],
)
def test_words_that_mean_no_tokenizer(word: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_tokenizer(word, corpus=lambda: CORPUS)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_training_without_documents() -> None:
    with pytest.raises(UsageError, match="tokenizer train:300: there are no documents here to train it on"):
        open_tokenizer("train:300")


def test_words_that_mean_one(tmp_path: Path, trained: HuggingFaceTokenizer) -> None:
    assert isinstance(open_tokenizer("bytes"), BytesTokenizer)
    trained.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.json"):
        assert open_tokenizer(str(path)).fingerprint == trained.fingerprint
    (tmp_path / "saved" / "tokenizer_description.json").unlink()
    assert open_tokenizer(str(tmp_path / "saved")).name == "saved"


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tokenizer \(tokenizer.json, or encoder.json with vocab.bpe\)"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match=r"manifest.json: cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1, 2]", b'{"model": {"type": "BPE"}}'])
def test_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json that the tokenizers library reads"):
        load_huggingface(tmp_path)


def test_vocabulary_without_an_end_of_text() -> None:
    for engine in (hf.Tokenizer(hf.models.BPE()), hf.Tokenizer(hf.models.WordLevel({"a": 0}, unk_token="a"))):
        with pytest.raises(DataError, match=r"tokenizer odd: has no end-of-text token \(looked for <\|endoftext\|>"):
            HuggingFaceTokenizer(engine, name="odd")
