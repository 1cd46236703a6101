"""GPT-2 as the transformers library stores it (``GPT2LMHeadModel``), including OpenAI's own weights.

The linear layers are ``Conv1D``: [in, out], the transpose of torch's. Query, key and value are one matrix.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromscratch.config.model import ExactGeluMLP, GeluMLP, GPTConfig, LayerNorm
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.formats.classifiers import take_score
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.layouts import EMBEDDING, HEAD, Layout
from fromscratch.formats.native_kinds import (
    DIFFERING_TABLE,
    beyond_native,
    check_not_quantised,
    first_set,
    other_kind,
    table_in,
)
from fromscratch.formats.weights import read_weights

OPENAI_REPOSITORIES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
MODEL_TYPE = "gpt2"
LAYOUT = Layout(
    format="GPT-2",
    prefix="transformer.",
    buffers=re.compile(r"h\.\d+\.attn\.(masked_)?bias"),
    token_embedding="wte.weight",
    position_embedding="wpe.weight",
    head="lm_head.weight",
    final_norm="ln_f",
    block="h.{}.",
    modules={
        "attention_norm": ("ln_1",),
        "attention.query_key_value": ("attn.c_attn",),
        "attention.output": ("attn.c_proj",),
        "feedforward_norm": ("ln_2",),
        "feedforward.up": ("mlp.c_fc",),
        "feedforward.output": ("mlp.c_proj",),
    },
    transposed=True,
)
KINDS: dict[str, tuple[str, ...]] = {
    "norm": ("layernorm",),
    "position": ("learned",),
    "attention": ("multi-head",),
    "feedforward": ("gelu-mlp", "exact-gelu-mlp"),
    "head": ("linear",),
}
"""The kinds of each slot that a GPT2LMHeadModel computes too."""


NEEDED_SETTINGS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_causal": True,
}
ACTIVATIONS = {"gelu_new": GeluMLP, "gelu_pytorch_tanh": GeluMLP, "gelu": ExactGeluMLP}


def not_gpt2(config: GPTConfig) -> str:
    """Returns the first setting that GPT-2 does not have; an empty text if there is none."""
    names = ("key_value_heads", "window", "query_key_norm", "output_bias")
    head_dim = f"head_dim = {config.head_dim}" if config.head_dim else ""
    return other_kind(config, KINDS) or first_set(config, "attention", *names) or head_dim or beyond_native(config)


def gpt2_config(config: GPTConfig) -> dict[str, Any]:
    """Returns the ``config.json`` of a ``GPT2LMHeadModel``; ``not_gpt2`` must be empty."""
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


def to_gpt2_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors under their names and in their layouts; a missing attention bias becomes zeros."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    theirs = {LAYOUT.head: tensors.get(HEAD, tensors[EMBEDDING])}
    for ours, (name,) in LAYOUT.names(num_layers).items():
        tensor = tensors.get(ours)
        if tensor is None:
            tensor = torch.zeros(tensors[ours.replace(".bias", ".weight")].shape[0])
        theirs[LAYOUT.prefix + name] = tensor.T.contiguous() if LAYOUT.is_transposed(ours) else tensor
    return theirs


def read_gpt2(folder: Path, *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """Reads a folder with their ``config.json`` and safetensors.

    Args:
        classes: those of a classifier (``GPT2ForSequenceClassification``).

    Raises:
        DataError: tensors are missing, unexpected or of other shapes.
        UsageError: an unsupported variant of GPT-2, or transposed matrices.
    """
    raw = read_json_object(folder / "config.json")
    check_not_quantised(raw, folder / "config.json")
    config = _config(raw, folder)
    gelu = "none" if raw.get("activation_function") == "gelu" else "tanh"
    weights = read_weights(folder)
    score = take_score(weights, folder) if classes else None
    if classes:
        config = config.model_copy(update={"tied_head": True})  # no language head is stored
    tensors = LAYOUT.select(weights, may_be_tied=config.tied_head)
    config, tensors, notes = _as_published(raw, config, tensors, folder)
    model = replace(LAYOUT, gelu=gelu, norm_eps=config.norm.eps).read(tensors, config, folder)
    _check_layout(tensors, config, folder)
    return replace(model, classes=classes, score=score, notes=notes)


def _as_published(
    raw: dict[str, Any], config: GPTConfig, tensors: dict[str, Tensor], folder: Path
) -> tuple[GPTConfig, dict[str, Tensor], list[str]]:
    """The config that ``publish`` wrote, if the keys still say so; a missing attention bias is there as zeros."""
    table = table_in(raw)
    if table is None:
        return config, tensors, []
    if not not_gpt2(table) and _config(gpt2_config(table), folder) == config:
        biases = [] if table.attention_bias else [name for name in tensors if name.endswith("attn.c_attn.bias")]
        if not any(tensors[name].any() for name in biases):
            return table, {name: tensor for name, tensor in tensors.items() if name not in biases}, []
    return config, tensors, [DIFFERING_TABLE]


def _config(raw: dict[str, Any], folder: Path) -> GPTConfig:
    where = folder / "config.json"
    activation = str(raw.get("activation_function", "gelu_new"))
    if activation not in ACTIVATIONS:
        raise UsageError(f"{where}: activation_function = {activation!r}: only {', '.join(ACTIVATIONS)} can be read")
    for key, needed in NEEDED_SETTINGS.items():
        if bool(raw.get(key, needed)) != needed:
            raise UsageError(f"{where}: {key} = {raw[key]}: only {needed} can be read")
    try:
        embedding_dim = int(raw["n_embd"])
        inner = int(raw.get("n_inner") or 4 * embedding_dim)
        if inner % embedding_dim:
            raise UsageError(f"{where}: n_inner = {inner}: must be a multiple of n_embd = {embedding_dim} to be read")
        return GPTConfig(
            vocab_size=int(raw["vocab_size"]),
            context_length=int(raw["n_positions"]),
            num_layers=int(raw["n_layer"]),
            num_heads=int(raw["n_head"]),
            embedding_dim=embedding_dim,
            dropout=float(raw.get("resid_pdrop", 0.1)),
            attention_bias=True,
            tied_head=bool(raw.get("tie_word_embeddings", True)),
            norm=LayerNorm(eps=float(raw.get("layer_norm_epsilon", 1e-5))),
            feedforward=ACTIVATIONS[activation](ratio=inner // embedding_dim),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a GPT-2 config ({error!r})") from None


def _check_layout(found: dict[str, Tensor], config: GPTConfig, folder: Path) -> None:
    """Raises UsageError for transposed matrices, or a vocabulary of another size than the config's."""
    rows, width = found["wte.weight"].shape[0], config.embedding_dim
    if rows != config.vocab_size:
        raise UsageError(
            f"{folder}: wte.weight has {rows} rows, but config.json says vocab_size = {config.vocab_size}; "
            "if the vocabulary was padded, put the padded size into config.json"
        )
    for layer in range(config.num_layers):
        for name, shape in (("attn.c_attn", (width, 3 * width)), ("mlp.c_fc", (width, 4 * width))):
            key = f"h.{layer}.{name}.weight"
            if tuple(found[key].shape) == shape[::-1]:
                raise UsageError(
                    f"{folder}: {key} is {list(found[key].shape)}, the transpose of Conv1D's {list(shape)}; the file "
                    "was written by a program that uses torch's linear layers, such as nanoGPT: transpose every "
                    "attn and mlp matrix"
                )
