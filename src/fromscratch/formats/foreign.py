"""A model read from somebody else's files, and the proof that it was understood.

Every reader hands back our tensors and, beside them, the source's own: the forward pass written once
more over the source's names and layouts, in the plainest operations. ``check`` runs both. A matrix
that was transposed by mistake, a missed bias or the wrong activation cannot get past it.

Letters: B batch, T time, D embedding, H heads, C channels of a head, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import ModelConfig
from fromscratch.errors import DataError
from fromscratch.formats.weights import fill
from fromscratch.models.factory import build_empty
from fromscratch.models.language_model import LanguageModel

Function = Callable[[Tensor], Tensor]

LARGEST_DIFFERENCE = 1e-4  # of logits, relative to the largest of them; fp32 rounding stays far below
CHECKED_TOKENS = 48


@dataclass(frozen=True)
class SourceLayer:
    """One block in the source's own terms."""

    attention_norm: Function
    query_key_value: Callable[[Tensor], Sequence[Tensor]]
    """[B, T, D] -> three of [B, T, D]."""
    attention_output: Function
    feedforward_norm: Function
    feedforward: Function


@dataclass(frozen=True)
class SourceModel:
    """A GPT in the source's own terms."""

    token_embedding: Tensor
    position_embedding: Tensor
    layers: Sequence[SourceLayer]
    final_norm: Function
    head: Tensor
    num_heads: int

    def logits(self, tokens: Tensor) -> Tensor:
        """Ids [B, T] -> [B, T, V]."""
        x = self.token_embedding[tokens] + self.position_embedding[: tokens.shape[1]]
        for layer in self.layers:
            parts = layer.query_key_value(layer.attention_norm(x))
            x = x + layer.attention_output(self._attention(*parts))
            x = x + layer.feedforward(layer.feedforward_norm(x))
        return self.final_norm(x) @ self.head.T

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, time, embedding = query.shape
        q, k, v = (t.view(batch, time, self.num_heads, -1).transpose(1, 2) for t in (query, key, value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(batch, time, embedding)


@dataclass(frozen=True)
class ForeignModel:
    """What a reader found."""

    format: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    """Under our names, in our layouts, fp32."""
    source: SourceModel | None = None
    """None where the file is ours and there is nothing to compare with."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the conversion."""

    def build(self, where: Path) -> LanguageModel:
        """The model with its weights. Raises DataError where a tensor does not fit."""
        model = build_empty(self.config, "cpu")
        fill(model, self.tensors, where)
        return model.eval()

    def check(self, model: LanguageModel) -> float:
        """The largest difference of a logit before and after, relative to the largest logit.

        Raises:
            DataError: it is more than rounding can explain.
        """
        if self.source is None:
            return 0.0
        length = min(CHECKED_TOKENS, model.context_length)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (2, length), generator=generator)
        with torch.inference_mode():
            before, after = self.source.logits(tokens), model(tokens)
        difference = ((before - after).abs().max() / before.abs().max().clamp(min=1.0)).item()
        if not difference <= LARGEST_DIFFERENCE:
            raise DataError(
                f"{self.format} weights: logits before and after the conversion differ by {difference:.2g} of the "
                f"largest; at most {LARGEST_DIFFERENCE:g} can be rounding, so the file is not what it says"
            )
        return difference


def norm_of(weight: Tensor, bias: Tensor, eps: float) -> Function:
    """Layer norm with a source's tensors."""
    return lambda x: F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
