"""A vocabulary of only the bytes that occur in a corpus."""

from pathlib import Path

import numpy as np
import pytest

from fromscratch.errors import DataError, UsageError
from fromscratch.formats.preparation import prepare
from fromscratch.formats.stores import tokenizer_of
from fromscratch.publishing.tokenizer_files import write_tokenizer
from fromscratch.sources.texts import Texts
from fromscratch.tokenizers.bytes import BYTES_FILE, BytesTokenizer, OccurringBytesTokenizer, occurring_bytes
from fromscratch.tokenizers.loading import load, open_tokenizer

ALL = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), occurring_bytes([Texts(ALL, np.array([0, 256]))])])
def test_b43_all_256_bytes_come_back(tokenizer: BytesTokenizer | OccurringBytesTokenizer) -> None:
    shuffled = np.random.default_rng(1).permutation(ALL)
    ids, offsets = tokenizer.encode_texts(Texts(shuffled, np.array([0, 100, 256])))
    assert tokenizer.vocab_size == 257 and offsets.tolist() == [0, 100, 256]
    assert tokenizer.decode_bytes(ids) == shuffled.tobytes()
    assert tokenizer.decode(tokenizer.encode_texts(Texts(ALL[128:], np.array([0, 128])))[0]) == "\ufffd" * 128


def test_ids_are_the_bytes_of_the_corpus_in_order_and_end_of_text() -> None:
    tokenizer = occurring_bytes([Texts.of(["cab", ""]), Texts.of(["\u00e9a"])])
    assert tokenizer.token_bytes() == [b"a", b"b", b"c", b"\xa9", b"\xc3", b""]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (6, 5)
    assert [ids.tolist() for ids in tokenizer.encode_documents(["abc", "", "\u00e9"])] == [[0, 1, 2], [], [4, 3]]


def test_a_byte_that_does_not_occur_is_told() -> None:
    tokenizer = occurring_bytes([Texts.of(["abc"])])
    with pytest.raises(UsageError, match=r"holds the byte 0x7a \(in 'abzca'\), which is none of the 3 bytes"):
        tokenizer.encode("abzca")
    with pytest.raises(DataError, match="hold no text"):
        occurring_bytes([Texts.of([""])])
    with pytest.raises(UsageError, match="bytes:occurring: there are no documents here"):
        open_tokenizer("bytes:occurring")


def test_a_store_keeps_it_and_held_out_text_counts_too(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n\n" * 200 + "zephyr\n")  # the last word is in the tail that is held out
    store = prepare(f"whole:{text}", tmp_path / "store", tokenizer="bytes:occurring", tell=lambda _line: None)
    tokenizer = tokenizer_of(store)
    assert sorted(tokenizer.token_bytes()) == sorted({bytes([b]) for b in text.read_bytes()} | {b""})
    ids = [store.split(name).read(0, store.split(name).tokens) for name in ("train", "validation")]
    assert tokenizer.decode_bytes(np.concatenate(ids)) == text.read_bytes()
    assert [int((part == tokenizer.end_of_text).sum()) for part in ids] == [1, 1]
    assert load(store.tokenizer_folder).fingerprint == tokenizer.fingerprint


def test_damaged_files_are_told(tmp_path: Path) -> None:
    occurring_bytes([Texts.of(["abc"])]).save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / BYTES_FILE).write_text('{"values": [1, 1]}')
    with pytest.raises(DataError, match=BYTES_FILE):
        load(tmp_path / "tokenizer")


def test_it_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="knows only the bytes of one text"):
        write_tokenizer(occurring_bytes([Texts.of(["abc"])]), tmp_path, context_length=8)


@pytest.mark.parametrize("source", ["{}", "whole:{}"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty"), (b"caf\xe9 au lait", r"not UTF-8 text \(byte 3\)"), (b"x", "")],
)
def test_b43_empty_files_and_other_encodings_are_refused(
    tmp_path: Path, source: str, content: bytes, sentence: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    where = source.format(tmp_path / "text.txt")
    settings = {"tokenizer": "bytes:occurring", "validation": 0.0, "tell": lambda _line: None}
    if sentence:
        with pytest.raises(DataError, match=sentence):
            prepare(where, tmp_path / "store", **settings)  # type: ignore[arg-type]
    else:
        store = prepare(where, tmp_path / "store", **settings)  # type: ignore[arg-type]
        assert store.split("train").read(0, 2).tolist() == [0, 1]
