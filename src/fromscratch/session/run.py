"""Trains a planned run: takes the lock, prepares the training, runs it, records how it ended."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fromscratch.config.train import ClipByNorm
from fromscratch.errors import DivergedError, FromScratchError, UsageError
from fromscratch.processes.parent import PARENT
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.watchdog import watchdog
from fromscratch.processes.world import World, joined_world
from fromscratch.runs.charts import draw_charts
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event, RunState
from fromscratch.session.placement import Placement
from fromscratch.session.plan import PlannedRun
from fromscratch.session.samples import SamplesFile
from fromscratch.session.setup import open_run_directory, prepare_training
from fromscratch.training.loop import Training, train
from fromscratch.training.observers import Observer


@dataclass(frozen=True)
class RunSummary:
    """How a run ended."""

    outcome: str
    """``done`` or ``stopped``."""
    run: str
    parameters: int
    step: int
    num_steps: int
    tokens: int
    seconds: float
    """Time in training steps over all sessions, without evaluations and saves."""
    tokens_per_second: float | None
    mfu: float | None
    """Model FLOP/s divided by the device's peak; None if the peak is unknown."""
    peak_memory_bytes: int
    final_loss: float | None
    """Mean training loss of the last fiftieth of the steps."""
    best_loss: float | None
    best_step: int | None
    best_is_held_out: bool
    """Whether the best loss is a held-out loss; if not, it is the mean training loss before a checkpoint."""
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
) -> RunSummary:
    """Starts or resumes a planned run in the run directory ``path``.

    The run's status records how the training ended, also after an error, and the charts are drawn.

    Args:
        allowed_changes: keys whose values may differ from the run's recorded config.

    Raises:
        UsageError, DataError: see ``plan_run`` and ``open_run_directory``.
        DivergedError: training diverged.
    """
    stop, device_type = StopRequest(), placement.hardware.device.type
    open_run = partial(open_run_directory, plan, path, fresh=fresh, allowed_changes=allowed_changes)
    with stop.listening(), joined_world(device_type) as world, _locked_by_main(open_run, path, world) as run:
        observers = [SamplesFile(run), *observers]
        training = None
        try:
            training = prepare_training(plan, run, placement, world, observers=observers, stop=stop)
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
            if world.is_main and training is not None:
                clip = plan.config.train.clip
                with suppress(OSError):  # a full disk must not fail the run
                    draw_charts(run, clip_norm=clip.max_norm if isinstance(clip, ClipByNorm) else None)
        return summarise(plan, training, outcome, placement)


@contextmanager
def _locked_by_main(open_run: Callable[[], RunDirectory], path: Path, world: World) -> Iterator[RunDirectory]:
    """Yields the run directory to all processes, while the main process holds its lock."""
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                run = open_run()
                if stack.enter_context(run.locked()):
                    run.log_event(Event.LOCK_TAKEN_OVER)
        yield RunDirectory(path)


def summarise(plan: PlannedRun, training: Training, outcome: str, placement: Placement) -> RunSummary:
    """Summarises a run from its state and its records."""
    state = training.state
    tokens = state.step * training.tokens_per_step
    speed = tokens / state.seconds if state.seconds else None
    peak = placement.hardware.peak_flops(plan.config.train.precision)
    run = training.journal.run
    records = list(read_records(run.metrics))
    return RunSummary(
        outcome=outcome,
        run=str(run.path),
        parameters=plan.costs.parameters,
        step=state.step,
        num_steps=training.num_steps,
        tokens=tokens,
        seconds=state.seconds,
        tokens_per_second=speed,
        mfu=speed * plan.costs.training_flops_per_token / (peak * placement.world_size) if speed and peak else None,
        peak_memory_bytes=placement.hardware.peak_memory_bytes(),
        final_loss=_mean_of_last(records),
        best_loss=state.best_loss,
        best_step=state.best_step,
        best_is_held_out=training.evaluate is not None,
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
