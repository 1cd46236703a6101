"""The model against the literature, against transformers, and against itself."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fromscratch.config.model import ExplicitAttention, FusedAttention, GPTConfig, TorchInit
from fromscratch.models.costs import model_costs
from fromscratch.models.factory import build_empty, build_gpt, initialise
from fromscratch.models.gpt import GPT

GPT2_VOCABULARY = 50_257
TINY = {"vocab_size": 61, "context_length": 16, "num_layers": 2, "num_heads": 4, "embedding_dim": 32, "dropout": 0.0}
ATTENTIONS = [FusedAttention(), ExplicitAttention()]


def tiny(**changes: object) -> GPTConfig:
    return GPTConfig.model_validate({**TINY, **changes})


def initialised(config: GPTConfig, seed: int = 1) -> GPT:
    model = build_empty(config, "cpu")
    initialise(model, config, seed=seed)
    return model


@pytest.mark.parametrize(
    ("preset", "changes", "parameters"),
    [
        ("gpt2-small", {"tied_head": False, "attention_bias": False}, 163_009_536),
        ("gpt2-small", {"tied_head": False}, 163_009_536 + 27_648),
        ("gpt2-small", {}, 124_439_808),
        ("gpt2-medium", {}, 354_823_168),
        ("gpt2-large", {}, 774_030_080),
        ("gpt2-xl", {}, 1_557_611_200),
    ],
)
def test_parameters_are_those_of_the_released_models(preset: str, changes: dict[str, bool], parameters: int) -> None:
    config = GPTConfig.model_validate({"preset": preset, "vocab_size": GPT2_VOCABULARY, **changes})
    assert model_costs(config).parameters == parameters


def test_flops_per_token_by_hand() -> None:
    costs = model_costs(tiny(tied_head=False))
    embedding, layers, context = 32, 2, 16
    matrices = layers * 12 * embedding**2 + 61 * embedding  # 4 D^2 + 8 D^2 per block, and the head
    mean_visible_keys = (context + 1) / 2
    assert costs.forward_flops_per_token == 2 * matrices + layers * 4 * embedding * mean_visible_keys
    assert costs.training_flops_per_token == 3 * costs.forward_flops_per_token


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda slot: slot.kind)
def test_logits_equal_transformers(attention: FusedAttention | ExplicitAttention) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=211,
            n_positions=32,
            n_embd=48,
            n_layer=3,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ).eval()
    config = GPTConfig(
        vocab_size=211, context_length=32, num_layers=3, num_heads=4, embedding_dim=48, dropout=0, attention=attention
    )
    ours = build_empty(config, "cpu").eval()
    copy_from_transformers(ours, reference)
    tokens = torch.randint(0, 211, (3, 32))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, atol=1e-4, rtol=0)


def copy_from_transformers(model: GPT, reference: nn.Module) -> None:
    """Weights of a GPT2LMHeadModel by name; its Conv1D matrices are transposed."""
    names = {
        "token_embedding": "wte",
        "position.embedding": "wpe",
        "final_norm": "ln_f",
        "attention_norm": "ln_1",
        "feedforward_norm": "ln_2",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.output": "mlp.c_proj",
    }
    theirs = dict(reference.transformer.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path, _, leaf = name.rpartition(".")
            prefix = ".".join(path.split(".")[:2]) + "." if path.startswith("blocks.") else ""
            module = names[path.removeprefix(prefix)]
            source = theirs[f"{prefix.replace('blocks', 'h')}{module}.{leaf}"]
            parameter.copy_(source.T if module.split(".")[-1].startswith("c_") and leaf == "weight" else source)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda slot: slot.kind)
def test_the_future_cannot_be_seen(attention: FusedAttention | ExplicitAttention) -> None:
    model = initialised(tiny(attention=attention)).eval()
    tokens = torch.randint(0, 61, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 61
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_both_attentions_agree_in_value_and_gradient() -> None:
    models = [initialised(tiny(attention=attention)) for attention in ATTENTIONS]
    tokens = torch.randint(0, 61, (2, 17))
    for model in models:
        model.losses(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_losses_are_cross_entropies_of_the_logits() -> None:
    model = initialised(tiny()).eval()
    tokens = torch.randint(0, 61, (2, 17))
    logits = model(tokens[:, :-1])
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(model.losses(tokens[:, :-1], tokens[:, 1:]), expected)


def test_an_untrained_model_knows_nothing() -> None:
    model = initialised(tiny())
    tokens = torch.randint(0, 61, (4, 17))
    assert model.losses(tokens[:, :-1], tokens[:, 1:]).mean().item() == pytest.approx(math.log(61), abs=0.05)


def test_too_many_positions_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="17 tokens, but the model's context is 16"):
        initialised(tiny())(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("build", [build_gpt, lambda config: build_empty(config, "cpu")])
def test_a_tied_head_is_one_tensor(build: Callable[[GPTConfig], GPT]) -> None:
    tied, untied = build(tiny()), build(tiny(tied_head=False))
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight


class TestInitialisation:
    def test_gpt2_scales_residual_projections_by_depth(self) -> None:
        config = GPTConfig(vocab_size=512, num_layers=8, num_heads=4, embedding_dim=128, context_length=64)
        model = initialised(config)
        for block in model.blocks:
            assert block.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert block.attention.output.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
            assert block.feedforward.output.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
            assert block.feedforward.up.bias.abs().max().item() == 0
        assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_torch_has_the_distribution_of_the_framework(self) -> None:
        config = tiny(vocab_size=4_000, embedding_dim=64, tied_head=False, init=TorchInit())
        model = initialised(config)
        linear = model.blocks[0].feedforward.output
        assert isinstance(linear, nn.Linear)
        framework = nn.Linear(linear.in_features, linear.out_features)
        assert linear.weight.std().item() == pytest.approx(framework.weight.std().item(), rel=0.05)
        assert linear.weight.abs().max().item() <= 1 / math.sqrt(linear.in_features)
        assert linear.bias.std().item() > 0
        assert model.token_embedding.weight.std().item() == pytest.approx(1.0, rel=0.02)

    @pytest.mark.parametrize("init", ["gpt2", "torch"])
    def test_every_parameter_is_set_by_the_seed_alone(self, init: str) -> None:
        config = tiny(init=init, tied_head=False)
        state = torch.get_rng_state()
        one, same, other = initialised(config, 1), initialised(config, 1), initialised(config, 2)
        assert torch.equal(torch.get_rng_state(), state), "drawing weights must not disturb the global generator"
        for a, b in zip(one.parameters(), same.parameters(), strict=True):
            assert torch.equal(a, b) and torch.isfinite(a).all()
        assert not torch.equal(one.token_embedding.weight, other.token_embedding.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16 weights"])
def test_a_residual_stream_in_bf16_differs_by_its_rounding_only(precision: str) -> None:
    values = {"vocab_size": 61, "context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 16}
    tokens, results = torch.randint(0, 61, (2, 16)), []
    for extra in ({}, {"residual_dtype": "bf16"}):
        config = GPTConfig.model_validate({**values, "dropout": 0.0, **extra})
        model = build_empty(config, "cpu")
        initialise(model, config, seed=1)
        streams: list[torch.dtype] = []
        model.blocks[1].register_forward_hook(lambda _module, _inputs, x, streams=streams: streams.append(x[0].dtype))
        if precision == "bf16 weights":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = model.losses(tokens, tokens)
        losses.mean().backward()
        assert streams == [torch.bfloat16 if extra or precision == "bf16 weights" else torch.float32]
        results.append((losses.detach(), model.token_embedding.weight.grad))
    for plain, rounded in zip(*results, strict=True):
        assert (plain - rounded).norm() < 0.02 * plain.norm()
        assert torch.equal(plain, rounded) == (precision == "bf16 weights")


def test_a_residual_stream_in_fp32_leaves_the_resolved_file_as_it_was() -> None:
    values = {"vocab_size": 61, "context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 16}
    plain, changed = (GPTConfig.model_validate({**values, **extra}) for extra in ({}, {"residual_dtype": "bf16"}))
    assert "residual_dtype" not in plain.model_dump(exclude_none=True)
    assert plain.weight_settings() == changed.weight_settings()
