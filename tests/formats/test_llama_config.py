"""``config.json`` of Llama, Mistral, Qwen2, Qwen3 and Mixtral: every key is mapped, has no effect, or is refused."""

from pathlib import Path
from typing import Any

import pytest

from fromscratch.formats.llama_config import FAMILIES, InexpressibleError, read_llama_config
from fromscratch.models.costs import model_costs

transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def raw_config(family: str, **changes: Any) -> dict[str, Any]:
    """A ``config.json``; keys that are None here are left out, and those that are ``...`` become null."""
    found = {"model_type": family.lower(), **SHAPE, **changes}
    return {key: None if value is ... else value for key, value in found.items() if value is not None}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Llama", {"hidden_act": "gelu"}, 'hidden_act = "gelu": only "silu" can be read'),
    (
        "Llama",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        "only default, linear",
    ),
    ("Llama", {"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 1, 1]}}, 'rope_scaling.rope_type = "mrope"'),
    ("Llama", {"partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor = 0.5: only a config without"),
    ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "rope_parameters.beta_fast = 16: only 32"),
    (
        "Llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.0}},
        "rope_parameters.attention_factor = 1.0: only 1.1",
    ),
    ("Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}}, "rope_parameters.mscale = 0.7"),
    ("Llama", {"rope_parameters": {**YARN, "truncate": False}}, "rope_parameters.truncate = false: only true"),
    (
        "Llama",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_scaling.low_freq_factor = null: only 1.0",
    ),
    (
        "Llama",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3, "high_freq_factor": 8.0}},
        "rope_scaling.high_freq_factor = 8.0: only 4.0",
    ),
    ("Llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "position.rope.factor = 0.5"),
    ("Llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
    ("Llama", {"sliding_window": 16}, "sliding_window = 16: only a config without"),
    ("Llama", {"layer_types": ["chunked_attention"] * 3}, 'layer_types = ["chunked_attention"'),
    ("Llama", {"num_local_experts": 4}, "num_local_experts = 4: only a config without"),
    ("Llama", {"is_causal": False}, "is_causal = false: only true"),
    ("Llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true: only false"),
    ("Llama", {"head_dim": 7}, "head_dim = 7; change it"),
    ("Llama", {"num_attention_heads": 5, "head_dim": 6}, "attention.key_value_heads = 2 does not divide num_heads = 5"),
    ("Llama", {"attention_bias": "yes"}, "attention_bias = 'yes'"),
    ("Mistral", {"layer_types": ["full_attention"] * 3}, 'layer_types = ["full_attention"'),
    ("Mistral", {"attention_bias": True, "sliding_window": ...}, "attention_bias = true: only false"),
    ("Qwen2", {"attention_bias": False}, "attention_bias = false: only true"),
    (
        "Qwen2",
        {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
        'layer_types = ["sliding_attention", "full_attention"]: only ["sliding_attention", "full_attention", "sli',
    ),
    ("Qwen3", {"layer_types": ["sliding_attention"] * 3}, 'layer_types = ["sliding_attention"'),
    ("Qwen3", {"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05: only 1e-06 beside norms of queries"),
    ("Mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1: only 2 or more can be read"),
    ("Mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1: only 0.0"),
]


@pytest.mark.parametrize(("family", "changes", "reason"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_ours_do_not_compute_is_refused_with_key_value_and_rule(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InexpressibleError) as refusal:
        read_llama_config(raw_config(family, **changes), Path("config.json"))
    assert reason in str(refusal.value) and str(refusal.value).startswith("config.json: ")


ACCEPTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "Llama",
        {"num_key_value_heads": ..., "head_dim": ..., "attention_dropout": ...},
        {"num_heads": 4, "dropout": 0.0},
    ),
    ("Llama", {"max_position_embeddings": None}, {"context_length": 2048}),
    ("Llama", {"sliding_window": 4096, "use_sliding_window": False, "layer_types": ["full_attention"] * 3}, {}),
    ("Llama", {"rope_scaling": ..., "rope_theta": 5e5, "pretraining_tp": 2, "made_up": 3}, {}),
    ("Llama", {"attention_dropout": 0.1, "mlp_bias": False, "quantization_config": ...}, {"dropout": 0.1}),
    (
        "Mistral",
        {"attention_bias": False, "num_key_value_heads": None, "num_attention_heads": 16},
        {"context_length": 64},
    ),
    ("Qwen2", {"num_key_value_heads": ..., "sliding_window": 8, "max_window_layers": 1}, {}),
]


@pytest.mark.parametrize(("family", "changes", "expected"), ACCEPTED, ids=[str(n) for n in range(len(ACCEPTED))])
def test_absent_null_and_idle_keys_mean_what_they_mean_to_transformers(
    family: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    raw = raw_config(family, **changes)
    config, notes = read_llama_config(raw, Path("config.json"))
    assert {key: getattr(config, key) for key in expected} == expected
    theirs = getattr(transformers, f"{family}Config")(**raw)
    assert config.context_length == theirs.max_position_embeddings
    assert (config.attention.key_value_heads or config.num_heads) == theirs.num_key_value_heads
    assert config.position.theta == theirs.rope_parameters["rope_theta"]
    windowed = family == "Mistral"
    assert config.attention.window == (theirs.sliding_window if windowed else None)
    assert any("made_up" in note for note in notes) == ("made_up" in raw)


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_mean_what_the_installed_transformers_takes(name: str) -> None:
    make, keys = getattr(transformers, f"{name}Config"), FAMILIES[name].keys
    defaults = make()
    for key in (key for key, absent in keys.items() if absent is not None):
        has_windows = key == "sliding_window" and "use_sliding_window" in keys
        assert getattr(make(use_sliding_window=True) if has_windows else defaults, key) == keys[key], key
    assert defaults.rope_parameters["rope_theta"] == FAMILIES[name].theta


LLAMA3_LONG = {**LLAMA3, "rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
NO_WINDOW = {"use_sliding_window": False, "max_window_layers": 28}
KNOWN: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-3.2-1B": (
        1_235_814_400,
        {
            **{"model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192},
            **{"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
            **{"max_position_embeddings": 131_072, "rope_theta": 500_000.0, "rope_scaling": LLAMA3_LONG},
            **{"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False},
        },
    ),
    "SmolLM2-135M": (
        134_515_008,
        {
            **{"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536},
            **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100_000},
            **{"max_position_embeddings": 8192, "rope_interleaved": False, "rope_scaling": None},
            **{"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "is_llama_config": True},
        },
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        {
            **{"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864},
            **{"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1e6},
            **{"max_position_embeddings": 32_768, "tie_word_embeddings": True, "sliding_window": 32_768, **NO_WINDOW},
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            **{"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072},
            **{"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
            **{"max_position_embeddings": 40_960, "rope_theta": 1_000_000, "rope_scaling": None},
            **{"rms_norm_eps": 1e-6, "tie_word_embeddings": True, "sliding_window": None, **NO_WINDOW},
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            **{"model_type": "mistral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 10_000.0},
            **{"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "sliding_window": 4096},
        },
    ),
    "Mixtral-8x7B-v0.1": (
        46_702_792_704,
        {
            **{"model_type": "mixtral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 1e6},
            **{"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "sliding_window": None},
            **{"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
        },
    ),
}
"""Well-known models: their number of parameters, and the keys of their ``config.json``."""


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_models_have_their_number_of_parameters(name: str) -> None:
    parameters, keys = KNOWN[name]
    config, _ = read_llama_config({**keys, "hidden_act": "silu", "pretraining_tp": 1}, Path("config.json"))
    assert model_costs(config).parameters == parameters
