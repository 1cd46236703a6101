"""From a run file and a machine to a training ready to go: everything decided before step 0."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fromscratch.config.run import RunConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, read_json_object
from fromscratch.formats.checkpoints import TrainingState, load_training, read_state
from fromscratch.machine.acceleration import accelerate
from fromscratch.machine.allocator import keep_freed_memory
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty
from fromscratch.models.gpt import GPT
from fromscratch.processes.restarts import check_crashes
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.world import World
from fromscratch.runs.directory import RunDirectory, check_run_name
from fromscratch.runs.retention import mend_links, newest_valid, odd_links, recover_leftovers, step_of
from fromscratch.session.changes import accept_changes, accepted_identities
from fromscratch.session.disk import plan_disk
from fromscratch.session.parent import begin
from fromscratch.session.placement import Placement
from fromscratch.session.plan import PlannedRun, held_out_slice
from fromscratch.training.batches import AUTO_TOKENS, TokenBatches
from fromscratch.training.held_out import mean_loss
from fromscratch.training.journal import Journal
from fromscratch.training.loop import Cadence, Training
from fromscratch.training.observers import Observer
from fromscratch.training.step import GradientRules, Stepper, next_token_losses


def open_run_directory(
    plan: PlannedRun, path: Path, *, fresh: bool, allowed_changes: Sequence[str] = ()
) -> RunDirectory:
    """The run's directory: new, or one begun with the same config.

    An older run in the way of ``fresh`` is set aside under another name, not deleted.

    Args:
        allowed_changes: keys that may differ from those that an older run was begun with.

    Raises:
        UsageError: bad name, not writable, no room for its checkpoints, or begun with another config
            (the message lists the keys).
    """
    check_run_name(path.name)
    run = RunDirectory(path)
    plan_disk(plan, path, fresh=fresh).check()
    if run.exists() and fresh:
        set_aside(run)
    run.create()
    if run.exists():
        accept_changes(plan, run, allowed_changes)
    return run


def set_aside(run: RunDirectory) -> Path:
    """Renames a run directory to the first free ``NAME.old-N``."""
    number = 1
    while (target := run.path.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    with run.locked():
        run.path.rename(target)
    return target


def prepare_training(
    plan: PlannedRun,
    run: RunDirectory,
    placement: Placement,
    world: World,
    *,
    observers: list[Observer],
    sample: Callable[[nn.Module], list[str]] | None = None,
    stop: StopRequest | None = None,
) -> Training:
    """Model, optimiser and data on the device, at the newest valid checkpoint or at the beginning.

    Raises:
        DataError: there are checkpoints, but not one is valid.
        UsageError: the newest one is behind the run's end.
    """
    config, device = plan.config, placement.hardware.device
    keep_freed_memory()
    placement.threads.restore()
    model = build_empty(config.model, device)
    accelerate(model, placement.acceleration)
    optimizer = config.train.optimizer.build(list(model.named_parameters()))
    journal = Journal(run, observers, writes=world.is_main)
    state = _begin_or_resume(plan, journal, model, optimizer, world)
    _check_not_past_the_end(plan, state)
    precision = Precision(config.train.precision, device)
    precision.load_state(state.scaler)
    if world.is_main:
        _record(plan, run, placement)
    schedule = config.train.schedule.maker()
    training = Training(
        journal=journal,
        stepper=_stepper(plan, model, optimizer, precision, placement, world),
        state=state,
        num_steps=plan.num_steps,
        tokens_per_step=plan.sequences.tokens_per_step,
        learning_rate=lambda step: schedule(
            step=step, num_steps=plan.num_steps, learning_rate=config.train.optimizer.learning_rate
        ),
        spikes=config.train.spike.build(),
        cadence=_cadence(config),
        identity=plan.identity,
        evaluate=_evaluator(plan, precision, placement, world),
        sample=sample,
        rehearses=world.size > 1 or device.type == "cuda",
        world=world,
        stop=stop or StopRequest(),
    )
    training.saver.saved_step = state.step or None
    return training


def _check_not_past_the_end(plan: PlannedRun, state: TrainingState) -> None:
    if state.step > plan.num_steps:
        raise UsageError(
            f"data.tokens = {plan.config.data.tokens}: a run of {plan.num_steps} steps, but its checkpoint is at step "
            f"{state.step}; raise it"
        )


def _stepper(
    plan: PlannedRun,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    placement: Placement,
    world: World,
) -> Stepper:
    train, device = plan.config.train, placement.hardware.device
    return Stepper(
        model,
        optimizer,
        TokenBatches(
            plan.sequences,
            placement.micro_batch,
            train.seed,
            device,
            world,
            prefetch=device.type == "cuda",
        ),
        loss=next_token_losses,
        rules=GradientRules(train.clip.build(), train.nonfinite.build()),
        precision=precision,
        seed=train.seed,
        world=world,
    )


def _begin_or_resume(
    plan: PlannedRun, journal: Journal, model: GPT, optimizer: torch.optim.Optimizer, world: World
) -> TrainingState:
    """Fills the model, and the optimiser where there is something to resume. All processes agree on what."""
    name = ""
    with world.main_first():
        if world.is_main:
            name = _checkpoint_to_resume(plan, journal)
            check_crashes(journal.run, step=step_of(Path(name)) if name else 0, num_steps=plan.num_steps)
    name = world.broadcast(name)
    if not name:
        begin(model, optimizer, plan.config.model, seed=plan.config.train.seed, parent=plan.parent)
        return TrainingState()
    return load_training(journal.run.checkpoints / name, model, optimizer)


def _checkpoint_to_resume(plan: PlannedRun, journal: Journal) -> str:
    """The newest valid checkpoint's name, or nothing for a run without any. Raises DataError."""
    run = journal.run
    for path in [*recover_leftovers(run.checkpoints), *recover_leftovers(run.path)]:
        journal.announce("checkpoint-recovered", name=path.name)
    for reason in odd_links(run.checkpoints):
        journal.announce("link-ignored", reason=reason)
    checkpoint, skipped = newest_valid(run.checkpoints)
    for reason in skipped:
        journal.announce("checkpoint-skipped", reason=reason)
    if checkpoint is None and skipped:
        raise DataError(f"run {run.path}: no checkpoint is valid ({skipped[0]}); use --fresh to start anew")
    if checkpoint is None:
        return ""
    manifest = read_json_object(checkpoint / MANIFEST)
    if {key: manifest.get(key) for key in plan.identity} not in accepted_identities(plan, run):
        raise DataError(
            f"{checkpoint}: belongs to another run (the content of store {plan.store.path} or the seed differs); "
            "use the store it was trained on, or --fresh to start anew"
        )
    mend_links(run.checkpoints, latest=checkpoint, best_step=read_state(checkpoint).best_step)
    return checkpoint.name


