"""Causal multi-head self-attention: explicit for readers, and through torch's fused kernels.

Letters: B batch, T time (new tokens), S tokens that they may see, D embedding, H heads, G heads of keys and values,
C head channels, D / H unless the model says otherwise.

Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Radford et al. 2019 (GPT-2).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import Past, attention_mask, causal
from .compiling import outside_compiled_code
from .dropout import Dropout, zero_dropped
from .flash import attend_with_dropout, takes
from .flex import MIN_CHANNELS, attend_in_blocks, takes_channels
from .layers import RMSNorm, soft_cap
from .mechanism import Init, Sizes, flops_of_children
from .positions import PositionInAttention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

QUERIES_PER_BLOCK = 128
GATE_CHANNELS = 32  # of the hidden state, which decide how much of a value embedding is added; nanochat's number
HEAD_NORM_EPS = 1e-6  # that of Qwen3


class CausalAttention(nn.Module):
    """The projections, the division into heads, and the mask. A subclass implements ``attend``.

    It may override ``encode_positions`` and ``sees``, which training, cached
    generation and the count of operations all use.

    Args:
        key_value_heads: G; each serves H / G heads of queries (Ainslie et al. 2023, "GQA"; 1 is Shazeer 2019).
        window: tokens that a position sees, itself included, by layer in turn; 0 is all (Beltagy et al. 2020).
        query_key_norm: RMSNorm over the channels of each head of queries and keys, ``"scaled"`` by trained
            weights or ``"plain"`` (Henry et al. 2020, "Query-Key Normalization"; Dehghani et al. 2023).
        output_bias: whether the output projection has a bias; None is yes.
        value_embeddings: every other layer, the last included, adds to the values a trained vector of the token
            itself, times a gate for each head that begins at 1 (Jordan et al. 2024, "modded-nanogpt"; Karpathy 2025,
            "nanochat", ``gpt.py``).
    """

    position: PositionInAttention = PositionInAttention()
    """What the model's position mechanism does in attention; the model sets it."""
    score_cap: float | None = None
    """A score s becomes ``cap tanh(s / cap)`` before the mask; None leaves it."""

    def __init__(
        self,
        sizes: Sizes,
        layer: int,
        *,
        key_value_heads: int | None = None,
        window: int | tuple[int, ...] | None = None,
        query_key_norm: str | None = None,
        output_bias: bool | None = None,
        value_embeddings: bool | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = sizes.num_heads
        self.num_key_value_heads = key_value_heads or sizes.num_heads
        self.head_channels = sizes.head_channels
        width = (sizes.num_heads + 2 * self.num_key_value_heads) * self.head_channels
        self.query_key_value = nn.Linear(sizes.embedding_dim, width, bias=sizes.attention_bias)
        mixed = sizes.num_heads * self.head_channels
        self.output = nn.Linear(mixed, sizes.embedding_dim, bias=output_bias is not False)
        self.probability_dropout = Dropout(sizes.dropout)
        self.query_norm = self.key_norm = None
        if query_key_norm is not None:
            make = partial(RMSNorm, replace(sizes, embedding_dim=self.head_channels), layer, eps=HEAD_NORM_EPS)
            self.query_norm, self.key_norm = (make(scale=query_key_norm == "scaled") for _ in range(2))
        self.value_embedding = self.value_gate = None
        if value_embeddings and (sizes.num_layers - 1 - layer) % 2 == 0:
            self.value_embedding = nn.Embedding(sizes.vocab_size, self.num_key_value_heads * self.head_channels)
            channels = min(GATE_CHANNELS, sizes.embedding_dim)
            self.value_gate = nn.Linear(channels, self.num_key_value_heads, bias=False)
        windows = window if isinstance(window, tuple) else (window or 0,)
        self.window = windows[layer % len(windows)]
        self._sees_all_earlier = type(self).sees is CausalAttention.sees and self.window == 0

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        past: Past | None = None,
        *,
        tokens: Tensor | None = None,
        documents: Tensor | None = None,
        blocks: "dict[int, BlockMask] | None" = None,
    ) -> Tensor:
        """[B, T, D] and [B or 1, T] -> [B, T, D]; tokens see themselves and earlier ones, ``past`` included.

        Args:
            tokens: the ids [B, T], for value embeddings.
            documents: the number [B, T] of each token's document, which it does not see beyond; only without a past.
            blocks: the masks of the layers that run by FlexAttention (``flex.py``), by window; only without a past.
        """
        batch, time, _ = x.shape
        heads = self.query_key_value(x).view(batch, time, -1, self.head_channels).transpose(1, 2)
        groups = (self.num_heads, self.num_key_value_heads, self.num_key_value_heads)
        query, key, value = heads.split(groups, dim=1)  # [B, H, T, C] and twice [B, G, T, C]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.value_embedding is not None and self.value_gate is not None:
            gate = 2.0 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))  # [B, T, G]
            added = self.value_embedding(tokens).view(batch, time, -1, self.head_channels) * gate[..., None]
            value = value + added.transpose(1, 2).to(value.dtype)
        query, key = self.encode_positions(query, key, positions)
        if blocks is not None and self.window in blocks:
            return self._joined(self.attend_in_blocks(query, key, value, blocks[self.window]))
        mask = None
        if past is not None:
            key, value, mask = past.extend(self.layer, key, value, None if self._sees_all_earlier else self.sees)
        elif documents is not None or not self._sees_all_earlier:
            mask = attention_mask(self.sees, positions, positions)
        if mask is not None and documents is not None:
            mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
        if self.position.has_bias:
            key_positions = positions if past is None else past.all_positions(key.shape[2])
            mask = self._biased(mask, positions, key_positions)
        if self.num_key_value_heads < self.num_heads:
            key, value = (t.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for t in (key, value))
        mixed = self.attend(query, key, value, mask=mask, is_causal=past is None and mask is None)
        return self._joined(mixed)

    def _joined(self, mixed: Tensor) -> Tensor:
        """The heads side by side, and the output projection: [B, H, T, C] -> [B, T, D]."""
        return self.output(mixed.transpose(1, 2).flatten(2))

    def attend_in_blocks(self, query: Tensor, key: Tensor, value: Tensor, blocks: "BlockMask") -> Tensor:
        """As ``attend`` by FlexAttention, with the cap and the bias of the positions, and keys of G heads."""
        bias = self.position.bias(query.device) if self.position.has_bias else None
        return attend_in_blocks(query, key, value, blocks, cap=self.score_cap, bias=bias)

    @property
    def mechanisms(self) -> list[str]:
        """What it does beside causal attention, for which torch's other fused kernels need a mask [T, S]."""
        found = {"windows": self.window, "a bias on distance": self.position.has_bias, "capped scores": self.score_cap}
        return [name for name, setting in found.items() if setting]

    def flex_problem(self) -> str:
        """What FlexAttention does not take; empty where it computes the same."""
        if self.probability_dropout.active:
            return "dropout in attention"
        if not takes_channels(self.head_channels):
            return f"heads of {self.head_channels} channels, but powers of two from {MIN_CHANNELS}"
        is_known = type(self).sees is CausalAttention.sees and self.attends_as_flex
        return "" if is_known else "this kind of attention"

    @property
    def attends_as_flex(self) -> bool:
        """Whether ``attend`` computes what FlexAttention does; that of an unknown subclass may not."""
        return False

    def _biased(self, mask: Tensor | None, positions: Tensor, key_positions: Tensor) -> Tensor:
        """The mask with the bias of the positions, as what is added to the scores: [B or 1, H, T, S]."""
        if mask is None:
            mask = attention_mask(self.sees, positions, key_positions)
        heads = torch.arange(self.num_heads, device=positions.device)[:, None, None]
        bias = self.position.bias(positions.device)
        of_scores = bias(heads, positions[:, None, :, None], key_positions[:, None, None, :])
        return of_scores.masked_fill(~mask, float("-inf"))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
        """Weighted means of the values: [B, H, T, C] and twice [B, H, S, C] -> [B, H, T, C].

        ``mask`` and ``is_causal`` are those of ``torch.nn.functional.scaled_dot_product_attention``: booleans that
        broadcast to [B, H, T, S] and are True where a query sees a key; floats that are added to the scores; or no
        mask, and T = S where it is causal.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement attend")

    def encode_positions(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes positions [B or 1, T] into queries [B, H, T, C] and keys [B, G, T, C], before the cache."""
        return self.position.encode(query, key, positions)

    def sees(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Whether a query at one position sees a key at another, never a later one; the shapes broadcast."""
        seen = causal(query_positions, key_positions)
        return seen & (query_positions - key_positions < self.window) if self.window else seen

    def reset(self, init: Init) -> None:
        """Sets both projections, the norms of queries and keys, and value embeddings, whose gates begin at 1."""
        init.linear(self.query_key_value)
        init.linear(self.output, residual=True)
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                norm.reset(init)
        if self.value_embedding is not None and self.value_gate is not None:
            init.embedding(self.value_embedding.weight)
            nn.init.zeros_(self.value_gate.weight)

    def forward_flops(self, context_length: int) -> float:
        """The projections, and for each visible key a score and a term of the weighted mean."""
        if type(self).sees is CausalAttention.sees:
            most = min(self.window or context_length, context_length)  # the first tokens see fewer
            visible = most - most * (most - 1) / 2 / context_length
        else:
            positions = torch.arange(context_length, device="cpu")
            blocks = positions.split(QUERIES_PER_BLOCK)  # never holds [T, T]
            visible = sum(int(self.sees(block[:, None], positions[None]).sum()) for block in blocks) / context_length
        return flops_of_children(self, context_length) + 4 * self.output.in_features * visible


class ExplicitAttention(CausalAttention):
    """The textbook form: scores, causal mask, softmax, dropout, weighted mean. Holds [B, H, T, S].

    Where scores are capped, FlexAttention may take its place; without a cap, it stays what its name says.

    Args:
        score_cap: a score s becomes ``cap tanh(s / cap)`` before the mask (Gemma Team 2024, "Gemma 2", section 2).
    """

    def __init__(self, sizes: Sizes, layer: int, *, score_cap: float | None = None, **settings: Any) -> None:
        super().__init__(sizes, layer, **settings)
        self.score_cap = score_cap

    @property
    def attends_as_flex(self) -> bool:
        return self.score_cap is not None and type(self).attend is ExplicitAttention.attend

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, H, T, S]
        scores = soft_cap(scores, self.score_cap)
        if is_causal:  # a sum: filling by booleans takes a CPU seven times as long
            mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=query.device).triu(1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return self.probability_dropout(scores.softmax(dim=-1).to(value.dtype)) @ value


class FusedAttention(CausalAttention):
    """``scaled_dot_product_attention``: the same numbers without ever holding [B, H, T, S].

    On CUDA, the kernel draws the dropout of the probabilities: in 16 bits in one call (``flash.py``), else in one
    call per sequence, seeded by its key. CPU kernels leave their fast path for dropout, and are slow in 16 bits
    (docs/speed.md), so there it is ``_BlockedAttention``.
    """

    @property
    def attends_as_flex(self) -> bool:
        return type(self).attend is FusedAttention.attend

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
        dropout = self.probability_dropout
        if dropout.active and dropout.keys is not None:
            if dropout.kernel_key is not None and takes(query, is_causal=is_causal):
                return attend_with_dropout(query, key, value, dropout.kernel_key, dropout.site, dropout.probability)
            if query.device.type == "cuda":
                return _attend_per_sequence(query, key, value, _for_kernel(mask, query), is_causal, dropout)
            keep = dropout.keep_mask(torch.Size((*query.shape[:3], key.shape[2])), is_causal=is_causal)
            if mask is None and not is_causal:
                mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            return _BlockedAttention.apply(query, key, value, mask, keep, dropout.probability)  # type: ignore[no-untyped-call]
        is_whole = is_causal or (mask is not None and query.shape[2] == key.shape[2])
        if is_whole and not dropout.active and query.device.type == "cpu" and query.dtype != torch.float32:
            return _BlockedAttention.apply(query, key, value, mask, None, 0.0)  # type: ignore[no-untyped-call]
        probability = dropout.probability if dropout.active else 0.0
        mask = _for_kernel(mask, query)
        return F.scaled_dot_product_attention(query, key, value, mask, probability, is_causal)


def _for_kernel(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """torch's kernels take floats only in the type of the queries."""
    return mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)


