"""Llama, Mistral, Qwen2, Qwen3 and Mixtral as the transformers library stores them.

One table of names serves both directions. Ours are joint matrices: query, key and value; gate and up; all experts.

Letters: B batch, T time, D embedding, H heads, G heads of keys and values, C channels of a head, V vocabulary.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import GPTConfig, MixtureOfExperts
from fromscratch.errors import DataError
from fromscratch.formats.classifiers import take_score
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.layouts import EMBEDDING, HEAD, check_tied
from fromscratch.formats.llama_config import MODEL_TYPES, read_llama_config, windows_of
from fromscratch.formats.weights import read_weights, take
from fromscratch.models.factory import build_model
from fromscratch.models.positions import Rotation

PREFIX = "model."
OUTSIDE = {EMBEDDING: "embed_tokens.weight", "final_norm.weight": "norm.weight", HEAD: "lm_head.weight"}
MODULES = {
    "attention_norm": ("input_layernorm",),
    "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.query_norm": ("self_attn.q_norm",),
    "attention.key_norm": ("self_attn.k_norm",),
    "attention.output": ("self_attn.o_proj",),
    "feedforward_norm": ("post_attention_layernorm",),
    "feedforward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "feedforward.output": ("mlp.down_proj",),
    "feedforward.router": ("block_sparse_moe.gate",),
}
"""Modules of a layer, ours -> theirs. The rows of several are concatenated in this order."""
EXPERT_MATRICES = {"feedforward.gate_up": ("w1", "w3"), "feedforward.output": ("w2",)}
"""Stacked parameters of a mixture, ours -> theirs, for each expert in turn."""
BUFFERS = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
STACKED_EXPERTS = re.compile(r"(layers\.\d+\.)mlp\.(gate\.weight|experts\.gate_up_proj|experts\.down_proj)")
"""Names of a mixture that was saved as transformers 5 holds it in memory."""


def read_llama(folder: Path, raw: dict[str, Any], *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """Reads a folder with their ``config.json`` and safetensors.

    Args:
        classes: those of a classifier (``LlamaForSequenceClassification`` and so on).

    Raises:
        InexpressibleError: our models cannot compute what a key of the config says.
        DataError: tensors are missing, unexpected or of other shapes.
        UsageError: quantised weights; or the head is tied by the config, but not by the tensors.
    """
    config, notes = read_llama_config(raw, folder / "config.json")
    tensors = _separate_experts({name.removeprefix(PREFIX): tensor for name, tensor in read_weights(folder).items()})
    score = take_score(tensors, folder) if classes else None
    if classes:
        config = config.model_copy(update={"tied_head": True})  # no language head is stored
    if config.tied_head and OUTSIDE[HEAD] in tensors:
        tensors.setdefault(OUTSIDE[EMBEDDING], tensors[OUTSIDE[HEAD]])
        check_tied(tensors, OUTSIDE[EMBEDDING], OUTSIDE[HEAD], folder)
        del tensors[OUTSIDE[HEAD]]
    with torch.device("meta"):
        model = build_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = {ours: _their_names(ours, config) for ours in shapes}
    found = take(tensors, [name for group in names.values() for name in group], folder)
    if unexpected := sorted(name for name in tensors.keys() - found.keys() if not BUFFERS.fullmatch(name)):
        raise DataError(f"{folder}: unexpected tensors {unexpected}; the weights are of another architecture")
    for ours, shape in shapes.items():
        wanted = _part_shapes(ours, shape, len(names[ours]), config)
        _check_shapes(found, dict(zip(names[ours], wanted, strict=True)), folder)
    rotation: Any = model.position.in_attention  # type: ignore[union-attr]
    return ImportedModel(
        MODEL_TYPES[raw["model_type"]],
        config,
        {ours: _joined([found[name] for name in names[ours]]).view(shape) for ours, shape in shapes.items()},
        partial(reference_logits, found, config, rotation),
        notes=notes,
        classes=classes,
        score=score,
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def to_llama_tensors(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors under their names and in their layouts."""
    theirs = {}
    for ours, tensor in tensors.items():
        names = _their_names(ours, config)
        shapes = _part_shapes(ours, tensor.shape, len(names), config)
        parts = tensor.reshape(-1, *shapes[0][1:]).split([shape[0] for shape in shapes])
        for name, part in zip(names, parts, strict=True):
            theirs[name if ours == HEAD else PREFIX + name] = part.contiguous()
    return theirs


def _their_names(ours: str, config: GPTConfig) -> tuple[str, ...]:
    """Their names, without prefix, of the parts of a tensor of ours."""
    if ours in OUTSIDE:
        return (OUTSIDE[ours],)
    _, layer, inner = ours.split(".", 2)
    module, _, leaf = inner.rpartition(".")
    names = [f"{name}.{leaf}" for name in MODULES.get(module, ())]
    if inner in EXPERT_MATRICES:
        assert isinstance(config.feedforward, MixtureOfExperts)
        experts = [f"block_sparse_moe.experts.{expert}" for expert in range(config.feedforward.experts)]
        names = [f"{expert}.{name}.weight" for expert in experts for name in EXPERT_MATRICES[inner]]
    return tuple(f"layers.{layer}.{name}" for name in names)


