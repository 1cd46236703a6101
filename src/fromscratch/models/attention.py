"""Causal multi-head self-attention, twice: spelled out for readers, and through torch's fused kernels.

Letters: B batch, T time (position in the sequence), D embedding, H heads, C = D / H head channels.

Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Radford et al. 2019 (GPT-2).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import LayerPast
from .compiling import outside_compiled_code
from .dropout import Dropout

QUERIES_PER_BLOCK = 128


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


class FusedAttention(CausalAttention):
    """``scaled_dot_product_attention``: the same numbers without ever holding [B, H, T, T].

    Dropout of the probabilities is drawn inside the kernel: with sequence keys, one call per
    sequence on CUDA, each seeded by its key. CPU kernels leave their fast path for dropout, and are slow
    in 16 bits (docs/speed.md), so there it is ``_BlockedAttention``.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.probability_dropout
        if not dropout.active:
            if query.device.type == "cpu" and query.dtype != torch.float32:
                return _BlockedAttention.apply(query, key, value, None, 0.0)  # type: ignore[no-untyped-call]
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if query.device.type == "cuda" and dropout.keyed:
            return _attend_per_sequence(query, key, value, dropout)
        if dropout.keyed:
            batch, heads, time, _ = query.shape
            keep = dropout.keep_mask(query.new_empty(()).expand(batch, heads, time, time))
            return _BlockedAttention.apply(query, key, value, keep, dropout.probability)  # type: ignore[no-untyped-call]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout.probability)


@outside_compiled_code
def _attend_per_sequence(query: Tensor, key: Tensor, value: Tensor, dropout: Dropout) -> Tensor:
    """One kernel per sequence, whose dropout is seeded by the sequence's key."""
    generator = torch.cuda.default_generators[query.device.index or 0]
    rows = []
    for index, seed in enumerate(dropout.site_keys or ()):
        generator.manual_seed(seed)
        one = slice(index, index + 1)
        rows.append(
            F.scaled_dot_product_attention(
                query[one], key[one], value[one], is_causal=True, dropout_p=dropout.probability
            )
        )
    return torch.cat(rows)


class _BlockedAttention(torch.autograd.Function):
    """Causal attention with a given dropout mask, or None, a block of queries at a time.

    A block meets only the keys up to its own end, which saves nearly half of the explicit form's
    work, and its scores stay in the cache; backward computes them again (Dao et al. 2022,
    "FlashAttention", section 3.1).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, probability: float) -> Tensor:
        output = torch.empty_like(query)
        for rows, end in _query_blocks(query.shape[-2]):
            kept = _kept(_probabilities(query, key, rows, end), keep, rows, end)
            output[:, :, rows] = (kept.to(value.dtype) @ value[:, :, :end]).div_(1.0 - probability)
        ctx.save_for_backward(query, key, value, keep, output)
        ctx.probability = probability
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keep, output = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(t, dtype=torch.float32) for t in (key, value))
        correction = (upstream * output).sum(-1, keepdim=True, dtype=torch.float32)  # [B, H, T, 1]
        upstream = upstream / (1.0 - ctx.probability)
        for rows, end in _query_blocks(query.shape[-2]):
            above = upstream[:, :, rows]
            probabilities = _probabilities(query, key, rows, end)
            of_value[:, :, :end] += _kept(probabilities, keep, rows, end).to(value.dtype).mT @ above
            of_kept = _kept((above @ value[:, :, :end].mT).float(), keep, rows, end)
            of_scores = of_kept.sub_(correction[:, :, rows]).mul_(probabilities).div_(math.sqrt(query.shape[-1]))
            of_scores = of_scores.to(query.dtype)
            of_query[:, :, rows] = of_scores @ key[:, :, :end]
            of_key[:, :, :end] += of_scores.mT @ query[:, :, rows]
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _query_blocks(time: int) -> Iterator[tuple[slice, int]]:
    """Blocks of queries, and where the keys that they may see end."""
    for begin in range(0, time, QUERIES_PER_BLOCK):
        end = min(time, begin + QUERIES_PER_BLOCK)
        yield slice(begin, end), end


def _probabilities(query: Tensor, key: Tensor, rows: slice, end: int) -> Tensor:
    """Softmax of a block's scores in fp32: [B, H, rows, end]."""
    scores = (query[:, :, rows] @ key[:, :, :end].mT).float().div_(math.sqrt(query.shape[-1]))
    length = end - rows.start
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu_(diagonal=1)
    scores[..., rows.start :].masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1)


def _kept(x: Tensor, keep: Tensor | None, rows: slice, end: int) -> Tensor:
    """A block [B, H, rows, end] without what dropout drops."""
    return x if keep is None else torch.where(keep[:, :, rows, :end], x, 0.0)
