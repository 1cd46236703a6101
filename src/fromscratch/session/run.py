"""Trains a planned run: takes the lock, prepares the training, runs it, records how it ended."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fromscratch.config.train import ClipByNorm
from fromscratch.errors import DataError, DivergedError, FromScratchError, UsageError
from fromscratch.planning.peak_flops import known_peak_flops
from fromscratch.processes.parent import PARENT
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.watchdog import watchdog
from fromscratch.processes.world import World, joined_world
from fromscratch.runs.charts import draw_charts
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import lowest_evaluation
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState
from fromscratch.session.billing import Billing, CostRecorder
from fromscratch.session.changes import NO_CHANGES, ConfigRecorder, SessionConfig
from fromscratch.session.placement import Placement
from fromscratch.session.plan import PlannedRun
from fromscratch.session.samples import SamplesFile
from fromscratch.session.setup import open_run_directory, prepare_training, record_session
from fromscratch.training.loop import Training, train
from fromscratch.training.observers import Observer
from fromscratch.training.time_spent import TimeSpent


@dataclass(frozen=True)
class RunSummary:
    """How a run ended."""

    outcome: str
    """``done`` or ``stopped``."""
    run: str
    parameters: int
    first_step: int
    """Steps taken before this session."""
    step: int
    num_steps: int
    tokens: int
    seconds: float
    """Time in training steps over all sessions, without evaluations and saves."""
    tokens_per_second: float | None
    mfu: float | None
    """Model FLOP/s divided by the device's peak; None if the peak is unknown, or that of a CPU was not measured."""
    peak_memory_bytes: int
    final_loss: float | None
    """Mean training loss of the last fiftieth of the steps."""
    best_loss: float | None
    """Loss of the best checkpoint; if there is none, the lowest held-out loss on record."""
    best_step: int | None
    best_is_held_out: bool
    """Whether the best loss is a held-out loss; if not, it is the mean training loss before a checkpoint."""
    best_measure: str
    """The tokens that the best loss was measured on."""
    outcomes: dict[str, int]
    """Number of steps by outcome: normal, clipped, one of the non-finite ones, or spike."""


def run_training(
    plan: PlannedRun,
    path: Path,
    placement: Placement,
    *,
    observers: list[Observer],
    fresh: bool = False,
    stop_after: int | None = None,
    allowed_changes: Sequence[str] = (),
    billing: Billing | None = None,
) -> RunSummary:
    """Starts or resumes a planned run in the run directory ``path``.

    The run's status records how the training ended, also after an error, and the charts are drawn.

    Args:
        allowed_changes: keys whose values may differ from the run's recorded config.
        billing: when the session began, and its price; by default it begins now, and the price is unknown.

    Raises:
        UsageError, DataError: see ``plan_run`` and ``open_run_directory``.
        DivergedError: training diverged.
    """
    stop = StopRequest()
    billing, spent = billing or Billing(), TimeSpent()
    open_run = partial(open_run_directory, plan, path, fresh=fresh, allowed_changes=allowed_changes)
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        world = stack.enter_context(joined_world(placement.hardware.device))
        placement = placement.agreed(world)
        run, session = stack.enter_context(_locked_by_main(open_run, path, world))
        costs = CostRecorder(run, placement, billing, spent)
        observers = [ConfigRecorder(run, session), SamplesFile(run), costs, *observers]
        training, is_over = None, False
        try:
            training = prepare_training(plan, run, placement, world, observers=observers, stop=stop, session=session)
            training.spent = spent
            first_step = training.state.step
            is_over = world.broadcast(world.is_main and _takes_no_step(training, stop_after))
            if is_over:
                outcome = RunState.DONE if training.is_complete else RunState.STOPPED
                return summarise(plan, training, outcome, placement, first_step=first_step)
            if world.is_main:
                record_session(plan, run, placement, step=first_step)
            stuck = partial(_record_end, run, plan, training, RunState.FAILED)
            with (
                watchdog(world, run.path, stuck if world.is_main else lambda _reason: None),
                PARENT.saving_first(stop.request),
            ):
                outcome = train(training, stop_after=stop_after)
        except BaseException as error:
            if world.is_main and not isinstance(error, UsageError):
                _record_failure(run, plan, training, error)
            raise
        finally:
            if world.is_main and training is not None and not is_over:
                clip = plan.config.train.clip
                with suppress(OSError):  # a full disk must not fail the run
                    draw_charts(run, clip_norm=clip.max_norm if isinstance(clip, ClipByNorm) else None)
        return summarise(plan, training, outcome, placement, first_step=first_step)


