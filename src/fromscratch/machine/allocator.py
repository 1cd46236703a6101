"""Keeps freed memory in the process instead of giving it back to the kernel at every step.

glibc returns large blocks as soon as they are freed. A training step on a CPU allocates and frees the
same activations every time, so that the kernel must find, clear and map the same pages again and
again: a quarter of a step of GPT-2 small in fp32 (docs/speed.md). Memory in use is what the largest
step needs either way.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of parameters in glibc's malloc.h
SETTINGS = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
"""Never give the end of the heap back, and map no block on its own, which would be unmapped when freed."""
TUNABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Asks glibc to keep what is freed; says whether it does.

    Elsewhere, and where the user has tuned or replaced the allocator (an environment variable of
    ``TUNABLES`` is set), nothing is changed.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in TUNABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    is_glibc = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    if mallopt is None or not is_glibc:
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items())
