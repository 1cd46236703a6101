"""Architectures of the transformers library that compute what a model of ours computes: no code travels with them.

GPT-2 where norms, positions and network are GPT-2's; Llama, Mistral, Mixtral or Qwen3 where they are RMSNorm, RoPE and
SwiGLU without biases, with a window of attention (Mistral), a mixture of experts (Mixtral), or norms of queries and
keys (Qwen3).
"""

from typing import Any

from torch import Tensor

from fromscratch.config.model import ExactGeluMLP, GeluMLP, GPTConfig, MixtureOfExperts, RMSNorm, RotaryPosition, SwiGLU
from fromscratch.formats.gpt2 import LAYOUT as GPT2_LAYOUT
from fromscratch.formats.gpt2 import to_gpt2_tensors
from fromscratch.formats.layouts import EMBEDDING, HEAD
from fromscratch.models.feedforward import default_gated_dim

GPT2_KINDS: dict[str, tuple[str, ...]] = {
    "norm": ("layernorm",),
    "position": ("learned",),
    "attention": ("multi-head",),
    "feedforward": ("gelu-mlp", "exact-gelu-mlp"),
    "head": ("linear",),
}
"""The kinds of each slot that a GPT2LMHeadModel computes too."""
LLAMA_KINDS: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm",),
    "position": ("rope",),
    "attention": ("multi-head",),
    "feedforward": ("swiglu", "mixture"),
    "head": ("linear",),
}
"""The same for LlamaForCausalLM and its relatives."""


def not_gpt2(config: GPTConfig) -> str:
    """Returns the first setting that GPT-2 does not have; an empty text if there is none."""
    names = ("key_value_heads", "window", "query_key_norm", "output_bias")
    return _other_kind(config, GPT2_KINDS) or _set(config, "attention", *names) or _beyond_both(config)


def not_llama(config: GPTConfig) -> str:
    """Returns the first setting that Llama, Mistral, Mixtral and Qwen3 do not have; an empty text if there is none."""
    if reason := _other_kind(config, LLAMA_KINDS) or _beyond_both(config):
        return reason
    norm, attention, network, position = config.norm, config.attention, config.feedforward, config.position
    assert isinstance(norm, RMSNorm) and isinstance(position, RotaryPosition)
    is_mixture = isinstance(network, MixtureOfExperts)
    wrong = {
        "norm.scale = false": not norm.scale,
        "norm.eps other than 1e-6 with attention.query_key_norm": attention.query_key_norm and norm.eps != 1e-6,
        "feedforward.linear_bias = true": isinstance(network, SwiGLU) and network.linear_bias,
        "feedforward.active_experts = 1": isinstance(network, MixtureOfExperts) and network.active_experts == 1,
        "both a mixture of experts and attention.query_key_norm": is_mixture and attention.query_key_norm,
        "attention_bias = true": config.attention_bias,
        "attention.output_bias is not false": attention.output_bias is not False,
        'attention.query_key_norm = "plain"': attention.query_key_norm == "plain",
        "both attention.window and attention.query_key_norm": attention.window and attention.query_key_norm,
        "attention.window by layer": isinstance(attention.window, tuple),
        f'position.scaling = "{position.scaling}"': position.scaling is not None,
    }
    return next((reason for reason, is_so in wrong.items() if is_so), "")


def native_config(config: GPTConfig) -> dict[str, Any]:
    """Returns the ``config.json`` of the architecture that fits; one of the two reasons must be empty."""
    return _llama_config(config) if not_gpt2(config) else _gpt2_config(config)