@contextmanager
def _locked_by_main(
    open_run: Callable[[], SessionConfig], path: Path, world: World
) -> Iterator[tuple[RunDirectory, SessionConfig]]:
    """Yields the run directory and the session's config to all processes, while the main process holds the lock.

    Only the main process has the config.
    """
    run, session = RunDirectory(path), NO_CHANGES
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                session = open_run()
                if stack.enter_context(run.locked()):
                    run.log_event(Event.LOCK_TAKEN_OVER)
        yield run, session


def _takes_no_step(training: Training, stop_after: int | None) -> bool:
    """Whether the run has ended at the step where this session would end; then nothing is written."""
    state, run = training.state, training.journal.run
    try:
        status = run.read_status()
    except DataError:
        return False
    if status.step != state.step or status.num_steps != training.num_steps:
        return False
    is_stopped = status.state == RunState.STOPPED and stop_after is not None and state.step >= stop_after
    return is_stopped or (status.state == RunState.DONE and training.is_complete)


def summarise(
    plan: PlannedRun, training: Training, outcome: str, placement: Placement, *, first_step: int
) -> RunSummary:
    """Summarises a run from its state and its records."""
    state = training.state
    tokens = plan.tokens_before(state.step)
    speed = tokens / state.seconds if state.seconds else None
    peak = known_peak_flops(placement.hardware, plan.config.train.precision)
    run = training.journal.run
    records = list(read_records(run.metrics))
    best_loss, best_step = state.best_loss, state.best_step
    if best_loss is None:
        best_loss, best_step = lowest_evaluation(run, state.step)
    return RunSummary(
        outcome=outcome,
        run=str(run.path),
        parameters=plan.parameters_at(state.step),
        first_step=first_step,
        step=state.step,
        num_steps=training.num_steps,
        tokens=tokens,
        seconds=state.seconds,
        tokens_per_second=speed,
        mfu=speed * plan.costs.training_flops_per_token / (peak * placement.world_size) if speed and peak else None,
        peak_memory_bytes=placement.hardware.peak_memory_bytes(),
        final_loss=_mean_of_last(records),
        best_loss=best_loss,
        best_step=best_step,
        best_is_held_out=training.evaluate is not None,
        best_measure=plan.config.best_measure,
        outcomes=dict(Counter(str(record.get("outcome")) for record in records)),
    )


def is_done(summary: RunSummary) -> bool:
    """Whether the run took all its steps."""
    return summary.outcome == RunState.DONE


def _mean_of_last(records: list[dict[str, Any]]) -> float | None:
    losses = [record["loss"] for record in records if record.get("loss") is not None]
    last = losses[-max(1, len(losses) // 50) :]
    return sum(last) / len(last) if last else None


def _record_failure(run: RunDirectory, plan: PlannedRun, training: Training | None, error: BaseException) -> None:
    state = RunState.DIVERGED if isinstance(error, DivergedError) else RunState.FAILED
    reason = str(error) if isinstance(error, FromScratchError) else f"{type(error).__name__}: {error}"
    _record_end(run, plan, training, state, reason)


def _record_end(run: RunDirectory, plan: PlannedRun, training: Training | None, state: RunState, reason: str) -> None:
    step = training.state.step if training else 0
    with suppress(OSError):  # the error itself is reported even if the disk is full
        run.write_status(state, step=step, num_steps=plan.num_steps, reason=reason)
        run.log_event(Event(state), step=step, reason=reason)
