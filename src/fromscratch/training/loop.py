"""The training loop, for every model and every kind of data.

Look (evaluate, sample, save what is due), take a step, record it; until the run is done, somebody
asks it to stop, or it diverges. Where it stands is in ``TrainingState``; what it looks like is told
to observers, which can change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

from torch import nn

from fromscratch.errors import DivergedError, FromScratchError
from fromscratch.formats.checkpoints import TrainingState, load_training
from fromscratch.machine.memory import is_memory_error
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.world import World
from fromscratch.runs.retention import newest_valid
from fromscratch.training.journal import RUNNING, Journal
from fromscratch.training.recorder import StepRecorder
from fromscratch.training.saving import CheckpointSaver, Facts
from fromscratch.training.spikes import Off as SpikePolicy
from fromscratch.training.spikes import Warn
from fromscratch.training.step import OutOfMemoryTogetherError, Stepper

DONE, STOPPED, FAILED, DIVERGED = "done", "stopped", "failed", "diverged"


@dataclass(frozen=True)
class Cadence:
    """How often the run looks at itself, in steps; 0 is never."""

    evaluate_every: int
    sample_every: int
    checkpoint_every: int
    keep_checkpoints: int

    @staticmethod
    def due(every: int, step: int, num_steps: int) -> bool:
        """At every multiple, and at the end."""
        return every > 0 and (step % every == 0 or step == num_steps)


@dataclass
class Training:
    """One run, ready to go: everything the loop needs, and nothing it must look up."""

    journal: Journal
    stepper: Stepper
    state: TrainingState
    num_steps: int
    tokens_per_step: int
    learning_rate: Callable[[int], float]
    """The rate of a step, counted from 0."""
    spikes: SpikePolicy | Warn
    cadence: Cadence
    identity: dict[str, Any]
    """Recorded in every checkpoint: which science these weights belong to."""
    evaluate: Callable[[nn.Module, Callable[[], bool]], float | None] | None = None
    """Held-out loss, or None where it was told to stop; the attribute is None where nothing is held out."""
    sample: Callable[[nn.Module], list[str]] | None = None
    """Texts sampled now, the prompts included."""
    rehearses: bool = False
    """Whether to find out before the first step that its pieces fit into memory."""
    world: World = field(default_factory=World)
    stop: StopRequest = field(default_factory=StopRequest)
    saver: CheckpointSaver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = CheckpointSaver(self.checkpoints, keep=self.cadence.keep_checkpoints)

    @property
    def model(self) -> nn.Module:
        return self.stepper.model

    @property
    def checkpoints(self) -> Path:
        return self.journal.run.checkpoints


def train(training: Training, *, stop_after: int | None = None) -> str:
    """Trains to the end (``"done"``) or until asked to stop (``"stopped"``); either way all is saved.

    Args:
        stop_after: stop, resumable, after this many steps of the run.

    Raises:
        DivergedError: too many steps with gradients that were not finite.
        FromScratchError: the last save failed.
    """
    state, stop, journal = training.state, training.stop, training.journal
    recorder = StepRecorder(
        state,
        training.stepper.rules.policy,
        training.spikes,
        tokens_per_step=training.tokens_per_step,
        on_record=journal.record,
        announce=journal.announce,
    )
    stop.on_forced_exit = lambda name: journal.status(
        FAILED, step=state.step, num_steps=training.num_steps, reason=f"ended at once by another {name}"
    )
    with stop.listening():
        journal.begin(step=state.step, num_steps=training.num_steps)
        journal.announce("resumed" if state.step else "started", step=state.step, **training.identity)
        try:
            if training.rehearses and state.step < training.num_steps:
                rehearse(training)
            while True:
                if stop_after is not None and state.step >= stop_after:
                    stop.reason = stop.reason or f"--stop-after {stop_after}"
                look(training, recorder)
                is_over = training.world.any(stop()) or state.step == training.num_steps
                if is_over:
                    recorder.flush()
                if recorder.spike_step is not None:
                    deal_with_spike(training, recorder)
                    continue
                if is_over:
                    break
                take_step(training, recorder)
                _collect_save(training, wait=False)
            return _end(training)
        finally:
            _collect_save(training, wait=True)
            training.saver.close()
            journal.end()


def take_step(training: Training, recorder: StepRecorder) -> None:
    """Batch, loss, backward, check, clip, step; the numbers are recorded when they arrive."""
    state, stepper, spikes = training.state, training.stepper, training.spikes
    learning_rate = training.learning_rate(state.step)
    is_spike = None
    if spikes.holds:
        recorder.flush()  # the decision needs all losses before this one
        is_spike = lambda loss: spikes.is_spike(loss, state.recent_losses)  # noqa: E731
    loss_scale = stepper.precision.loss_scale()
    while True:
        try:
            result = stepper.take(state.step + state.skipped_batches, learning_rate, is_spike=is_spike)
            break
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            if training.world.size > 1 and not isinstance(error, OutOfMemoryTogetherError):
                leave_smaller_pieces(training)  # the others wait for this process's gradients
        use_smaller_pieces(training)  # nothing has changed yet: the same step again
    state.step += 1
    recorder.add(state.step, learning_rate, result, loss_scale=loss_scale)


def rehearse(training: Training) -> None:
    """Tries a piece of the first step, and takes smaller ones until all processes have memory for it.

    Raises:
        FromScratchError: not even one sequence fits.
    """
    step = training.state.step + training.state.skipped_batches
    while training.world.any(not training.stepper.rehearse(step)):
        use_smaller_pieces(training)


def use_smaller_pieces(training: Training) -> None:
    """Halves the micro-batch, which changes no result. Raises FromScratchError at one sequence."""
    training.stepper.forget_gradients()
    smaller = training.stepper.batches.smaller()
    if smaller is None:
        raise FromScratchError(
            "out of memory with a single sequence; use --activation-checkpointing, a shorter "
            "model.context_length, a smaller model, or a device with more memory"
        )
    training.stepper.batches = smaller
    if training.world.is_main:
        training.journal.run.update_machine(micro_batch=smaller.micro_batch)
    training.journal.announce("smaller-micro-batch", step=training.state.step, pieces=smaller.num_micro_batches)


def leave_smaller_pieces(training: Training) -> Never:
    """Ends this process, and leaves word that a restart must take a smaller micro-batch."""
    smaller = training.stepper.batches.smaller()
    size = smaller.micro_batch if smaller else 1
    training.journal.run.update_machine(micro_batch=size)
    raise FromScratchError(
        f"out of memory in the last backward pass of a step; the same command goes on with micro-batch {size} "
        "(where you gave --micro-batch, give that one)"
    )


def look(training: Training, recorder: StepRecorder) -> None:
    """Evaluates, samples and saves, each where it is due at this step and was not done before."""
    state, cadence, steps = training.state, training.cadence, training.num_steps
    if state.looked_step == state.step:
        return
    save = state.step > 0 and (cadence.due(cadence.checkpoint_every, state.step, steps) or state.step == steps)
    evaluate = training.evaluate is not None and (save or cadence.due(cadence.evaluate_every, state.step, steps))
    sample = training.sample is not None and cadence.due(cadence.sample_every, state.step, steps)
    if not (save or evaluate or sample):
        return
    recorder.flush()
    if recorder.spike_step is not None and training.spikes.rolls_back:
        return
    loss = _evaluate(training) if evaluate else state.mean_recent_loss
    if evaluate and loss is None:
        return  # asked to stop in the middle; a resume looks again
    if sample:
        _sample(training)
    state.looked_step = state.step
    if save:
        _save_scheduled(training, loss)
    recorder.start_clock()


def deal_with_spike(training: Training, recorder: StepRecorder) -> None:
    """Where the policy says so, goes back to the last checkpoint, and from there past the spike's batch."""
    step, recorder.spike_step = recorder.spike_step, None
    if not training.spikes.rolls_back or step is None:
        return
    _collect_save(training, wait=True)
    name = training.world.broadcast(_newest_checkpoint_name(training.checkpoints) if training.world.is_main else "")
    if not name:
        training.journal.announce("rollback-impossible", step=step, reason="no checkpoint yet")
        return
    recorder.forget()
    state, stepper = training.state, training.stepper
    saved = load_training(training.checkpoints / name, stepper.model, stepper.optimizer)
    skipped = state.skipped_batches + step - saved.step
    if training.num_steps + skipped > stepper.batches.most_steps:
        raise DivergedError(
            f"diverged at step {step}: a spike, and no data is left to go on with after it "
            f"({skipped} batches passed over); give the run a larger store, or train.spike = 'skip'"
        )
    seconds = state.seconds
    state.__dict__.update(saved.__dict__)  # the recorder and the loop share this one object
    state.skipped_batches, state.seconds = skipped, seconds
    stepper.precision.load_state(state.scaler)
    training.journal.go_back_to(state.step)
    training.journal.announce("rollback", step=step, to_step=state.step, skipped_batches=skipped)
    recorder.start_clock()


