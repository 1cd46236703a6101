"""Tokenizers of other programs: what their files say, and what they do to a text."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenizers as hf
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.verify import verify_store
from fromscratch.errors import DataError
from fromscratch.evaluation.loss import measure_loss
from fromscratch.generation.texts import GrowingText
from fromscratch.machine.hardware import find_hardware
from fromscratch.publishing.tokenizer_files import write_tokenizer
from fromscratch.sources import InMemory
from fromscratch.tokenizers.huggingface import HuggingFaceTokenizer
from fromscratch.tokenizers.loading import load, open_tokenizer
from fromscratch.training.held_out import TokenSlice
from tests.publishing.models import make_model

WORDS = ["she", "thought", "soundlessly", "of", "the", "sea", "and", "the", "cold", "bright", "morning"]
TEXTS = tuple(" ".join(random.Random(n).choices(WORDS, k=30)) for n in range(60))
END = "[SEP]"


def word_piece(*, lowercase: bool = False) -> hf.Tokenizer:
    engine = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    engine.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    engine.decoder = hf.decoders.WordPiece()
    engine.normalizer = hf.normalizers.Lowercase() if lowercase else None
    trainer = hf.trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[CLS]", END], show_progress=False)
    engine.train_from_iterator(TEXTS, trainer)
    return engine


def unigram() -> hf.Tokenizer:
    engine = hf.Tokenizer(hf.models.Unigram())
    engine.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    engine.decoder = hf.decoders.Metaspace()
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(TEXTS, trainer)
    engine.add_special_tokens(["</s>"])
    return engine


def byte_level(*, add_prefix_space: bool = False) -> hf.Tokenizer:
    engine = hf.Tokenizer(hf.models.BPE())
    engine.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    engine.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(TEXTS, trainer)
    engine.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    return engine


def of(engine: hf.Tokenizer) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(engine, name="theirs")


def test_which_tokenizers_give_every_text_back() -> None:
    assert of(byte_level()).is_lossless
    for engine in (byte_level(add_prefix_space=True), word_piece(), unigram()):
        assert not of(engine).is_lossless


@pytest.mark.parametrize("engine", [word_piece, unigram, byte_level, lambda: byte_level(add_prefix_space=True)])
def test_texts_come_back_whole_and_in_a_stream(engine: Callable[[], hf.Tokenizer]) -> None:
    tokenizer = of(engine())
    for text in TEXTS[:5]:
        ids = tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids).strip() == text and "##" not in tokenizer.decode(ids)
        half = len(ids) // 2
        growing = GrowingText(tokenizer, prompt=ids[:half])
        streamed = "".join(growing.add(token) for token in ids[half:]) + growing.rest()
        assert (tokenizer.decode(ids[:half]) + streamed).strip() == text


def test_bits_per_byte_counts_the_bytes_of_the_text(tmp_path: Path) -> None:
    """The mean loss is that of a uniform guess, so the figure is known."""
    tokenizer = of(word_piece())
    store = prepare_store([InMemory("texts", TEXTS)], tokenizer, tmp_path / "s", rule=SplitRule(0.3))
    split = store.split("validation")
    _, model = make_model(vocab_size=tokenizer.vocab_size, tied_head=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    part = TokenSlice.of(split, start=0, tokens=10**9)
    report = measure_loss(model, tokenizer, part, find_hardware("cpu")).report
    expected = report.tokens * math.log2(tokenizer.vocab_size) / store.manifest.splits["validation"].bytes
    assert report.bits_per_byte == pytest.approx(expected, rel=0.02)  # the first token is not predicted


def test_texts_that_a_tokenizer_takes_for_one_are_in_one_split(tmp_path: Path) -> None:
    tokenizer = of(word_piece(lowercase=True))
    texts = (*TEXTS, *(text.upper() for text in TEXTS), *(text.replace(" ", "  ") for text in TEXTS))
    store = prepare_store([InMemory("texts", texts)], tokenizer, tmp_path / "s", rule=SplitRule(0.3))
    assert verify_store(store).problems == [] and store.manifest.altered == 2 * len(TEXTS)
    assert store.manifest.splits["validation"].documents


@pytest.mark.parametrize("engine", [word_piece, unigram, byte_level, lambda: byte_level(add_prefix_space=True)])
def test_the_published_tokenizer_gives_the_ids_of_training(engine: Callable[[], hf.Tokenizer], tmp_path: Path) -> None:
    theirs = engine()
    end = next(name for name in (END, "</s>", "<|endoftext|>") if theirs.token_to_id(name) is not None)
    theirs.post_processor = hf.processors.TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, theirs.token_to_id(end))]
    )
    tokenizer = of(theirs)
    write_tokenizer(tokenizer, tmp_path, context_length=32)
    transformers = pytest.importorskip("transformers")
    published = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:5]:
        assert published(text)["input_ids"] == tokenizer.encode(text).tolist()


def gpt2_folder(folder: Path, **files: Any) -> Path:
    engine = byte_level()
    model = json.loads(engine.to_str())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_tokens_beside_gpt2s_files_are_added(tmp_path: Path) -> None:
    size = len(json.loads((gpt2_folder(tmp_path / "plain") / "vocab.json").read_text()))
    added = {"<|im_start|>": size, "<|im_end|>": size + 1}
    folder = gpt2_folder(tmp_path / "chat", added_tokens=added, config={"eos_token_id": size + 1})
    tokenizer = open_tokenizer(str(folder))
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (size + 2, size + 1)
    ids = tokenizer.encode(TEXTS[0])
    assert tokenizer.decode(ids) == TEXTS[0] and size + 1 not in tokenizer.encode("<|im_end|>")
    tokenizer.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.end_of_text == size + 1 and np.array_equal(again.encode(TEXTS[0]), ids)
    with pytest.raises(DataError, match=r"gives '<\|x\|>' the id 9999, but the next free id is"):
        open_tokenizer(str(gpt2_folder(tmp_path / "gap", added_tokens={"<|x|>": 9999})))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "<|endoftext|>"),
        ({"config": {"eos_token_id": "ID"}}, "<|im_end|>"),
        ({"generation_config": {"eos_token_id": ["ID", 0]}}, "<|im_end|>"),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "config": {"eos_token_id": 0}}, "<|im_end|>"),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}}, "<|im_end|>"),
    ],
)
def test_a_folder_names_its_end_of_text(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    engine = byte_level()
    engine.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        text = json.dumps(content).replace('"ID"', str(engine.token_to_id("<|im_end|>")))
        (tmp_path / f"{name}.json").write_text(text)
    assert open_tokenizer(str(tmp_path)).end_of_text == engine.token_to_id(expected)


@pytest.mark.parametrize("content", [{"eos_token_id": 99_999}, {"eos_token_id": -1}])
def test_an_end_of_text_that_no_vocabulary_has_is_an_error(tmp_path: Path, content: dict[str, Any]) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"config.json: its eos_token_id .* is not in the vocabulary"):
        open_tokenizer(str(tmp_path))
