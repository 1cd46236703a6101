"""Checkpoints of the model in Sebastian Raschka's "Build a Large Language Model (From Scratch)".

The file is safetensors, or a ``.pth`` that holds tensors only. No tensor records the number of heads. It
comes from ``n_heads`` in a ``model.json`` or ``config.json`` beside the weights, or from the user.
"""

import re
from pathlib import Path
from typing import Any

import torch

from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.files import read_json_object
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.layouts import Layout
from fromscratch.formats.weights import read_weights, take

LAYOUT = Layout(
    format="book",
    prefix="model.",  # a transformers wrapper adds it
    buffers=re.compile(r".*\.att\.mask"),
    token_embedding="tok_emb.weight",
    position_embedding="pos_emb.weight",
    head="out_head.weight",
    final_norm="final_norm",
    block="trf_blocks.{}.",
    modules={
        "attention_norm": ("norm1",),
        "attention.query_key_value": ("att.W_query", "att.W_key", "att.W_value"),
        "attention.output": ("att.out_proj",),
        "feedforward_norm": ("norm2",),
        "feedforward.up": ("ff.layers.0",),
        "feedforward.output": ("ff.layers.2",),
    },
    norm_leaves=("scale", "shift"),
)
CONFIG_FILES = ("model.json", "config.json")
CHECKPOINTS = "checkpoints"
WRAPPED_SETTINGS = "cfg"  # key of the model's settings in the wrapper's config.json


def read_book(path: Path, *, num_heads: int | None = None) -> ImportedModel:
    """Reads a file of weights, or a folder with one.

    Raises:
        DataError: the file is damaged, or tensors are missing or unexpected.
        UsageError: the number of heads is unknown.
    """
    tensors = LAYOUT.select(read_weights(path))
    settings = _settings(path)
    embeddings = take(tensors, [LAYOUT.token_embedding, LAYOUT.position_embedding], path)
    vocab_size, embedding_dim = embeddings[LAYOUT.token_embedding].shape
    head = tensors.get(LAYOUT.head)
    config = GPTConfig(
        vocab_size=vocab_size,
        context_length=embeddings[LAYOUT.position_embedding].shape[0],
        num_layers=1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("trf_blocks.")), default=0),
        num_heads=_num_heads(num_heads, settings, embedding_dim, path),
        embedding_dim=embedding_dim,
        dropout=float(settings.get("drop_rate", 0.1)),
        attention_bias="trf_blocks.0.att.W_query.bias" in tensors,
        tied_head=head is None or torch.equal(head, embeddings[LAYOUT.token_embedding]),
    )
    return LAYOUT.read(tensors, config, path)


def _settings(path: Path) -> dict[str, Any]:
    for folder in settings_folders(path):
        for name in CONFIG_FILES:
            if (folder / name).is_file():
                settings = read_json_object(folder / name)
                wrapped = settings.get(WRAPPED_SETTINGS)
                return wrapped if isinstance(wrapped, dict) else settings
    return {}


def settings_folders(path: Path) -> list[Path]:
    """Returns the folders that may hold settings: the weights' own, and the run folder above ``checkpoints/NAME``."""
    folder = (path if path.is_dir() else path.parent).absolute()
    in_run = folder.parent.name == CHECKPOINTS
    return [folder, folder.parent.parent] if in_run else [folder]


def _num_heads(given: int | None, settings: dict[str, Any], embedding_dim: int, path: Path) -> int:
    heads = given or settings.get("n_heads") or settings.get("num_heads")
    if not isinstance(heads, int) or heads < 1:
        raise UsageError(
            f"{path}: no tensor records the number of attention heads; give --heads N, or put the model's settings "
            f'(with "n_heads") as {CONFIG_FILES[0]} beside the weights'
        )
    if embedding_dim % heads:
        raise UsageError(f"{path}: {heads} heads do not divide the embedding of {embedding_dim}")
    return heads
