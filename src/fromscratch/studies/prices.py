"""What the runs of a study take: steps, hours and dollars, from its finished runs, else from measured speeds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from fromscratch.config.loading import load_run_file
from fromscratch.errors import DataError, UsageError
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.forecast import expected_speed
from fromscratch.planning.machines import Machine
from fromscratch.planning.speeds import measured_speeds
from fromscratch.runs.costs import cost_of, read_sessions
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import overview
from fromscratch.runs.states import RunState
from fromscratch.session.estimate import estimate_run, read_science, this_machine
from fromscratch.studies.definition import CONTROL, Arm
from fromscratch.studies.jobs import Job, StudyFolder

NOT_MEASURED = "unknown: run fromscratch bench, or finish one run"
UNKNOWN_TUNING = "unknown: finish one run"


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


class Prices:
    """Predicts what runs take, and adds up what was spent. Reads the run files once, and the runs at each call.

    Args:
        device: that trains; None is the fastest here.
        dollars_per_hour: price of one run's machine; None takes the last one that a run of the study recorded.
    """

    def __init__(
        self, folder: StudyFolder, *, device: str | None = None, dollars_per_hour: float | None = None
    ) -> None:
        self._folder = folder
        self._given_price = dollars_per_hour
        machine = this_machine(find_hardware(device))
        self._untrained = {arm.name: self._by_speed(arm, machine) for arm in folder.study.all_arms}

    def _by_speed(self, arm: Arm, machine: Machine) -> Forecast:
        """A run of the arm by the measured speed of this machine, or a GPU's assumed one; without a price."""
        file = self._folder.study.baseline
        try:
            run_file = load_run_file(file, list(arm.overrides))
            if run_file.config.tune:
                return Forecast(Total(1, None, None, None), None, UNKNOWN_TUNING)
            science = read_science(run_file, file)
        except (UsageError, DataError) as error:  # no store here yet: a status needs none
            return Forecast(Total(1, None, None, None), None, f"unknown: {error}")
        workload = Workload.of(science.config)
        speed, basis, _ = expected_speed(machine, workload, measured_speeds(workload))
        hours = science.tokens / speed / 3600 if speed else None
        flops = float(science.costs.training_flops_per_token) * science.tokens
        basis = basis + _without_tuning(self._folder) if speed else NOT_MEASURED
        return Forecast(Total(1, science.num_steps, hours, None), flops, basis)

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
        return _sum(self._spent_on(run) for run in job.stages if run.exists())

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
        known = {name: flops for name, one in self._untrained.items() if (flops := one.flops)}
        per_flop = [fmean(values) / known[name] for name, values in hours.items() if name in known]
        found = {}
        for name, one in self._untrained.items():
            taken, basis = one.total.hours, one.basis
            if name in hours:
                taken, basis = fmean(hours[name]), "its finished runs"
            elif per_flop and name in known:
                taken, basis = fmean(per_flop) * known[name], "finished runs of other arms, by FLOPs"
            price = self.dollars_per_hour
            dollars = None if taken is None or price is None else taken * price
            found[name] = Forecast(Total(1, one.total.steps, taken, dollars), one.flops, basis)
        return found

    def relative_costs(self) -> dict[str, float]:
        """Cost of one run by arm, in one unit: hours where all are known, else FLOPs, else equal."""
        found = self.forecasts()
        for values in (
            {name: one.total.hours for name, one in found.items()},
            {n: one.flops for n, one in found.items()},
        ):
            known = {name: value for name, value in values.items() if value}
            if len(known) == len(found):
                return known
        return dict.fromkeys(found, 1.0)


def _without_tuning(folder: StudyFolder) -> str:
    return ", without the tuning" if folder.study.tune else ""


def remaining_share(job: Job) -> float:
    """The share of a run's steps that is still to be taken; the steps of a tuning of it are not counted."""
    return 1.0 - (overview(job.run).progress or 0.0) if job.run.exists() else 1.0


