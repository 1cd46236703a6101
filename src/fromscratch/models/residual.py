"""The residual stream with trained scalars: how much of it, and of the model's input, enters each layer.

Letters: B batch, T time, D embedding, L layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mechanism import Init, Sizes

INPUT_EPS = 1e-6


class ScaledResidual(nn.Module):
    """Layer l begins with ``stream[l] x + input[l] x0``, where x0 is the normalised embedding of the same token.

    Args:
        first_input: value of ``input`` in an untrained model; ``stream`` begins as ones.

    Source: Jordan et al. 2024, "modded-nanogpt" (x0 lambdas); Karpathy 2025, "nanochat", ``gpt.py``.
    """

    def __init__(self, sizes: Sizes, *, first_input: float) -> None:
        super().__init__()
        self.first_input = first_input
        self.stream = nn.Parameter(torch.empty(sizes.num_layers))
        self.input = nn.Parameter(torch.empty(sizes.num_layers))

    def begin(self, x: Tensor) -> Tensor:
        """The stream's beginning x0: embeddings [B, T, D] divided by their root mean square."""
        return F.rms_norm(x, x.shape[-1:], eps=INPUT_EPS)

    def forward(self, x: Tensor, first: Tensor, layer: int) -> Tensor:
        """The input of a layer, from the stream and its beginning: twice [B, T, D] -> [B, T, D]."""
        return self.stream[layer] * x + self.input[layer] * first

    def reset(self, init: Init) -> None:
        """Ones, and ``first_input``."""
        nn.init.ones_(self.stream)
        nn.init.constant_(self.input, self.first_input)

    def forward_flops(self, context_length: int) -> float:
        """No matrix product."""
        return 0.0
