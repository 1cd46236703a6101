"""The runs of a study: which there are, in which state, and in which order they are trained."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.loading import differences, load_run_file, read_run_config
from fromscratch.config.run import RunConfig
from fromscratch.errors import UsageError
from fromscratch.files import locked, read_json_object, to_strict_json, write_atomically
from fromscratch.runs.directory import CLASSIFICATION, RunDirectory
from fromscratch.runs.overview import observed_status
from fromscratch.runs.records import read_records, to_count, to_float
from fromscratch.runs.states import Event, RunState
from fromscratch.studies.definition import Arm, Study
from fromscratch.studies.measures import CLASSIFIER_MEASURES

RECORD = "study.json"
CLAIMS = ".claims"
LOCK = ".lock"
FOUND_AT_START = (
    ("model", "vocab_size"),
    ("data", "store"),
    ("data", "tokens"),
    ("eval", "store"),
)
"""Keys whose values in a run's config are resolved ones, or paths, which may change."""
FOUND_UNLESS_GIVEN = (
    ("data", "validation_share"),
    *(("train", key) for key in ("evaluate_every", "checkpoint_every", "sample_every")),
)
"""The same where the file does not give them: the store or the length of an epoch decides them."""
FOUND_BY_TUNING = (("train", "start_from"), *(("tune", key) for key in ("classes", "text_column", "label_column")))
"""The same for runs that tune."""
TUNED_ENDING = "-tuned"
NEVER_TRAINED_AGAIN = (RunState.DONE, RunState.DIVERGED)


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    arm: Arm
    seed: int
    run: RunDirectory
    tuned: RunDirectory | None = None
    """The run that tunes its model, in a study of tuned models. Its name begins with that of the run."""
    needs_report: bool = False
    """Whether the job is done only when the classifier is measured."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def stages(self) -> tuple[RunDirectory, ...]:
        """The runs that are trained one after the other."""
        return (self.run,) if self.tuned is None else (self.run, self.tuned)

    @property
    def current(self) -> RunDirectory:
        """The last run that has begun, else the first."""
        return self.tuned if self.tuned is not None and self.tuned.exists() else self.run

    @property
    def code(self) -> str:
        """Identifies the code that computed the runs; empty where it is not on record."""
        files = [run.machine for run in self.stages if run.machine.is_file()]
        return " ".join(filter(None, (str(read_json_object(file).get("code") or "") for file in files)))

    @property
    def state(self) -> RunState | None:
        """The state of the run that is trained now or was trained last; None where none has begun.

        A run that is done while a later stage or the report of the classifier is missing counts as interrupted.
        """
        if not self.run.exists():
            return None
        state = observed_status(self.current).state
        is_last = self.current == self.stages[-1]
        if state == RunState.DONE and not (is_last and self.is_measured):
            return RunState.INTERRUPTED
        return state

    @property
    def is_measured(self) -> bool:
        """Whether the report of the classifier is there, where the study needs it."""
        return not self.needs_report or (self.stages[-1].path / CLASSIFICATION).is_file()


class StudyFolder:
    """The folder of a study's runs, with what the study itself records in ``study.json``."""

    def __init__(self, study: Study, runs_dir: Path) -> None:
        self.study = study
        self.path = runs_dir / study.name
        self._record = self.path / RECORD

    def job(self, arm: Arm, seed: int) -> Job:
        """One run of an arm, with the run that tunes its model where the study has one."""
        path, study = self.path / f"{arm.name}-seed-{seed}", self.study
        tuned = RunDirectory(path.with_name(f"{path.name}{TUNED_ENDING}")) if study.tune else None
        return Job(arm, seed, RunDirectory(path), tuned, needs_report=study.measure in CLASSIFIER_MEASURES.values())

    def jobs(self) -> list[Job]:
        """All runs of the study, arm by arm, the control first."""
        return [self.job(arm, seed) for arm in self.study.all_arms for seed in arm.seeds]

    def read(self) -> dict[str, Any]:
        """What the study has recorded: added seeds, runs stopped early, openings of the test set."""
        return read_json_object(self._record) if self._record.is_file() else {}

    def update(self, **values: Any) -> None:
        """Changes some values of the record."""
        with locked(self.path / LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self._record, to_strict_json({**self.read(), **values}, indent=1))

    def append(self, key: str, item: Any) -> None:
        """Appends to a list of the record."""
        with locked(self.path / LOCK):
            record = self.read()
            record[key] = [*record.get(key, []), item]
            write_atomically(self._record, to_strict_json(record, indent=1))

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
    study = folder.study
    for arm in study.all_arms:
        wanted = load_run_file(study.baseline, list(arm.overrides)).config
        for job in (folder.job(arm, seed) for seed in arm.seeds):
            _check_run(job.run, wanted, job.seed, study)
            if job.tuned and study.tune:
                _check_run(job.tuned, load_run_file(study.tune).config, job.seed, study)


def _check_run(run: RunDirectory, config: RunConfig, seed: int, study: Study) -> None:
    """Raises UsageError where a run that has begun has another config, apart from its seed."""
    if not run.config.is_file():
        return
    recorded, wanted = read_run_config(run.config).to_plain(), config.to_plain()
    wanted["train"]["seed"] = seed
    wanted["model"].pop("preset", None)  # a run's config has the fields of a preset, and not its name
    if config.tune:
        wanted["model"] = recorded["model"]
    unless_given = FOUND_UNLESS_GIVEN + (FOUND_BY_TUNING if config.tune else ())
    found = [*FOUND_AT_START, *(t for t in unless_given if t[1] not in getattr(config, t[0]).model_fields_set)]
    for table, key in found:  # the run's has values that the store, the records or the checkpoint decided
        if key in recorded.get(table, {}):
            wanted[table][key] = recorded[table][key]
    if changes := differences(recorded, wanted):
        listed = "\n".join(f"  - {change}" for change in changes)
        raise UsageError(
            f"{run.path} was trained with another config than {study.file or study.name} gives it:\n{listed}\n"
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
