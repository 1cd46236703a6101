"""Attention with rotary position embedding."""

import torch
from torch import Tensor

from .attention import FusedAttention
from .mechanism import Sizes


class RotaryAttention(FusedAttention):
    """Rotates queries and keys by angles that grow with the position (Su et al. 2021, "RoFormer", section 3.2)."""

    def __init__(self, sizes: Sizes, layer: int, *, base: float) -> None:
        super().__init__(sizes, layer)
        self.base = base

    def encode_positions(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotates each pair of channels (c, c + C / 2): [B, H, T, C] at positions [B or 1, T]."""
        half = query.shape[-1] // 2
        frequencies = self.base ** (-torch.arange(half, device=query.device) / half)
        angles = positions[:, None, :, None] * frequencies  # [B or 1, 1, T, C / 2]
        cos, sin = angles.cos().to(query.dtype), angles.sin().to(query.dtype)

        def rotated(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

        return rotated(query), rotated(key)
