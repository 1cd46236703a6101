"""Models that transformers' Llama, Mistral, Mixtral and Qwen3 compute: published without code, and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.formats.llama_config import not_llama
from fromscratch.formats.model_sources import open_model
from fromscratch.machine.hardware import find_hardware
from fromscratch.publishing.export import choose_format
from tests.publishing.models import publish

transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {
    "attention_bias": False,
    "norm": "rmsnorm",
    "position": {"kind": "rope", "theta": 50_000.0},
    "attention": {"kind": "sdpa", "output_bias": False},
    "feedforward": {"kind": "swiglu", "hidden_dim": 24},
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tied_head": False}),
    "llama-tied-grouped": (
        "LlamaForCausalLM",
        {"tied_head": True, "attention": {"kind": "explicit", "output_bias": False, "key_value_heads": 2}},
    ),
    "mistral": ("MistralForCausalLM", {"attention": {"kind": "sdpa", "output_bias": False, "window": 5}}),
    "mixtral": (
        "MixtralForCausalLM",
        {"feedforward": {"kind": "mixture", "experts": 3, "hidden_dim": 24, "capacity": 1.5}, "tied_head": False},
    ),
    "mixtral-window": (
        "MixtralForCausalLM",
        {
            "feedforward": {"kind": "mixture", "experts": 4, "active_experts": 3},
            "attention": {"kind": "sdpa", "output_bias": False, "window": 5},
        },
    ),
    "llama-biases": (
        "LlamaForCausalLM",
        {
            "attention_bias": True,
            "attention": "sdpa",
            "feedforward": {"kind": "swiglu", "linear_bias": True},
            "norm": {"kind": "rmsnorm", "eps": 1e-5},
        },
    ),
    "llama-linear": ("LlamaForCausalLM", {"position": {"kind": "rope", "scaling": "linear", "factor": 3.0}}),
    "llama-yarn": (
        "LlamaForCausalLM",
        {"position": {"kind": "rope", "scaling": "yarn", "trained_context": 8}, "head_dim": 4},
    ),
    "llama-llama3": (
        "LlamaForCausalLM",
        {"position": {"kind": "rope", "scaling": "llama3", "factor": 8.0, "trained_context": 16}},
    ),
    "mistral-wide-heads": (
        "MistralForCausalLM",
        {"head_dim": 10, "attention": {"kind": "explicit", "output_bias": False, "window": 5, "key_value_heads": 1}},
    ),
    "qwen2": ("Qwen2ForCausalLM", {"attention_bias": True, "dropout": 0.1}),
    "qwen2-windows": (
        "Qwen2ForCausalLM",
        {"attention_bias": True, "attention": {"kind": "sdpa", "output_bias": False, "window": [6, 0]}},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"attention": {"kind": "sdpa", "output_bias": False, "query_key_norm": "scaled"}}),
    "qwen3-windows": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 12,
            "attention": {"kind": "sdpa", "output_bias": False, "query_key_norm": "scaled", "window": [0, 7]},
        },
    ),
}
TOKENS = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_published_without_code_and_read_back(name: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[name]
    loaded, folder = publish(tmp_path, "native", **{**LLAMA, **changes})
    assert json.loads((folder / "config.json").read_text())["architectures"] == [family]
    assert not list(folder.glob("*.py"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(theirs).__name__ == family
    again = open_model(str(folder), find_hardware("cpu"))
    with torch.inference_mode():
        wanted = loaded.model(TOKENS)
        torch.testing.assert_close(theirs(TOKENS).logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again.model(TOKENS), wanted, atol=1e-4, rtol=1e-4)
    assert (again.config, again.fingerprint()) == (loaded.config, loaded.fingerprint())
    texts = [model.generate(TOKENS[:1, :6], max_new_tokens=8, do_sample=False, pad_token_id=0) for model in (theirs,)]
    ids = TOKENS[:1, :6]
    with torch.inference_mode():
        for _ in range(8):
            ids = torch.cat([ids, loaded.model(ids)[:, -1:].argmax(-1)], dim=1)
    assert texts[0].tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm": {"kind": "rmsnorm", "scale": False}}, "norm.scale = false"),
        ({"norm": "layernorm"}, "norm = layernorm"),
        ({"attention": "sdpa"}, "attention.output_bias = true, unlike Llama"),
        (
            {"attention_bias": True, "feedforward": {"kind": "swiglu", "linear_bias": True}},
            "attention.output_bias = false, unlike Llama",
        ),
        ({"attention": {"kind": "explicit", "output_bias": False, "score_cap": 9.0}}, "attention.score_cap = 9.0"),
        (
            {"attention": {"kind": "sdpa", "output_bias": False, "window": (4, 0)}},
            "attention.window = [4, 0], unlike Llama",
        ),
        ({"attention": {"kind": "sdpa", "window": (4, 6)}}, "attention.window of several lengths"),
        (
            {"attention": {"kind": "sdpa", "output_bias": False, "query_key_norm": "plain"}},
            'attention.query_key_norm = "plain", unlike Llama',
        ),
        ({"position": {"kind": "rope", "scaling": "ntk", "factor": 2.0}}, 'position.scaling = "ntk"'),
        (
            {"feedforward": "mixture", "attention": {"kind": "sdpa", "output_bias": False, "query_key_norm": "scaled"}},
            'feedforward.kind = "mixture", unlike Qwen3',
        ),
        ({"feedforward": {"kind": "mixture", "active_experts": 1}}, "feedforward.active_experts = 1"),
        ({"attention": {"kind": "sdpa", "value_embeddings": True}}, "attention.value_embeddings = True"),
        ({"residual": "scaled"}, "residual = scaled"),
        ({"multi_token": "blocks"}, "multi_token = blocks"),
        ({"head": {"kind": "chunked", "logit_cap": 20.0}}, "head.logit_cap = 20.0"),
    ],
)
def test_what_no_architecture_has_is_named(changes: dict[str, Any], reason: str) -> None:
    config = GPTConfig.model_validate({**LLAMA, **changes})
    assert not_llama(config) == reason
    assert choose_format(config, None) == "custom"


@pytest.mark.parametrize("settings", [{"key_value_heads": 6}, {"window": 64}, {"query_key_norm": "scaled"}])
def test_a_gpt2_with_other_attention_is_no_gpt2(settings: dict[str, Any]) -> None:
    assert choose_format(GPTConfig.model_validate({"attention": {"kind": "sdpa", **settings}}), None) == "custom"
    assert choose_format(GPTConfig.model_validate({"head_dim": 8}), None) == "custom"


@pytest.mark.parametrize(
    ("preset", "format_name", "reason"),
    [
        ("gpt2-small", "native", ""),
        ("laptop-tiny", "native", ""),
        ("llama-like-small", "native", ""),
        ("nanochat-like-small", "custom", "feedforward = relu-squared-mlp"),
        ("modern-small", "custom", "feedforward = relu-squared-mlp"),
    ],
)
def test_a_preset_is_published_natively_or_says_why_not_and_comes_back_whole(
    preset: str, format_name: str, reason: str, tmp_path: Path
) -> None:
    assert choose_format(GPTConfig.model_validate({"preset": preset}), None) == format_name
    if reason:
        with pytest.raises(UsageError, match=reason):
            choose_format(GPTConfig.model_validate({"preset": preset}), "native")
    loaded, folder = publish(tmp_path, format_name, preset=preset)
    again = open_model(str(folder), find_hardware("cpu"))
    assert (again.config, again.fingerprint()) == (loaded.config, loaded.fingerprint())
