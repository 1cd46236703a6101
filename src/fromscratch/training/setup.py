"""From a run file and a machine to a training ready to go: everything decided before step 0."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fromscratch.config.loading import load_run_config, parse_run_config, read_toml
from fromscratch.config.run import RunConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenStore, open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.models.factory import build_empty
from fromscratch.models.gpt import GPT
from fromscratch.runs.directory import RunDirectory, check_run_name
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.loading import load as load_tokenizer
from fromscratch.training.batches import AUTO_TOKENS, TokenBatches, choose_micro_batch
from fromscratch.training.checkpoints import TrainingState, load_training, newest_valid, remove_leftovers
from fromscratch.training.hardware import Hardware, find_hardware
from fromscratch.training.held_out import TokenSlice, mean_loss
from fromscratch.training.loop import Cadence, Training
from fromscratch.training.observers import Observer
from fromscratch.training.precision import Precision
from fromscratch.training.starting import Parent, begin, open_parent
from fromscratch.training.step import Stepper, next_token_losses

TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class MachineOptions:
    """What a user may say about the machine; none of it can change the result."""

    device: str | None = None
    """``cuda``, ``cuda:N``, ``mps`` or ``cpu``; None finds the fastest."""
    micro_batch: int | None = None
    """Sequences per forward pass; None finds one."""


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
    parent: Parent | None = None
    """The model whose weights the run goes on from."""

    @property
    def identity(self) -> dict[str, Any]:
        """Names the science: the hash of the resolved config (stores by content), and the seed."""
        fingerprint = self.store.fingerprint
        parent = self.parent.identity() if self.parent else None
        identity = self.config.identity(store_fingerprint=fingerprint, parent=parent)
        return {"identity": identity, "seed": self.config.train.seed}


def plan_run(file: Path, overrides: list[str] | None = None) -> PlannedRun:
    """Reads a run file and opens what it names.

    Raises:
        UsageError: the file says something wrong, or something the store contradicts.
        DataError: the store is missing, damaged or too small.
    """
    config = load_run_config(file, overrides)
    store = open_store(find_store(config.data.store, file.parent))
    tokenizer = load_tokenizer(store.tokenizer_folder)
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
    _check_schedule(config, num_steps, file)
    parent = open_parent(config.train.start_from, config.model, tokenizer, file)
    return PlannedRun(config, store, tokenizer, sequences, num_steps, costs, file.parent, parent)


def find_store(name: str, folder: Path) -> Path:
    """The store's folder: relative to the run file, or else to the current folder."""
    beside = folder / Path(name).expanduser()
    return beside if beside.is_dir() else Path(name).expanduser()


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


def place_run(plan: PlannedRun, run: RunDirectory, machine: MachineOptions) -> Placement:
    """Finds the device and the micro-batch; writes nothing.

    Raises:
        UsageError: the device is not there, or the micro-batch does not divide the global batch.
    """
    hardware = find_hardware(machine.device)
    micro_batch = choose_micro_batch(
        machine.micro_batch or _recorded_micro_batch(run, hardware),
        global_batch=plan.config.train.global_batch,
        context_length=plan.config.model.context_length,
        device=hardware.device,
    )
    return Placement(hardware, micro_batch)


def prepare_training(
    plan: PlannedRun,
    run: RunDirectory,
    placement: Placement,
    *,
    observers: list[Observer],
    sample: Callable[[nn.Module], list[str]] | None = None,
) -> Training:
    """Model, optimiser and data on the device, at the newest valid checkpoint or at the beginning.

    Raises:
        DataError: there are checkpoints, but not one is valid.
    """
    config, device = plan.config, placement.hardware.device
    model = build_empty(config.model, device)
    optimizer = config.train.optimizer.build(list(model.named_parameters()))
    state = _begin_or_resume(plan, run, model, optimizer)
    precision = Precision(config.train.precision, device)
    precision.load_state(state.scaler)
    _record(plan, run, placement)
    batches = TokenBatches(plan.sequences, placement.micro_batch, config.train.seed, device)
    stepper = Stepper(
        model, optimizer, batches, loss=next_token_losses, clip=config.train.clip.build(), precision=precision
    )
    schedule = config.train.schedule.maker()
    return Training(
        run=run,
        stepper=stepper,
        state=state,
        num_steps=plan.num_steps,
        tokens_per_step=plan.sequences.tokens_per_step,
        learning_rate=lambda step: schedule(
            step=step, num_steps=plan.num_steps, learning_rate=config.train.optimizer.learning_rate
        ),
        policy=config.train.nonfinite.build(),
        cadence=_cadence(config),
        identity=plan.identity,
        evaluate=_evaluator(plan, precision, placement),
        sample=sample,
        observers=observers,
    )


