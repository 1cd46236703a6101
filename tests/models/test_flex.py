"""FlexAttention equals the other ways, in losses and gradients; its block masks equal torch's.

torch refuses gradients of it on a CPU, because its CPU kernel has no backward pass. Here the refusal is lifted, and the
kernel is replaced by torch's own uncompiled form, which has one. ``tests/cuda`` tests the kernel.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from fromscratch.config.model import GPTConfig
from fromscratch.machine.acceleration import Acceleration, accelerate
from fromscratch.models import flex, gpt
from fromscratch.models.factory import build_empty, initialise
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.objective import MicroBatch

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it where a graph begins

END, LENGTH = 30, 300
SHAPE = {"vocab_size": 31, "context_length": LENGTH, "num_layers": 2, "num_heads": 4, "embedding_dim": 64}
TOKENS = torch.randint(0, END, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
TOKENS[0, [4, 5, 127, 200]] = END
TOKENS[1, [0, 255, 299]] = END


@dataclass(frozen=True)
class Kind:
    """A model whose attention does more than causal attention."""

    table: dict[str, Any]
    documents: bool = False


KINDS = {
    "window": Kind({"position": "learned", "attention": {"kind": "sdpa", "window": (70, 0)}}),
    "grouped-window-documents": Kind(
        {"position": "rope", "attention": {"kind": "sdpa", "key_value_heads": 2, "window": (200, 0)}}, documents=True
    ),
    "alibi-window-documents": Kind({"position": "alibi", "attention": {"kind": "sdpa", "window": 150}}, documents=True),
    "alibi-cap-multi-query": Kind(
        {"position": "alibi", "attention": {"kind": "explicit", "score_cap": 2.0, "key_value_heads": 1}}
    ),
    "cap-documents": Kind({"position": "rope", "attention": {"kind": "explicit", "score_cap": 2.0}}, documents=True),
    "nanochat-documents": Kind({"preset": "nanochat-like-small"}, documents=True),
}


@pytest.fixture(name="on_cpu")
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


@pytest.fixture(name="uncompiled")
def _uncompiled(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled", lambda: torch_flex.flex_attention)


@pytest.fixture(name="compiled")
def _compiled(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(flex, "_compiled", cache(flex._compiled.__wrapped__))


def model(kind: Kind, **changes: Any) -> gpt.GPT:
    table = {**kind.table, **SHAPE, "dropout": 0.0, "init": {"kind": "gpt2", "std": 0.2}, **changes}
    config = GPTConfig.model_validate(table)
    built = build_empty(config, "cpu")
    initialise(built, config, seed=5)
    built.document_end = END if kind.documents else None
    return built


def total_and_gradients(built: gpt.GPT, acceleration: Acceleration | None = None) -> list[Tensor]:
    loss = accelerate(built.train(), next_token_loss, acceleration or Acceleration(), backend="aot_eager")
    found = loss(built, MicroBatch(TOKENS[:, :-1], TOKENS[:, 1:], ()), {})
    total = found.total + found.penalty
    return [total.detach(), *torch.autograd.grad(total, [p for p in built.parameters() if p.requires_grad])]


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_those_of_the_other_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, attend = [], torch_flex.flex_attention

    def counted(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        return attend(*arguments, **settings)

    monkeypatch.setattr(torch_flex, "flex_attention", counted)
    built = model(KINDS[name])
    wanted = total_and_gradients(built)
    assert not calls
    built.flex_attention = True
    assert_close(total_and_gradients(built), wanted)
    assert len(calls) == (1 if name == "window" else 2), "a layer without a window is left to the faster kernel"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("acceleration", "num_layers", "graphs"),
    [(Acceleration(activation_checkpointing=True), 2, 2), (Acceleration(compile=True), 1, 1)],
    ids=["compiled by itself", "in the graph of a step"],
)
def test_compiled(acceleration: Acceleration, num_layers: int, graphs: int) -> None:
    """Two graphs by itself: one with a window, and one without."""
    built = model(KINDS["grouped-window-documents"], head="linear", num_layers=num_layers)
    wanted = total_and_gradients(built)
    built.flex_attention = True
    assert_close(total_and_gradients(built, acceleration), wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.usefixtures("compiled")
def test_more_shapes_than_torch_compiles_by_default() -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        for batch in (1, 2, 3):
            x = torch.ones(batch, 1, 4, 16)
            blocks = flex.visible_blocks(4, x.device, window=2, documents=None)
            assert torch.equal(flex.attend_in_blocks(x, x, x, blocks, cap=None, bias=None), x)


@pytest.mark.parametrize("window", [0, 1, 100, 128, 129, 256, 300])
@pytest.mark.parametrize("separates", [False, True])
@pytest.mark.parametrize("time", [128, 640, 300])
def test_block_masks_are_those_of_torch(window: int, separates: bool, time: int) -> None:
    ends = torch.zeros(3, time, dtype=torch.long)
    ends[0, [3, 127]], ends[1, ::50], ends[2, 127::128] = 1, 1, 1
    documents = ends.cumsum(1) - ends if separates else None
    found = flex.visible_blocks(time, torch.device("cpu"), window=window, documents=documents)
    wanted = torch_flex.create_block_mask(found.mask_mod, 3 if separates else 1, 1, time, time, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    if time % 128 == 0:
        assert found.full_kv_num_blocks is not None and wanted.full_kv_num_blocks is not None
        assert torch.equal(found.full_kv_num_blocks, wanted.full_kv_num_blocks)
        assert torch.equal(found.kv_num_blocks, wanted.kv_num_blocks)
    positions = torch.arange(time)
    distance = positions[:, None] - positions
    visible = (distance >= 0) & (distance < (window or time))
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    mask = torch_flex.create_mask(found.mask_mod, 3 if separates else 1, 1, time, time, device="cpu")
    assert torch.equal(mask[:, 0], visible.expand(mask.shape[0], -1, -1))


@pytest.mark.usefixtures("uncompiled")
def test_layers_with_the_same_window_share_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def visible_blocks(*arguments: Any, **settings: Any) -> Any:
        asked.append(settings["window"])
        return flex.visible_blocks(*arguments, **settings)

    monkeypatch.setattr(gpt, "visible_blocks", visible_blocks)
    built = model(KINDS["window"], num_layers=6, attention={"kind": "sdpa", "window": (70, 40, 0)})
    built.flex_attention = True
    built.losses(TOKENS[:, :-1], TOKENS[:, 1:])
    assert asked == [40, 70]
    built.document_end = END
    built.losses(TOKENS[:, :-1], TOKENS[:, 1:])
    assert asked[2:] == [0, 40, 70]


def test_a_shorter_text_and_a_cache_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FlexAttention was called, it would fail here."""
    monkeypatch.setattr(flex, "_compiled", lambda: pytest.fail("called"))
    built = model(KINDS["window"]).eval()
    built.flex_attention = True
    inputs = TOKENS[:, :-1]
    with torch.no_grad():
        whole, past = built(inputs[:, :90]), built.new_past(LENGTH)
        past.begin([0, 0], torch.device("cpu"))
        for begin in range(0, 90, 30):
            torch.testing.assert_close(built.next_logits(inputs[:, begin : begin + 30], past), whole[:, begin + 29])
        past.begin([0, 0], torch.device("cpu"))
        built.next_logits(inputs, past)
