"""Names and layouts of a GPT's tensors in other programs: one table per program.

``Layout.convert`` makes our tensors. ``Layout.logits`` computes the forward pass in plain operations on the
unconverted tensors. ``ImportedModel.check`` compares both, which finds a matrix that was transposed by mistake,
a missing bias, or the wrong activation.

Letters: B batch, T time, D embedding, H heads, C channels of a head, V vocabulary.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import GPTConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.weights import take

LEAVES = ("weight", "bias")
EMBEDDING, POSITIONS, HEAD = "token_embedding.weight", "position.embedding.weight", "head.weight"
QUERY_KEY_VALUE_BIAS = "attention.query_key_value.bias"


@dataclass(frozen=True)
class Layout:
    """The names and layouts of one program."""

    format: str
    prefix: str
    """An optional prefix of all names."""
    buffers: re.Pattern[str]
    """Names of saved buffers, such as the causal mask; they are ignored."""
    token_embedding: str
    position_embedding: str
    head: str
    final_norm: str
    block: str
    """Prefix of the names in block ``{}``."""
    modules: dict[str, tuple[str, ...]]
    """Names in a block, ours -> theirs. The outputs of several linear layers are concatenated in this order."""
    norm_leaves: tuple[str, str] = LEAVES
    transposed: bool = False
    """Whether linear layers are stored as [in, out], the transpose of torch's."""
    gelu: str = "tanh"
    """The activation, as torch's ``gelu`` names it: ``tanh`` approximates, ``none`` is exact."""
    norm_eps: float = 1e-5

    def names(self, num_layers: int) -> dict[str, tuple[str, ...]]:
        """Returns their names of each of our tensors, without prefix and head."""
        modules = {
            f"blocks.{layer}.{ours}": tuple(self.block.format(layer) + name for name in theirs)
            for layer in range(num_layers)
            for ours, theirs in self.modules.items()
        }
        modules["final_norm"] = (self.final_norm,)
        names: dict[str, tuple[str, ...]] = {
            EMBEDDING: (self.token_embedding,),
            POSITIONS: (self.position_embedding,),
        }
        for ours, theirs in modules.items():
            their_leaves = self.norm_leaves if ours.endswith("norm") else LEAVES
            for leaf, their_leaf in zip(LEAVES, their_leaves, strict=True):
                names[f"{ours}.{leaf}"] = tuple(f"{name}.{their_leaf}" for name in theirs)
        return names

    def is_transposed(self, ours: str) -> bool:
        """Whether the program stores the transpose of this tensor of ours."""
        return self.transposed and ours.startswith("blocks.") and ours.endswith(".weight") and "norm." not in ours

    def select(self, tensors: dict[str, Tensor], *, may_be_tied: bool = True) -> dict[str, Tensor]:
        """Returns the tensors without prefix and buffers; a tied matrix may be saved under either of its names."""
        plain = {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}
        found = {name: tensor for name, tensor in plain.items() if not self.buffers.fullmatch(name)}
        if may_be_tied and self.token_embedding not in found and self.head in found:
            found[self.token_embedding] = found[self.head]
        return found

    def read(
        self, tensors: dict[str, Tensor], config: GPTConfig, path: Path, *, has_bias: bool = True
    ) -> ImportedModel:
        """Converts the tensors that ``select`` returned.

        Args:
            has_bias: whether linear layers and norms have biases; missing ones become zeros.

        Raises:
            DataError: tensors are missing or unexpected.
            UsageError: the head is tied by the config, but not by the tensors.
        """
        expected = [
            name
            for ours, theirs in self.names(config.num_layers).items()
            for name in theirs
            if ours.endswith(".weight") or (has_bias and (config.attention_bias or QUERY_KEY_VALUE_BIAS not in ours))
        ]
        expected += [] if config.tied_head else [self.head]
        found = take(tensors, expected, path)
        unexpected = sorted(tensors.keys() - {*expected, self.head})
        if unexpected:
            raise DataError(f"{path}: unexpected tensors {unexpected}; the file has another architecture")
        if config.tied_head:
            check_tied(tensors, self.token_embedding, self.head, path)
        return ImportedModel(self.format, config, self.convert(found, config), partial(self.logits, found, config))

    def convert(self, found: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
        """Returns the tensors under our names and in our layouts."""
        ours = {} if config.tied_head else {HEAD: found[self.head]}
        for name, theirs in self.names(config.num_layers).items():
            if theirs[0] in found:
                parts = [found[part].T if self.is_transposed(name) else found[part] for part in theirs]
                ours[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
            elif config.attention_bias or not name.endswith(QUERY_KEY_VALUE_BIAS):
                ours[name] = torch.zeros(ours[name.replace(".bias", ".weight")].shape[0])
        return ours

    def logits(self, found: dict[str, Tensor], config: GPTConfig, tokens: Tensor) -> Tensor:
        """Computes the forward pass on the program's own tensors: ids [B, T] -> [B, T, V]."""

        def norm(name: str, x: Tensor) -> Tensor:
            weight, bias = (found.get(f"{name}.{leaf}") for leaf in self.norm_leaves)
            return F.layer_norm(x, (x.shape[-1],), weight, bias, self.norm_eps)

        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = found[f"{name}.weight"], found.get(f"{name}.bias")
            return F.linear(x, weight.T if self.transposed else weight, bias)

        x = found[self.token_embedding][tokens] + found[self.position_embedding][: tokens.shape[1]]
        for layer in range(config.num_layers):
            names = {ours: [self.block.format(layer) + name for name in names] for ours, names in self.modules.items()}
            hidden = norm(names["attention_norm"][0], x)
            qkv = torch.cat([linear(name, hidden) for name in names["attention.query_key_value"]], dim=-1)
            attended = causal_attention(*qkv.chunk(3, dim=-1), num_heads=config.num_heads)
            x = x + linear(names["attention.output"][0], attended)
            hidden = linear(names["feedforward.up"][0], norm(names["feedforward_norm"][0], x))
            x = x + linear(names["feedforward.output"][0], F.gelu(hidden, approximate=self.gelu))
        return norm(self.final_norm, x) @ found[self.token_embedding if config.tied_head else self.head].T


def check_tied(tensors: dict[str, Tensor], embedding: str, head: str, path: Path) -> None:
    """Raises UsageError where a file holds both names of a tied matrix, and they differ."""
    if head in tensors and not torch.equal(tensors[head], tensors[embedding]):
        raise UsageError(
            f"{path}: the head is tied, but {head} differs from {embedding}; if the model has a head of its own, put "
            '"tie_word_embeddings": false into config.json'
        )


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """Computes causal self-attention in plain operations: three of [B, T, D] -> [B, T, D]."""
    batch, time, embedding = query.shape
    q, k, v = (t.view(batch, time, num_heads, -1).transpose(1, 2) for t in (query, key, value))  # [B, H, T, C]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(batch, time, embedding)