def _record(plan: PlannedRun, run: RunDirectory, placement: Placement) -> None:
    if not run.exists():
        run.write_config(plan.config.to_plain())
        if plan.parent:
            run.log_event("parent", **plan.parent.facts())
    if not run.tokenizer.is_dir():
        shutil.rmtree(run.tokenizer, ignore_errors=True)
        plan.tokenizer.save(run.tokenizer)
    choices = {"world_size": placement.world_size, "micro_batch": placement.micro_batch}
    run.write_machine({**placement.hardware.facts(), **choices, **asdict(placement.acceleration)})


def _cadence(config: RunConfig) -> Cadence:
    train = config.train
    return Cadence(
        evaluate_every=train.evaluate_every,
        sample_every=train.sample_every,
        checkpoint_every=train.checkpoint_every,
        keep_checkpoints=train.keep_checkpoints,
    )


def _evaluator(
    plan: PlannedRun, precision: Precision, placement: Placement, world: World
) -> Callable[[nn.Module, Callable[[], bool]], float | None] | None:
    context_length = plan.config.model.context_length
    if plan.config.train.evaluate_every == 0:
        return None
    part = held_out_slice(plan.config, plan.store, plan.tokenizer, plan.folder)
    measure = partial(
        mean_loss,
        part=part,
        context_length=context_length,
        batch=max(placement.micro_batch, AUTO_TOKENS[placement.hardware.device.type] // context_length),
        device=placement.hardware.device,
        precision=precision,
        world=world,
    )
    return lambda model, stop: measure(model, stop=stop)
