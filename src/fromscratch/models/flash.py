"""Causal attention with dropout inside torch's FlashAttention-2 kernel, one call for a whole micro-batch.

The kernel draws its random bits by Philox, from a seed and from ``offset + (batch * heads + head) * 32 + lane``
(Dao 2023, "FlashAttention-2"; ``dropout.h`` and ``philox.cuh`` of its source, which torch contains). So a seed that
all sequences of a step share, and an offset that counts the sequences of the global batch before the micro-batch,
give each sequence the same mask however the global batch is divided. This depends on the kernel's internals:
``kernel_counts_sequences`` compares a whole batch with its parts before the first use, and where they differ,
attention runs once per sequence instead.

The masks are those of NVIDIA's kernel: other devices, and ``model.attention = "explicit"``, have those of
``dropout.py``. The kernel rounds the share that is kept to 1/256.

Letters: B batch, T time, H heads, C channels of a head. Needs torch alone.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

LANES = 32
MAX_CHANNELS, CHANNELS_MULTIPLE = 256, 8
MIN_CAPABILITY = (8, 0)
SITE_STEP = 0x9E3779B97F4A7C15
OPERATORS = __name__.replace(".", "_")
"""Namespace of the operators: a published model has its own copy of this file."""


def takes(query: Tensor, *, is_causal: bool) -> bool:
    """Whether the kernel computes attention of this device, type and shape [B, H, T, C]."""
    channels = query.shape[-1]
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return (
        is_causal
        and query.device.type == "cuda"
        and is_half
        and channels <= MAX_CHANNELS
        and channels % CHANNELS_MULTIPLE == 0
    )


def attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, kernel_key: Tensor, site: int, p: float) -> Tensor:
    """Causal attention [B, H, T, C] of three times the same, each probability dropped with ``p``.

    ``kernel_key``: see ``dropout.set_sequence_keys``. ``site`` is the place in the network.
    """
    output: Tensor = _forward(query, key, value, kernel_key, site, p)[0]
    return output


@torch.library.custom_op(f"{OPERATORS}::forward", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, kernel_key: Tensor, site: int, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, the logarithms of the softmax's denominators, and the generator's state in the kernel."""
    seed, first = kernel_key.tolist()  # in CPU memory: nothing waits for the device
    generator = torch.cuda.default_generators[query.device.index]
    before = generator.get_state()
    try:
        generator.manual_seed((seed + (site + 1) * SITE_STEP) % 2**63)
        generator.set_offset(first * query.shape[1] * LANES)
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, p, True)
    finally:
        generator.set_state(before)
    return _time_before_heads(found[0]), found[1].contiguous(), found[6]


@torch.library.custom_op(f"{OPERATORS}::backward", mutates_args=())
def _backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    state: Tensor,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value; the kernel draws the same mask from ``state``."""
    time, unused = query.shape[2], state.new_empty(0)
    found = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        upstream, query, key, value, output, log_sums, None, None, time, time, p, True, state, unused
    )
    query_gradient, key_gradient, value_gradient = (_time_before_heads(gradient) for gradient in found)
    return query_gradient, key_gradient, value_gradient


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, kernel_key: Tensor, site: int, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    return _like(query), log_sums, query.new_empty(2, dtype=torch.uint64)


@_backward.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    state: Tensor,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, _, _, ctx.probability = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    return *_backward(upstream, *ctx.saved_tensors, ctx.probability), None, None, None


_forward.register_autograd(_gradients, setup_context=_keep_for_backward)


def _like(x: Tensor) -> Tensor:
    """An empty tensor [B, H, T, C] in the kernel's layout."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def _time_before_heads(x: Tensor) -> Tensor:
    """The same numbers [B, H, T, C] in the layout that the compiler was told: [B, T, H, C] in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@cache
def kernel_counts_sequences(device: torch.device) -> bool:
    """Whether a device has the kernel, and its masks stay what they are when a batch is divided.

    Warns where the kernel draws its masks in another way.
    """
    if torch.version.hip or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    try:
        is_same = torch.equal(_probe(device, [8]), _probe(device, [1, 3, 4]))
    except RuntimeError:
        is_same = False
    if not is_same:
        warnings.warn(
            f"torch {torch.__version__} draws dropout in attention in another way than this version expects; attention "
            "with dropout runs once per sequence, which is slower",
            stacklevel=2,
        )
    return is_same


def _probe(device: torch.device, sizes: list[int]) -> Tensor:
    """Attention of eight sequences with dropout, in batches of these sizes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 2, 160, 64, generator=generator).to(device, torch.bfloat16)
    parts, first = [], 0
    with torch.no_grad():
        for part in x.split(sizes):
            parts.append(attend_with_dropout(part, part, part, torch.tensor([1, first]), 0, 0.5))
            first += len(part)
    return torch.cat(parts)
