"""Positions that attention encodes, instead of a vector added to each embedding: rotations, and a bias on distance.

A position module changes embeddings in ``forward``. What it does inside attention is an object without parameters,
``in_attention``, which all layers share.

Letters: B batch, T time, S keys, H heads, C channels of a head, D embedding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mechanism import Init, ScoreBias, Sizes

YARN_TURNS = (1.0, 32.0)  # within the trained context: the ends of the ramp between divided and kept pairs
LLAMA3_TURNS = (1.0, 4.0)  # the same, as in every model of Llama 3.1 to 3.3


class PositionInAttention:
    """What attention asks of positions. The base class encodes nothing."""

    has_bias = False
    """Whether ``bias`` must be added to the scores."""

    def encode(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes positions [B or 1, T] into queries [B, H, T, C] and keys, before keys enter the cache."""
        return query, key

    def bias(self, device: torch.device) -> ScoreBias:
        """What is added to a score: a function of head, query position and key position, whose shapes broadcast."""
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
    """Rotary position embedding (Su et al. 2021, "RoFormer", section 3.4), with ways to extend a trained context.

    ``linear`` divides positions by the factor (Chen et al. 2023, "Extending Context Window ...", section 2.3).
    ``ntk`` takes a larger base, so that the slowest pair is divided and the fastest is kept (bloc97 2023; Peng et al.
    2023, "YaRN", equation 16). ``yarn`` divides slow pairs and keeps fast ones (Peng et al. 2023, section 3.2).
    ``llama3`` does so with another ramp, and without YaRN's temperature (Meta 2024, ``llama-models``, ``model.py``).
    """

    def __init__(
        self, sizes: Sizes, *, theta: float, scaling: str | None, factor: float | None, trained_context: int | None
    ) -> None:
        super().__init__(sizes)
        channels = sizes.head_channels
        trained_context = trained_context or sizes.context_length
        factor = factor or max(1.0, sizes.context_length / trained_context)
        if scaling == "linear":
            self.in_attention = Rotation(theta, factor)
        elif scaling == "ntk":
            self.in_attention = Rotation(theta * factor ** (channels / max(1, channels - 2)))
        elif scaling == "yarn":
            ramp = yarn_ramp(channels, theta, trained_context)
            self.in_attention = Rotation(theta, factor, ramp, scale=yarn_scale(factor))
        elif scaling == "llama3":
            self.in_attention = Rotation(theta, factor, trained_context=trained_context)
        else:
            self.in_attention = Rotation(theta)


@dataclass(frozen=True)
class Rotation(PositionInAttention):
    """Turns each pair of channels (c, c + C/2) by an angle that grows with the position."""

    theta: float
    """Base of the frequencies."""
    factor: float = 1.0
    """Divides the frequencies, of all pairs or as the ramp says."""
    ramp: tuple[float, float] | None = None
    """Pairs up to the first keep their frequency, those from the second on are divided, those between partly."""
    scale: float = 1.0
    """Factor on queries and keys (the temperature of YaRN)."""
    trained_context: int | None = None
    """Llama 3's ramp: pairs that turn up to once within so many tokens are divided, those from four times on kept."""

    def encode(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None, :, None] * self.frequencies(query.shape[-1], query.device)  # [B or 1, 1, T, C/2]
        cos, sin = ((self.scale * turned).to(query.dtype) for turned in (angles.cos(), angles.sin()))
        return _rotated(query, cos, sin), _rotated(key, cos, sin)

    def frequencies(self, channels: int, device: torch.device) -> Tensor:
        """Radians per token of each pair [C/2]: theta^(-2c/C). Computed on the device, so nothing is copied to it."""
        pairs = torch.arange(channels // 2, dtype=torch.float32, device=device)
        plain = self.theta ** (pairs * (-2.0 / channels))
        if self.trained_context is not None:
            least, most = LLAMA3_TURNS
            turns = plain * (self.trained_context / (2 * math.pi))
            divided = ((most - turns) / (most - least)).clamp(0.0, 1.0)
        elif self.ramp is not None:
            low, high = self.ramp
            divided = ((pairs - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
        else:
            return plain / self.factor
        return plain * (1.0 - divided) + plain / self.factor * divided


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def yarn_ramp(channels: int, theta: float, trained_context: int) -> tuple[float, float]:
    """The pairs that turn 32 times and once within the trained context: the ends of YaRN's ramp (equation 23)."""

    def pair_of(turns: float) -> float:
        return channels * math.log(trained_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    least, most = YARN_TURNS
    return max(math.floor(pair_of(most)), 0), min(math.ceil(pair_of(least)), channels - 1)


def yarn_scale(factor: float) -> float:
    """YaRN's factor on queries and keys (equation 25)."""
    return 0.1 * math.log(factor) + 1.0


class AlibiPosition(NoPosition):
    """Attention with linear biases: a score falls with the distance, at a slope of each head's own.

    Source: Press et al. 2022, "Train Short, Test Long", section 3.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.in_attention = DistanceBias(sizes.num_heads)


@dataclass(frozen=True)
class DistanceBias(PositionInAttention):
    """Subtracts ``slope x distance`` from every score."""

    num_heads: int
    has_bias = True

    def bias(self, device: torch.device) -> ScoreBias:
        slopes = self.slopes(device)
        return lambda head, query, key: -slopes[head] * (query - key)

    def slopes(self, device: torch.device) -> Tensor:
        """2^(-8h/H) for heads h = 1..H; where H is no power of two, also every other slope of twice as many heads."""
        power = 2 ** math.floor(math.log2(self.num_heads))
        first = torch.arange(1, power + 1, device=device) * (8.0 / power)
        others = torch.arange(1, 2 * power + 1, 2, device=device)[: self.num_heads - power] * (4.0 / power)
        return torch.exp2(-torch.cat([first, others]))
