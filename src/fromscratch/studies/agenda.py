"""What a study does next: the order of its runs from the verdicts so far and the prices, and the limit of dollars."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from fromscratch.errors import UsageError
from fromscratch.runs.states import RunState
from fromscratch.studies.definition import Study
from fromscratch.studies.forecasts import Forecast, PastCosts, relative_costs, remaining_share
from fromscratch.studies.jobs import Job, StudyFolder, missing
from fromscratch.studies.order import train_order
from fromscratch.studies.registry import borrowed_spread
from fromscratch.studies.results import judge, validation_losses
from fromscratch.studies.verdicts import StudyResult

if TYPE_CHECKING:
    from fromscratch.studies.prices import Limit


class Agenda:
    """Reads the disk at every call, so that several runners agree on what is next."""

    def __init__(self, folder: StudyFolder, prices: PastCosts, limit: "Limit | None" = None) -> None:
        self._folder, self._prices, self._limit = folder, prices, limit
        self._borrowed = borrowed_spread(folder.study)

    def waiting(self, running: Iterable[Job] = (), *, without: Collection[str] = ()) -> list[Job]:
        """The runs to train, the next one first.

        Args:
            running: runs that this process has begun; those of other processes are found by their claims.
            without: names of runs to leave out.
        """
        own = {job.name for job in running}
        left = [job for job in missing(self._folder) if job.name not in own and job.name not in without]
        if len(left) < 2:
            return left
        return by_value(self._folder.study, left, self._under_way(own), self._result(), self._prices.forecasts())

    def refusal(self, job: Job, running: Iterable[Job]) -> str:
        """Why the run may not begin because of the limit; empty if it may."""
        if self._limit is None:
            return ""
        others = [other for other in self._folder.jobs() if other.name != job.name]
        under_way = {other.name for other in self._under_way({one.name for one in running})}
        return self._limit.refusal(job, others, under_way)

    def _under_way(self, own: Collection[str]) -> list[Job]:
        return [
            job
            for job in self._folder.jobs()
            if job.name in own or job.state == RunState.RUNNING or self._folder.is_claimed(job)
        ]

    def _result(self) -> StudyResult | None:
        try:
            return judge(self._folder, validation_losses(self._folder), borrowed=self._borrowed).result
        except UsageError:
            return None  # no loss curve of the baseline yet


def by_value(
    study: Study,
    waiting: list[Job],
    under_way: Iterable[Job],
    result: StudyResult | None,
    forecasts: Mapping[str, Forecast],
) -> list[Job]:
    """Orders waiting runs by what they decide per cost: ``train_order`` with the predicted costs."""
    costs = relative_costs(forecasts)
    return train_order(study, waiting, under_way, result, lambda job: costs[job.arm.name] * remaining_share(job))
