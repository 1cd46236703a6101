"""Losses far above the recent ones: the fillings of ``train.spike``.

A spike is a finite loss more than so many standard deviations above the mean of the last accepted
losses. A spike never enters that window, and nothing that is not finite does, so one cannot hide the
next; the window is part of the training state.
"""

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

LEAST_DEVIATION = 1e-3  # relative to the mean: a flat window must not make noise a spike


@dataclass(frozen=True)
class Off:
    """Looks for nothing."""

    holds: ClassVar[bool] = False
    """Whether a step must wait until it is known whether its loss is a spike."""
    rolls_back: ClassVar[bool] = False

    def is_spike(self, loss: float, recent: list[float]) -> bool:
        return False

    def remember(self, loss: float, recent: list[float]) -> None:
        pass


@dataclass(frozen=True)
class Warn:
    """Reports spikes; training goes on."""

    window: int
    deviations: float
    holds: ClassVar[bool] = False
    rolls_back: ClassVar[bool] = False

    def is_spike(self, loss: float, recent: list[float]) -> bool:
        """Whether a loss stands out from ``recent`` ones, of which there must be half a window."""
        if not math.isfinite(loss) or len(recent) < self.window // 2:
            return False
        mean = statistics.fmean(recent)
        deviation = max(statistics.pstdev(recent, mean), LEAST_DEVIATION * abs(mean))
        return loss > mean + self.deviations * deviation

    def remember(self, loss: float, recent: list[float]) -> None:
        """Adds a loss that was none to the window, in place, and drops the oldest."""
        if math.isfinite(loss) and not self.is_spike(loss, recent):
            recent.append(loss)
            del recent[: -self.window]


class Skip(Warn):
    """The step changes nothing."""

    holds = True


class RollBack(Warn):
    """Back to the last checkpoint, and past the spike's batch."""

    rolls_back = True
