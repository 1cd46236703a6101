"""Recurrent models against torch's own layers, and what every kind of model must do."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fromscratch.config.recurrent import RECURRENT_PRESETS, RecurrentConfig
from fromscratch.config.run import parse_model
from fromscratch.generation.decoders import CachedDecoder, PlainDecoder
from fromscratch.models.costs import model_costs
from fromscratch.models.dropout import set_sequence_keys
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.recurrent import LAYERS, Recurrent, RecurrentState

VOCABULARY, HIDDEN, TIME = 23, 12, 20
KINDS = tuple(LAYERS)
CPU = torch.device("cpu")
TOKENS = torch.randint(VOCABULARY, (4, TIME + 1), generator=torch.Generator().manual_seed(1))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def config_of(kind: str, **settings: Any) -> RecurrentConfig:
    shape = {"vocab_size": VOCABULARY, "context_length": TIME, "num_layers": 2, "hidden_dim": HIDDEN}
    config = parse_model({"kind": kind, **shape, **settings})
    assert isinstance(config, RecurrentConfig)
    return config


def model_of(kind: str, **settings: Any) -> Recurrent:
    config = config_of(kind, **settings)
    model = build_empty(config, CPU)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    initialise(model, config, seed=3)
    assert isinstance(model, Recurrent)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    return model


def some_carry(model: Recurrent) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    carry = model.initial_carry(len(TOKENS))
    return {name: torch.rand(part.shape, generator=generator) - 0.5 for name, part in carry.items()}


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in found)
    return found  # type: ignore[return-value]


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("embedding_dim", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_written_out_equal_torchs(kind: str, embedding_dim: int | None) -> None:
    results = []
    for implementation in ("torch", "explicit"):
        model = model_of(kind, implementation=implementation, embedding_dim=embedding_dim)
        layers = set(map(type, model.layers))
        assert layers == {LAYERS[kind][implementation]}
        assert any(isinstance(m, nn.RNNBase) for m in model.modules()) == (implementation == "torch")
        losses, carry = model.losses_and_carry(INPUTS, TARGETS, some_carry(model))
        (losses.sum() + sum(part.sum() for part in carry.values())).backward()
        results.append((losses, carry, gradients(model)))
    close(results[0], results[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_stack_equals_torchs_own_stack(kind: str) -> None:
    """A network of two layers in one torch module, fed with one-hot vectors, and a linear layer."""
    ours = model_of(kind)
    stack = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](VOCABULARY, HIDDEN, num_layers=2, batch_first=True)
    linear = nn.Linear(HIDDEN, VOCABULARY)
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), [*stack.parameters(), *linear.parameters()], strict=True):
            theirs.copy_(mine)
    hidden, _ = stack(F.one_hot(INPUTS, VOCABULARY).float())
    wanted = F.cross_entropy(linear(hidden).flatten(0, 1), TARGETS.flatten())
    wanted.backward()
    found = ours.losses(INPUTS, TARGETS).mean()
    found.backward()
    close((found, gradients(ours)), (wanted, [p.grad for p in (*stack.parameters(), *linear.parameters())]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_pieces_is_the_whole_text_and_gradients_end_at_a_detached_state(kind: str) -> None:
    model = model_of(kind)
    whole = model.losses(INPUTS, TARGETS)
    carry, parts = model.initial_carry(len(TOKENS)), []
    for begin, end in ((0, 7), (7, 8), (8, TIME)):
        losses, carry = model.losses_and_carry(INPUTS[:, begin:end], TARGETS[:, begin:end], carry)
        assert all(part.requires_grad for part in carry.values())
        carry = {name: part.detach() for name, part in carry.items()}
        parts.append(losses)
    close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_equals_recomputation_in_chunks_and_with_padding(kind: str) -> None:
    model = model_of(kind).eval()
    for missing in ([0, 0], [3, 0], [0, 9]):
        memory = model.new_past(0)
        assert isinstance(memory, RecurrentState)
        memory.begin(missing, CPU)
        with torch.inference_mode():
            chunks = [model(chunk, memory) for chunk in INPUTS[:2].split([7, 1, 8, 4], dim=1)]
            for row, begin in enumerate(missing):
                close(torch.cat(chunks, dim=1)[row, begin:], model(INPUTS[row : row + 1, begin:])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_and_without_memory_agrees_far_beyond_the_context(kind: str) -> None:
    model = model_of(kind, context_length=5, embedding_dim=6).eval()
    prompts = [TOKENS[0, :17].tolist(), TOKENS[1, :3].tolist()]
    cached, plain = (make(model, prompts, max_new_tokens=40) for make in (CachedDecoder, PlainDecoder))
    with torch.inference_mode():
        for token in range(20):
            close(cached.next_logits(), plain.next_logits())
            cached.texts.append([token, token + 1])
            plain.texts.append([token, token + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_alone_and_together_have_the_same_losses_and_gradients(kind: str) -> None:
    found = []
    for micro_batch in (1, 4):
        model, losses = model_of(kind, dropout=0.3).train(), []
        carry = some_carry(model)
        for begin in range(0, 4, micro_batch):
            rows = slice(begin, begin + micro_batch)
            set_sequence_keys(model, tuple(range(begin, begin + micro_batch)))
            state = {name: part[rows] for name, part in carry.items()}
            part, _ = model.losses_and_carry(INPUTS[rows], TARGETS[rows], state)
            part.sum().backward()
            losses.append(part.detach())
        found.append([torch.cat(losses), *gradients(model)])
    close(found[0], found[1], 1e-4)


def test_dropout_follows_every_layer_the_last_one_included() -> None:
    """With half of the outputs dropped, what enters the second layer and the head has zeros, doubled elsewhere."""
    model, seen = model_of("lstm", dropout=0.5).train(), []
    for module in (model.layers[1], model.head):
        module.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    x = [model.layers[0](F.one_hot(INPUTS, VOCABULARY).float())[0]]
    set_sequence_keys(model, (1, 2, 3, 4))
    model.head(model.hidden_states(INPUTS, model.initial_carry(4))[0])
    x.append(model.layers[1](seen[0])[0])
    masks = []
    for before, after in zip(x, seen[:2], strict=True):
        kept = after != 0
        masks.append(kept)
        assert 0.4 < kept.float().mean() < 0.6
        close(after[kept], 2 * before[kept])
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("embedding_dim", [None, 7])
@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_parameters_and_operations_are_those_that_are_counted(kind: str, gates: int, embedding_dim: int | None) -> None:
    costs = model_costs(config_of(kind, embedding_dim=embedding_dim))
    width = embedding_dim or VOCABULARY
    layers = sum(gates * HIDDEN * (inputs + HIDDEN + 2) for inputs in (width, HIDDEN))
    assert costs.parameters == (embedding_dim or 0) * VOCABULARY + layers + (HIDDEN + 1) * VOCABULARY
    model = model_of(kind, implementation="explicit", embedding_dim=embedding_dim)
    with FlopCounterMode(display=False) as counter:
        model(INPUTS)
    assert costs.forward_flops_per_token == counter.get_total_flops() / INPUTS.numel()


def test_first_weights_are_torchs_and_follow_the_seed() -> None:
    model, same = model_of("lstm"), model_of("lstm", implementation="explicit")
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    values = torch.cat([parameter.flatten() for parameter in model.layers.parameters()])
    bound = HIDDEN**-0.5
    assert values.abs().max() <= bound and values.abs().max() > 0.98 * bound
    gpt2 = model_of("lstm", init={"kind": "gpt2", "std": 0.1})
    biases = [parameter for parameter in gpt2.parameters() if parameter.dim() == 1]
    assert len(biases) == 5 and not any(bool(bias.any()) for bias in biases)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_carry_keeps_its_number_format(precision: str) -> None:
    model = model_of("lstm")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses, carry = model.losses_and_carry(INPUTS, TARGETS, some_carry(model))
    assert losses.dtype == torch.float32 and all(part.dtype == torch.float32 for part in carry.values())
    close(losses, model.losses_and_carry(INPUTS, TARGETS, some_carry(model))[0], 0.05)


def test_presets_are_karpathys_and_fields_override_them() -> None:
    assert set(RECURRENT_PRESETS) == {"min-char-rnn", "char-rnn", "char-rnn-512"}
    config = config_of("gru", preset="char-rnn-512", hidden_dim=8)
    assert (config.num_layers, config.hidden_dim, config.context_length) == (2, 8, TIME)
    large = parse_model({"kind": "lstm", "preset": "char-rnn-512"}).model_dump()
    assert (large["num_layers"], large["hidden_dim"], large["context_length"]) == (3, 512, 100)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_dim": 0}, {"num_layers": 0}, {"embedding_dim": 0}, {"dropout": 1.0}, {"implementation": "x"}],
)
def test_b4_values_that_no_network_has_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        config_of("lstm", **settings)


def test_weights_fit_either_implementation_and_any_context() -> None:
    one, other = config_of("lstm"), config_of("lstm", implementation="explicit", context_length=7)
    assert one.weight_settings() == other.weight_settings() != config_of("gru").weight_settings()
