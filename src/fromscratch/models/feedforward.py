"""Feed-forward networks other than GPT-2's: with a gate, and with a squared ReLU.

Letters: B batch, T time, D embedding, M middle.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mechanism import Init, Sizes


class GatedMLP(nn.Module):
    """Linear, multiplied by an activated second linear, then linear (Shazeer 2020, "GLU Variants Improve Transformer").

    A subclass implements ``activate``. The first two layers are one product; the gate's rows come first.
    """

    def __init__(self, sizes: Sizes, layer: int, *, hidden_dim: int | None, linear_bias: bool) -> None:
        super().__init__()
        middle = hidden_dim or default_gated_dim(sizes.embedding_dim)
        self.gate_up = nn.Linear(sizes.embedding_dim, 2 * middle, bias=linear_bias)
        self.output = nn.Linear(middle, sizes.embedding_dim, bias=linear_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each [B, T, M]
        return self.output(self.activate(gate) * up)

    def activate(self, gate: Tensor) -> Tensor:
        """The activation of the gate, [B, T, M] -> [B, T, M]."""
        raise NotImplementedError(f"{type(self).__name__} must implement activate")

    def reset(self, init: Init) -> None:
        """Sets both linear layers."""
        init.linear(self.gate_up)
        init.linear(self.output, residual=True)


class SwiGLU(GatedMLP):
    """Gate activated by SiLU, as in Llama and Qwen."""

    def activate(self, gate: Tensor) -> Tensor:
        return F.silu(gate)


class GeGLU(GatedMLP):
    """Gate activated by GELU (tanh form), as in Gemma."""

    def activate(self, gate: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh")


class SquaredReluMLP(nn.Module):
    """Linear, ReLU squared, linear (So et al. 2021, "Primer", section 4.2)."""

    def __init__(self, sizes: Sizes, layer: int, *, ratio: int, linear_bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.embedding_dim, ratio * sizes.embedding_dim, bias=linear_bias)
        self.output = nn.Linear(ratio * sizes.embedding_dim, sizes.embedding_dim, bias=linear_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(torch.relu(self.up(x)).square())

    def reset(self, init: Init) -> None:
        """Sets both linear layers."""
        init.linear(self.up)
        init.linear(self.output, residual=True)


def default_gated_dim(embedding_dim: int) -> int:
    """Two thirds of four widths, so that three matrices cost what GPT-2's two do, rounded up to a multiple of 64."""
    return -(-8 * embedding_dim // (3 * 64)) * 64
