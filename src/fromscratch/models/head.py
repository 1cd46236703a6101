"""A vocabulary head whose loss never holds the logits of a batch in fp32.

Cross-entropy over 50,000 entries takes most of a small model's memory: the plain head holds [B, T, V]
four times in fp32 (logits, log-probabilities, and both gradients). Here the loss and its gradients are
computed for a few tokens at a time. 16-bit logits are kept from forward to backward, where their own
gradients overwrite them. fp32 logits are never kept. On a CPU, forward also computes unscaled gradients;
backward multiplies them by the upstream gradient if that is the same for all tokens, as it is for a sum
or a mean. Otherwise backward computes the logits again.

torch's own ``linear_cross_entropy`` (2.13) is not used: it rounds the losses per token to 16 bits,
computes 16-bit logits twice, and was slower wherever it was measured (docs/speed.md).

Letters: B batch, T time, D embedding, V vocabulary, N = B x T tokens.

Source of the idea: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compiling import outside_compiled_code
from .layers import LinearHead

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""fp32 numbers per chunk, by device: 32 MiB fill a processor's cache, 256 MiB occupy a GPU."""
ALIGNMENT = 64
"""Logits of 16 bits have rows of a multiple of so many entries: tensor cores read and write aligned rows, and
GPT-2's vocabulary of 50,257 is odd (NVIDIA, "Matrix Multiplication Background User's Guide", section 3)."""
ROWS_PER_TILE = 128  # of a matrix product on a GPU; a chunk of whole tiles leaves no multiprocessor idle
VOCABULARY_PER_PRODUCT = {4: 512, 2: 2_048}
"""By bytes of a number, on a CPU, where one product for all 50,000 entries runs at half of the speed of many."""


class ChunkedHead(LinearHead):
    """The linear head, with the same weights, loss and gradients, in much less memory."""

    @outside_compiled_code  # it writes into preallocated tensors
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        tokens = hidden.flatten(0, 1).to(dtype)
        with torch.autocast(kind, enabled=False):  # the function chooses its own types
            losses: Tensor = _ChunkedCrossEntropy.apply(tokens, self.weight, targets.flatten())  # type: ignore[no-untyped-call]
        return losses.view(targets.shape)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T``: [N, D], [V, D] and ids [N] -> fp32 [N]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.kept = ctx.unweighted = None  # not saved tensors, because backward overwrites them
        if not any(ctx.needs_input_grad):
            return _losses(hidden, weight, targets, None)
        if hidden.dtype != torch.float32:
            ctx.kept = hidden.new_empty(len(hidden), _aligned(len(weight)))
            return _losses(hidden, weight, targets, ctx.kept)
        if hidden.device.type != "cpu":
            return _losses(hidden, weight, targets, None)
        losses, *ctx.unweighted = _losses_and_gradients(hidden, weight, targets, None)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets = ctx.saved_tensors
        if hidden.dtype == torch.float32:
            unweighted, ctx.unweighted = ctx.unweighted, None
            if unweighted is not None and bool((upstream == upstream[0]).all()):  # the gradient of a sum or a mean
                return *(gradient.mul_(upstream[0]) for gradient in unweighted), None
            del unweighted
            return *_losses_and_gradients(hidden, weight, targets, upstream)[1:], None
        gradient, ctx.kept = ctx.kept, None
        if gradient is None:
            raise RuntimeError("the chunked head keeps its logits for one backward pass, and this is the second")
        return *_gradients_of_kept(gradient, hidden, weight, targets, upstream), None


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, kept: Tensor | None) -> Tensor:
    """Nats per target, fp32 [N]; the logits are put into ``kept`` [N, aligned V] where there is one."""
    matrix = _in_dtype(weight, hidden.dtype)
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows in _chunks(hidden, weight):
        logits = _logits(hidden[rows], matrix, None if kept is None else kept[rows])[:, : len(weight)]
        losses[rows] = F.cross_entropy(logits.float(), targets[rows], reduction="none")
    return losses


def _losses_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [N] and the gradients of hidden [N, D] and weight [V, D] in fp32, chunk by chunk.

    ``upstream`` is the gradient of each token's loss; None takes 1.
    """
    losses = hidden.new_empty(len(hidden))
    of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)
    for rows in _chunks(hidden, weight):
        logits = _logits(hidden[rows], weight, None)
        highest, chosen = logits.amax(dim=-1), logits.gather(1, targets[rows, None]).squeeze(1)
        gradient = logits.softmax(dim=-1)
        losses[rows] = highest - gradient.amax(dim=-1).log() - chosen  # log of the softmax's denominator, then the loss
        _subtract_targets(gradient, targets[rows])
        if upstream is not None:
            gradient.mul_(upstream[rows, None])
        torch.mm(gradient, weight, out=of_hidden[rows])
        of_weight.addmm_(gradient.T, hidden[rows], beta=float(rows.start > 0))  # 0 ignores uninitialised values
    return losses, of_hidden, of_weight


def _gradients_of_kept(
    gradient: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, D] and weight [V, D] from 16-bit logits [N, aligned V], which are overwritten.

    The columns beyond the vocabulary are zero as logits and stay so as gradients.
    """
    matrix = _in_dtype(weight, hidden.dtype)
    of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)
    for rows in _chunks(hidden, weight):
        probabilities = gradient[rows, : len(weight)].float().softmax(dim=-1)
        _subtract_targets(probabilities, targets[rows]).mul_(upstream[rows, None])
        gradient[rows, : len(weight)] = probabilities
        torch.mm(gradient[rows], matrix, out=of_hidden[rows])
    for entries in _vocabulary_blocks(hidden, gradient.T):
        part = gradient[:, entries].T @ hidden
        of_weight[entries] = part[: len(of_weight[entries])]
    return of_hidden, of_weight


def _in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [V, D] itself in fp32, or in 16 bits with rows of zeros up to an aligned number."""
    if dtype == torch.float32:
        return weight
    matrix = torch.zeros(_aligned(len(weight)), weight.shape[1], dtype=dtype, device=weight.device)
    matrix[: len(weight)] = weight
    return matrix


def _aligned(entries: int) -> int:
    return -(-entries // ALIGNMENT) * ALIGNMENT


def _logits(hidden: Tensor, matrix: Tensor, out: Tensor | None) -> Tensor:
    """[n, D] and [V, D] -> [n, V]."""
    if out is None:
        out = hidden.new_empty(len(hidden), len(matrix))
    for entries in _vocabulary_blocks(hidden, matrix):
        torch.mm(hidden, matrix[entries].T, out=out[:, entries])
    return out


def _subtract_targets(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Softmax minus one-hot, in place: the gradient of the loss by the logits, [n, V]."""
    minus_one = probabilities.new_full((len(targets), 1), -1.0)
    return probabilities.scatter_add_(1, targets[:, None], minus_one)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The rows of each chunk, whose logits are held in fp32 together."""
    size = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cpu"]) // len(weight))
    if hidden.device.type != "cpu" and size > ROWS_PER_TILE:
        size -= size % ROWS_PER_TILE
    return [slice(begin, begin + size) for begin in range(0, len(hidden), size)]


def _vocabulary_blocks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The entries of the vocabulary that each matrix product computes; on a GPU one product computes all."""
    size = VOCABULARY_PER_PRODUCT[min(4, hidden.itemsize)] if hidden.device.type == "cpu" else len(weight)
    return [slice(begin, begin + size) for begin in range(0, len(weight), size)]
