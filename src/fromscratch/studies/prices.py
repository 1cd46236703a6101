"""What the runs of a study take: steps, hours and dollars, from its finished runs, else from measured speeds."""

import math
from dataclasses import dataclass

from fromscratch.config.loading import load_run_file
from fromscratch.errors import DataError, UsageError
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.forecast import expected_speed
from fromscratch.planning.machines import Machine
from fromscratch.planning.speeds import measured_speeds
from fromscratch.session.estimate import estimate_run, read_science, this_machine
from fromscratch.studies.definition import CONTROL, Arm
from fromscratch.studies.forecasts import Forecast, PastCosts, Total, known_sum, remaining, remaining_share
from fromscratch.studies.jobs import Job, StudyFolder

NOT_MEASURED = "unknown: run fromscratch bench, or finish one run"
UNKNOWN_TUNING = "unknown: finish one run"


class Prices(PastCosts):
    """Predicts what runs take, also by the speed of this machine. Reads the run files once, and the runs at each call.

    Args:
        device: that trains; None is the fastest here.
        dollars_per_hour: price of one run's machine; None takes the last one that a run of the study recorded.
    """

    def __init__(
        self, folder: StudyFolder, *, device: str | None = None, dollars_per_hour: float | None = None
    ) -> None:
        machine = this_machine(find_hardware(device))
        untrained = {arm.name: self._by_speed(folder, arm, machine) for arm in folder.study.all_arms}
        super().__init__(folder, untrained, dollars_per_hour=dollars_per_hour)

    @staticmethod
    def _by_speed(folder: StudyFolder, arm: Arm, machine: Machine) -> Forecast:
        """A run of the arm by the measured speed of this machine, or a GPU's assumed one; without a price."""
        file = folder.study.baseline
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
        basis = basis + _without_tuning(folder) if speed else NOT_MEASURED
        return Forecast(Total(1, science.num_steps, hours, None), flops, basis)


def _without_tuning(folder: StudyFolder) -> str:
    return ", without the tuning" if folder.study.tune else ""


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
        hours = known_sum(None if (h := by_arm[arm][name].hours) is None else h * share for arm, share in shares)
        price = example.dollars_per_hour
        dollars = None if hours is None or price is None else (hours * price[0], hours * price[1])
        basis = "; ".join(dict.fromkeys(by_arm[arm][name].basis for arm, _ in shares)) + _without_tuning(folder)
        found.append(MachineTotal(name, hours, dollars, basis))
    return found


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
