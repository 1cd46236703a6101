"""A vocabulary head whose loss never holds the logits of a batch in fp32.

Cross-entropy over 50,000 entries takes most of a small model's memory: the plain head holds [B, T, V]
four times in fp32 (logits, log-probabilities, and both gradients). Here the loss and its unscaled gradients are
computed in forward for some tokens at a time: on a CPU for so few that their logits stay in the cache, on CUDA by a
kernel that may take the place of ``eager_rows``. Gradients of 16-bit logits overwrite the logits and are kept;
backward multiplies them by the upstream gradient, and computes the weight's gradient in one product. fp32 logits are
never kept. On a CPU, forward computes both gradients; backward multiplies them by the upstream gradient if that is
the same for all tokens, as it is for a sum or a mean. Otherwise, and on other devices, backward computes the logits
again.

torch's own ``linear_cross_entropy`` (2.13) is not used: it rounds the losses per token to 16 bits,
computes 16-bit logits twice, and was slower wherever it was measured (docs/speed.md).

Letters: B batch, T time, D embedding, V vocabulary, N = B x T tokens.

Source of the idea: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .compiling import outside_compiled_code
from .layers import LinearHead, soft_cap
from .mechanism import Sizes

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""fp32 numbers per chunk, by device: 32 MiB fill a processor's cache, 256 MiB occupy a GPU."""
ALIGNMENT = 64
"""Logits of 16 bits have rows of a multiple of so many entries: tensor cores read and write aligned rows, and
GPT-2's vocabulary of 50,257 is odd (NVIDIA, "Matrix Multiplication Background User's Guide", section 3)."""
ROWS_PER_TILE = 128  # of a matrix product on a GPU; a chunk of whole tiles leaves no multiprocessor idle
MAX_ROWS = {"eager": 512, "kernel": 4_096}
"""Most tokens per chunk of 16-bit logits on a GPU. Eager operations hold fp32 copies of a chunk, a kernel none."""
GRADIENT_FACTOR = {torch.bfloat16: 1.0, torch.float16: 2.0**8}
"""Kept gradients are multiplied by it: probabilities of 1 / 50,000 would lose digits in fp16, whose smallest
number with all digits is 6e-5."""
RowFunction = Callable[[Tensor, Tensor, float, int, "Shaping | None"], Tensor]
VOCABULARY_PER_PRODUCT = {4: 512, 2: 2_048}
"""By bytes of a number, on a CPU, where one product for all 50,000 entries runs at half of the speed of many."""


class Shaping(NamedTuple):
    """What a head does beside the plain cross-entropy; see ``LinearHead``."""

    logit_cap: float | None
    z_loss: float


class ChunkedHead(LinearHead):
    """The linear head, with the same weights, loss and gradients, in much less memory."""

    def __init__(self, sizes: Sizes, *, logit_cap: float | None = None, z_loss: float | None = None) -> None:
        super().__init__(sizes, logit_cap=logit_cap, z_loss=z_loss)
        self._rows: RowFunction = eager_rows
        self.max_rows = MAX_ROWS["eager"]

    def use_kernel(self, rows: RowFunction) -> None:
        """Takes another function that does the same as ``eager_rows`` and needs no memory."""
        self._rows, self.max_rows = rows, MAX_ROWS["kernel"]

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        if not targets.numel():
            return super().losses(hidden, targets)
        if self.logit_cap is None:
            return self._chunked(hidden, targets, None).view(targets.shape)
        return self._chunked(hidden, targets, Shaping(self.logit_cap, 0.0))[0].view(targets.shape)

    def penalised_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Per target ``loss + z_loss x square``, and without gradients the square of log(sum(exp(logits))): [B, T]."""
        if not targets.numel():
            return super().penalised_losses(hidden, targets)
        losses, squares = self._chunked(hidden, targets, Shaping(self.logit_cap, self.z_loss or 0.0))
        return losses.view(targets.shape), squares.detach().view(targets.shape)

    @outside_compiled_code  # it writes into preallocated tensors
    def _chunked(self, hidden: Tensor, targets: Tensor, shaping: Shaping | None) -> Tensor:
        """Losses [N]; with a shaping [2, N], losses with their penalties, and squares."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        tokens = hidden.flatten(0, 1).to(dtype)
        with torch.autocast(kind, enabled=False):  # the function chooses its own types
            losses: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                tokens, self.weight, targets.flatten(), self._rows, self.max_rows, shaping
            )
        return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T``: [N, D], [V, D] and ids [N] -> fp32 [N], or [2, N] with a shaping."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: RowFunction,
        max_rows: int,
        shaping: Shaping | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.shaping = shaping
        ctx.kept = ctx.unweighted = None  # not saved tensors, because backward overwrites or releases them
        if not any(ctx.needs_input_grad):
            return _losses(hidden, weight, targets, shaping)
        if hidden.dtype != torch.float32:
            losses, *ctx.kept = _losses_and_kept_gradients(hidden, weight, targets, rows, max_rows, shaping)
            return losses
        if hidden.device.type != "cpu":
            return _losses(hidden, weight, targets, shaping)
        losses, *ctx.unweighted = _losses_and_gradients(hidden, weight, targets, None, shaping)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        if ctx.shaping is not None:
            upstream = upstream[0]  # the squares have no gradient
        if hidden.dtype == torch.float32:
            unweighted, ctx.unweighted = ctx.unweighted, None
            if unweighted is not None and bool((upstream == upstream[0]).all()):  # the gradient of a sum or a mean
                return *(gradient.mul_(upstream[0]) for gradient in unweighted), None, None, None, None
            del unweighted
            return *_losses_and_gradients(hidden, weight, targets, upstream, ctx.shaping)[1:], None, None, None, None
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError("the chunked head keeps its gradients for one backward pass, and this is the second")
        of_hidden, of_logits = kept
        return *_weighted(of_hidden, of_logits, hidden, weight, upstream), None, None, None, None


