"""Bit-exact results on CUDA: deterministic kernels instead of the fastest ones.

Without it, the backward passes of embeddings and of attention add with atomic operations, in an order that changes
from run to run, and a compiler's measurements may choose other kernels after a restart. CPUs need none of it.
"""

import os

import torch

from fromscratch.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")
"""Sizes with which cuBLAS is deterministic (NVIDIA, "cuBLAS", section "Results reproducibility")."""


def make_deterministic() -> None:
    """Makes every later operation of this process deterministic; call it before CUDA starts.

    Raises:
        UsageError: the user's environment asks cuBLAS for another workspace, or CUDA has already started without one.
    """
    workspace = os.environ.get(WORKSPACE)
    if workspace is not None and workspace not in DETERMINISTIC_WORKSPACES:
        raise UsageError(
            f"--deterministic: the environment sets {WORKSPACE}={workspace}; unset it, or set it to "
            f"{DETERMINISTIC_WORKSPACES[0]}"
        )
    if workspace is None and torch.cuda.is_initialized():
        raise UsageError(
            f"--deterministic: CUDA has already started in this process; set {WORKSPACE}="
            f"{DETERMINISTIC_WORKSPACES[0]} before it starts"
        )
    os.environ.setdefault(WORKSPACE, DETERMINISTIC_WORKSPACES[0])
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # compiled code: no measurements that choose kernels
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
