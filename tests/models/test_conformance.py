"""What every kind of every slot of a model must do; a new kind is tested here as soon as it is registered."""

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import create_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fromscratch.config.base import Slot, tables_in
from fromscratch.config.model import (
    ChunkedHead,
    ExplicitAttention,
    FusedAttention,
    GPTConfig,
    LinearHead,
    MixtureOfExperts,
    RMSNorm,
    RotaryPosition,
    SwiGLU,
)
from fromscratch.formats.checkpoints import MODEL_FILE, Contents, TrainingState, save_checkpoint
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.formats.weights import fill, model_tensors
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder
from fromscratch.models import mixture
from fromscratch.models.attention import CausalAttention
from fromscratch.models.cache import KeyValueCache
from fromscratch.models.costs import model_costs
from fromscratch.models.dropout import set_sequence_keys
from fromscratch.models.factory import SLOT_NAMES, build_empty, initialise
from fromscratch.models.gpt import GPT
from tests.models.mechanisms import TRIALS, trial_kinds
from tests.publishing.models import publish

CPU = torch.device("cpu")
VOCABULARY, CONTEXT = 257, 24
SHAPE = {"vocab_size": VOCABULARY, "context_length": CONTEXT, "num_layers": 2, "num_heads": 4, "embedding_dim": 32}
REGISTERED: list[tuple[str, type[Slot]]] = [
    (name, kind)
    for name, field in GPTConfig.model_fields.items()
    for kind in tables_in(field.annotation)
    if issubclass(kind, Slot)
]


def with_settings(kind: type[Slot], **settings: Any) -> type[Slot]:
    """The kind with other defaults."""
    fields: dict[str, Any] = {name: (kind.model_fields[name].annotation, value) for name, value in settings.items()}
    return create_model("-".join(map(str, settings.values())), __base__=kind, **fields)


VARIANTS: list[tuple[str, type[Slot]]] = [
    ("norm", with_settings(RMSNorm, scale=False)),
    ("position", with_settings(RotaryPosition, scaling="linear", factor=2.0)),
    ("position", with_settings(RotaryPosition, scaling="yarn", trained_context=12)),
    ("position", with_settings(RotaryPosition, scaling="llama3", factor=2.0)),
    ("attention", with_settings(FusedAttention, key_value_heads=2)),
    ("attention", with_settings(FusedAttention, window=(5, 0))),
    ("attention", with_settings(FusedAttention, query_key_norm="scaled", output_bias=False)),
    ("attention", with_settings(ExplicitAttention, key_value_heads=1, query_key_norm="plain", window=4, score_cap=3.0)),
    ("attention", with_settings(FusedAttention, key_value_heads=2, value_embeddings=True)),
    ("feedforward", with_settings(SwiGLU, hidden_dim=20, linear_bias=True)),
    ("feedforward", with_settings(MixtureOfExperts, experts=3, active_experts=1, hidden_dim=20, capacity=0.5)),
    ("head", with_settings(LinearHead, logit_cap=3.0, z_loss=0.1)),
    ("head", with_settings(ChunkedHead, logit_cap=3.0, z_loss=0.1)),
]
"""Kinds with settings that change what they compute."""
KINDS = [*REGISTERED, *TRIALS, *VARIANTS]
INITS = [kind for slot, kind in REGISTERED if slot == "init"]
TOKENS = torch.randint(0, VOCABULARY, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(1))


def name_of(kind: type[Slot]) -> str:
    return str(kind.model_fields["kind"].default)


def each(kinds: list[tuple[str, type[Slot]]]) -> pytest.MarkDecorator:
    names = [f"{name_of(kind)}-{kind.__name__}" if (slot, kind) in VARIANTS else name_of(kind) for slot, kind in kinds]
    ids = [f"{slot}-{name}" for (slot, _), name in zip(kinds, names, strict=True)]
    return pytest.mark.parametrize(("slot", "kind"), kinds, ids=ids)


