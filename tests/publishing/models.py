"""Models to publish: tiny, with weights that make their texts differ."""

from pathlib import Path
from typing import Any

from fromscratch.config.model import GPTConfig
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.publishing.card import CardSettings
from fromscratch.publishing.export import export_model
from fromscratch.tokenizers.bytes import BytesTokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 257,
    "context_length": 32,
    "num_layers": 2,
    "num_heads": 4,
    "embedding_dim": 32,
    "dropout": 0.0,
    "init": {"kind": "gpt2", "std": 0.2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tied_head": True, "attention_bias": True},
    "untied": {"tied_head": False, "attention_bias": True},
    "no-bias": {"tied_head": True, "attention_bias": False, "attention": "explicit"},
    "untied-no-bias": {"tied_head": False, "attention_bias": False, "feedforward": {"kind": "gelu-mlp", "ratio": 2}},
    "exact-gelu": {"feedforward": "exact-gelu-mlp", "norm": {"kind": "layernorm", "eps": 1e-6}},
}


def make_model(**changes: Any) -> tuple[GPTConfig, GPT]:
    """Random weights, biases and norms included: nothing is zero or one by chance."""
    import torch

    config = GPTConfig.model_validate({**SHAPE, **changes})
    model = build_empty(config, "cpu")
    initialise(model, config, seed=7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    return config, model.eval()


def make_loaded(folder: Path, **changes: Any) -> LoadedModel:
    """A model opened from a folder in our own format."""
    config, model = make_model(**changes)
    write_model_folder(folder, config, model, BytesTokenizer(), {})
    return open_model(str(folder), find_hardware("cpu"))


def publish(folder: Path, format_name: str, **changes: Any) -> tuple[LoadedModel, Path]:
    """A model, and where it was published."""
    loaded = make_loaded(folder / "model", **changes)
    export_model(loaded, folder / "published", format_name=format_name, card=CardSettings())
    return loaded, folder / "published"
