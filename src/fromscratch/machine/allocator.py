"""How memory is allocated: glibc keeps freed memory in the process, and CUDA's segments can grow.

By default glibc returns large blocks as soon as they are freed. A training step on a CPU allocates and
frees the same activations every time. The kernel then clears and maps the same pages in every step,
which takes a quarter of a step of GPT-2 small in fp32 (docs/speed.md). The peak memory does not change.
"""

import ctypes
import os
import sys

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
SETTINGS = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
"""Never trim the heap, and never allocate a block by mmap, because free unmaps such a block."""
TUNABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD")
CUDA_TUNABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
CUDA_SETTINGS = "expandable_segments:True"
"""Segments of memory that grow in place, so that micro-batches of different sizes leave no gaps (torch, "CUDA
semantics", section "Optimizing memory usage")."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory; returns whether it accepted.

    Does nothing with another C library, or if the user configured or replaced the allocator by an
    environment variable of ``TUNABLES``.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in TUNABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    is_glibc = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    if mallopt is None or not is_glibc:
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items())


def use_expandable_segments(device: torch.device) -> bool:
    """Tells torch's CUDA allocator to use segments that grow; returns whether it did.

    Does nothing on other devices and systems, or if the user configured the allocator by an environment variable
    of ``CUDA_TUNABLES``.
    """
    is_configured = any(os.environ.get(name) for name in CUDA_TUNABLES)
    if device.type != "cuda" or not sys.platform.startswith("linux") or is_configured:
        return False
    torch._C._accelerator_setAllocatorSettings(CUDA_SETTINGS)
    return True
