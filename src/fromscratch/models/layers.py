"""The plain parts of GPT-2 that fill the other slots: norm, position, feed-forward network, head.

Letters: B batch, T time, D embedding, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mechanism import Init, Sizes


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the embedding, then scale and shift (Ba et al. 2016)."""

    def __init__(self, sizes: Sizes, layer: int, *, eps: float) -> None:
        super().__init__(sizes.embedding_dim, eps=eps)

    def reset(self, init: Init) -> None:
        """Ones and zeros."""
        self.reset_parameters()

    def forward_flops(self, context_length: int) -> float:
        """No matrix product."""
        return 0.0


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over the embedding; ``scale`` adds trained weights.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, sizes: Sizes, layer: int, *, eps: float, scale: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(sizes.embedding_dim)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def reset(self, init: Init) -> None:
        """Ones."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward_flops(self, context_length: int) -> float:
        """No matrix product."""
        return 0.0


class LearnedPosition(nn.Module):
    """Adds a trained vector for each position (GPT-2 calls the table ``wpe``)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.context_length, sizes.embedding_dim)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, T, D] and [B or 1, T] -> [B, T, D]. Padding has position 0."""
        return x + self.embedding(positions.clamp(min=0))

    def reset(self, init: Init) -> None:
        """Sets the table."""
        init.embedding(self.embedding.weight)


class GeluMLP(nn.Module):
    """Linear, GELU (the tanh form that GPT-2 uses), linear; ``ratio`` times wider in the middle."""

    def __init__(self, sizes: Sizes, layer: int, *, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.embedding_dim, ratio * sizes.embedding_dim)
        self.output = nn.Linear(ratio * sizes.embedding_dim, sizes.embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(F.gelu(self.up(x), approximate="tanh"))

    def reset(self, init: Init) -> None:
        """Sets both linear layers."""
        init.linear(self.up)
        init.linear(self.output, residual=True)


class ExactGeluMLP(GeluMLP):
    """The same with the GELU itself instead of its tanh form (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(F.gelu(self.up(x)))


class LinearHead(nn.Linear):
    """One score per vocabulary entry, and the cross-entropy of the right one.

    Args:
        logit_cap: a score s becomes ``cap tanh(s / cap)`` (Gemma Team 2024, "Gemma 2", section 2).
        z_loss: coefficient of the square of the logarithm of the softmax's denominator, which keeps scores small in
            training (Chowdhery et al. 2022, "PaLM", section 5).
    """

    def __init__(self, sizes: Sizes, *, logit_cap: float | None = None, z_loss: float | None = None) -> None:
        super().__init__(sizes.embedding_dim, sizes.vocab_size, bias=False)
        self.logit_cap = logit_cap
        self.z_loss = z_loss

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, V]."""
        return soft_cap(super().forward(hidden), self.logit_cap)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        logits = self._scores(hidden)
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)

    def penalised_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Per target ``loss + z_loss x square``, and without gradients the square of log(sum(exp(logits))): [B, T]."""
        logits = self._scores(hidden)
        squares = logits.logsumexp(-1).square()
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none") + (self.z_loss or 0.0) * squares
        return losses.view(targets.shape), squares.detach().view(targets.shape)

    def _scores(self, hidden: Tensor) -> Tensor:
        """The logits of all tokens in fp32, [N, V]."""
        return soft_cap(super().forward(hidden).flatten(0, 1).float(), self.logit_cap)

    def reset(self, init: Init) -> None:
        """Sets the matrix; a tied one was set as an embedding before."""
        init.linear(self)


def soft_cap(scores: Tensor, cap: float | None) -> Tensor:
    """``cap tanh(score / cap)``; None caps nothing."""
    return scores if cap is None else cap * torch.tanh(scores / cap)
