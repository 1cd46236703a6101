"""What one does with a study: open, run, look, report. The command line and the Python interface call the same."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fromscratch.errors import UsageError
from fromscratch.studies.agenda import Agenda
from fromscratch.studies.definition import CONTROL, load_study
from fromscratch.studies.jobs import StudyFolder, check_runs
from fromscratch.studies.prices import Limit, Prices
from fromscratch.studies.recorded import record_definition
from fromscratch.studies.registry import borrowed_spread, lend
from fromscratch.studies.report import write_report
from fromscratch.studies.results import Judgement, Losses, held_out_name, judge, losses_after, validation_losses
from fromscratch.studies.runner import Devices, LocalDevices, Outcome, local_slots, run_study
from fromscratch.studies.worth import to_dict

EngineName = Literal["local", "ray"]


def open_folder(file: Path, runs_dir: Path) -> StudyFolder:
    """Opens a study file and the folder of its runs, with the seeds that were added.

    Raises:
        UsageError: the file is not valid, or the folder holds runs with other configs than the study's.
    """
    folder = StudyFolder(load_study(file), runs_dir)
    added = folder.read().get("added_seeds", [])
    if added:
        folder = StudyFolder(load_study(file, added_seeds=tuple(added)), runs_dir)
    check_runs(folder)
    return folder


def train_missing(
    folder: StudyFolder,
    *,
    device: str | None = None,
    jobs: int | None = None,
    engine: EngineName = "local",
    limit_dollars: float | None = None,
    dollars_per_hour: float | None = None,
    quiet: bool = False,
    on_event: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Trains the missing runs.

    Args:
        jobs: runs at once; by default one per GPU or node, or one on the CPU.
        engine: ``local``, or ``ray`` for the nodes of a Ray cluster.
        limit_dollars: begin no run with which spent and predicted dollars would exceed this.
        dollars_per_hour: price of the machine of one run; by default the last one that a run recorded.
        quiet: whether the runs print only results and errors.
        on_event: gets a line for each run that begins or ends.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs = {jobs}: must be at least 1")
    prices = Prices(folder, device=device, dollars_per_hour=dollars_per_hour)
    agenda = Agenda(folder, prices, None if limit_dollars is None else Limit(limit_dollars, prices))
    record_definition(folder, prices.untrained, borrowed_spread(folder.study))
    options = ["--quiet"] if quiet else []
    if device:
        options += ["--device", device]
    if prices.dollars_per_hour is not None:
        options += ["--dollars-per-hour", str(prices.dollars_per_hour)]
    with ExitStack() as stack:
        devices: Devices
        if engine == "ray":
            from fromscratch.data.engines.ray_cluster import connected_ray
            from fromscratch.studies.ray_cluster import RayDevices

            devices = RayDevices(stack.enter_context(connected_ray()), options, jobs=jobs)
        else:
            devices = LocalDevices(local_slots(device, jobs), options)
        return run_study(folder, devices, agenda, on_event=on_event)


@dataclass(frozen=True)
class StudyReport:
    """The written report of a study."""

    page: Path
    """The HTML page; ``report.md``, ``report.json`` and the pictures are beside it."""
    judgement: Judgement
    measured_on: str
    """``validation slice`` or ``test set``; of tuned models, ``validation part`` or ``test part`` of their records."""


def report_study(
    folder: StudyFolder,
    *,
    sealed: bool,
    device: str | None = None,
    dollars_per_hour: float | None = None,
    on_run: Callable[[str], None] = lambda _name: None,
) -> StudyReport:
    """Writes the report of a study, and lends its spread between seeds to later studies.

    Args:
        sealed: whether to report on the validation slice and leave the test set sealed.
        device: that measures the test set.
        dollars_per_hour: price of the machine, for the costs.
        on_run: gets the name of each run that is measured on the test set.

    Raises:
        UsageError: no run has ended.
    """
    losses, measured_on = validation_losses(folder), held_out_name(folder.study)
    if all(loss is None for arm in losses.values() for loss in arm.values()):
        raise UsageError(
            f"study {folder.study.name}: no run in {folder.path} has ended, so there is nothing to report; "
            "'fromscratch study run' trains them, or give the --runs-dir that holds them"
        )
    if not sealed:
        from fromscratch.studies.test_set import open_test_set

        losses = open_test_set(folder, device=device, on_run=on_run)
        measured_on = "test part" if folder.study.measure.is_tuned else "test set"
    judgement = judge(folder, losses, borrowed=borrowed_spread(folder.study))
    page = write_report(folder, judgement, measured_on=measured_on, dollars_per_hour=dollars_per_hour)
    result = judgement.result
    finite = {arm.arm: arm.runs.losses for arm in result.arms} | {CONTROL: result.control.losses}
    lend(folder.study, finite)
    return StudyReport(page, judgement, measured_on)


class Study:
    """A study file and its runs, on disk."""

    def __init__(self, folder: StudyFolder, outcome: Outcome | None = None) -> None:
        self.folder = folder
        self.outcome = outcome
        """How the session of ``run_study`` ended; None for a study that was opened."""

    def __repr__(self) -> str:
        return f"Study({str(self.folder.study.file)!r})"

    @property
    def path(self) -> Path:
        """The folder of its runs."""
        return self.folder.path

    @property
    def runs(self) -> dict[str, list[Path]]:
        """The folders of the runs that have begun, by arm, tunings after what they tune; ``open_run`` opens one."""
        arms: dict[str, list[Path]] = {arm.name: [] for arm in self.folder.study.all_arms}
        for job in self.folder.jobs():
            arms[job.arm.name] += [run.path for run in job.stages if run.exists()]
        return arms

    def losses(self) -> Losses:
        """Held-out result by arm and seed: the final loss, or what the study's ``measure`` names.

        None if the run has not ended, NaN if it diverged or was stopped.
        """
        return validation_losses(self.folder)

    def judge(self, seeds: int | None = None) -> Judgement:
        """The verdicts so far on the validation slice; the test set stays sealed.

        Args:
            seeds: look at the first so many runs of each arm only; by default at all.

        Raises:
            UsageError: no run of the baseline has a loss curve yet, and the study names no smallest effect.
        """
        if seeds is not None and seeds < 1:
            raise UsageError(f"judge: seeds = {seeds}: must be at least 1")
        losses = self.losses() if seeds is None else losses_after(self.losses(), seeds)
        return judge(self.folder, losses, borrowed=borrowed_spread(self.folder.study))

    def to_dict(self) -> dict[str, Any]:
        """The verdicts, as ``fromscratch study status --json`` prints them, with shares of training and dollars."""
        return to_dict(self.judge(), Prices(self.folder).forecasts())

    def report(
        self, *, sealed: bool = True, device: str | None = None, dollars_per_hour: float | None = None
    ) -> StudyReport:
        """Writes the report; ``sealed=False`` opens the test set, which is on the record."""
        return report_study(self.folder, sealed=sealed, device=device, dollars_per_hour=dollars_per_hour)
