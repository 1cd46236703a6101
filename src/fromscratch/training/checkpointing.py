"""When a run's checkpoints are written, which one is the best, and the way back to one."""

from dataclasses import dataclass, field
from typing import Any

from fromscratch.errors import DivergedError
from fromscratch.formats.checkpoints import TrainingState
from fromscratch.runs.retention import newest_valid, step_of
from fromscratch.runs.states import Event, RunState
from fromscratch.training.journal import Journal
from fromscratch.training.saving import Best, CheckpointSaver, SaveRequest
from fromscratch.training.step import Stepper


@dataclass
class Checkpointing:
    """The checkpoints of one run. All processes call every method; the main process writes."""

    journal: Journal
    stepper: Stepper
    state: TrainingState
    identity: dict[str, Any]
    """Recorded in every checkpoint: which science the weights belong to."""
    num_steps: int
    keep: int
    """Number of the newest checkpoints that are kept, beside the best one."""
    saver: CheckpointSaver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = CheckpointSaver(self.journal.run.checkpoints, keep=self.keep)
        self.saver.saved_step = self.state.step or None

    def save_scheduled(self, loss: float | None) -> None:
        """Begins a checkpoint of the schedule. Only these compete for the best; those at interruptions do not."""
        self.collect(wait=True)  # a failed save changes which checkpoint is the best
        state = self.state
        previous_best = state.best_step, state.best_loss
        if state.is_improvement(loss):
            state.best_step, state.best_loss = state.step, loss
        state.loss_sum, state.loss_count = 0.0, 0
        self._begin(previous_best)

    def save_last(self) -> str:
        """Saves the present step if it is not on the disk yet. Returns why that failed, or an empty string."""
        state = self.state
        best = state.best_step, state.best_loss
        self.collect(wait=True)
        world = self.stepper.parallelism.world
        is_missing = state.step not in (0, self.saver.saved_step)
        if not world.any(world.is_main and is_missing):  # only the main process knows; all gather, or none
            return ""
        if best[0] == state.step:
            state.best_step, state.best_loss = best  # its save just failed and is tried once more
        self._begin(best)
        return self.collect(wait=True)

    def collect(self, *, wait: bool) -> str:
        """Records how the save in flight ended. Returns why it failed, or an empty string."""
        result = self.saver.collect(wait=wait)
        if result is None:
            return ""
        if result.error:
            self.state.best_step, self.state.best_loss = result.previous_best
            self.journal.record_event(Event.CHECKPOINT_FAILED, step=result.step, reason=result.error)
            return result.error
        self.journal.record_event(Event.CHECKPOINT, **result.to_dict())
        self.journal.write_status(RunState.RUNNING, step=result.step, num_steps=self.num_steps)
        return ""

    def go_back(self, spike_step: int) -> tuple[int, int] | None:
        """Restores the newest checkpoint, and skips the batches up to the one that caused a spike.

        Returns:
            The step gone back to and the global batches skipped in all, or None where there is no checkpoint.

        Raises:
            DataError: the checkpoint is damaged.
            DivergedError: not enough batches are left.
        """
        self.collect(wait=True)
        world, folder = self.stepper.parallelism.world, self.journal.run.checkpoints
        newest = newest_valid(folder)[0] if world.is_main else None
        name = world.broadcast(newest.name if newest else "")
        if not name:
            return None
        state, stepper = self.state, self.stepper
        skipped = state.skipped_batches + spike_step - step_of(folder / name)
        if self.num_steps + skipped > stepper.batches.max_steps:
            raise DivergedError(
                f"diverged at step {spike_step}: a spike, and no data is left after it ({skipped} batches skipped); "
                "give the run a larger store, or train.spike = 'skip'"
            )
        saved, seconds = stepper.load(folder / name), state.seconds
        state.__dict__.update(saved.__dict__)  # the recorder and the loop share this one object
        state.skipped_batches, state.seconds = skipped, seconds
        self.journal.go_back_to(state.step)
        return state.step, skipped

    def close(self) -> None:
        """Waits for the save in flight, records how it ended, and ends the thread."""
        self.collect(wait=True)
        self.saver.close()

    def _begin(self, previous_best: Best) -> None:
        """Begins to write a checkpoint; ``collect`` returns how that ended."""
        stepper = self.stepper
        self.state.scaler = stepper.precision.state()
        contents = stepper.contents(self.state)
        if contents is not None:
            # Metrics are flushed first, so that a checkpoint is never ahead of them.
            self.saver.begin(contents, SaveRequest(self.identity, previous_best, self.journal.flush))
