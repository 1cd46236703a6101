"""A vocabulary head whose loss never holds the logits of a batch in fp32.

Cross-entropy over 50,000 entries is where a small model's memory goes: the plain head holds
[B, T, V] four times over in fp32 (logits, log-probabilities, and both gradients). Here the loss and
its gradients are computed for a few tokens at a time. Logits of 16 bits are kept from forward to
backward, where they turn into their own gradients in place; logits of fp32 are never kept but
computed again.

torch's own ``linear_cross_entropy`` (2.13) is not used: losses per token come back from it rounded
to 16 bits, it computes 16-bit logits a second time too, and it was slower wherever it was measured
(docs/speed.md).

Letters: B batch, T time, D embedding, V vocabulary, N = B x T tokens.

Source of the idea: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""fp32 numbers per chunk, by device: 32 MiB about fills a processor's cache, 256 MiB occupies a GPU."""


class ChunkedHead(nn.Linear):
    """The linear head, with the same weights, loss and gradients, in much less memory."""

    def __init__(self, *, embedding_dim: int, vocab_size: int) -> None:
        super().__init__(embedding_dim, vocab_size, bias=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it writes into memory of its own
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        tokens = hidden.flatten(0, 1).to(dtype)
        with torch.autocast(kind, enabled=False):  # the function chooses its own arithmetic
            losses: Tensor = _ChunkedCrossEntropy.apply(tokens, self.weight, targets.flatten())  # type: ignore[no-untyped-call]
        return losses.view(targets.shape)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T``: [N, D], [V, D] and ids [N] -> fp32 [N]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        matrix = weight.to(hidden.dtype)
        keep = hidden.dtype != torch.float32 and any(ctx.needs_input_grad)
        kept = hidden.new_empty(len(hidden), len(weight)) if keep else None
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], matrix, None if kept is None else kept[rows])
            losses[rows] = F.cross_entropy(logits.float(), targets[rows], reduction="none")
        ctx.kept = kept  # not a saved tensor: backward overwrites it, and lets it go
        ctx.save_for_backward(hidden, weight, targets)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets = ctx.saved_tensors
        matrix = weight.to(hidden.dtype)
        if hidden.dtype == torch.float32:
            return *_gradients_computed_again(hidden, matrix, targets, upstream), None
        gradient, ctx.kept = ctx.kept, None
        if gradient is None:
            raise RuntimeError("the chunked head was asked for its gradients twice; it keeps its logits for one time")
        for rows in _chunks(hidden, weight):
            gradient[rows] = _logit_gradients(gradient[rows].float(), targets[rows], upstream[rows])
        return gradient @ matrix, (gradient.T @ hidden).to(weight.dtype), None


def _gradients_computed_again(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, D] and weight [V, D], from logits computed a second time, chunk by chunk."""
    of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    for rows in _chunks(hidden, weight):
        gradient = _logit_gradients(hidden[rows] @ weight.T, targets[rows], upstream[rows])
        torch.mm(gradient, weight, out=of_hidden[rows])
        of_weight.addmm_(gradient.T, hidden[rows])
    return of_hidden, of_weight


def _logits(hidden: Tensor, matrix: Tensor, out: Tensor | None) -> Tensor:
    return torch.mm(hidden, matrix.T) if out is None else torch.mm(hidden, matrix.T, out=out)


def _logit_gradients(logits: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """(softmax - one-hot) x upstream, in fp32: [n, V]."""
    gradient = logits.softmax(dim=-1)
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    return gradient.mul_(upstream[:, None])


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Rows of tokens whose logits are held in fp32 together."""
    size = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cpu"]) // len(weight))
    return [slice(begin, begin + size) for begin in range(0, len(hidden), size)]
