"""Prepares a training from a plan and a placement: run directory, model, optimiser, data, resume."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, read_json_object, write_atomically
from fromscratch.formats.checkpoints import MODEL_FILE, TrainingState, mask_version, read_state
from fromscratch.formats.tensor_files import tensor_names
from fromscratch.machine.acceleration import accelerate
from fromscratch.machine.allocator import keep_freed_memory, use_expandable_segments
from fromscratch.machine.attention import choose_attention
from fromscratch.machine.precision import Precision
from fromscratch.models.dropout import MASK_VERSION
from fromscratch.models.factory import build_empty
from fromscratch.optim.composite import CompositeOptimizer, as_composite
from fromscratch.processes.restarts import check_crashes
from fromscratch.processes.stopping import StopRequest
from fromscratch.processes.world import World
from fromscratch.runs.directory import STORES, RunDirectory, check_run_name
from fromscratch.runs.retention import (
    checkpoint_name,
    newest_valid,
    recover_leftovers,
    repair_links,
    step_of,
    wrong_links,
)
from fromscratch.runs.states import Event
from fromscratch.session.changes import NO_CHANGES, SessionConfig, accept_changes, accepted_identities
from fromscratch.session.code import CODE, code_hash
from fromscratch.session.disk import plan_disk
from fromscratch.session.parent import set_first_weights
from fromscratch.session.placement import Placement
from fromscratch.session.plan import PlannedRun
from fromscratch.training.checkpointing import Checkpointing
from fromscratch.training.journal import Journal
from fromscratch.training.loop import Cadence, Training
from fromscratch.training.objective import Objective, Runtime
from fromscratch.training.observers import Observer
from fromscratch.training.parallelism import Parallelism, choose_parallelism
from fromscratch.training.step import GradientRules, Stepper

LOG = logging.getLogger(__name__)


def open_run_directory(
    plan: PlannedRun, path: Path, *, fresh: bool, allowed_changes: Sequence[str] = ()
) -> SessionConfig:
    """Creates the run's directory, or opens an existing one of the same config. Returns the config to record.

    With ``fresh``, an older run is renamed, not deleted.

    Args:
        allowed_changes: keys whose values may differ from an older run's config.

    Raises:
        UsageError: the name is invalid, the folder is not writable, the disk has no space for the
            checkpoints, or the config differs (the message lists the keys).
    """
    check_run_name(path.name)
    run = RunDirectory(path)
    plan_disk(plan, path, fresh=fresh).check()
    if run.exists() and fresh:
        set_aside(run)
    run.create()
    if run.exists():
        return accept_changes(plan, run, allowed_changes)
    return SessionConfig(plan.config.to_plain())


def set_aside(run: RunDirectory) -> Path:
    """Renames a run directory to the first unused ``NAME.old-N``."""
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
    stop: StopRequest | None = None,
    session: SessionConfig = NO_CHANGES,
) -> Training:
    """Prepares model, optimiser and data on the device, from the newest valid checkpoint or step 0.

    Args:
        session: its identities are accepted in checkpoints too.

    Raises:
        DataError: there are checkpoints, but none is valid.
        UsageError: the newest checkpoint is at a later step than the run's last.
    """
    config, objective, device = plan.config, plan.objective, placement.hardware.device
    keep_freed_memory()
    use_expandable_segments(device)
    placement.threads.restore()
    precision = Precision(config.train.precision, device, is_sharded=placement.is_sharded)
    runtime = Runtime(device, placement.micro_batch, precision, world)
    stepper = _build_stepper(plan, placement, runtime)
    journal = Journal(run, observers, writes=world.is_main)
    untie_head = partial(stepper.untie_head, partial(_build_optimizer, plan, stepper.parallelism, stepper.model))
    state, is_untied = _begin_or_resume(plan, journal, stepper, session, untie_head)
    _check_not_past_the_end(plan, state)
    learning_rate = config.train.optimizer.learning_rate
    schedule = config.train.schedule.rate_factor(learning_rate)
    keep = config.train.keep_checkpoints
    return Training(
        journal=journal,
        stepper=stepper,
        state=state,
        checkpointing=Checkpointing(journal, stepper, state, plan.identity, plan.num_steps, keep),
        num_steps=plan.num_steps,
        tokens_before=plan.tokens_before,
        learning_rate=learning_rate,
        rate_factor=lambda step: schedule(step=step, num_steps=plan.num_steps),
        spikes=config.train.spike.build(),
        patience_steps=config.patience * config.train.evaluate_every,
        steps_per_epoch=plan.steps_per_epoch,
        cadence=Cadence(config.train.evaluate_every, config.train.sample_every, config.train.checkpoint_every),
        evaluate=partial(_evaluate, objective, runtime) if objective.is_evaluated else None,
        weights=config.eval.weights,
        sample=objective.sample,
        untie_head_at=None if is_untied else config.train.untie_step(plan.num_steps),
        untie_head=untie_head,
        probes_memory=(world.size > 1 or device.type == "cuda") and stepper.parallelism.computes_alone,
        stop=stop or StopRequest(),
    )


def _evaluate(objective: Objective, runtime: Runtime, model: nn.Module, stop: Callable[[], bool]) -> float | None:
    return objective.evaluate(model, runtime, stop)


def _check_not_past_the_end(plan: PlannedRun, state: TrainingState) -> None:
    if state.step > plan.num_steps:
        raise UsageError(
            f"data.tokens = {plan.config.data.tokens}: a run of {plan.num_steps} steps, but its checkpoint is at step "
            f"{state.step}; raise data.tokens"
        )


def _build_stepper(plan: PlannedRun, placement: Placement, runtime: Runtime) -> Stepper:
    """Builds a stepper. Its weights are not initialised yet."""
    train, objective = plan.config.train, plan.objective
    model = build_empty(plan.config.model, runtime.device)
    model.document_end = plan.document_end
    if plan.adapt:
        plan.adapt(model)
    choose_attention(model, runtime.precision, runtime.device, has_fixed_length=plan.config.tune is None)
    parallelism = choose_parallelism(runtime.world, is_sharded=placement.is_sharded)
    carry = parallelism.local_carry(objective.initial_carry(model, train.global_batch))  # before weights are divided
    parallelism.prepare(model)
    batches = objective.batches(runtime)
    stepper = Stepper(
        model,
        _build_optimizer(plan, parallelism, model),
        batches,
        loss=accelerate(model, objective.loss, placement.acceleration, blocks=parallelism.separate_blocks(model)),
        rules=GradientRules(train.clip.build(), train.nonfinite.build(), train.seed),
        precision=runtime.precision,
        parallelism=parallelism,
        carry=carry,
    )
    stepper.keep_averages(train.average_rules())
    return stepper


def _build_optimizer(plan: PlannedRun, parallelism: Parallelism, model: nn.Module) -> CompositeOptimizer:
    trained = [(name, weight) for name, weight in parallelism.named_parameters(model) if weight.requires_grad]
    return as_composite(plan.config.train.optimizer.build(trained))


def _begin_or_resume(
    plan: PlannedRun, journal: Journal, stepper: Stepper, session: SessionConfig, untie_head: Callable[[], None]
) -> tuple[TrainingState, bool]:
    """Initialises the weights, or loads the checkpoint that the main process selects.

    Returns:
        The state, and whether the head of the checkpoint was untied during the run.
    """
    name, world = "", stepper.parallelism.world
    with world.main_first():
        if world.is_main:
            name = _checkpoint_to_resume(plan, journal, session)
            check_crashes(journal.run, step=step_of(Path(name)) if name else 0, num_steps=plan.num_steps)
    name = world.broadcast(name)
    if name:
        checkpoint = journal.run.checkpoints / name
        names = {name for name, _ in stepper.model.named_parameters()}
        is_untied = plan.config.train.untie_head_at is not None and names != tensor_names(checkpoint / MODEL_FILE)
        if is_untied:
            untie_head()
        return stepper.load(checkpoint), is_untied
    set_first_weights(
        stepper, plan.config.model, seed=plan.config.train.seed, parent=plan.parent, is_adapted=bool(plan.adapt)
    )
    return TrainingState(), False


def _checkpoint_to_resume(plan: PlannedRun, journal: Journal, session: SessionConfig) -> str:
    """Returns the name of the newest valid checkpoint, or an empty string if there is none. Raises DataError."""
    run = journal.run
    for path in [*recover_leftovers(run.checkpoints), *recover_leftovers(run.path)]:
        journal.record_event(Event.CHECKPOINT_RECOVERED, name=path.name)
    for reason in wrong_links(run.checkpoints):
        journal.record_event(Event.LINK_IGNORED, reason=reason)
    checkpoint, skipped = newest_valid(run.checkpoints)
    for reason in skipped:
        journal.record_event(Event.CHECKPOINT_SKIPPED, reason=reason)
    if checkpoint is None and skipped:
        raise DataError(f"run {run.path}: no checkpoint is valid ({skipped[0]}); use --fresh to start again")
    if checkpoint is None:
        return ""
    manifest = read_json_object(checkpoint / MANIFEST)
    accepted = [*accepted_identities(plan, run), *session.identities]
    if {key: manifest.get(key) for key in plan.identity} not in accepted:
        raise DataError(
            f"{checkpoint}: belongs to another run (the content of {plan.store.path}, of [eval] store or of "
            "train.start_from, or the seed differs); use those of that run, or --fresh to start again"
        )
    repair_links(run.checkpoints, latest=checkpoint, best_step=read_state(checkpoint).best_step)
    return checkpoint.name


def record_session(plan: PlannedRun, run: RunDirectory, placement: Placement, *, step: int) -> None:
    """Writes the config and the tokenizer of a new run, and the machine of this session, which begins at a step."""
    if not run.exists():
        run.write_config(plan.config.to_plain())
        if plan.parent:
            run.log_event(Event.PARENT, **plan.parent.to_dict())
    if not run.tokenizer.is_dir():
        shutil.rmtree(run.tokenizer, ignore_errors=True)
        plan.tokenizer.save(run.tokenizer)
    for name, text in plan.attachments.items():
        path = run.path / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, text)
    _tell_other_masks(plan, run, step)
    sizes: dict[str, Any] = {"world_size": placement.world_size, "micro_batch": placement.micro_batch}
    if placement.is_sharded:
        sizes["sharded"] = True
    machine = {**placement.hardware.to_dict(), **sizes, **asdict(placement.acceleration), CODE: code_hash()}
    if run.machine.is_file():
        earlier = {key: value for key, value in read_json_object(run.machine).items() if key != STORES}
        if earlier != machine:
            run.log_event(Event.MACHINE_CHANGED, earlier=earlier)
    run.write_machine({**machine, STORES: plan.store_names()})


def _tell_other_masks(plan: PlannedRun, run: RunDirectory, step: int) -> None:
    """Records and says where a run continues with other dropout masks than an earlier version gave it."""
    checkpoint = run.checkpoints / checkpoint_name(step)
    if not getattr(plan.config.model, "dropout", 0.0) or not checkpoint.is_dir():
        return
    earlier = mask_version(checkpoint)
    if earlier != MASK_VERSION:
        run.log_event(Event.MASKS_CHANGED, step=step, earlier=earlier, now=MASK_VERSION)
        LOG.warning(
            "this run began with an earlier version's dropout masks and continues with those of this version, which "
            "are the same on every device: its result differs from that of an uninterrupted run"
        )
