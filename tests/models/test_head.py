"""The chunked head is the linear head: same losses, same gradients, less memory."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.models import head as head_module
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.head import ChunkedHead
from fromscratch.models.layers import LinearHead
from fromscratch.models.mechanism import Sizes
from tests.conftest import REPOSITORY
from tests.models.rows import check_rows

EMBEDDING_DIM, VOCABULARY, BATCH, TIME = 24, 301, 3, 7
SIZES = Sizes(VOCABULARY, TIME, 1, 1, EMBEDDING_DIM, dropout=0.0, attention_bias=True, tied_head=False)
TOLERANCES = {"fp32": 2e-6, "bf16": 1e-2, "fp16": 2e-3}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=[1, 5, 10_000], ids=lambda rows: f"chunks of {rows}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens per chunk: one, some that do not divide the batch, all; and products of a part of the vocabulary."""
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", request.param * VOCABULARY)
    monkeypatch.setattr(head_module, "VOCABULARY_PER_PRODUCT", dict.fromkeys(head_module.VOCABULARY_PER_PRODUCT, 128))


def heads(**settings: float) -> tuple[LinearHead, ChunkedHead]:
    torch.manual_seed(3)
    linear = LinearHead(SIZES, **settings)
    chunked = ChunkedHead(SIZES, **settings)
    chunked.load_state_dict(linear.state_dict())
    return linear, chunked


