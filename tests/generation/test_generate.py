"""Continuing a prompt: limits, windows, seeds."""

import pytest
import torch

from fromscratch.config.model import GPTConfig
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT

END = 30


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(vocab_size=31, context_length=8, num_layers=1, num_heads=2, embedding_dim=16, dropout=0.5)
    built = build_empty(config, "cpu")
    initialise(built, config, seed=3)
    return built


def generate(model: GPT, prompt: list[int], count: int, seed: int = 0, temperature: float = 1.0) -> list[int]:
    return generate_one(model, prompt, Settings(count, Sampling(temperature=temperature), seed))


def generate_one(model: GPT, prompt: list[int], settings: Settings, vocab_size: int | None = None) -> list[int]:
    steps = list(generate_batch(model, [prompt], settings, end_of_text=END, vocab_size=vocab_size))
    return [token for (token,) in steps if token is not None]


def test_the_seed_decides_and_nothing_else(model: GPT) -> None:
    first = generate(model, [1, 2], 12, seed=5)
    torch.rand(7)
    assert generate(model, [1, 2], 12, seed=5) == first
    assert generate(model, [1, 2], 12, seed=6) != first


def test_greedy_takes_the_highest_score_with_dropout_off_and_leaves_the_mode(model: GPT) -> None:
    model.train()
    tokens = [4, 5]
    for token in generate(model, [4, 5], 5, temperature=0):
        model.eval()
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    model.train()
    generate(model, [1], 2)
    assert model.training


def test_b23_a_prompt_longer_than_the_context_is_seen_by_its_end(model: GPT) -> None:
    long = [int(i) for i in torch.randint(0, 29, (50,))]
    assert generate(model, long, 4, temperature=0) == generate(model, long[-8:], 4, temperature=0)


def test_b23_limits(model: GPT) -> None:
    assert generate(model, [1], 0) == []
    assert len(generate(model, [1], 40, temperature=0)) <= 40


def test_b23_an_empty_prompt_starts_a_document(model: GPT) -> None:
    assert generate(model, [], 6, temperature=0) == generate(model, [END], 6, temperature=0)


def test_the_end_of_the_text_ends_it(model: GPT) -> None:
    with torch.no_grad():
        biased = build_empty(
            GPTConfig(vocab_size=31, context_length=8, num_layers=1, num_heads=2, embedding_dim=16), "cpu"
        )
        biased.load_state_dict(model.state_dict())
        biased.final_norm.bias.copy_(biased.token_embedding.weight[END] * 1e3)
    assert generate(biased, [1, 2], 10, temperature=0) == []


def test_ids_outside_the_tokenizer_are_never_chosen(model: GPT) -> None:
    tokens = generate_one(model, [1], Settings(60, Sampling(temperature=5.0), seed=1), vocab_size=4)
    assert len(tokens) == 60 and max(tokens) < 4
