"""Decoders with and without a cache compute the same logits."""

from typing import Any

import pytest
import torch

from fromscratch.config.model import ExplicitAttention, FusedAttention, GPTConfig
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder, window_start
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.packed import packing_pays, with_packed_weights
from fromscratch.generation.sampling import Sampling
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.models.layers import LinearHead
from fromscratch.models.mechanism import Sizes

VOCABULARY, CONTEXT, END = 61, 16, 60
PROMPTS = [[1, 2, 3], [4], list(range(20)), [7, 8, 9, 10, 11, 12, 13], []]


def make(**changes: Any) -> GPT:
    shape = {"vocab_size": VOCABULARY, "context_length": CONTEXT, "num_layers": 2, "num_heads": 4, "embedding_dim": 32}
    config = GPTConfig.model_validate({**shape, "init": {"kind": "gpt2", "std": 0.3}, **changes})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=5)
    return model.eval()


def rows(model: GPT, prompts: list[list[int]], count: int, **settings: Any) -> list[list[int]]:
    """Returns the new ids of every text."""
    decoder = settings.pop("decoder", CachedDecoder)
    seed, end = settings.pop("seed", 0), settings.pop("end", -1)
    chosen = Settings(max_new_tokens=count, sampling=Sampling(**settings), seed=seed)
    steps = list(generate_batch(model, prompts, chosen, end_of_text=end, decoder=decoder))
    return [[step[row] for step in steps if step[row] is not None] for row in range(len(prompts))]  # type: ignore[misc]


@pytest.mark.parametrize("attention", [FusedAttention(), ExplicitAttention()], ids=lambda slot: slot.kind)
@pytest.mark.parametrize("bias", [True, False])
def test_cached_equals_uncached_greedy_past_the_context(attention: Any, bias: bool) -> None:
    model = make(attention=attention, attention_bias=bias, tied_head=bias)
    prompts = [prompt or [END] for prompt in PROMPTS]
    cached = rows(model, prompts, 50, temperature=0)
    assert cached == rows(model, prompts, 50, temperature=0, decoder=PlainDecoder)
    assert all(len(row) == 50 for row in cached) and len({tuple(row) for row in cached}) == len(PROMPTS)


def test_a_text_is_independent_of_the_others_in_its_batch() -> None:
    model = make()
    together = rows(model, PROMPTS[:4], 30, temperature=0)
    for prompt, row in zip(PROMPTS, together, strict=False):
        assert rows(model, [prompt], 30, temperature=0) == [row]


def test_logits_of_padded_prompts_are_those_of_the_prompts() -> None:
    model = make()
    prompts = PROMPTS[:4]
    with torch.inference_mode():
        cached, plain = (kind(model, prompts, max_new_tokens=40) for kind in (CachedDecoder, PlainDecoder))
        for token in range(25):
            torch.testing.assert_close(cached.next_logits(), plain.next_logits(), atol=1e-5, rtol=1e-4)
            for decoder in (cached, plain):
                decoder.texts.append([token, token + 1, token + 2, token])


def test_each_sample_has_its_own_random_numbers() -> None:
    model = make()
    three = rows(model, [[1, 2]] * 3, 12, seed=4)
    assert len({tuple(row) for row in three}) == 3
    assert rows(model, [[1, 2]] * 2, 12, seed=4) == three[:2]
    assert rows(model, [[1, 2]], 12, seed=4) == three[:1]
    assert rows(model, [[1, 2]], 12, seed=5) != three[:1]


def test_texts_end_one_by_one() -> None:
    model = make()
    free = rows(model, PROMPTS[:2], 20, temperature=0)
    end = next(token for token in free[0] if token not in free[1])
    ended = rows(model, PROMPTS[:2], 20, temperature=0, end=end)
    assert ended == [free[0][: free[0].index(end)], free[1]]


def test_the_consumer_may_end_a_text() -> None:
    model = make()
    steps = generate_batch(model, PROMPTS[:2], Settings(9, Sampling(temperature=0)), end_of_text=-1)
    assert None not in next(steps)
    assert [step[0] is None for step in [steps.send([0]), next(steps)]] == [True, True]
    with pytest.raises(StopIteration):
        steps.send([1])


def test_the_repetition_penalty_makes_texts_more_varied() -> None:
    model = make()
    plain = rows(model, [[1, 2]], 30, temperature=0)[0]
    penalised = rows(model, [[1, 2]], 30, temperature=0, repetition_penalty=1e6)[0]
    assert len(set(penalised)) > len(set(plain))


@pytest.mark.parametrize(("tokens", "start"), [(0, 0), (16, 0), (17, 4), (20, 4), (21, 8), (40, 24)])
def test_windows_drop_a_quarter_at_a_time(tokens: int, start: int) -> None:
    assert window_start(tokens, CONTEXT) == start


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 1, 48), (32, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_are_the_products(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = torch.nn.Linear(48, 96, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        expected, packed = layer(x), with_packed_weights(layer, rows=x.numel() // 48)
        for _ in range(2):
            torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed(x[:1]), expected[:1], atol=1e-5, rtol=1e-5)  # other numbers of rows


def test_packing_leaves_the_model_as_it_was() -> None:
    model = make()
    before = {name: id(module) for name, module in model.named_modules()}
    copied = with_packed_weights(model, rows=1)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all("forward" not in vars(module) for module in model.modules())
    assert [id(p) for p in copied.parameters()] == [id(p) for p in model.parameters()]
    packed = [name for name, module in copied.named_modules() if "forward" in vars(module)]
    assert packed == [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def test_a_packed_head_keeps_its_cap() -> None:
    head, x = (
        LinearHead(Sizes(32, 8, 1, 2, 48, dropout=0.0, attention_bias=False, tied_head=False), logit_cap=0.5),
        torch.randn(1, 1, 48),
    )
    with torch.inference_mode():
        expected, packed = head(x), with_packed_weights(head, rows=1)
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)
        assert expected.abs().max() < 0.5 and "forward" in vars(packed)


def test_packing_is_for_fp32_on_a_cpu() -> None:
    assert packing_pays(torch.empty(2, 2), rows=1, steps=100)
    assert not packing_pays(torch.empty(2, 2), rows=1, steps=2)
    assert not packing_pays(torch.empty(2, 2), rows=1_000, steps=100)
    assert not packing_pays(torch.empty(2, 2, dtype=torch.bfloat16), rows=1, steps=100)
    assert not packing_pays(torch.empty(2, 2, device="meta"), rows=1, steps=100)