every_kind = each(KINDS)


@pytest.fixture(scope="module", autouse=True)
def _trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with trial_kinds(tmp_path_factory.mktemp("models")):
        yield


def config_of(slot: str, kind: type[Slot], **changes: Any) -> GPTConfig:
    required = {name: 1 for name, field in kind.model_fields.items() if field.is_required()}
    settings = kind(**required).model_dump(exclude_none=True)
    values = {"init": {"kind": "gpt2", "std": 0.2}, slot: settings}
    return GPTConfig.model_validate({**SHAPE, "dropout": 0.2, **values, **changes})


def model_of(slot: str, kind: type[Slot], **changes: Any) -> GPT:
    config = config_of(slot, kind, **changes)
    model = build_empty(config, CPU)
    initialise(model, config, seed=3)
    return model.eval()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_all_slots_are_tested() -> None:
    assert {slot for slot, _ in REGISTERED} == {*SLOT_NAMES, "init"}
    assert len(REGISTERED) >= 10


@every_kind
def test_cached_equals_uncached_in_chunks_and_with_padding(slot: str, kind: type[Slot]) -> None:
    model, padding = model_of(slot, kind), [3, 0]
    tokens = TOKENS[:2, :CONTEXT].clone()
    with torch.inference_mode():
        for missing in ([0, 0], padding):
            cache = KeyValueCache(capacity=CONTEXT)
            cache.begin(missing, CPU)
            chunks = [model(chunk, cache) for chunk in tokens.split([7, 1, 8, 1, 1, 6], dim=1)]
            for row, begin in enumerate(missing):
                close(torch.cat(chunks, dim=1)[row, begin:], model(tokens[row : row + 1, begin:])[0])


@every_kind
def test_generation_with_and_without_cache_agrees_beyond_the_context(slot: str, kind: type[Slot]) -> None:
    model = model_of(slot, kind)
    prompts = [TOKENS[0, :20].tolist(), TOKENS[1, :3].tolist()]
    cached, plain = (make(model, prompts, max_new_tokens=40) for make in (CachedDecoder, PlainDecoder))
    with torch.inference_mode():
        for token in range(12):
            close(cached.next_logits(), plain.next_logits())
            cached.texts.append([token, token + 1])
            plain.texts.append([token, token + 1])


@every_kind
def test_sequences_alone_and_together_have_the_same_losses_and_gradients(slot: str, kind: type[Slot]) -> None:
    found = []
    for micro_batch in (1, 4):
        model, losses = model_of(slot, kind).train(), []
        for rows, keys in zip(TOKENS.split(micro_batch), torch.arange(4).split(micro_batch), strict=True):
            set_sequence_keys(model, tuple(keys.tolist()))
            part = model.training_losses(rows[:, :-1], rows[:, 1:])
            (part.losses.sum() + part.penalty).backward()
            losses.append(part.losses.detach())
        assert all(parameter.grad is not None for parameter in model.parameters())
        found.append([torch.cat(losses), *(parameter.grad for parameter in model.parameters())])
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@every_kind
def test_a_checkpoint_loaded_is_the_model_saved(slot: str, kind: type[Slot], tmp_path: Path) -> None:
    model = model_of(slot, kind)
    checkpoint = save_checkpoint(tmp_path, Contents(model_tensors(model), {}, TrainingState()))
    again = build_empty(config_of(slot, kind), CPU).eval()
    fill_with_nan(again)
    fill(again, read_tensors(checkpoint / MODEL_FILE), checkpoint)
    with torch.inference_mode():
        assert torch.equal(again(TOKENS[:, :-1]), model(TOKENS[:, :-1]))


