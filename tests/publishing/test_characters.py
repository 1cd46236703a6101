"""Character-level models of nanoGPT, with the ``meta.pkl`` of their data set."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.errors import DataError, UsageError
from fromscratch.formats.gpt2 import to_gpt2_tensors
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.tokenizers.characters import CharacterTokenizer, load_characters
from fromscratch.tokenizers.loading import load
from tests.command import nothing_written, refused, run_command
from tests.publishing.models import make_model
from tests.test_security import Payload

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak. \u00e9\n"
CHARACTERS = sorted(set(TEXT))


def meta_of(characters: list[str]) -> dict[str, Any]:
    """What nanoGPT's ``prepare.py`` pickles."""
    itos = dict(enumerate(characters))
    return {"vocab_size": len(characters), "itos": itos, "stoi": {c: i for i, c in itos.items()}}


@pytest.fixture
def nanogpt(tmp_path: Path) -> Path:
    """The folder of nanoGPT with a data set of characters and a model trained on it."""
    _, model = make_model(tied_head=True, feedforward="exact-gelu-mlp", vocab_size=len(CHARACTERS))
    theirs = {
        name: tensor.T.contiguous() if name.split(".")[-2].startswith("c_") and tensor.dim() == 2 else tensor
        for name, tensor in to_gpt2_tensors(model_tensors(model)).items()
    }
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "bias": True, "dropout": 0.0}
    arguments |= {"vocab_size": len(CHARACTERS)}
    for folder in ("out-char", "data/char"):
        (tmp_path / "nanoGPT" / folder).mkdir(parents=True)
    checkpoint = {"model": theirs, "model_args": arguments, "config": {"dataset": "char"}}
    torch.save(checkpoint, tmp_path / "nanoGPT" / "out-char" / "ckpt.pt")
    (tmp_path / "nanoGPT" / "data" / "char" / "meta.pkl").write_bytes(pickle.dumps(meta_of(CHARACTERS)))
    return tmp_path / "nanoGPT"


def test_a_model_of_characters_is_imported_and_continues_texts(nanogpt: Path, tmp_path: Path) -> None:
    done = run_command("import", nanogpt / "out-char", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert f"the characters of {nanogpt / 'data' / 'char' / 'meta.pkl'}" in done.err
    tokenizer = open_model(str(tmp_path / "out"), find_hardware("cpu")).tokenizer
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(TEXT).tolist() == [CHARACTERS.index(character) for character in TEXT]
    text = run_command("generate", tmp_path / "out", "First", "--tokens", 20)
    assert text.code == 0 and len(text.out) == len("First") + 20 + 1 and set(text.out) <= set(CHARACTERS), text


def test_what_such_a_model_cannot_do_is_said(nanogpt: Path, tmp_path: Path) -> None:
    named = ("--tokenizer", nanogpt / "data" / "char" / "meta.pkl")
    assert run_command("import", nanogpt / "out-char" / "ckpt.pt", *named, "--out", tmp_path / "out").code == 0
    (tmp_path / "text.txt").write_text(TEXT)
    with nothing_written(tmp_path):
        refused("generate", tmp_path / "out", "Zebra", code=2, says="'Z', which is none of the model's")
        refused("generate", tmp_path / "out", code=2, says="which starts a text without a prompt; give a prompt")
        refused("publish", tmp_path / "out", "--to", tmp_path / "new", code=2, says="it cannot be published")
        for verb in (("data", "prepare", "--out", tmp_path / "store"), ("data", "stats")):
            refused(*verb, tmp_path / "text.txt", *named, code=2, says="which ends the documents of a")


def test_without_its_characters_the_user_is_told_where_they_are(nanogpt: Path, tmp_path: Path) -> None:
    (nanogpt / "data" / "char" / "meta.pkl").rename(nanogpt / "out-char" / "other.pkl")
    refused("import", nanogpt / "out-char", "--out", tmp_path / "out", code=2, says="a nanoGPT data set's meta.pkl")
    (nanogpt / "out-char" / "other.pkl").rename(nanogpt / "out-char" / "meta.pkl")
    assert run_command("import", nanogpt / "out-char", "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    characters = [chr(code) for code in range(32, 700)]
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta_of(characters), protocol))
    tokenizer = load_characters(tmp_path / "meta.pkl")
    assert [data.decode() for data in tokenizer.token_bytes()] == characters
    tokenizer.save(tmp_path / "saved")
    assert load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        bad = {**meta_of(CHARACTERS), "itos": Payload(tmp_path / "ran")}
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(bad, protocol))
        with pytest.raises(DataError, match="refused: a pickle that holds more than tables of characters"):
            load_characters(tmp_path / "meta.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", pickle.dumps({}), pickle.dumps(7), pickle.dumps(meta_of(CHARACTERS))[:-3], b"\x80\x04s."]
    + [pickle.dumps({"itos": table}) for table in ({0: "a", 2: "b"}, {0: "ab"}, {0: "a", 1: "a"}, {0: 7})],
)
def test_what_is_no_table_of_characters(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"meta\.pkl: (not the characters of|the pickle is not complete|refused)"):
        load_characters(tmp_path / "meta.pkl")


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(UsageError, match="holds 'c', which is none of the model's 2 characters"):
        CharacterTokenizer("ab").encode("abc")