def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, shaping: Shaping | None) -> Tensor:
    """Nats per target, fp32 [N], or [2, N] with a shaping."""
    matrix = _in_dtype(weight, hidden.dtype)
    losses = _new_losses(hidden, shaping)
    for rows in _chunks(hidden, weight, MAX_ROWS["eager"]):
        logits = _logits(hidden[rows], matrix, None)[:, : len(weight)].float()
        if shaping is None:
            losses[rows] = F.cross_entropy(logits, targets[rows], reduction="none")
        else:
            losses[:, rows] = _shaped(logits, targets[rows], shaping)[0]
    return losses


def _new_losses(hidden: Tensor, shaping: Shaping | None) -> Tensor:
    """Memory for the losses of all tokens."""
    shape = (len(hidden),) if shaping is None else (2, len(hidden))
    return torch.empty(shape, dtype=torch.float32, device=hidden.device)


def _shaped(logits: Tensor, targets: Tensor, shaping: Shaping) -> tuple[Tensor, Tensor, Tensor]:
    """Losses with penalties and squares [2, n] of fp32 logits [n, V]; the capped logits; log(sum(exp(.))) [n, 1]."""
    values = soft_cap(logits, shaping.logit_cap)
    log_sums = values.logsumexp(dim=-1, keepdim=True)
    losses, squares = (log_sums - values.gather(1, targets[:, None])).squeeze(1), log_sums.square().squeeze(1)
    return torch.stack([losses + shaping.z_loss * squares, squares]), values, log_sums


def _shaped_losses_and_gradient(logits: Tensor, targets: Tensor, shaping: Shaping) -> tuple[Tensor, Tensor]:
    """What ``_shaped`` returns first, and the gradient of the first row by the logits: p (1 + 2 z log_sum) - one-hot,
    times 1 - (capped / cap)^2."""
    losses, values, log_sums = _shaped(logits, targets, shaping)
    gradient = (values - log_sums).exp() * (1.0 + 2.0 * shaping.z_loss * log_sums)
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = torch.where(is_target, gradient - 1.0, gradient)
    if shaping.logit_cap is not None:
        gradient = gradient * (1.0 - (values / shaping.logit_cap).square())
    return losses, gradient