def _part_shapes(ours: str, shape: torch.Size, num_parts: int, config: GPTConfig) -> list[tuple[int, ...]]:
    """The shapes of the parts, whose rows are concatenated."""
    columns = shape[1:][-1:]
    rows = [math.prod(shape) // math.prod(columns) // num_parts] * num_parts
    if "query_key_value" in ours:
        groups = config.attention.key_value_heads or config.num_heads
        rows = [heads * config.head_channels for heads in (config.num_heads, groups, groups)]
    return [(count, *columns) for count in rows]


def _check_shapes(found: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise DataError(f"{folder}: {name} is {list(found[name].shape)}, but config.json makes it {list(shape)}")


def _separate_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A mixture that was saved as transformers 5 holds it in memory, under the names of its files."""
    theirs = {}
    for name, tensor in tensors.items():
        stacked = STACKED_EXPERTS.fullmatch(name)
        if stacked is None:
            theirs[name] = tensor
            continue
        prefix = f"{stacked[1]}block_sparse_moe."
        if stacked[2] == "gate.weight":
            theirs[f"{prefix}gate.weight"] = tensor
            continue
        matrices = ("w1", "w3") if "gate_up" in stacked[2] else ("w2",)
        for expert, joint in enumerate(tensor):
            parts = zip(matrices, joint.chunk(len(matrices)), strict=True)
            theirs |= {f"{prefix}experts.{expert}.{matrix}.weight": part for matrix, part in parts}
    return theirs


def reference_logits(found: dict[str, Tensor], config: GPTConfig, rotation: Rotation, tokens: Tensor) -> Tensor:
    """Computes the forward pass in plain operations on their tensors: ids [B, T] -> [B, T, V]."""
    x = found[OUTSIDE[EMBEDDING]][tokens]
    eps, network = config.norm.eps, config.feedforward
    for layer, window in enumerate(windows_of(config)):
        prefix = f"layers.{layer}."
        parts = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
        hidden = _normalised(x, parts["input_layernorm.weight"], eps)
        x = x + _attended(parts, hidden, config, rotation, window)
        hidden = _normalised(x, parts["post_attention_layernorm.weight"], eps)
        if isinstance(network, MixtureOfExperts):
            x = x + _mixed(parts, hidden, network.active_experts)
        else:
            x = x + _gated(parts, hidden, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    head = found[OUTSIDE[EMBEDDING if config.tied_head else HEAD]]
    return _normalised(x, found[OUTSIDE["final_norm.weight"]], eps) @ head.T


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _linear(parts: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, parts[f"{name}.weight"], parts.get(f"{name}.bias"))


def _attended(parts: dict[str, Tensor], x: Tensor, config: GPTConfig, rotation: Rotation, window: int) -> Tensor:
    """Attention of one layer, [B, T, D] -> [B, T, D]; a window of 0 is none."""
    batch, time, _ = x.shape
    query, key, value = (
        _linear(parts, f"self_attn.{name}_proj", x).view(batch, time, -1, config.head_channels).transpose(1, 2)
        for name in "qkv"
    )  # [B, H, T, C] and twice [B, G, T, C]
    if config.attention.query_key_norm:
        query = _normalised(query, parts["self_attn.q_norm.weight"], config.norm.eps)
        key = _normalised(key, parts["self_attn.k_norm.weight"], config.norm.eps)
    positions = torch.arange(time)
    query, key = rotation.encode(query, key, positions[None])
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    distances = positions[:, None] - positions
    is_hidden = (distances < 0) | (distances >= (window or time))
    scores = (query @ key.mT / math.sqrt(config.head_channels)).masked_fill(is_hidden, float("-inf"))
    return _linear(parts, "self_attn.o_proj", (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, time, -1))


def _gated(parts: dict[str, Tensor], x: Tensor, gate: str, up: str, down: str) -> Tensor:
    return _linear(parts, down, F.silu(_linear(parts, gate, x)) * _linear(parts, up, x))


def _mixed(parts: dict[str, Tensor], x: Tensor, num_active: int) -> Tensor:
    """The mixture of one layer: every expert computes every token [B, T, D], and counts for those that chose it."""
    probabilities = _linear(parts, "block_sparse_moe.gate", x).softmax(-1)  # [B, T, E]
    lowest = probabilities.topk(num_active, dim=-1).values[..., -1:]
    weights = torch.where(probabilities >= lowest, probabilities, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    experts = (f"block_sparse_moe.experts.{expert}" for expert in range(weights.shape[-1]))
    outputs = [_gated(parts, x, f"{expert}.w1", f"{expert}.w3", f"{expert}.w2") for expert in experts]
    return (torch.stack(outputs, dim=-1) * weights[..., None, :]).sum(-1)