@outside_compiled_code
def _attend_per_sequence(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, dropout: Dropout
) -> Tensor:
    """One kernel per sequence, whose dropout is seeded by the sequence's key; the generator is restored."""
    generator = torch.cuda.default_generators[query.device.index]
    before = generator.get_state()
    masks = [None] * len(query) if mask is None else mask.expand(len(query), *mask.shape[1:]).split(1)
    rows = []
    try:
        for seed, q, k, v, m in zip(dropout.seeds, query.split(1), key.split(1), value.split(1), masks, strict=True):
            generator.manual_seed(seed)
            rows.append(F.scaled_dot_product_attention(q, k, v, m, dropout.probability, is_causal))
    finally:
        generator.set_state(before)
    return torch.cat(rows)


class _BlockedAttention(torch.autograd.Function):
    """Attention with a given mask, or causal for None, and a given dropout mask, or none; by blocks of queries.

    The scores of a block stay in the cache; backward computes them again (Dao et al. 2022,
    "FlashAttention", section 3.1). A causal block meets only the keys up to its own end, which saves nearly
    half of the explicit form's work.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        keep: Tensor | None,
        probability: float,
    ) -> Tensor:
        output = torch.empty_like(query)
        for rows, end in _query_blocks(query, key, mask):
            kept = _kept(_probabilities(query, key, mask, rows, end), keep, rows, end)
            output[:, :, rows] = (kept.to(value.dtype) @ value[:, :, :end]).div_(1.0 - probability)
        ctx.save_for_backward(query, key, value, mask, keep, output)
        ctx.probability = probability
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, keep, output = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(t, dtype=torch.float32) for t in (key, value))
        correction = (upstream * output).sum(-1, keepdim=True, dtype=torch.float32)  # [B, H, T, 1]
        upstream = upstream / (1.0 - ctx.probability)
        for rows, end in _query_blocks(query, key, mask):
            above = upstream[:, :, rows]
            probabilities = _probabilities(query, key, mask, rows, end)
            of_value[:, :, :end] += _kept(probabilities, keep, rows, end).to(value.dtype).mT @ above
            of_kept = _kept((above @ value[:, :, :end].mT).float(), keep, rows, end)
            of_scores = of_kept.sub_(correction[:, :, rows]).mul_(probabilities).div_(math.sqrt(query.shape[-1]))
            of_scores = of_scores.to(query.dtype)
            of_query[:, :, rows] = of_scores @ key[:, :, :end]
            of_key[:, :, :end] += of_scores.mT @ query[:, :, rows]
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _query_blocks(query: Tensor, key: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, int]]:
    """Blocks of queries, and where the keys that they may see end."""
    time = query.shape[2]
    for begin in range(0, time, QUERIES_PER_BLOCK):
        end = min(time, begin + QUERIES_PER_BLOCK)
        yield slice(begin, end), end if mask is None else key.shape[2]


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, rows: slice, end: int) -> Tensor:
    """Softmax of a block's scores in fp32: [B, H, rows, end]."""
    scores = (query[:, :, rows] @ key[:, :, :end].mT).float().div_(math.sqrt(query.shape[-1]))
    if mask is None:
        length = end - rows.start
        future = torch.full((length, length), float("-inf"), device=query.device).triu_(diagonal=1)
        scores[..., rows.start :] += future  # filling by booleans takes a CPU seven times as long
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[..., rows, :], float("-inf"))
    else:
        scores += mask[..., rows, :]
    return scores.softmax(dim=-1)


def _kept(x: Tensor, keep: Tensor | None, rows: slice, end: int) -> Tensor:
    """A block [B, H, rows, end] without what dropout drops."""
    return x if keep is None else zero_dropped(x, keep[:, :, rows, :end])
