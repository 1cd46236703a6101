"""Policies for losses far above the recent ones: the kinds of ``train.spike``.

A spike is a finite loss that is more than ``deviations`` standard deviations above the mean of the last
accepted losses. Spikes and non-finite losses never enter that window, so one spike cannot hide the next.
The window is part of the training state.
"""

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

MIN_DEVIATION = 1e-3  # relative to the mean, so that noise after a flat window is not a spike


@dataclass(frozen=True)
class Off:
    """Detects no spikes."""

    holds: ClassVar[bool] = False
    """Whether the loss is read on the host before the update, which waits for the device."""
    rolls_back: ClassVar[bool] = False

    def is_spike(self, loss: float, recent: list[float]) -> bool:
        return False

    def remember(self, loss: float, recent: list[float]) -> None:
        pass


@dataclass(frozen=True)
class Warn:
    """Records spikes and lets training continue."""

    window: int
    deviations: float
    holds: ClassVar[bool] = False
    rolls_back: ClassVar[bool] = False

    def is_spike(self, loss: float, recent: list[float]) -> bool:
        """Whether a loss is a spike among ``recent`` ones. False until half a window is there."""
        if not math.isfinite(loss) or len(recent) < self.window // 2:
            return False
        mean = statistics.fmean(recent)
        deviation = max(statistics.pstdev(recent, mean), MIN_DEVIATION * abs(mean))
        return loss > mean + self.deviations * deviation

    def remember(self, loss: float, recent: list[float]) -> None:
        """Appends a loss that is no spike to the window, in place, and drops the oldest."""
        if math.isfinite(loss) and not self.is_spike(loss, recent):
            recent.append(loss)
            del recent[: -self.window]


class Skip(Warn):
    """Skips the update; weights and optimiser state are unchanged."""

    holds = True


class RollBack(Warn):
    """Goes back to the last checkpoint and skips the batches up to the spike's."""

    rolls_back = True