def losses_and_gradients(head: LinearHead, precision: str, upstream: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(BATCH, TIME, EMBEDDING_DIM, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (BATCH, TIME), generator=generator)
    with torch.autocast("cpu", DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES):
        losses = head.penalised_losses(hidden, targets)[0] if head.z_loss else head.losses(hidden, targets)
    (losses * upstream).sum().backward()
    assert hidden.grad is not None and head.weight.grad is not None
    return [losses.detach(), hidden.grad, head.weight.grad]


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("settings", [{}, {"logit_cap": 0.5}, {"logit_cap": 0.5, "z_loss": 0.3}])
def test_losses_and_gradients_are_those_of_the_linear_head(
    precision: str, weighted: bool, settings: dict[str, float]
) -> None:
    upstream = torch.full((BATCH, TIME), 0.3)  # the same for all, as in a mean
    if weighted:  # or a weight per target, as masked losses have
        upstream = torch.rand(BATCH, TIME)
        upstream[0, 2] = 0.0
    plain, chunked = (losses_and_gradients(head, precision, upstream) for head in heads(**settings))
    for wanted, found in zip(plain, chunked, strict=True):
        assert found.dtype == torch.float32
        error = (found - wanted).norm() / wanted.norm()
        assert error < TOLERANCES[precision]
    assert plain[0].shape == (BATCH, TIME)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_trains_alike_with_either_head(tied: bool) -> None:
    results = []
    for kind in ("linear", "chunked"):
        values = {"vocab_size": 61, "context_length": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
        config = GPTConfig.model_validate({**values, "dropout": 0.0, "tied_head": tied, "head": kind})
        model = build_empty(config, "cpu")
        initialise(model, config, seed=1)
        tokens = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(2))
        for micro_batch in tokens[:, :-1].split(1):  # two, so that gradients add up
            model.losses(micro_batch, micro_batch).mean().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert results[0].keys() == results[1].keys()
    for name, wanted in results[0].items():
        assert wanted is not None
        torch.testing.assert_close(results[1][name], wanted, atol=1e-6, rtol=1e-5)


def test_logits_are_those_of_the_linear_head() -> None:
    linear, chunked = heads()
    hidden = torch.randn(2, 3, EMBEDDING_DIM)
    assert torch.equal(linear(hidden), chunked(hidden))


def test_evaluation_keeps_nothing_and_a_second_backward_says_why_not() -> None:
    _, chunked = heads()
    hidden = torch.randn(1, 2, EMBEDDING_DIM, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(1, 2, dtype=torch.long)
    with torch.inference_mode():
        assert chunked.losses(hidden.detach(), targets).shape == (1, 2)
    total = chunked.losses(hidden, targets).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass, and this is the second"):
        total.backward()


def test_a_head_whose_weights_are_16_bits_trains_too() -> None:
    linear, chunked = (head.to(torch.bfloat16) for head in heads())
    hidden, targets = torch.randn(2, 5, EMBEDDING_DIM, dtype=torch.bfloat16), torch.full((2, 5), VOCABULARY - 1)
    for head in (linear, chunked):
        head.losses(hidden, targets).mean().backward()
    torch.testing.assert_close(chunked.weight.grad, linear.weight.grad, rtol=0.02, atol=1e-4)


def test_fp32_gradients_may_be_asked_for_twice() -> None:
    _, chunked = heads()
    hidden = torch.randn(1, 4, EMBEDDING_DIM, requires_grad=True)
    total = chunked.losses(hidden, torch.zeros(1, 4, dtype=torch.long)).sum()
    (first,) = torch.autograd.grad(total, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(total, hidden)
    torch.testing.assert_close(first, second)


def test_losses_of_extreme_logits_are_right() -> None:
    _, chunked = heads()
    hidden = 300 * torch.randn(1, 4, EMBEDDING_DIM)
    targets = torch.tensor([[0, 1, 2, 3]])
    wanted = torch.nn.functional.cross_entropy(chunked(hidden)[0].double(), targets[0], reduction="none")
    assert wanted.max() > 100  # a probability that fp32 cannot hold
    found = chunked.losses(hidden.requires_grad_(), targets)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_fp32_tensor_has_the_size_of_all_logits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", 2 * VOCABULARY)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                sizes.append(result.numel())
            return result

    linear, chunked = heads()
    all_logits = BATCH * TIME * VOCABULARY
    largest = []
    for head in (linear, chunked):
        sizes.clear()
        with Watch():  # type: ignore[no-untyped-call]
            losses_and_gradients(head, precision, torch.ones(BATCH, TIME))
        largest.append(max(size for size in sizes if size != head.weight.numel()))
    assert largest[0] >= all_logits
    assert largest[1] <= 2 * VOCABULARY


def test_subtracting_targets_is_adding_minus_one_there() -> None:
    probabilities, targets = torch.rand(9, VOCABULARY), torch.randint(0, VOCABULARY, (9,))
    wanted = probabilities.scatter_add(1, targets[:, None], torch.full((9, 1), -1.0))
    assert torch.equal(head_module._subtract_targets(probabilities.clone(), targets), wanted)


def test_tokens_per_chunk() -> None:
    assert head_module.chunk_rows("cuda", 50_257, 4_096) == 4_096
    assert head_module.chunk_rows("cuda", 50_257, None) == 1_280
    assert head_module.chunk_rows("cpu", 50_257, 4_096) == 166


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"logit_cap": 0.5, "z_loss": 0.3}])
def test_a_batch_without_targets_has_gradients_of_zero(precision: str, settings: dict[str, float]) -> None:
    _, chunked = heads(**settings)
    hidden = torch.randn(1, 0, EMBEDDING_DIM, requires_grad=True)
    targets = torch.zeros(1, 0, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = chunked.penalised_losses(hidden, targets)[0] if settings else chunked.losses(hidden, targets)
    losses.sum().backward()
    assert losses.shape == (1, 0) and chunked.weight.grad is not None and not chunked.weight.grad.any()


def test_eager_rows_are_the_loss_and_its_gradient_in_fp64() -> None:
    check_rows(head_module.eager_rows)


def test_the_kernel_is_the_loss_and_its_gradient_in_fp64() -> None:
    """In Triton's interpreter; tests/cuda has the same on a GPU."""
    if find_spec("triton") is None:
        pytest.skip("needs Triton, which torch's builds for CUDA bring")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "tests.models.rows"], check=True, cwd=REPOSITORY, env=environment)
