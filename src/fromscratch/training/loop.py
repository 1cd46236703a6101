"""The training loop, for every model and every objective.

Evaluate, sample and save where they are due; take a step; record it. The loop ends when the run is done,
when it is asked to stop, or when it diverges. ``TrainingState`` is all that changes; observers only read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from fromscratch.errors import FromScratchError
from fromscratch.formats.checkpoints import RAW, TrainingState
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.world import World
from fromscratch.runs.states import Event, RunState
from fromscratch.training.checkpointing import Checkpointing
from fromscratch.training.journal import Journal
from fromscratch.training.memory_retry import MemoryRetry
from fromscratch.training.recorder import StepRecorder
from fromscratch.training.spikes import Off as SpikePolicy
from fromscratch.training.spikes import Warn
from fromscratch.training.step import Stepper
from fromscratch.training.time_spent import Purpose, TimeSpent


@dataclass(frozen=True)
class Cadence:
    """How often the run evaluates, samples and saves, in steps; 0 is never."""

    evaluate_every: int
    sample_every: int
    checkpoint_every: int

    @staticmethod
    def due(every: int, step: int, num_steps: int) -> bool:
        """At every multiple, and at the end."""
        return every > 0 and (step % every == 0 or step == num_steps)


@dataclass
class Training:
    """One run, ready to go: everything the loop needs."""

    journal: Journal
    stepper: Stepper
    state: TrainingState
    checkpointing: Checkpointing
    num_steps: int
    tokens_before: Callable[[int], int]
    """Tokens of all steps before a step, which counts from 0."""
    learning_rate: float
    """The base rate that records show, times the factor."""
    rate_factor: Callable[[int], float]
    """The schedule: from the step, counted from 0, to a factor on every parameter group's rate."""
    spikes: SpikePolicy | Warn
    cadence: Cadence
    evaluate: Callable[[nn.Module, Callable[[], bool]], float | None] | None = None
    """Held-out loss, or None where it was interrupted; the attribute is None where nothing is held out."""
    weights: str = RAW
    """The weights that are sampled and whose held-out loss counts: those of training, or an average once it begins."""
    sample: Callable[[nn.Module], list[str]] | None = None
    """Texts sampled from the model, prompts included."""
    steps_per_epoch: int | None = None
    """Of a run in epochs: its evaluations are recorded with the epoch."""
    untie_head_at: int | None = None
    """Step before which the head gets a matrix of its own; None where it stays as it is, or has one already."""
    untie_head: Callable[[], None] = lambda: None
    probes_memory: bool = False
    """Whether to try before the first step that a micro-batch fits into memory."""
    patience_steps: int = 0
    """Steps without a new best checkpoint after which the run is done; 0 is off. A multiple of the evaluations' and
    checkpoints' interval."""
    stop: StopRequest = field(default_factory=StopRequest)
    spent: TimeSpent = field(default_factory=TimeSpent)

    @property
    def model(self) -> nn.Module:
        return self.stepper.model

    @property
    def weights_now(self) -> str:
        """As ``weights``; those of training before the average has begun."""
        return self.weights if self.weights in self.stepper.averages.begun(self.state) else RAW

    @property
    def has_stopped_early(self) -> bool:
        """Whether the held-out loss has not fallen for ``patience_steps``. A function of what a checkpoint holds."""
        best = self.state.best_step
        return 0 < self.patience_steps <= self.state.step - (self.state.step if best is None else best)

    @property
    def is_complete(self) -> bool:
        """Whether the run has nothing left to do: it took all its steps, or has stopped early."""
        state = self.state
        return state.looked_step == state.step and (state.step == self.num_steps or self.has_stopped_early)

    @property
    def world(self) -> World:
        return self.stepper.parallelism.world


def train(training: Training, *, stop_after: int | None = None) -> RunState:
    """Trains to the end (``done``) or until asked to stop (``stopped``). Either way everything is saved.

    Args:
        stop_after: stop, resumable, after this many steps of the run.

    Raises:
        DivergedError: too many steps with gradients that were not finite.
        FromScratchError: the last save failed.
    """
    state, stop, journal, num_steps = training.state, training.stop, training.journal, training.num_steps
    policy, memory = training.stepper.rules.policy, MemoryRetry(training.stepper, journal)
    recorder = StepRecorder(state, policy, training.spikes, journal, tokens_before=training.tokens_before)
    stop.on_forced_exit = lambda name: journal.write_status(
        RunState.FAILED, step=state.step, num_steps=num_steps, reason=f"ended at once by another {name}"
    )
    with stop.listening():
        journal.begin(step=state.step, num_steps=num_steps)
        beginning = Event.RESUMED if state.step else Event.STARTED
        journal.record_event(beginning, step=state.step, **training.checkpointing.identity)
        try:
            if training.probes_memory and state.step < num_steps:
                with training.spent.on(Purpose.PROBE):
                    largest = max(state.step, num_steps - 1, key=training.stepper.batches.targets_in)
                    memory.probe(state.step, data_step=largest + state.skipped_batches)
                recorder.start_clock()
            while True:
                if stop_after is not None and state.step >= stop_after:
                    stop.reason = stop.reason or f"--stop-after {stop_after}"
                run_periodic(training, recorder)
                is_over = training.world.any(stop()) or state.step == num_steps or training.has_stopped_early
                if is_over:
                    recorder.flush()
                if recorder.spike_step is not None:
                    handle_spike(training, recorder)
                    continue
                if is_over:
                    return _end(training)
                untie_head_where_due(training)
                take_step(training, recorder, memory)
                training.checkpointing.collect(wait=False)
        finally:
            with training.spent.on(Purpose.CHECKPOINTS):
                training.checkpointing.close()
            journal.end()