def _losses_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor | None, shaping: Shaping | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [N] or [2, N] and the gradients of hidden [N, D] and weight [V, D] in fp32, chunk by chunk.

    ``upstream`` is the gradient of each token's loss; None takes 1.
    """
    losses = _new_losses(hidden, shaping)
    of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)
    for rows in _chunks(hidden, weight, MAX_ROWS["eager"]):
        logits = _logits(hidden[rows], weight, None)
        if shaping is None:
            losses[rows], gradient = _plain_losses_and_gradient(logits, targets[rows])
        else:
            losses[:, rows], gradient = _shaped_losses_and_gradient(logits, targets[rows], shaping)
        if upstream is not None:
            gradient.mul_(upstream[rows, None])
        torch.mm(gradient, weight, out=of_hidden[rows])
        of_weight.addmm_(gradient.T, hidden[rows], beta=float(rows.start > 0))  # 0 ignores uninitialised values
    return losses, of_hidden, of_weight


def _plain_losses_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n] and their gradient by the logits [n, V], all fp32."""
    highest, chosen = logits.amax(dim=-1), logits.gather(1, targets[:, None]).squeeze(1)
    gradient = logits.softmax(dim=-1)
    losses = highest - gradient.amax(dim=-1).log() - chosen  # log of the softmax's denominator, then the loss
    return losses, _subtract_targets(gradient, targets)


def _losses_and_kept_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows_function: RowFunction,
    max_rows: int,
    shaping: Shaping | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses in fp32 [N] or [2, N], and in 16 bits the gradients of hidden [N, D] and of the logits [N, aligned V].

    Both gradients are multiplied by ``GRADIENT_FACTOR``. The columns beyond the vocabulary are zero.
    """
    matrix = _in_dtype(weight, hidden.dtype)
    losses, factor = _new_losses(hidden, shaping), GRADIENT_FACTOR[hidden.dtype]
    of_hidden, of_logits = torch.empty_like(hidden), hidden.new_empty(len(hidden), len(matrix))
    for rows in _chunks(hidden, weight, max_rows):
        logits = _logits(hidden[rows], matrix, of_logits[rows])
        losses[..., rows] = rows_function(logits, targets[rows], factor, len(weight), shaping)
        torch.mm(logits, matrix, out=of_hidden[rows])
    return losses, of_hidden, of_logits


def _weighted(
    of_hidden: Tensor, of_logits: Tensor, hidden: Tensor, weight: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden [N, D] and weight [V, D], from the kept ones and the gradient of each token's loss [N].

    Tokens are weighted in hidden instead of in the much larger logits, relative to the largest weight: the same
    weight for all tokens, as in a mean, rounds nothing.
    """
    upstream = upstream / GRADIENT_FACTOR[hidden.dtype]
    largest = upstream.abs().amax()
    largest = torch.where(largest > 0, largest, 1.0)
    weighted = hidden * (upstream / largest).to(hidden.dtype)[:, None]
    of_weight = torch.empty_like(weight)
    for entries in _vocabulary_blocks(hidden, of_logits.T):
        part = of_logits[:, entries].T @ weighted
        of_weight[entries] = part[: len(of_weight[entries])]
    return of_hidden.mul_(upstream[:, None]), of_weight.mul_(largest)


def eager_rows(logits: Tensor, targets: Tensor, factor: float, vocab_size: int, shaping: Shaping | None) -> Tensor:
    """Losses in fp32 [n] or [2, n] of logits [n, aligned V], which their gradients times ``factor`` overwrite."""
    logits = logits[:, :vocab_size]
    if shaping is not None:
        losses, gradient = _shaped_losses_and_gradient(logits.float(), targets, shaping)
    else:
        values = logits.float()
        losses = F.cross_entropy(values, targets, reduction="none")
        gradient = _subtract_targets(values.softmax(dim=-1), targets)
    logits.copy_(gradient.mul_(factor))
    return losses


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
    probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    return probabilities


def _chunks(hidden: Tensor, weight: Tensor, max_rows: int) -> list[slice]:
    """The rows of each chunk."""
    size = chunk_rows(hidden.device.type, len(weight), max_rows if hidden.dtype != torch.float32 else None)
    return [slice(begin, begin + size) for begin in range(0, len(hidden), size)]


def chunk_rows(device_type: str, vocab_size: int, max_rows_16bit: int | None) -> int:
    """Tokens per chunk of fp32 logits, or of 16-bit logits where their most rows on a GPU are given."""
    if device_type == "cuda" and max_rows_16bit is not None:
        return max_rows_16bit
    size = max(1, CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"]) // vocab_size)
    return size - size % ROWS_PER_TILE if device_type != "cpu" and size > ROWS_PER_TILE else size


def _vocabulary_blocks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The entries of the vocabulary that each matrix product computes; on a GPU one product computes all."""
    size = VOCABULARY_PER_PRODUCT[min(4, hidden.itemsize)] if hidden.device.type == "cpu" else len(weight)
    return [slice(begin, begin + size) for begin in range(0, len(weight), size)]
