"""Models by name: shapes, and the mechanisms of well-known families at the sizes of GPT-2."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-small": {"num_layers": 12, "num_heads": 12, "embedding_dim": 768, "context_length": 1024},
    "gpt2-medium": {"num_layers": 24, "num_heads": 16, "embedding_dim": 1024, "context_length": 1024},
    "gpt2-large": {"num_layers": 36, "num_heads": 20, "embedding_dim": 1280, "context_length": 1024},
    "gpt2-xl": {"num_layers": 48, "num_heads": 25, "embedding_dim": 1600, "context_length": 1024},
    "laptop-tiny": {"num_layers": 2, "num_heads": 4, "embedding_dim": 64, "context_length": 64},
    "laptop-small": {"num_layers": 4, "num_heads": 6, "embedding_dim": 192, "context_length": 128},
    "laptop-medium": {"num_layers": 6, "num_heads": 6, "embedding_dim": 384, "context_length": 256},
}
"""Shapes by name: Radford et al. 2019, table 2; three that train on a laptop's processor."""
LLAMA_LIKE: dict[str, Any] = {
    "norm": "rmsnorm",
    "position": "rope",
    "attention": {"kind": "sdpa", "output_bias": False},
    "feedforward": "swiglu",
    "attention_bias": False,
    "tied_head": False,
    "dropout": 0.0,
}
"""The mechanisms of Touvron et al. 2023, section 2.2."""
NANOCHAT_LIKE: dict[str, Any] = {
    "norm": {"kind": "rmsnorm", "scale": False},
    "position": "rope",
    "attention": {"kind": "sdpa", "query_key_norm": "plain", "output_bias": False, "value_embeddings": True},
    "feedforward": "relu-squared-mlp",
    "head": {"kind": "chunked", "logit_cap": 15.0},
    "residual": "scaled",
    "attention_bias": False,
    "tied_head": False,
    "dropout": 0.0,
}
"""The mechanisms of Karpathy 2025, "nanochat", ``gpt.py``."""
PRESETS |= {
    f"{name}-{size}": PRESETS[f"gpt2-{size}"] | mechanisms
    for name, mechanisms in (("llama-like", LLAMA_LIKE), ("nanochat-like", NANOCHAT_LIKE))
    for size in ("small", "medium", "large", "xl")
}
PRESETS["modern-small"] = {
    **{"num_layers": 4, "num_heads": 4, "embedding_dim": 96, "context_length": 128},
    **{key: value for key, value in NANOCHAT_LIKE.items() if key != "head"},
    "attention": {**NANOCHAT_LIKE["attention"], "kind": "explicit"},
}
"""What the study in ``studies/quickstart`` found best for two minutes of training on two cores."""
