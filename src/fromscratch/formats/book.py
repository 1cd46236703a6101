"""Checkpoints of the model in Sebastian Raschka's "Build a Large Language Model (From Scratch)".

``tok_emb``, ``trf_blocks.N.att.W_query`` and so on, as safetensors or as a ``.pth`` of tensors alone.
The number of heads stands in no tensor: it comes from a ``model.json`` or ``config.json`` beside the
weights, in the book's words (``n_heads``), or from the user.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import GPTConfig
from fromscratch.errors import UsageError
from fromscratch.files import read_json_object
from fromscratch.formats.foreign import ForeignModel, SourceLayer, SourceModel, norm_of
from fromscratch.formats.weights import read_weights, refuse_leftovers, take

MARK = "tok_emb.weight"
HUB_PREFIX = "model."  # what a transformers wrapper puts before the names
CONFIG_FILES = ("model.json", "config.json")
CHECKPOINTS = "checkpoints"
WRAPPED_SETTINGS = "cfg"  # where the wrapper's config.json keeps the model's settings
EPS = 1e-5  # the book's LayerNorm


def read_book(path: Path, *, num_heads: int | None = None) -> ForeignModel:
    """A file of weights, or a folder with one.

    Raises:
        DataError: the file is damaged, or tensors are missing or unexpected.
        UsageError: the number of heads is nowhere to be found.
    """
    tensors = {name.removeprefix(HUB_PREFIX): tensor for name, tensor in read_weights(path).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".att.mask")}
    settings = _settings(path)
    num_layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("trf_blocks.")), default=-1)
    bias = "trf_blocks.0.att.W_query.bias" in tensors
    wanted = [MARK, "pos_emb.weight", "final_norm.scale", "final_norm.shift"]
    wanted += [name for layer in range(num_layers) for name in _block_names(layer, bias)]
    tied = "out_head.weight" not in tensors or torch.equal(tensors["out_head.weight"], tensors[MARK])
    wanted += [] if "out_head.weight" not in tensors else ["out_head.weight"]
    found = take(tensors, wanted, path)
    refuse_leftovers(tensors, wanted, path)
    vocab_size, embedding_dim = found[MARK].shape
    config = GPTConfig(
        vocab_size=vocab_size,
        context_length=found["pos_emb.weight"].shape[0],
        num_layers=num_layers,
        num_heads=_num_heads(num_heads, settings, embedding_dim, path),
        embedding_dim=embedding_dim,
        dropout=float(settings.get("drop_rate", 0.1)),
        attention_bias=bias,
        tied_head=tied,
    )
    head = found.get("out_head.weight", found[MARK])
    ours = _ours(found, config)
    return ForeignModel("book", config, ours if tied else {**ours, "head.weight": head}, _source(found, head, config))


def _settings(path: Path) -> dict[str, Any]:
    for folder in settings_folders(path):
        for name in CONFIG_FILES:
            if (folder / name).is_file():
                settings = read_json_object(folder / name)
                wrapped = settings.get(WRAPPED_SETTINGS)
                return wrapped if isinstance(wrapped, dict) else settings
    return {}


def settings_folders(path: Path) -> list[Path]:
    """Where a model's settings may lie: beside its weights, or above ``checkpoints/NAME`` in its run folder."""
    folder = (path if path.is_dir() else path.parent).absolute()
    in_run = folder.parent.name == CHECKPOINTS
    return [folder, folder.parent.parent] if in_run else [folder]


def _num_heads(given: int | None, settings: dict[str, Any], embedding_dim: int, path: Path) -> int:
    heads = given or settings.get("n_heads") or settings.get("num_heads")
    if not isinstance(heads, int) or heads < 1:
        raise UsageError(
            f"{path}: the number of attention heads stands in no tensor; give --heads N, or put the model's settings "
            f'(with "n_heads") as {CONFIG_FILES[0]} beside the weights'
        )
    if embedding_dim % heads:
        raise UsageError(f"{path}: {heads} heads do not divide the embedding of {embedding_dim}")
    return heads


def _block_names(layer: int, bias: bool) -> list[str]:
    parts = [f"att.{name}.weight" for name in ("W_query", "W_key", "W_value")]
    parts += [name.replace("weight", "bias") for name in parts] if bias else []
    parts += [
        f"{name}.{leaf}" for name in ("att.out_proj", "ff.layers.0", "ff.layers.2") for leaf in ("weight", "bias")
    ]
    parts += [f"{name}.{leaf}" for name in ("norm1", "norm2") for leaf in ("scale", "shift")]
    return [f"trf_blocks.{layer}.{part}" for part in parts]


def _ours(found: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    ours = {
        "token_embedding.weight": found[MARK],
        "position.embedding.weight": found["pos_emb.weight"],
        "final_norm.weight": found["final_norm.scale"],
        "final_norm.bias": found["final_norm.shift"],
    }
    for layer in range(config.num_layers):
        theirs, block = f"trf_blocks.{layer}.", f"blocks.{layer}."
        for leaf in ("weight", "bias") if config.attention_bias else ("weight",):
            parts = [found[f"{theirs}att.{name}.{leaf}"] for name in ("W_query", "W_key", "W_value")]
            ours[f"{block}attention.query_key_value.{leaf}"] = torch.cat(parts)
        for leaf in ("weight", "bias"):
            ours[f"{block}attention.output.{leaf}"] = found[f"{theirs}att.out_proj.{leaf}"]
            ours[f"{block}feedforward.up.{leaf}"] = found[f"{theirs}ff.layers.0.{leaf}"]
            ours[f"{block}feedforward.output.{leaf}"] = found[f"{theirs}ff.layers.2.{leaf}"]
        for norm, name in (("attention_norm", "norm1"), ("feedforward_norm", "norm2")):
            ours[f"{block}{norm}.weight"] = found[f"{theirs}{name}.scale"]
            ours[f"{block}{norm}.bias"] = found[f"{theirs}{name}.shift"]
    return ours


def _source(found: dict[str, Tensor], head: Tensor, config: GPTConfig) -> SourceModel:
    def layer(index: int) -> SourceLayer:
        w = {name.split(".", 2)[2]: t for name, t in found.items() if name.startswith(f"trf_blocks.{index}.")}

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

        return SourceLayer(
            norm_of(w["norm1.scale"], w["norm1.shift"], EPS),
            lambda x: [linear(f"att.{name}", x) for name in ("W_query", "W_key", "W_value")],
            lambda x: linear("att.out_proj", x),
            norm_of(w["norm2.scale"], w["norm2.shift"], EPS),
            lambda x: linear("ff.layers.2", F.gelu(linear("ff.layers.0", x), approximate="tanh")),
        )

    layers = [layer(index) for index in range(config.num_layers)]
    final_norm = norm_of(found["final_norm.scale"], found["final_norm.shift"], EPS)
    return SourceModel(found[MARK], found["pos_emb.weight"], layers, final_norm, head, config.num_heads)
