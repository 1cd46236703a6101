"""gigatoken gives the ids of the tokenizer's own library, or is not used, and the store says so."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.store import TokenStore
from fromscratch.formats.preparation import notes_on
from fromscratch.sources import InMemory
from fromscratch.sources.texts import FallbackError, Texts
from fromscratch.tokenizers import fast
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer, train_byte_pairs

TEXTS = [f"{number}: every effort moves you, <|endoftext|> 'tis naïve \U0001f600\n\n" * 20 for number in range(60)]


@pytest.fixture(autouse=True)
def opened_anew() -> None:
    """Forgets the encoder that another test opened."""
    fast._opened.cache_clear()


def shards_of(store: TokenStore) -> list[str]:
    return [shard.sha256 for split in store.manifest.splits.values() for shard in split.shards]


def store_of(tokenizer: Tokenizer, out: Path) -> TokenStore:
    return prepare_store([InMemory("texts", tuple(TEXTS))], tokenizer, out, rule=SplitRule(0.3))


def test_the_ids_are_those_of_the_own_library(
    tokenizer: Tokenizer, book_texts: list[str], hostile_texts: list[str]
) -> None:
    pytest.importorskip("gigatoken")
    generator = np.random.default_rng(1)
    points = [p for p in generator.integers(1, 0x2FFFF, size=20_000).tolist() if not 0xD800 <= p < 0xE000]
    unusual = ["".join(map(chr, points[first : first + 50])) for first in range(0, len(points), 50)]
    texts = Texts.of([*book_texts, "", *unusual, *(t for t in hostile_texts if len(t) < 100_000), "\ud800 half"])
    own, found = tokenizer.encode_texts(texts), tokenizer.encode_fast(texts)
    assert np.array_equal(found[0], own[0])
    assert np.array_equal(found[1], own[1])


def test_without_gigatoken_the_store_is_the_same_and_says_so(
    trained: HuggingFaceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)  # as where it is not installed
    slow = store_of(trained, tmp_path / "slow")
    assert slow.manifest.fallbacks == {"gigatoken is not installed (pip install gigatoken)": 1}
    assert any("gigatoken is not installed" in line for line in notes_on(slow))
    monkeypatch.undo()
    fast._opened.cache_clear()
    pytest.importorskip("gigatoken")
    quick = store_of(trained, tmp_path / "quick")
    assert "fallbacks" not in json.loads((quick.path / "manifest.json").read_text())
    assert shards_of(quick) == shards_of(slow)


class Wrong(HuggingFaceTokenizer):
    """A tokenizer that gigatoken misreads."""

    def fast_definition(self) -> str:
        other = train_byte_pairs(["zebra zebra zebra zoo"] * 9, vocab_size=270).fast_definition()
        assert other is not None
        return other


def test_other_ids_are_noticed_and_the_part_is_encoded_by_the_own_library(
    trained: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("gigatoken")
    wrong = store_of(Wrong(trained._engine, name=trained.name), tmp_path / "wrong")
    assert wrong.manifest.fallbacks == {"gigatoken gave other ids than the tokenizer's own library": 1}
    assert shards_of(wrong) == shards_of(store_of(trained, tmp_path / "right"))


@dataclass
class WrongLater:
    """Gives other ids from the second batch on, after shards of the part were begun."""

    whole: fast.FastEncoder
    batches: int = 0

    def __call__(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        self.batches += 1
        ids, offsets = fast.FastEncoder._encode(self.whole, texts)
        return (ids + 1 if self.batches > 1 else ids), offsets


def test_a_part_that_turns_out_wrong_in_its_middle_is_encoded_anew(
    trained: HuggingFaceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    right = store_of(trained, tmp_path / "right")
    opened = fast._opened(trained)
    assert isinstance(opened, fast.FastEncoder)
    monkeypatch.setattr("fromscratch.sources.texts.BATCH_BYTES", 4_000)
    monkeypatch.setattr(opened, "_encode", WrongLater(opened))
    store = store_of(trained, tmp_path / "wrong")
    assert list(store.manifest.fallbacks.values()) == [1]
    assert shards_of(store) == shards_of(right)
    assert not list(store.path.glob(".*"))


@pytest.mark.parametrize("damaged_document", [0, 3, 7])
def test_each_document_of_a_small_batch_is_checked_to_its_end(
    trained: HuggingFaceTokenizer, damaged_document: int
) -> None:
    pytest.importorskip("gigatoken")
    texts = Texts.of([f"word {number} and the end" for number in range(8)])
    opened = fast._opened(trained)
    assert isinstance(opened, fast.FastEncoder)
    ids, offsets = trained.encode_texts(texts)
    opened._check(texts, ids, offsets)
    ids[offsets[damaged_document + 1] - 1] += 1
    with pytest.raises(FallbackError, match="other ids"):
        opened._check(texts, ids, offsets)


def test_the_memory_of_words_is_bounded(trained: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    opened = fast._opened(trained)
    assert isinstance(opened, fast.FastEncoder)
    monkeypatch.setattr(fast, "MIN_RENEWAL_BYTES", 0)
    texts = Texts.of(TEXTS)
    first = opened._engine
    opened.encode_texts(texts)
    assert opened._engine is first  # memory has not grown by much
    monkeypatch.setattr(fast, "MAX_CACHE_BYTES", -(1 << 40))
    ids, _ = opened.encode_texts(texts)
    assert opened._engine is not first
    assert np.array_equal(ids, trained.encode_texts(texts)[0])


def test_tokenizers_that_alter_texts_keep_their_own_library() -> None:
    engine = train_byte_pairs(TEXTS, vocab_size=270)._engine
    import tokenizers as hf

    engine.normalizer = hf.normalizers.Lowercase()
    assert HuggingFaceTokenizer(engine, name="lower").fast_definition() is None
