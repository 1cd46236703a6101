"""Causal multi-head self-attention, twice: spelled out for readers, and through torch's fused kernels.

Letters: B batch, T time (position in the sequence), D embedding, H heads, C = D / H head channels.

Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Radford et al. 2019 (GPT-2).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import LayerPast
from .dropout import Dropout


class CausalAttention(nn.Module):
    """What both fillings share: the projections and the division into heads."""

    def __init__(self, *, embedding_dim: int, num_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(embedding_dim, 3 * embedding_dim, bias=bias)
        self.output = nn.Linear(embedding_dim, embedding_dim)
        self.probability_dropout = Dropout(dropout)

    def forward(self, x: Tensor, past: LayerPast | None = None) -> Tensor:
        """Every position looks at itself and at what came before, ``past`` included: [B, T, D] -> [B, T, D]."""
        batch, time, embedding = x.shape
        heads = self.query_key_value(x).view(batch, time, 3, self.num_heads, embedding // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, C]
        mixed = self.attend(query, key, value) if past is None else self.recall(query, *past.extend(key, value))
        return self.output(mixed.transpose(1, 2).reshape(batch, time, embedding))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Weighted means of the values, [B, H, T, C] from three of that shape."""
        raise NotImplementedError(f"{type(self).__name__} must say how it attends")

    def recall(self, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
        """As ``attend``, for T queries that look at S remembered positions: [B, H, T, C] from those and [B, H, S, C].

        ``visible`` is True where a query may look, and broadcasts to [B, H, T, S]; None is everywhere.
        """
        probability = self.probability_dropout.probability if self.probability_dropout.active else 0.0
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, dropout_p=probability)


class ExplicitAttention(CausalAttention):
    """The textbook form: scores, causal mask, softmax, dropout, weighted mean. Holds [B, H, T, T]."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        time = query.shape[-2]
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, H, T, T]
        future = torch.ones(time, time, dtype=torch.bool, device=query.device).triu(diagonal=1)
        probabilities = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        return self.probability_dropout(probabilities.to(value.dtype)) @ value


class FusedAttention(ExplicitAttention):
    """``scaled_dot_product_attention``: the same numbers without ever holding [B, H, T, T].

    Dropout of the probabilities is drawn inside the kernel. With sequence keys, one call per
    sequence on CUDA, each seeded by its key; on other devices, whose kernels leave their fast path
    for dropout anyway, the explicit form.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.probability_dropout.active:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        keys = self.probability_dropout.site_keys()
        if keys is None:
            return self._fused_with_dropout(query, key, value)
        if query.device.type != "cuda":
            return super().attend(query, key, value)
        rows = []
        for index, seed in enumerate(keys):
            torch.cuda.default_generators[query.device.index or 0].manual_seed(seed)
            one = slice(index, index + 1)
            rows.append(self._fused_with_dropout(query[one], key[one], value[one]))
        return torch.cat(rows)

    def _fused_with_dropout(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        probability = self.probability_dropout.probability
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=probability)
