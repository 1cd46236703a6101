"""Dropout masks belong to sequences: the same whatever batch they travel in."""

import pytest
import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.dropout import Dropout, set_sequence_keys
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT

KEYS = (11, 22, 33, 44)


def model_with_dropout(attention: str) -> GPT:
    config = ModelConfig.model_validate(
        {
            "vocab_size": 61,
            "context_length": 16,
            "num_layers": 2,
            "num_heads": 4,
            "embedding_dim": 32,
            "dropout": 0.3,
            "attention": attention,
        }
    )
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    return model.train()


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_a_sequence_meets_the_same_masks_alone_and_in_company(attention: str) -> None:
    model = model_with_dropout(attention)
    tokens = torch.randint(0, 61, (4, 16))
    set_sequence_keys(model, KEYS)
    together = model(tokens)
    for row, key in enumerate(KEYS):
        set_sequence_keys(model, (key,))
        torch.testing.assert_close(model(tokens[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_other_keys_give_other_masks_and_the_global_generator_is_left_alone(attention: str) -> None:
    model = model_with_dropout(attention)
    tokens = torch.randint(0, 61, (1, 16)).expand(4, 16)
    before = torch.get_rng_state()
    set_sequence_keys(model, KEYS)
    rows = model(tokens)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(rows[0], rows[1])


def test_places_in_the_network_differ() -> None:
    model = model_with_dropout("explicit")
    sites = [module.site for module in model.modules() if isinstance(module, Dropout)]
    assert sites == list(range(len(sites))) and len(sites) == 1 + 2 * 3
    one, other = Dropout(0.5), Dropout(0.5)
    other.site = 1
    for dropout in (one, other):
        dropout.sequence_keys = (5,)
    x = torch.ones(1, 1000)
    assert not torch.equal(one(x), other(x))


def test_the_share_dropped_and_the_scale_of_the_rest() -> None:
    dropout = Dropout(0.25)
    dropout.sequence_keys = (1, 2)
    y = dropout(torch.ones(2, 40_000))
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.max().item() == pytest.approx(1 / 0.75)


def test_without_keys_it_is_ordinary_dropout_and_in_evaluation_it_is_nothing() -> None:
    dropout = Dropout(0.5)
    x = torch.ones(8, 1000)
    assert 0 < (dropout(x) == 0).float().mean().item() < 1
    assert torch.equal(dropout.eval()(x), x)


def test_keys_for_another_number_of_sequences_are_a_mistake() -> None:
    dropout = Dropout(0.5)
    dropout.sequence_keys = (1, 2)
    with pytest.raises(ValueError, match="2 dropout keys for a batch of 3"):
        dropout(torch.ones(3, 4))
