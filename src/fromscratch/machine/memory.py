"""Recognises out-of-memory errors; gives a default micro-batch."""

import torch

MESSAGES = (
    "out of memory",  # CUDA, MPS and Triton
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN, which allocate workspaces outside torch's allocator
    "can't allocate memory",  # torch's allocator on a CPU
    "Cannot allocate memory",  # the operating system
)


def is_memory_message(text: str) -> bool:
    """Whether a library's error message says that memory ran out."""
    return any(message.lower() in text.lower() for message in MESSAGES)


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception means that memory ran out. Most libraries raise RuntimeError with a message."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and is_memory_message(str(error))


DEFAULT_MICRO_BATCH_TOKENS = {"cpu": 4_096, "mps": 8_192, "cuda": 16_384}
"""Tokens per micro-batch if ``fit`` has not measured yet; small enough for all usual devices."""


def default_micro_batch(device: torch.device, context_length: int) -> int:
    """Returns a number of sequences per micro-batch that is small enough for the device."""
    return max(1, DEFAULT_MICRO_BATCH_TOKENS[device.type] // context_length)
