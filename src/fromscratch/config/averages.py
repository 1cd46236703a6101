"""``[train] averages``: averages of the weights, kept beside them."""

from typing import Any, Self

from pydantic import Field, model_validator

from fromscratch.config.base import Table, import_target


class Averages(Table):
    """Averages of the weights, evaluated and saved beside them. They leave the training as it is.

    Each takes the memory of the weights once more. Source: Polyak and Juditsky 1992.
    """

    ema: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Exponential average: how much less the weights of one step ago count, such as 0.999. Without it, there is none.
    Its first steps are corrected for being few, as Adam's moments are."""
    tail: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of the run's steps, at its end, whose weights have one mean, such as 0.2. Without it, there is none."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.ema is None and self.tail is None:
            raise ValueError("names no average; set ema or tail, or remove it")
        return self

    def build(self) -> dict[str, Any]:
        """Returns the rule of each average that is wanted, by name."""
        builds = {"ema": "fromscratch.training.averages:Exponential", "tail": "fromscratch.training.averages:Tail"}
        wanted = {name: value for name in builds if (value := getattr(self, name)) is not None}
        return {name: import_target(builds[name])(value) for name, value in wanted.items()}
