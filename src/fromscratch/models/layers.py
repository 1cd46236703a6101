"""The plain parts of GPT-2 that fill the other slots: norm, position, feed-forward network, head.

Letters: B batch, T time, D embedding, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """Zero mean and unit variance over the embedding, then scale and shift (Ba et al. 2016)."""

    def __init__(self, *, embedding_dim: int, eps: float) -> None:
        super().__init__(embedding_dim, eps=eps)


class LearnedPosition(nn.Module):
    """Adds a trained vector for each position (GPT-2 calls the table ``wpe``)."""

    def __init__(self, *, embedding_dim: int, context_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, embedding_dim)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. ``positions`` [B or 1, T] says where a text goes on; by default it begins."""
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        return x + self.embedding(positions)


class GeluMLP(nn.Module):
    """Linear, GELU (the tanh form that GPT-2 uses), linear; ``ratio`` times wider in the middle."""

    def __init__(self, *, embedding_dim: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(embedding_dim, ratio * embedding_dim)
        self.output = nn.Linear(ratio * embedding_dim, embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(F.gelu(self.up(x), approximate="tanh"))


class ExactGeluMLP(GeluMLP):
    """The same with the GELU itself instead of its tanh form (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(F.gelu(self.up(x)))


class LinearHead(nn.Linear):
    """One score per vocabulary entry, and the cross-entropy of the right one."""

    def __init__(self, *, embedding_dim: int, vocab_size: int) -> None:
        super().__init__(embedding_dim, vocab_size, bias=False)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats per target: hidden [B, T, D] and ids [B, T] -> fp32 [B, T]."""
        logits = self(hidden).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