def remaining(job: Job, forecasts: Mapping[str, Forecast]) -> Total:
    """What remains of a run."""
    return forecasts[job.arm.name].total.times(remaining_share(job))


def total_of(parts: Iterable[Total]) -> Total:
    """Adds up; a figure is unknown where one of the parts is."""
    given = list(parts)
    steps = _sum(one.steps for one in given)
    return Total(
        sum(one.runs for one in given),
        None if steps is None else round(steps),
        _sum(one.hours for one in given),
        _sum(one.dollars for one in given),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    given = list(values)
    known = [value for value in given if value is not None]
    return math.fsum(known) if len(known) == len(given) else None


@dataclass(frozen=True)
class MachineTotal:
    """What several runs, one after another, take on a machine; None means unknown."""

    machine: str
    hours: float | None
    dollars: tuple[float, float] | None
    """Lowest and highest."""
    basis: str
    """Where the hours come from; an assumed MFU is named."""


def totals_by_machine(folder: StudyFolder, jobs: list[Job], machines: list[str]) -> list[MachineTotal]:
    """Predicts what remains of some runs on machines of ``machines.toml``.

    Raises:
        UsageError: a machine is not known.
    """
    by_arm = {
        arm.name: {
            one.name: one
            for one in estimate_run(folder.study.baseline, list(arm.overrides), machines=machines).machines
        }
        for arm in folder.study.all_arms
    }
    shares = [(job.arm.name, remaining_share(job)) for job in jobs]
    found = []
    for name, example in by_arm[CONTROL].items():
        hours = _sum(None if (h := by_arm[arm][name].hours) is None else h * share for arm, share in shares)
        price = example.dollars_per_hour
        dollars = None if hours is None or price is None else (hours * price[0], hours * price[1])
        basis = "; ".join(dict.fromkeys(by_arm[arm][name].basis for arm, _ in shares)) + _without_tuning(folder)
        found.append(MachineTotal(name, hours, dollars, basis))
    return found


def seeds_total(arm: str, seeds: int, forecasts: Mapping[str, Forecast]) -> Total:
    """What so many further seeds of an arm and of the baseline take."""
    pair = total_of([forecasts[arm].total, forecasts[CONTROL].total]).times(seeds)
    return Total(2 * seeds, pair.steps, pair.hours, pair.dollars)


@dataclass(frozen=True)
class Limit:
    """The most dollars that a study may cost.

    Raises:
        UsageError: no price is known, or not how long a run takes.
    """

    dollars: float
    prices: Prices

    def __post_init__(self) -> None:
        if self.prices.dollars_per_hour is None:
            raise UsageError(
                f"--limit-dollars {self.dollars:g}: no price is known; give --dollars-per-hour, the price of one run's "
                "machine"
            )
        unknown = [name for name, one in self.prices.forecasts().items() if one.total.dollars is None]
        if unknown:
            raise UsageError(
                f"--limit-dollars {self.dollars:g}: how long a run of {', '.join(unknown)} takes is unknown; measure "
                "it with 'fromscratch bench RUNFILE', or finish one run without a limit"
            )

    def refusal(self, job: Job, others: list[Job], running: set[str]) -> str:
        """Why a run may not begin: spent and predicted dollars exceed the limit. Empty if it may.

        Args:
            job: the run that would begin.
            others: all other runs of the study.
            running: names of those that are trained now.
        """
        forecasts = self.prices.forecasts()
        spent = math.fsum(self.prices.spent(one) or 0.0 for one in (job, *others) if one.run.exists())
        rest = [remaining(one, forecasts).dollars or 0.0 for one in others if one.name in running]
        under_way, own = math.fsum(rest), remaining(job, forecasts).dollars or 0.0
        if spent + under_way + own <= self.dollars:
            return ""
        return (
            f"the limit of ${self.dollars:,.2f}: ${spent:,.2f} are spent, runs under way will take about "
            f"${under_way:,.2f} more, and {job.name} about ${own:,.2f}; no further run begins. The same command with a "
            "higher --limit-dollars continues"
        )
