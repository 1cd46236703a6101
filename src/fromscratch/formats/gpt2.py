"""GPT-2 as the transformers library stores it (``GPT2LMHeadModel``), OpenAI's own weights among them.

Its linear layers are ``Conv1D``: [in, out], the transpose of torch's. Query, key and value are one
matrix, as here. Buffers of old files (``attn.bias``, the causal mask) are no weights.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import ExactGeluMLP, GeluMLP, GPTConfig, LayerNorm
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.formats.foreign import ForeignModel, SourceLayer, SourceModel, norm_of
from fromscratch.formats.weights import read_weights, refuse_leftovers, take

OPENAI_REPOSITORIES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
MODEL_TYPE = "gpt2"
TRANSFORMER = "transformer."
BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
OUTSIDE_BLOCKS = {
    "token_embedding.weight": "wte.weight",
    "position.embedding.weight": "wpe.weight",
    "final_norm.weight": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
}
IN_BLOCKS = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feedforward_norm": "ln_2",
    "feedforward.up": "mlp.c_fc",
    "feedforward.output": "mlp.c_proj",
}
ACTIVATIONS = {"gelu_new": GeluMLP, "gelu_pytorch_tanh": GeluMLP, "gelu": ExactGeluMLP}


def names(num_layers: int) -> dict[str, str]:
    """Their name of every tensor of ours, the head's aside, without the ``transformer.`` before it."""
    blocks = {
        f"blocks.{layer}.{ours}.{leaf}": f"h.{layer}.{theirs}.{leaf}"
        for layer in range(num_layers)
        for ours, theirs in IN_BLOCKS.items()
        for leaf in ("weight", "bias")
    }
    return OUTSIDE_BLOCKS | blocks


def is_conv1d(name: str) -> bool:
    """Whether they store this tensor transposed."""
    return name.endswith(".weight") and name.split(".")[-2].startswith("c_")


def to_gpt2_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names and in their layouts; a missing attention bias becomes zeros."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    theirs = {}
    for ours, name in names(num_layers).items():
        tensor = tensors.get(ours)
        if tensor is None:
            tensor = torch.zeros(tensors[ours.replace(".bias", ".weight")].shape[0])
        theirs[TRANSFORMER + name] = tensor.T.contiguous() if is_conv1d(name) else tensor
    head = tensors.get("head.weight", tensors["token_embedding.weight"])
    return {**theirs, "lm_head.weight": head}


def read_gpt2(folder: Path) -> ForeignModel:
    """A folder with their ``config.json`` and safetensors.

    Raises:
        DataError: tensors are missing, unexpected or of other shapes.
        UsageError: a variant of GPT-2 that the model here does not have, or matrices that lie the other way.
    """
    raw = read_json_object(folder / "config.json")
    tensors = {name.removeprefix(TRANSFORMER): tensor for name, tensor in read_weights(folder).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not BUFFER.fullmatch(name)}
    tied = bool(raw.get("tie_word_embeddings", True))
    config = _config(raw, folder, tied=tied)
    wanted = names(config.num_layers)
    found = take(tensors, wanted.values(), folder)
    head = found["wte.weight"] if tied else take(tensors, ["lm_head.weight"], folder)["lm_head.weight"]
    refuse_leftovers(tensors, [*wanted.values(), "lm_head.weight"], folder)
    _check_head(tensors, tied, folder)
    _check_layout(found, config, folder)
    ours = {name: found[theirs].T if is_conv1d(theirs) else found[theirs] for name, theirs in wanted.items()}
    source = _source(found, head, config, str(raw.get("activation_function", "gelu_new")))
    return ForeignModel("GPT-2", config, ours if tied else {**ours, "head.weight": head}, source)


def _config(raw: dict[str, Any], folder: Path, *, tied: bool) -> GPTConfig:
    where = folder / "config.json"
    activation = str(raw.get("activation_function", "gelu_new"))
    if activation not in ACTIVATIONS:
        raise UsageError(f"{where}: activation_function = {activation!r}: only {', '.join(ACTIVATIONS)} can be read")
    for key, needed in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        if raw.get(key, needed) != needed:
            raise UsageError(f"{where}: {key} = {raw[key]}: only {needed} can be read")
    if raw.get("add_cross_attention"):
        raise UsageError(f"{where}: add_cross_attention = true: a model with an encoder cannot be read")
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
            tied_head=tied,
            norm=LayerNorm(eps=float(raw.get("layer_norm_epsilon", 1e-5))),
            feedforward=ACTIVATIONS[activation](ratio=inner // embedding_dim),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a GPT-2 config ({error!r})") from None


def _check_head(tensors: dict[str, Tensor], tied: bool, folder: Path) -> None:
    head = tensors.get("lm_head.weight")
    if tied and head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise UsageError(
            f"{folder}: its config says that the head is tied, but lm_head.weight differs from wte.weight; "
            'put "tie_word_embeddings": false into config.json if the head is one of its own'
        )


def _check_layout(found: dict[str, Tensor], config: GPTConfig, folder: Path) -> None:
    """Refuses what would only fit by chance: matrices the other way round, another vocabulary than the config's."""
    rows, width = found["wte.weight"].shape[0], config.embedding_dim
    if rows != config.vocab_size:
        raise UsageError(
            f"{folder}: wte.weight has {rows} rows, but its config says vocab_size = {config.vocab_size}; "
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


def _source(found: dict[str, Tensor], head: Tensor, config: GPTConfig, activation: str) -> SourceModel:
    approximate = "none" if activation == "gelu" else "tanh"
    eps = config.norm.eps

    def layer(index: int) -> SourceLayer:
        w = {name.split(".", 2)[2]: t for name, t in found.items() if name.startswith(f"h.{index}.")}
        return SourceLayer(
            norm_of(w["ln_1.weight"], w["ln_1.bias"], eps),
            lambda x: (x @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]).chunk(3, dim=-1),
            lambda x: x @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"],
            norm_of(w["ln_2.weight"], w["ln_2.bias"], eps),
            lambda x: (
                F.gelu(x @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"], approximate=approximate) @ w["mlp.c_proj.weight"]
                + w["mlp.c_proj.bias"]
            ),
        )

    layers = [layer(index) for index in range(config.num_layers)]
    final_norm = norm_of(found["ln_f.weight"], found["ln_f.bias"], eps)
    return SourceModel(found["wte.weight"], found["wpe.weight"], layers, final_norm, head, config.num_heads)
