"""What a study compares its runs by: the name of the measure, its unit, and which direction is better."""

from dataclasses import dataclass
from typing import Literal

MeasureName = Literal["loss", "accuracy", "balanced-accuracy"]


@dataclass(frozen=True)
class Measure:
    """A figure of a finished run."""

    name: str
    unit: str
    """``nats``; empty for a share from 0 to 1."""
    per: str
    """What it is a mean over, or a share of."""
    higher_is_better: bool = False
    is_tuned: bool = False
    """Whether it is measured on a model that is tuned on records, and not on the text of a token store."""

    def amount(self, value: float, digits: int = 4) -> str:
        """A value with its unit."""
        return self._with_unit(f"{value:.{digits}f}")

    def effect(self, value: float) -> str:
        """A difference with its sign and unit."""
        return self._with_unit(f"{value:+.4f}")

    def is_improvement(self, effect: float) -> bool:
        """Whether a difference, arm minus control, is one for the better."""
        return effect > 0 if self.higher_is_better else effect < 0

    @property
    def scale(self) -> str:
        """Unit and reference, as ``nats per token``."""
        return f"{self.unit} per {self.per}" if self.unit else f"share of the {self.per}"

    @property
    def better_side(self) -> str:
        """Where on an axis of effects the better ones are."""
        return "right" if self.higher_is_better else "left"

    def _with_unit(self, text: str) -> str:
        return f"{text} {self.unit}" if self.unit else text


LOSS = Measure("loss", "nats", "token")
"""Held-out loss of a language model at its last step."""
TUNED_LOSS = Measure("loss", "nats", "token", is_tuned=True)
"""Loss on records of a model tuned on instructions."""
CLASSIFIER_MEASURES: dict[MeasureName, Measure] = {
    "loss": Measure("loss", "nats", "text", is_tuned=True),
    "accuracy": Measure("accuracy", "", "texts", higher_is_better=True, is_tuned=True),
    "balanced-accuracy": Measure("balanced accuracy", "", "texts of a class", higher_is_better=True, is_tuned=True),
}
"""Of classifiers, by their name in a study file."""
