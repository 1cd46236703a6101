"""The training loop, for every model and every kind of data.

Look (evaluate, sample, save what is due), take a step, record it; until the run is done, somebody
asks it to stop, or it diverges. Where it stands is in ``TrainingState``; what it looks like is told
to observers, which can change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fromscratch.files import point_link
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import RecordWriter
from fromscratch.training.checkpoints import BEST, TrainingState, retain, save_checkpoint
from fromscratch.training.gradients import NonfinitePolicy
from fromscratch.training.observers import Observer
from fromscratch.training.recorder import StepRecorder
from fromscratch.training.step import Stepper
from fromscratch.training.stopping import StopRequest

DONE, STOPPED = "done", "stopped"


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

    run: RunDirectory
    stepper: Stepper
    state: TrainingState
    num_steps: int
    tokens_per_step: int
    learning_rate: Callable[[int], float]
    """The rate of a step, counted from 0."""
    policy: NonfinitePolicy
    cadence: Cadence
    identity: dict[str, Any]
    """Recorded in every checkpoint: which science these weights belong to."""
    evaluate: Callable[[nn.Module, Callable[[], bool]], float | None] | None = None
    """Held-out loss, or None where it was told to stop; the attribute is None where nothing is held out."""
    sample: Callable[[nn.Module], list[str]] | None = None
    """Texts sampled now, the prompts included."""
    observers: list[Observer] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def model(self) -> nn.Module:
        return self.stepper.model

    def announce(self, event: str, **facts: Any) -> None:
        """Puts an event on the record and tells every observer."""
        self.run.log_event(event, **facts)
        for observer in self.observers:
            observer.on_event(event, facts)


def train(training: Training, *, stop_after: int | None = None) -> str:
    """Trains to the end (``"done"``) or until asked to stop (``"stopped"``); either way all is saved.

    Args:
        stop_after: stop, resumable, after this many steps of the run.

    Raises:
        DivergedError: too many steps with gradients that were not finite.
    """
    state = training.state
    with training.stop.listening(), RecordWriter(training.run.metrics) as metrics:
        recorder = _recorder(training, metrics)
        _begin(training)
        try:
            while True:
                look(training, recorder, metrics)
                if state.step == training.num_steps or training.stop():
                    break
                learning_rate = training.learning_rate(state.step)
                result = training.stepper.take(state.step, learning_rate)
                state.step += 1
                recorder.add(state.step, learning_rate, result)
                if state.step == stop_after:
                    training.stop.reason = training.stop.reason or f"--stop-after {stop_after}"
            return _end(training, recorder, metrics)
        finally:
            for observer in training.observers:
                observer.end()


def look(training: Training, recorder: StepRecorder, metrics: RecordWriter) -> None:
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
    loss = _evaluate(training) if evaluate else None
    if training.stop():
        return  # a resume looks again
    if sample:
        _sample(training)
    state.looked_step = state.step
    if save:
        _save_scheduled(training, metrics, loss if evaluate else state.mean_recent_loss)
    recorder.start_clock()


def _recorder(training: Training, metrics: RecordWriter) -> StepRecorder:
    def on_record(record: dict[str, Any]) -> None:
        metrics.write(record)
        for observer in training.observers:
            observer.on_step(record)

    return StepRecorder(
        training.state,
        training.policy,
        tokens_per_step=training.tokens_per_step,
        on_record=on_record,
        announce=training.announce,
    )


def _begin(training: Training) -> None:
    step = training.state.step
    training.run.write_status("running", step=step, num_steps=training.num_steps)
    for observer in training.observers:
        observer.begin(step=step, num_steps=training.num_steps)
    training.announce("resumed" if step else "started", step=step, **training.identity)


def _end(training: Training, recorder: StepRecorder, metrics: RecordWriter) -> str:
    recorder.flush()
    state, steps = training.state, training.num_steps
    if state.step == steps and state.looked_step == steps:
        training.run.write_status(DONE, step=steps, num_steps=steps)
        training.announce(DONE, step=steps)
        return DONE
    reason = training.stop.reason
    training.announce("signal", step=state.step, signal=reason)
    if state.step > 0:
        _save(training, metrics)
    training.run.write_status(STOPPED, step=state.step, num_steps=steps, reason=reason)
    return STOPPED


def _evaluate(training: Training) -> float | None:
    assert training.evaluate is not None
    loss = training.evaluate(training.model, training.stop)
    if loss is not None:
        training.announce("evaluation", step=training.state.step, loss=loss)
    return loss


def _sample(training: Training) -> None:
    assert training.sample is not None
    for text in training.sample(training.model):
        training.announce("sample", step=training.state.step, text=text)


def _save_scheduled(training: Training, metrics: RecordWriter, loss: float | None) -> None:
    """A checkpoint of the plan: a candidate for the best one, unlike those that an interruption leaves."""
    state = training.state
    improved = state.is_improvement(loss)
    if improved:
        state.best_step, state.best_loss = state.step, loss
    state.loss_sum, state.loss_count = 0.0, 0
    path = _save(training, metrics)
    if improved:
        point_link(path.with_name(BEST), path.name)
    retain(path.parent, keep=training.cadence.keep_checkpoints, best_step=state.best_step)


def _save(training: Training, metrics: RecordWriter) -> Any:
    metrics.flush()  # a checkpoint must never be ahead of the record
    state = training.state
    state.scaler = training.stepper.precision.state()
    stepper = training.stepper
    path = save_checkpoint(training.run.checkpoints, stepper.model, stepper.optimizer, state, **training.identity)
    training.announce("checkpoint", step=state.step, best=state.best_step == state.step)
    training.run.write_status("running", step=state.step, num_steps=training.num_steps)
    return path
