"""Positions that attention encodes, instead of a vector added to each embedding: rotations, and a bias on distance.

A position module changes embeddings in ``forward``. What it does inside attention is an object without parameters,
``in_attention``, which all layers share.

Letters: B batch, T time, S keys, H heads, C channels of a head, D embedding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mechanism import Init, Sizes


class PositionInAttention:
    """What attention asks of positions. The base class encodes nothing."""

    has_bias = False
    """Whether ``bias`` must be added to the scores, which needs a mask of floats."""

    def encode(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes positions [B or 1, T] into queries [B, H, T, C] and keys, before keys enter the cache."""
        return query, key

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """What is added to the scores: positions [B or 1, T] and [B or 1, S] -> [B or 1, H, T, S]."""
        raise NotImplementedError(f"{type(self).__name__} has no bias")


class NoPosition(nn.Module):
    """Adds nothing. The causal mask alone tells positions apart (Haviv et al. 2022; Kazemnejad et al. 2023, "NoPE")."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, T, D], unchanged."""
        return x

    def reset(self, init: Init) -> None:
        """Has no parameters."""


class RotaryPosition(NoPosition):
    """Rotary position embedding (Su et al. 2021, "RoFormer", section 3.4), with ways to extend a trained context."""

    def __init__(
        self, sizes: Sizes, *, theta: float, scaling: str | None, factor: float | None, trained_context: int | None
    ) -> None:
        super().__init__(sizes)
        channels = sizes.embedding_dim // sizes.num_heads
        trained_context = trained_context or sizes.context_length
        factor = factor or max(1.0, sizes.context_length / trained_context)
        scale = 1.0
        if scaling == "ntk":
            theta = ntk_aware_theta(theta, factor, channels)
        frequencies = rotary_frequencies(channels, theta)
        if scaling == "linear":
            frequencies = interpolated(frequencies, factor)
        elif scaling == "yarn":
            frequencies = yarn(frequencies, theta, factor, trained_context)
            scale = 0.1 * math.log(factor) + 1.0  # equation 25
        self.in_attention = Rotation(tuple(frequencies), scale)


@dataclass(frozen=True)
class Rotation(PositionInAttention):
    """Turns each pair of channels (c, c + C/2) by an angle that grows with the position."""

    frequencies: tuple[float, ...]
    """Radians per token of each pair."""
    scale: float = 1.0
    """Factor on queries and keys (the temperature of YaRN)."""

    def encode(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=query.device)
        angles = positions[:, None, :, None] * frequencies  # [B or 1, 1, T, C / 2]
        cos, sin = ((self.scale * turned).to(query.dtype) for turned in (angles.cos(), angles.sin()))
        return _rotated(query, cos, sin), _rotated(key, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotary_frequencies(channels: int, theta: float) -> list[float]:
    """``theta`` to the power -2c/C for each pair c."""
    return [theta ** (-2.0 * pair / channels) for pair in range(channels // 2)]


def interpolated(frequencies: list[float], factor: float) -> list[float]:
    """Positions divided by the factor (Chen et al. 2023, "Extending Context Window ...", section 2.3)."""
    return [frequency / factor for frequency in frequencies]


def ntk_aware_theta(theta: float, factor: float, channels: int) -> float:
    """A base with which the slowest pair is interpolated and the fastest is kept.

    Source: bloc97 2023; Peng et al. 2023, "YaRN", equation 16.
    """
    return float(theta * factor ** (channels / max(1, channels - 2)))


def yarn(frequencies: list[float], theta: float, factor: float, trained_context: int) -> list[float]:
    """Slow pairs are interpolated, fast ones kept, with a ramp between 1 and 32 turns in the trained context.

    Source: Peng et al. 2023, "YaRN", section 3.2.
    """
    pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        return pairs * math.log(trained_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = max(math.floor(pair_of(32.0)), 0), min(math.ceil(pair_of(1.0)), 2 * pairs - 1)
    kept = [1.0 - min(1.0, max(0.0, (pair - low) / max(high - low, 1e-3))) for pair in range(pairs)]
    return [f * share + f / factor * (1.0 - share) for f, share in zip(frequencies, kept, strict=True)]


class AlibiPosition(NoPosition):
    """Attention with linear biases: a score falls with the distance, at a slope of each head's own.

    Source: Press et al. 2022, "Train Short, Test Long", section 3.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.in_attention = DistanceBias(tuple(alibi_slopes(sizes.num_heads)))


@dataclass(frozen=True)
class DistanceBias(PositionInAttention):
    """Subtracts ``slope x distance`` from every score."""

    slopes: tuple[float, ...]
    """One per head."""
    has_bias = True

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=query_positions.device)[:, None, None]
        return slopes * (key_positions[:, None, None, :] - query_positions[:, None, :, None])


def alibi_slopes(num_heads: int) -> list[float]:
    """2^(-8h/H) for heads h = 1..H; where H is no power of two, with every other slope of twice as many heads."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * head / power) for head in range(1, power + 1)]
    return slopes + [2.0 ** (-4.0 * head / power) for head in range(1, 2 * power + 1, 2)][: num_heads - power]
