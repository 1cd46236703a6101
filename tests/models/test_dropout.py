"""Dropout masks belong to sequences: the same whatever batch they travel in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.models import attention as attention_module
from fromscratch.models import dropout as dropout_module
from fromscratch.models import flash
from fromscratch.models.attention import ExplicitAttention, FusedAttention
from fromscratch.models.compiling import prepare_to_compile
from fromscratch.models.dropout import Dropout, key_table, random_bits, set_sequence_keys
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
        set_sequence_keys(dropout, (5,))
    x = torch.ones(1, 1000)
    assert not torch.equal(one(x), other(x))


def test_the_share_dropped_and_the_scale_of_the_rest() -> None:
    dropout = Dropout(0.25)
    set_sequence_keys(dropout, (1, 2))
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
    set_sequence_keys(dropout, (1, 2))
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
        set_sequence_keys(attention, (3, 4))
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(2, 3, time, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
        mixed = attention.attend(*inputs, mask=mask, is_causal=mask is None)
        (mixed * torch.arange(4)).sum().backward()
        results.append([mixed.detach(), *(tensor.grad for tensor in inputs)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for explicit, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, explicit, atol=tolerance, rtol=tolerance)


def reference_bits(key: int, site: int, position: int) -> int:
    """The random bits of one position in whole numbers, as an int16: half of the hash of two neighbours."""
    mask = 2**32 - 1
    h = (position // 2 * 0x9E3779B9 + key) & mask
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & mask
    h ^= ((key >> 32) + site * 0x85EBCA6B) & mask
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & mask
    h = ((h ^ (h >> 15)) * 0x846CA68B) & mask
    h ^= h >> 16
    half = h >> 16 if position % 2 else h & 0xFFFF
    return half - 2**16 if half >> 15 else half


HOSTILE_KEYS = (0, 5, 2**32 - 1, 2**63 + 77, 2**64 - 1)


def test_the_bits_are_those_of_whole_numbers() -> None:
    found = random_bits(key_table(HOSTILE_KEYS, "cpu"), 9, 500)
    assert found.tolist() == [[reference_bits(key, 9, n) for n in range(500)] for key in HOSTILE_KEYS]


@pytest.mark.parametrize(
    "shape", [(7,), (3, 100), (2, 1, 1), (3, 40, 30), (3, 30, 40), (2, 40, 40), (3, 41, 41), (3, 31, 33)]
)
@pytest.mark.parametrize("probability", [0.0001, 0.1, 0.5, 0.9999, 0.999999])
def test_masks_in_chunks_are_those_of_whole_numbers(
    shape: tuple[int, ...], probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout_module, "CHUNK", 64)  # elements: several chunks, the last one shorter
    dropout, size = Dropout(probability), torch.Size((len(HOSTILE_KEYS), *shape))
    dropout.site = 3
    set_sequence_keys(dropout, HOSTILE_KEYS)
    least = min(round(probability * 2**16) - 2**15, 2**15 - 1)
    count = size.numel() // len(HOSTILE_KEYS)
    wanted = torch.tensor([[reference_bits(key, 3, n) >= least for n in range(count)] for key in HOSTILE_KEYS])
    assert torch.equal(dropout.keep_mask(size), wanted.view(size))
    if len(shape) == 3:
        assert torch.equal(dropout.keep_mask(size, is_causal=True).tril(), wanted.view(size).tril())


def test_hashed_masks_belong_to_sequences_and_drop_the_right_share() -> None:
    x, dropout = torch.ones(2, 37, 1001), Dropout(0.25)
    set_sequence_keys(dropout, (1, 2**64 - 1))
    together = dropout(x)
    set_sequence_keys(dropout, (2**64 - 1,))
    assert torch.equal(dropout(x[:1])[0], together[1])
    assert (together == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    kept = (together[0] > 0).float()
    for shift in (1, 2, 4, 1001):  # neighbours, across rows
        both = (kept.flatten()[shift:] * kept.flatten()[:-shift]).mean().item()
        assert both == pytest.approx(0.75**2, abs=0.015)


def test_new_keys_compile_nothing_anew_and_compiled_masks_are_the_same() -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    prepare_to_compile()
    x = torch.randn(2, 5, 9)
    dropout = Dropout(0.5)
    compiled = torch.compile(dropout, backend=backend, fullgraph=True)
    for step in range(5):
        set_sequence_keys(dropout, (100 + step, 2**63 + step))
        assert torch.equal(compiled(x), dropout(x))
    assert len(compilations) == 1
    torch.compiler.reset()


def test_all_places_share_one_tensor_of_keys() -> None:
    model = model_with_dropout("sdpa")
    set_sequence_keys(model, KEYS, (7, 0))
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    assert len({id(dropout.keys) for dropout in dropouts}) == 1
    assert all(dropout.kernel_key is None for dropout in dropouts), "only CUDA kernels draw bits of their own"
    assert dropouts[0].keys is not None and dropouts[0].keys.dtype == torch.int32


@pytest.fixture(name="kernel_on_a_cpu")
def _kernel_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator of attention with dropout in a kernel, computed without dropout by torch's own CPU kernel."""

    def forward(q: Tensor, k: Tensor, v: Tensor, _key: Tensor, _site: int, _p: float) -> tuple[Tensor, Tensor, Tensor]:
        output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        return flash._time_before_heads(output), log_sums.contiguous(), torch.zeros(2, dtype=torch.uint64)

    def backward(
        upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, _state: Tensor, _p: float
    ) -> tuple[Tensor, ...]:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            upstream, q, k, v, out, sums, 0.0, True
        )
        return tuple(flash._time_before_heads(one) for one in found)

    flash._forward.register_kernel("cpu")(forward)
    flash._backward.register_kernel("cpu")(backward)
    monkeypatch.setattr(attention_module, "takes", lambda query, *, is_causal: is_causal)


def test_attention_with_dropout_in_a_kernel_is_one_graph_with_the_gradients_of_attention(
    kernel_on_a_cpu: None,
) -> None:
    """The operator's declared shapes and layout, its gradients, and that new keys compile nothing anew."""
    torch.compiler.reset()
    prepare_to_compile()
    sizes = Sizes(2, 24, 1, 3, 12, dropout=0.4, attention_bias=False, tied_head=False)
    dropping, graphs = FusedAttention(sizes, 0), []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(dropping, backend=backend, fullgraph=True)
    x, positions = torch.randn(2, 24, 12), torch.arange(24)[None]
    for step in range(3):
        set_sequence_keys(dropping, (step, step + 1))
        dropping.probability_dropout.kernel_key = torch.tensor([step, 8 * step])
        found = []
        for call in (compiled, dropping.eval()):
            dropping.train(call is compiled)
            inputs = x.clone().requires_grad_()
            output = call(inputs, positions)
            output.square().sum().backward()
            found.append((output.detach(), inputs.grad))
        torch.testing.assert_close(found[0], found[1])
    assert len(graphs) == 1
    q = torch.randn(2, 3, 24, 4)
    torch.library.opcheck(
        flash._forward, (q, q, q, torch.tensor([1, 2]), 0, 0.1), test_utils=("test_schema", "test_faketensor")
    )
    torch.compiler.reset()
