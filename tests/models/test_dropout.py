"""Dropout masks belong to sequences: the same whatever batch they travel in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.models import attention as attention_module
from fromscratch.models.attention import ExplicitAttention, FusedAttention
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.dropout import Dropout, hashed_numbers, put_keys_on_device, set_sequence_keys
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.models.mechanism import Sizes

KEYS = (11, 22, 33, 44)


def model_with_dropout(attention: str) -> GPT:
    config = GPTConfig.model_validate(
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
        dropout.set_keys((5,))
    x = torch.ones(1, 1000)
    assert not torch.equal(one(x), other(x))


def test_the_share_dropped_and_the_scale_of_the_rest() -> None:
    dropout = Dropout(0.25)
    dropout.set_keys((1, 2))
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
    dropout.set_keys((1, 2))
    with pytest.raises(ValueError, match="2 dropout keys for a batch of 3"):
        dropout(torch.ones(3, 4))


@pytest.mark.parametrize("time", [1, 7, 8, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_the_explicit_form(
    masked: bool, dropout: float, time: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "QUERIES_PER_BLOCK", 8)
    sizes = Sizes(2, time, 1, 3, 12, dropout=dropout, attention_bias=False, tied_head=False)
    age = torch.arange(time)[:, None] - torch.arange(time)
    mask = ((age >= 0) & (age < 5))[None, None] if masked else None
    results = []
    for kind in (ExplicitAttention, FusedAttention):
        attention = kind(sizes, 0)
        attention.probability_dropout.set_keys((3, 4))
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(2, 3, time, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
        mixed = attention.attend(*inputs, mask=mask, is_causal=mask is None)
        (mixed * torch.arange(4)).sum().backward()
        results.append([mixed.detach(), *(tensor.grad for tensor in inputs)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for explicit, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, explicit, atol=tolerance, rtol=tolerance)


def reference_splitmix64(state: int, count: int) -> list[int]:
    """The published algorithm in whole numbers."""
    mask, numbers = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


def test_the_hash_is_splitmix64() -> None:
    assert reference_splitmix64(1234567, 1) == [6457827717110365317]  # as its author publishes it
    keys = (1234567, -5, 0)
    found = hashed_numbers(torch.tensor(keys), 50)
    for row, key in zip(found.tolist(), keys, strict=True):
        assert [number & ((1 << 64) - 1) for number in row] == reference_splitmix64(key & ((1 << 64) - 1), 50)


def hashing(probability: float, keys: tuple[int, ...]) -> Dropout:
    """A dropout that draws its masks as it does on a GPU."""
    dropout = Dropout(probability)
    dropout.set_keys(keys)
    put_keys_on_device([dropout], "cpu")
    return dropout


def test_hashed_masks_belong_to_sequences_and_drop_the_right_share() -> None:
    x = torch.ones(2, 37, 1001)
    together = hashing(0.25, (1, 2**64 - 1))(x)
    assert torch.equal(hashing(0.25, (2**64 - 1,))(x[:1])[0], together[1])
    assert (together == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    kept = (together[0] > 0).float()
    for shift in (1, 2, 4, 1001):  # neighbours in a number, across numbers, across rows
        both = (kept.flatten()[shift:] * kept.flatten()[:-shift]).mean().item()
        assert both == pytest.approx(0.75**2, abs=0.015)


def generating(probability: float, keys: tuple[int, ...]) -> Dropout:
    dropout = Dropout(probability)
    dropout.set_keys(keys)
    return dropout


@pytest.mark.parametrize("make", [hashing, generating])
def test_new_keys_compile_nothing_anew_and_compiled_masks_are_the_same(
    make: Callable[[float, tuple[int, ...]], Dropout],
) -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    prepare_to_compile()
    x = torch.randn(2, 5, 9)
    dropout = make(0.5, (0, 0))
    compiled = torch.compile(dropout, backend=backend)
    for step in range(5):
        keys = (100 + step, 2**63 + step)
        dropout.set_keys(keys)
        if make is hashing:
            put_keys_on_device([dropout], "cpu")
        assert torch.equal(compiled(x), make(0.5, keys)(x))
        if step == 0:
            first = len(compilations)
    assert len(compilations) == first > 0
    torch.compiler.reset()
