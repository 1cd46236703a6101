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
    """One score per vocabulary entry, and the cross-entropy of the right one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes.embedding_dim, sizes.vocab_size, bias=False)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        logits = self(hidden).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)

    def reset(self, init: Init) -> None:
        """Sets the matrix; a tied one was set as an embedding before."""
        init.linear(self)
