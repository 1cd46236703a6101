"""From a run file and a machine to a training ready to go: everything decided before step 0."""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fromscratch.config.loading import load_run_config, parse_run_config, read_toml
from fromscratch.config.run import RunConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, read_json_object
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.runs.directory import RunDirectory, check_run_name
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.acceleration import Acceleration, accelerate, choose_acceleration
from fromscratch.training.allocator import keep_freed_memory
from fromscratch.training.batches import AUTO_TOKENS, TokenBatches, choose_micro_batch
from fromscratch.training.checkpoints import TrainingState, load_training, newest_valid, remove_leftovers
from fromscratch.training.distributed import World, started_local_rank, started_world_size
from fromscratch.training.hardware import Hardware, find_hardware
from fromscratch.training.held_out import TokenSlice, mean_loss
from fromscratch.training.journal import Journal
from fromscratch.training.loop import Cadence, Training
from fromscratch.training.observers import Observer
from fromscratch.training.precision import Precision
from fromscratch.training.step import GradientRules, Stepper, next_token_losses
from fromscratch.training.stores import open_named_store, tokenizer_of

TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class MachineOptions:
    """What a user may say about the machine; none of it can change the result."""

    device: str | None = None
    """``cuda``, ``cuda:N``, ``mps`` or ``cpu``; None finds the fastest."""
    micro_batch: int | None = None
    """Sequences per forward pass; None finds one."""
    compile: bool | None = None
    """Whether ``torch.compile`` is used; None is where it pays."""
    activation_checkpointing: bool = False
    """Whether backward computes activations again instead of keeping them."""


@dataclass(frozen=True)
class PlannedRun:
    """A run file with everything looked up that it refers to: resolved, checked, nothing written yet."""

    config: RunConfig
    store: TokenStore
    tokenizer: Tokenizer
    sequences: SequenceBatches
    num_steps: int
    costs: ModelCosts
    folder: Path
    """Where the run file is: stores are also looked for beside it."""

    @property
    def identity(self) -> dict[str, Any]:
        """Names the science: the hash of the resolved config (stores by content), and the seed."""
        fingerprint = self.store.fingerprint
        return {"identity": self.config.identity(store_fingerprint=fingerprint), "seed": self.config.train.seed}


def plan_run(file: Path, overrides: list[str] | None = None) -> PlannedRun:
    """Reads a run file and opens what it names.

    Raises:
        UsageError: the file says something wrong, or something the store contradicts.
        DataError: the store is missing, damaged or too small.
    """
    config = load_run_config(file, overrides)
    store = open_named_store(config.data.store, file.parent)
    tokenizer = tokenizer_of(store)
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"{file}: model.vocab_size = {vocab_size} is below the {tokenizer.vocab_size} ids of the store's "
            f"tokenizer {tokenizer.name}; raise it, or leave it out"
        )
    costs = model_costs(config.model.model_copy(update={"vocab_size": vocab_size}))
    sequences = SequenceBatches(
        store.split(TRAINING_SPLIT),
        context_length=config.model.context_length,
        global_batch=config.train.global_batch,
        start_token=config.data.start_token,
        epochs=config.data.epochs,
        shuffle_seed=config.train.seed if config.data.shuffle else None,
    )
    num_steps = _steps(config.data.tokens, sequences, costs)
    config = config.resolved(vocab_size=vocab_size, tokens=num_steps * sequences.tokens_per_step)
    if config.train.evaluate_every:
        held_out_slice(config, store, tokenizer, file.parent)
    _check_schedule(config, num_steps, file)
    return PlannedRun(config, store, tokenizer, sequences, num_steps, costs, file.parent)


def _steps(budget: int | str, sequences: SequenceBatches, costs: ModelCosts) -> int:
    if budget == "all":
        if sequences.most_steps == 0:
            sequences.steps_for(1)  # says what is missing
        return sequences.most_steps
    tokens = budget if isinstance(budget, int) else round(float(budget.removesuffix("x")) * costs.parameters)
    return sequences.steps_for(tokens)


def _check_schedule(config: RunConfig, num_steps: int, file: Path) -> None:
    least = config.train.schedule.least_steps()
    if least > num_steps:
        raise UsageError(
            f"{file}: train.schedule needs {least} steps (warmup_steps and decay_steps together), but the run has "
            f"only {num_steps} ({config.data.tokens:,} tokens); shorten them, or raise data.tokens"
        )


def open_run_directory(plan: PlannedRun, path: Path, *, fresh: bool) -> RunDirectory:
    """The run's directory: new, or one begun with the same config.

    An older run in the way of ``fresh`` is set aside under another name, not deleted.

    Raises:
        UsageError: bad name, not writable, or begun with another config (the message lists the keys).
    """
    check_run_name(path.name)
    run = RunDirectory(path)
    if run.exists() and fresh:
        set_aside(run)
    run.create()
    if run.exists():
        _check_same(run, plan)
    return run


