"""Streamed text: complete characters, stop strings, and parts that join to the result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.generation.texts import GrowingText, continue_prompts
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.tokenizers.bytes import BytesTokenizer

TOKENIZER = BytesTokenizer()


def grow(content: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], GrowingText]:
    growing, pieces = GrowingText(TOKENIZER, stop), []
    for byte in content:
        pieces.append(growing.add(byte))
        if growing.stopped:
            return pieces, growing
    return [*pieces, growing.rest()], growing


@given(st.text(max_size=30))
def test_pieces_add_up_and_never_split_a_character(text: str) -> None:
    pieces, growing = grow(text.encode("utf-8", "replace"))
    assert "".join(pieces) == growing.text == text.encode("utf-8", "replace").decode()
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=40))
def test_pieces_of_any_bytes_add_up(content: bytes) -> None:
    pieces, growing = grow(content)
    assert "".join(pieces) == growing.text == content.decode("utf-8", "replace")


@given(st.text(alphabet="ab:\n", max_size=40), st.lists(st.text(alphabet="ab:\n", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, stop: list[str]) -> None:
    pieces, growing = grow(text.encode(), tuple(stop))
    first = min(((text.find(s) + len(s), text.find(s)) for s in stop if s in text), default=(len(text), len(text)))
    assert "".join(pieces) == growing.text
    assert growing.stopped == any(s in text for s in stop)
    if not growing.stopped:
        assert growing.text == text
    assert not any(s in growing.text for s in stop) and text.startswith(growing.text) and len(growing.text) <= first[1]


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(vocab_size=257, context_length=32, num_layers=1, num_heads=2, embedding_dim=32, dropout=0.0)
    built = build_empty(config, "cpu")
    initialise(built, config, seed=1)
    return built.eval()


def test_streaming_says_what_the_result_says(model: GPT) -> None:
    pieces = ["", ""]

    def on_text(row: int, piece: str) -> None:
        pieces[row] += piece

    settings = Settings(max_new_tokens=30, sampling=Sampling(temperature=0.7), seed=2)
    results = continue_prompts(model, TOKENIZER, ["one", "another one"], settings, on_text=on_text)
    assert [result.text for result in results] == pieces
    assert [(result.prompt, result.tokens, result.ended) for result in results] == [
        ("one", 30, "length"),
        ("another one", 30, "length"),
    ]


def test_a_stop_string_ends_one_text_and_is_cut_off(model: GPT) -> None:
    def run(stop: tuple[str, ...]) -> list[str]:
        settings = Settings(max_new_tokens=40, sampling=Sampling(temperature=0.9), seed=3, stop=stop)
        return [f"{r.ended}:{r.text}" for r in continue_prompts(model, TOKENIZER, ["a", "b"], settings)]

    free = run(())
    text = free[0].removeprefix("length:")
    stop = text[10:12]
    stopped = run((stop,))
    assert stopped[0] == "stop:" + text[: text.index(stop)]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="stop = ''"):
        Settings(stop=("",))
