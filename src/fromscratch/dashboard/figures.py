"""The figures of runs that pages show, read again only when a file of the run has changed."""

from dataclasses import dataclass
from functools import cache, cached_property

from fromscratch.dashboard.site import RefusedRunError, Site, check_contents
from fromscratch.dashboard.stamps import Memory, stamp_of
from fromscratch.errors import DataError
from fromscratch.runs.costs import cost_of
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import Overview, overview, recent_speed
from fromscratch.runs.records import last_record, to_count
from fromscratch.runs.states import RunState


@dataclass(frozen=True)
class Figures:
    """One run in a table; None means unknown."""

    name: str
    """Path below the folder of runs."""
    overview: Overview | None
    """None if the run is not opened."""
    refusal: str = ""
    """Why it is not opened."""
    total_seconds: float | None = None
    dollars: float | None = None
    study: str = ""
    """Name of the study that it belongs to."""
    run: RunDirectory | None = None
    """Where figures are read that few pages show."""

    @property
    def is_running(self) -> bool:
        """Whether a process trains it."""
        return self.overview is not None and self.overview.state == RunState.RUNNING

    @cached_property
    def tokens(self) -> int | None:
        """Tokens seen in training."""
        return None if self.run is None else to_count(last_record(self.run.metrics).get("tokens"))

    @property
    def tokens_per_second(self) -> float | None:
        """Median of the last steps."""
        return self._speed[0]

    @property
    def seconds_left(self) -> float | None:
        """Until the last step of a run that is trained now, without evaluations and checkpoints."""
        found = self.overview
        if not self.is_running or found is None or found.step is None or found.num_steps is None:
            return None
        seconds_per_step = self._speed[1]
        return None if seconds_per_step is None else max(0, found.num_steps - found.step) * seconds_per_step

    @cached_property
    def _speed(self) -> tuple[float | None, float | None]:
        return (None, None) if self.run is None else recent_speed(self.run)

    @property
    def updated_at(self) -> str:
        """Instant of the last event, for sorting."""
        return (self.overview and self.overview.updated_at) or ""


class FiguresOfRuns:
    """Reads the figures of runs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._memory = Memory()

    def of(self, run: RunDirectory) -> Figures:
        """The figures of a run; never raises an error."""
        if not self._site.is_inside(run.path):
            return Figures(self._site.name_of(run.path), None, "is a link out of the folder of runs")
        return self._memory.get(run.path, stamp_of(run), lambda: self._read(run))

    def all(self) -> list[Figures]:
        """Those of all runs: under way first, then by their last event."""
        found = [self.of(run) for run in self._site.runs()]
        return sorted(sorted(found, key=lambda one: one.updated_at, reverse=True), key=lambda one: not one.is_running)

    def _read(self, run: RunDirectory) -> Figures:
        name = self._site.name_of(run.path)
        try:
            check_contents(run.path, self._site.root)
            found = overview(run)
        except RefusedRunError as error:
            return Figures(name, None, str(error))
        except (OSError, ValueError, RuntimeError, RecursionError) as error:
            return Figures(name, None, f"cannot be read ({error})")
        seconds, dollars = _costs(run)
        return Figures(
            name=name,
            overview=found,
            total_seconds=seconds,
            dollars=dollars,
            study=name.rpartition("/")[0],
            run=run,
        )


def _costs(run: RunDirectory) -> tuple[float | None, float | None]:
    """Seconds and dollars of a run, as ``cost.json`` has them since the last checkpoint."""
    if not run.cost.is_file():
        return None, None  # an earlier version wrote none; adding all its steps up takes long
    try:
        cost = cost_of(run)
    except (DataError, TypeError, ValueError, OverflowError):
        return None, None
    return cost.total_seconds, cost.dollars


@cache
def figures_of(site: Site) -> FiguresOfRuns:
    """The figures that all pages of a site share."""
    return FiguresOfRuns(site)
