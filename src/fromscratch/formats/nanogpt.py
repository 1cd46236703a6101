"""``ckpt.pt`` of nanoGPT: a pickle of tensors and plain values, read by the restricted reader only.

GPT-2's names with torch's linear layers (nothing transposed), a head that is always tied, and the
exact GELU (``nn.GELU()``). ``bias = False`` there means no bias anywhere, norms included; here these
become zeros, which compute the same.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import ExactGeluMLP, GPTConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.foreign import ForeignModel, SourceLayer, SourceModel, norm_of
from fromscratch.formats.gpt2 import BUFFER, TRANSFORMER, names
from fromscratch.formats.weights import as_fp32, read_pickle, refuse_leftovers, take

EPS = 1e-5


def is_nanogpt(found: dict[str, Any]) -> bool:
    """Whether an unpickled file is such a checkpoint."""
    return isinstance(found.get("model"), dict) and isinstance(found.get("model_args"), dict)


def read_nanogpt(path: Path) -> ForeignModel:
    """A ``ckpt.pt``. Raises DataError or UsageError where it is not what nanoGPT writes."""
    found = read_pickle(path)
    if not is_nanogpt(found):
        raise DataError(f"{path}: not a nanoGPT checkpoint (it has no model and model_args)")
    config = _config(found["model_args"], path)
    plain = {name.removeprefix(TRANSFORMER): tensor for name, tensor in as_fp32(found["model"], path).items()}
    plain = {name: tensor for name, tensor in plain.items() if not BUFFER.fullmatch(name)}
    has_bias = bool(found["model_args"].get("bias", True))
    wanted = names(config.num_layers)
    present = [name for name in wanted.values() if has_bias or not name.endswith(".bias")]
    refuse_leftovers(plain, [*present, "lm_head.weight"], path)
    tensors = take(plain, present, path)
    if "lm_head.weight" in plain and not torch.equal(plain["lm_head.weight"], plain["wte.weight"]):
        raise UsageError(f"{path}: its head is not tied to the embedding, which nanoGPT's always is; cannot be read")
    ours = {
        name: tensors[theirs] if theirs in tensors else torch.zeros(tensors[theirs.replace("bias", "weight")].shape[0])
        for name, theirs in wanted.items()
        if config.attention_bias or not name.endswith("query_key_value.bias")
    }
    notes = ["nanoGPT's exact GELU: feedforward = exact-gelu-mlp"]
    if not has_bias:
        notes.append("the checkpoint has no biases: those that the model here always has are zeros")
    return ForeignModel("nanoGPT", config, ours, _source(tensors, config), notes)


def _config(arguments: dict[str, Any], path: Path) -> GPTConfig:
    try:
        return GPTConfig(
            vocab_size=int(arguments["vocab_size"]),
            context_length=int(arguments["block_size"]),
            num_layers=int(arguments["n_layer"]),
            num_heads=int(arguments["n_head"]),
            embedding_dim=int(arguments["n_embd"]),
            dropout=float(arguments.get("dropout", 0.0)),
            attention_bias=bool(arguments.get("bias", True)),
            tied_head=True,
            feedforward=ExactGeluMLP(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its model_args are not nanoGPT's ({error!r})") from None


def _source(tensors: dict[str, Tensor], config: GPTConfig) -> SourceModel:
    def norm(weight: Tensor, bias: Tensor | None) -> Any:
        return norm_of(weight, torch.zeros_like(weight) if bias is None else bias, EPS)

    def layer(index: int) -> SourceLayer:
        w = {name.split(".", 2)[2]: t for name, t in tensors.items() if name.startswith(f"h.{index}.")}

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

        return SourceLayer(
            norm(w["ln_1.weight"], w.get("ln_1.bias")),
            lambda x: linear("attn.c_attn", x).split(config.embedding_dim, dim=-1),
            lambda x: linear("attn.c_proj", x),
            norm(w["ln_2.weight"], w.get("ln_2.bias")),
            lambda x: linear("mlp.c_proj", F.gelu(linear("mlp.c_fc", x))),
        )

    layers = [layer(index) for index in range(config.num_layers)]
    final_norm = norm(tensors["ln_f.weight"], tensors.get("ln_f.bias"))
    token_embedding = tensors["wte.weight"]
    return SourceModel(token_embedding, tensors["wpe.weight"], layers, final_norm, token_embedding, config.num_heads)