def native_tensors(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors under the names and in the layouts of that architecture."""
    if not_gpt2(config):
        return _to_llama_tensors(config, tensors)
    theirs = to_gpt2_tensors(tensors)
    if config.tied_head:
        del theirs[GPT2_LAYOUT.head]
    return theirs


def _other_kind(config: GPTConfig, kinds: dict[str, tuple[str, ...]]) -> str:
    for slot, known in kinds.items():
        if getattr(config, slot).weight_settings()["kind"] not in known:
            return f"{slot} = {getattr(config, slot).kind}"
    return ""


def _beyond_both(config: GPTConfig) -> str:
    """Returns the first setting that none of the architectures has."""
    attention = _set(config, "attention", "score_cap", "value_embeddings")
    filled = (f"{name} = {slot.kind}" for name in ("residual", "multi_token") if (slot := getattr(config, name)))
    return attention or _set(config, "head", "logit_cap") or next(filled, "")


def _set(config: GPTConfig, slot: str, *names: str) -> str:
    settings = getattr(config, slot).weight_settings()
    found = (f"{slot}.{name} = {settings[name]}" for name in names if settings.get(name) is not None)
    return next(found, "")


def _gpt2_config(config: GPTConfig) -> dict[str, Any]:
    assert isinstance(config.feedforward, GeluMLP | ExactGeluMLP)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.embedding_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feedforward.ratio * config.embedding_dim,
        "activation_function": "gelu" if isinstance(config.feedforward, ExactGeluMLP) else "gelu_new",
        "layer_norm_epsilon": config.norm.eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        "tie_word_embeddings": config.tied_head,
        "dtype": "float32",
    }


def _llama_config(config: GPTConfig) -> dict[str, Any]:
    """Llama, Mistral, Mixtral or Qwen3, whose only dropout is that of attention."""
    assert isinstance(config.position, RotaryPosition)
    family = "Qwen3" if config.attention.query_key_norm else "Mistral" if config.attention.window else "Llama"
    more: dict[str, Any] = {"sliding_window": config.attention.window} if family == "Mistral" else {}
    if isinstance(network := config.feedforward, MixtureOfExperts):
        family, experts = "Mixtral", {"num_local_experts": network.experts}
        more = {"sliding_window": config.attention.window or None, "num_experts_per_tok": network.active_experts}
        more |= experts | {"router_aux_loss_coef": network.balance_loss}
    return {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.embedding_dim,
        "intermediate_size": _hidden_dim(config),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.attention.key_value_heads or config.num_heads,
        "head_dim": config.embedding_dim // config.num_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        "rope_theta": config.position.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.position.theta},
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied_head,
        "dtype": "float32",
        **more,
    }


def _hidden_dim(config: GPTConfig) -> int:
    assert isinstance(config.feedforward, SwiGLU | MixtureOfExperts)
    return config.feedforward.hidden_dim or default_gated_dim(config.embedding_dim)


def _gated(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network of a layer: gate and up are joint in ours."""
    gate, up = ours["gate_up.weight"].chunk(2)
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": ours["output.weight"]}
    return {f"mlp.{name}.weight": tensor for name, tensor in parts.items()}


def _experts(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mixture of a layer, as Mixtral's files name it: w1 is the gate, w3 up, w2 the output."""
    theirs = {"block_sparse_moe.gate.weight": ours["router.weight"]}
    for expert, (gate_up, output) in enumerate(zip(ours["gate_up"], ours["output"], strict=True)):
        gate, up = gate_up.chunk(2)
        parts = {"w1": gate, "w2": output, "w3": up}
        theirs |= {f"block_sparse_moe.experts.{expert}.{name}.weight": tensor for name, tensor in parts.items()}
    return theirs


def _to_llama_tensors(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The joint matrices are divided: query, key and value; gate and up."""
    channels = config.embedding_dim // config.num_heads
    groups = (config.attention.key_value_heads or config.num_heads) * channels
    theirs = {"model.embed_tokens.weight": tensors[EMBEDDING], "model.norm.weight": tensors["final_norm.weight"]}
    if not config.tied_head:
        theirs["lm_head.weight"] = tensors[HEAD]
    for layer in range(config.num_layers):
        ours, prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        query_key_value = tensors[f"{ours}attention.query_key_value.weight"].split(
            [config.embedding_dim, groups, groups]
        )
        parts = dict(zip(("q_proj", "k_proj", "v_proj"), query_key_value, strict=True))
        parts["o_proj"] = tensors[f"{ours}attention.output.weight"]
        if config.attention.query_key_norm:
            parts["q_norm"] = tensors[f"{ours}attention.query_norm.weight"]
            parts["k_norm"] = tensors[f"{ours}attention.key_norm.weight"]
        theirs |= {f"{prefix}self_attn.{name}.weight": tensor for name, tensor in parts.items()}
        network = {name.removeprefix(f"{ours}feedforward."): t for name, t in tensors.items() if name.startswith(ours)}
        is_mixture = isinstance(config.feedforward, MixtureOfExperts)
        theirs |= {prefix + name: t for name, t in (_experts(network) if is_mixture else _gated(network)).items()}
        theirs[f"{prefix}input_layernorm.weight"] = tensors[f"{ours}attention_norm.weight"]
        theirs[f"{prefix}post_attention_layernorm.weight"] = tensors[f"{ours}feedforward_norm.weight"]
    return {name: tensor.contiguous() for name, tensor in theirs.items()}
