"""Tokenizers and texts that several files test."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.bytes import BytesTokenizer, OccurringBytesTokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, load_gpt2
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer, train_byte_pairs

CORPUS = [
    "Every effort moves you forward, every effort moves you closer to the other side of the river.",
    "It is a truth universally acknowledged: <|endoftext|> is text, and so is na\u00efve \U0001f600.",
    "def encode(text):\n    return [ord(character) for character in text]\n",
] * 4


@pytest.fixture(scope="session")
def gpt2_files(shared_data: Path) -> Path:
    """OpenAI's encoder.json and vocab.bpe."""
    return shared_data / "gpt2"


@pytest.fixture(scope="session")
def gpt2(gpt2_files: Path) -> GPT2Tokenizer:
    """GPT-2's tokenizer from OpenAI's files."""
    return load_gpt2(gpt2_files)


@pytest.fixture(scope="session")
def trained() -> HuggingFaceTokenizer:
    """A byte-level BPE learnt from a few sentences."""
    return train_byte_pairs(CORPUS, vocab_size=320)


@pytest.fixture(scope="session", params=["bytes", "occurring", "trained", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the tokenizers that encode every text without loss."""
    if request.param == "bytes":
        return BytesTokenizer()
    if request.param == "occurring":
        return OccurringBytesTokenizer(bytes(range(255, -1, -1)))
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved tokenizer, which no test changes."""
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def book_texts(shared_data: Path) -> list[str]:
    """A hundred thousand characters of real English, in pieces."""
    column = pq.read_table(shared_data / "books" / "000_00000.parquet", columns=["text"])["text"]
    return [str(text)[:5_000] for text in column[:20].to_pylist()]


@pytest.fixture(scope="session")
def hostile_texts(shared_data: Path) -> list[str]:
    """Documents that break careless tokenizers; null ones left out."""
    column = pq.read_table(shared_data / "books" / "hostile.parquet", columns=["text"])["text"]
    return [text for text in column.to_pylist() if text is not None]
