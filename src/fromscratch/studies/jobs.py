"""The runs of a study: which there are, in which state, and in which order they are trained."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.loading import differences, load_run_file, read_run_config
from fromscratch.errors import UsageError
from fromscratch.files import read_json_object, to_strict_json, write_atomically
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import observed_status
from fromscratch.runs.records import read_records, to_count, to_float
from fromscratch.runs.states import Event, RunState
from fromscratch.studies.definition import Arm, Study

RECORD = "study.json"
CLAIMS = ".claims"
FOUND_AT_START = (
    ("model", "preset"),
    ("model", "vocab_size"),
    ("data", "store"),
    ("data", "tokens"),
    ("eval", "store"),
)
"""Keys whose values in a run's config are resolved ones, or paths, which may change."""
NEVER_TRAINED_AGAIN = (RunState.DONE, RunState.DIVERGED)


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    arm: Arm
    seed: int
    run: RunDirectory

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def code(self) -> str:
        """Identifies the code that computed the run; empty where it is not on record."""
        return str(read_json_object(self.run.machine).get("code") or "") if self.run.machine.is_file() else ""

    @property
    def state(self) -> RunState | None:
        """The state of the run; None where it has not begun."""
        return observed_status(self.run).state if self.run.exists() else None


class StudyFolder:
    """The folder of a study's runs, with what the study itself records in ``study.json``."""

    def __init__(self, study: Study, runs_dir: Path) -> None:
        self.study = study
        self.path = runs_dir / study.name
        self._record = self.path / RECORD

    def job(self, arm: Arm, seed: int) -> Job:
        """One run of an arm."""
        return Job(arm, seed, RunDirectory(self.path / f"{arm.name}-seed-{seed}"))

    def jobs(self) -> list[Job]:
        """All runs of the study, arm by arm, the control first."""
        return [self.job(arm, seed) for arm in self.study.all_arms for seed in arm.seeds]

    def read(self) -> dict[str, Any]:
        """What the study has recorded: added seeds, runs stopped early, openings of the test set."""
        return read_json_object(self._record) if self._record.is_file() else {}

    def update(self, **values: Any) -> None:
        """Changes some values of the record."""
        with self._locked():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self._record, to_strict_json({**self.read(), **values}, indent=1))

    def append(self, key: str, item: Any) -> None:
        """Appends to a list of the record."""
        with self._locked():
            record = self.read()
            record[key] = [*record.get(key, []), item]
            write_atomically(self._record, to_strict_json(record, indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_claimed(self, job: Job) -> bool:
        """Whether a process has the claim to a run."""
        if not (self.path / CLAIMS / job.name).exists() or self.is_over(job):
            return False
        with self.claimed(job) as mine:
            return mine is None

    @contextmanager
    def claimed(self, job: Job) -> Iterator[int | None]:
        """Claims a run for this process and the program that trains it, which inherits the descriptor.

        Yields the descriptor of the claim, or None where another process has it, or has ended the run meanwhile.
        """
        folder = self.path / CLAIMS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / job.name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield None if self.is_over(job) else file.fileno()

    def is_over(self, job: Job) -> bool:
        """Whether a run is never trained again: done, diverged or stopped by the rule."""
        return job.state in NEVER_TRAINED_AGAIN or job.name in self.stopped_early()

    def stopped_early(self) -> set[str]:
        """Names of the runs that the study's rule stopped."""
        return {item["run"] for item in self.read().get("stopped_early", [])}


def check_runs(folder: StudyFolder) -> None:
    """Raises UsageError where a run of the folder has another config than the study gives it.

    The folder may hold the runs of another study of the same name, or the study changed after they were trained.
    """
    for arm in folder.study.all_arms:
        begun = [job for job in (folder.job(arm, seed) for seed in arm.seeds) if job.run.config.is_file()]
        if not begun:
            continue
        wanted = load_run_file(folder.study.baseline, list(arm.overrides)).config.to_plain()
        for job in begun:
            recorded = read_run_config(job.run.config).to_plain()
            wanted["train"]["seed"] = job.seed
            for table, key in FOUND_AT_START:  # the run's has values that the store or the checkpoint decided
                if key in recorded.get(table, {}):
                    wanted[table][key] = recorded[table][key]
            if changes := differences(recorded, wanted):
                listed = "\n".join(f"  - {change}" for change in changes)
                raise UsageError(
                    f"{job.run.path} was trained with another config than {folder.study.file or folder.study.name} "
                    f"gives it:\n{listed}\n"
                    "the folder holds the runs of another study of this name, or the file changed since; give another "
                    "--runs-dir, rename the study file, or undo the change"
                )


def missing(folder: StudyFolder) -> list[Job]:
    """The runs that still have to be trained and that nobody trains, seed by seed through all arms."""
    jobs = sorted(enumerate(folder.jobs()), key=lambda item: (_place(item[1]), item[0]))
    stopped = folder.stopped_early()
    waits = [job for _, job in jobs if job.name not in stopped]
    return [job for job in waits if job.state not in (*NEVER_TRAINED_AGAIN, RunState.RUNNING)]


def _place(job: Job) -> int:
    """Position of the run's seed in its arm."""
    return job.arm.seeds.index(job.seed)


def is_lost(job: Job, stopped_early: set[str]) -> bool:
    """Whether a run diverged or was stopped by the rule. It counts against its arm and enters no mean and no band."""
    return job.name in stopped_early or job.state == RunState.DIVERGED


def held_out_losses(run: RunDirectory) -> dict[int, float]:
    """Held-out loss by step, as training measured it; a loss that is not finite is left out."""
    found = {}
    for record in read_records(run.events):
        if record.get("event") == Event.EVALUATION:
            step, loss = to_count(record.get("step")), to_float(record.get("loss"))
            if step is not None and loss is not None:
                found[step] = loss
    return found


def held_out_by_share(run: RunDirectory) -> dict[float, float]:
    """As ``held_out_losses``, by share of the run's steps: arms with other batches take other numbers of steps."""
    num_steps = observed_status(run).num_steps
    return {round(step / num_steps, 4): loss for step, loss in held_out_losses(run).items()} if num_steps else {}
