"""What the runs of a study take by what its finished runs took. Reads run directories only; no torch.

``prices`` adds what runs of arms without a finished run take, by the speed of this machine.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from fromscratch.runs.costs import cost_of, read_sessions
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import overview
from fromscratch.runs.states import RunState
from fromscratch.studies.definition import CONTROL
from fromscratch.studies.jobs import Job, StudyFolder


@dataclass(frozen=True)
class Total:
    """What a run, or several, takes; None means unknown."""

    runs: int
    steps: int | None
    hours: float | None
    dollars: float | None

    def times(self, factor: float) -> "Total":
        """What a part of it, or a multiple, takes; the number of runs stays."""
        steps, hours, dollars = (
            None if one is None else one * factor for one in (self.steps, self.hours, self.dollars)
        )
        return Total(self.runs, None if steps is None else round(steps), hours, dollars)


@dataclass(frozen=True)
class Forecast:
    """What one run of an arm takes."""

    total: Total
    flops: float | None
    basis: str
    """Where the hours come from; an assumed MFU is named."""


class PastCosts:
    """Predicts what runs take, and adds up what was spent. Reads the runs at each call.

    Args:
        untrained: what one run of each arm takes by what is known without a finished run; without a price.
        dollars_per_hour: price of one run's machine; None takes the last one that a run of the study recorded.
    """

    def __init__(
        self, folder: StudyFolder, untrained: Mapping[str, Forecast], *, dollars_per_hour: float | None = None
    ) -> None:
        self._folder = folder
        self._given_price = dollars_per_hour
        self.untrained = untrained

    @property
    def dollars_per_hour(self) -> float | None:
        """The price of new runs; None if it is unknown."""
        if self._given_price is not None:
            return self._given_price
        sessions = (one for job in self._folder.jobs() for run in job.stages for one in read_sessions(run))
        priced = [(one.began_at, one.dollars_per_hour) for one in sessions if one.dollars_per_hour is not None]
        return max(priced)[1] if priced else None

    def spent(self, job: Job) -> float | None:
        """The dollars that a run has cost so far; at the study's price where a session recorded none."""
        return known_sum(self._spent_on(run) for run in job.stages if run.exists())

    def _spent_on(self, run: RunDirectory) -> float | None:
        recorded = cost_of(run).dollars
        return recorded if recorded is not None else cost_of(run, dollars_per_hour=self.dollars_per_hour).dollars

    def forecasts(self) -> dict[str, Forecast]:
        """Predicts a whole run of each arm.

        The mean of the arm's own finished runs; else the other arms' finished runs, by FLOPs; else the speed that
        ``bench`` measured on this device, or a GPU's assumed share of its peak.
        """
        hours: dict[str, list[float]] = {}
        for job in self._folder.jobs():
            if job.state == RunState.DONE:
                seconds = math.fsum(cost_of(run).total_seconds for run in job.stages)
                hours.setdefault(job.arm.name, []).append(seconds / 3600)
        known = {name: flops for name, one in self.untrained.items() if (flops := one.flops)}
        per_flop = [fmean(values) / known[name] for name, values in hours.items() if name in known]
        found = {}
        for name, one in self.untrained.items():
            taken, basis = one.total.hours, one.basis
            if name in hours:
                taken, basis = fmean(hours[name]), "its finished runs"
            elif per_flop and name in known:
                taken, basis = fmean(per_flop) * known[name], "finished runs of other arms, by FLOPs"
            price = self.dollars_per_hour
            dollars = None if taken is None or price is None else taken * price
            found[name] = Forecast(Total(1, one.total.steps, taken, dollars), one.flops, basis)
        return found


def relative_costs(forecasts: Mapping[str, Forecast]) -> dict[str, float]:
    """Cost of one run by arm, in one unit: hours where all are known, else FLOPs, else equal."""
    for values in (
        {name: one.total.hours for name, one in forecasts.items()},
        {name: one.flops for name, one in forecasts.items()},
    ):
        known = {name: value for name, value in values.items() if value}
        if len(known) == len(forecasts):
            return known
    return dict.fromkeys(forecasts, 1.0)


def remaining_share(job: Job) -> float:
    """The share of a run's steps that is still to be taken; the steps of a tuning of it are not counted."""
    return 1.0 - (overview(job.run).progress or 0.0) if job.run.exists() else 1.0


def remaining(job: Job, forecasts: Mapping[str, Forecast]) -> Total:
    """What remains of a run."""
    return forecasts[job.arm.name].total.times(remaining_share(job))


def total_of(parts: Iterable[Total]) -> Total:
    """Adds up; a figure is unknown where one of the parts is."""
    given = list(parts)
    steps = known_sum(one.steps for one in given)
    return Total(
        sum(one.runs for one in given),
        None if steps is None else round(steps),
        known_sum(one.hours for one in given),
        known_sum(one.dollars for one in given),
    )


def known_sum(values: Iterable[float | None]) -> float | None:
    """Adds up; unknown where one value is."""
    given = list(values)
    known = [value for value in given if value is not None]
    return math.fsum(known) if len(known) == len(given) else None


def seeds_total(arm: str, seeds: int, forecasts: Mapping[str, Forecast]) -> Total:
    """What so many further seeds of an arm and of the baseline take."""
    pair = total_of([forecasts[arm].total, forecasts[CONTROL].total]).times(seeds)
    return Total(2 * seeds, pair.steps, pair.hours, pair.dollars)
