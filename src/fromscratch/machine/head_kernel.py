"""The losses and gradients of a chunk of the vocabulary head as one Triton kernel, for CUDA.

Each program owns a row of 16-bit logits: the first pass finds the log of the sum of exponentials (online softmax,
Milakov & Gimelshein 2018), the second overwrites the row, still in the cache, by its gradient. Nothing in fp32 reaches
memory. The same as ``models.head.eager_rows``; imports Triton, which comes with torch's builds for CUDA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fromscratch.models.head import Shaping

BLOCK, WARPS = 4_096, 8  # entries at a time, and groups of 32 threads for them: the fastest of six pairs on an H200
NEVER = tl.constexpr(-1e30)
"""A logit outside the vocabulary: its exponential is 0 beside any other."""


@triton.jit
def _load(row, columns, stride: tl.constexpr, vocab_size: tl.constexpr, cap, HAS_CAP: tl.constexpr):  # noqa: N803
    """fp32 logits of some columns, capped. Reads whole aligned rows: 16 bytes at a time."""
    x = tl.load(row + columns, mask=columns < stride, other=0.0).to(tl.float32)
    if HAS_CAP:
        x = cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)  # cap tanh(x / cap)
    return tl.where(columns < vocab_size, x, NEVER)


@triton.jit
def _kernel(  # noqa: PLR0913, PLR0917
    logits,
    targets,
    losses,
    squares,
    factor,
    cap,
    z_loss,
    stride: tl.constexpr,
    vocab_size: tl.constexpr,
    HAS_CAP: tl.constexpr,  # noqa: N803
    HAS_SQUARES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One row: its loss, with a shaping its square, and the gradient in place of the logits."""
    index = tl.program_id(0).to(tl.int64)
    row, target = logits + index * stride, tl.load(targets + index)
    # read before the sums, whose barriers separate it from the writes of other threads
    of_target = _load(row, target, stride, vocab_size, cap, HAS_CAP)
    block = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, vocab_size, BLOCK):
        x = _load(row, begin + block, stride, vocab_size, cap, HAS_CAP)
        higher = tl.maximum(highest, x)
        total = total * tl.exp(highest - higher) + tl.exp(x - higher)
        highest = higher
    top = tl.max(highest, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    tl.store(losses + index, log_sum - of_target + z_loss * log_sum * log_sum)
    if HAS_SQUARES:
        tl.store(squares + index, log_sum * log_sum)
    for begin in range(0, stride, BLOCK):
        columns = begin + block
        x = _load(row, columns, stride, vocab_size, cap, HAS_CAP)
        gradient = tl.exp(x - log_sum) * (1.0 + 2.0 * z_loss * log_sum)
        gradient = tl.where(columns == target, gradient - 1.0, gradient)
        if HAS_CAP:
            gradient = gradient * tl.where(columns < vocab_size, 1.0 - (x / cap) * (x / cap), 0.0)
        tl.store(row + columns, (gradient * factor).to(logits.dtype.element_ty), mask=columns < stride)


def triton_rows(logits: Tensor, targets: Tensor, factor: float, vocab_size: int, shaping: Shaping | None) -> Tensor:
    """Losses in fp32 [n] or [2, n] of logits [n, aligned V], which their gradients times ``factor`` overwrite."""
    cap, z_loss = shaping or Shaping(None, 0.0)
    results = torch.empty(1 if shaping is None else 2, len(logits), device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(logits.shape[1]))
    _kernel[(len(logits),)](
        *(logits, targets, results[0], results[-1], factor, cap or 0.0, z_loss),
        *(logits.stride(0), vocab_size, cap is not None, shaping is not None, block),
        num_warps=WARPS,
    )
    return results[0] if shaping is None else results
