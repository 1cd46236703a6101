"""Attention with windows, documents, biases and capped scores in one fused kernel: torch's FlexAttention, on CUDA.

The kernel computes scores in blocks of 128 queries and 128 keys, changes them by a function, and never holds them. It
skips a block of which nothing is seen, and computes the mask only where a block is seen in part. Which blocks those are
depends on the mask alone, so all layers with the same window share one ``BlockMask``.

The functions here run in compiled code, where the kernel becomes a part of it, and outside, where it is compiled by
itself. torch 2.11 to 2.13 have no backward pass for it on CPUs.

Source: Dong et al. 2024, "Flex Attention: A Programming Model for Generating Optimized Attention Kernels".

Letters: B batch, T time, H heads, G heads of keys and values, C channels of a head, N blocks of T. Needs torch alone.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .layers import soft_cap
from .mechanism import ScoreBias

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # the kernel's default
MIN_CHANNELS = 16  # the smallest product that Triton computes
MAX_COMPILED = 64
"""Shapes and windows for which the kernel is compiled by itself in one process."""


def visible_blocks(time: int, device: torch.device, *, window: int, documents: Tensor | None) -> "BlockMask":
    """Which blocks of causal attention are seen, and the mask inside of those that are seen in part.

    Args:
        window: tokens that a position sees, itself included; 0 is all.
        documents: the number [B, T] of each token's document, which never falls along a sequence.
    """
    from torch.nn.attention.flex_attention import BlockMask

    index = torch.arange(-(-time // BLOCK), device=device)
    distance = index[:, None] - index  # in blocks, [N, N]
    seen, whole = distance >= 0, distance > 0
    if window:
        seen = seen & ((distance - 1) * BLOCK + 1 < window)  # the nearest query and key
        whole = whole & ((distance + 1) * BLOCK - 1 < window)  # the farthest
    if documents is not None:
        first, last = documents[:, index * BLOCK], documents[:, (index * BLOCK + BLOCK - 1).clamp(max=time - 1)]
        seen = seen & (last[:, None, :] >= first[:, :, None])  # [B, N, N]
        whole = whole & (first[:, None, :] == last[:, :, None])

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = key <= query
        if window:
            visible = visible & (query - key < window)
        return visible if documents is None else visible & (documents[batch, query] == documents[batch, key])

    partly, wholly = _in_order(seen & ~whole), _in_order(seen & whole)
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(time, time))


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of true blocks in each row, and their indices before those of the others: [N, N] or [B, N, N]."""
    chosen = blocks.view(-1, 1, *blocks.shape[-2:]).int()
    indices = torch.argsort(chosen, dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), indices.int()


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: "BlockMask", *, cap: float | None, bias: ScoreBias | None
) -> Tensor:
    """Weighted means of the values that are seen: [B, H, T, C] and twice [B, G, T, C] -> [B, H, T, C].

    Args:
        cap: a score s becomes ``cap tanh(s / cap)``, before the bias; None leaves it.
    """

    def change(score: Tensor, batch: Tensor, head: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
        score = soft_cap(score, cap)
        return score if bias is None else score + bias(head, query_position, key_position)

    query, key = query.to(value.dtype), key.to(value.dtype)
    arguments: dict[str, Any] = {"block_mask": blocks, "enable_gqa": True}
    if cap is not None or bias is not None:
        arguments["score_mod"] = change
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(query, key, value, **arguments)
    return _compiled()(query, key, value, **arguments)


@cache
def _compiled() -> Callable[..., Tensor]:
    """The kernel by itself. Beyond the limit it would fail, so torch's limit of 8 is raised."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILED)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def takes_channels(channels: int) -> bool:
    """Whether the kernel takes heads of so many channels: powers of two."""
    return channels >= MIN_CHANNELS and channels.bit_count() == 1
