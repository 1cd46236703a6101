"""Losses and gradients of rows of logits by one function, against fp64. Run as a program, it tries Triton's kernel.

A process of its own, because Triton reads TRITON_INTERPRET when a kernel is defined.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.models.head import RowFunction, Shaping

VOCABULARY = 301
SHAPINGS = [None, Shaping(None, 0.3), Shaping(0.5, 0.0), Shaping(2.0, 0.1)]


def check_rows(function: RowFunction, device: str = "cpu") -> None:
    """Fails where losses, squares, gradients or the columns beyond the vocabulary are not what they should be."""
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.bfloat16, torch.float16):
        for rows, padding in ((1, 19), (37, 0), (37, 19)):
            for shaping in SHAPINGS:
                logits = (5 * torch.randn(rows, VOCABULARY, generator=generator)).to(device, dtype)
                targets = torch.randint(0, VOCABULARY, (rows,), generator=generator).to(device)
                targets[0] = VOCABULARY - 1
                found = F.pad(logits, (0, padding))
                losses = function(found, targets, 256.0, VOCABULARY, shaping)
                _compare(losses, found, logits, targets, shaping)


def _compare(losses: Tensor, found: Tensor, logits: Tensor, targets: Tensor, shaping: Shaping | None) -> None:
    cap, z_loss = shaping or Shaping(None, 0.0)
    exact = logits.double().requires_grad_()
    values = exact if cap is None else cap * torch.tanh(exact / cap)
    squares = values.logsumexp(1).square()
    wanted = F.cross_entropy(values, targets, reduction="none") + z_loss * squares
    wanted.sum().backward()
    expected = wanted if shaping is None else torch.stack([wanted, squares])
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=5e-6, atol=5e-6)
    assert exact.grad is not None
    torch.testing.assert_close(found[:, :VOCABULARY].double() / 256.0, exact.grad, rtol=2**-7, atol=2e-6)
    assert not found[:, VOCABULARY:].any()


if __name__ == "__main__":
    from fromscratch.machine.head_kernel import triton_rows

    check_rows(triton_rows)
