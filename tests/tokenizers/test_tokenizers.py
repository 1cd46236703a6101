"""What holds for every tokenizer: texts come back byte for byte, and control tokens are only text."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.tokenizers.base import DESCRIPTION_FILE, Tokenizer
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.huggingface import train_byte_pairs
from fromscratch.tokenizers.loading import load

from .conftest import CORPUS

HOSTILE = {
    "empty": "",
    "control token": "before<|endoftext|>after",
    "only a control token": "<|endoftext|>",
    "nul": "a\0b\0",
    "emoji": "family: \U0001f468\u200d\U0001f469\u200d\U0001f467 flags: \U0001f1e9\U0001f1ea",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202e mixed \u202c",
    "line ends": "a\r\nb\u2028c\u0085d\x0b\x0c\n\n\n",
    "blanks": " \t \u00a0 \u3000   ",
    "combining": "e\u0301" * 20,
    "byte spelling": "\u0120\u010a\u2581<0x41>##ing",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_b21_hostile_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint32
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())


def test_b21_lone_surrogates_become_question_marks(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("half \ud83d pair")) == "half ? pair"


@pytest.mark.parametrize("piece", ["a", " ", "\U0001f600"])
def test_b21_a_word_of_a_megabyte_takes_linear_time(tokenizer: Tokenizer, piece: str) -> None:
    word = piece * (1_000_000 // len(piece.encode()))
    begun = time.process_time()
    ids = tokenizer.encode(word)
    assert time.process_time() - begun < 5.0  # quadratic time would be minutes
    assert int(tokenizer.byte_lengths()[ids].sum()) == 1_000_000


def test_b21_the_shared_hostile_documents(tokenizer: Tokenizer, hostile_texts: list[str]) -> None:
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_documents(hostile_texts)] == hostile_texts


def test_documents_are_encoded_in_order_as_if_alone(tokenizer: Tokenizer, book_texts: list[str]) -> None:
    together = tokenizer.encode_documents(book_texts)
    assert len(together) == len(book_texts)
    for text, ids in zip(book_texts, together, strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))
        assert ids.max() < tokenizer.vocab_size
    assert tokenizer.encode_documents([]) == []


def test_real_text_comes_back_and_its_bytes_are_counted(tokenizer: Tokenizer, book_texts: list[str]) -> None:
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.end_of_text] == 0
    for text in book_texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert int(lengths[ids].sum()) == len(text.encode())


def test_end_of_text_leaves_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.end_of_text, *tokenizer.encode("two")]
    assert tokenizer.decode(ids) == "onetwo"
    assert 0 <= tokenizer.end_of_text < tokenizer.vocab_size


def test_half_a_character_is_shown_as_such() -> None:
    tokenizer = BytesTokenizer()
    ids = tokenizer.encode("\u00e9")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode_bytes(ids[:1]) == b"\xc3"


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, saved: Path) -> None:
    again = load(saved)
    assert type(again) is type(tokenizer)
    assert again.description() == tokenizer.description()
    assert again.token_bytes() == tokenizer.token_bytes()
    for text in HOSTILE.values():
        assert np.array_equal(again.encode(text), tokenizer.encode(text))


def test_description_says_what_manifests_need(tokenizer: Tokenizer, saved: Path) -> None:
    description = read_json_object(saved / DESCRIPTION_FILE)
    assert description == tokenizer.description()
    assert description.keys() == {"kind", "name", "vocab_size", "end_of_text", "fingerprint"}
    assert len(description["fingerprint"]) == 64


def test_saving_twice_gives_the_same_bytes(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "again")
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_tampering_is_noticed(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(saved, folder)
    for file in sorted(folder.iterdir()):
        original = file.read_bytes()
        file.write_bytes(original.replace(b"a", b"b", 1))
        with pytest.raises(DataError):
            load(folder)
        file.write_bytes(original)
    load(folder)


def test_a_failing_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        BytesTokenizer().save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_tell_vocabularies_apart(trained: Tokenizer) -> None:
    same = train_byte_pairs(CORPUS, vocab_size=320)
    smaller = train_byte_pairs(CORPUS, vocab_size=319)
    other = train_byte_pairs([text.upper() for text in CORPUS], vocab_size=320)
    assert same.fingerprint == trained.fingerprint
    assert len({t.fingerprint for t in (trained, smaller, other, BytesTokenizer())}) == 4


def test_b18_description_with_a_wrong_fingerprint(tmp_path: Path) -> None:
    class Liar(BytesTokenizer):
        @property
        def fingerprint(self) -> str:
            return "0" * 64

    Liar().save(tmp_path / "saved")
    with pytest.raises(DataError, match="the tokenizer's files do not match its fingerprint; they were altered"):
        load(tmp_path / "saved")


def test_tokenizer_of_a_newer_version(tmp_path: Path) -> None:
    class Newer(BytesTokenizer):
        kind = "newer"

    Newer().save(tmp_path / "saved")
    with pytest.raises(
        DataError, match="unknown kind 'newer'; this version knows bytes, occurring-bytes, gpt2, huggingface"
    ):
        load(tmp_path / "saved")
