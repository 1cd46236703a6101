"""Mechanisms equal independent code: transformers' models, torch's own functions, or a few lines here."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import GPTConfig
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.models.mechanism import Sizes
from fromscratch.models.positions import DistanceBias, RotaryPosition, Rotation

SHAPE = {"vocab_size": 97, "context_length": 32, "num_layers": 2, "num_heads": 4, "embedding_dim": 64}
LLAMA = {
    **SHAPE,
    "dropout": 0.0,
    "attention_bias": False,
    "tied_head": False,
    "norm": {"kind": "rmsnorm", "eps": 1e-6},
    "position": {"kind": "rope", "theta": 10_000.0},
    "attention": {"kind": "sdpa", "key_value_heads": 2, "output_bias": False},
    "feedforward": {"kind": "swiglu", "hidden_dim": 96},
}
TOKENS = torch.randint(0, 97, (3, 32), generator=torch.Generator().manual_seed(1))
TRANSFORMERS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 97,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}


def ours_of(table: dict[str, Any]) -> GPT:
    config = GPTConfig.model_validate({**table, "init": {"kind": "gpt2", "std": 0.1}})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=5)
    with torch.no_grad():  # norms begin as ones, which would hide an exchange
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "norm" in name:
                parameter.copy_(
                    1.0 + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                )
    return model


def as_theirs(model: GPT, ours: dict[str, Any]) -> dict[str, Any]:
    """Our tensors under the names of Llama and Qwen3."""
    theirs = {}
    theirs["model.embed_tokens.weight"] = ours["token_embedding.weight"]
    theirs["model.norm.weight"], theirs["lm_head.weight"] = ours["final_norm.weight"], ours["head.weight"]
    for layer, block in enumerate(model.blocks):
        to, of = f"model.layers.{layer}.", f"blocks.{layer}."
        heads, groups = block.attention.num_heads, block.attention.num_key_value_heads
        channels = block.attention.head_channels
        rows = ours[f"{of}attention.query_key_value.weight"].split([heads * channels, *[groups * channels] * 2])
        for name, tensor in zip(("q", "k", "v"), rows, strict=True):
            theirs[f"{to}self_attn.{name}_proj.weight"] = tensor
        theirs[f"{to}self_attn.o_proj.weight"] = ours[f"{of}attention.output.weight"]
        for name in ("query", "key"):
            if f"{of}attention.{name}_norm.weight" in ours:
                theirs[f"{to}self_attn.{name[0]}_norm.weight"] = ours[f"{of}attention.{name}_norm.weight"]
        if f"{of}feedforward.router.weight" in ours:
            theirs[f"{to}mlp.gate.weight"] = ours[f"{of}feedforward.router.weight"]
            theirs[f"{to}mlp.experts.gate_up_proj"] = ours[f"{of}feedforward.gate_up"]
            theirs[f"{to}mlp.experts.down_proj"] = ours[f"{of}feedforward.output"]
        else:
            gate, up = ours[f"{of}feedforward.gate_up.weight"].chunk(2)
            theirs |= {f"{to}mlp.gate_proj.weight": gate, f"{to}mlp.up_proj.weight": up}
            theirs[f"{to}mlp.down_proj.weight"] = ours[f"{of}feedforward.output.weight"]
        theirs[f"{to}input_layernorm.weight"] = ours[f"{of}attention_norm.weight"]
        theirs[f"{to}post_attention_layernorm.weight"] = ours[f"{of}feedforward_norm.weight"]
    return theirs


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama-yarn": (
        "Llama",
        {"position": {"kind": "rope", "scaling": "yarn", "factor": 4.0, "trained_context": 16}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama-linear": (
        "Llama",
        {"position": {"kind": "rope", "scaling": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "qwen3": (
        "Qwen3",
        {"attention": {"kind": "explicit", "key_value_heads": 2, "output_bias": False, "query_key_norm": "scaled"}},
        {"head_dim": 16},
    ),
    "qwen3-wide-heads": (
        "Qwen3",
        {"head_dim": 24, "attention": {"kind": "sdpa", "output_bias": False, "query_key_norm": "scaled"}},
        {"head_dim": 24, "num_key_value_heads": 4},
    ),
    "llama-narrow-heads-llama3": (
        "Llama",
        {"head_dim": 8, "position": {"kind": "rope", "scaling": "llama3", "factor": 4.0, "trained_context": 16}},
        {
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mistral-window": (
        "Mistral",
        {"attention": {"kind": "sdpa", "key_value_heads": 2, "output_bias": False, "window": 7}},
        {"sliding_window": 7, "head_dim": 16},
    ),
    "mixtral": (
        "Mixtral",
        {"feedforward": {"kind": "mixture", "experts": 5, "active_experts": 2, "hidden_dim": 96}},
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "gemma-like-gate": (
        "Llama",
        {"feedforward": {"kind": "geglu", "hidden_dim": 96}},
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    family, changes, settings = CASES[name]
    model = ours_of({**LLAMA, **changes})
    config = getattr(transformers, f"{family}Config")(**{**TRANSFORMERS, **settings}, attn_implementation="eager")
    theirs = getattr(transformers, f"{family}ForCausalLM")(config)
    theirs.load_state_dict(as_theirs(model, model.state_dict()))
    logits, their_logits = model(TOKENS), theirs(TOKENS).logits
    torch.testing.assert_close(logits, their_logits, atol=2e-5, rtol=1e-4)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    logits.backward(upstream)
    their_logits.backward(upstream)
    gradients = as_theirs(model, {name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients.keys() == dict(theirs.named_parameters()).keys()
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, atol=2e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize(
    ("channels", "theta", "factor", "trained"), [(64, 1e4, 4.0, 1024), (16, 5e5, 8.0, 128), (128, 1e6, 1.5, 4096)]
)
def test_rotary_frequencies_are_those_of_transformers(channels: int, theta: float, factor: float, trained: int) -> None:
    utilities = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")

    def theirs(kind: str) -> Tensor:
        scaling = {"rope_theta": theta, "factor": factor, "original_max_position_embeddings": trained}
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config = transformers.LlamaConfig(
            hidden_size=channels,
            num_attention_heads=1,
            max_position_embeddings=trained,
            rope_parameters={"rope_type": kind, **scaling},
        )
        found: Tensor = utilities.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
        return found

    def ours(kind: str | None) -> Tensor:
        sizes = Sizes(7, trained, 1, 1, channels, 0.0, False, False)
        module = RotaryPosition(sizes, theta=theta, scaling=kind, factor=factor, trained_context=None)
        assert isinstance(module.in_attention, Rotation)
        return module.in_attention.frequencies(channels, torch.device("cpu"))

    for kind in ("linear", "yarn", "llama3"):
        torch.testing.assert_close(ours(kind), theirs(kind), rtol=1e-5, atol=0.0)
    base = theta * factor ** (channels / (channels - 2))
    by_hand = torch.tensor([base ** (-pair / channels) for pair in range(0, channels, 2)])
    torch.testing.assert_close(ours("ntk"), by_hand, rtol=1e-5, atol=0.0)
    plain = ours(None)
    torch.testing.assert_close(by_hand[-1], plain[-1] / factor, rtol=1e-5, atol=0.0)  # the slowest is interpolated


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 20])
def test_alibi_is_that_of_bloom(num_heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    slopes = bloom.build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    assert DistanceBias(num_heads).slopes(torch.device("cpu")).tolist() == pytest.approx(slopes.tolist())


@pytest.mark.parametrize("kind", ["sdpa", "explicit"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_alibi_lowers_scores_by_distance(kind: str, dropout: float) -> None:
    model = ours_of({**SHAPE, "position": "alibi", "attention": kind, "dropout": dropout}).eval()
    attention, positions = model.blocks[0].attention, torch.arange(32)[None]
    x = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(3))
    query, key, value = attention.query_key_value(x).view(2, 32, 3, 4, 16).permute(2, 0, 3, 1, 4)
    distance = (positions[0][:, None] - positions[0][None]).float()
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[:, None, None]
    scores = query @ key.mT / math.sqrt(16) - slopes * distance
    scores = scores.masked_fill(distance < 0, -math.inf)
    wanted = attention.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 32, 64))
    torch.testing.assert_close(attention(x, positions), wanted, atol=1e-5, rtol=1e-4)


def test_squared_relu_and_plain_norms_by_hand() -> None:
    model = ours_of({**SHAPE, "norm": {"kind": "rmsnorm", "scale": False}, "feedforward": "relu-squared-mlp"})
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    network = model.blocks[0].feedforward
    assert network.up.bias is None and network.up.out_features == 256
    torch.testing.assert_close(network(x), F.relu(x @ network.up.weight.T) ** 2 @ network.output.weight.T)
    norm = model.blocks[0].attention_norm(x)
    torch.testing.assert_close(norm, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert list(model.blocks[0].attention_norm.parameters()) == []


def test_scores_are_capped_by_hand() -> None:
    table = {**SHAPE, "position": "none", "attention": {"kind": "explicit", "score_cap": 2.0}, "dropout": 0.0}
    attention = ours_of(table).blocks[0].attention
    x = 5 * torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(3))
    query, key, value = attention.query_key_value(x).view(2, 9, 3, 4, 16).permute(2, 0, 3, 1, 4)
    scores = 2.0 * torch.tanh(query @ key.mT / 4.0 / 2.0)
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
    wanted = attention.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 9, 64))
    torch.testing.assert_close(attention(x, torch.arange(9)[None]), wanted)
    assert (query @ key.mT / 4.0).abs().max() > 4.0  # the cap matters


def nanochat_logits(model: GPT, tokens: Tensor) -> Tensor:
    """The forward pass of nanochat's ``gpt.py``, in plain operations on our weights."""

    def normed(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: Tensor) -> Tensor:  # [B, T, H, C]
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-torch.arange(half) / half)
        first, second = x.split(half, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    batch, time, heads = *tokens.shape, model.sizes.num_heads
    p = dict(model.named_parameters())
    x = first = normed(p["token_embedding.weight"][tokens])
    for layer in range(model.num_layers):
        of = f"blocks.{layer}."
        x = p["residual.stream"][layer] * x + p["residual.input"][layer] * first
        hidden = normed(x)
        query, key, value = (
            (hidden @ rows.T).view(batch, time, heads, -1)
            for rows in p[f"{of}attention.query_key_value.weight"].chunk(3)
        )
        if layer % 2 == (model.num_layers - 1) % 2:
            gate = 2 * torch.sigmoid(hidden[..., :32] @ p[f"{of}attention.value_gate.weight"].T)
            embedded = p[f"{of}attention.value_embedding.weight"][tokens].view(batch, time, heads, -1)
            value = value + gate[..., None] * embedded
        query, key = normed(turned(query)), normed(turned(key))  # after the rotation, which changes no norm
        scores = torch.einsum("bthc,bshc->bhts", query, key) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), -math.inf)
        mixed = torch.einsum("bhts,bshc->bthc", scores.softmax(-1), value).reshape(batch, time, -1)
        x = x + mixed @ p[f"{of}attention.output.weight"].T
        x = x + F.relu(normed(x) @ p[f"{of}feedforward.up.weight"].T) ** 2 @ p[f"{of}feedforward.output.weight"].T
    return 15.0 * torch.tanh(normed(x) @ p["head.weight"].T / 15.0)


def test_the_nanochat_preset_is_nanochat() -> None:
    model = ours_of({"preset": "nanochat-like-small", **SHAPE, "num_layers": 3})
    assert model.residual is not None and model.residual.stream.tolist() == [1.0] * 3
    assert model.residual.input.tolist() == pytest.approx([0.1] * 3)
    with torch.no_grad():  # they begin alike in all layers, which would hide an exchange
        for number, parameter in enumerate(p for n, p in model.named_parameters() if "gate" in n or "residual" in n):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    found, wanted = model(TOKENS), nanochat_logits(model, TOKENS)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad(logits, list(parameters.values()), upstream) for logits in (found, wanted)]
    for name, one, other in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3, msg=name)


def test_value_embeddings_need_token_ids() -> None:
    model = ours_of({"preset": "nanochat-like-small", **SHAPE})
    with pytest.raises(ValueError, match="value embeddings, which need token ids, not embeddings alone"):
        model.transform(torch.zeros(1, 3, 64))
