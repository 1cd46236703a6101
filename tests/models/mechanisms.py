"""Mechanisms that only tests have, written as a contributor would: a window of attention, and rotary positions.

``trial_kinds`` makes them part of ``fromscratch.models`` for a while, so that they are published too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from fromscratch import models
from fromscratch.config.base import Positive, Slot
from fromscratch.config.model import GPTConfig
from fromscratch.models.attention import FusedAttention
from fromscratch.models.mechanism import Init, Sizes
from tests.kinds import registered

MODULE = "trial_mechanisms"
MARK = "# ---- the file in models/"

# ---- the file in models/


class WindowAttention(FusedAttention):
    """Attention to the last ``width`` tokens (Beltagy et al. 2020, "Longformer", section 3.1)."""

    def __init__(self, sizes: Sizes, layer: int, *, width: int) -> None:
        super().__init__(sizes, layer)
        self.width = width

    def sees(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Itself and ``width - 1`` tokens before."""
        return super().sees(query_positions, key_positions) & (query_positions - key_positions < self.width)


class RotaryAttention(FusedAttention):
    """Queries and keys turned by angles that grow with the position (Su et al. 2021, "RoFormer", section 3.2)."""

    def encode_positions(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turns each pair of channels (c, c + C / 2)."""
        half = query.shape[-1] // 2
        frequencies = 10_000.0 ** (-torch.arange(half, device=query.device) / half)
        angles = positions[:, None, :, None] * frequencies  # [B or 1, 1, T, C / 2]
        turned = []
        for x in (query, key):
            first, second = x[..., :half], x[..., half:]
            cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
            turned.append(torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1))
        return turned[0], turned[1]


class NoPosition(nn.Module):
    """Adds nothing: the attention knows the positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, T, D], as it is."""
        return x

    def reset(self, init: Init) -> None:
        """There is nothing to set."""


# ---- the classes in config/model.py


class Window(Slot):
    """Attention to the last few tokens only."""

    builds: ClassVar[str] = f"fromscratch.models.{MODULE}:WindowAttention"
    weights: ClassVar[str] = "trial-window"
    free_settings: ClassVar[frozenset[str]] = frozenset({"width"})
    kind: Literal["trial-window"] = "trial-window"
    width: Positive = 5
    """Tokens that a position sees."""


class Rotary(Slot):
    """Rotary positions."""

    builds: ClassVar[str] = f"fromscratch.models.{MODULE}:RotaryAttention"
    kind: Literal["trial-rotary"] = "trial-rotary"


class Nowhere(Slot):
    """No position information at the embeddings."""

    builds: ClassVar[str] = f"fromscratch.models.{MODULE}:NoPosition"
    kind: Literal["trial-none"] = "trial-none"


TRIALS: list[tuple[str, type[Slot]]] = [("attention", Window), ("attention", Rotary), ("position", Nowhere)]


@contextmanager
def trial_kinds(folder: Path) -> Iterator[None]:
    """Registers the kinds above; their module is written to ``folder``, with the imports that files in models/ have."""
    text = Path(__file__).read_text("utf-8").split(f"\n{MARK}\n")[1].split("\n# ----")[0]
    imports = "import torch\nfrom torch import Tensor, nn\n\nfrom .attention import FusedAttention\n"
    (folder / f"{MODULE}.py").write_text(f"{imports}from .mechanism import Init, Sizes\n{text}")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(models, "__path__", [*models.__path__, str(folder)])
        for slot, kind in TRIALS:
            stack.enter_context(registered(GPTConfig, slot, kind))
        yield