@each([(slot, kind) for slot, kind in KINDS if slot in SLOT_NAMES])
def test_what_is_published_is_the_model(slot: str, kind: type[Slot], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    changes = config_of(slot, kind).model_dump(exclude_none=True)
    loaded, folder = publish(tmp_path, "custom", **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokens, mask = TOKENS[:2, :12], torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.inference_mode():
        close(theirs(tokens).logits, loaded.model(tokens))
        close(theirs(tokens, attention_mask=mask).logits[0, 4:], loaded.model(tokens[:1, 4:])[0])
        first = theirs(tokens[:, :8], attention_mask=mask[:, :8])
        name = "cache" if "cache" in first else "past_key_values"  # transformers 5.24 renamed it
        last = theirs(tokens[:, 8:], attention_mask=mask, **{name: first[name]}).logits
        close(last[0], loaded.model(tokens[:1, 4:])[0, 4:])
        close(last[1], loaded.model(tokens[1:])[0, 8:])
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    texts = [
        theirs.generate(tokens, attention_mask=mask, **settings, **more).tolist()
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"})
    ]
    assert texts[0] == texts[1] == texts[2]


@every_kind
@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_are_counted(
    slot: str, kind: type[Slot], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts the matrix products; of attention, whose kernels compute more than is seen, the visible pairs.

    It does not look into the operator of the experts, so that runs as plain products.
    """
    model, pairs = model_of(slot, kind, tied_head=tied), 0
    heads, channels = SHAPE["num_heads"], SHAPE["embedding_dim"] // SHAPE["num_heads"]

    def attend(_self: object, query: Tensor, key: Tensor, value: Tensor, *, mask: Any, is_causal: bool) -> Tensor:
        nonlocal pairs
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        if mask is not None:
            seen = (mask if mask.dtype == torch.bool else mask > -math.inf)[0, 0]
        seen = seen.tril() if is_causal else seen
        pairs += int(seen.sum())
        return value

    def products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        return torch.cat([part @ m.T for part, m in zip(mixture._parts(rows, ends), matrices, strict=True)])

    monkeypatch.setattr(mixture, "expert_products", products)
    for attention in {type(module) for module in model.modules() if isinstance(module, CausalAttention)}:
        monkeypatch.setattr(attention, "attend", attend)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(TOKENS[:1, :CONTEXT])
    counted = (counter.get_total_flops() + 4 * channels * heads * pairs) / CONTEXT
    costs = model_costs(config_of(slot, kind, tied_head=tied))
    assert costs.forward_flops_per_token == pytest.approx(counted, abs=0.5)  # it is a whole number
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())


def fill_with_nan(model: GPT) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(math.nan)


@every_kind
@pytest.mark.parametrize("init", INITS, ids=name_of)
@pytest.mark.parametrize("tied", [True, False])
def test_reset_sets_every_parameter_and_buffer(slot: str, kind: type[Slot], init: type[Slot], tied: bool) -> None:
    changes = {} if slot == "init" else {"init": name_of(init)}
    config = config_of(slot, kind, tied_head=tied, **changes)
    model = build_empty(config, CPU)
    fill_with_nan(model)
    initialise(model, config, seed=3)
    unset = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if not torch.isfinite(t).all()]
    assert unset == []


INTERCHANGEABLE = [
    (slot, one, other)
    for (slot, one), (other_slot, other) in combinations([*REGISTERED, *TRIALS], 2)
    if slot == other_slot and slot != "init" and one().weight_settings() == other().weight_settings()
]


@pytest.mark.parametrize(("slot", "one", "other"), INTERCHANGEABLE)
def test_kinds_whose_weights_mean_the_same_compute_the_same(slot: str, one: type[Slot], other: type[Slot]) -> None:
    first, second = model_of(slot, one), model_of(slot, other)
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        close(second(TOKENS[:, :-1]), first(TOKENS[:, :-1]))
        close(second.losses(TOKENS[:, :-1], TOKENS[:, 1:]), first.losses(TOKENS[:, :-1], TOKENS[:, 1:]))


def test_some_kinds_are_interchangeable() -> None:
    assert {slot for slot, _, _ in INTERCHANGEABLE} == {"attention", "head"}