def set_aside(run: RunDirectory) -> Path:
    """Renames a run directory to the first free ``NAME.old-N``."""
    number = 1
    while (target := run.path.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    with run.locked():
        run.path.rename(target)
    return target


def _check_same(run: RunDirectory, plan: PlannedRun) -> None:
    saved = parse_run_config(read_toml(run.config), where=str(run.config)).to_plain()
    wanted = plan.config.to_plain()
    wanted["data"]["store"] = saved["data"]["store"]  # its path may change; checkpoints know its content
    changes = differences(saved, wanted)
    if changes:
        listed = "\n".join(f"  - {change}" for change in changes)
        raise UsageError(
            f"run {run.path} was begun with another config:\n{listed}\n"
            "give another --name, or --fresh to start anew (the old run is set aside)"
        )


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """``key: old -> new`` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for name in keys
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


@dataclass(frozen=True)
class Placement:
    """The machine's choices for one run: recorded, and unable to change its result."""

    hardware: Hardware
    micro_batch: int
    """Most sequences in one forward pass."""
    world_size: int = 1
    acceleration: Acceleration = field(default_factory=Acceleration)
    why_not_compiled: str = ""
    """Where compiling would be usual and is impossible: what is missing."""

    def num_micro_batches(self, global_batch: int) -> int:
        """Forward passes per step in the process that has most of them."""
        largest_share = math.ceil(global_batch / self.world_size)
        return math.ceil(largest_share / self.micro_batch)


def place_run(
    plan: PlannedRun, run: RunDirectory, machine: MachineOptions, *, world_size: int | None = None
) -> Placement:
    """Finds the device and the micro-batch; writes nothing.

    Args:
        world_size: processes that will train together; None asks torchrun's environment.

    Raises:
        UsageError: the device is not there, or the micro-batch does not divide the global batch.
    """
    world_size = world_size or started_world_size()
    hardware = find_hardware(machine.device, local_rank=started_local_rank())
    micro_batch = choose_micro_batch(
        machine.micro_batch,
        global_batch=plan.config.train.global_batch,
        context_length=plan.config.model.context_length,
        device=hardware.device,
        world_size=world_size,
    )
    recorded = _recorded_choices(run, hardware, world_size)
    if machine.micro_batch is None:
        micro_batch = recorded.get("micro_batch") or micro_batch
    acceleration, why_not = choose_acceleration(
        hardware.device,
        compile_wanted=recorded.get("compile") if machine.compile is None else machine.compile,
        activation_checkpointing=machine.activation_checkpointing,
    )
    return Placement(hardware, micro_batch, world_size, acceleration, why_not)


def prepare_training(
    plan: PlannedRun,
    run: RunDirectory,
    placement: Placement,
    world: World,
    *,
    observers: list[Observer],
    sample: Callable[[nn.Module], list[str]] | None = None,
) -> Training:
    """Model, optimiser and data on the device, at the newest valid checkpoint or at the beginning.

    Raises:
        DataError: there are checkpoints, but not one is valid.
    """
    config, device = plan.config, placement.hardware.device
    keep_freed_memory()
    model = build_empty(config.model, device)
    accelerate(model, placement.acceleration)
    optimizer = config.train.optimizer.build(list(model.named_parameters()))
    journal = Journal(run, observers, writes=world.is_main)
    state = _begin_or_resume(plan, journal, model, optimizer, world)
    precision = Precision(config.train.precision, device)
    precision.load_state(state.scaler)
    if world.is_main:
        _record(plan, run, placement)
    stepper = Stepper(
        model,
        optimizer,
        TokenBatches(
            plan.sequences,
            placement.micro_batch,
            config.train.seed,
            device,
            world,
            prefetch=device.type == "cuda",
        ),
        loss=next_token_losses,
        rules=GradientRules(config.train.clip.build(), config.train.nonfinite.build()),
        precision=precision,
        seed=config.train.seed,
        world=world,
    )
    schedule = config.train.schedule.maker()
    return Training(
        journal=journal,
        stepper=stepper,
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
    name = world.from_main(name)
    if not name:
        initialise(model, plan.config.model, seed=plan.config.train.seed)
        return TrainingState()
    return load_training(journal.run.checkpoints / name, model, optimizer)


def _checkpoint_to_resume(plan: PlannedRun, journal: Journal) -> str:
    """The newest valid checkpoint's name, or nothing for a run without any. Raises DataError."""
    run = journal.run
    remove_leftovers(run.checkpoints)
    checkpoint, skipped = newest_valid(run.checkpoints)
    for reason in skipped:
        journal.announce("checkpoint-skipped", reason=reason)
    if checkpoint is None and skipped:
        raise DataError(f"run {run.path}: no checkpoint is valid ({skipped[0]}); use --fresh to start anew")
    if checkpoint is None:
        return ""
    manifest = read_json_object(checkpoint / MANIFEST)
    if any(manifest.get(key) != value for key, value in plan.identity.items()):
        raise DataError(
            f"{checkpoint}: belongs to another run (the content of store {plan.store.path} or the seed differs); "
            "use the store it was trained on, or --fresh to start anew"
        )
    return checkpoint.name


def _recorded_choices(run: RunDirectory, hardware: Hardware, world_size: int) -> dict[str, Any]:
    """The choices of an earlier session on the same machine: a resume makes the same ones."""
    if not run.machine.is_file():
        return {}
    facts = read_json_object(run.machine)
    here = {"device_name": hardware.name, "device": hardware.device.type, "world_size": world_size}
    return facts if here.items() <= facts.items() else {}


def _record(plan: PlannedRun, run: RunDirectory, placement: Placement) -> None:
    if not run.exists():
        run.write_config(plan.config.to_plain())
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


def held_out_slice(config: RunConfig, store: TokenStore, tokenizer: Tokenizer, folder: Path) -> TokenSlice:
    """What ``[eval]`` names. Raises DataError where it is not there, empty, or of another tokenizer."""
    settings = config.eval
    if settings.store:
        store = open_named_store(settings.store, folder)
    check_same_tokenizer(store, tokenizer)
    return TokenSlice.of(store.split(settings.split), start=settings.start, tokens=settings.tokens)


def check_same_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raises DataError where a store's ids mean other text than a model's."""
    found = store.manifest.tokenizer
    if found["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"store {store.path}: was made with tokenizer {found['name']} ({found['vocab_size']} ids), but the model "
            f"knows {tokenizer.name} ({tokenizer.vocab_size} ids); prepare the text with the model's tokenizer"
        )
