"""One call from run file to trained model, with all that is usually watched: what every verb uses."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fromscratch.config.train import ClipByNorm
from fromscratch.errors import DivergedError, FromScratchError, UsageError
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
    """In steps, over all sessions; evaluations and saves not counted."""
    tokens_per_second: float | None
    mfu: float | None
    """Model FLOP/s over the device's peak; None where the peak is unknown."""
    peak_memory_bytes: int
    final_loss: float | None
    """Mean training loss of the last fiftieth of the steps."""
    best_loss: float | None
    best_step: int | None
    best_is_held_out: bool
    """Whether the best loss is of held-out text; else it is the mean training loss before a checkpoint."""
    outcomes: dict[str, int]
    """How many steps were normal, clipped, not finite in one way or another, or spikes."""


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
    """Trains, or goes on training, what was planned, in the run directory ``path``.

    Whatever happens, the run's status says so and its charts are drawn.

    Args:
        allowed_changes: keys that may differ from those that the run was begun with.

    Raises:
        UsageError, DataError: see ``plan_run`` and ``open_run_directory``.
        DivergedError: training left the rails.
    """
    stop, device_type = StopRequest(), placement.hardware.device.type
    opened = partial(open_run_directory, plan, path, fresh=fresh, allowed_changes=allowed_changes)
    with stop.listening(), joined_world(device_type) as world, _held_by_main(opened, path, world) as run:
        everyone = [SamplesFile(run), *observers]
        training = None
        try:
            training = prepare_training(plan, run, placement, world, observers=everyone, stop=stop)
            stuck = partial(_record_end, run, plan, training, RunState.FAILED)
            with watchdog(world, run.path, stuck if world.is_main else lambda _reason: None):
                outcome = train(training, stop_after=stop_after)
        except BaseException as error:
            if world.is_main and not isinstance(error, UsageError):
                _record_failure(run, plan, training, error)
            raise
        finally:
            if world.is_main and training is not None:
                clip = plan.config.train.clip
                with suppress(OSError):  # a full disk: the run is worth more than its pictures
                    draw_charts(run, clip_norm=clip.max_norm if isinstance(clip, ClipByNorm) else None)
        return summarise(plan, training, outcome, placement)


@contextmanager
def _held_by_main(opened: Callable[[], RunDirectory], path: Path, world: World) -> Iterator[RunDirectory]:
    """The run's directory, opened and locked by the main process on behalf of all."""
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                run = opened()
                if stack.enter_context(run.locked()):
                    run.log_event(Event.LOCK_TAKEN_OVER)
        yield RunDirectory(path)


def summarise(plan: PlannedRun, training: Training, outcome: str, placement: Placement) -> RunSummary:
    """The figures of a run, from its state and its records."""
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
    """Whether every step was taken."""
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
    with suppress(OSError):  # where not even this can be written, the error itself says why
        run.write_status(state, step=step, num_steps=plan.num_steps, reason=reason)
        run.log_event(Event(state), step=step, reason=reason)