def _begin_or_resume(
    plan: PlannedRun, run: RunDirectory, model: GPT, optimizer: torch.optim.Optimizer
) -> TrainingState:
    remove_leftovers(run.checkpoints)
    checkpoint, skipped = newest_valid(run.checkpoints)
    for reason in skipped:
        run.log_event("checkpoint-skipped", reason=reason)
    if checkpoint is None and skipped:
        raise DataError(f"run {run.path}: no checkpoint is valid ({skipped[0]}); use --fresh to start anew")
    if checkpoint is None:
        begin(model, optimizer, plan.config.model, seed=plan.config.train.seed, parent=plan.parent)
        run.forget_after(0)
        return TrainingState()
    found = {key: read_json_object(checkpoint / "manifest.json").get(key) for key in plan.identity}
    if found != plan.identity:
        raise DataError(
            f"{checkpoint}: belongs to another run (the content of store {plan.store.path} or the seed differs); "
            "use the store it was trained on, or --fresh to start anew"
        )
    state = load_training(checkpoint, model, optimizer)
    run.forget_after(state.step)
    return state


def _recorded_micro_batch(run: RunDirectory, hardware: Hardware) -> int | None:
    """The micro-batch of an earlier session on the same kind of device: a resume makes the same choices."""
    if not run.machine.is_file():
        return None
    facts = read_json_object(run.machine)
    same = facts.get("device_name") == hardware.name and facts.get("device") == hardware.device.type
    return facts.get("micro_batch") if same else None


def _record(plan: PlannedRun, run: RunDirectory, placement: Placement) -> None:
    if not run.exists():
        run.write_config(plan.config.to_plain())
        if plan.parent:
            run.log_event("parent", **plan.parent.facts())
    if not run.tokenizer.is_dir():
        shutil.rmtree(run.tokenizer, ignore_errors=True)
        plan.tokenizer.save(run.tokenizer)
    run.write_machine({**placement.hardware.facts(), "world_size": 1, "micro_batch": placement.micro_batch})


def _cadence(config: RunConfig) -> Cadence:
    train = config.train
    return Cadence(
        evaluate_every=train.evaluate_every,
        sample_every=train.sample_every,
        checkpoint_every=train.checkpoint_every,
        keep_checkpoints=train.keep_checkpoints,
    )


def _evaluator(
    plan: PlannedRun, precision: Precision, placement: Placement
) -> Callable[[nn.Module, Callable[[], bool]], float | None] | None:
    settings, context_length = plan.config.eval, plan.config.model.context_length
    if plan.config.train.evaluate_every == 0:
        return None
    store = open_store(find_store(settings.store, plan.folder)) if settings.store else plan.store
    check_same_tokenizer(store, plan.tokenizer)
    part = TokenSlice.of(store.split(settings.split), start=settings.start, tokens=settings.tokens)
    measure = partial(
        mean_loss,
        part=part,
        context_length=context_length,
        batch=max(placement.micro_batch, AUTO_TOKENS[placement.hardware.device.type] // context_length),
        device=placement.hardware.device,
        precision=precision,
    )
    return lambda model, stop: measure(model, stop=stop)


def check_same_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raises DataError where a store's ids mean other text than a model's."""
    found = store.manifest.tokenizer
    if found["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"store {store.path}: was made with tokenizer {found['name']} ({found['vocab_size']} ids), but the model "
            f"knows {tokenizer.name} ({tokenizer.vocab_size} ids); prepare the text with the model's tokenizer"
        )
