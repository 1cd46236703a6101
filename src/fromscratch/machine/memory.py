"""Which errors mean that a device, or the computer, has no memory left."""

import torch

SIGNS = (
    "out of memory",  # CUDA, MPS and Triton
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN, whose workspaces torch's allocator does not see
    "can't allocate memory",  # torch's allocator on a CPU
    "Cannot allocate memory",  # the system
)


def speaks_of_memory(text: str) -> bool:
    """Whether a message of a library says that memory ran out."""
    return any(sign.lower() in text.lower() for sign in SIGNS)


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception means so; only torch's allocator of a device has a class of its own for that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and speaks_of_memory(str(error))


DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 4_096, "mps": 8_192, "cuda": 16_384}
"""Tokens in a micro-batch before anything was measured: few enough for any device that trains such models."""


def default_micro_batch(device: torch.device, context_length: int) -> int:
    """Number of sequences in a micro-batch that surely fits the device."""
    return max(1, DEFAULT_MICRO_BATCH_TOKENS[device.type] // context_length)