def _newest_checkpoint_name(folder: Path) -> str:
    newest, _ = newest_valid(folder)
    return newest.name if newest else ""


def _end(training: Training) -> str:
    state, steps, journal = training.state, training.num_steps, training.journal
    outcome = DONE if state.step == steps and state.looked_step == steps else STOPPED
    reason = "" if outcome == DONE else training.stop.reason or "asked by another process"
    if outcome == STOPPED:
        journal.announce("signal", step=state.step, signal=reason)
    error = _save_last(training)
    if training.world.any(bool(error)):
        raise FromScratchError(error or "stopped, because the main process could not save; its message says why")
    journal.status(outcome, step=state.step, num_steps=steps, reason=reason)
    if outcome == DONE:
        journal.announce(DONE, step=steps)
    return outcome


def _evaluate(training: Training) -> float | None:
    assert training.evaluate is not None
    loss = training.evaluate(training.model, training.stop)
    if loss is not None:
        training.journal.announce("evaluation", step=training.state.step, loss=loss)
    return loss


def _sample(training: Training) -> None:
    assert training.sample is not None
    if training.world.is_main:
        for text in training.sample(training.model):
            training.journal.announce("sample", step=training.state.step, text=text)


def _save_scheduled(training: Training, loss: float | None) -> None:
    """A checkpoint of the plan: a candidate for the best one, unlike those that an interruption leaves."""
    _collect_save(training, wait=True)  # had it failed, what is best would be another
    state = training.state
    best_before = state.best_step, state.best_loss
    if state.is_improvement(loss):
        state.best_step, state.best_loss = state.step, loss
    state.loss_sum, state.loss_count = 0.0, 0
    _begin_save(training, best_before)