def untie_head_where_due(training: Training) -> None:
    """Gives a tied head a matrix of its own, once, before the step at which the run file says so."""
    if training.untie_head_at is None or training.state.step < training.untie_head_at:
        return
    training.untie_head_at = None
    training.untie_head()
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    training.journal.record_event(Event.HEAD_UNTIED, step=training.state.step, parameters=parameters)


def take_step(training: Training, recorder: StepRecorder, memory: MemoryRetry) -> None:
    """Batch, loss, backward, check, clip, step. The numbers are recorded when they arrive on the host."""
    state, stepper, spikes = training.state, training.stepper, training.spikes
    factor = training.rate_factor(state.step)
    is_spike = None
    if spikes.holds:
        recorder.flush()  # the decision needs all losses before this one
        is_spike = lambda loss: spikes.is_spike(loss, state.recent_losses)  # noqa: E731
    loss_scale = stepper.precision.loss_scale()
    data_step = state.step + state.skipped_batches
    result = memory.take(state.step, lambda: stepper.take(data_step, factor, is_spike=is_spike))
    state.step += 1
    stepper.averages.update(state, training.num_steps)
    recorder.add(state.step, training.learning_rate * factor, result, loss_scale=loss_scale)


def run_periodic(training: Training, recorder: StepRecorder) -> None:
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
        return  # interrupted; a resume evaluates again
    if sample:
        _sample(training)
    state.looked_step = state.step
    if save:
        with training.spent.on(Purpose.CHECKPOINTS):
            training.checkpointing.save_scheduled(loss)
    recorder.start_clock()


def handle_spike(training: Training, recorder: StepRecorder) -> None:
    """Goes back to the last checkpoint, where the policy says so."""
    step, recorder.spike_step = recorder.spike_step, None
    if not training.spikes.rolls_back or step is None:
        return
    gone_back = training.checkpointing.go_back(step)
    if gone_back is None:
        training.journal.record_event(Event.ROLLBACK_IMPOSSIBLE, step=step, reason="no checkpoint yet")
        return
    recorder.forget()
    to_step, skipped = gone_back
    training.journal.record_event(Event.ROLLBACK, step=step, to_step=to_step, skipped_batches=skipped)
    recorder.start_clock()


def _end(training: Training) -> RunState:
    state, steps, journal = training.state, training.num_steps, training.journal
    outcome = RunState.DONE if training.is_complete else RunState.STOPPED
    reason = "" if outcome == RunState.DONE else training.stop.reason or "asked by another process"
    if outcome == RunState.DONE and training.has_stopped_early:
        reason = f"stopped early: the held-out loss has not fallen since step {state.best_step}"
        journal.record_event(Event.STOPPED_EARLY, step=state.step, best_step=state.best_step, best_loss=state.best_loss)
    if outcome == RunState.STOPPED:
        journal.record_event(Event.SIGNAL, step=state.step, signal=reason)
    with training.spent.on(Purpose.CHECKPOINTS):
        error = training.checkpointing.save_last()
    if training.world.any(bool(error)):
        raise FromScratchError(error or "stopped, because the main process could not save; its message says why")
    journal.write_status(outcome, step=state.step, num_steps=steps, reason=reason)
    if outcome == RunState.DONE:
        journal.record_event(Event.DONE, step=state.step)
    return outcome


def _evaluate(training: Training) -> float | None:
    assert training.evaluate is not None
    averages, state, losses = training.stepper.averages, training.state, dict[str, float]()
    for name in (RAW, *averages.begun(state)):
        with training.spent.on(Purpose.EVALUATION), _model_with(training, name) as model:
            loss = training.evaluate(model, training.stop)
        if loss is None:
            return None
        losses[name] = loss
    named = {f"loss_{name}": loss for name, loss in losses.items() if averages.rules}
    if training.steps_per_epoch:
        named["epoch"] = state.step / training.steps_per_epoch
    loss = losses[training.weights_now]
    training.journal.record_event(Event.EVALUATION, step=state.step, loss=loss, **named)
    return loss


def _sample(training: Training) -> None:
    assert training.sample is not None
    with training.spent.on(Purpose.SAMPLING), _model_with(training, training.weights_now) as model:
        texts = training.sample(model) if training.world.is_main else []
    for text in texts:
        training.journal.record_event(Event.SAMPLE, step=training.state.step, text=text)


@contextmanager
def _model_with(training: Training, name: str) -> Iterator[nn.Module]:
    """Yields the model with the weights of this name; each process can use it alone."""
    stepper = training.stepper
    with stepper.averages.in_place_of_weights(name), stepper.parallelism.whole_model(stepper.model) as model:
        yield model
