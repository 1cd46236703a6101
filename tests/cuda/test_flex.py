"""FlexAttention on a GPU: equal to the explicit form, one graph, little memory, no waiting, bit-exact again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.machine.attention import choose_attention
from fromscratch.machine.determinism import DETERMINISTIC_WORKSPACES, WORKSPACE
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.training.step import Stepper
from tests.cuda.small import SHAPE, cuda, make_stepper, weights_after
from tests.models.test_flex import KINDS

pytestmark = [  # torch looks at .grad where a graph begins; the mode that finds waiting calls itself a prototype
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

END = 0
FLEX_SHAPE = {**SHAPE, "context_length": 384, "dropout": 0.0, "head": "linear"}


def gpt(table: dict[str, Any], *, documents: bool, **shape: Any) -> GPT:
    config = GPTConfig.model_validate({**table, **FLEX_SHAPE, "init": {"kind": "gpt2", "std": 0.1}, **shape})
    model = build_empty(config, cuda())
    initialise(model, config, seed=5)
    model.document_end = END if documents else None
    model.flex_attention = True
    return model


def batch(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Random tokens of documents of about 60, inputs and targets."""
    tokens = torch.randint(1, 60, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    tokens = tokens.masked_fill(tokens == 59, END).to(cuda())
    return tokens[:, :-1], tokens[:, 1:]


def losses_and_gradients(model: GPT, precision: Precision, *, compiled: bool) -> list[Tensor]:
    inputs, targets = batch(3, model.context_length)
    losses_of = torch.compile(model.losses, dynamic=False, fullgraph=True) if compiled else model.losses
    with precision.arithmetic():
        losses = losses_of(inputs, targets)
    with precision.products():
        return [losses.detach(), *torch.autograd.grad(losses.mean(), list(model.parameters()))]


@pytest.mark.parametrize(("precision", "compiled"), [("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_those_of_the_other_way(name: str, precision: str, compiled: bool) -> None:
    """In bf16 they may differ from fp32 as much as the other way does."""
    torch.compiler.reset()
    model = gpt(KINDS[name].table, documents=KINDS[name].documents)
    found = losses_and_gradients(model, Precision(precision, cuda()), compiled=compiled)
    model.flex_attention = False
    exact = losses_and_gradients(model, Precision("fp32", cuda()), compiled=False)
    other = losses_and_gradients(model, Precision(precision, cuda()), compiled=False)
    for one, wanted, rounded in zip(found, exact, other, strict=True):
        assert (one - wanted).norm() < 1e-4 * wanted.norm() + 3 * (rounded - wanted).norm()


def stepper_of(name: str, **settings: Any) -> tuple[Stepper, GPT]:
    stepper = make_stepper(model={**KINDS[name].table, **FLEX_SHAPE}, **settings)
    model = stepper.model
    assert isinstance(model, GPT)
    model.document_end = END if KINDS[name].documents else None
    choose_attention(model, stepper.precision, cuda())
    assert model.flex_attention
    return stepper, model


@pytest.mark.parametrize("name", ["grouped-window-documents", "alibi-cap-multi-query"])
def test_a_compiled_step_is_one_graph_and_does_not_wait_for_the_device(name: str) -> None:
    torch.compiler.reset()
    stepper, _ = stepper_of(name, compiled=True)
    torch._dynamo.utils.counters.clear()
    assert torch.isfinite(weights_after(stepper, 2)).all()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        stepper.take(2, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_eager_step_is_that_of_the_other_way_and_repeats_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In deterministic mode, blocks recomputed in backward."""
    torch.compiler.reset()
    monkeypatch.setenv(WORKSPACE, DETERMINISTIC_WORKSPACES[0])
    torch.use_deterministic_algorithms(True)
    try:
        ends = []
        for flex in (True, True, False):
            stepper, model = stepper_of("grouped-window-documents", precision="fp32")
            model.gradient_checkpointing, model.flex_attention = True, flex
            ends.append(weights_after(stepper, 2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("table", [{}, {"attention": {"kind": "explicit", "score_cap": 30.0}}], ids=["mask", "cap"])
def test_the_memory_of_a_long_context_is_not_that_of_the_square(table: dict[str, Any]) -> None:
    """At 8,192 tokens with documents: not that of a layer's scores, and not that of one mask in each layer."""
    torch.compiler.reset()
    peaks = {}
    for flex in (True, False):
        model = gpt({"position": "rope", **table}, documents=True, context_length=8_192, num_layers=4)
        model.flex_attention = flex
        inputs, _ = batch(1, 8_192)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model._scored_states(inputs)  # the head would hide it
        hidden.sum().backward()
        peaks[flex] = torch.cuda.max_memory_allocated() - before
    squares = 4 * 8_192**2  # a byte for each pair of tokens in each layer
    assert peaks[False] - peaks[True] > squares / 2
    assert peaks[True] < peaks[False] / 2 if table else peaks[True] < peaks[False] - squares / 2