def _save_last(training: Training) -> str:
    """Makes sure that the present step is on the disk; returns why it is not, or nothing."""
    state = training.state
    wanted = state.best_step, state.best_loss
    _collect_save(training, wait=True)
    if state.step in (0, training.saver.saved_step):
        return ""
    if wanted[0] == state.step:
        state.best_step, state.best_loss = wanted  # the save just failed, and is tried once more
    _begin_save(training, wanted)
    return _collect_save(training, wait=True)


def _begin_save(training: Training, best_before: tuple[int | None, float | None]) -> None:
    """Begins to write a checkpoint, in the main process; ``_collect_save`` tells how it ended."""
    state, stepper, saver = training.state, training.stepper, training.saver
    state.scaler = stepper.precision.state()
    if training.world.is_main:
        # The record first: a checkpoint must never be ahead of it.
        facts = Facts(training.identity, best_before, before_writing=training.journal.flush)
        saver.begin(stepper.model, stepper.optimizer, state, facts)


def _collect_save(training: Training, *, wait: bool) -> str:
    """Puts on the record how the save in flight ended; returns why it failed, or nothing."""
    result = training.saver.collect(wait=wait)
    if result is None:
        return ""
    if result.error:
        training.state.best_step, training.state.best_loss = result.best_before
        training.journal.announce("checkpoint-failed", step=result.step, reason=result.error)
        return result.error
    training.journal.announce("checkpoint", **result.facts())
    training.journal.status(RUNNING, step=result.step, num_steps=training.num_steps)
    return ""
