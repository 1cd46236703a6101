"""A corpus and GPT-2's tokenizer, which no test changes."""

import json
from pathlib import Path

import pytest

from fromscratch.tokenizers.gpt2 import GPT2Tokenizer, load_gpt2
from tests.data.helpers import NUMBERED_TEXTS, write_parquet


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parquet and JSON Lines files, several parts in all, with duplicates across files."""
    folder = tmp_path_factory.mktemp("input") / "corpus"
    folder.mkdir()
    for number in range(4):
        write_parquet(folder / f"{number:03}_00000.parquet", NUMBERED_TEXTS[number * 100 : number * 100 + 120])
    lines = [json.dumps({"text": text}) for text in NUMBERED_TEXTS[::3]]
    (folder / "more.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> GPT2Tokenizer:
    """GPT-2's tokenizer from OpenAI's files."""
    return load_gpt2(shared_data / "gpt2")
